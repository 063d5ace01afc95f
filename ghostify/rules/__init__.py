"""The rewrite rules, one file each, and the registry from which plans, rewriting, fitting and reports are derived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union

from pydantic import Discriminator, Tag

from ghostify.rules import c_ghost, g_ghost, thin, width
from ghostify.rules.base import Skip, Swap
from ghostify.rules.c_ghost import CGhostSwap
from ghostify.rules.g_ghost.swap import GGhostSwap
from ghostify.rules.protocol import Choices, Needs, Original, Rule
from ghostify.rules.thin import ThinSwap
from ghostify.rules.width import WidthSwap
from ghostify.settings import tag

__all__ = [
    "RULES",
    "AnySwap",
    "CGhostSwap",
    "Choices",
    "GGhostSwap",
    "Needs",
    "Original",
    "Rule",
    "Skip",
    "Swap",
    "ThinSwap",
    "WidthSwap",
    "by_rule",
    "c_ghost",
    "g_ghost",
    "in_order",
    "rule_of",
    "thin",
    "width",
]

RULES: tuple[Rule[Any], ...] = (width.WidthRule(), thin.ThinRule(), g_ghost.GGhostRule(), c_ghost.CGhostRule())
"""In the order in which they propose and build: a rule of larger things before one of what may lie in them."""

_BY_NAME = {rule.name: rule for rule in RULES}
_Swap = TypeVar("_Swap", bound=Swap)


def rule_of(swap: Swap) -> Rule[Any]:
    """The rule that a swap is of."""
    return _BY_NAME[swap.rule]


def in_order(swaps: Sequence[_Swap]) -> list[_Swap]:
    """Swaps in the order of their rules, those of one rule as they come."""
    places = {name: place for place, name in enumerate(_BY_NAME)}
    return sorted(swaps, key=lambda swap: places[swap.rule])


def by_rule(swaps: Sequence[_Swap]) -> list[tuple[Rule[Any], list[_Swap]]]:
    """The rules that have swaps among these, in their order, each with its own."""
    found = [(rule, [swap for swap in swaps if swap.rule == rule.name]) for rule in RULES]
    return [(rule, own) for rule, own in found if own]


def _named_rule(value: Any) -> str:
    """The rule a swap names; a C-Ghost swap need not."""
    return tag(str(value.get("rule", "c-ghost") if isinstance(value, dict) else value.rule))


if TYPE_CHECKING:
    AnySwap = Swap
else:
    _KINDS = tuple(Annotated[rule.swap, Tag(tag(rule.name))] for rule in RULES)
    AnySwap = Annotated[Union[_KINDS], Discriminator(_named_rule)]  # noqa: UP007 - the rules are known at run time
"""A swap as a plan's file holds it, of whichever rule."""
