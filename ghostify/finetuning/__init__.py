"""Training a network, with the original one as its teacher, in one visible loop that can be stopped and resumed."""

from ghostify.finetuning.checkpoint import (
    Checkpoint,
    check_checkpoint,
    has_checkpoint,
    load_checkpoint,
    remove_checkpoint,
)
from ghostify.finetuning.feeding import TrainingData
from ghostify.finetuning.history import Epoch, History, Step
from ghostify.finetuning.loop import Progress
from ghostify.finetuning.losses import training_loss
from ghostify.finetuning.measures import Measure, top1
from ghostify.finetuning.optimizers import make_optimizer
from ghostify.finetuning.recording import (
    TITLES,
    Recorder,
    curves_in,
    read_histories,
    require_tensorboard,
    write_history,
)
from ghostify.finetuning.schedules import learning_rate
from ghostify.finetuning.tuning import finetune

__all__ = [
    "Checkpoint",
    "Epoch",
    "History",
    "Measure",
    "Progress",
    "Recorder",
    "Step",
    "TITLES",
    "TrainingData",
    "check_checkpoint",
    "curves_in",
    "finetune",
    "has_checkpoint",
    "learning_rate",
    "load_checkpoint",
    "read_histories",
    "make_optimizer",
    "remove_checkpoint",
    "require_tensorboard",
    "top1",
    "training_loss",
    "write_history",
]
