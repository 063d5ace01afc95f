"""A layer's maps divided into intrinsic maps and the ghosts of each, best first: where a search for an order begins.

Of all pairs, the one with the smallest error makes a map a ghost of another; a map that has ghosts stays intrinsic, and
takes as many as its group has room for.  What is left over goes where there is room.
"""

from __future__ import annotations

import numpy as np

_CANDIDATES = 16
"""Intrinsic maps looked at for each ghost."""


def split(errors: np.ndarray, parts: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Whose map stands at each place, (n,), so that ghosts stand where those of their intrinsic map do.

    ``errors`` (n, n): of row i as the intrinsic map of column j.  ``parts`` (s, m): the place of each map of each part,
    -1 for none.  ``classes`` (n,): maps stay among places of their class.
    """
    content = np.arange(len(errors))
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        columns = np.flatnonzero(classes[parts[0]] == label)
        inside = parts[:, columns]
        if len(members) == (inside >= 0).sum():  # else a group would reach into another class
            _split(errors[np.ix_(members, members)], members, inside, content)
    return content


def _split(errors: np.ndarray, members: np.ndarray, parts: np.ndarray, content: np.ndarray) -> None:
    """Fill the places of one class with its ``members``."""
    m = parts.shape[1]
    room = np.sort((parts[1:] >= 0).sum(0))[::-1]
    owned, ghosts = _pairs(errors, m, int(room[0]))
    # What nobody makes well comes first, so that it is an intrinsic map if more of these are wanted.
    rest = [j for j in np.argsort(-_best(errors)) if j not in owned and j not in ghosts]
    while len(owned) < m:
        owned[int(rest.pop(0))] = []
    # Where groups differ in size, the maps with most ghosts get those with most room.
    heads = sorted(owned, key=lambda head: -len(owned[head]))
    groups = np.argsort(-(parts[1:] >= 0).sum(0), kind="stable")
    for head, size in zip(heads, room, strict=True):
        rest += owned[head][size:]
        del owned[head][size:]
    free = np.array([size - len(owned[head]) for head, size in zip(heads, room, strict=True)])
    for ghost in rest:
        chosen = int(np.argmin(np.where(free > 0, errors[heads, ghost], np.inf)))
        owned[heads[chosen]].append(int(ghost))
        free[chosen] -= 1
    for head, group in zip(heads, groups, strict=True):
        for place, one in zip(parts[:, group], (head, *owned[head]), strict=False):
            content[place] = members[one]


def _pairs(errors: np.ndarray, m: int, room: int) -> tuple[dict[int, list[int]], set[int]]:
    """The ghosts of each intrinsic map, at most ``room`` of each and n−m in all, and all of them together."""
    n = len(errors)
    owned: dict[int, list[int]] = {}
    ghosts: set[int] = set()
    count = min(_CANDIDATES, n - 1)
    if not count or not room:
        return owned, ghosts
    others = errors + np.where(np.eye(n, dtype=bool), np.inf, 0)
    # Sorting all n² pairs is what takes time in wide layers, and only near ones are ever chosen.
    near = np.argpartition(others, count - 1, axis=0)[:count]
    order = np.argsort(np.take_along_axis(others, near, 0), axis=None, kind="stable")
    for head, ghost in zip(near.flatten()[order].tolist(), (order % n).tolist(), strict=True):
        taken = ghost in owned or ghost in ghosts or head in ghosts or len(ghosts) >= n - m
        if taken or len(owned.get(head, ())) >= room or (head not in owned and len(owned) >= m):
            continue
        owned.setdefault(head, []).append(ghost)
        ghosts.add(ghost)
    return owned, ghosts


def _best(errors: np.ndarray) -> np.ndarray:
    """By map, the smallest error it has as a ghost of another, (n,)."""
    best: np.ndarray = (errors + np.where(np.eye(len(errors), dtype=bool), np.inf, 0)).min(0, initial=np.inf)
    return best
