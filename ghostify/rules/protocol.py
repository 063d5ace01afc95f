"""What a rule is to every other room: it says what it needs, proposes, checks, builds, counts and reports.

The rooms go through all rules in the order of ``RULES`` and branch on none.  Rules of larger things come first, and
each is given the network as the rules before it leave it: when it proposes and checks, the scan that their ``after``
gives; when it builds, the memo of their replacements.  So a later rule may work on what an earlier one made, and the
costs of a plan add up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

from ghostify.costs import Cost
from ghostify.errors import PlanError, RewriteError, did_you_mean
from ghostify.names import overlap
from ghostify.recipe import GhostSettings, Method, Stream
from ghostify.rules.base import Skip, Split, Swap
from ghostify.rules.origins import Origins
from ghostify.rules.rows import Rows
from ghostify.scanning import Scan
from ghostify.stages import Stage, find_stages, name_stage
from ghostify.tracing import Traced

S = TypeVar("S", bound=Swap)


@dataclass(frozen=True)
class Needs:
    """What rules ask of a scan besides its sites and the stages that are found; ``scan`` takes it by these names."""

    stages: tuple[tuple[str, ...], ...] = ()
    """Stages named by hand, each by the modules of its blocks."""
    whole: bool = False
    """Whether the channels of the whole network are to be followed."""
    steady: tuple[str, ...] = ()
    """Patterns of modules whose channels all stay."""
    stream: Stream = "scaled"

    def __or__(self, other: Needs) -> Needs:
        """What both ask for."""
        return Needs(
            stages=self.stages + other.stages,
            whole=self.whole or other.whole,
            steady=self.steady + other.steady,
            stream=other.stream if other.whole else self.stream,
        )


@dataclass(frozen=True)
class Choices:
    """What a plan leaves open and images may decide."""

    orders: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By ordered C-Ghost module, for each output the place of its map; as they come, where it says nothing."""


@dataclass
class Original:
    """The network that replacements are built from, with what is known of it."""

    module: nn.Module
    run: Traced | None = None
    """Its recorded run, of which rules ``in_place`` have no need."""
    scan: Scan | None = None
    """The scan of that run; handed on, because finding stages anew takes as long as a scan."""
    choices: Choices = field(default_factory=Choices)

    @property
    def traced(self) -> Traced:
        """Its recorded run, for rules that need one."""
        assert self.run is not None, "a rule that is not in place was given a module without a run"
        return self.run

    def part(self, name: str) -> nn.Module:
        """The module of that name.  Raises ``RewriteError`` where there is none."""
        return submodule(self.module, name)

    def stage(self, blocks: Sequence[str]) -> Stage:
        """The stage of these blocks: found, else as they are named.  Raises ``PlanError`` where they are no stage."""
        found = (stage for stage in self._stages if tuple(block.name for block in stage.blocks) == tuple(blocks))
        return next(found, None) or name_stage(self.traced, blocks)

    @cached_property
    def _stages(self) -> Sequence[Stage]:
        return self.scan.stages if self.scan else find_stages(self.traced)


def submodule(module: nn.Module, name: str) -> nn.Module:
    """The module of that name, which a plan is to replace.  Raises ``RewriteError`` where there is none."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise RewriteError(f"{type(module).__name__} has no module {name!r} to be replaced.") from None


class Rule(ABC, Generic[S]):
    """One kind of rewrite.  Rules hold no state: what they know of a network is in their arguments."""

    name: ClassVar[str]
    """As plans and reports have it."""
    swap: type[S]
    """The value that says one rewrite in a plan."""
    methods: ClassVar[frozenset[Method]]
    """The methods under which it proposes; ``auto`` is settled before."""
    noun: ClassVar[str]
    """What it replaces, in a word."""
    in_place: ClassVar[bool] = False
    """Whether it builds from a module alone, so that neither a recorded run nor an example is needed."""
    alone: ClassVar[bool] = False
    """Whether a plan with one of its swaps can have no other."""
    opens: ClassVar[bool] = False
    """Whether later rules may replace layers inside what it made."""
    rehearsed: ClassVar[bool] = False
    """Whether only building shows if a proposed swap can be made."""
    outside: ClassVar[str] = ""
    """Why convolutions are left alone of which no later rule decides, as the end of a sentence."""

    # -- what it asks of a scan --------------------------------------------------------------------------------

    def needs(self, settings: GhostSettings) -> Needs:
        """What it must know of a network to propose by ``settings``."""
        return Needs()

    def needed_by(self, swap: S) -> Needs:
        """What it must know of a network to check a swap of a plan."""
        return Needs()

    def subjects(self, scan: Scan) -> dict[str, str]:
        """What it decides about in a network: by each name that a plan may use, the first name."""
        return {}

    # -- planning ----------------------------------------------------------------------------------------------

    def admit(self, scan: Scan, settings: GhostSettings) -> None:
        """Raise ``PlanError`` for settings that say nothing to it, or a network it can do nothing for."""
        return

    @abstractmethod
    def propose(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> list[S | Skip]:
        """A swap, or a skip with its reason, for each of its subjects in the network as earlier rules leave it.

        With ``fitted``, what cannot be fitted is left alone.  Raises ``PlanError`` for settings that cannot be met.
        """

    def candidates(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> Mapping[str, Sequence[S]]:
        """By each of its subjects, the swaps that a budget may choose among, besides leaving it as it is.

        Each is priced as if it were the only one.  ``settings`` say what may be touched; what is set by name for a
        subject leaves that alone to choose from.  A rule that offers none takes no part where there is a budget.
        """
        return {}

    def chains(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> Mapping[str, Sequence[tuple[S, ...]]]:
        """By each chain of its subjects that share layers, the ways to swap all of it that a budget may choose among.

        Of subjects that share layers what one saves depends on the other, so ``candidates`` has some of them only.  The
        swaps of a way are priced each given those before it.
        """
        return {}

    def why_outside(self, scan: Scan, name: str) -> str:
        """Why a convolution of that name is left alone, of which no later rule decides."""
        return self.outside

    def is_meant(self, scan: Scan, target: str, pattern: str) -> bool:
        """Whether a pattern of module names means a subject."""
        return False

    def named(self, swap: S, scan: Scan) -> S:
        """A plan's swap under the first name of its subject.  Raises ``PlanError`` where the network has none.

        What may be refused by the network as it is alone is refused here, in the words of the plan.
        """
        first = self.subjects(scan).get(swap.target)
        if first is None:
            raise unknown(swap.target, scan, self.subjects(scan))
        return swap.model_copy(update={"target": first})

    @abstractmethod
    def check(self, said: Mapping[str, Swap | Skip], scan: Scan) -> list[S | Skip]:
        """What a plan says of its subjects, by first name, in their order and with costs worked out anew.

        ``scan`` is the network as the swaps of earlier rules leave it.  Raises ``PlanError`` for a plan of another
        network and for what cannot be built.
        """

    def touches(self, swap: S, scan: Scan) -> Sequence[str]:
        """The modules that it replaces or changes, with all that lies in them."""
        return swap.touches

    def require_kept(self, swap: S, scan: Scan, kept: Sequence[str]) -> None:
        """Raise ``PlanError`` for a swap that changes any of the modules a plan excludes."""
        home = next((name for name in kept for module in self.touches(swap, scan) if overlap(name, module)), None)
        if home is not None:
            raise PlanError(f"The plan swaps {swap.target!r}, and its exclude keeps {home!r} as it is; take out one.")

    def after(self, scan: Scan, swaps: Sequence[S]) -> Scan:
        """The network as later rules find it: without the layers that swaps take with them, the others as they become.

        The cost of the whole stays as it was, because a plan adds up what its swaps save.
        """
        return scan

    # -- rewriting ---------------------------------------------------------------------------------------------

    @abstractmethod
    def replacements(self, original: Original, swaps: Sequence[S], memo: Mapping[int, Any]) -> dict[int, Any]:
        """By the ``id`` of what its swaps replace (modules, parameters), what takes its place.

        ``memo`` holds what earlier swaps put in place, under the same ids: a rule that ``opens`` its blocks to later
        ones leaves the narrower layers there.  Raises ``RewriteError`` when the result does not do what it should.
        """

    def counted(self, swap: S, before: Scan, after: Scan) -> Cost | None:
        """What the swap's ``after`` promises, by count in the rewritten network, with all that was done inside; None
        where it shares layers with others, so that only the whole can be counted.
        """
        return after.within(swap.target)

    # -- fitting -----------------------------------------------------------------------------------------------

    @abstractmethod
    def origins(self, found: Origins, original: Original, swaps: Sequence[S], module: nn.Module) -> None:
        """Add to ``found`` where the weights of what its swaps made in the rewritten ``module`` come from."""

    def split(self, swap: S, traced: Traced) -> Split | None:
        """How a layer's maps are split into intrinsic ones and ghosts, where images may choose which are which."""
        return None

    # -- reporting ---------------------------------------------------------------------------------------------

    @abstractmethod
    def report(self, rows: Rows, swaps: Sequence[S], before: Scan, after: Scan) -> None:
        """Add the rows of its swaps to those of a report, and what theory promises.

        ``before`` is the network as the swaps of earlier rules leave it, ``after`` that in which all are made.
        """


def unknown(target: str, scan: Scan, known: Mapping[str, str], what: str = "") -> PlanError:
    """That a plan names something which a network does not have, with the nearest name."""
    return PlanError(
        f"The plan names {what}{target!r}, which {scan.network} does not have.{did_you_mean(target, known)}"
    )


def require_geometry(swap: Swap, geometry: str, scan: Scan) -> None:
    """Refuse a swap that was planned for a subject of other sizes."""
    if swap.geometry != geometry:
        raise PlanError(
            f"The plan was made for another network: {swap.target!r} is {geometry} in {scan.network}, "
            f"and {swap.geometry} in the plan."
        )


def require_possible(swap: Swap, obstacle: str | None) -> None:
    """Refuse a swap of what cannot be rewritten."""
    if obstacle:
        raise PlanError(f"{swap.target} cannot be swapped: it {obstacle}.")
