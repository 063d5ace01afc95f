"""Qualified names of modules: ``a.b.c`` lies in ``a.b``; the root is ``""``.

A pattern is a name or a glob of names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase


def ancestors(name: str) -> list[str]:
    """A module's name and those of all modules around it, the innermost first, the root (``""``) last."""
    parts = name.split(".") if name else []
    return [".".join(parts[:end]) for end in range(len(parts), -1, -1)]


def parent_of(name: str) -> str:
    return name.rpartition(".")[0]


def child_of(name: str, home: str) -> str | None:
    """The child of ``home`` that ``name`` is or lies in; None for ``home`` itself."""
    if name == home:
        return None
    depth = home.count(".") + 1 if home else 0
    return ".".join(name.split(".")[: depth + 1])


def within(name: str, home: str) -> bool:
    return not home or name == home or name.startswith(f"{home}.")


def is_named(name: str, pattern: str) -> bool:
    """Whether a pattern is this name or a glob of it; a name may hold characters that a glob takes for its own."""
    return name == pattern or fnmatchcase(name, pattern)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern means ``name``: it names that itself or a module around it, which is all that is in it."""
    calling = name.rpartition(":")[0]  # a function call, as in layer1.0:conv2d, lies in the module it runs in
    around = dict.fromkeys([*ancestors(name), *ancestors(calling)])
    return any(is_named(module, pattern) for module in around)


def common(names: Iterable[str]) -> str:
    """The innermost module around all of ``names``."""
    first, *others = [name.split(".") for name in set(names)]
    shared = len(first)
    for parts in others:
        shared = next(
            (i for i, (a, b) in enumerate(zip(first[:shared], parts, strict=False)) if a != b), min(shared, len(parts))
        )
    return ".".join(first[:shared])


def overlap(one: str, other: str) -> bool:
    """Whether one of two modules is the other or lies in it."""
    return within(one, other) or within(other, one)


def prefixes(names: Iterable[str]) -> Iterator[str]:
    """The names and every module they stand in: ``a.b.c`` gives ``a``, ``a.b`` and ``a.b.c``."""
    for name in names:
        yield from reversed(ancestors(name)[:-1])
