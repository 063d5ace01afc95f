"""``Traced``: a recorded run as a value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from ghostify.running import function_name
from ghostify.tracing.calls import ENTRANCES
from ghostify.tracing.naming import qualified_names
from ghostify.tracing.values import Forms, tensors_in


@dataclass(eq=False)
class Traced:
    """A private copy of a module with the graph of one run of it.

    ``graph`` has a ``call_module`` node per call of a ``torch.nn`` leaf and a ``call_function`` or ``call_method``
    node for everything else.  Each node's ``meta`` holds ``shapes`` (of its tensors, flattened), ``module`` (the
    qualified name of the innermost module it ran in), ``calls`` (by every module it ran in, which of that one's calls
    it was, counted from 0), ``seen`` (the modules whose code was given it, or had it returned), and ``regions`` where
    autocast or gradients were switched by the network itself; ``run_node`` runs a node within them.
    """

    module: nn.Module
    graph: fx.Graph
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: dict[nn.Module, list[str]]
    """Every qualified name of every module; more than one where a module is shared."""
    constants: dict[str, Tensor] = field(default_factory=dict)
    """Tensors the run took from outside torch, by the name the graph has for them."""
    doubts: list[str] = field(default_factory=list)
    """What the recording cannot vouch for, a sentence each."""
    involved: set[str] = field(default_factory=set)
    """Modules that were called with anything but one tensor, or gave anything else."""
    reads_sizes: bool = False
    """Whether its code asked for the size of anything but a parameter: else it does the same at every size."""
    training: bool = False
    """Whether it ran in train mode."""
    forms: Forms = field(default_factory=dict)
    """What its layers gave for what, but for their numbers."""
    others: list[Traced] | None = None
    """Other runs of the same network, once ``other_runs`` was asked for them."""
    sized: dict[tuple[tuple[int, ...], ...], Traced] = field(default_factory=dict)
    """The same run at other batch sizes, by the shapes of its inputs, once ``sized_as`` was asked for them."""

    def of(self, module: nn.Module) -> Traced:
        """The same run of another module, which differs in its weights alone."""
        sized = {shapes: run.of(module) for shapes, run in self.sized.items()}
        return replace(self, module=module, names=qualified_names(module), others=None, sized=sized)

    @property
    def example(self) -> Any:
        """The input it was recorded on, as ``trace`` takes it: a dict by keyword, else a tuple."""
        return self.kwargs or self.args

    @property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors the module returned."""
        (output,) = (node for node in self.graph.nodes if node.op == "output")
        return [shape for node in output.all_input_nodes for shape in node.meta["shapes"]]

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors in the example."""
        return [tuple(leaf.shape) for leaf in tensors_in((self.args, self.kwargs))]

    def from_outside(self, node: fx.Node) -> bool:
        """Whether a node's value entered the run by a way that cannot be followed."""
        return node.target in self.constants or function_name(node.target) in ENTRANCES

    def leaf(self, node: fx.Node) -> nn.Module:
        """The module that a ``call_module`` node calls."""
        return self.part(str(node.target))

    def tensor(self, node: fx.Node) -> Tensor:
        """The value of a ``get_attr`` node: a parameter, a buffer or a plain tensor of a module, or a constant."""
        name = str(node.target)
        if name in self.constants:
            return self.constants[name]
        owner, _, last = name.rpartition(".")
        found: Tensor = getattr(self.part(owner), last)
        return found

    def part(self, name: str) -> nn.Module:
        """The module of that qualified name; raises ``KeyError`` where there is none."""
        return self._parts[name]

    @cached_property
    def parameter_names(self) -> dict[int, str]:
        """By the ``id`` of each parameter, the first of its names: a tied one has several."""
        # Backwards, so that the first name of a tied one is the last to be written, and stays.
        names = self.module.named_parameters(remove_duplicate=False)
        return {id(parameter): name for name, parameter in reversed(list(names))}

    @cached_property
    def calls(self) -> dict[str, list[fx.Node]]:
        """By name of each layer that is called, the nodes of its calls, in the order they ran."""
        calls: dict[str, list[fx.Node]] = {}
        for node in self.graph.nodes:
            if node.op == "call_module":
                calls.setdefault(str(node.target), []).append(node)
        return calls

    @cached_property
    def _parts(self) -> dict[str, nn.Module]:
        return {name: module for module, names in self.names.items() for name in names}

    def __str__(self) -> str:
        return f"{type(self.module).__name__}: {len(self.graph.nodes)} nodes for inputs {self.input_shapes}"
