"""Pictures of feature maps for the page: those of a layer or stage lie in one sheet, which is one PNG in the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ghostify.analysis.findings import MapPair
from ghostify.analysis.pictures import Grey, LayerPictures, Replaced

_COLUMNS = 16
"""Pictures beside each other in a sheet."""
_GREYS = (64, 32, 16)
"""Levels of grey that may be stored, the first of them that fits: at the size of a feature map nobody sees more."""
_BYTES = 9_000_000
"""That all pictures together should not be larger than."""
_SIDE = 60
"""About how many CSS pixels a map is wide."""


@dataclass(frozen=True)
class Cell:
    """A picture of a sheet, by its place there."""

    x: int
    y: int
    map: int
    pair: int = 0
    """Number of the pair that the map is in, from 1; 0 for none."""


@dataclass
class Sheet:
    """Greyscale pictures of one size, which become one PNG."""

    pictures: list[Grey] = field(default_factory=list)
    known: dict[tuple[tuple[int, ...], bytes], int] = field(default_factory=dict)
    """The index of each picture, by its shape and pixels."""

    def add(self, picture: Grey, number: int, pair: int = 0) -> Cell:
        """The place of a picture, which is the old one where it was added before."""
        index = self.known.setdefault((picture.shape, picture.tobytes()), len(self.pictures))
        if index == len(self.pictures):
            self.pictures.append(picture)
        row, column = divmod(index, _COLUMNS)
        return Cell(x=column, y=row, map=number, pair=pair)

    @property
    def size(self) -> tuple[int, int]:
        """Of the largest picture, (h, w)."""
        shapes = [picture.shape for picture in self.pictures]
        return (max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)) if shapes else (1, 1)

    @property
    def shown(self) -> tuple[int, int]:
        """Size of a picture in CSS pixels, (h, w)."""
        return css_size(self.size, _SIDE)

    @property
    def rows(self) -> int:
        return -(-len(self.pictures) // _COLUMNS)

    @property
    def pixels(self) -> int:
        """Of all pictures."""
        return len(self.pictures) * math.prod(self.size)

    def uri(self, levels: int) -> str:
        """All pictures side by side in so many greys, as a data URI."""
        height, width = self.size
        sheet = np.zeros((self.rows * height, self.columns * width), dtype=np.uint8)
        for index, picture in enumerate(self.pictures):
            y, x = (index // _COLUMNS) * height, (index % _COLUMNS) * width
            sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        return data_uri((sheet // (256 // levels) * (255 / (levels - 1))).round().astype(np.uint8))

    @property
    def columns(self) -> int:
        """How many pictures are beside each other."""
        return max(1, min(_COLUMNS, len(self.pictures)))


@dataclass(frozen=True)
class PairView:
    """Two similar maps, the filter between them, and their pictures as far as there are any."""

    number: int
    source: int
    made: int
    pair: MapPair | None
    taps: tuple[tuple[float, ...], ...] = ()
    """The filter over its largest tap: -1 to 1."""
    cells: tuple[tuple[str, Cell], ...] = ()


@dataclass(frozen=True)
class Gallery:
    """The pictures of a layer or stage."""

    sheet: Sheet
    grid: tuple[Cell, ...] = ()
    pairs: tuple[PairView, ...] = ()
    beside: tuple[tuple[Cell, ...], ...] = ()
    """By map: what is shown side by side."""
    captions: tuple[str, ...] = ()
    """Of what is shown side by side."""


def layer_gallery(pairs: Sequence[MapPair], shown: LayerPictures | None) -> Gallery:
    """The grid of maps with the pairs marked, the replaced maps, and the converted ones beside the originals."""
    sheet = Sheet()
    if shown is None:
        return Gallery(sheet, pairs=tuple(_pair_views(pairs, {}, ())))
    numbers = {one: number for number, pair in enumerate(pairs, 1) for one in (pair.source, pair.made)}
    grid = tuple(_cells(sheet, shown.maps, shown.pixels, numbers))
    replaced = {(one.source, one.made): _strip(sheet, one) for one in shown.replaced}
    beside: tuple[tuple[Cell, ...], ...] = ()
    if shown.converted is not None:
        beside = tuple(zip(grid, _cells(sheet, shown.maps, shown.converted, {}), strict=True))
    return Gallery(sheet, grid, tuple(_pair_views(pairs, replaced, replaced)), beside, ("original", "ghost net"))


def stage_gallery(pairs: Sequence[MapPair], shown: LayerPictures | None) -> Gallery:
    """The maps of the last block beside those of the first, and the pairs across."""
    sheet = Sheet()
    if shown is None:
        return Gallery(sheet, pairs=tuple(_pair_views(pairs, {}, ())))
    named = [
        ("first block", shown.first),
        ("last block", shown.pixels),
        ("ghost net", shown.converted),
    ]
    placed = [(name, list(_cells(sheet, shown.maps, maps, {}))) for name, maps in named if maps is not None]
    first = dict(zip(shown.maps, placed[0][1], strict=True)) if shown.first is not None else {}
    last = dict(zip(shown.maps, dict(placed)["last block"], strict=True))
    strips = {(one.source, one.made): _strip(sheet, one) for one in shown.replaced}
    for pair in pairs:
        if pair.source in first and pair.made in last:
            cells = (("first block", first[pair.source]), ("last block", last[pair.made]))
            strips.setdefault((pair.source, pair.made), cells)
    extra = [(one.source, one.made) for one in shown.replaced]
    beside = tuple(zip(*(cells for _, cells in placed), strict=True))
    return Gallery(sheet, (), tuple(_pair_views(pairs, strips, extra)), beside, tuple(name for name, _ in placed))


def _cells(sheet: Sheet, maps: Sequence[int], pixels: Grey, pairs: dict[int, int]) -> Iterator[Cell]:
    """The places of the maps in the sheet."""
    for number, picture in zip(maps, pixels, strict=True):
        yield sheet.add(picture, number, pairs.get(number, 0))


def _strip(sheet: Sheet, one: Replaced) -> tuple[tuple[str, Cell], ...]:
    """The four pictures of a map that is replaced, by caption."""
    return (
        ("made of", sheet.add(one.origin, one.source)),
        ("original", sheet.add(one.original, one.made)),
        ("ghost", sheet.add(one.ghost, one.made)),
        ("difference", sheet.add(one.difference, one.made)),
    )


def _pair_views(
    pairs: Sequence[MapPair],
    strips: dict[tuple[int, int], tuple[tuple[str, Cell], ...]],
    also: Iterable[tuple[int, int]],
) -> Iterator[PairView]:
    """Each pair with its filter and pictures, and after them the replaced maps that are in no pair."""
    for number, pair in enumerate(pairs, 1):
        key = pair.source, pair.made
        yield PairView(number, *key, pair, _scaled(pair.taps), strips.get(key, ()))
    known = {(pair.source, pair.made) for pair in pairs}
    for source, made in also:
        if (source, made) not in known:
            yield PairView(0, source, made, None, (), strips[source, made])


def _scaled(taps: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """The filter over its largest tap; nothing for a single tap, which is no picture."""
    if len(taps) < 2:
        return ()
    largest = max((abs(tap) for row in taps for tap in row if math.isfinite(tap)), default=0.0) or 1.0
    return tuple(tuple(tap / largest if math.isfinite(tap) else 0.0 for tap in row) for row in taps)


def css_size(size: tuple[int, ...], side: int) -> tuple[int, int]:
    """Size in CSS pixels, a whole multiple (or part) of the pixels, with about ``side`` for the longer side."""
    height, width = size
    longer = max(height, width)
    if longer <= 1.6 * side:
        times = max(1, round(side / longer))
        return height * times, width * times
    parts = round(longer / side)
    return max(1, height // parts), max(1, width // parts)


def levels_of_grey(pixels: int) -> int:
    """The most of ``_GREYS`` with which so many pixels, of pictures that are hard to compress, stay in ``_BYTES``."""
    fitting = (levels for levels in _GREYS if 0.09 * math.log2(levels) * pixels <= _BYTES)
    return next(fitting, _GREYS[-1])


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """A greyscale (H, W) or coloured (H, W, 3) picture as the data URI of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=6)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
