"""What follows a layer, up to where its output is bent: norm, addition, activation.

    layer → [norm] → [+ other] → act [→ norm]        z = a·y + b + r

The *sum* z, what the activation reads, is where a layer is fitted: it is what the rest of the network sees.  Its target
is the original's z, and r is what the converted network adds there, so what went wrong before on the other way is made
good.  A norm in eval mode is the line a·y + b.  One behind the activation says how much an error of each channel
counts: quiet channels are made as loud as the others (conv → ReLU → norm).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ghostify.running import is_weighted, op_name
from ghostify.tracing import Traced

_ADDS = frozenset({"add", "__add__", "__iadd__", "__radd__"})
_PASSES = frozenset({"Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "dropout", "contiguous"})
_RECTIFIERS = {"relu": float("inf"), "relu6": 6.0}
_MAKES_FROM_A_SHAPE = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
_COMPARES = ("gt", "ge", "lt", "le", "eq", "ne", "__gt__", "__ge__", "__lt__", "__le__", "__eq__", "__ne__")
_MAKES_MASKS = frozenset({*_MAKES_FROM_A_SHAPE, *_COMPARES})
"""What reads a value and gives no number that an error in it would change a little."""
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Epilogue:
    """Nodes around the output of a layer; None where there is no such thing."""

    output: fx.Node
    """The layer's own output y."""
    norm: fx.Node | None
    other: fx.Node | None
    """What is added to it."""
    sum: fx.Node
    """z."""
    ceiling: float | None
    """Where a rectifier that alone reads z cuts it off above; None where anything else reads it."""
    amplifier: fx.Node | None = None
    """The norm that alone reads what that rectifier gives."""

    @property
    def form(self) -> tuple[bool, bool]:
        """What there is to be the same in two networks: a norm, an addition."""
        return self.norm is not None, self.other is not None


def epilogue(traced: Traced, output: fx.Node, outputs: Collection[fx.Node] = ()) -> Epilogue:
    """What follows the node that gives a layer's output; ``outputs`` are those of all its calls (none: that one)."""
    here, norm, other = output, None, None
    after = _next(traced, here)
    if after is not None and is_norm(traced, after) and _is_own(traced, after, output, outputs or [output]):
        norm = here = after
        after = _next(traced, here)
    if after is not None and (found := _other(traced, after, here)) is not None:
        other, here = found, after
        after = _next(traced, here)
    amplifier = None if _gives_rows(traced, output) else _amplifier(traced, here)
    return Epilogue(output, norm, other, here, rectifier_after(traced, here), amplifier)


def rectifier_after(traced: Traced, node: fx.Node) -> float | None:
    """The ceiling of the rectifier that alone reads a node (infinite for ReLU), or None where there is none."""
    after = _next(traced, node)
    return None if after is None else _RECTIFIERS.get(_kind(traced, after))


def _amplifier(traced: Traced, sum: fx.Node) -> fx.Node | None:
    """The norm behind the rectifier that alone reads a sum, the largest of several pixels taken or not."""
    if rectifier_after(traced, sum) is None:
        return None
    after = _next(traced, sum)
    # A maximum passes one of its values on, so the norm behind it scales an error as if it stood before.
    while after is not None:
        after = _next(traced, after)
        if after is None or not _kind(traced, after).startswith("maxpool"):
            break
    return after if after is not None and is_norm(traced, after) else None


def without_addition(around: Epilogue) -> Epilogue:
    """The same up to before the addition, if there is one."""
    if around.other is None:
        return around
    return Epilogue(around.output, around.norm, None, around.norm or around.output, None)


def bare(around: Epilogue) -> Epilogue:
    """The layer's output alone."""
    return Epilogue(around.output, None, None, around.output, None)


def is_norm(traced: Traced, node: fx.Node) -> bool:
    """Whether a node is a batch norm with statistics of its own, a line in eval mode."""
    if node.op != "call_module":
        return False
    module = traced.leaf(node)
    return isinstance(module, _NORMS) and module.running_mean is not None and len(node.all_input_nodes) == 1


def _is_own(traced: Traced, norm: fx.Node, output: fx.Node, outputs: Collection[fx.Node]) -> bool:
    """Whether a norm is that of one layer's channels, and no other's: of rows of vectors it norms the rows."""
    if _gives_rows(traced, output):
        return False
    calls = [node for node in traced.graph.nodes if node.op == "call_module" and node.target == norm.target]
    return all(_source(traced, call) in outputs for call in calls)


def _gives_rows(traced: Traced, output: fx.Node) -> bool:
    """Whether a node is a linear layer's on rows of vectors, of which channels come last."""
    linear = output.op == "call_module" and isinstance(traced.leaf(output), nn.Linear)
    return linear and len(output.meta["shapes"][0]) > 2


def _source(traced: Traced, node: fx.Node) -> fx.Node:
    """What a node reads first, before what changes nothing in eval mode."""
    source = node.all_input_nodes[0]
    while _passes(traced, source) and len(source.all_input_nodes) == 1:
        source = source.all_input_nodes[0]
    return source


def line(norm: nn.Module | None, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of a norm in eval mode, (n,) each in float64; 1 and 0 where there is none."""
    if norm is None:
        return torch.ones(width, dtype=torch.float64, device=like.device), torch.zeros(
            width, dtype=torch.float64, device=like.device
        )
    assert isinstance(norm, _NORMS) and norm.running_mean is not None and norm.running_var is not None
    mean, var = norm.running_mean.double(), norm.running_var.double()
    a = (var + norm.eps).rsqrt()
    a = a if norm.weight is None else a * norm.weight.detach().double()
    return a, (0 if norm.bias is None else norm.bias.detach().double()) - a * mean


def importance(traced: Traced, output: fx.Node, width: int, like: Tensor) -> Tensor:
    """How much an error in each of a layer's outputs counts behind it, (n,): by the square of its norms' slopes."""
    around = epilogue(traced, output)
    norms = [None if node is None else traced.leaf(node) for node in (around.norm, around.amplifier)]
    own, after = (line(norm, width, like)[0] for norm in norms)
    return (own * after).square()


def _next(traced: Traced, node: fx.Node) -> fx.Node | None:
    """The one node that reads a value, past what changes nothing in eval mode; None where several do.

    An Identity may stand there with nobody behind it: who reads what it gives was recorded to read what it was given.
    """
    while True:
        users = [user for user in node.users if user.op == "output" or user.users or not _passes(traced, user)]
        if len(users) != 1 or users[0].op == "output":
            return None
        if not _passes(traced, users[0]) or users[0].all_input_nodes != [node]:
            return users[0]
        node = users[0]


def _passes(traced: Traced, node: fx.Node) -> bool:
    return op_name(traced, node) in _PASSES


def _other(traced: Traced, node: fx.Node, one: fx.Node) -> fx.Node | None:
    """The other operand where a node adds two values of one shape."""
    if op_name(traced, node) not in _ADDS or len(node.args) != 2 or node.kwargs:
        return None
    others = [operand for operand in node.args if isinstance(operand, fx.Node) and operand is not one]
    # ``x + x`` has no other operand, and a constant carries no earlier error.
    if len(others) != 1 or others[0].op == "get_attr":
        return None
    shapes = {tuple(operand.meta["shapes"][0]) for operand in (one, others[0], node)}
    return others[0] if len(shapes) == 1 and _is_computed_by_layers(traced, others[0]) else None


def _is_computed_by_layers(traced: Traced, node: fx.Node) -> bool:
    """Whether any layer takes part in the numbers of a value, or reads what they are made of, as of a network's images.

    Where none does, as in a mask or a position, there is no earlier error to make good; and a mask of minus infinity,
    or of -1e9, leaves nothing in the sum to fit to.
    """
    seen, waiting = {node}, [node]
    while waiting:
        here = waiting.pop()
        kind = op_name(traced, here)
        if _is_layer(traced, here) or any(_is_layer(traced, user) for user in here.users):
            return True
        if kind not in _MAKES_MASKS:
            fresh = [source for source in here.all_input_nodes if source not in seen]
            seen.update(fresh)
            waiting.extend(fresh)
    return False


def _is_layer(traced: Traced, node: fx.Node) -> bool:
    if node.op == "output":
        return False
    held = node.op == "call_module" and any(True for _ in traced.leaf(node).parameters())
    return held or is_weighted(op_name(traced, node))


def _kind(traced: Traced, node: fx.Node) -> str:
    return op_name(traced, node).lower().removesuffix("_")
