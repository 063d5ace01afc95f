"""The calls of a module in a recorded graph, and whether these are such that its weights could be fitted.

Least squares wants one tensor in and one out, batches of maps (N, c, …) → (N, n, …) or rows.  Planning asks this when a
fit is asked for, and the fit itself when a plan by hand did not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx, nn

from ghostify.ghosts.narrowing import PLAIN, dimensions, holds_its_weights
from ghostify.names import within
from ghostify.tracing import Traced

READ_ELSEWHERE = "has its weight read elsewhere"


@dataclass(frozen=True)
class ModuleCall:
    """The nodes of one call of a module."""

    nodes: tuple[fx.Node, ...]

    @property
    def reads(self) -> list[fx.Node]:
        """What it is given, weights aside."""
        found = (source for node in self.nodes for source in node.all_input_nodes if source.op != "get_attr")
        return list(dict.fromkeys(source for source in found if source not in self.nodes))

    @property
    def gives(self) -> list[fx.Node]:
        """What others read of it."""
        if len(self.nodes) == 1:
            return list(self.nodes)
        return [node for node in self.nodes if any(user not in self.nodes for user in node.users)]

    @property
    def is_plain(self) -> bool:
        """Whether it reads one tensor and gives one."""
        return len(self.reads) == 1 and len(self.gives) == 1


def calls_of(traced: Traced, name: str) -> list[ModuleCall]:
    """The calls of a module in the order they ran: of a layer of torch's, one node each."""
    nodes = traced.calls.get(name)
    if nodes:
        return [ModuleCall((node,)) for node in nodes]
    return by_call(traced, name, lambda node: within(str(node.meta.get("module", "")), name))


def by_call(traced: Traced, name: str, among: Callable[[fx.Node], bool]) -> list[ModuleCall]:
    """Some nodes of a module, call by call."""
    grouped: dict[int, list[fx.Node]] = {}
    for node in traced.graph.nodes:
        if node.op not in ("output", "get_attr") and among(node):
            grouped.setdefault(call_number(node, name), []).append(node)
    return [ModuleCall(tuple(nodes)) for nodes in grouped.values()]


def call_number(node: fx.Node, name: str) -> int:
    """Which of a module's calls a node ran in, counted from 0."""
    calls: dict[str, int] = node.meta.get("calls", {})
    return calls.get(name, 0)


def given_by(traced: Traced, name: str) -> list[fx.Node]:
    """What gives a layer's outputs: its calls or, of a class of its own, what others read of it."""
    return [node for call in calls_of(traced, name) for node in call.gives]


def is_plain_layer(module: nn.Module) -> bool:
    """Whether a layer is a convolution or linear layer of torch's own, which can be fitted as it is."""
    return type(module) in (*PLAIN.values(), nn.Linear) and holds_its_weights(module)


def is_batched(layer: nn.Module, output: fx.Node) -> bool:
    """Whether a layer gives a batch of maps, or rows, at a node."""
    return isinstance(layer, nn.Linear) or len(output.meta["shapes"][0]) == dimensions(layer) + 2


def read_weights(traced: Traced, root: nn.Module) -> set[int]:
    """The ``id`` of each parameter of ``root`` that the network reads itself, not by a layer alone."""
    read = (node for node in traced.graph.nodes if node.op == "get_attr" and node.users)
    names = {str(node.meta["parameter"]) for node in read if node.meta.get("parameter")}
    # Parameters that no module holds are constants of the recording, and no layer has them.
    return {id(root.get_parameter(name)) for name in names - traced.constants.keys()}


def unfit(layer: nn.Module, calls: Sequence[ModuleCall]) -> str | None:
    """Why a convolution or linear layer that is called so cannot be fitted, as the end of a sentence that begins with
    its name; None where it can.
    """
    if not all(call.is_plain for call in calls):
        return "is called with more than one tensor, or gives more than one"
    if not all(is_batched(layer, call.gives[0]) for call in calls):
        return "is given an image without a batch"
    return None
