"""The original and the converted network on their way through the same images."""

from __future__ import annotations

from dataclasses import dataclass

from ghostify.fitting.interpreter import Interpreter


@dataclass
class Networks:
    """Both networks, and what each batch of images is for (``calibration``)."""

    original: Interpreter
    converted: Interpreter
    held: int
    """The last so many of the batches that are fitted to choose how strong ridges are."""
    judged: int = 0
    """The last so many of all batches are not fitted to."""

    @property
    def batches(self) -> int:
        """How many batches are fitted to."""
        return len(self.converted.values) - self.judged

    def is_held(self, batch: int) -> bool:
        return batch >= self.batches - self.held
