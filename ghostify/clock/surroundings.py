"""What a layer stands in, read off the recorded run: what it is given, and what runs behind it.

Runtimes compute an activation, and an addition of two values, as they write the result of the convolution before them;
so time is told of a layer together with these.  Which they are does not change when the layer becomes a ghost.  The
pool behind them counts, too: there is less of it in a thinner network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import fx, nn

from ghostify.clock.building import ACTIVATIONS
from ghostify.clock.piece import Pool
from ghostify.fitting.agenda.epilogue import epilogue
from ghostify.module_calls import ModuleCall, calls_of
from ghostify.running import is_weighted, op_name
from ghostify.scanning.roles import image_of
from ghostify.tracing import Recording, Traced

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (*_CONVS, *_TRANSPOSED, nn.Linear)
_POOLS = frozenset(f"{kind}pool{dimensions}d" for kind in ("max", "avg") for dimensions in (1, 2, 3))


class Surroundings(BaseModel):
    """What is the same of one call of a layer, whatever takes the layer's place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reads: tuple[int, ...]
    """Shape of what it is given, the batch included."""
    fields: Mapping[str, Any] = {}
    """Padding and dilation, by the names that ``Piece`` has for them."""
    norm: bool = False
    """Whether a batch norm follows."""
    add: bool = False
    act: str = ""
    pool: Pool | None = None


def surroundings_in(recording: Recording, batch: int | None = None) -> dict[str, tuple[Surroundings, ...]]:
    """By name of each convolution or linear layer that ran, the surroundings of its calls.

    They are those of ``batch`` samples; None for as many as were recorded.
    """
    found: dict[str, tuple[Surroundings, ...]] = {}
    for part, traced in recording.parts.items():
        added: set[fx.Node] = set()
        for module, names in traced.names.items():
            if isinstance(module, _LAYERS):
                calls = [call for call in calls_of(traced, names[0]) if call.is_plain]
                whole = f"{part}.{names[0]}" if part else names[0]
                found[whole] = tuple(_around(traced, module, call, added, batch) for call in calls)
    return found


def _around(traced: Traced, layer: nn.Module, call: ModuleCall, added: set[fx.Node], batch: int | None) -> Surroundings:
    """``added`` are the additions that belong to a layer already: where two layers are added, the first has it."""
    behind = epilogue(traced, call.gives[0])
    adds = behind.other is not None
    own = not adds or behind.sum not in added
    if adds:
        added.add(behind.sum)
    activation = _activation(traced, behind.sum) if own else None
    last = activation or behind.sum
    return Surroundings(
        reads=_of_batch(traced, _read_by(traced, call), batch),
        fields=_fields(layer),
        norm=behind.norm is not None,
        add=adds and own,
        act=_called(traced, activation) if activation else "",
        pool=_pool(traced, last) if own else None,
    )


def _read_by(traced: Traced, call: ModuleCall) -> tuple[int, ...]:
    """Shape of what a layer multiplies by its weight: one of a class of its own may have padded it before."""
    weighted = next((node for node in call.nodes if is_weighted(op_name(traced, node))), None)
    read = image_of(weighted) if weighted is not None else None
    return tuple((read or call.reads[0]).meta["shapes"][0])


def _of_batch(traced: Traced, shape: tuple[int, ...], batch: int | None) -> tuple[int, ...]:
    """The shape for so many samples: a map may have several entries for each, as windows and proposals have."""
    recorded = traced.input_shapes[0][:1]
    if batch is None or not recorded:
        return shape
    return (max(1, shape[0] * batch // recorded[0]), *shape[1:])


def _fields(layer: Any) -> dict[str, Any]:
    if isinstance(layer, nn.Linear):
        return {}
    more = {"output_padding": layer.output_padding} if isinstance(layer, _TRANSPOSED) else {}
    return {"padding": layer.padding, "dilation": layer.dilation, **more}


def _activation(traced: Traced, node: fx.Node) -> fx.Node | None:
    """The activation that alone reads a node."""
    reader = _only_reader(node)
    return reader if reader and _called(traced, reader) in ACTIVATIONS else None


def _called(traced: Traced, node: fx.Node) -> str:
    """An operation's name as module or function alike: LeakyReLU and leaky_relu are one."""
    return op_name(traced, node).lower().replace("_", "")


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].op != "output" else None


def _pool(traced: Traced, node: fx.Node) -> Pool | None:
    """The pool over places that alone reads a node; one over all of them costs nothing beside a layer."""
    reader = _only_reader(node)
    name = _called(traced, reader) if reader else ""
    if reader is None or name not in _POOLS:
        return None
    told = _settings(traced, reader)
    dimensions, kernel = int(name[-2]), told.get("kernel_size", ())
    return Pool(
        kind=name[:3],  # type: ignore[arg-type]  # max or avg
        kernel=_each(kernel, dimensions),
        stride=_each(told.get("stride") or kernel, dimensions),
        padding=_each(told.get("padding", 0), dimensions),
        ceil=bool(told.get("ceil_mode", False)),
    )


def _settings(traced: Traced, node: fx.Node) -> Mapping[str, Any]:
    """What a pool was told, as a module or as a function."""
    if node.op == "call_module":
        return vars(traced.leaf(node))
    between = ("dilation",) if _called(traced, node).startswith("max") else ()
    names = ("kernel_size", "stride", "padding", *between, "ceil_mode")
    return {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}


def _each(value: Any, dimensions: int) -> tuple[int, ...]:
    """One number for each dimension of a map."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values if len(values) == dimensions else values[:1] * dimensions
