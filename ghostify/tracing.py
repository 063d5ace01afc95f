"""module + example → Traced: one recorded run as a ``torch.fx`` graph, verified by replay.

The graph is *recorded*, not symbolically traced: a copy of the module runs once on the example, every call of a
``torch`` function and of a ``torch.nn`` leaf module becomes a node with its concrete shapes and the module it ran in,
and Python decides branches and loops as it always does.  Replaying the graph must then reproduce the output; a
recording that does not is refused, naming the module where it first went wrong.

The user's module comes out untouched: the run happens on a copy (parameters are shared with it, for they are the bulk
of the memory; a module that writes to its parameters while running is copied whole instead).
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import operator
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from ghostify.errors import TraceError

RTOL = 1e-4
"""Replay must agree with the recorded output to this, relative to the output's largest magnitude."""


@dataclass
class Traced:
    """A private copy of a module with the graph of one run of it.

    ``graph`` has a ``call_module`` node per call of a ``torch.nn`` leaf and a ``call_function`` or ``call_method``
    node for everything else.  Each node's ``meta`` holds ``shapes`` (of its tensors, flattened) and ``module`` (the
    qualified name of the innermost module it ran in), and ``regions`` where autocast or gradients were switched by the
    network itself; who runs a node does so ``within_regions``.
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

    @property
    def output_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors the module returned."""
        (output,) = (node for node in self.graph.nodes if node.op == "output")
        return [shape for node in output.all_input_nodes for shape in node.meta["shapes"]]

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors in the example."""
        return [tuple(leaf.shape) for leaf in _tensors((self.args, self.kwargs))]

    def from_outside(self, node: fx.Node) -> bool:
        """Whether a node's value entered the run by a way that cannot be followed."""
        return node.target in self.constants or _name(node.target) in _ENTRANCES

    def leaf(self, node: fx.Node) -> nn.Module:
        """The module that a ``call_module`` node calls."""
        return self.part(str(node.target))

    def part(self, name: str) -> nn.Module:
        """The module of that qualified name; raises ``KeyError`` where there is none."""
        return self._parts[name]

    @cached_property
    def parameter_names(self) -> dict[int, str]:
        """By the ``id`` of each parameter, the first of its names: a tied one has several."""
        names = self.module.named_parameters(remove_duplicate=False)
        return {id(parameter): name for name, parameter in reversed(list(names))}

    @cached_property
    def _parts(self) -> dict[str, nn.Module]:
        return {name: module for module, names in self.names.items() for name in names}

    def __str__(self) -> str:
        return f"{type(self.module).__name__}: {len(self.graph.nodes)} nodes for inputs {self.input_shapes}"


def trace(module: nn.Module, example: Any, *, verify: bool = True) -> Traced:
    """Record one run of a copy of ``module`` on ``example``, in eval mode, and ``verify`` it by replay.

    ``example`` is a tensor, a tuple of positional arguments, or a dict of keyword arguments; it may live on the meta
    device, where only shapes are verified.  Raises ``TraceError`` when the module does not run on the example, returns
    no tensor, or is not reproduced by its recording.
    """
    args, kwargs = call_arguments(example)
    _require_runnable(module, (args, kwargs))
    _require_own_forwards(module)
    kept = _private_copy(module, share_parameters=True)  # never run, so that no run leaves its traces in it
    given = {part: name for name, part in module.named_modules()}
    try:
        return _traced(kept, _private_copy(module, share_parameters=True), given, args, kwargs, verify)
    except _WritesParameter:
        return _traced(kept, _private_copy(module, share_parameters=False), given, args, kwargs, verify, may_write=True)


def recordable(model: nn.Module, example: Any) -> dict[str, Any]:
    """The largest parts of ``model`` with convolutions in them that are recorded without a doubt, and their examples.

    By qualified name (``""`` is the model itself), each with the input it had in one run of the model on ``example``,
    in the form ``trace`` takes.  It is for models that cannot be rewritten as a whole, such as detectors that go on
    with as many boxes as they find: rewrite ``model.get_submodule(name)``, then ``model.set_submodule(name, ...)``.
    Of a part that is called more than once the first call counts, and a convolution whose parent cannot be recorded
    is in no part.  Raises ``TraceError`` when the model does not run on the example.
    """
    given = _given_to_parts(model, example)
    found: dict[str, Any] = {}
    _find_recordable("", model, given, found, set())
    return found


def call_arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``example`` as (positional, keyword) arguments: a dict is keywords, a tuple positionals."""
    if isinstance(example, Mapping) and all(isinstance(key, str) for key in example):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def _require_runnable(module: nn.Module, example: Any) -> None:
    """Refuse what would fail later in words that do not help."""
    if not isinstance(module, nn.Module):
        raise TraceError(f"The model is a {type(module).__name__}, not a torch.nn.Module.")
    if isinstance(module, torch.jit.ScriptModule):
        raise TraceError("The model is a ScriptModule, whose layers cannot be replaced; pass the Python module.")
    if isinstance(module, fx.GraphModule) and any(isinstance(n.target, OpOverload) for n in module.graph.nodes):
        raise TraceError("The model is an exported program, in which no layer is left; pass the Python module.")
    if "_orig_mod" in module._modules:
        raise TraceError("The model is compiled, which hides its layers; pass the module that torch.compile was given.")
    if is_leaf(module) or isinstance(module, (nn.Conv2d, nn.Linear)):
        raise TraceError(
            f"The model is a single {type(module).__name__}, which has no name to be replaced by; "
            "put it into an nn.Sequential."
        )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor):
            raise TraceError(f"{name} is lazy and has no shape yet; run the model once before it is traced.")
    inputs = _tensors(example)
    if any(p.is_meta for p in module.parameters()) and inputs and not any(leaf.is_meta for leaf in inputs):
        raise TraceError("The model is on the meta device and the example is not; move both to one device.")


def _require_own_forwards(module: nn.Module) -> None:
    """Refuse a forward put on an instance that holds on to a module: in a copy, it would still run the original."""
    parts = {part: name for name, part in module.named_modules()}
    for part, name in parts.items():
        for owner in _enclosed_modules(vars(part).get("forward")):
            if owner in parts:
                raise TraceError(_holds_original(f"The forward of {_called(name, part)}", _called(parts[owner], owner)))


def _enclosed_modules(function: Any) -> Iterator[nn.Module]:
    """Modules in the closure of a function, or whose methods are there."""
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):  # an empty cell
            held = cell.cell_contents
            owner = held if isinstance(held, nn.Module) else getattr(held, "__self__", None)
            if isinstance(owner, nn.Module):
                yield owner


def _holds_original(what: str, original: str) -> str:
    return (
        f"{what} holds on to {original} as it was given, so a copy of the model would run the original; "
        "make it a method (types.MethodType) that finds its layers through self."
    )


def _called(name: str, module: nn.Module) -> str:
    return repr(name) if name else type(module).__name__


def _given_to_parts(model: nn.Module, example: Any) -> dict[str, Any]:
    """What every module below ``model`` was first called with in one run, by qualified name."""
    args, kwargs = call_arguments(example)
    _require_runnable(model, (args, kwargs))
    private = _private_copy(model, share_parameters=False)
    given: dict[str, Any] = {}
    for module, names in qualified_names(private).items():
        if _has_convolution(module):
            module.register_forward_pre_hook(_noting(given, names[0]), prepend=True, with_kwargs=True)
    with _quiet(private), _uncompiled():
        _seed()
        try:
            private(*_cloned(args), **_cloned(kwargs))
        except Exception as problem:
            raise _cannot_run(type(private).__name__, (args, kwargs), problem) from problem
    return given


def _traced(
    kept: nn.Module,
    private: nn.Module,
    given: Mapping[nn.Module, str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    verify: bool,
    may_write: bool = False,
) -> Traced:
    with _quiet(private):
        recorder = _record(private, given, args, kwargs, may_write)
        if verify:
            _verify(recorder, args, kwargs)
    names = qualified_names(kept)
    return Traced(kept, recorder.graph, args, kwargs, names, recorder.constants, recorder.doubts, recorder.involved)


def _record(
    private: nn.Module, given: Mapping[nn.Module, str], args: tuple[Any, ...], kwargs: dict[str, Any], may_write: bool
) -> _Recorder:
    recorder = _Recorder(private, given, may_write=may_write)
    args, kwargs = _cloned((args, kwargs))
    recorder.placeholders((args, kwargs))
    try:
        _seed()
        with recorder.active():
            output = private(*args, **kwargs)
        recorder.finish(output)
    except (TraceError, _WritesParameter):
        raise
    except Exception as problem:
        where = f"module {recorder.where!r}" if recorder.where else type(private).__name__
        raise _cannot_run(where, (args, kwargs), problem) from problem
    finally:
        recorder.rewind_generators()
    return recorder


def _cannot_run(where: str, example: Any, problem: Exception) -> TraceError:
    return TraceError(
        f"The model does not run on the example {_shapes_text(example)}; in {where}: {_one_line(problem)}"
    )


def _verify(recorder: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    private = recorder.root
    replay = _Replay(recorder)
    try:
        outputs = replay.through(args, kwargs)
    except Exception as problem:
        node = replay.current
        raise TraceError(
            f"The recorded run of {type(private).__name__} cannot be replayed: in "
            f"{_module_text(node)}: {_one_line(problem)}"
        ) from problem
    if all(_agree(a, b) for a, b in zip(recorder.outputs, outputs, strict=True)):
        return
    culprit = _first_difference(recorder, args, kwargs)
    raise TraceError(
        f"The recorded run of {type(private).__name__} does not reproduce its output; it first differs in {culprit}. "
        "Its forward depends on something a graph cannot hold; trace the part around it instead."
    )


def _first_difference(first: _Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The module in which a second recording and its replay first disagree, by fingerprints of every value."""
    private = first.root
    recorder = _Recorder(private, first.given, may_write=True, fingerprints=True)
    own_args, own_kwargs = _cloned((args, kwargs))
    recorder.placeholders((own_args, own_kwargs))
    _seed()
    with recorder.active():
        recorder.finish(private(*own_args, **own_kwargs))
    recorder.rewind_generators()
    replay = _Replay(recorder, fingerprints=True)
    replay.through(args, kwargs)
    for node in recorder.graph.nodes:
        recorded, replayed = recorder.prints.get(node.name), replay.prints.get(node.name)
        if recorded is not None and replayed is not None and not _agree(recorded, replayed):
            return _module_text(node)
    return type(private).__name__


class _WritesParameter(BaseException):
    """The module is about to write to a parameter that is shared with the user's own; no handler may stop this."""


class _Recorder(TorchFunctionMode):
    """Turns the calls of one run into graph nodes.

    Values are known by the identity of the tensor object.  An in-place call returns the tensor it was given, so the
    newest node that returned a tensor is the one that stands for it; writes are replayed in the order they happened.
    What the run changed in the module's buffers is put back by ``rewind``, for the replay to begin where the run began.
    ``given`` are the modules of the user by name, of which none may run.
    """

    def __init__(
        self, root: nn.Module, given: Mapping[nn.Module, str], may_write: bool = False, fingerprints: bool = False
    ) -> None:
        super().__init__()
        self.root, self.given = root, given
        self.constants: dict[str, Tensor] = {}
        self.graph = fx.Graph()
        self.names = qualified_names(root)
        self.stack: list[str] = []
        self.where = ""
        self.paused = False
        self.doubts: list[str] = []
        self.involved: set[str] = set()
        self.outputs: list[Tensor] = []
        self.prints: dict[str, Tensor] = {}
        self.shaped: dict[fx.Node, tuple[_Form, _Form | None]] = {}
        """What a layer made of what on the meta device, where that is all there is to it; None where it gave its input.
        """
        self._fingerprints = fingerprints
        self._nodes = WeakIdKeyDictionary()
        self._attributes = dict(_tensor_attributes(root))
        self._held = set(_held_tensors(root))
        self._state = [
            (holder, name, tensor, _saved(tensor)) for holder, name, tensor in _state(root, with_parameters=may_write)
        ]
        self._generators: dict[torch.Generator, Tensor] = {}
        self._outside = _regions()
        self._guarded = set() if may_write else {_storage(p) for p in root.parameters()}

    # -- recording ---------------------------------------------------------------------------------------------

    def placeholders(self, example: Any) -> None:
        for index, leaf in enumerate(_tensors(example)):
            self._bind(self.graph.placeholder(f"input_{index}"), leaf)

    def finish(self, output: Any) -> None:
        """Close the graph with the tensors found in ``output``, whatever structure holds them."""
        self.outputs = _tensors(output)
        if not self.outputs:
            raise TraceError(f"{type(self.root).__name__} returned no tensor, so there is nothing to verify it by.")
        self.graph.output([self._node_of(leaf) for leaf in self.outputs])
        self.outputs = [leaf.detach().clone() for leaf in self.outputs]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Record everything that runs inside: torch functions by this mode, module calls by a patched ``__call__``."""
        original = nn.Module.__call__
        recorder = self

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return recorder._call_module(original, module, args, kwargs)

        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            with _uncompiled(), self:
                yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]

    def _call_module(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        names = self.names.get(module)
        if names is None:
            self._stranger(module)
        if self.paused or names is None:
            return call(module, *args, **kwargs)
        self.stack.append(names[0])
        try:
            how = self._call_leaf if is_leaf(module) and self._owns_weights(module) else _call
            result = how(call, module, args, kwargs)
            if kwargs or len(args) != 1 or not (isinstance(args[0], Tensor) and isinstance(result, Tensor)):
                self.involved.add(names[0])
            return result
        except Exception:
            self.where = self.where or names[0]  # the innermost module is the first to see the error
            raise
        finally:
            self.stack.pop()

    def _stranger(self, module: nn.Module) -> None:
        """A module that runs but is none of the copy's."""
        if module in self.given:
            what = f"The forward of {self._here()}, or a hook on it,"
            raise TraceError(_holds_original(what, _called(self.given[module], module)))
        if not self.paused and any(id(parameter) not in self._attributes for parameter in module.parameters()):
            self._doubt(
                f"runs a {type(module).__name__} that is none of its modules (made while it runs, or kept in a plain "
                "list), so it stays as it is"
            )

    def _owns_weights(self, module: nn.Module) -> bool:
        """Whether a layer's weights are those it had before the run, and no functional call has exchanged them."""
        return all(id(value) in self._attributes for value in module._parameters.values() if value is not None)

    def _call_leaf(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        self._require_plain_tensors()
        self.paused = True
        try:
            if getattr(module, "inplace", False):
                self._guard(args, kwargs)
            arguments = self._argument(args), self._argument(kwargs)
            given = args[0] if args and isinstance(args[0], Tensor) else None
            version = _version(given)
            result = call(module, *args, **kwargs)
            node = self.graph.call_module(self.stack[-1], *arguments)
            passed = result is given and version == _version(given)  # an Identity: its input stays the input's node
            self._bind(node, None if passed else result)
            if passed:
                node.meta["shapes"] = [tuple(result.shape)]
            if len(args) == 1 and not kwargs and given is not None and _is_form(given) and _is_form(result):
                self.shaped[node] = _form(given), None if result is given else _form(result)
        finally:
            self.paused = False
        return result

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if _writes(func, kwargs):
            self._guard(args, kwargs)
        self._require_plain_tensors()
        if isinstance(generator := kwargs.get("generator"), torch.Generator):
            self._generators.setdefault(generator, generator.get_state())
        read = self._argument(args), self._argument(kwargs)
        result = func(*args, **kwargs)
        if _reads_data(func, args, kwargs):
            self._doubt("reads a value out of a tensor, so another input may take another path")
        if _name(func) in _ENTRANCES:
            self._doubt(_UNFOLLOWED)
        if _holds_tensor(result) or _name(func) == "__setitem__":
            self._bind(self._create(func, *read), result)
        return result

    def _create(self, func: Callable[..., Any], args: Any, kwargs: Any) -> fx.Node:
        owner = getattr(func, "__self__", None)
        if _name(func) == "__get__" and owner is not None:
            return self.graph.call_function(getattr, (args[0], owner.__name__))
        if type(func).__name__ in ("method_descriptor", "wrapper_descriptor") and isinstance(args[0], fx.Node):
            return self.graph.call_method(func.__name__, args, kwargs)
        return self.graph.call_function(func, args, kwargs)

    def rewind(self) -> None:
        """Put back what the run changed: buffers, plain tensors, and parameters where they may be written."""
        with torch.no_grad():
            for holder, name, tensor, before in self._state:
                holder[name] = tensor
                if before is not None and not torch.equal(tensor, before):
                    tensor.detach().copy_(before)

    def rewind_generators(self) -> None:
        """Apart from ``rewind``, for a generator may be one that is not the copy's."""
        for generator, state in self._generators.items():
            generator.set_state(state)

    # -- values ------------------------------------------------------------------------------------------------

    def _bind(self, node: fx.Node, value: Any) -> None:
        """Let ``node`` stand for every tensor in ``value``; elements of a structure get a getitem node each."""
        node.meta.setdefault("module", self.stack[-1] if self.stack else "")
        node.meta["shapes"] = [tuple(leaf.shape) for leaf in _tensors(value)]
        if (regions := _regions()) != self._outside:
            node.meta["regions"] = regions
        if isinstance(value, Tensor):
            self._nodes[value] = node
            if self._fingerprints:
                self.prints[node.name] = _fingerprint(value)
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                self._bind_item(node, index, item)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self._bind_item(node, key, item)

    def _bind_item(self, node: fx.Node, key: Any, item: Any) -> None:
        if _holds_tensor(item):
            self._bind(self.graph.call_function(operator.getitem, (node, key)), item)

    def _argument(self, value: Any) -> Any:
        """``value`` with every tensor in it replaced by the node that stands for it."""
        if isinstance(value, Tensor):
            return self._node_of(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._argument(item) for item in value))
        if isinstance(value, (tuple, list)):
            return type(value)(self._argument(item) for item in value) if _holds_tensor(value) else value
        if isinstance(value, dict):
            return {key: self._argument(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._argument(part) for part in (value.start, value.stop, value.step)))
        return value

    def _node_of(self, tensor: Tensor) -> fx.Node:
        node = self._nodes.get(tensor)
        if node is None:
            node = self._attribute(tensor)
            self._nodes[tensor] = node
        return node

    def _attribute(self, tensor: Tensor) -> fx.Node:
        name = self._attributes.get(id(tensor))
        if name is None:
            if id(tensor) not in self._held:
                self._doubt(_UNFOLLOWED)
            name = f"_constant_{len(self.constants)}"
            self.constants[name] = tensor.detach().clone()
        node = self.graph.create_node("get_attr", name)
        node.meta.update(module=self.stack[-1] if self.stack else "", shapes=[tuple(tensor.shape)])
        if isinstance(tensor, nn.Parameter):
            node.meta["parameter"] = name
        return node

    def _require_plain_tensors(self) -> None:
        if torch._C._are_functorch_transforms_active():
            raise TraceError(
                f"{self._here()} runs under a transform of functions (torch.vmap, torch.func.grad), which cannot be "
                "recorded; write it without, or trace the parts around it."
            )

    def _guard(self, args: Any, kwargs: Any) -> None:
        """Stop before a shared parameter is written to."""
        target = kwargs.get("out", args[0] if args else kwargs)
        if any(_storage(leaf) in self._guarded for leaf in _tensors(target)):
            raise _WritesParameter

    def _doubt(self, what: str) -> None:
        sentence = f"{self._here()} {what}."
        if sentence not in self.doubts:
            self.doubts.append(sentence)

    def _here(self) -> str:
        return (self.stack and self.stack[-1]) or type(self.root).__name__


def _call(call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    return call(module, *args, **kwargs)


class _Replay(fx.Interpreter):
    """Runs a recorded graph, remembering where it is, and on request a fingerprint of every value.

    The graph is run as it is, not as the code of a ``GraphModule``, which cannot write down every argument there is.
    """

    def __init__(self, recorder: _Recorder, fingerprints: bool = False) -> None:
        super().__init__(recorder.root, graph=recorder.graph)
        self.extra_traceback = False
        self.current: fx.Node | None = None
        self.prints: dict[str, Tensor] = {}
        self._recorder = recorder
        self._fingerprints = fingerprints

    def through(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The outputs for an example, from the state that the recorded run began with."""
        _seed()
        self._recorder.rewind()
        try:
            return self.run(*_tensors(_cloned((args, kwargs))))
        finally:
            self._recorder.rewind_generators()

    def fetch_attr(self, target: str) -> Any:
        constants = self._recorder.constants
        return constants[target] if target in constants else super().fetch_attr(target)

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        with within_regions(n):
            result = self._known(n)
            if result is None:
                result = super().run_node(n)
        if self._fingerprints and isinstance(result, Tensor):
            self.prints[n.name] = _fingerprint(result)
        return result

    def _known(self, node: fx.Node) -> Tensor | None:
        """What a layer of torch's gives on the meta device for an input of the form that it was recorded with."""
        if node not in self._recorder.shaped:
            return None
        read, made = self._recorder.shaped[node]
        given: Tensor = self.env[node.args[0]]  # type: ignore[index]
        if _form(given) != read:
            return None
        return given if made is None else torch.empty_strided(*made[:2], dtype=made[2], device="meta")


# -- regions: what a network switches while it runs ------------------------------------------------------------

_AUTOCASTS = ("cpu", "cuda")


def _regions() -> tuple[bool, tuple[tuple[bool, torch.dtype], ...]]:
    """Whether gradients are on, and autocast by kind of device."""
    casts = ((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _AUTOCASTS)
    return torch.is_grad_enabled(), tuple(casts)


@contextmanager
def within_regions(node: fx.Node) -> Iterator[None]:
    """Autocast and gradients as they were when the node was recorded, where the network had switched them."""
    regions = node.meta.get("regions")
    if regions is None:
        yield
        return
    gradients, casts = regions
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(gradients))
        for kind, now, then in zip(_AUTOCASTS, _regions()[1], casts, strict=True):
            if now != then:
                stack.enter_context(torch.autocast(kind, enabled=then[0], dtype=then[1]))
        yield


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Run what is compiled as it was written, for a compiler does not call module by module."""
    if "torch._dynamo" not in sys.modules:
        yield  # nothing can be compiled, and the compiler takes long to load
        return
    with torch.compiler.set_stance("force_eager"):
        yield


# -- parts that can be recorded --------------------------------------------------------------------------------


def _noting(given: dict[str, Any], name: str) -> Callable[..., None]:
    """A hook that keeps what a module is first called with."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name not in given:
            given[name] = _one_example(module, *_cloned((args, kwargs)))

    return note


def _one_example(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call's arguments as ``trace`` takes them; mixed ones by name."""
    if not kwargs:
        return args
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments) if args else kwargs


def _find_recordable(
    name: str, module: nn.Module, given: Mapping[str, Any], found: dict[str, Any], seen: set[nn.Module]
) -> None:
    """Add ``module`` to what was ``found``, or else what can be recorded below it."""
    if module in seen or not _has_convolution(module):
        return
    seen.add(module)
    if name in given and _vouched_for(module, given[name]):
        found[name] = given[name]
        return
    for part, child in module.named_children():
        _find_recordable(f"{name}.{part}".lstrip("."), child, given, found, seen)


def _vouched_for(module: nn.Module, example: Any) -> bool:
    try:
        return not trace(module, example).doubts
    except TraceError:
        return False


def _has_convolution(module: nn.Module) -> bool:
    return any(isinstance(part, _ConvNd) for part in module.modules())


# -- what a leaf is, and how modules are named -----------------------------------------------------------------


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is recorded as one node: torch's own childless layers, and scripts, which cannot be entered."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    if "forward" in vars(module):  # a layer that was patched is no longer what its class is
        return False
    own = type(module).__module__.startswith("torch.nn.modules")
    return own and not any(True for _ in module.children())


def qualified_names(root: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module below ``root`` (itself as ``""``) with all its qualified names."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def _tensor_attributes(root: nn.Module) -> Iterator[tuple[int, str]]:
    """(id, qualified name) of every parameter, buffer and plain tensor attribute; plain ones lose."""
    for prefix, module in root.named_modules():
        dot = f"{prefix}." if prefix else ""
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield id(value), dot + name
        for name, tensor in [*module._buffers.items(), *module._parameters.items()]:
            if tensor is not None:
                yield id(tensor), dot + name


_OWN = frozenset(vars(nn.Module()))


def _held_tensors(root: nn.Module) -> Iterator[int]:
    """Ids of the tensors that modules hold in plain lists and dicts."""
    for module in root.modules():
        for name, value in vars(module).items():
            if isinstance(value, (list, tuple, dict)) and name not in _OWN and _holds_tensor(value):
                yield from map(id, _tensors(value))


def _saved(tensor: Tensor) -> Tensor | None:
    """A copy of its values, where it has any that can be put back."""
    return tensor.detach().clone() if tensor.layout is torch.strided and not tensor.is_meta else None


def _state(root: nn.Module, with_parameters: bool) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Every tensor that a module may change while it runs: where it is held, by what name, and itself."""
    for module in root.modules():
        for holder in (vars(module), module._buffers, *([module._parameters] if with_parameters else [])):
            yield from ((holder, name, value) for name, value in [*holder.items()] if isinstance(value, Tensor))


# -- the private copy ------------------------------------------------------------------------------------------


def _private_copy(module: nn.Module, share_parameters: bool) -> nn.Module:
    """A deep copy; parameters may be shared, and cached non-leaf tensors (which refuse to be copied) are detached."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if type(value) in _CONTAINERS and not value:
                memo[id(value)] = type(value)()  # most of what a layer holds, and slow to copy in the usual way
            elif isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
        for parameter in part._parameters.values():
            if parameter is not None and share_parameters:
                memo[id(parameter)] = parameter
    try:
        return copy.deepcopy(module, memo)
    except Exception as problem:
        raise TraceError(f"{type(module).__name__} cannot be copied: {_one_line(problem)}") from problem


_CONTAINERS = (dict, OrderedDict, set, list)


@contextmanager
def _quiet(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients and with a local random state; every module's own mode comes back after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=_gpus()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for part, training in modes:
            part.training = training


def _seed() -> None:
    """Start randomness anew, so that a run and its replay draw the same.

    Not by ``torch.manual_seed``, which also seeds GPUs that were not yet used, whose state nobody puts back.
    """
    torch.default_generator.manual_seed(0)
    if _gpus():
        torch.cuda.manual_seed_all(0)


def _gpus() -> list[int]:
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []


# -- small helpers over values ---------------------------------------------------------------------------------

_UNFOLLOWED = "uses a tensor made outside torch's Python functions (NumPy, a script), held as a constant"
_ENTRANCES = frozenset({"from_numpy", "frombuffer", "from_dlpack"})
_READS_DATA = frozenset({"__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy"})
_SIZED_BY_DATA = frozenset({"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "nms"})


def _name(func: Any) -> str:
    return getattr(func, "__name__", "")


def _writes(func: Any, kwargs: Mapping[str, Any]) -> bool:
    name = _name(func)
    return (
        name == "__setitem__"
        or kwargs.get("out") is not None
        or kwargs.get("inplace") is True
        or (name.endswith("_") and not name.endswith("__"))
        or (name.startswith("__i") and name.endswith("__") and name not in ("__index__", "__int__", "__invert__"))
    )


def _reads_data(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call gives Python a value of a tensor, or a tensor whose shape depends on values."""
    name = _name(func)
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in index)
    return name in _READS_DATA | _SIZED_BY_DATA or (name == "where" and len(args) + len(kwargs) == 1)


def _tensors(value: Any, seen: set[int] | None = None) -> list[Tensor]:
    """The tensors in a nested structure, in a fixed order; unknown containers and objects are looked into, once."""
    seen = set() if seen is None else seen
    found: list[Tensor] = []
    for leaf in tree_flatten(value)[0]:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif id(leaf) not in seen:
            seen.add(id(leaf))
            found.extend(inner for part in _parts(leaf) for inner in _tensors(part, seen))
    return found


def _parts(value: Any) -> list[Any]:
    """What an object that ``torch`` does not take for a container holds."""
    if isinstance(value, Mapping) and value:
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (type, nn.Module)) or callable(value):
        return []
    if dataclasses.is_dataclass(value):
        return [getattr(value, item.name, None) for item in dataclasses.fields(value)]
    return list(getattr(value, "__dict__", {}).values())


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, Mapping):
        return any(_holds_tensor(item) for item in value.values())
    return isinstance(value, (tuple, list)) and any(_holds_tensor(item) for item in value)


def _cloned(value: Any) -> Any:
    """A structure with tensors of its own."""
    leaves, spec = tree_flatten(value)
    return tree_unflatten([_cloned_leaf(leaf) for leaf in leaves], spec)


def _cloned_leaf(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.detach().clone()
    inner = _tensors(leaf)
    return copy.deepcopy(leaf, {id(tensor): tensor.detach().clone() for tensor in inner}) if inner else leaf


_Form = tuple[torch.Size, tuple[int, ...], torch.dtype]


def _form(tensor: Tensor) -> _Form:
    """All there is to a tensor on the meta device."""
    return tensor.shape, tensor.stride(), tensor.dtype


def _is_form(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta and value.layout is torch.strided


def _version(tensor: Tensor | None) -> int:
    """How often a tensor was written to."""
    return -1 if tensor is None or tensor.is_inference() else tensor._version


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _fingerprint(tensor: Tensor) -> Tensor:
    value = _real(tensor.detach()).double()
    return torch.stack([value.sum(), value.abs().sum()])


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _agree(recorded: Tensor, replayed: Tensor) -> bool:
    if recorded.shape != replayed.shape:
        return False
    if recorded.is_meta or not recorded.numel():
        return True
    a, b = (_real(tensor).double() for tensor in (recorded, replayed))
    scale = a.abs().nan_to_num(0, 0, 0).max().item()
    return torch.allclose(a, b, rtol=RTOL, atol=RTOL * scale, equal_nan=True)


def _shapes_text(example: Any) -> str:
    return " and ".join(str(tuple(leaf.shape)) for leaf in _tensors(example)) or "(no tensors)"


def _module_text(node: fx.Node | None) -> str:
    if node is None:
        return "its first operation"
    what = str(node.target) if isinstance(node.target, str) else resolve_name(node.target) or _name(node.target)
    return f"module {node.meta.get('module') or '(root)'!r} at {what}"


def _one_line(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    if isinstance(problem, KeyError) or not text:  # the text of a KeyError is the key alone
        text = f"{type(problem).__name__} {text}".strip()
    return text if len(text) <= 300 else text[:297] + "..."


__all__: Sequence[str] = (
    "Traced",
    "call_arguments",
    "is_leaf",
    "qualified_names",
    "recordable",
    "trace",
    "within_regions",
)
