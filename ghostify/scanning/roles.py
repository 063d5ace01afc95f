"""What a convolution or linear layer is, and its role by where it stands: first, last, on a pooled map, in the body."""

from __future__ import annotations

import math

from torch import fx, nn

from ghostify.recipe import Role
from ghostify.running import is_conv, is_weighted, op_name
from ghostify.scanning.result import Kind
from ghostify.tracing import Traced

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED = (*CONVS, nn.Linear)


def kind_of(module: nn.Module) -> Kind:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return "transposed"
    if isinstance(module, nn.Conv1d):
        return "conv1d"
    return "conv3d" if isinstance(module, nn.Conv3d) else "conv"


def role_of(module: nn.Module | None, seen: list[Role]) -> Role:
    if module is not None and not isinstance(module, nn.Linear):
        groups = module.groups
        if groups == module.in_channels and groups > 1:  # type: ignore[operator]
            return "depthwise"
    # a layer that runs in several roles has the one that is most reason to leave it alone
    return next((role for role in ("stem", "classifier", "pooled") if role in seen), "body")


def linear_role(outs: list[tuple[int, ...]], seen: list[Role]) -> Role:
    """On vectors it counts as a classifier, wherever it stands; on maps it may be first or last, as a convolution."""
    # behind a pool there is one vector for each image, and a ghost would save next to nothing there
    if all(len(out) == 2 for out in outs):
        return "classifier"
    return next((role for role in ("stem", "classifier") if role in seen), "channels-last")


def roles_in(traced: Traced) -> dict[str, Role]:
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
            roles[node.name] = "pooled" if image_of(node) in pooled else "body"
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
    # backwards, so that all who read a value are known to feed something or not before the value itself is met
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
        # a convolution that leaves one pixel is a layer of its own; a pool or a mean has squeezed a map (a gate)
        shrunk = not weighted and any(_area(source) > 1 for source in sources)
        if shrunk or any(source in pooled for source in sources):
            pooled.add(node)
    return pooled


def maps_in(traced: Traced) -> set[fx.Node]:
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


def image_of(node: fx.Node) -> fx.Node:
    """What a convolution or linear layer reads."""
    image = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(image, fx.Node)
    return image


def _area(node: fx.Node) -> int:
    shapes = node.meta.get("shapes") or [()]
    return math.prod(shapes[0][2:]) if len(shapes[0]) > 2 else 0
