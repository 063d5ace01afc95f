"""The training loss.

    (1 - a) * CE(z, y) + a * T^2 * KL(softmax(t / T) || softmax(z / T))

for scores z, teacher scores t, labels y, weight a (``distill``) and temperature T (Hinton et al., 2015; T^2 keeps the
gradient's size as T varies).

A score of -inf rules a class out, as a masked logit does.  A class the teacher rules out has p = 0 and adds nothing to
KL = sum p (log p - log q), for 0 log 0 = 0.  A class the student rules out cannot be taught to it, so p is taken over
those it can give.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

from ghostify.recipe import TrainSettings

RULED_OUT = float("-inf")


def training_loss(outputs: Tensor, labels: Tensor, taught: Tensor | None, settings: TrainSettings) -> Tensor:
    """The loss at the head of this file, a scalar: mean over ``outputs (N, classes)`` and ``labels (N,)``.

    ``taught (N, classes)`` are the teacher's scores; None leaves the labels alone to teach.
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
    hard = nll_loss(log_q, labels)
    if not smoothing:
        return hard
    given = outputs != RULED_OUT
    spread = log_q.where(given, 0.0).sum(1) / given.sum(1)
    return (1 - smoothing) * hard - smoothing * spread.mean()


def _divergence(taught: Tensor, outputs: Tensor) -> Tensor:
    """Mean over the images of KL(softmax(taught) || softmax(outputs)), both (N, classes)."""
    log_p = log_softmax(taught.masked_fill(outputs == RULED_OUT, RULED_OUT), 1)
    log_q = log_softmax(outputs, 1)
    # -inf - -inf is NaN, and so is 0 * -inf: what is ruled out is left out before anything is made of it
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(log_p == RULED_OUT, 0.0).sum(1).mean()
