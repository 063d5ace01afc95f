"""What an operation of a recorded graph is: its one name, the weight it convolves with, and what it overwrites."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import fx, nn
from torch._ops import OpOverload, OpOverloadPacket

CONVS = ("conv1d", "conv2d", "conv3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
"""Names of convolutions, as ``op_name`` gives them."""

_MODULE_OPS: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Linear: "linear",
    nn.RNN: "RNN",
    nn.LSTM: "LSTM",
    nn.GRU: "GRU",
}

# Where a call keeps its arguments: torch.convolution says in one place what the others say by their names.
_GROUPS_AT, _CONVOLUTION_GROUPS_AT, _CONVOLUTION_TRANSPOSED_AT = 6, 8, 6

_INTEGER_METHODS = ("__index__", "__int__", "__invert__")
"""What begins as the methods of augmented assignment do (``__iadd__``) and writes nothing."""


class Layers(Protocol):
    """Whoever knows the module that a ``call_module`` node calls: a recording, or a network with the same names."""

    def leaf(self, node: fx.Node) -> nn.Module:
        """The module that a ``call_module`` node calls."""


# -- names -----------------------------------------------------------------------------------------------------


def function_name(func: Any) -> str:
    """The name it was defined with, empty where it has none; an ATen overload's is that of all its overloads.

    Of a method that is told by its name, that name.
    """
    name = func if isinstance(func, str) else getattr(func, "__name__", "")
    return name.partition(".")[0]


def op_name(layers: Layers, node: fx.Node) -> str:
    """The one name of an operation, however it was called: ``nn.ReLU``, ``F.relu``, ``x.relu_()`` and
    ``aten.relu.default`` are ``relu``, and ``torch.convolution`` is what its arguments make it, such as ``conv2d``.
    """
    if node.op == "call_module":
        kind = type(layers.leaf(node))
        return next((_MODULE_OPS[base] for base in kind.__mro__ if base in _MODULE_OPS), kind.__name__)
    name = _plain_name(node)
    return _kind_of_convolution(node) if name == "convolution" else name


def is_conv(kind: str) -> bool:
    """Whether an operation of that name is a convolution (transposed ones included)."""
    return kind in CONVS or kind in TRANSPOSED


def is_transposed(kind: str) -> bool:
    """Whether an operation of that name is a transposed convolution."""
    return kind in TRANSPOSED


def is_weighted(kind: str) -> bool:
    """Whether an operation of that name multiplies by a weight: a convolution or a linear layer."""
    return is_conv(kind) or kind == "linear"


def _plain_name(node: fx.Node) -> str:
    """A call's name without the underscore that says that it works in place."""
    name = node.target if isinstance(node.target, str) else _name_with_library(node.target)
    return name if name.startswith("__") else name.strip("_")


def _name_with_library(function: Callable[..., Any]) -> str:
    """An operator of ATen by its name without the overload; one of another library by its library, too."""
    operator = function.overloadpacket if isinstance(function, OpOverload) else function
    if isinstance(operator, OpOverloadPacket):
        return str(operator).removeprefix("aten.")
    return getattr(operator, "__name__", str(operator))


def _kind_of_convolution(node: fx.Node) -> str:
    """What ``torch.convolution`` and its like are: the weight says of how many dimensions, an argument the rest."""
    transposed = _argument(node, _CONVOLUTION_TRANSPOSED_AT, "transposed", False)
    dimensions = len(_shape_of(weight_node(node))) - 2
    return (TRANSPOSED if transposed else CONVS)[dimensions - 1]


# -- weights ---------------------------------------------------------------------------------------------------


def weight_node(node: fx.Node) -> fx.Node | None:
    """The weight that a functional convolution or linear layer is given, where it is a tensor of the graph."""
    weight = _argument(node, 1, "weight")
    return weight if isinstance(weight, fx.Node) else None


def weight_shape(layers: Layers, node: fx.Node) -> tuple[int, ...]:
    """Of the weight of a convolution or linear layer: (n, c/groups, ...), of a transposed one (c, n/groups, ...)."""
    if node.op == "call_module":
        return tuple(layers.leaf(node).weight.shape)  # type: ignore[arg-type]
    return _shape_of(weight_node(node))


def groups_of(layers: Layers, node: fx.Node) -> int:
    """The groups of a convolution."""
    if node.op == "call_module":
        return int(layers.leaf(node).groups)  # type: ignore[arg-type]
    place = _CONVOLUTION_GROUPS_AT if _plain_name(node) == "convolution" else _GROUPS_AT
    return int(_argument(node, place, "groups", 1))


def _shape_of(node: fx.Node | None) -> tuple[int, ...]:
    assert node is not None, "a convolution has a weight"
    return tuple(node.meta["shapes"][0])


def _argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


# -- writing in place ------------------------------------------------------------------------------------------


def overwrites(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of a function (or of a method, told by its name) overwrites a tensor that it is given."""
    name = function_name(func)
    in_place = name.endswith("_") and not name.endswith("__")
    augmented = name.startswith("__i") and name.endswith("__") and name not in _INTEGER_METHODS
    told = kwargs.get("out") is not None or kwargs.get("inplace") is True
    return in_place or augmented or told or name == "__setitem__"


def write_target(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a call that overwrites overwrites: ``out``, or else its first argument."""
    out = kwargs.get("out")
    return out if out is not None else first_argument(args, kwargs)


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a call is given first, by its place or by its name; None where it is given nothing."""
    return args[0] if args else next(iter(kwargs.values()), None)


def overwritten(layers: Layers, node: fx.Node) -> list[fx.Node]:
    """The nodes whose values a node overwrites when it runs."""
    if node.op == "call_module":
        writes = bool(getattr(layers.leaf(node), "inplace", False))
    else:
        writes = node.op in ("call_function", "call_method") and overwrites(node.target, node.kwargs)
    found: list[fx.Node] = []
    if writes:
        fx.node.map_arg(write_target(node.args, node.kwargs), found.append)
    return found
