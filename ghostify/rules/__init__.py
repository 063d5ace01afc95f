"""The rewrite rules, one file each, by the name a plan calls them."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from ghostify.costs import Cost
from ghostify.recipe import GhostSettings
from ghostify.rules import c_ghost
from ghostify.rules.base import Skip, Swap
from ghostify.scanning import Site


class Rule(Protocol):
    """When a rewrite applies, what it costs, what it builds."""

    def propose(self, site: Site, settings: GhostSettings) -> Swap | Skip: ...

    def predict(self, site: Site, swap: Swap) -> Cost: ...

    def build(self, module: nn.Module, swap: Swap) -> nn.Module: ...


RULES: dict[str, Rule] = {"c-ghost": c_ghost}

__all__ = ["RULES", "Rule", "Skip", "Swap"]
