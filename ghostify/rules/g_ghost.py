"""The G-Ghost rule: a stage of n ≥ 3 blocks becomes its first block and a G-Ghost stage (IJCV paper, Eq. 6-12).

    blocks 1 … n    (N, c', H', W') → (N, c, H, W)                Y1, Y2, …, Yn
        ⇒ block 1                   as it is                      Y1
          GGhostStage               in place of block 2           thin copies at (1−λ)c, and ghosts
          (nothing)                 in place of blocks 3 … n

The thin copies keep (1−λ) of the channels of the residual stream and inside the blocks, with the trained weights of
those channels.  The new layers begin as the least they can be: the cheap operation passes the ghost channels of Y1 on,
a projection picks the channels of the thin path, the mix operation adds nothing.

The papers' tables are made by more than one form of stage; ``PRESETS`` names them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ghostify.channels import follow, rewired, silenced, stands_in, thinned
from ghostify.costs import Cost, op_name
from ghostify.errors import PlanError, RewriteError
from ghostify.ghosts import GGhostStage
from ghostify.recipe import GhostSettings, StageForm
from ghostify.rules.base import TOLERANCE, GGhostSwap, Skip, thinner
from ghostify.scanning import Scan
from ghostify.stages import Stage, find_stages, name_stage, stage_nodes
from ghostify.tracing import Traced

PRESETS: dict[str, StageForm] = {
    "default": StageForm(**{name: GGhostSwap.model_fields[name].default for name in StageForm.model_fields}),
    "literal": StageForm(
        cheap="1x1",
        cheap_input="full",
        entry="projection",
        mix=1,
        mix_y1=False,
        end=False,
        group_width=1.0,
        keep="first",
    ),
    "cifar": StageForm(
        cheap="1x1",
        cheap_input="full",
        entry="projection",
        mix=1,
        mix_y1=False,
        end=True,
        group_width=1.0,
        keep="first",
    ),
    "imagenet": StageForm(
        cheap="1x1", cheap_input="slice", entry="slice", mix=1, mix_y1=True, end=True, group_width=1.0, keep="first"
    ),
    "regnet": StageForm(
        cheap="1x1", cheap_input="slice", entry="slice", mix=2, mix_y1=True, end=True, group_width=0.75, keep="first"
    ),
}
"""Forms of a stage: our own, Eq. 6-12 to the letter, and those of Tables 11-14, 15-16 and 17-18."""

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "mish": nn.Mish,
}


def propose(stage: Stage, settings: GhostSettings) -> GGhostSwap | Skip:
    """A swap of ``stage``, or the reason there is none."""
    if not any(fnmatchcase(stage.name, glob) for glob in settings.include):
        return Skip(target=stage.name, reason="is matched by no include pattern")
    if glob := next((glob for glob in settings.exclude if fnmatchcase(stage.name, glob)), None):
        return Skip(target=stage.name, reason=f"is excluded by {glob!r}")
    if stage.obstacle or stage.coupling is None:
        return Skip(target=stage.name, reason=stage.obstacle or "was not followed")
    form = _form(stage.name, settings)
    if stage.coupling.ordered:
        form["keep"] = "first"
    swap = GGhostSwap(
        target=stage.name,
        geometry=stage.geometry,
        blocks=tuple(block.name for block in stage.blocks),
        before=stage.cost,
        round_to=settings.round_to,
        rounding=settings.rounding,
        **form,
    )
    try:
        swap = swap.model_copy(update={"after": predict(stage, swap)})
    except PlanError as problem:
        return Skip(target=stage.name, reason=str(problem).removeprefix(f"{stage.name} ").removesuffix("."))
    if swap.after.macs >= swap.before.macs:
        return Skip(target=stage.name, reason="would cost more as a G-Ghost stage than it does now")
    return swap


def predict(stage: Stage, swap: GGhostSwap) -> Cost:
    """The exact cost of all blocks of the stage once it is rewritten.  Raises ``PlanError`` when it cannot be."""
    if stage.obstacle or stage.coupling is None:
        raise PlanError(f"{stage.name} {stage.obstacle}.")
    form, coupling = _Form(stage, swap), stage.coupling
    total = stage.blocks[0].cost
    for block in form.thin:
        reads_all, gives_all = form.reads_all(block), form.gives_all(block)
        if reads_all and gives_all:
            total += stage.blocks[block + 1].cost
        elif reads_all:
            total += coupling.widened(block, form.counts, form.lanes) + form.projection(block, stage.width, form.raw)
        elif gives_all:
            total += coupling.narrowed(block, form.counts, form.lanes) + form.projection(block, form.raw, stage.width)
        else:
            total += coupling.cost(block, form.counts, form.lanes)
    total += form.cheap() + form.mix()
    return total + stage.blocks[-1].cost if swap.end else total


def counted(after: Scan, stage: Stage) -> Cost:
    """What a rewritten stage costs, by count, if nothing else was done to its first block."""
    return stage.blocks[0].cost + after.within(stage.slot)


def thin_width(stage: Stage, swap: GGhostSwap) -> int:
    """(1−λ)c as it comes out: the channels of the thin path."""
    return _Form(stage, swap).raw


def extras(stage: Stage, swap: GGhostSwap) -> tuple[Cost, Cost, Cost | None]:
    """What is new: the cheap operation, the mix operation, and the projection at the thin path's entry, if any."""
    form = _Form(stage, swap)
    projects = swap.entry == "projection"
    return form.cheap(), form.mix(), form.projection(0, stage.width, form.raw) if projects else None


def find(traced: Traced, swap: GGhostSwap) -> Stage:
    """The stage a swap means: the one found with these blocks, else the blocks as they are named.

    Raises ``PlanError`` where the blocks are no stage.
    """
    found = (stage for stage in find_stages(traced) if tuple(block.name for block in stage.blocks) == swap.blocks)
    return next(found, None) or name_stage(traced, swap.blocks)


def replacements(traced: Traced, swap: GGhostSwap) -> dict[int, nn.Module]:
    """By the ``id`` of each module of blocks 2 … n, what takes its place.

    Raises ``RewriteError`` when a thinned block does not do what the block does with the dropped channels silenced.
    """
    stage = find(traced, swap)
    with torch.random.fork_rng(
        devices=[]
    ):  # whatever the new layers draw, the caller's state stays, and they are equal
        torch.default_generator.manual_seed(0)
        tail = _Surgery(traced, stage, swap).tail()
    slot, *others = [traced.module.get_submodule(name) for block in stage.blocks[1:] for name in block.modules]
    return {id(slot): tail} | {id(old): nn.Identity().train(old.training) for old in others}


def _form(name: str, settings: GhostSettings) -> dict[str, Any]:
    """The form and ratio for one stage: the preset's, then the settings', then those set by name."""
    form = PRESETS[settings.preset].model_dump()
    ratio = settings.ratio
    named = [own for glob, own in settings.set.items() if fnmatchcase(name, glob)]
    for own in (settings, *named):
        given = {key: getattr(own, key) for key in StageForm.model_fields}
        form |= {key: value for key, value in given.items() if value is not None}
    for own in named:
        ratio = own.ratio or ratio
    return {**form, "ratio": ratio}


class _Form:
    """A stage and a swap as numbers: which blocks are thin, how many channels are kept, what the new layers cost."""

    def __init__(self, stage: Stage, swap: GGhostSwap) -> None:
        assert stage.coupling is not None
        self.stage, self.swap, self.coupling = stage, swap, stage.coupling
        self.lanes = swap.group_width
        self.thin = range(stage.n - 1 - swap.end)
        self.counts = self.coupling.keep(self._target(), self.lanes)
        widths = [self.coupling.width(end, self.counts, self.lanes) for end in self.coupling.ends]
        self.raw, self.outs = widths[0], [widths[block + 1] for block in self.thin]
        if swap.cheap == "none":
            self.outs[-1] = stage.width
        for kept in (self.raw, self.outs[-1]) if swap.cheap != "none" else (self.raw,):
            if kept >= stage.width:
                raise PlanError(
                    f"{stage.name} has {stage.width} channels, of which a ratio of {swap.ratio:g} leaves no ghosts "
                    f"(round_to is {swap.round_to})."
                )
        if swap.cheap == "none" and swap.mix:
            raise PlanError(f"{stage.name} has no ghosts to mix into with cheap operation 'none'; set mix to 0.")
        if swap.cheap == "identity" and (swap.cheap_input == "full" or self.raw != self.outs[-1]):
            raise PlanError(
                f"{stage.name} can pass only the other channels of Y1 on as they are; set cheap_input to slice."
            )

    def reads_all(self, block: int) -> bool:
        """Whether a thin block reads all channels of Y1."""
        return block == 0 and self.swap.entry == "projection"

    def gives_all(self, block: int) -> bool:
        """Whether a thin block gives all channels, for there are no ghosts."""
        return block == self.thin[-1] and self.swap.cheap == "none"

    def projection(self, block: int, c: int, n: int) -> Cost:
        """A 1x1 convolution with batch norm on the shortcut of a block, if it has one."""
        if not self.coupling.shortcuts[block]:
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
        """Channels of Y1 that the cheap operation reads."""
        return self.stage.width if self.swap.cheap_input == "full" else self.stage.width - self.raw

    def _positions(self, shape: Sequence[int]) -> int:
        return shape[0] * math.prod(shape[2:])

    def _target(self) -> Callable[[int], int]:
        """How many of w channels to keep: of the stage's width (1 − λ), and of every other the share that gave."""
        swap, c = self.swap, self.stage.width
        raw = thinner(1 - swap.ratio, swap.round_to, swap.rounding)(c)
        groups = {segment.lanes for segment in self.coupling.segments if segment.lanes}
        if swap.group_width < 1 and groups:
            unit = max(1, int(swap.group_width * max(groups)))
            raw = max(1, int((1 - swap.ratio) * c + 1e-9) // unit) * unit
        other = thinner(raw / c, swap.round_to, swap.rounding)
        return lambda width: raw if width == c else other(width)


class _Surgery:
    """Builds what follows the first block of one stage."""

    def __init__(self, traced: Traced, stage: Stage, swap: GGhostSwap) -> None:
        self.traced, self.stage, self.swap = traced, stage, swap
        self.form = _Form(stage, swap)
        self.blocks = stage_nodes(traced, stage)[1:]
        entry = next(node for node in traced.graph.nodes if node.name == stage.blocks[1].entry)
        self.channels = follow(traced, self.blocks, entry)
        rank = self.channels.strengths() if swap.keep == "strongest" else None
        self.kept = self.channels.kept(self.form.counts, self.form.lanes, rank)
        self.everything = np.ones_like(self.kept)
        self.ends = [np.flatnonzero(self.kept[end]) for end in self.channels.ends]

    def tail(self) -> GGhostStage:
        swap, form = self.swap, self.form
        thin = self._thin()
        last = form.thin[-1] + 1
        stage = GGhostStage(
            thin,
            self.stage.width,
            self.ends[0].tolist(),
            kept_out=None if swap.cheap == "none" else self.ends[last].tolist(),
            thin_widths=form.outs,
            entry=swap.entry,
            cheap=swap.cheap,
            cheap_input=swap.cheap_input,
            mix=swap.mix,
            mix_y1=swap.mix_y1,
            act=self._activation(),
            end=self._joined([copy.deepcopy(m) for m in self._modules(len(self.blocks) - 1)]) if swap.end else None,
        )
        self._begin_small(stage, last)
        return stage.train(self.traced.module.get_submodule(self.stage.slot).training)

    # -- thin blocks -------------------------------------------------------------------------------------------

    def _thin(self) -> list[nn.Module]:
        values = self._silenced()
        return [self._thin_block(block, values) for block in self.form.thin]

    def _thin_block(self, block: int, values: dict[fx.Node, Any] | None) -> nn.Module:
        reads_all, gives_all = self.form.reads_all(block), self.form.gives_all(block)
        if reads_all and gives_all:
            return self._joined([copy.deepcopy(module) for module in self._modules(block)])
        if reads_all:
            return self._resized(block, self.kept, self.everything, self.stage.width, self.ends[0])
        if gives_all:
            return self._resized(block, self.everything, self.kept, len(self.ends[block]), None)
        thin = self._joined([thinned(self.channels, module, self.kept) for module in self._modules(block)])
        problem = self._disagreement(thin, block, values)
        if problem is None:
            return thin
        try:
            again = self._rewired(block, self.kept)
        except RewriteError:
            raise self._refusal(block, f"with fewer channels {problem}") from None
        if self._disagreement(again, block, values) is not None:
            raise self._refusal(block, f"with fewer channels {problem}")
        return again

    def _resized(
        self, block: int, kept: np.ndarray, entry: np.ndarray, read: int, picked: np.ndarray | None
    ) -> nn.Module:
        """A block that reads another width than it works at, with a projection on its shortcut."""
        if not self.form.coupling.shortcuts[block]:
            return self._joined([thinned(self.channels, module, kept, entry) for module in self._modules(block)])
        places = self.ends[block] if picked is None else picked
        projection = _projection(self.stage.width, places, read, self._like())
        return self._rewired(block, kept, entry, projection)

    def _rewired(
        self, block: int, kept: np.ndarray, entry: np.ndarray | None = None, projection: nn.Module | None = None
    ) -> nn.Module:
        plain = rewired(self.channels, self.blocks[block], self.everything)
        original = self._joined([copy.deepcopy(module) for module in self._modules(block)])
        if not self._is_meta() and not stands_in(original, plain, self.stage.blocks[block + 1].in_shape):
            why = "does something else in training or at another size, which a new wiring of it would lose"
            raise self._refusal(block, f"{why} (entry slice and a cheap operation need none)")
        return rewired(self.channels, self.blocks[block], kept, entry, projection)

    def _refusal(self, block: int, why: str) -> RewriteError:
        return RewriteError(
            f"{self.stage.name} cannot be thinned: its block {self.stage.blocks[block + 1].name} {why}."
        )

    def _modules(self, block: int) -> list[nn.Module]:
        return [self.traced.module.get_submodule(name) for name in self.stage.blocks[block + 1].modules]

    def _joined(self, modules: list[nn.Module]) -> nn.Module:
        return modules[0] if len(modules) == 1 else nn.Sequential(*modules)

    # -- the check ---------------------------------------------------------------------------------------------

    def _silenced(self) -> dict[fx.Node, Any] | None:
        """The original blocks' values with the dropped channels silenced, for an input of noise."""
        if self._is_meta():
            return None
        like = self._like()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            x = torch.randn(self.stage.blocks[1].in_shape).to(like)
        return silenced(self.channels, self.kept, x)

    def _disagreement(self, thin: nn.Module, block: int, values: dict[fx.Node, Any] | None) -> str | None:
        """What a thin block does wrong, or None."""
        if values is None:
            return None
        entry = self.channels.entry if block == 0 else self.blocks[block - 1][-1]
        source, expected = (
            _picked(values[node], self.ends[end]) for node, end in ((entry, block), (self.blocks[block][-1], block + 1))
        )
        modes = [(part, part.training) for part in thin.modules()]
        try:
            with torch.no_grad():
                given = thin.eval().forward(source.clone())  # a GraphModule's call would print its trouble
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as problem:
            return f"fails ({' '.join(str(problem).split())[:150]})"
        finally:
            for part, training in modes:
                part.training = training
        error = (given - expected).abs().max() if given.shape == expected.shape else None
        if error is None or error > self._tolerance() * expected.abs().max():
            return "does not do what it does with the other channels silenced"
        return None

    def _tolerance(self) -> float:
        return TOLERANCE if self._like().dtype in (torch.float32, torch.float64) else 0.1

    def _is_meta(self) -> bool:
        return self._like().is_meta

    def _like(self) -> Tensor:
        return next(parameter for module in self._modules(0) for parameter in module.parameters())

    # -- new layers --------------------------------------------------------------------------------------------

    def _activation(self) -> nn.Module | None:
        """What the stage's blocks end with."""
        name = op_name(self.traced, self.blocks[-1][-1])
        kind = next(
            (kind for key, kind in _ACTIVATIONS.items() if key.replace("_", "") == name.lower().replace("_", "")), None
        )
        return kind() if kind else None

    def _begin_small(self, stage: GGhostStage, last: int) -> None:
        """The new layers as they begin: ghosts are channels of Y1, and the mix operation adds nothing."""
        with torch.no_grad():
            if isinstance(stage.cheap, nn.Sequential):
                conv: Any = stage.cheap[0]
                ghosts = _others(self.stage.width, self.ends[last])
                read = list(range(self.stage.width))
                if self.swap.cheap_input == "slice":
                    read = _others(self.stage.width, self.ends[0])
                middle = conv.kernel_size[0] // 2
                conv.weight.zero_()
                for row, channel in enumerate(ghosts):
                    if channel in read:
                        conv.weight[row, read.index(channel), middle, middle] = 1
            if stage.mix is not None:
                final = stage.mix.fc if isinstance(stage.mix.fc, nn.Linear) else list(stage.mix.fc.children())[-1]
                for parameter in final.parameters():
                    parameter.zero_()


def _projection(width: int, places: np.ndarray, read: int, like: Tensor) -> nn.Sequential:
    """From all channels to those at ``places``, or back; it begins by picking them."""
    n = len(places) if read == width else width
    conv = nn.Conv2d(read, n, 1, bias=False, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        conv.weight.zero_()
        for index, place in enumerate(places.tolist()):
            row, column = (index, place) if read == width else (place, index)
            conv.weight[row, column] = 1
    return nn.Sequential(conv, nn.BatchNorm2d(n, device=like.device, dtype=like.dtype))


def _picked(value: Tensor, places: np.ndarray) -> Tensor:
    return value.index_select(1, torch.from_numpy(places).to(value.device))


def _others(width: int, places: np.ndarray) -> list[int]:
    taken = set(places.tolist())
    return [channel for channel in range(width) if channel not in taken]
