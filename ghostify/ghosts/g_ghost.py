"""The G-Ghost stage (IJCV paper, Eq. 8-11): what follows the first block of a stage, whose output is Y1.

    Eq. 8    Y^c_n = L'_n(… L'_2(Y1))      thin blocks,          (N, c, H, W) → (N, (1−λ)c, H, W)
    Eq. 9    Y^g_n = C(Y1)                 a cheap operation,    (N, c, H, W) → (N, λc, H, W)
    Eq. 11   Y^g_n ← Y^g_n + τ(Z)          the mix operation of the thin blocks' outputs Z
    Eq. 10   Y_n   = [Y^c_n, Y^g_n]        → (N, c, H, W)

Departures from the letter of the paper, all of them options: the networks of its tables end with a block of full width
after the concatenation (``end``); on ImageNet the thin path and the cheap operation read a part of Y1 each (``entry``,
``cheap_input``) and the mix operation pools Y1, too (``mix_y1``).  The cheap operation is a convolution with batch
norm, and one ReLU follows the sum of Eq. 11.  Where the equations keep the first (1−λ)c channels, any may be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, fx, nn

from ghostify.errors import PlanError, did_you_mean
from ghostify.ghosts.mix import Mix
from ghostify.ghosts.selecting import selected

fx.wrap("selected")

Entry = Literal["slice", "projection", "stream"]
StageCheap = Literal["1x1", "3x3", "5x5", "identity", "none"]
CheapInput = Literal["slice", "full", "outputs"]
Channels = int | Tensor | Sequence[int]
"""The first so many channels (which are sliced), or the indices of some (which are selected)."""


class GGhostStage(nn.Module):
    """A G-Ghost stage after its first block: Y1 → Y_n.  (N, c, H, W) → (N, c, H, W)

    ``thin`` are the thin blocks in order, ``width`` is c.  ``kept`` says which channels of Y1 are the thin path's, and
    ``kept_out`` (if they are others) which channels of the output the last thin block makes; the rest, ascending, are
    ghosts.  ``thin_widths`` are the thin blocks' output widths (if they are others than that of the last).

    ``entry``: the thin path reads the kept channels of Y1 ("slice"), or all of it, for its first block narrows it
    itself ("projection"); or each thin block reads c channels, those of the thin path and behind them the others as
    they are in Y1 ("stream").  ``cheap``: a convolution with BN of that kernel size, the other channels of Y1 as they
    are ("identity"), or no ghosts at all ("none": the last thin block makes all c channels, and nothing is mixed).
    ``cheap_input``: the cheap operation reads the other channels of Y1 ("slice"), all of it ("full"), or all of it and
    behind it the outputs of all thin blocks in order ("outputs").  ``mix``: the
    number of layers of the mix operation (0: none), which pools the thin outputs and, with ``mix_y1``, Y1.  ``act``
    follows their sum (None: nothing does), ``end`` the concatenation.

    New layers have the thin blocks' device and dtype unless told otherwise.  A thin block that overwrites its input
    changes what the operations after it read.  Raises ``PlanError`` for options that do not go together.
    """

    if TYPE_CHECKING:  # torch.jit.script reads annotations of a class, and none with a bar in it
        kept_index: Tensor | None
        ghost_index: Tensor | None
        order: Tensor | None

    def __init__(
        self,
        thin: Sequence[nn.Module],
        width: int,
        kept: Channels,
        *,
        kept_out: Channels | None = None,
        thin_widths: Sequence[int] | None = None,
        entry: Entry = "slice",
        cheap: StageCheap = "1x1",
        cheap_input: CheapInput = "slice",
        mix: Literal[0, 1, 2] = 1,
        mix_y1: bool = True,
        act: nn.Module | Literal["relu"] | None = "relu",
        end: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_options(entry, cheap, cheap_input, mix)
        if not (act is None or act == "relu" or isinstance(act, nn.Module)):
            raise PlanError(f"act must be a module, 'relu' or None, not {act!r}.")
        if not thin:
            raise PlanError("a G-Ghost stage needs at least one thin block.")
        if cheap == "none" and mix:
            raise PlanError(f"mix = {mix} with cheap operation 'none': there are no ghosts to mix into; set mix to 0.")
        if cheap == "none" and entry == "stream":
            raise PlanError(
                "entry 'stream' with cheap operation 'none': the thin path makes all channels; choose slice."
            )
        if cheap == "none" and kept_out is not None:
            raise PlanError("kept_out with cheap operation 'none': the thin path makes all channels; leave it out.")
        taken = _indices("kept", kept, width, ghosts=cheap != "none")
        made = list(range(width)) if cheap == "none" else taken
        if kept_out is not None:
            made = _indices("kept_out", kept_out, width, ghosts=True)
        widths = _thin_widths(thin_widths, len(thin), len(made))
        left, ghosts = _others(taken, width), _others(made, width)
        place = _place(thin, device, dtype)
        read = {"slice": len(left), "full": width, "outputs": width + sum(widths)}[cheap_input]

        self.width, self.kept, self.entry, self.cheap_input, self.mix_y1 = width, len(taken), entry, cheap_input, mix_y1
        self.thin = nn.ModuleList(thin)
        self.cheap = _cheap(cheap, read, len(ghosts), cheap_input, place)
        self.mix = Mix((width if mix_y1 else 0) + sum(widths), len(ghosts), mix, **place) if mix else None
        self.act = (nn.ReLU() if act == "relu" else act) if ghosts else None
        self.end = end
        self._copies = cheap == "identity" and not mix and act is not None
        by_index = not _is_number(kept)
        apart = entry == "stream" or (bool(ghosts) and cheap_input == "slice")
        self._remember("kept_index", taken if by_index and entry != "projection" else None, place)
        self._remember("ghost_index", left if by_index and apart else None, place)
        reordered = cheap != "none" and not _is_number(kept if kept_out is None else kept_out)
        self._remember("order", _inverse(made + ghosts) if reordered else None, place)

    def forward(self, y1: Tensor) -> Tensor:
        x = y1 if self.entry == "projection" else _part(y1, self.kept_index, 0, self.kept)
        beside = [self._others(y1)] if self.entry == "stream" else []
        outputs: list[Tensor] = []
        for block in self.thin:
            x = block(torch.cat([x] + beside, 1) if beside else x)  # noqa: RUF005 - torch.jit.script knows no star
            outputs.append(x)
        if self.cheap is not None:
            x = torch.cat([x, self._mixed(self.cheap(self._read_cheaply(y1, outputs)), y1, outputs)], 1)
        if self.order is not None:
            x = selected(x, self.order)
        if self.end is not None:
            x = self.end(x)
        return x

    def extra_repr(self) -> str:
        return (
            f"{self.width}, kept={self.kept}, entry={self.entry}, cheap_input={self.cheap_input}, mix_y1={self.mix_y1}"
        )

    def _others(self, y1: Tensor) -> Tensor:
        """The channels of Y1 that are not the thin path's."""
        return _part(y1, self.ghost_index, self.kept, self.width - self.kept)

    def _read_cheaply(self, y1: Tensor, outputs: list[Tensor]) -> Tensor:
        """What the cheap operation reads."""
        if self.cheap_input == "slice":
            return self._others(y1)
        if self.cheap_input == "full":
            return y1
        return torch.cat([y1] + outputs, 1)  # noqa: RUF005

    def _mixed(self, ghosts: Tensor, y1: Tensor, outputs: list[Tensor]) -> Tensor:
        """(N, λc, H, W), (N, c, H, W) and the thin outputs → (N, λc, H, W)"""
        if self.mix is not None:
            if self.mix_y1:
                outputs.insert(0, y1)
            ghosts = ghosts + self.mix(outputs)
        if self._copies:  # or an activation in place would write into Y1
            ghosts = ghosts.clone()
        if self.act is not None:
            ghosts = self.act(ghosts)
        return ghosts

    def _remember(self, name: str, indices: list[int] | None, place: dict[str, Any]) -> None:
        tensor = None if indices is None else torch.tensor(indices, device=place["device"])
        self.register_buffer(name, tensor)


def _part(y1: Tensor, indices: Tensor | None, start: int, size: int) -> Tensor:
    """The channels of some indices, or else so many from ``start`` on."""
    if indices is None:
        return y1.narrow(1, start, size)
    return selected(y1, indices)


# -- channels ------------------------------------------------------------------------------------------------------


def _indices(what: str, channels: Channels, width: int, ghosts: bool) -> list[int]:
    """The channels as indices in the order given: some of ``width``, and not all where ``ghosts`` are to be left."""
    if isinstance(channels, Tensor):
        if channels.is_meta or channels.is_floating_point() or channels.dtype == torch.bool or channels.dim() > 1:
            raise PlanError(f"{what}: a tensor must hold the channels' indices in a row, as whole numbers with values.")
        channels = channels.tolist()
    try:
        chosen = [index(i) for i in channels] if isinstance(channels, Sequence) else range(index(channels))
    except TypeError:
        raise PlanError(f"{what} = {channels!r}: it must be a number of channels or a list of indices.") from None
    most = width - 1 if ghosts else width
    if not 1 <= len(chosen) <= most:
        raise PlanError(f"{what}: {len(chosen)} channels of {width}; it must be between 1 and {most}.")
    outside = next((i for i in chosen if not 0 <= i < width), None)
    if outside is not None:
        raise PlanError(f"{what}: there is no channel {outside}; the stage's {width} channels count from 0.")
    if len(set(chosen)) < len(chosen):
        twice = next(i for i in chosen if chosen.count(i) > 1)
        raise PlanError(f"{what}: channel {twice} is given more than once.")
    return list(chosen)


def _is_number(channels: Channels) -> bool:
    """Whether channels are told by how many: then they are slices, however many, and else selections, whichever."""
    return isinstance(channels, int) or (isinstance(channels, Tensor) and channels.dim() == 0)


def _others(indices: list[int], width: int) -> list[int]:
    return sorted(set(range(width)) - set(indices))


def _inverse(order: list[int]) -> list[int]:
    """Where each channel stands in ``order``."""
    return sorted(range(len(order)), key=order.__getitem__)


# -- parts ---------------------------------------------------------------------------------------------------------


def _check_options(entry: str, cheap: str, cheap_input: str, mix: int) -> None:
    known = {"entry": (entry, Entry), "cheap": (cheap, StageCheap), "cheap_input": (cheap_input, CheapInput)}
    for name, (value, options) in known.items():
        names = get_args(options)
        if value not in names:
            raise PlanError(
                f"{name} must be one of {', '.join(map(repr, names))}, not {value!r}.{did_you_mean(str(value), names)}"
            )
    if mix not in (0, 1, 2):
        raise PlanError(f"mix = {mix}: the mix operation has 1 fully connected layer, 2, or 0 for no mix at all.")


def _thin_widths(widths: Sequence[int] | None, blocks: int, last: int) -> list[int]:
    if widths is None:
        return [last] * blocks
    if len(widths) != blocks:
        raise PlanError(f"thin_widths: {len(widths)} widths for {blocks} thin blocks.")
    if widths[-1] != last:
        raise PlanError(f"thin_widths: the last thin block must make {last} channels, not {widths[-1]}.")
    if min(widths) < 1:
        raise PlanError(f"thin_widths: {min(widths)} channels out of a thin block; it must be 1 or more.")
    return list(widths)


def _cheap(
    kind: StageCheap, channels: int, ghosts: int, cheap_input: CheapInput, place: dict[str, Any]
) -> nn.Module | None:
    """C of Eq. 9.  (N, channels, H, W) → (N, ghosts, H, W)"""
    if kind == "none":
        return None
    if kind == "identity":
        if cheap_input != "slice":
            raise PlanError("cheap operation 'identity': it passes a part of Y1 on; cheap_input must be 'slice'.")
        if channels != ghosts:
            raise PlanError(f"cheap operation 'identity': it cannot make {ghosts} ghost channels of {channels}.")
        return nn.Identity()
    kernel_size = int(kind[0])
    conv = nn.Conv2d(channels, ghosts, kernel_size, padding=kernel_size // 2, bias=False, **place)
    return nn.Sequential(conv, nn.BatchNorm2d(ghosts, **place))


def _place(thin: Sequence[nn.Module], device: Any, dtype: Any) -> dict[str, Any]:
    """Device and dtype as asked, else as the thin blocks have them, else torch's own."""
    like = next((p for block in thin for p in block.parameters() if p.is_floating_point()), None)
    if like is None:
        return {"device": device, "dtype": dtype}
    return {"device": like.device if device is None else device, "dtype": like.dtype if dtype is None else dtype}
