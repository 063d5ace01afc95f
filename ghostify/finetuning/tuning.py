"""``finetune``: a network, data and settings made ready, and then trained by the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from ghostify.arguments import network, or_none, takes
from ghostify.batches import move
from ghostify.errors import DataError, GhostifyError, RecipeError, RunError
from ghostify.finetuning.averaging import Average
from ghostify.finetuning.checkpoint import RunState
from ghostify.finetuning.distilling import Teacher, places_for
from ghostify.finetuning.engine import Engine
from ghostify.finetuning.feeding import Feed, TrainingData
from ghostify.finetuning.history import Epoch, History, Step
from ghostify.finetuning.layout import laid_out, with_layout
from ghostify.finetuning.loop import Progress, Training
from ghostify.finetuning.losses import OwnLoss
from ghostify.finetuning.measures import Measure, usual
from ghostify.finetuning.objective import Objective, require_compilable
from ghostify.finetuning.optimizers import frozen, make_optimizer, swapped_in
from ghostify.inference import Optimized, optimize
from ghostify.measuring.borrowing import Device, device_for, on_device
from ghostify.processes import group, make_alike
from ghostify.recipe import TrainSettings, make_settings
from ghostify.rewriting import Ghosted
from ghostify.running import as_called, random_states_kept, undisturbed


@takes(teacher=or_none(network))
@undisturbed()
@as_called()
def finetune(
    model: nn.Module | Ghosted,
    data: TrainingData,
    settings: TrainSettings | Mapping[str, Any],
    *,
    teacher: nn.Module | None = None,
    seed: int = 0,
    device: Device | None = None,
    batch_size: int = 128,
    workers: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    measure: Measure | None = None,
    loss: Callable[..., Any] | None = None,
    known: bool = False,
) -> History:
    """Train ``model`` in place, and leave it with the weights of the best epoch (``History.kept``).

    Best is what the ``measure`` (top-1) says of the images held out: after each epoch, and before the first, so that a
    run that does no good leaves the network as it was.  Where ``data.held_loader`` gives None the last epoch stays.
    ``known`` says that the network may have learned the images held out before, as one that was trained elsewhere on a
    folder that is divided only now: it then knows these better than others, and has to lead by more than 0.75 points of
    top-1 to be left as it was.

    Of a ``Ghosted`` network its module is trained, by default at a rate for one that was fitted, if it was.

    ``loss`` (outputs, labels) → scalar stands in place of the cross entropy, so that networks of any outputs can be
    trained; one of three arguments, (model, inputs, labels), runs the network itself, which may tell its own losses.
    Epochs are then compared by ``measure`` (a ``measuring.Metric``, say), else by the loss where it has two arguments.

    Called in each process of a command that ``torchrun`` or ``accelerate launch`` started, all train one network
    together: ``batch_size`` images are what they take a step on, and the first process alone reads and writes
    ``checkpoint`` and tells ``progress``.

    ``device`` None means where the model is; otherwise the model is moved there (a teacher elsewhere is copied).
    ``teacher`` gives the soft labels, and is used only when ``settings.distill`` > 0.  With a ``checkpoint`` folder,
    the run is put on the disk after each epoch and now and then between, and one that finds a run there goes on from
    it.  What the user froze stays: parameters that require no gradient, the statistics of parts that hold only such,
    and, in a model in train mode, submodules in eval mode.  Afterwards, even after an error, all submodules of both
    networks are in the train or eval modes they had, and the random states of torch, NumPy and Python are what they
    were.  SIGINT and SIGTERM end it, as ``KeyboardInterrupt``, once a step is finished and saved.

    Raises ``RecipeError`` when distilling without a teacher; ``RunError`` for an inference form, and for checkpoints
    that are all damaged, or of other settings, or of another network; ``DataError`` and ``ModelError`` when the
    batches or the outputs are not those of a classifier; ``GhostifyError`` when the loss is no longer finite (the model
    then has the weights of the best epoch before).
    """
    _require_trainable(model)
    module, fitted = (model.module, model.fit is not None) if isinstance(model, Ghosted) else (network(model), False)
    _require_protocol(data)
    settings = make_settings(TrainSettings, settings, {}).resolved(fitted)
    require_compilable(settings)
    here = device_for(module, device)
    processes = group(cpu=here.type == "cpu")
    feed = Feed(data, batch_size, seed, workers, here, processes)
    own = loss if isinstance(loss, OwnLoss) or loss is None else OwnLoss.of(loss)
    state = RunState(settings=settings, seed=seed, batch_size=batch_size, world=processes.world)
    watcher = progress if progress is not None and processes.first else _Silent()
    with ExitStack() as stack:
        stack.callback(watcher.done)
        stack.enter_context(random_states_kept(here))
        stack.enter_context(frozen(module, settings.freeze))
        settings = with_layout(settings, module.to(here), feed)
        stack.enter_context(laid_out(module, settings))
        # before any copy of its weights is made, as the moving average is
        make_alike(module, processes)
        taught = _teacher_of(model, teacher, feed, settings, own)
        objective = Objective(module, settings, here, taught, own)
        swapped = swapped_in(model) if isinstance(model, Ghosted) else ()
        optimizer = make_optimizer(module, settings, swapped)
        stack.enter_context(objective.training())
        average = Average(module, settings.ema) if settings.ema else None
        engine = Engine(objective, optimizer, processes, average)
        folder = checkpoint if processes.first else None
        return Training(engine, feed, state, measure or usual(own), folder, watcher, known).carried_out()


def _require_trainable(model: nn.Module | Ghosted) -> None:
    """Refuse an inference form: its norms are folded, so that training would start from another function's scale."""
    if isinstance(model, Optimized):
        raise RunError(
            f"{type(model.module).__name__} is in its inference form, which is not trained; train the network that it "
            "was made from, and optimize the result."
        )


def _require_protocol(data: Any) -> None:
    for name in ("train_loader", "held_loader"):
        if not callable(getattr(data, name, None)):
            raise DataError(
                f"finetune takes training data with a method {name!r} (see ghostify.finetuning.TrainingData), which "
                f"{type(data).__name__} does not have; ghostify.sources.load_data gives such data."
            )


def _teacher_of(
    model: nn.Module | Ghosted, teacher: nn.Module | None, feed: Feed, settings: TrainSettings, own: OwnLoss | None
) -> Teacher | None:
    """What teaches, at the device of the student, and where its feature maps are compared."""
    if not settings.distill:
        return None
    if teacher is None:
        raise RecipeError(f"distill = {settings.distill:g} needs the original network as teacher; set distill = 0.")
    if own is not None:
        own.require_outputs(settings.distill)
    placed, example = on_device(teacher, feed.device), move(feed.example(1), feed.device)
    if settings.features:
        return Teacher(placed, places_for(model, placed, example, settings))
    return Teacher(_quick(placed, example))


def _quick(teacher: nn.Module, example: Any) -> nn.Module:
    """A teacher in the form that runs fastest, its norms folded away; as it is where it cannot be brought into that.

    Its modules are other ones then, so it is of use only where nobody looks at them.
    """
    try:
        return optimize(teacher, example).module
    except GhostifyError:
        return teacher


class _Silent:
    def say(self, text: str) -> None: ...

    def start(self, total_steps: int, title: str) -> None: ...

    def step(self, step: Step) -> None: ...

    def epoch(self, epoch: Epoch, history: History) -> None: ...

    def done(self) -> None: ...
