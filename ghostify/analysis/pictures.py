"""The pictures of a redundancy report: feature maps of one image as bytes, ready to be drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ghostify.analysis.findings import MapPair
from ghostify.batches import Batch, call, move, per_sample
from ghostify.running import evaluating

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Replaced:
    """A map, the ghost that would take its place, and what the ghost has wrong; (h, w) each, on one scale of greys."""

    source: int
    made: int
    origin: Grey
    """The map that the ghost is made of, on its own scale."""
    original: Grey
    ghost: Grey
    difference: Grey
    """Of 0, grey 128, in the scale of the original."""


@dataclass(frozen=True)
class LayerPictures:
    """Some maps of a layer, or of a stage's output, for the image shown."""

    maps: tuple[int, ...]
    """Which maps these are."""
    pixels: Grey
    """(k, h, w), each map on its own scale."""
    replaced: tuple[Replaced, ...] = ()
    """For a layer, its most similar pairs."""
    first: Grey | None = None
    """For a stage, the same maps of its first block's output: (k, h, w)."""
    converted: Grey | None = None
    """The same maps in the converted network, on the scales of ``pixels``: (k, h, w)."""


@dataclass(frozen=True)
class Pictures:
    """Pictures by the name of the layer or stage, and the image they are of, (H, W, 3)."""

    image: NDArray[np.uint8]
    layers: dict[str, LayerPictures] = field(default_factory=dict)
    stages: dict[str, LayerPictures] = field(default_factory=dict)


SHOWN, SIDE = 64, 56
"""Maps shown of a layer, and pixels of their longer side, at most."""
SEEN = 8
"""Images by which maps of a converted network are told from each other."""


class Camera:
    """Takes pictures of maps while a network is looked at, all of one image."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        """``image``: (H, W, 3), as a person sees it."""
        self.pictures = Pictures(image)

    def layer(self, name: str, maps: Tensor, pairs: Sequence[MapPair]) -> None:
        """Of a layer's output (n, …) for the image."""
        maps = _maps(maps)
        shown = _chosen(len(maps), [one for pair in pairs for one in (pair.source, pair.made)])
        replaced = tuple(_replaced(maps, pair) for pair in pairs)
        self.pictures.layers[name] = LayerPictures(tuple(shown), _greys(_small(maps[shown])), replaced)

    def stage(self, name: str, first: Tensor, last: Tensor, pairs: Sequence[MapPair]) -> None:
        """Of what the first and the last block of a stage give for the image, (n, H, W)."""
        shown = _chosen(len(last), [one for pair in pairs for one in (pair.source, pair.made)])
        pixels, before = (_greys(_small(_maps(maps)[shown])) for maps in (last, first))
        self.pictures.stages[name] = LayerPictures(tuple(shown), pixels, first=before)


def with_converted(pictures: Pictures, original: nn.Module, converted: nn.Module, images: Batch) -> Pictures:
    """The pictures with those of a converted network beside them, of the layers that are another class there.

    ``images`` (B, C, H, W), of which the first is shown.  A conversion may have put channels in another order, so
    beside each map stands the one that is most like it over all the images.
    """
    modules = dict(converted.named_modules())
    names = [name for name in pictures.layers if type(modules.get(name)) is not type(original.get_submodule(name))]
    ours, theirs = (
        _outputs(module, [name for name in names if name in modules], images) for module in (original, converted)
    )
    layers = dict(pictures.layers)
    for name in ours.keys() & theirs.keys():
        if ours[name].dim() == 4 and ours[name].shape[2:] == theirs[name].shape[2:]:
            shown = ours[name][:, list(layers[name].maps)]
            # a conversion may have reordered its channels, so maps are matched by what they show
            like = theirs[name][0, _most_like(shown, theirs[name])]
            layers[name] = replace(layers[name], converted=_greys(_small(like), _small(shown[0])))
    return replace(pictures, layers=layers)


def first_image(images: Batch) -> Tensor:
    """What of a batch's first sample can be shown, (1 or 3, H, W): an image, the mean of a video's, that of other maps,
    or one pixel where a network is given no maps at all.
    """
    maps = next((leaf[0].float() for leaf in per_sample(images) if leaf.dim() > 3), torch.zeros(1, 1, 1))
    image = maps.flatten(1, -3).mean(1) if maps.dim() > 3 else maps
    return image if len(image) in (1, 3) else image.mean(0, keepdim=True)


def as_picture(image: Tensor) -> NDArray[np.uint8]:
    """A normalised image (C, H, W) as a person sees it, (H, W, 3): from its least value to its largest."""
    pixels = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
    picture: NDArray[np.uint8] = (pixels.expand(3, -1, -1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return picture


def _outputs(module: nn.Module, names: Sequence[str], images: Batch) -> dict[str, Tensor]:
    """What layers give for images, by name."""
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        found.setdefault(name, output.detach().float())

    hooks = [
        module.get_submodule(name).register_forward_hook(lambda *seen, name=name: keep(name, seen[-1]))
        for name in names
    ]
    place = next(module.parameters())
    try:
        with evaluating(module), torch.no_grad():
            call(module, move(images, place.device, place.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: output.cpu() for name, output in found.items()}


def _most_like(ours: Tensor, theirs: Tensor) -> Tensor:
    """By map of ``ours`` (B, k, H, W), the map of ``theirs`` (B, n, H, W) it correlates with most, (k,)."""
    one, other = (maps.transpose(0, 1).flatten(1).double() for maps in (ours, theirs))
    # centred and of length one, so that a product is a correlation
    one, other = (F.normalize(maps - maps.mean(1, keepdim=True), dim=1) for maps in (one, other))
    return (one @ other.T).argmax(1)


def _maps(y: Tensor) -> Tensor:
    """(n, H, W) in float32 on the CPU; of a vector, maps of one pixel."""
    return (y if y.dim() == 3 else y[:, None, None]).float().cpu()


def _chosen(n: int, first: Iterable[int]) -> list[int]:
    """Up to ``SHOWN`` maps, in order: those of pairs, and others evenly."""
    chosen = list(dict.fromkeys(first))[:SHOWN]
    for one in torch.linspace(0, n - 1, min(n, SHOWN)).round().int().tolist():
        if len(chosen) < SHOWN and one not in chosen:
            chosen.append(one)
    return sorted(chosen)


def _replaced(maps: Tensor, pair: MapPair) -> Replaced:
    origin, original = maps[pair.source], maps[pair.made]
    taps = torch.tensor(pair.taps)
    ghost = F.conv2d(origin[None, None], taps[None, None], padding=len(taps) // 2)[0, 0]
    # the bias of the cheap operation, which a picture of both on one scale needs
    ghost = ghost + (original - ghost).mean()
    greys = _greys(_small(torch.stack([original, ghost])), _small(original[None]).expand(2, -1, -1))
    reach = (original.max() - original.min()).clamp_min(1e-12)
    difference = (_small((ghost - original)[None])[0] / reach * 127 + 128).clamp(0, 255)
    return Replaced(
        source=pair.source,
        made=pair.made,
        origin=_greys(_small(origin[None]))[0],
        original=greys[0],
        ghost=greys[1],
        difference=difference.round().to(torch.uint8).numpy(),
    )


def _small(maps: Tensor) -> Tensor:
    """Maps (k, h, w) with no side above ``SIDE``."""
    height, width = maps.shape[1:]
    scale = SIDE / max(height, width, SIDE)
    if scale == 1:
        return maps
    return F.interpolate(maps[None], (max(1, round(height * scale)), max(1, round(width * scale))), mode="area")[0]


def _greys(maps: Tensor, scale: Tensor | None = None) -> Grey:
    """(k, h, w) as bytes, each map from its least value, black, to its largest, white; or those of ``scale``."""
    of = maps if scale is None else scale
    low, high = (values[:, None, None] for values in (of.flatten(1).min(1).values, of.flatten(1).max(1).values))
    # a constant map has no reach, and is black
    reach = torch.where(high > low, high - low, 1.0)
    greys: Grey = ((maps - low) / reach * 255).clamp(0, 255).round().to(torch.uint8).numpy()
    return greys
