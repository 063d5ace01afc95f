"""What turns a batch into an update of the weights, in one process or in several that share it.

The gradient of a batch of N samples, of which process p has n_p in micro-batches of m, is that of the mean loss of all:

    g = Σ_p Σ_m (m / n_p) (n_p / N) ∇ L_m

so that neither the number of processes nor the size of micro-batches changes what is learned, but for layers that look
at a batch as a whole (batch norms, mixup).  Processes add up their gradients once for each batch, and the statistics of
batch norms with them, weighted alike; whatever else a network keeps follows the first process.

The sum is ours, not ``DistributedDataParallel``'s, because all processes must agree *before* it on whether the batch
fits in their memory and whether its loss is a number; and because networks of any kind run here, in which parameters
may have no part in an output.  The price is that it does not overlap with the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from ghostify.errors import ModelError
from ghostify.finetuning.averaging import Average
from ghostify.finetuning.blaming import first_damaged, numbers_of
from ghostify.finetuning.feeding import Pair, parts
from ghostify.finetuning.mixing import Mix, mix_for
from ghostify.finetuning.objective import Objective
from ghostify.finetuning.optimizers import set_rate
from ghostify.finetuning.seeding import seed_all
from ghostify.finetuning.sharing import share_gradients
from ghostify.measuring.accuracy import samples_in
from ghostify.processes import Processes


@dataclass(frozen=True)
class Totals:
    """What some samples gave: their losses and how many were right, added up."""

    loss: float = 0.0
    correct: int = 0
    samples: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.loss + other.loss, self.correct + other.correct, self.samples + other.samples)

    @property
    def mean(self) -> float:
        """The mean loss of a sample."""
        return self.loss / self.samples


@dataclass
class Engine:
    """What turns a batch into an update of the weights."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    processes: Processes
    average: Average | None = None
    micro: int | None = None
    """At most so many samples are run at once, by each process; None: all that it has of a batch."""
    scaler: torch.amp.GradScaler = field(init=False)
    finite: frozenset[str] = field(init=False)
    """The tensors of the network that hold finite numbers only, and so must stay."""

    def __post_init__(self) -> None:
        kind = self.objective.device.type
        # bfloat16 has the range of float32; gradients in float16 are kept from vanishing by a scale
        self.scaler = torch.amp.GradScaler(kind, enabled=self.objective.settings.amp == "fp16")
        self.scaler.scale(torch.zeros((), device=self.objective.device))  # which makes its state, to be loaded into
        self.finite = frozenset(name for name, tensor in numbers_of(self.model) if bool(tensor.isfinite().all()))

    @property
    def model(self) -> nn.Module:
        """The network that is trained."""
        return self.objective.model

    @property
    def delivered(self) -> nn.Module:
        """The network that is measured and kept: the average of the trained one's weights, where there is one."""
        return self.model if self.average is None else self.average.module

    def gradients(self, pair: Pair | None, seed: int, epoch: int, step: int) -> Totals:
        """Put the gradient of the mean loss of a batch into the parameters, and tell what all processes found.

        ``pair`` is this process's share of it, None where it has none.  Where a device's memory is too small for a
        micro-batch, all processes halve it and begin again.  Raises ``ModelError`` where one sample is too much.
        """
        whole, own = self._found(pair, seed, epoch, step)
        share_gradients(self.model, self.processes, own, whole.samples)
        return whole

    def losses(self, pair: Pair | None, seed: int, epoch: int, step: int) -> Totals:
        """What ``gradients`` would tell, without them."""
        return self._found(pair, seed, epoch, step, learning=False)[0]

    def update(self, lr: float) -> bool:
        """One step down the gradients; whether it was taken: in float16 one whose gradients overflow is not."""
        settings = self.objective.settings
        before = self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        # the norm of all gradients together, so that clipping keeps the direction of the step
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        set_rate(self.optimizer, lr)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        taken = self.scaler.get_scale() >= before
        if taken and self.average is not None:
            self.average.update(self.model)
        return taken

    def skip(self) -> None:
        """Leave a step out whose loss overflowed in float16, and lower the scale as for gradients that do."""
        self.optimizer.zero_grad()
        self.scaler.update(self.scaler.get_scale() * self.scaler.get_backoff_factor())

    def damaged(self) -> str:
        """The name of a tensor of the network that is no longer finite, or nothing."""
        return first_damaged(self.model, self.finite)

    def _found(self, pair: Pair | None, seed: int, epoch: int, step: int, learning: bool = True) -> tuple[Totals, int]:
        """What all processes found of a batch, and how many of its samples were this one's."""
        while True:
            own = self._tried(pair, seed, epoch, step, learning)
            found = own or Totals()
            loss, correct, samples, full = self.processes.total([found.loss, found.correct, found.samples, own is None])
            if not full:
                return Totals(loss, int(correct), int(samples)), found.samples
            self._halve(pair)

    def _tried(self, pair: Pair | None, seed: int, epoch: int, step: int, learning: bool) -> Totals | None:
        """The sums over this process's share, with its mean gradient if it learns; None where memory is too small."""
        self.optimizer.zero_grad()
        if pair is None:
            return Totals()
        share, found = samples_in(*pair), Totals()
        seed_all(self.objective.device, seed, epoch, step, self.processes.rank)
        try:
            for micro in parts(pair, self._at_once(share)):
                mix = mix_for(micro[0], self.objective.settings, seed, epoch, step)
                found += self._micro(micro, share, mix, learning)
            return found
        except RuntimeError as problem:
            if not _memory_is_full(problem):
                raise
        # outside the handler, because the traceback holds the tensors of the forward pass
        self.optimizer.zero_grad()
        if self.objective.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _micro(self, pair: Pair, share: int, mix: Mix | None, learning: bool) -> Totals:
        """Add the gradient of some of ``share`` samples to that of the others, if it learns."""
        loss, correct = self.objective(*pair, mix)
        size = samples_in(*pair)
        weighted = loss if size == share else loss * (size / share)
        if learning:
            self.scaler.scale(weighted).backward()
        return Totals(loss.item() * size, correct, size)

    def _at_once(self, share: int) -> int:
        """How many samples of a share are run at once."""
        wanted = -(-share // self.objective.settings.accumulate)
        return wanted if self.micro is None else min(wanted, self.micro)

    def _halve(self, pair: Pair | None) -> None:
        """Run half as many samples at once from now on, of the largest share that a process has."""
        share = 0 if pair is None else samples_in(*pair)
        largest = max(self.processes.each(self._at_once(share)))
        if largest <= 1:
            raise ModelError(
                "The memory of the device is too small to train with even one image at a time; give smaller images, or "
                "another --device."
            )
        self.micro = -(-largest // 2)


def _memory_is_full(problem: RuntimeError) -> bool:
    from accelerate.utils.memory import should_reduce_batch_size

    return should_reduce_batch_size(problem)
