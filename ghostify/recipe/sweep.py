"""The settings of a sweep: which targets, and what stands beside them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from ghostify.errors import RecipeError
from ghostify.settings import Settings
from ghostify.targets import Quantity, Target

_WANTED = "write shares of the original, as in 0.8x,0.6x,0.4x"


def _parted(value: Any) -> Any:
    """What is typed in one word with commas, or said several times, as one list."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        return value
    return tuple(part.strip() for text in texts for part in str(text).split(",") if part.strip())


def _shares(texts: tuple[str, ...]) -> tuple[str, ...]:
    if not texts:
        raise ValueError(f"there is no target; {_WANTED}")
    for text in texts:
        try:
            relative = Target.read(f"macs={text}").relative
        except RecipeError as problem:
            raise ValueError(f"{str(problem).removesuffix('.')}; {_WANTED}") from None
        if not relative:
            raise ValueError(f"{text!r} is an amount; {_WANTED}")
    return tuple(dict.fromkeys(texts))


class SweepSettings(Settings):
    """Which networks are made and measured side by side."""

    word = "targets"

    targets: Annotated[
        tuple[str, ...],
        BeforeValidator(_parted),
        AfterValidator(_shares),
        Field(description="what the networks are to cost, in shares of what the original costs, as in 0.8x,0.6x,0.4x"),
    ] = ("0.8x", "0.6x", "0.4x")
    of: Annotated[
        Quantity, Field(description="what that is a share of: latency, macs, params, activations or size")
    ] = "latency"
    neighbours: Annotated[
        bool,
        Field(
            description="whether networks that a person would set by hand stand beside the planned ones: ghosts of one "
            "ratio s, thinner blocks, narrower layers"
        ),
    ] = True

    @property
    def asked(self) -> tuple[Target, ...]:
        """The targets as values."""
        return tuple(Target.read(f"{self.of}={share}") for share in self.targets)
