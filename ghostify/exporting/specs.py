"""What a file takes and gives, as values: names, sizes and types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from ghostify.batches import kind_of
from ghostify.exporting.portable import Portable
from ghostify.exporting.result import TensorSpec
from ghostify.exporting.samples import Samples, larger
from ghostify.running import quiet


def specs(
    names: Sequence[str], tensors: Iterable[Tensor], open_sizes: Iterable[Mapping[int, str]]
) -> tuple[TensorSpec, ...]:
    """Each tensor by its name, with a name in place of a size that is open."""
    return tuple(
        TensorSpec(name=name, dtype=kind_of(tensor), shape=_sizes(tensor, places))
        for name, tensor, places in zip(names, tensors, open_sizes, strict=True)
    )


def specs_of_outputs(ready: Portable) -> tuple[TensorSpec, ...]:
    """What a file gives; which of its sizes follow those of the images is seen on larger ones."""
    with quiet(ready.module):
        outputs = ready.computing(*ready.arguments)
        others = outputs
        if ready.dynamic == "size":
            others = ready.computing(*larger(Samples(ready.arguments, "the example", real=False)).tensors)
    named = zip(ready.outputs, outputs, others, strict=True)
    places = [_following(name, output, other, ready) for name, output, other in named]
    return specs(ready.outputs, outputs, places)


def _following(name: str, output: Tensor, other: Tensor, ready: Portable) -> dict[int, str]:
    batch = {0: "batch"} if ready.dynamic and output.dim() else {}
    sizes = enumerate(zip(output.shape, other.shape, strict=True))
    return batch | {place: f"{name}_{place}" for place, (one, another) in sizes if one != another}


def _sizes(tensor: Tensor, places: Mapping[int, str]) -> tuple[int | str, ...]:
    return tuple(places.get(place, size) for place, size in enumerate(tensor.shape))
