"""A G-Ghost stage as numbers: which blocks are thin, how many channels are kept, what the new layers cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ghostify.costs import Cost
from ghostify.errors import PlanError
from ghostify.rules.base import thinner
from ghostify.rules.g_ghost.swap import GGhostSwap
from ghostify.stages import Stage


class Form:
    """A stage and a swap as numbers: which blocks are thin, how many channels are kept, what the new layers cost."""

    def __init__(self, stage: Stage, swap: GGhostSwap) -> None:
        assert stage.coupling is not None
        self.stage, self.swap, self.coupling = stage, swap, stage.coupling
        self.lanes = swap.group_width
        self.thin = range(stage.n - 1 - swap.end)
        self.counts = self._counts()
        widths = [self.coupling.width(end, self.counts, self.lanes) for end in self.coupling.ends]
        self.raw, self.outs = widths[0], [widths[block + 1] for block in self.thin]
        if swap.cheap == "none":  # with no ghosts to join it, the thin path itself gives all channels
            self.outs[-1] = stage.width
        for kept in (self.raw, self.outs[-1]) if swap.cheap != "none" else (self.raw,):
            if kept >= stage.width:
                raise PlanError(
                    f"{stage.name} has {stage.width} channels, of which a ratio of {swap.ratio:g} leaves no ghosts "
                    f"(round_to is {swap.round_to})."
                )
        if swap.cheap == "none" and swap.mix:
            raise PlanError(f"{stage.name} has no ghosts to mix into with cheap operation 'none'; set mix to 0.")
        if swap.entry == "stream" and len({self.raw, *self.outs}) > 1:
            raise PlanError(
                f"{stage.name} has thin blocks of several widths, so they cannot read the other channels of Y1; set "
                "entry to slice."
            )
        if swap.cheap == "identity" and (swap.cheap_input != "slice" or self.raw != self.outs[-1]):
            raise PlanError(
                f"{stage.name} can pass only the other channels of Y1 on as they are; set cheap_input to slice."
            )

    def reads_all(self, block: int) -> bool:
        """Whether a thin block reads all channels of Y1."""
        return self.swap.entry == "stream" or (block == 0 and self.swap.entry == "projection")

    def gives_all(self, block: int) -> bool:
        """Whether a thin block gives all channels, for there are no ghosts."""
        return block == self.thin[-1] and self.swap.cheap == "none"

    def projection(self, block: int, c: int, n: int) -> Cost:
        """A 1x1 convolution with batch norm on the shortcut of a block, if it has one that is projected."""
        if not self.coupling.shortcuts[block] or self.swap.entry == "stream":
            return Cost()
        positions = self._positions(self.stage.blocks[block + 1].in_shape)
        return Cost(params=c * n + 2 * n, macs=positions * c * n, acts=positions * n)

    def cheap(self) -> Cost:
        """The cheap operation: a convolution with batch norm."""
        if self.swap.cheap in ("identity", "none"):
            return Cost()
        size = int(self.swap.cheap[0]) ** 2 * self.cheap_channels * self.ghosts
        positions = self._positions(self.stage.blocks[-1].out_shape)
        return Cost(params=size + 2 * self.ghosts, macs=positions * size, acts=positions * self.ghosts)

    def mix(self) -> Cost:
        """The mix operation: one fully connected layer, or two 1x1 convolutions with batch norm."""
        batch, g = self.stage.blocks[-1].out_shape[0], self.ghosts
        size = ((self.stage.width if self.swap.mix_y1 else 0) + sum(self.outs)) * g
        if self.swap.mix == 2:
            return Cost(params=size + g * g + 4 * g, macs=batch * (size + g * g), acts=batch * 2 * g)
        return Cost(params=size + g, macs=batch * size) if self.swap.mix else Cost()

    @property
    def ghosts(self) -> int:
        return self.stage.width - self.outs[-1]

    @property
    def cheap_channels(self) -> int:
        """Channels that the cheap operation reads."""
        whole = self.stage.width
        return {"slice": whole - self.raw, "full": whole, "outputs": whole + sum(self.outs)}[self.swap.cheap_input]

    def _counts(self) -> list[int]:
        """How many components of each segment are kept: of those between blocks by λ, inside by the width there."""
        swap = self.swap
        stream = self.coupling.keep(self._target(), self.lanes, step=swap.round_to)
        if swap.inner_width is None:
            return stream
        narrower = thinner(swap.inner_width, swap.round_to, swap.rounding, narrow=True)
        inner = self.coupling.keep(narrower, self.lanes, step=swap.round_to)
        between = {segment for end in self.coupling.ends for segment, _ in end.parts}
        return [(stream if segment in between else inner)[segment] for segment in range(len(inner))]

    def _positions(self, shape: Sequence[int]) -> int:
        return shape[0] * math.prod(shape[2:])

    def _target(self) -> Callable[[int], int]:
        """How many of w channels to keep: of the stage's width (1 − λ), and of every other the share that gave."""
        swap, c = self.swap, self.stage.width
        raw = thinner(1 - swap.ratio, swap.round_to, swap.rounding, narrow=True)(c)
        groups = {segment.lanes for segment in self.coupling.segments if segment.lanes}
        # RegNets keep every group and make it narrower (Tables 17-18): the width is a multiple of what a group keeps
        if swap.group_width < 1 and groups:
            unit = max(1, int(swap.group_width * max(groups)))
            raw = max(1, int((1 - swap.ratio) * c + 1e-9) // unit) * unit
        # every other width keeps the share that the stream's came to when it was rounded
        other = thinner(raw / c, swap.round_to, swap.rounding, narrow=True)
        return lambda width: raw if width == c else other(width)
