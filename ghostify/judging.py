"""What networks of an experiment are good for: scores on its images, and agreement with the original."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ghostify import measuring
from ghostify.measuring import Accuracy, Metric, Score, evaluate
from ghostify.measuring.span import Outside, Span
from ghostify.recipe import DataSettings
from ghostify.subject import Subject
from ghostify.watching import Watcher

_FEW = 4
"""Samples on which a metric is tried before the long work."""
MEASURE_IT = "What it is good for can be measured by a function of yours: --metric package.module:function."


@dataclass
class Judge:
    """Scores networks on the images of an experiment: by the user's metric where one is named, else by accuracy."""

    subject: Subject
    feeding: DataSettings | None
    place: torch.device
    watcher: Watcher
    metric: Metric | None = None
    outside: Outside | None = field(default=None, init=False)
    """How many test inputs lay outside the span of the network that was measured last."""

    @property
    def unscored(self) -> str:
        """Why there is nothing to score a network by, in a sentence; empty where there is a metric, or classes."""
        return "" if self.metric else self.subject.unscored

    @property
    def warning(self) -> str:
        """What to know where more test inputs lie outside the span than chance would have; else empty."""
        return self.outside.warning if self.outside is not None and self.outside.alarming else ""

    def rehearse(self) -> None:
        """Try the metric on a few images, before any long work is done."""
        if self.metric is not None and self.subject.data is not None:
            self.metric.rehearse(self.subject.model, self.subject.data.test_loader(_FEW))

    def scores(self, modules: Mapping[str, nn.Module], span: Span | None = None) -> dict[str, Accuracy | Score]:
        """The score of each module by its stage; nothing without images, or where there is nothing to score by.

        With the ``span`` of a module it is noted, and said, how many test inputs lie outside.
        """
        if self.subject.data is None or self.feeding is None or self.unscored:
            return {}
        found = {stage: self.score(module, f"Testing the {stage} network", span) for stage, module in modules.items()}
        if self.warning:
            self.watcher.say(self.warning)
        return found

    def score(self, module: nn.Module, title: str, span: Span | None = None) -> Accuracy | Score:
        """The score on the test images; how many of them lie outside the ``span`` stays in ``outside``."""
        self.outside = None
        if span is None:
            return self._on_test_images(module, title)
        with span.watching(module) as watch:
            score = self._on_test_images(module, title)
        self.outside = watch.outside(score.total)
        return score

    def _on_test_images(self, module: nn.Module, title: str) -> Accuracy | Score:
        assert self.subject.data and self.feeding, "there is nothing to score on without images"
        loader = self.subject.data.test_loader(self.feeding.batch_size, self.feeding.workers)
        with self.watcher.counting(title, len(self.subject.data.test)) as progress:
            if self.metric is not None:
                return self.metric.score(module, loader, device=self.place, progress=progress)
            return evaluate(module, loader, device=self.place, progress=progress)

    def agreement(self, module: nn.Module) -> float | None:
        """Share of test images that the network puts where the original does; None without images, or classes."""
        if self.subject.data is None or self.feeding is None or self.subject.unscored:
            return None
        loader = self.subject.data.test_loader(self.feeding.batch_size, self.feeding.workers)
        return measuring.agreement(module, self.subject.model, loader, device=self.place)

    def held_score(self, module: nn.Module, trained_by_loss: bool) -> float | None:
        """What epochs are compared by, of a network as it is; None without images held out, or by a loss alone."""
        nothing_to_compare = self.metric is None and (trained_by_loss or bool(self.subject.unscored))
        loader = None if nothing_to_compare else self._held_images()
        if loader is None:
            return None
        if self.metric is None:
            return evaluate(module, loader, device=self.place).top1
        value = self.metric.score(module, loader, device=self.place).value
        return value if math.isfinite(value) else None

    def _held_images(self) -> DataLoader[Any] | None:
        if self.subject.data is None or self.feeding is None:
            return None
        return self.subject.data.held_loader(self.feeding.batch_size, self.feeding.workers)


def metric_of(feeding: DataSettings | None) -> Metric | None:
    """The user's metric, where one is named.  Raises ``RecipeError``."""
    return Metric.named(feeding.metric) if feeding and feeding.metric else None
