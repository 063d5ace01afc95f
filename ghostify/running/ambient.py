"""The modes of torch that a caller is in, laid aside while this package works.

    inference mode, no_grad      what is made in them cannot be trained
    autocast                     sums are wanted as exact as they come; regions of a network's own are recorded
    a default device             our own tensors are on the CPU unless we say where; the network is run in the caller's

What a network does may depend on the default device (``torch.arange(n)`` in its forward), so each run of it is
``as_called``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch

_KINDS = ("cpu", "cuda", "mps", "xpu")
_CPU = torch.device("cpu")
_callers: ContextVar[torch.device | None] = ContextVar("_callers", default=None)
"""The default device of the caller, where it is not the CPU and was laid aside."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Torch as it is when nothing is set, for a public function; afterwards as it was."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in _KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        device = torch.get_default_device()
        if device != _CPU:
            token = _callers.set(device)
            stack.callback(_callers.reset, token)
            stack.enter_context(_CPU)
        yield


@contextmanager
def as_called() -> Iterator[None]:
    """The caller's default device, for a run of the caller's network."""
    device = _callers.get()
    if device is None:
        yield
        return
    with device:
        yield


@contextmanager
def in_single_precision() -> Iterator[None]:
    """Tensors are made in float32 where nothing is said, for networks that were cast to it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
