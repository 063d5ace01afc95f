"""A walk through the original on which some values are changed: only what lies behind them runs again.

What stands before a changed layer is the same whatever becomes of it, so it is computed once for all candidates, and of
a candidate nothing is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

from ghostify.batches import Batch
from ghostify.fitting.interpreter import Interpreter
from ghostify.tracing import Traced

Changes = Mapping[fx.Node, Callable[[Tensor], Tensor]]
"""By node, what becomes of the value that it gives."""


class Walk(Interpreter):
    """A recorded network on its way through batches of images, in eval mode."""

    def __init__(self, traced: Traced, root: nn.Module, batches: Iterable[Batch]) -> None:
        super().__init__(traced, root, batches)
        self.changes: Changes = {}
        for node in self.outputs:
            self.keep(node)

    @contextmanager
    def changed(self, changes: Changes) -> Iterator[None]:
        """With some values changed from here on; afterwards the walk stands where it stood."""
        standing, self.changes = self.standing(), changes
        try:
            yield
        finally:
            self.changes = {}
            self.go_back(standing)

    def to_the_end(self, batches: Sequence[int]) -> list[list[Tensor]]:
        """The network's outputs for some of the batches."""
        found = []
        # Batch by batch, so that only one at a time holds the values on the way.
        for batch in batches:
            self.advance(len(self.nodes), [batch])
            found.append([self.values[batch][node] for node in self.outputs])
        return found

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        made = super()._run(node, values)
        change = self.changes.get(node)
        return made if change is None else change(made)
