"""One site per convolution, or linear layer on vectors or maps: its geometry, its cost, what stands in the way."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx, nn

from ghostify.costs import Cost, Op, own_params
from ghostify.ghosts.narrowing import Conv, has_own_forward, per_filter
from ghostify.module_calls import read_weights
from ghostify.recipe import Role
from ghostify.running import groups_of, is_conv, is_weighted, op_name, weight_node, weight_shape
from ghostify.scanning.obstacles import homes_in, obstacle, sealed_in, unfit_as_called
from ghostify.scanning.result import Site
from ghostify.scanning.roles import CONVS, WEIGHTED, image_of, kind_of, linear_role, maps_in, role_of, roles_in
from ghostify.tracing import Traced


def sites_in(traced: Traced, ops: list[Op]) -> Iterator[Site]:
    """One site per convolution module in module order, then those that never ran, then functional convolutions."""
    roles = roles_in(traced)
    calls = weighted_calls(traced)
    costs = {op.node: op for op in ops}
    sealed = sealed_in(traced)
    inside = _inside(traced, ops)
    maps = maps_in(traced)
    read = read_weights(traced, traced.module)
    for module, names in traced.names.items():
        if isinstance(module, CONVS) or (module in calls and _is_linear_site(module, calls[module], maps)):
            # what is left over in the end are convolutions whose weight no module holds
            nodes = calls.pop(module, [])
            inner = [op for op in inside.get(module, []) if op.node not in {node.name for node in nodes}]
            site = _module_site(module, names, nodes, costs, inner, roles, sealed)
            yield site.model_copy(update={"unfit": unfit_as_called(traced, site.name, module, read)})
    for nodes in calls.values():
        for node in nodes:
            if is_conv(op_name(traced, node)):
                yield _functional_site(traced, node, costs, roles)


def weighted_calls(traced: Traced) -> dict[nn.Module | str, list[fx.Node]]:
    """The convolution and linear nodes of the graph, by the module that owns the weight (or by node, if none does)."""
    calls: dict[nn.Module | str, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op in ("call_module", "call_function") and is_weighted(op_name(traced, node)):
            owner = _weight_owner(traced, node)
            calls.setdefault(owner if isinstance(owner, WEIGHTED) else node.name, []).append(node)
    return calls


def _weight_owner(traced: Traced, node: fx.Node) -> nn.Module | None:
    """The module a convolution's weight belongs to; for a weight made on the way, the module the call ran in."""
    weight = weight_node(node) if node.op == "call_function" else None
    # F.conv2d(x, other.weight) belongs to the module of the weight, wherever the call stands
    if weight is not None and weight.meta.get("parameter"):
        return traced.part(str(weight.meta["parameter"]).rpartition(".")[0])
    return traced.part(node.target if node.op == "call_module" else node.meta["module"])  # type: ignore[arg-type]


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
    # positions are outputs over channels, whatever dimension those stand in
    n = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    seen = [roles[node.name] for node in nodes]
    extras, shared = _own_numbers(module)
    below = [f"{name}.{part}".strip(".") for name in names for part, _ in module.named_modules()]
    return Site(
        name=names[0],
        aliases=tuple(names[1:]),
        kind=kind_of(module),
        role=linear_role(outs, seen) if linear else role_of(module, seen),
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
        obstacle=next((sealed[name] for name in below if name in sealed), None) or obstacle(module, nodes, inner),
    )


def _functional_site(traced: Traced, node: fx.Node, costs: dict[str, Op], roles: dict[str, Role]) -> Site:
    out = node.meta["shapes"][0]
    n, _, *kernel = weight_shape(traced, node)
    channels = image_of(node).meta["shapes"][0][1]
    op = costs[node.name]
    return Site(
        name=f"{node.meta['module'] or '(root)'}:{node.name}",
        kind="functional",
        role=role_of(None, [roles[node.name]]),
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


def _is_linear_site(module: nn.Module, nodes: list[fx.Node], maps: set[fx.Node]) -> bool:
    """Whether it is a linear layer on vectors (N, c) or ``maps`` (N, H, W, c); tokens (N, T, c) have no neighbours."""
    return isinstance(module, nn.Linear) and all(
        len(node.meta["shapes"][0]) == 2 or image_of(node) in maps for node in nodes
    )


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
    homes = homes_in(traced)
    inside: dict[nn.Module, list[Op]] = {}
    for op in ops:
        if op.module in homes:
            inside.setdefault(homes[op.module], []).append(op)
    return inside
