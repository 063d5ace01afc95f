"""The nouns: a stage and its blocks, in names and numbers."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, computed_field

from ghostify.channels import Coupling
from ghostify.costs import Cost
from ghostify.names import is_named, matches, within

MIN_BLOCKS = 3

Shape = tuple[int, ...]
Modules = Sequence[tuple[str, ...]]
"""Of each module of a network, all its names."""


class Block(BaseModel):
    """A part of the graph with one entry and one exit.  (N, C, H, W) → (N, C', H', W')"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The module that is exactly this block, else the first and last module called in it (``conv1..relu``)."""
    entry: str
    """Graph node whose value the block reads; it is not part of the block."""
    exit: str
    """Graph node whose value the block gives."""
    in_shape: Shape
    out_shape: Shape
    cost: Cost
    """Parameters count where the network first uses them, if blocks share them."""
    modules: tuple[str, ...] = ()
    """The modules that are this block, one or several that call each other's values in a chain; none if the block
    computes anything outside them."""


class Stage(BaseModel):
    """Blocks in a row of equal width and resolution; each reads what the one before gives, and nothing else does."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # its JSON also tells what follows from the blocks

    name: str
    """The module that holds these blocks and no other weights, else the first and last name (``a..b``)."""
    blocks: tuple[Block, ...]
    parent: str | None
    """The module whose direct children are exactly the blocks (it may have others), if there is one."""
    coupling: Coupling | None = None
    """The channels of the blocks after the first, if they can be followed."""
    obstacle: str | None = None
    """Why this stage cannot be rewritten, as the end of a sentence that begins with its name; None if it can."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def n(self) -> int:
        return len(self.blocks)

    @property
    def entry(self) -> Block:
        """The first block, the only one that may change width and resolution."""
        return self.blocks[0]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def width(self) -> int:
        """Channels out."""
        return self.blocks[-1].out_shape[1]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def resolution(self) -> Shape:
        """Size of the maps out, (H, W)."""
        return self.blocks[-1].out_shape[2:]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def cost(self) -> Cost:
        return sum((block.cost for block in self.blocks), Cost())

    @property
    def geometry(self) -> str:
        """Blocks, channels and resolution as a person writes them: ``6 x 192 @ 28x28``."""
        return f"{self.n} x {self.width} @ {'x'.join(map(str, self.resolution))}"

    @property
    def slot(self) -> str:
        """The module whose place what follows the first block takes."""
        return self.blocks[1].modules[0]

    @property
    def later(self) -> list[str]:
        """The modules of the blocks after the first, which a G-Ghost stage replaces."""
        return [module for block in self.blocks[1:] for module in block.modules]

    def holds(self, name: str) -> bool:
        """Whether a module lies in the blocks after the first."""
        return any(within(name, module) for module in self.later)

    def is_meant(self, patterns: Sequence[str], modules: Modules = ()) -> bool:
        """Whether patterns mean the stage: one of them by its name, or together each of its modules.

        ``modules`` are the names of every module of the network, which tell the other names of a shared one.
        """
        if any(is_named(self.name, pattern) for pattern in patterns):
            return True
        names_of = {name: names for names in modules for name in names}
        return all(_meaning(names_of.get(module, (module,)), patterns) is not None for module in self.modules)

    def kept_by(self, patterns: Sequence[str], modules: Modules = ()) -> tuple[str, str] | None:
        """What patterns mean of the blocks after the first: the name of a module in them and its pattern, if any."""
        inside = [names for names in modules if any(map(self.holds, names))]
        for names in inside or [(name,) for name in self.later]:
            if (pattern := _meaning(names, patterns)) is not None:
                return names[0], pattern
        return None

    @property
    def modules(self) -> list[str]:
        """The modules of all blocks."""
        return [module for block in self.blocks for module in block.modules or block.name.split("..")]

    def __str__(self) -> str:
        return f"{self.name}: {self.geometry}"


def _meaning(names: Sequence[str], patterns: Sequence[str]) -> str | None:
    """The first of ``patterns`` that means a module, under any of its names."""
    return next((pattern for pattern in patterns if any(matches(name, pattern) for name in names)), None)
