"""A recipe tried out: carried out on synthetic images by a few steps, so that what is wrong with it shows in a minute.

All is done that the recipe says, but for what takes long or is not at hand: weights are random and not fitted, nothing
is timed, batches are small and few, and no budget is met.  A recipe that trains nothing is planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ghostify.experiment import compress, propose, train
from ghostify.finetuning import Epoch, History, Progress, Step
from ghostify.recipe import Recipe, make_recipe

BATCH = 4
"""Images of a step."""


def try_out(recipe: Recipe, steps: int, verb: str) -> int:
    """Carry out ``recipe`` by ``verb`` on synthetic images, and tell how many training steps were really taken.

    Raises what carrying it out raises.
    """
    small, watcher = shrunk(recipe, steps), _Counting()
    if not any(part and part.epochs for part in (small.pretrain, small.finetune)):
        propose(small, watcher)
        return 0
    with TemporaryDirectory() as folder:
        carry_out = train if verb == "finetune" else compress
        carry_out(small, Path(folder), watcher)
    return watcher.steps


def shrunk(recipe: Recipe, steps: int) -> Recipe:
    """The recipe on synthetic images, without weights, a fit or a clock, and with so many steps in its epochs."""
    values = recipe.model_dump(exclude_unset=True)
    values["model"] = {key: value for key, value in values["model"].items() if not key.startswith("weights")}
    values["data"] = {"source": "fake", "batch_size": BATCH, "limit": BATCH * steps, "hold_out": 0}
    for name in ("pretrain", "finetune"):
        if values.get(name):
            values[name] = _short(values[name], recipe.data.batch_size if recipe.data else BATCH)
    # harm is measured for minutes to plan for a budget, and nobody looks at the plan: its target is read, no more
    values["budget"] = {"measure": False}
    values["fit"] = {"how": "none"}
    return make_recipe({**values, "device": "cpu"}, where=f"Recipe {recipe.name!r}, tried out")


def _short(training: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """The settings of a training run of one epoch, taught by the original if by anybody."""
    kept = {key: value for key, value in training.items() if key not in ("teacher", "teacher_weights")}
    if isinstance(kept.get("lr"), float):
        # a rate goes with its batch (Goyal et al., 2017): that of 1,024 images is too much for a step of a few
        kept["lr"] = kept["lr"] * BATCH / max(BATCH, batch_size)
    return {**kept, "epochs": min(1, kept.get("epochs", 1))}


class _Counting:
    """Somebody who watches in silence, and counts the steps of training."""

    def __init__(self) -> None:
        self.steps = 0

    def say(self, text: str) -> None: ...

    def training(self) -> Progress:
        return self

    @contextmanager
    def counting(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: None

    def start(self, total_steps: int, title: str) -> None: ...

    def step(self, step: Step) -> None:
        self.steps += 1

    def epoch(self, epoch: Epoch, history: History) -> None: ...

    def done(self) -> None: ...
