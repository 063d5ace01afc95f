"""Why a convolution can take no ghost, whatever the settings."""

from __future__ import annotations

from torch import fx, nn

from ghostify.costs import Op
from ghostify.ghosts import CGhost
from ghostify.ghosts.narrowing import PLAIN, Conv, has_own_forward, not_narrowable
from ghostify.module_calls import READ_ELSEWHERE, calls_of, is_plain_layer, unfit
from ghostify.scanning.roles import WEIGHTED, kind_of
from ghostify.tracing import Traced, own_parameters

IDLE = "did not run on the example in eval mode, so its output is unknown"


def obstacle(module: nn.Module, nodes: list[fx.Node], inner: list[Op]) -> str | None:
    """Why a module can take no ghost, whatever the settings; ``inner`` is what ran in it besides its convolutions."""
    kind = type(module).__name__
    if not nodes:
        return IDLE
    if kind_of(module) == "transposed":
        return f"is a {kind}, and C-Ghost modules are convolutions that are not transposed"
    if any(parameter.is_complex() for parameter in module.parameters()):
        return "has complex weights, and only real ones can be carried over into a ghost"
    # torch's old weight norm: the weight is no parameter, but what a hook puts in its place before each call
    if module._forward_pre_hooks and not isinstance(module.weight, nn.Parameter):
        return (
            "computes its weight by a hook, which a new module would drop "
            "(a parametrisation of torch.nn.utils.parametrizations in its place is understood)"
        )
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "carries hooks, which a new module would drop"
    if has_own_forward(module):
        return _obstacle_inside(module, inner)
    # code elsewhere that uses this weight would find a ghost without one
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


def unfit_as_called(traced: Traced, name: str, module: nn.Module, read: set[int]) -> str | None:
    """Why no weights can be fitted to what a module does; ``read``: ``id`` of each weight that the network reads."""
    if is_plain_layer(module) and id(module.weight) in read:
        return READ_ELSEWHERE
    if kind_of(module) == "transposed":
        return None  # it becomes no ghost
    return unfit(module, calls_of(traced, name))


def sealed_in(traced: Traced) -> dict[str, str]:
    """By name, why a module is closed by how it stands or is used in the network."""
    return _called_otherwise(traced) | _lent(traced) | _placed(traced)


def _placed(traced: Traced) -> dict[str, str]:
    """What closes a module by where it stands: inside a ghost module already, or tied to another by its weight."""
    # the same parameter held by two modules is one tensor for both: a ghost takes it from neither
    owners: dict[int, list[str]] = {}
    for module, names in traced.names.items():
        for parameter in own_parameters(module):
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
    homes = homes_in(traced)
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


def homes_in(traced: Traced) -> dict[str, nn.Module]:
    """By name of a convolution or linear layer, and of what lies in it (a parametrisation), that layer."""
    return {
        f"{name}.{part}".strip("."): module
        for module, names in traced.names.items()
        if isinstance(module, WEIGHTED)
        for name in names
        for part, _ in module.named_modules()
    }
