"""The first layer of a file that gives something else than the network, found by bisection.

    network up to a call of a layer → a file of its own → beside the network up to there; log₂ of the calls in all

A part is the whole network with one layer watched: what it gives is returned, and an exporter drops all that comes
later.  So a part has the inputs, the open sizes and the optimisations of the file that failed, and nothing is asked of
a network but that it calls modules.

Bisection takes for granted that what has gone wrong once stays wrong, as errors do that are larger than the tolerance.
Where they do not, what it finds is still a layer that gives something else though a call before it did not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ghostify.errors import GhostifyError
from ghostify.exporting.comparing import Compared, compare
from ghostify.exporting.formats import Format
from ghostify.exporting.portable import Portable
from ghostify.exporting.samples import Samples, larger

_WHOLE = "module"
"""The name of a network in what gives it tensors in a row."""


class Divergence(BaseModel):
    """The first layer whose file gives something else, of which kind it is, and by how much it differs."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    layer: str
    kind: str
    difference: float

    def __str__(self) -> str:
        where = f"layer {self.layer!r} ({self.kind})" if self.layer else f"what {self.kind} does behind all its layers"
        return f"the first to differ is {where}, by {self.difference:.2g}"


class Call(NamedTuple):
    """A call of a module: the module's name, its class, and how many calls of it came before."""

    module: str
    kind: str
    before: int


class Until(nn.Module):
    """A network that gives the tensors that one call of one of its modules gives."""

    def __init__(self, network: nn.Module, call: Call) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given: list[tuple[Tensor, ...]] = []
        module = self.network.get_submodule(self.call.module)
        # Copies, because a later layer may write into what an earlier one gave.
        hook = module.register_forward_hook(lambda _, args, output: given.append(_copies(output)))
        try:
            self.network(*tensors)
        finally:
            hook.remove()
        return given[self.call.before]


def first_divergence(
    ready: Portable, format: Format, samples: Samples, failed: Compared, precision: str
) -> Divergence | None:
    """The first call that a file of ``format`` gets wrong under the circumstances in which the whole failed.

    None where every call agrees by itself, so that it takes the whole to go wrong; and where no part can be written.
    """
    samples = larger(samples) if failed.size else samples
    calls = calls_of(ready.module, ready.example)
    found: Divergence | None = None
    low, high = 0, len(calls)
    while low < high:
        middle = (low + high) // 2
        compared = _beside(ready, format, calls[middle], samples, failed)
        if compared is None:
            del calls[middle]  # it cannot be written alone
            high -= 1
        elif compared.passes(precision):
            low = middle + 1
        else:
            high = middle
            found = _told(calls[middle], compared)
    return found


def calls_of(network: nn.Module, tensors: tuple[Tensor, ...]) -> list[Call]:
    """The calls of modules that give tensors, in the order in which they end: (what a block does itself comes last)."""
    ended: list[Call] = []
    hooks = [_counting(name, module, ended) for name, module in network.named_modules() if name]
    try:
        network(*tensors)
    finally:
        for hook in hooks:
            hook.remove()
    return ended


def _counting(name: str, module: nn.Module, ended: list[Call]) -> Any:
    def note(_: nn.Module, args: Any, output: Any) -> None:
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(output)):
            before = sum(call.module == name for call in ended)
            ended.append(Call(name, type(module).__name__, before))

    return module.register_forward_hook(note)


def _beside(ready: Portable, format: Format, call: Call, samples: Samples, failed: Compared) -> Compared | None:
    """The network up to a call beside a file of that; None where there can be no such file."""
    until = Until(ready.module, call)
    outputs = tuple(f"output_{place}" for place, _ in enumerate(until(*ready.example)))
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"part{format.suffix}"
        try:
            format.write(replace(ready, module=until, outputs=outputs), file)
            runner = format.open(file, optimized=failed.optimized)
        except GhostifyError:
            return None
        (found,) = compare(until, {failed.optimized: runner}, samples, failed.batch)
        return found


def _told(call: Call, compared: Compared) -> Divergence:
    name = call.module.removeprefix(_WHOLE).removeprefix(".")
    return Divergence(layer=name, kind=call.kind, difference=compared.difference)


def _copies(output: Any) -> tuple[Tensor, ...]:
    return tuple(leaf.clone() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
