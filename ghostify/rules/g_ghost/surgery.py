"""Building what follows the first block of a G-Ghost stage, and checking its thin blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ghostify.channels import follow, rewired, silenced, stands_in, thinned
from ghostify.errors import RewriteError
from ghostify.ghosts import GGhostStage
from ghostify.ghosts.selecting import FirstChannels
from ghostify.rules.g_ghost.form import Form
from ghostify.rules.g_ghost.swap import GGhostSwap
from ghostify.running import THINNED, Failed, agree, attempt, coarsest, op_name, quiet, seed
from ghostify.stages import Stage, stage_nodes
from ghostify.tracing import Traced

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
_NO_WIRING = "entry slice and a cheap operation need none"


class Surgery:
    """Builds what follows the first block of one stage."""

    def __init__(self, traced: Traced, stage: Stage, swap: GGhostSwap) -> None:
        self.traced, self.stage, self.swap = traced, stage, swap
        self.form = Form(stage, swap)
        self.blocks = stage_nodes(traced, stage)[1:]
        entry = next(node for node in traced.graph.nodes if node.name == stage.blocks[1].entry)
        # the entry is no part of a block, but its channels are those of the stream and are chosen with it
        self.channels = follow(traced, self.blocks, entry)
        rank = self.channels.strengths() if swap.keep == "strongest" else None
        self.kept = self.channels.kept(self.form.counts, self.form.lanes, rank)
        self.everything = np.ones_like(self.kept)
        self.ends = [np.flatnonzero(self.kept[end]) for end in self.channels.ends]

    def tail(self) -> GGhostStage:
        swap, form = self.swap, self.form
        thin = self._thin()
        last = form.thin[-1] + 1
        end = self._joined([copy.deepcopy(one) for one in self._modules(len(self.blocks) - 1)]) if swap.end else None
        stage = GGhostStage(
            thin,
            self.stage.width,
            self._told(0),
            kept_out=None if swap.cheap == "none" else self._told(last),
            thin_widths=form.outs,
            entry=swap.entry,
            cheap=swap.cheap,
            cheap_input=swap.cheap_input,
            mix=swap.mix,
            mix_y1=swap.mix_y1,
            act=self._activation(),
            end=end,
        )
        self._begin_small(stage, last)
        return self._as_before(stage)

    def _as_before(self, stage: GGhostStage) -> GGhostStage:
        """The stage in the mode of its slot, but for parts in eval mode on purpose; its blocks frozen where they were.

        The cheap and the mix operation stand for no layer that anybody froze, and must be trained to be of use.
        """
        training = self.traced.part(self.stage.slot).training
        # train() wakes every part, and a norm that somebody froze would learn again
        asleep = [part for part in stage.modules() if training and not part.training]
        stage.train(training)
        for part in asleep:
            part.training = False
        frozen = [self._is_frozen(block) for block in range(len(self.blocks))]
        for thin, block in zip(stage.thin, self.form.thin, strict=True):
            if frozen[block]:
                thin.requires_grad_(False)
        if stage.end is not None and frozen[-1]:
            stage.end.requires_grad_(False)
        return stage

    def _is_frozen(self, block: int) -> bool:
        parameters = [parameter for module in self._modules(block) for parameter in module.parameters()]
        return not any(parameter.requires_grad for parameter in parameters)

    def _told(self, end: int) -> int | list[int]:
        """The channels kept at an end: how many, where the rule itself takes the first, else which.

        By the rule and not by what it came to, so that a network has the same buffers whatever its weights.
        """
        kept: list[int] = self.ends[end].tolist()
        return len(kept) if self.swap.keep == "first" and kept == list(range(len(kept))) else kept

    # -- thin blocks -------------------------------------------------------------------------------------------

    def _thin(self) -> list[nn.Module]:
        values = self._silenced()
        return [self._thin_block(block, values) for block in self.form.thin]

    def _thin_block(self, block: int, values: dict[fx.Node, Any] | None) -> nn.Module:
        reads_all, gives_all = self.form.reads_all(block), self.form.gives_all(block)
        if reads_all and gives_all:  # a stage of one thin block without ghosts: nothing of it is thin
            return self._joined([copy.deepcopy(module) for module in self._modules(block)])
        if self.swap.entry == "stream":
            return self._reading_stream(block, values)
        if reads_all:
            return self._resized(block, self.kept, self.everything, self.stage.width, self.ends[0])
        if gives_all:
            return self._resized(block, self.everything, self.kept, len(self.ends[block]), None)
        thin = self._joined([thinned(self.channels, module, self.kept) for module in self._modules(block)])
        problem = self._disagreement(thin, block, values)
        if problem is None:
            return thin
        # code that names its widths (a reshape, a split) runs again when the recorded graph is wired with smaller ones
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

    def _reading_stream(self, block: int, values: dict[fx.Node, Any] | None) -> nn.Module:
        """A thin block that reads its own channels and, behind them, the others."""
        own_first = np.where(self.kept, 0, 1)
        if self.form.coupling.shortcuts[block]:
            made: nn.Module = self._rewired(block, self.kept, own_first, FirstChannels(len(self.ends[block])))
        else:
            made = self._joined([thinned(self.channels, m, self.kept, own_first) for m in self._modules(block)])
        if problem := self._disagreement(made, block, values):
            raise self._refusal(block, f"with fewer channels {problem} ({_NO_WIRING})")
        return made

    def _rewired(
        self, block: int, kept: np.ndarray, entry: np.ndarray | None = None, projection: nn.Module | None = None
    ) -> nn.Module:
        # A wiring holds one recorded run.  It may stand for the block only if it does the same elsewhere, which is
        # tried at full width, where the original can be asked.
        plain = rewired(self.channels, self.blocks[block], self.everything)
        original = self._joined([copy.deepcopy(module) for module in self._modules(block)])
        if not self._is_meta() and not stands_in(original, plain, self.stage.blocks[block + 1].in_shape):
            why = "does something else in training or at another size, which a new wiring of it would lose"
            raise self._refusal(block, f"{why} ({_NO_WIRING})")
        return rewired(self.channels, self.blocks[block], kept, entry, projection)

    def _refusal(self, block: int, why: str) -> RewriteError:
        return RewriteError(
            f"{self.stage.name} cannot be thinned: its block {self.stage.blocks[block + 1].name} {why}."
        )

    def _modules(self, block: int) -> list[nn.Module]:
        return [self.traced.part(name) for name in self.stage.blocks[block + 1].modules]

    def _joined(self, modules: list[nn.Module]) -> nn.Module:
        return modules[0] if len(modules) == 1 else nn.Sequential(*modules)

    # -- the check ---------------------------------------------------------------------------------------------

    def _silenced(self) -> dict[fx.Node, Any] | None:
        """The original blocks' values with the dropped channels silenced, for an input of noise."""
        if self._is_meta():
            return None
        noise = torch.randn(self.stage.blocks[1].in_shape, generator=torch.Generator().manual_seed(0))
        return silenced(self.channels, self.kept, noise.to(self._like()))

    def _disagreement(self, thin: nn.Module, block: int, values: dict[fx.Node, Any] | None) -> str | None:
        """What a thin block does wrong, or None; without values only its shape can be."""
        entry = self.channels.entry if block == 0 else self.blocks[block - 1][-1]
        around = ((entry, block), (self.blocks[block][-1], block + 1))
        source, expected = (self._value(node, end, values) for node, end in around)
        if self.swap.entry == "stream":  # with the other channels silenced, it does what a slice of it does
            silent = source.new_zeros(len(source), self.stage.width - source.shape[1], *source.shape[2:])
            source = torch.cat([source, silent], 1)
        try:
            given = _run(thin, source)
        except Failed as problem:
            return f"fails ({problem})"
        precision = coarsest(values.values() if values else (), expected.dtype)
        if not (expected.is_meta or expected.isfinite().any()):
            return "gives no finite number for noise, so nothing checks it thinned"
        if agree(expected, given, THINNED, precision):
            return self._trouble_in_training(thin, block, source)
        return "does not do what it does with the other channels silenced"

    def _trouble_in_training(self, thin: nn.Module, block: int, source: Tensor) -> str | None:
        """What goes wrong with a thin block in train mode, where the block itself runs."""
        whole = torch.empty(self.stage.blocks[block + 1].in_shape, device=source.device, dtype=source.dtype)
        original = self._joined([copy.deepcopy(module) for module in self._modules(block)])
        try:
            _run(original, whole.normal_(), training=True)
        except Failed:
            return None  # such as a batch norm that cannot learn from a single value
        try:
            _run(thin, source, training=True)
        except Failed as problem:
            return f"fails in training ({problem})"
        return None

    def _value(self, node: fx.Node, end: int, values: dict[fx.Node, Any] | None) -> Tensor:
        """What stands between two blocks, at the kept channels."""
        if values is not None:
            return _picked(values[node], self.ends[end])
        batch, _, *maps = node.meta["shapes"][0]
        return torch.empty(batch, len(self.ends[end]), *maps, device="meta", dtype=self._like().dtype)

    def _is_meta(self) -> bool:
        return self._like().is_meta

    def _like(self) -> Tensor:
        return next(parameter for module in self._modules(0) for parameter in module.parameters())

    # -- new layers --------------------------------------------------------------------------------------------

    def _activation(self) -> nn.Module | None:
        """What the stage's blocks end with."""
        kind = _ACTIVATIONS.get(op_name(self.traced, self.blocks[-1][-1]).lower().replace("_", ""))
        return kind() if kind else None

    def _begin_small(self, stage: GGhostStage, last: int) -> None:
        """The new layers as they begin: ghosts are channels of Y1, and the mix operation adds nothing."""
        with torch.no_grad():
            if isinstance(stage.cheap, nn.Sequential):
                conv: Any = stage.cheap[0]
                ghosts = _others(self.stage.width, self.ends[last])
                read = list(range(self.stage.width))  # of Y1, behind which outputs of thin blocks begin at zero
                if self.swap.cheap_input == "slice":
                    read = _others(self.stage.width, self.ends[0])
                # one weight of one in the middle passes a channel of Y1 on, whatever the kernel's size
                middle = conv.kernel_size[0] // 2
                conv.weight.zero_()
                for row, column in enumerate(_matched(ghosts, read)):
                    conv.weight[row, column, middle, middle] = 1
            if stage.mix is not None:
                # only its last layer is zero: with all of them zero, none would ever get a gradient
                final = stage.mix.fc if isinstance(stage.mix.fc, nn.Linear) else list(stage.mix.fc.children())[-1]
                for parameter in final.parameters():
                    parameter.zero_()


def _run(block: nn.Module, x: Tensor, training: bool = False) -> Tensor:
    """What a block gives; a copy runs, for what a block remembers of a run is not to be in the result."""
    tried = copy.deepcopy(block)
    with quiet(tried):
        seed()
        given: Tensor = attempt(tried.train(training), (x.clone(),))
    return given


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


def _matched(ghosts: list[int], read: list[int]) -> list[int]:
    """For each ghost the place of a channel to begin as: its own where that is read, else one that no other begins as.

    A ghost of no channel would be zero, and behind a ReLU stay so.
    """
    place = {channel: index for index, channel in enumerate(read)}
    free = [place[channel] for channel in read if channel not in set(ghosts)] or list(range(len(read)))
    others = iter(free * len(ghosts))
    return [place[ghost] if ghost in place else next(others) for ghost in ghosts]


def _picked(value: Tensor, places: np.ndarray) -> Tensor:
    return value.index_select(1, torch.from_numpy(places).to(value.device))


def _others(width: int, places: np.ndarray) -> list[int]:
    taken = set(places.tolist())
    return [channel for channel in range(width) if channel not in taken]
