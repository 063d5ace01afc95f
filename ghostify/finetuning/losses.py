"""The training loss.

    (1 - a) * CE(z, y) + a * T^2 * KL(softmax(t / T) || softmax(z / T))

for scores z, teacher scores t, labels y, weight a (``distill``) and temperature T (Hinton et al., 2015; T^2 keeps the
gradient's size as T varies).

A score of -inf rules a class out, as a masked logit does.  A class the teacher rules out has p = 0 and adds nothing to
KL = sum p (log p - log q), for 0 log 0 = 0.  A class the student rules out cannot be taught to it, so p is taken over
those it can give.

A user's own loss stands in place of the cross entropy, with outputs of any kind; the original then teaches by them as
they are:

    (1 - a) * L + a * mean over output tensors of  mean (z - t)^2 / var t
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, nll_loss
from torch.utils._pytree import tree_leaves

from ghostify.arguments import a
from ghostify.batches import Batch, call, move
from ghostify.errors import RecipeError
from ghostify.measuring.metrics import described, failing_in_one_line, named_object, required_arguments, sized_batches
from ghostify.recipe import TrainSettings

RULED_OUT = float("-inf")


def training_loss(outputs: Tensor, labels: Tensor, taught: Tensor | None, settings: TrainSettings) -> Tensor:
    """The loss at the head of this file, a scalar: mean over ``outputs (N, classes)`` and ``labels (N,)``.

    Labels may be shares ``(N, classes)`` of each class, as mixed images have.  ``taught (N, classes)`` are the
    teacher's scores; None leaves the labels alone to teach.
    """
    hard = _hard_loss(outputs, labels, settings.label_smoothing)
    if taught is None:
        return hard
    t = settings.temperature
    soft = _divergence(taught / t, outputs / t)
    return (1 - settings.distill) * hard + settings.distill * t**2 * soft


def _hard_loss(outputs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross entropy, with a part of each label spread evenly over the classes that the outputs do not rule out."""
    log_q = log_softmax(outputs, 1)
    hard = nll_loss(log_q, labels) if labels.ndim == 1 else _soft_loss(log_q, labels)
    if not smoothing:
        return hard
    # the share of label smoothing goes to classes that can be given, or else log q = -inf would make it infinite
    given = outputs != RULED_OUT
    spread = log_q.where(given, 0.0).sum(1) / given.sum(1)
    return (1 - smoothing) * hard - smoothing * spread.mean()


def _soft_loss(log_q: Tensor, shares: Tensor) -> Tensor:
    # a class that is ruled out and has no share adds nothing, for 0 * -inf would be NaN
    return -(shares * log_q.where(shares > 0, 0.0)).sum(1).mean()


def _divergence(taught: Tensor, outputs: Tensor) -> Tensor:
    """Mean over the images of KL(softmax(taught) || softmax(outputs)), both (N, classes)."""
    log_p = log_softmax(taught.masked_fill(outputs == RULED_OUT, RULED_OUT), 1)
    log_q = log_softmax(outputs, 1)
    # -inf - -inf is NaN, and so is 0 * -inf: what is ruled out is left out before anything is made of it
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(log_p == RULED_OUT, 0.0).sum(1).mean()


# -- a user's own ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnLoss:
    """A loss of the user's: a function (outputs, labels) → scalar; or, of a network that tells its own losses in train
    mode, as detectors do, (model, inputs, labels) → scalar, or a dict of some, which are added up.
    """

    name: str
    function: Callable[..., Any]
    whole: bool
    """Whether it runs the network itself."""

    @classmethod
    def named(cls, source: str) -> OwnLoss:
        """The loss behind ``package.module:function``.  Raises ``RecipeError`` where there is none."""
        return cls.of(named_object(source, "loss"), source)

    @classmethod
    def of(cls, function: Any, name: str = "") -> OwnLoss:
        """The loss that a function, a module or a class of modules (such as ``torch.nn:L1Loss``) is."""
        name = name or getattr(function, "__name__", type(function).__name__)
        with failing_in_one_line(f"Loss {name!r}"):
            made = function() if isinstance(function, type) else function
        if not callable(made):
            raise RecipeError(f"Loss {name!r} is {a(type(made).__name__)}, not a function.")
        return cls(name, made, whole=required_arguments(made) == 3)

    def __call__(self, *given: Any) -> Tensor:
        """The loss of a batch, with its graph.  Raises ``RecipeError`` where it fails or gives no scalar."""
        with failing_in_one_line(f"Loss {self.name!r}"):
            value = self.function(*given)
        if isinstance(value, Mapping) and value and all(isinstance(part, Tensor) for part in value.values()):
            # detectors of torchvision give a dict of losses, and are trained by their sum
            value = torch.stack([part.sum() for part in value.values()]).sum()
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            raise RecipeError(f"Loss {self.name!r} gives {described(value)}; it must give a tensor of one number.")
        return value.reshape(())

    def require_outputs(self, distill: float) -> None:
        """Refuse distilling with a loss that runs the network itself.  Raises ``RecipeError``."""
        if distill and self.whole:
            raise RecipeError(
                f"distill = {distill:g} compares the outputs of both networks, and loss {self.name!r} runs the network "
                "itself, which gives none while it trains; set distill = 0."
            )

    def require_gradient(self, value: Tensor) -> Tensor:
        """``value``, or ``RecipeError`` where nothing can be learned from it."""
        if not value.requires_grad:
            raise RecipeError(
                f"Loss {self.name!r} gives a number without a gradient; compute it from the outputs by torch functions."
            )
        return value


@dataclass(frozen=True)
class MinusLoss:
    """How little a loss is over a loader's batches, by which epochs are compared where no metric is given."""

    loss: OwnLoss
    label: str = "minus the loss"

    def __call__(self, model: nn.Module, loader: Iterable[Any]) -> float:
        total, value = 0, 0.0
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        for inputs, labels, size in sized_batches(loader):
            value += size * float(self.loss(call(model, move(inputs, device)), move(labels, device)))
            total += size
        return -value / max(1, total)


def outputs_missed(outputs: Batch, taught: Batch) -> Tensor:
    """Mean squared difference of output tensors in shares of the variance of those of the teacher."""
    ours, theirs = _numbers(outputs), _numbers(taught)
    if not ours or [one.shape for one in ours] != [other.shape for other in theirs]:
        raise RecipeError("distill compares the outputs of both networks, which have other shapes; set distill to 0.")
    return torch.stack([missed(one, other) for one, other in zip(ours, theirs, strict=True)]).mean()


def missed(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of two tensors of one shape, in shares of the variance of ``wanted``; a scalar."""
    found, wanted = found.float(), wanted.float()
    # in shares of its own variance, so that outputs of different scales (boxes and scores) count alike
    variance = wanted.var(correction=0)
    return (found - wanted).square().mean() / variance.clamp_min(torch.finfo(torch.float32).tiny)


def _numbers(outputs: Batch) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
