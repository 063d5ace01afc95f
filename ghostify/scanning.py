"""Traced → Scan: the sites where a network could be rewritten, and what everything costs.  Names and numbers only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from torch import fx, nn

from ghostify.arguments import network, takes
from ghostify.batches import inputs_in
from ghostify.channels import Channels, Coupling, Unreadable, follow
from ghostify.costs import Cost, Op, count, own_params
from ghostify.ghosts import CGhost
from ghostify.ghosts.narrowing import PLAIN, Conv, has_own_forward, not_narrowable, per_filter
from ghostify.inputs import Inputs, InputSpec
from ghostify.names import matches
from ghostify.recipe import Role, Stream
from ghostify.running import groups_of, is_conv, is_weighted, op_name, undisturbed, weight_node, weight_shape
from ghostify.stages import Stage, find_stages, name_stage
from ghostify.tables import Table, quantity
from ghostify.tracing import Traced, trace

Kind = Literal["conv", "conv1d", "conv3d", "transposed", "linear", "functional"]
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (*_CONVS, nn.Linear)


class Site(BaseModel):
    """A convolution (or a linear layer on vectors or on maps): where it is, its geometry, its cost, what stands in the
    way.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    aliases: tuple[str, ...] = ()
    """Other qualified names of the same module, where it is shared."""
    kind: Kind
    role: Role = "body"
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    extras: int = 0
    """Parameters of each filter besides its weights and its bias: those of a class of its own, such as a gain."""
    shared: int = 0
    """Parameters of such a class that belong to no filter."""
    calls: int = 0
    positions: int = 0
    """Output positions (N·H'·W') over all calls: what one weight is multiplied by how often."""
    map: tuple[int, ...] = ()
    """Spatial size of the first call's output."""
    cost: Cost = Cost()
    obstacle: str | None = None
    """Why this site cannot be rewritten, as the end of a sentence that begins with its name; None if it can."""

    @property
    def names(self) -> tuple[str, ...]:
        """All its names, the first one first."""
        return (self.name, *self.aliases)

    def matches(self, pattern: str) -> bool:
        """Whether a pattern means it, under any of its names."""
        return any(matches(name, pattern) for name in self.names)

    @property
    def fan_in(self) -> int:
        """Inputs of one filter: c/groups · k²."""
        return self.in_channels // self.groups * math.prod(self.kernel)

    @property
    def part(self) -> str:
        """What it is to a reader: its role; of what has none of its own, its kind."""
        own = self.kind == "conv" or (self.kind == "linear" and self.role != "classifier")
        return self.role if own else self.kind

    @property
    def geometry(self) -> str:
        """Channels, kernel, stride and groups as a person writes them: ``64→128 3x3 /2``."""
        text = f"{self.in_channels}→{self.out_channels} {'x'.join(map(str, self.kernel))}"
        if any(step != 1 for step in self.stride):
            text += f" /{self.stride[0] if len(set(self.stride)) == 1 else 'x'.join(map(str, self.stride))}"
        return text + (f" g{self.groups}" if self.groups > 1 else "")


class Scan(BaseModel):
    """What a network is made of and what it costs, for one example input."""

    model_config = ConfigDict(frozen=True)

    network: str
    """Class name of the module scanned."""
    inputs: tuple[tuple[int, ...], ...]
    """Shapes of the tensors in the example, the batch included."""
    kinds: tuple[str, ...] = ()
    """Their dtypes, where the example is a tensor, or a tuple or dict of some."""
    names: tuple[str, ...] = ()
    """Their keywords, where it is a dict."""
    sites: tuple[Site, ...]
    cost: Cost
    ops: tuple[Op, ...]
    stages: tuple[Stage, ...] = ()
    """Runs of three or more blocks of one width and resolution, in the order they run."""
    unknown: dict[str, int]
    """Operations no counting rule knows, and how often each ran."""
    params: dict[str, int]
    """Own parameters by qualified module name, first names only."""
    modules: tuple[tuple[str, ...], ...] = ()
    """The names of every module, the root's first; more than one where a module is shared."""
    doubts: tuple[str, ...] = ()
    coupling: Coupling | None = None
    """The channels of the whole network, where the scan was asked for them."""
    uncoupled: str = ""
    """Why there are none, as a sentence without its end."""
    closed: tuple[str, ...] = ()
    """G-Ghost stages, which keep their channels when the rest becomes narrower."""
    idle: tuple[str, ...] = ()
    """Modules that ran neither on the example nor in training, so that the channels they may read are kept."""
    steady: tuple[str, ...] = ()
    """Globs of the layers whose outputs were to keep all their channels."""
    stream: Stream = "scaled"
    """Whether channels that are added to each other were to be kept, too."""

    @property
    def specs(self) -> Inputs:
        """What the network takes, for a sample.  Raises ``ValueError`` where the example was anything more."""
        images = len(self.inputs) == 1 and len(self.inputs[0]) == 4
        kinds = self.kinds or ("float32",) * images  # of one image, where a scan is from before they told
        if not kinds:
            raise ValueError("it is no tensor with a dimension of samples, tuple of such tensors or dict of them")
        names = self.names or ("",) * len(self.inputs)
        return tuple(
            InputSpec(shape[1:], kind, name) for shape, kind, name in zip(self.inputs, kinds, names, strict=True)
        )

    def site(self, name: str) -> Site | None:
        """The site of that name (an alias finds it too)."""
        return next((site for site in self.sites if name in site.names), None)

    def stage(self, blocks: Sequence[str]) -> Stage | None:
        """The stage of these blocks."""
        return next((s for s in self.stages if tuple(block.name for block in s.blocks) == tuple(blocks)), None)

    def hindered(self, obstacles: Mapping[str, str]) -> Scan:
        """Itself, with what stands in the way of some stages, by name."""
        stages = tuple(
            stage.model_copy(update={"obstacle": obstacles.get(stage.name, stage.obstacle)}) for stage in self.stages
        )
        return self.model_copy(update={"stages": stages})

    def within(self, name: str) -> Cost:
        """Counted cost of the module of that qualified name with everything below it."""
        below = name + "."
        ops = [op for op in self.ops if op.module == name or op.module.startswith(below)]
        params = sum(n for module, n in self.params.items() if module == name or module.startswith(below))
        return Cost(params=params, macs=sum(op.macs for op in ops), acts=sum(op.acts for op in ops))

    @property
    def uncounted(self) -> str:
        """One sentence naming the operations nobody counted; empty when there are none."""
        if not self.unknown:
            return ""
        return "Not counted: " + ", ".join(f"{name} ({n}x)" for name, n in sorted(self.unknown.items())) + "."

    def table(self) -> Table:
        total = self.cost.macs or 1
        rows = [
            [
                site.name + (f" (+{len(site.aliases)} alias)" if site.aliases else ""),
                site.part,
                site.geometry,
                "x".join(map(str, site.map)) + (f" ({site.calls} calls)" if site.calls > 1 else ""),
                quantity(site.cost.params),
                quantity(site.cost.macs),
                f"{100 * site.cost.macs / total:.1f}%",
            ]
            for site in self.sites
        ]
        inputs = " and ".join("x".join(map(str, shape)) for shape in self.inputs)
        title = (
            f"{self.network} on {inputs}: {quantity(self.cost.params)} params, "
            f"{quantity(self.cost.macs)} MACs, {quantity(self.cost.acts)} activations"
        )
        columns = ["layer", "role", "geometry", "map", "params", "MACs", "share"]
        note = "\n".join(text for text in (self.uncounted, *self.doubts) if text)
        return Table(title, columns, rows, left=frozenset({"role", "geometry", "map"}), note=note)

    def stage_table(self) -> Table:
        """The stages, a row each; no rows where the network has none."""
        total = self.cost.macs or 1
        rows = [
            [
                stage.name,
                str(stage.n),
                str(stage.width),
                "x".join(map(str, stage.resolution)),
                quantity(stage.cost.params),
                quantity(stage.cost.macs),
                f"{100 * stage.cost.macs / total:.1f}%",
            ]
            for stage in self.stages
        ]
        title = "Stages: three or more blocks of one width and resolution"
        note = "\n".join(f"{stage.name} {stage.obstacle}." for stage in self.stages if stage.obstacle)
        return Table(title, ["stage", "blocks", "width", "map", "params", "MACs", "share"], rows, note=note)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.stage_table()}" if self.stages else str(self.table())


def forms(example: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A scan's ``kinds`` and ``names`` for an example; empty where it is more than a tuple or a dict of tensors."""
    try:
        specs = inputs_in(example)
    except ValueError:
        return (), ()
    return tuple(spec.dtype for spec in specs), tuple(spec.name for spec in specs if spec.name)


def _recorded_or_network(value: Any) -> Any:
    return value if isinstance(value, Traced) else network(value)


@takes(model=_recorded_or_network)
@undisturbed()
def scan(
    model: Traced | nn.Module,
    example: Any = None,
    *,
    stages: Sequence[Sequence[str]] = (),
    whole: bool = False,
    steady: Sequence[str] = (),
    stream: Stream = "scaled",
) -> Scan:
    """Scan a recorded run, or a module on an example (then recorded first).

    ``stages`` names stages by hand, each by the modules of its blocks; ``whole`` asks for the channels of the whole
    network (for rule width), of which what modules meant by ``steady`` read and give stays, and with a kept ``stream``
    what is added to each other.  Raises ``TraceError``, and ``PlanError`` for a named stage that is none.
    """
    traced = model if isinstance(model, Traced) else trace(model, example)
    ops, unknown = count(traced)
    kinds, names = forms(traced.example)
    cost = Cost(params=own_params(traced.module), macs=sum(op.macs for op in ops), acts=sum(op.acts for op in ops))
    found = find_stages(traced)
    known = {tuple(block.name for block in stage.blocks) for stage in found}
    named = [name_stage(traced, blocks) for blocks in stages if tuple(blocks) not in known]
    channels, uncoupled = _followed(traced, steady, stream) if whole else (None, "")
    return Scan(
        network=type(traced.module).__name__,
        inputs=tuple(traced.input_shapes),
        kinds=kinds,
        names=names,
        sites=tuple(_sites(traced, ops)),
        cost=cost,
        ops=tuple(ops),
        stages=(*found, *named),
        unknown=dict(unknown),
        params=_params_by_module(traced),
        modules=tuple(map(tuple, traced.names.values())),
        doubts=tuple(traced.doubts),
        coupling=channels.coupling if channels else None,
        uncoupled=uncoupled,
        closed=channels.closed if channels else (),
        idle=channels.idle if channels else (),
        steady=tuple(steady),
        stream=stream,
    )


def network_nodes(traced: Traced, steady: Sequence[str] = ()) -> tuple[list[list[fx.Node]], None, list[fx.Node]]:
    """What ``follow`` takes to follow a whole network: all nodes as one block, no entry, and what keeps all its
    channels: the outputs of the network, and what the modules that patterns of ``steady`` mean read and give.
    """
    nodes = [node for node in traced.graph.nodes if node.op != "output"]
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    patterns = tuple(steady)
    held = {module for module, names in traced.names.items() if any(matches(n, p) for n in names for p in patterns)}
    called = {node: None for node in nodes if node.op.startswith("call_") and node.meta["shapes"]}
    kept = [node for node in called if any(owner in held for owner in _owners(traced, node))]
    read = [source for node in kept for source in node.all_input_nodes if source in called]
    return [nodes], None, list(dict.fromkeys([*output.all_input_nodes, *read, *kept]))


def _owners(traced: Traced, node: fx.Node) -> Iterator[nn.Module]:
    """The module that a node calls, or that it runs in, and those whose parameters it reads."""
    yield traced.part(str(node.target if node.op == "call_module" else node.meta["module"]))
    for source in node.all_input_nodes:
        if source.meta.get("parameter"):
            yield traced.part(str(source.meta["parameter"]).rpartition(".")[0])


def _followed(traced: Traced, steady: Sequence[str], stream: Stream) -> tuple[Channels | None, str]:
    try:
        return follow(traced, *network_nodes(traced, steady), sums=stream == "kept"), ""
    except Unreadable as problem:
        return None, str(problem)


def _params_by_module(traced: Traced) -> dict[str, int]:
    """Own parameters of each module, a tied one counted where it is met first."""
    seen: set[int] = set()
    sizes: dict[str, int] = {}
    for module, names in traced.names.items():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(id(p) for p in own)
        if own:
            sizes[names[0]] = sum(p.numel() for p in own)
    return sizes


def _sites(traced: Traced, ops: list[Op]) -> Iterator[Site]:
    """One site per convolution module in module order, then those that never ran, then functional convolutions."""
    roles = _roles(traced)
    calls = _calls(traced)
    costs = {op.node: op for op in ops}
    sealed = _called_otherwise(traced) | _lent(traced) | _sealed(traced)
    inside = _inside(traced, ops)
    maps = _maps(traced)
    for module, names in traced.names.items():
        if isinstance(module, _CONVS) or (module in calls and _is_linear_site(module, calls[module], maps)):
            nodes = calls.pop(module, [])
            inner = [op for op in inside.get(module, []) if op.node not in {node.name for node in nodes}]
            yield _module_site(module, names, nodes, costs, inner, roles, sealed)
    for nodes in calls.values():
        for node in nodes:
            if is_conv(op_name(traced, node)):
                yield _functional_site(traced, node, costs, roles)


def _calls(traced: Traced) -> dict[nn.Module | str, list[fx.Node]]:
    """The convolution and linear nodes of the graph, by the module that owns the weight (or by node, if none does)."""
    calls: dict[nn.Module | str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op in ("call_module", "call_function") and is_weighted(op_name(traced, node)):
            owner = _weight_owner(traced, node)
            calls.setdefault(owner if isinstance(owner, _WEIGHTED) else node.name, []).append(node)
    return calls


def _weight_owner(traced: Traced, node: fx.Node) -> nn.Module | None:
    """The module a convolution's weight belongs to; for a weight made on the way, the module the call ran in."""
    weight = weight_node(node) if node.op == "call_function" else None
    if weight is not None and weight.meta.get("parameter"):
        return traced.part(str(weight.meta["parameter"]).rpartition(".")[0])
    return traced.part(node.target if node.op == "call_module" else node.meta["module"])  # type: ignore[arg-type]


def _image(node: fx.Node) -> fx.Node:
    """What a convolution or linear layer reads."""
    image = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(image, fx.Node)
    return image


def _module_site(
    module: nn.Module,
    names: list[str],
    nodes: list[fx.Node],
    costs: dict[str, Op],
    inner: list[Op],
    roles: dict[str, Role],
    sealed: dict[str, str],
) -> Site:
    """``inner``: what else ran in the module."""
    linear = isinstance(module, nn.Linear)
    counted = [*(costs[node.name] for node in nodes), *inner]
    outs = [tuple(node.meta["shapes"][0]) for node in nodes]
    n = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    seen = [roles[node.name] for node in nodes]
    extras, shared = _own_numbers(module)
    below = [f"{name}.{part}".strip(".") for name in names for part, _ in module.named_modules()]
    return Site(
        name=names[0],
        aliases=tuple(names[1:]),
        kind=_kind(module),
        role=_linear_role(outs, seen) if linear else _role(module, seen),
        in_channels=module.in_features if isinstance(module, nn.Linear) else module.in_channels,  # type: ignore[arg-type]
        out_channels=n,  # type: ignore[arg-type]
        kernel=(1, 1) if linear else module.kernel_size,  # type: ignore[arg-type]
        stride=() if linear else module.stride,  # type: ignore[arg-type]
        groups=1 if linear else module.groups,  # type: ignore[arg-type]
        bias=module.bias is not None,
        extras=extras,
        shared=shared,
        calls=len(nodes),
        positions=sum(math.prod(out) for out in outs) // n,
        map=outs[0][1:-1] or (1, 1) if linear else outs[0][2:] if outs else (),
        cost=Cost(params=own_params(module), macs=sum(op.macs for op in counted), acts=sum(op.acts for op in counted)),
        obstacle=next((sealed[name] for name in below if name in sealed), None) or _obstacle(module, nodes, inner),
    )


def _functional_site(traced: Traced, node: fx.Node, costs: dict[str, Op], roles: dict[str, Role]) -> Site:
    out = node.meta["shapes"][0]
    n, _, *kernel = weight_shape(traced, node)
    channels = _image(node).meta["shapes"][0][1]
    op = costs[node.name]
    return Site(
        name=f"{node.meta['module'] or '(root)'}:{node.name}",
        kind="functional",
        role=_role(None, [roles[node.name]]),
        in_channels=channels,
        out_channels=n,
        kernel=tuple(kernel),
        groups=groups_of(traced, node),
        calls=1,
        positions=math.prod(out) // out[1],
        map=tuple(out[2:]),
        cost=Cost(macs=op.macs, acts=op.acts),
        obstacle="is a functional convolution whose weight no convolution module holds",
    )


# -- what a site is --------------------------------------------------------------------------------------------


def _is_linear_site(module: nn.Module, nodes: list[fx.Node], maps: set[fx.Node]) -> bool:
    """Whether it is a linear layer on vectors (N, c) or ``maps`` (N, H, W, c); tokens (N, T, c) have no neighbours."""
    return isinstance(module, nn.Linear) and all(
        len(node.meta["shapes"][0]) == 2 or _image(node) in maps for node in nodes
    )


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return "transposed"
    if isinstance(module, nn.Conv1d):
        return "conv1d"
    return "conv3d" if isinstance(module, nn.Conv3d) else "conv"


def _obstacle(module: nn.Module, nodes: list[fx.Node], inner: list[Op]) -> str | None:
    """Why a module can take no ghost, whatever the settings; ``inner`` is what ran in it besides its convolutions."""
    kind = type(module).__name__
    if not nodes:
        return "did not run on the example in eval mode, so its output is unknown"
    if _kind(module) == "transposed":
        return f"is a {kind}, and C-Ghost modules are convolutions that are not transposed"
    if any(parameter.is_complex() for parameter in module.parameters()):
        return "has complex weights, and only real ones can be carried over into a ghost"
    if module._forward_pre_hooks and not isinstance(module.weight, nn.Parameter):
        return (
            "computes its weight by a hook, which a new module would drop "
            "(a parametrisation of torch.nn.utils.parametrizations in its place is understood)"
        )
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "carries hooks, which a new module would drop"
    if has_own_forward(module):
        return _obstacle_inside(module, inner)
    if any(node.op != "call_module" and type(module) in PLAIN.values() for node in nodes):
        return "has its weight used by a function call elsewhere, so the module itself cannot be replaced"
    return None


def _obstacle_inside(module: nn.Module, inner: list[Op]) -> str | None:
    """Why a module with a forward of its own can take no ghost."""
    own = f"is a {type(module).__name__} with a forward of its own"
    if not isinstance(module, Conv):
        return own
    if inner:
        return f"{own}, which computes more than its convolution ({inner[0].kind})"
    return not_narrowable(module)


def _own_numbers(module: nn.Module) -> tuple[int, int]:
    """Parameters of a convolution with a forward of its own besides weights and biases: of each filter, and of none."""
    if not isinstance(module, Conv) or not has_own_forward(module):
        return 0, 0
    n = module.out_channels
    each = sum(p.numel() // n for p in module.parameters() if per_filter(p, n))
    shared = sum(p.numel() for p in module.parameters() if not per_filter(p, n))
    return each - module.weight[0].numel() - (module.bias is not None), shared


def _inside(traced: Traced, ops: list[Op]) -> dict[nn.Module, list[Op]]:
    """By convolution or linear layer, the operations that ran in it or in a module of its own (a parametrisation)."""
    homes = _homes(traced)
    inside: dict[nn.Module, list[Op]] = {}
    for op in ops:
        if op.module in homes:
            inside.setdefault(homes[op.module], []).append(op)
    return inside


def _sealed(traced: Traced) -> dict[str, str]:
    """What closes a module by where it stands: inside a ghost module already, or tied to another by its weight."""
    owners: dict[int, list[str]] = {}
    for module, names in traced.names.items():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(names[0])
    tied = {
        name: f"shares its weight with {next(other for other in group if other != name)!r}, a tie a ghost would break"
        for group in owners.values()
        if len(set(group)) > 1
        for name in group
    }
    return tied | {
        f"{name}.{part}".lstrip("."): f"is part of the C-Ghost module {name!r} already"
        for module, names in traced.names.items()
        if isinstance(module, CGhost)
        for name in names
        for part, _ in module.named_modules()
    }


def _lent(traced: Traced) -> dict[str, str]:
    """Convolutions whose parameters something outside them reads (``x.to(self.conv.weight.dtype)``)."""
    homes = _homes(traced)
    lent: dict[str, str] = {}
    for node in traced.graph.nodes:
        owner, _, parameter = str(node.meta.get("parameter", "")).rpartition(".")
        made = str(node.meta.get("module", ""))
        if parameter:
            home, readers = homes.get(owner), [made, *(user.meta.get("module") for user in node.users)]
        elif node.op.startswith("call") and made in homes and made not in traced.names[homes[made]]:
            home, parameter = homes[made], "weight"  # made by a parametrisation; who asks for its dtype makes no node
            readers = [user.meta.get("module") for user in node.users] or [None]
        else:
            continue
        if home is not None and any(homes.get(str(reader)) is not home for reader in readers):
            lent[traced.names[home][0]] = f"has its {parameter} read elsewhere, and a ghost has none to be read"
    return lent


def _called_otherwise(traced: Traced) -> dict[str, str]:
    """Convolutions that are called as no ghost can be: with more than an image, or with it by name."""
    return {
        names[0]: "is called with more than one image by its position, which is all that a ghost takes"
        for module, names in traced.names.items()
        if isinstance(module, Conv) and names[0] in traced.involved
    }


def _homes(traced: Traced) -> dict[str, nn.Module]:
    """By name of a convolution or linear layer, and of what lies in it (a parametrisation), that layer."""
    return {
        f"{name}.{part}".strip("."): module
        for module, names in traced.names.items()
        if isinstance(module, _WEIGHTED)
        for name in names
        for part, _ in module.named_modules()
    }


def _role(module: nn.Module | None, seen: list[Role]) -> Role:
    if module is not None and not isinstance(module, nn.Linear):
        groups = module.groups
        if groups == module.in_channels and groups > 1:  # type: ignore[operator]
            return "depthwise"
    return next((role for role in ("stem", "classifier", "pooled") if role in seen), "body")


def _linear_role(outs: list[tuple[int, ...]], seen: list[Role]) -> Role:
    """On vectors it counts as a classifier, wherever it stands; on maps it may be first or last, as a convolution."""
    if all(len(out) == 2 for out in outs):
        return "classifier"
    return next((role for role in ("stem", "classifier") if role in seen), "channels-last")


def _roles(traced: Traced) -> dict[str, Role]:
    """Role of every convolution node by where it stands: first, last, on a pooled 1x1 map, or in the body."""
    fed = _downstream_of_weights(traced)
    feeding = _upstream_of_weights(traced)
    pooled = _pooled(traced)
    roles: dict[str, Role] = {}
    for node in traced.graph.nodes:
        if node.op not in ("call_module", "call_function") or not is_weighted(op_name(traced, node)):
            continue
        if not any(source in fed for source in node.all_input_nodes):
            roles[node.name] = "stem"
        elif node not in feeding:
            roles[node.name] = "classifier"
        else:
            roles[node.name] = "pooled" if _image(node) in pooled else "body"
    return roles


def _downstream_of_weights(traced: Traced) -> set[fx.Node]:
    """Nodes whose value has passed a convolution or a linear layer."""
    fed: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if traced.from_outside(node):
            fed.add(node)  # what it was made of is unknown, but the input itself it is not
        weighted = node.op in ("call_module", "call_function") and is_weighted(op_name(traced, node))
        if weighted or any(source in fed for source in node.all_input_nodes):
            fed.add(node)
    return fed


def _upstream_of_weights(traced: Traced) -> set[fx.Node]:
    """Nodes whose value reaches something with parameters of its own (a norm, a convolution, a linear layer)."""
    feeding: set[fx.Node] = set()
    for node in reversed(traced.graph.nodes):
        for user in node.users:
            if user in feeding or _has_parameters(traced, user):
                feeding.add(node)
                break
    return feeding


def _has_parameters(traced: Traced, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(True for _ in traced.leaf(node).parameters())
    return any(source.op == "get_attr" and source.meta.get("parameter") for source in node.all_input_nodes)


def _pooled(traced: Traced) -> set[fx.Node]:
    """Nodes holding a 1x1 map that was pooled from a larger one."""
    pooled: set[fx.Node] = set()
    for node in traced.graph.nodes:
        shapes = node.meta.get("shapes") or [()]
        if len(shapes[0]) < 3 or math.prod(shapes[0][2:]) != 1:
            continue
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        weighted = node.op in ("call_module", "call_function") and is_conv(op_name(traced, node))
        shrunk = not weighted and any(_area(source) > 1 for source in sources)
        if shrunk or any(source in pooled for source in sources):
            pooled.add(node)
    return pooled


def _maps(traced: Traced) -> set[fx.Node]:
    """Nodes that hold maps, wherever their channels stand: inputs of four dimensions, outputs of convolutions, and what
    is made of those by way of four dimensions alone.  So windows that were cut out of a map, and heads, are none.
    """
    maps: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if len((node.meta.get("shapes") or [()])[0]) != 4:
            continue
        weighted = node.op in ("call_module", "call_function") and is_conv(op_name(traced, node))
        if weighted or node.op == "placeholder" or any(source in maps for source in node.all_input_nodes):
            maps.add(node)
    return maps


def _area(node: fx.Node) -> int:
    shapes = node.meta.get("shapes") or [()]
    return math.prod(shapes[0][2:]) if len(shapes[0]) > 2 else 0
