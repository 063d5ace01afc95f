"""Sites and scans: what a network is made of and what it costs.  Names and numbers only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from ghostify.channels import Coupling, InnerBlock, inner_blocks
from ghostify.costs import Cost, Op
from ghostify.inputs import Inputs, InputSpec
from ghostify.names import matches
from ghostify.recipe import Role, Stream
from ghostify.stages import Stage
from ghostify.tables import Table, quantity

Kind = Literal["conv", "conv1d", "conv3d", "transposed", "linear", "functional"]


class InParts(BaseModel):
    """That a network is taken part by part, because it resists as a whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str
    """Why it resists, as a sentence without its end."""
    inputs: dict[str, tuple[tuple[int, ...], ...]]
    """By qualified name of each part, the shapes it is given."""


class Site(BaseModel):
    """A convolution (or a linear layer on vectors or on maps): where it is, its geometry, its cost, what stands in the
    way.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    aliases: tuple[str, ...] = ()
    """Other qualified names of the same module, where it is shared."""
    kind: Kind
    role: Role = "body"
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    extras: int = 0
    """Parameters of each filter besides its weights and its bias: those of a class of its own, such as a gain."""
    shared: int = 0
    """Parameters of such a class that belong to no filter."""
    calls: int = 0
    positions: int = 0
    """Output positions (N·H'·W') over all calls: what one weight is multiplied by how often."""
    map: tuple[int, ...] = ()
    """Spatial size of the first call's output."""
    cost: Cost = Cost()
    obstacle: str | None = None
    """Why this site cannot be rewritten, as the end of a sentence that begins with its name; None if it can."""
    unfit: str | None = None
    """Why no weights can be fitted to what it does, likewise; None if they can."""

    @property
    def names(self) -> tuple[str, ...]:
        """All its names, the first one first."""
        return (self.name, *self.aliases)

    def matches(self, pattern: str) -> bool:
        """Whether a pattern means it, under any of its names."""
        return any(matches(name, pattern) for name in self.names)

    @property
    def fan_in(self) -> int:
        """Inputs of one filter: c/groups · k²."""
        return self.in_channels // self.groups * math.prod(self.kernel)

    @property
    def part(self) -> str:
        """What it is to a reader: its role; of what has none of its own, its kind."""
        # the role of a convolution or of a linear layer on maps says more than its kind
        own = self.kind == "conv" or (self.kind == "linear" and self.role != "classifier")
        return self.role if own else self.kind

    @property
    def geometry(self) -> str:
        """Channels, kernel, stride and groups as a person writes them: ``64→128 3x3 /2``."""
        text = f"{self.in_channels}→{self.out_channels} {'x'.join(map(str, self.kernel))}"
        if any(step != 1 for step in self.stride):
            text += f" /{self.stride[0] if len(set(self.stride)) == 1 else 'x'.join(map(str, self.stride))}"
        return text + (f" g{self.groups}" if self.groups > 1 else "")


class Scan(BaseModel):
    """What a network is made of and what it costs, for one example input."""

    model_config = ConfigDict(frozen=True)

    network: str
    """Class name of the module scanned."""
    inputs: tuple[tuple[int, ...], ...]
    """Shapes of the tensors in the example, the batch included."""
    kinds: tuple[str, ...] = ()
    """Their dtypes, where the example is a tensor, or a tuple or dict of some."""
    names: tuple[str, ...] = ()
    """Their keywords, where it is a dict."""
    sites: tuple[Site, ...]
    cost: Cost
    ops: tuple[Op, ...]
    stages: tuple[Stage, ...] = ()
    """Runs of three or more blocks of one width and resolution, in the order they run."""
    searched: bool = True
    """Whether stages were looked for; they are not in the scan of a result."""
    others: dict[str, str] = {}
    """Layers that multiply by weights and are no sites, and why each is left alone, as the end of a sentence."""
    unknown: dict[str, int]
    """Operations no counting rule knows, and how often each ran."""
    params: dict[str, int]
    """Own parameters by qualified module name, first names only."""
    modules: tuple[tuple[str, ...], ...] = ()
    """The names of every module, the root's first; more than one where a module is shared."""
    doubts: tuple[str, ...] = ()
    parts: InParts | None = None
    """Where the network was recorded in parts, which."""
    coupling: Coupling | None = None
    """The channels of the whole network, where the scan was asked for them."""
    uncoupled: str = ""
    """Why there are none, as a sentence without its end."""
    closed: tuple[str, ...] = ()
    """G-Ghost stages, which keep their channels when the rest becomes narrower."""
    idle: tuple[str, ...] = ()
    """Modules that ran neither on the example nor in training, so that the channels they may read are kept."""
    written: dict[str, str] = {}
    """Layers whose channels the network's code writes out or cuts in parts, and that, as the end of a sentence."""
    steady: tuple[str, ...] = ()
    """Globs of the layers whose outputs were to keep all their channels."""
    stream: Stream = "scaled"
    """Whether channels that are added to each other were to be kept, too."""
    changed: frozenset[str] = frozenset()
    """Layers that a rule of a plan has made narrower, where this is the network as it leaves it."""

    @cached_property
    def inner_blocks(self) -> list[InnerBlock]:
        """The blocks by which a network becomes narrower inside; none where a scan was not asked for them."""
        return inner_blocks(self.coupling) if self.coupling and self.stream == "kept" else []

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed, of which blocks are found anew: pydantic would copy those that are known."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("inner_blocks", None)
        return copied

    @property
    def specs(self) -> Inputs:
        """What the network takes, for a sample.  Raises ``ValueError`` where the example was anything more."""
        images = len(self.inputs) == 1 and len(self.inputs[0]) == 4
        kinds = self.kinds or ("float32",) * images  # of one image, where a scan is from before they told
        if not kinds:
            raise ValueError("it is no tensor with a dimension of samples, tuple of such tensors or dict of them")
        names = self.names or ("",) * len(self.inputs)
        return tuple(
            InputSpec(shape[1:], kind, name) for shape, kind, name in zip(self.inputs, kinds, names, strict=True)
        )

    def site(self, name: str) -> Site | None:
        """The site of that name (an alias finds it too)."""
        return next((site for site in self.sites if name in site.names), None)

    def stage(self, blocks: Sequence[str]) -> Stage | None:
        """The stage of these blocks."""
        return next((s for s in self.stages if tuple(block.name for block in s.blocks) == tuple(blocks)), None)

    def hindered(self, obstacles: Mapping[str, str]) -> Scan:
        """Itself, with what stands in the way of some stages, by name."""
        stages = tuple(
            stage.model_copy(update={"obstacle": obstacles.get(stage.name, stage.obstacle)}) for stage in self.stages
        )
        return self.model_copy(update={"stages": stages})

    def within(self, name: str) -> Cost:
        """Counted cost of the module of that qualified name with everything below it."""
        # with the dot, so that layer1 is not around layer10
        below = name + "."
        ops = [op for op in self.ops if op.module == name or op.module.startswith(below)]
        params = sum(n for module, n in self.params.items() if module == name or module.startswith(below))
        return Cost(params=params, macs=sum(op.macs for op in ops), acts=sum(op.acts for op in ops))

    @property
    def uncounted(self) -> str:
        """One sentence naming the operations nobody counted; empty when there are none."""
        if not self.unknown:
            return ""
        return "Not counted: " + ", ".join(f"{name} ({n}x)" for name, n in sorted(self.unknown.items())) + "."

    def table(self) -> Table:
        total = self.cost.macs or 1
        rows = [
            [
                site.name + (f" (+{len(site.aliases)} alias)" if site.aliases else ""),
                site.part,
                site.geometry,
                "x".join(map(str, site.map)) + (f" ({site.calls} calls)" if site.calls > 1 else ""),
                quantity(site.cost.params),
                quantity(site.cost.macs),
                f"{100 * site.cost.macs / total:.1f}%",
            ]
            for site in self.sites
        ]
        inputs = " and ".join("x".join(map(str, shape)) for shape in self.inputs)
        title = (
            f"{self.network} on {inputs}: {quantity(self.cost.params)} params, "
            f"{quantity(self.cost.macs)} MACs, {quantity(self.cost.acts)} activations"
        )
        columns = ["layer", "role", "geometry", "map", "params", "MACs", "share"]
        note = "\n".join(text for text in (self.uncounted, *self.doubts) if text)
        return Table(title, columns, rows, left=frozenset({"role", "geometry", "map"}), note=note)

    def stage_table(self) -> Table:
        """The stages, a row each; no rows where the network has none."""
        total = self.cost.macs or 1
        rows = [
            [
                stage.name,
                str(stage.n),
                str(stage.width),
                "x".join(map(str, stage.resolution)),
                quantity(stage.cost.params),
                quantity(stage.cost.macs),
                f"{100 * stage.cost.macs / total:.1f}%",
            ]
            for stage in self.stages
        ]
        title = "Stages: three or more blocks of one width and resolution"
        note = "\n".join(f"{stage.name} {stage.obstacle}." for stage in self.stages if stage.obstacle)
        return Table(title, ["stage", "blocks", "width", "map", "params", "MACs", "share"], rows, note=note)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.stage_table()}" if self.stages else str(self.table())
