"""The settings of a budget: what the network may cost, or what it must keep, and on what its time is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator

from ghostify.effects import With
from ghostify.errors import RecipeError
from ghostify.settings import Settings
from ghostify.targets import Floor, Target


@contextmanager
def _as_value_error() -> Iterator[None]:
    """What is wrong with a value, as pydantic wants to be told."""
    try:
        yield
    except RecipeError as problem:
        raise ValueError(str(problem).removesuffix(".")) from None


def _target(value: Any) -> Target:
    with _as_value_error():
        return Target.of(value)


def _floor(value: Any) -> Floor | None:
    with _as_value_error():
        return None if value is None else Floor.of(value)


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, (str, Target)) else value


RuntimeName = Literal["eager", "compile", "onnxruntime", "openvino"]
BudgetTarget = Annotated[Target, PlainValidator(_target), PlainSerializer(str)]
"""A target, written and read as a person writes it."""
BudgetFloor = Annotated[Floor | None, PlainValidator(_floor), PlainSerializer(lambda floor: floor and str(floor))]
_UNTARGETED = With("target", ((),), choose="one of the two")
_MEASURED = With("measure", (True,), choose="measure yes, as in --measure")


class BudgetSettings(Settings):
    """What the network may cost, or what it must keep; without either, what is proposed is only kept from losing."""

    word = "target"

    target: Annotated[
        tuple[BudgetTarget, ...],
        BeforeValidator(_one_or_many),
        Field(
            description="what the network is to cost, as in latency=0.5x (of the original's), latency=12ms, macs=0.5x, "
            "params=3M, activations=0.7x or size=20MB; the plan of least harm that meets all targets is made"
        ),
    ] = ()
    keep: Annotated[
        BudgetFloor,
        Field(
            description="what the network is to keep, as in 0.99 (of 100 images, 99 get the original's answer) or "
            "accuracy=-1.0 (at most one point lower); the cheapest plan that is expected to keep it is made"
        ),
        _UNTARGETED,
    ] = None
    runtime: Annotated[
        RuntimeName, Field(description="what time is measured on: eager, compile, onnxruntime or openvino"), _MEASURED
    ] = "eager"
    batch: Annotated[int, Field(ge=1, description="samples in a forward pass that is timed"), _MEASURED] = 1
    threads: Annotated[int, Field(ge=1, description="CPU threads of a forward pass that is timed"), _MEASURED] = 1
    measure: Annotated[
        bool,
        Field(description="whether time decides: what would be slower on the runtime is left as it is"),
    ] = True
    trials: Annotated[
        bool,
        Field(
            description="whether networks of each kind of swap alone are fitted first, by which the harms of that kind "
            "are corrected; a plan of two kinds then takes three fits in place of one"
        ),
    ] = True

    @property
    def asked(self) -> bool:
        """Whether there is a budget at all."""
        return bool(self.target) or self.keep is not None

    @property
    def timed(self) -> tuple[Target, ...]:
        """The targets of time."""
        return tuple(target for target in self.target if target.quantity == "latency")

    def require_clock(self) -> None:
        """Raise ``RecipeError`` for a target of time where nothing is to be measured; never dropped in silence."""
        if self.timed and not self.measure:
            raise RecipeError(
                f"budget.target = {self.timed[0]} asks for time, and measure is no (--no-measure, or "
                "GHOSTIFY_MEASURE=0); choose measure yes, as in --measure."
            )
