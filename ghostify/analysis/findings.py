"""The nouns of a redundancy report: what was found of a layer, and of a stage, and what it allows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from ghostify.budget_result import Chosen
from ghostify.costs import Cost


class Value(BaseModel):
    """Numbers and names only, which survive JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FilterError(Value):
    """How well the maps of a layer are made of one other map each by a d x d depthwise filter.

    The other map is the one that is best with a filter of the size asked for.  Of many maps, some stand for all.
    """

    d: int
    error: float
    """Mean squared error over variance, the mean over maps: 0 is exact, 1 no better than a constant."""
    mse: float
    """Mean squared error of the raw values, the mean over maps."""


class SplitError(Value):
    """What C-Ghost with a ratio s could keep: n/s intrinsic maps, and each other map a filter of its own one."""

    s: int
    error: float
    """Mean squared error over variance, the mean over the maps made by filters."""
    spread: float
    """How far the error is from that on either half of the images: half of their difference."""
    intrinsic: tuple[int, ...]
    """The maps kept, in the order of the groups."""
    ghosts: tuple[tuple[int, ...], ...]
    """By intrinsic map, the maps made of it."""

    @property
    def lost(self) -> float:
        """Share of the variance of all the layer's maps that is lost, as ghosts are a part of them."""
        made = sum(map(len, self.ghosts))
        return self.error * made / (made + len(self.intrinsic))


class MapPair(Value):
    """Two maps of a layer (or stage) of which the first makes the second."""

    source: int
    made: int
    correlation: float
    error: float
    """Of ``made`` as a d x d filter of ``source``, over its variance."""
    mse: dict[int, float]
    """By filter size d, the mean squared error of the raw values."""
    taps: tuple[tuple[float, ...], ...]
    """The d x d filter, of the size recommended for the layer."""


class Advice(Value):
    """What to do with a layer or a stage, and why."""

    s: int | None = None
    """Ratio of a C-Ghost module of depthwise filters; None for another form, or none."""
    d: int | None = None
    m: int | None = None
    """Intrinsic maps of one whose ghosts a pointwise convolution makes; None for another form, or none."""
    ratio: float | None = None
    """Ghost ratio λ of a stage; None leaves it alone."""
    reason: str
    error: float | None = None
    """That is expected of the maps made cheaply, over their variance, before any fitting or training; of pointwise
    ghosts, which share it with the intrinsic maps, that of all maps."""
    before: Cost
    after: Cost

    @property
    def short(self) -> str:
        """In a cell of a table."""
        if self.m is not None:
            return f"m={self.m} pw"
        if self.s is not None:
            return f"s={self.s} d={self.d}"
        return f"λ={self.ratio:g}" if self.ratio is not None else "keep"

    @property
    def changes(self) -> bool:
        """Whether anything is to be made cheaply."""
        return (self.s, self.m, self.ratio) != (None, None, None)


class LayerRedundancy(Value):
    """A convolution."""

    name: str
    geometry: str
    maps: int
    """Output maps, n."""
    size: tuple[int, ...]
    """Of a map, (H, W)."""
    cost: Cost
    share: float
    """Of the network's MACs."""
    positions: int
    """Positions of maps that were compared, over all images."""
    images: int
    """That these are in: of large maps, some images are enough."""
    similarity: float
    """Mean over maps of the largest |correlation| with another map."""
    carried: tuple[float, ...] = ()
    """The rank curve: by m = 1 … n, the share of the maps' variance that the best m linear combinations of them carry,
    an error in each map counted as the norms behind the layer make of it; of layers without groups."""
    filters: tuple[FilterError, ...]
    splits: tuple[SplitError, ...]
    best: tuple[float, ...]
    """By map, its error as the best filter of one other map (d as in ``pairs``), over its variance."""
    pairs: tuple[MapPair, ...]
    """The most similar pairs, no map in two of them."""
    silent: int = 0
    """Maps that do not vary."""
    advice: Advice
    form: str = ""
    """What the plan of a run made of it; empty for nothing, or where no run was looked at."""
    chosen: Chosen | None = None
    """What a plan under a budget chose for it, and among what."""

    @property
    def redundancy(self) -> float:
        """How much of a map's variance one other map explains by a filter, the mean over maps: 0 to 1."""
        return 1 - sum(self.best) / len(self.best) if self.best else 0.0

    def needed(self, lost: float) -> int:
        """The smallest m whose combinations lose no more than a share of the variance."""
        enough = (m for m, share in enumerate(self.carried, 1) if share >= 1 - lost)
        return next(enough, self.maps)


class CurvePoint(Value):
    """What a G-Ghost stage with a ghost ratio would have to make cheaply, and how well it could."""

    ratio: float
    cheap: float
    """Error of the ghost channels as a cheap operation of the first block's output, over their variance."""
    mix: float
    """The same with the mix operation, which adds a linear map of what the blocks' outputs are on average."""


class StageRedundancy(Value):
    """A stage: what its last block gives, as made of what its first block gives."""

    name: str
    geometry: str
    blocks: tuple[str, ...]
    width: int
    cost: Cost
    share: float
    positions: int
    curve: tuple[CurvePoint, ...]
    channels: tuple[float, ...]
    """By channel of the output, its error with cheap operation and mix, over its variance."""
    cheap_channels: tuple[float, ...]
    """The same with the cheap operation alone."""
    pairs: tuple[MapPair, ...]
    """Maps of the first block's output and those of the last block's that are most like them."""
    advice: Advice
