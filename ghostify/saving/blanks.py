"""The network a source builds, rewritten as a plan says, with weights that mean nothing yet: what a run is read into.

A run is called saved only after its files were read back into such a blank and gave the network that was saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ghostify.errors import RunError
from ghostify.inference import Change, optimized_blank
from ghostify.planning import Plan
from ghostify.recipe import ModelSettings
from ghostify.rewriting import Ghosted, in_place, rebuilt
from ghostify.running import quiet, random_states_kept, seed
from ghostify.running.agreement import REPEATED, agree
from ghostify.saving.weights import (
    Weights,
    differing,
    put_weights,
    read_weights,
    require_fit,
    weights_of,
)
from ghostify.scanning.form import Form, example_for
from ghostify.sources import build_model
from ghostify.tracing import call_arguments, private_copy, tensors_in

_MISFIT = (RuntimeError, SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError)
"""What reading a file of weights may raise when it is damaged or another network's."""


_ELSEWHERE = 8_675_309
"""A random state that nobody else begins at."""


@dataclass
class Blank:
    """A network before and after a plan's swaps."""

    original: nn.Module
    module: nn.Module
    plan: Plan
    built_by: str
    """Who builds the original, as an error names them."""
    changes: tuple[Change, ...] | None = None
    """What brought ``module`` into its inference form; None where it is not in it."""


def blank_from_source(source: ModelSettings, plan: Plan, form: Form, optimized: bool = False) -> Blank:
    """The blank of a source, at a random state of its own, as another process would build it.

    Raises ``ModelError`` and what rewriting raises; leaves random states as they were.
    """
    with random_states_kept(torch.device("cpu")):
        torch.default_generator.manual_seed(_ELSEWHERE)
        return blank_from(build_model(source, pretrained=False), plan, form, repr(source.source), optimized=optimized)


def blank_from(
    original: nn.Module, plan: Plan, form: Form, built_by: str, example: Any = None, *, optimized: bool = False
) -> Blank:
    """The blank of a module, which stays as it is; ``form`` is that of the input it was recorded on.

    One that is ``optimized`` is in its inference form, which follows from its structure as a swap from the plan.
    """
    given = example_for(original, form) if example is None else example
    module = rebuilt(original, plan, given)
    if not optimized:
        return Blank(original, module, plan, built_by)
    module, changes = optimized_blank(module, plan, given)
    return Blank(original, module, plan, built_by, changes)


def can_rebuild(plan: Plan, form: Form, optimized: bool = False) -> bool:
    """Whether a network can be rewritten again without an example from its user."""
    return bool(form.kinds) or (in_place(plan.swaps) and not optimized)


def require_alike(module: nn.Module, built: nn.Module, built_by: str) -> None:
    """Refuse a network of other tensors than the one that its source builds."""
    try:
        require_fit(built, weights_of(module))
    except ValueError as problem:
        raise cannot_rebuild(built_by, problem) from None


def fill(module: nn.Module, path: Path, built_by: str) -> Weights:
    """Put the weights of a file into a module; what the file holds.  Raises ``RunError`` where they do not fit."""
    try:
        weights = read_weights(path)
        put_weights(module, weights)
    except _MISFIT as problem:
        reason = " ".join(str(problem).split())[:300]
        raise RunError(f"{str(path)!r} does not fit the network that {built_by} builds: {reason}.") from None
    return weights


def require_readable(path: Path, module: nn.Module, into: nn.Module | None, built_by: str) -> None:
    """Read weights back into a blank, and refuse them where they are not the bits of the module they came from."""
    weights = fill(into, path, built_by) if into is not None else read_weights(path)
    for holder in (module, into):
        wrong = differing(holder, weights) if holder is not None else None
        if wrong is not None:
            raise RunError(
                f"{wrong!r} does not come back as it was saved; this is a defect of ghostify, please report it."
            )


def require_same_outputs(ghosted: Ghosted, blank: Blank) -> None:
    """Refuse a run whose weights come back and whose outputs do not: it keeps numbers that are no parameter or buffer.

    Compared where the network runs on a made-up input on the CPU; it is run as a copy, since running may change it.
    """
    form = Form.of_scan(ghosted.before)
    if not form.kinds or any(tensor.device.type != "cpu" for tensor in ghosted.module.parameters()):
        return
    with quiet(), random_states_kept(torch.device("cpu")):
        seed()
        example = example_for(ghosted.module, form, random=True)
        try:
            wanted = _outputs(ghosted.module, example)
        except Exception:  # made-up numbers need not be what a user's code takes
            return
        try:
            found = _outputs(blank.module, example)
        except Exception as problem:
            raise RunError(_other_course(ghosted, blank, f"fails: {' '.join(str(problem).split())[:200]}")) from None
    pairs = zip(wanted, found, strict=False)
    if len(wanted) != len(found) or not all(agree(one, other, REPEATED) for one, other in pairs):
        raise RunError(_other_course(ghosted, blank, "gives other outputs with the same weights"))


def _outputs(module: nn.Module, example: Any) -> list[torch.Tensor]:
    seed()
    args, kwargs = call_arguments(example)
    return tensors_in(private_copy(module, share_parameters=False).eval()(*args, **kwargs))


def _other_course(ghosted: Ghosted, blank: Blank, what: str) -> str:
    return (
        f"The run would not come back: the {type(ghosted.module).__name__} that {blank.built_by} builds {what}. What a "
        "network computes with must be in parameters or buffers, or be made alike whenever it is built."
    )


def cannot_rebuild(built_by: str, problem: Exception) -> RunError:
    """Why a run would not come back, when its network is not what its source builds."""
    reason = str(problem).removesuffix(".")
    return RunError(
        f"The run would not come back: {built_by} does not build the network that was rewritten ({reason}). Say how it "
        'was made: model=ModelSettings(source=..., args={"num_classes": 10}), or a package.module:function; or leave '
        "model out, and give load(folder, model=...) the original."
    )
