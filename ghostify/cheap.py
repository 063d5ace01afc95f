"""The cheap operation of a C-Ghost module as a value: what makes its n − m ghost maps of the m intrinsic maps Y'.

    depthwise d                 y_j = k_j ∗ Y'_i         a filter of size d on the ghost's own intrinsic map (Eq. 3)
    pointwise                   y_j = P_j · Y'           a 1x1 convolution over all of them, P (n−m, m)
    pointwise r                 P = A·B of rank r        (N, m, …) → (N, r, …) → (N, n−m, …)
    depthwise d + pointwise r   y_j = k_j ∗ Y'_i + P_j · Y'

The papers' is depthwise: ratio s makes s−1 filters for each intrinsic map, m·(s−1) ghosts of which the slice to n maps
drops the last.  A pointwise convolution makes n − m ghosts and no more.  It is the papers' Φ all the same, a linear
operation on intrinsic maps that costs little beside the primary convolution; of its own it is what low-rank
decomposition makes of a layer (Zhang et al. 2015), with the first m rows of the second factor the identity.

The value is written as above wherever a person meets it: in settings, plans and recipes, and on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ghostify.errors import PlanError, did_you_mean

Rank = int | Literal["full"]

USUAL = 3
"""The kernel size d where none is said."""
_GRAMMAR = "depthwise 3, pointwise, pointwise 8 (of rank 8), or depthwise 3 + pointwise"
_PART = re.compile(r"(depthwise|pointwise)(?:[ =:]*(\d+))?")


class Work(NamedTuple):
    """What a cheap operation costs for each position of the maps."""

    filters: int
    """Weights of its depthwise filters."""
    mixing: int
    """Weights of its pointwise convolution."""
    biases: int
    """Its biases, where the convolution that it stands for has them."""
    outputs: int
    """Numbers that its convolutions give out."""
    moved: int
    """Numbers that are read and written for it and to put its maps behind the intrinsic ones."""

    @property
    def weights(self) -> int:
        """All its weights, which are its multiply-adds, too."""
        return self.filters + self.mixing


@dataclass(frozen=True)
class Cheap:
    """A cheap operation: a depthwise filter of size ``depthwise``, a pointwise convolution of a rank, or both.

    None stands for what there is not.  Raises ``PlanError`` for neither, an even size or a rank below 1.
    """

    depthwise: int | None = None
    pointwise: Rank | None = None

    def __post_init__(self) -> None:
        if self.depthwise is None and self.pointwise is None:
            raise PlanError(f"A C-Ghost module needs a cheap operation, which makes its ghosts; write {_GRAMMAR}.")
        if self.depthwise is not None:
            require_odd(self.depthwise)
        if self.pointwise is not None and self.pointwise != "full" and self.pointwise < 1:
            raise PlanError(f"pointwise {self.pointwise}: the rank must be 1 or more.")

    @classmethod
    def read(cls, text: str) -> Cheap:
        """The value that ``str`` writes, in any order and with the usual d where none is said.

        Raises ``PlanError`` with the grammar, and what is near, for anything else.
        """
        found: dict[str, Any] = {}
        for part in text.lower().split("+"):
            match = _PART.fullmatch(part.strip())
            if match is None or match[1] in found:
                raise PlanError(f"cheap = {text!r}: it is no cheap operation; write {_GRAMMAR}.{_near(part)}")
            usual: Rank = USUAL if match[1] == "depthwise" else "full"
            found[match[1]] = int(match[2]) if match[2] else usual
        return cls(**found)

    @classmethod
    def of(cls, value: Cheap | str) -> Cheap:
        """A value, or what one is written as."""
        return value if isinstance(value, Cheap) else cls.read(str(value))

    @classmethod
    def of_numbers(cls, d: int, rank: int) -> Cheap:
        """The value that older plans tell by two numbers: filters of size d, and a rank, 0 for no pointwise one."""
        if rank < 0:
            raise PlanError(f"pointwise = {rank}: the rank must be 0 (no pointwise convolution) or more.")
        return cls(d, rank or None)

    def __str__(self) -> str:
        parts = [] if self.depthwise is None else [f"depthwise {self.depthwise}"]
        if self.pointwise is not None:
            parts.append("pointwise" if self.pointwise == "full" else f"pointwise {self.pointwise}")
        return " + ".join(parts)

    @property
    def short(self) -> str:
        """As a table shows it: ``d=3``, ``pw``, ``pw8``, ``d=3 pw``."""
        parts = [] if self.depthwise is None else [f"d={self.depthwise}"]
        if self.pointwise is not None:
            parts.append("pw" if self.pointwise == "full" else f"pw{self.pointwise}")
        return " ".join(parts)

    @property
    def d(self) -> int:
        """The size of what it looks at in a map: that of its filters, or 1."""
        return self.depthwise or 1

    # -- the pointwise convolution ------------------------------------------------------------------------------

    def rank(self, n: int, m: int) -> int:
        """The rank of P between m intrinsic maps and n − m ghosts; 0 where there is none."""
        if self.pointwise is None:
            return 0
        full = min(m, n - m)
        return full if self.pointwise == "full" else min(self.pointwise, full)

    def factored(self, n: int, m: int) -> int:
        """The rank where P is kept as A·B, of rank·n weights; 0 where there is none or a full P costs no more."""
        rank = self.rank(n, m)
        return rank if rank * n < m * (n - m) else 0

    def mixes_freely(self, n: int, m: int) -> bool:
        """Whether any m maps can be turned into any others, so that it does not matter which are intrinsic."""
        return self.pointwise is not None and not self.factored(n, m)

    def for_width(self, n: int, m: int) -> Cheap:
        """The same operation with a rank that costs no less than a full P called full."""
        return Cheap(self.depthwise, "full") if self.mixes_freely(n, m) else self

    # -- what it costs, and what it is made of ------------------------------------------------------------------

    def work(self, n: int, m: int, s: int, dimensions: int = 2) -> Work:
        """What it costs between m intrinsic maps and n outputs, in maps of so many dimensions."""
        made = 0 if self.depthwise is None else m * (s - 1)
        filters = made * self.d**dimensions
        r, left = self.factored(n, m), n - m
        if self.pointwise is None:
            return Work(filters, 0, made, made, 2 * made + m * s + n)
        mixing = r * n if r else m * left
        if self.depthwise is None:
            # P reads m maps (and its factors r between), writes the ghosts; the concatenation reads and writes all.
            return Work(0, mixing, left, r + left, m + 2 * r + left + 2 * n)
        # The sum of both reads 2·(n−m) maps and writes n−m, after P has written as many.
        return Work(filters, mixing, made, made + r + left, 2 * made + m * s + n + m + 2 * r + 4 * left)

    def filters(self, conv: Callable[..., Any], m: int, s: int, bias: bool, **place: Any) -> list[Any]:
        """Its s−1 depthwise convolutions m → m, made by the class ``conv``; none where it has no filters."""
        if self.depthwise is None:
            return []
        fields = {"padding": self.d // 2, "groups": m, "bias": bias}
        return [conv(m, m, self.d, **fields, **place) for _ in range(s - 1)]

    def mixing(self, conv: Callable[..., Any], n: int, m: int, bias: bool, **place: Any) -> list[Any]:
        """The 1x1 convolutions of P, m → n−m or m → r → n−m; none where it has no P.  Filters beside it have biases."""
        if self.pointwise is None:
            return []
        biased = bias and self.depthwise is None
        if r := self.factored(n, m):
            return [conv(m, r, 1, bias=False, **place), conv(r, n - m, 1, bias=biased, **place)]
        return [conv(m, n - m, 1, bias=biased, **place)]

    # -- what it cannot be combined with ------------------------------------------------------------------------

    def require(self, groups: int, linear: bool) -> None:
        """Raise ``PlanError`` where it has a pointwise convolution that groups, or norms in the parts, rule out."""
        if self.pointwise is None:
            return
        if groups > 1:
            raise PlanError(
                f"cheap = {self}: a 1x1 convolution over all maps would join its {groups} groups; "
                f"write depthwise {self.depthwise or USUAL}."
            )
        if not linear:
            raise PlanError(
                f"cheap = {self}: a pointwise convolution goes with linear parts only, and these have a normalisation "
                f"or an activation of their own; write depthwise {self.depthwise or USUAL}."
            )


def require_odd(d: int) -> None:
    """Raise ``PlanError`` unless filters of size d keep a map's size."""
    if d < 1 or d % 2 == 0:
        near = f"{d - 1} or {d + 1}" if d > 1 else "1 or 3"
        raise PlanError(f"cheap kernel d = {d}: it must be odd, so that it keeps the map's size; try {near}.")


def by_one_word(values: Any) -> Any:
    """What a file of an older version tells by a size ``d`` and a rank ``pointwise`` (0 for none), by ``cheap``."""
    if not isinstance(values, dict) or "d" not in values or "cheap" in values:
        return values
    others = {key: value for key, value in values.items() if key not in ("d", "pointwise")}
    rank = values.get("pointwise", 0)
    return others | {"cheap": f"depthwise {values['d']}" + (f" + pointwise {rank}" if rank else "")}


def _near(part: str) -> str:
    """A suggestion for what was typed in place of a form's name."""
    words = part.split()
    return did_you_mean(words[0], ("depthwise", "pointwise")) if words else ""
