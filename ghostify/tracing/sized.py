"""A recorded run at another batch size, for whoever runs its graph on many samples at a time.

Sizes may be written into a graph (``x.view(n, g, c // g, h, w)``), so it holds for the size it was recorded with.  The
code around what a rewrite replaces is the original's: where the original's graph has no batch size written into it, the
rewritten network's has none, and its own graph will do, with other shapes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from ghostify.running import quiet, run_node
from ghostify.tracing.again import on_meta, recorded_again, runs_on_numbers, without_numbers
from ghostify.tracing.trace import recorded_run
from ghostify.tracing.traced import Traced
from ghostify.tracing.values import call_arguments, tensors_in, tensors_of_call


def sized_as(run: Traced, batch: Any) -> Traced:
    """``run`` with inputs of the size of a ``batch``, derived once for every size; its graph may be run.

    It is recorded again only where sizes may be written into its graph.  Raises ``TraceError`` where the network does
    not run on the batch.
    """
    shapes = tuple(tuple(tensor.shape) for tensor in tensors_of_call(batch))
    if shapes not in run.sized:
        run.sized[shapes] = _recorded(run, batch) if run.reads_sizes else _reshaped(run, batch)
    return run.sized[shapes]


def sized_like(run: Traced, original: Traced, batch: Any) -> Traced:
    """The same of the ``run`` of what was made of an ``original``, as which it writes sizes down, or does not."""
    if _written(original) == _written(sized_as(original, batch)):
        return _reshaped(run, batch)
    return sized_as(run, batch)


def _recorded(run: Traced, batch: Any) -> Traced:
    if run.doubts:  # what depends on values is recorded on values
        return recorded_run(run.module, batch)
    return recorded_again(run.module, batch, to_run=True)


def _written(run: Traced) -> list[str]:
    """All that is written into a graph: what is called on which values, and with which numbers."""
    index = {node: f"%{place}" for place, node in enumerate(run.graph.nodes)}
    arguments = (fx.node.map_arg((node.args, dict(node.kwargs)), index.__getitem__) for node in run.graph.nodes)
    return [f"{node.op} {node.target} {given}" for node, given in zip(run.graph.nodes, arguments, strict=True)]


def _reshaped(run: Traced, batch: Any) -> Traced:
    """The same graph with the shapes that it gives for a batch; recorded anew where it cannot be run elsewhere."""
    if run.doubts or not runs_on_numbers(run):
        return _recorded(run, batch)
    graph = fx.Graph()
    # A copy, because shapes are noted at its nodes, and the first size's stay valid for the first.
    graph.output(graph.graph_copy(run.graph, {}))
    args, kwargs = call_arguments(batch)
    private = without_numbers(run.module)
    with quiet(private):
        _Shapes(private, graph, run).run(*tensors_in(on_meta((args, kwargs))))
    return replace(run, graph=graph, args=args, kwargs=kwargs, forms={}, others=None, sized={})


class _Shapes(fx.Interpreter):
    """Runs a graph on the meta device, and notes the shapes of what each node gives."""

    def __init__(self, root: nn.Module, graph: fx.Graph, run: Traced) -> None:
        super().__init__(root, graph=graph)
        self._constants: dict[str, Tensor] = on_meta(run.constants)

    def leaf(self, node: fx.Node) -> nn.Module:
        return self.module.get_submodule(str(node.target))

    def fetch_attr(self, target: str) -> Any:
        return self._constants[target] if target in self._constants else super().fetch_attr(target)

    def run_node(self, n: fx.Node) -> Any:
        calls = n.op.startswith("call_")
        made = run_node(self, n, *self.fetch_args_kwargs_from_env(n)) if calls else super().run_node(n)
        result = on_meta(made)  # what makes tensors of its own (torch.arange) makes them where it says
        if n.op != "output":
            n.meta["shapes"] = [tuple(tensor.shape) for tensor in tensors_in(result)]
        return result
