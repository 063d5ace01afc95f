"""Patterns of module names in one network: what they mean there, and the refusal of those that mean nothing.

A pattern is a module's name, or a glob of names, and means all that lies in the modules it names, under any of their
names.  A stage is meant by its own name, or where all its modules are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ghostify.errors import PlanError, did_you_mean
from ghostify.names import is_named, matches, prefixes, within
from ghostify.recipe import GhostSettings, Recipe
from ghostify.scanning import Scan
from ghostify.stages import Stage


def require_matches(scan: Scan, option: str, patterns: Sequence[str]) -> None:
    """Raise ``PlanError`` for a pattern of ``option`` that names nothing, with the nearest name."""
    for pattern in patterns:
        if not _is_known(scan, pattern):
            near = did_you_mean(pattern, _known(scan))
            raise PlanError(f"{option} {pattern!r} matches no layer or stage of {scan.network}.{near}")


def require_all_match(scan: Scan, settings: GhostSettings) -> None:
    """The same for every pattern of settings."""
    for option in ("include", "exclude", "set"):
        require_matches(scan, option, tuple(getattr(settings, option)))


def spelled_out(scan: Scan, patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns with a stage that only its first and last block name (``a..b``) written as the modules it is."""
    return tuple(name for pattern in patterns for name in _spelled_out(scan.stages, pattern))


def meant(scan: Scan, patterns: Sequence[str]) -> tuple[str, ...]:
    """The modules that patterns mean, by all their names; what lies in another is not told."""
    patterns = spelled_out(scan, patterns)
    everything = [*scan.modules, *(site.names for site in scan.sites)]
    found = [names for names in everything if any(matches(name, p) for name in names for p in patterns)]
    return tuple(_outermost(name for names in found for name in names))


def _is_known(scan: Scan, pattern: str) -> bool:
    names = (name for names in scan.modules for name in names)
    known = any(matches(name, pattern) for name in names) or any(site.matches(pattern) for site in scan.sites)
    return known or any(is_named(stage.name, pattern) for stage in scan.stages)


def _known(scan: Scan) -> list[str]:
    """What may have been meant: layers first, and everything they stand in; then all modules, and settings."""
    layers = [*prefixes(name for site in scan.sites for name in site.names), *(stage.name for stage in scan.stages)]
    return [*layers, *(name for names in scan.modules for name in names), *Recipe.model_fields]


def _spelled_out(stages: Sequence[Stage], pattern: str) -> list[str]:
    rows = [stage for stage in stages if ".." in stage.name and is_named(stage.name, pattern)]
    return [pattern, *(module for stage in rows for module in stage.modules)]


def _outermost(names: Iterator[str]) -> Iterator[str]:
    """Names, without those that lie in another of them."""
    last: str | None = None
    for name in sorted(set(names), key=lambda name: name.split(".") if name else []):
        if last is None or not within(name, last):
            last = name
            yield name
