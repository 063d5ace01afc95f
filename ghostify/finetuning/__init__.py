"""Training a network, with the original one as its teacher, in one visible loop that can be stopped and resumed."""

from ghostify.finetuning.checkpoint import (
    Checkpoint,
    Epoch,
    History,
    has_checkpoint,
    load_checkpoint,
    remove_checkpoint,
)
from ghostify.finetuning.loop import Progress, TrainingData, finetune, learning_rate

__all__ = [
    "Checkpoint",
    "Epoch",
    "History",
    "Progress",
    "TrainingData",
    "finetune",
    "has_checkpoint",
    "learning_rate",
    "load_checkpoint",
    "remove_checkpoint",
]
