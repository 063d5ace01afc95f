"""The recorder: turns the calls of one run into graph nodes."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ghostify.errors import TraceError
from ghostify.running import (
    as_called,
    current_regions,
    fingerprint,
    function_name,
    overwrites,
    seed,
    uncompiled,
    write_target,
)
from ghostify.tracing.calls import ENTRANCES, reads_data, reads_size
from ghostify.tracing.convolved import Convolved
from ghostify.tracing.naming import is_leaf, qualified_names
from ghostify.tracing.state import State, held_tensors, tensor_names
from ghostify.tracing.values import (
    Form,
    Forms,
    cloned,
    empty,
    form_of,
    has_form,
    holds_tensor,
    storage_of,
    tensors_in,
    version_of,
)
from ghostify.tracing.wording import called, cannot_run, holds_original

_UNFOLLOWED = "uses a tensor made outside torch's Python functions (NumPy, a script), held as a constant"


class WritesParameter(BaseException):
    """The module is about to write to a parameter that is shared with the user's own; no handler may stop this."""


def record(
    private: nn.Module,
    given: Mapping[nn.Module, str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    may_write: bool,
    fingerprints: bool = False,
    known: Forms | None = None,
    remember: bool = False,
) -> Recorder:
    """One run of ``private`` on copies of the arguments, recorded, on request with a fingerprint of every value.

    Layers of which it is ``known`` what they give on the meta device are not run there.  A replay is told what
    convolutions read and gave, where they are to be ``remember``ed.
    """
    recorder = Recorder(private, given, may_write, fingerprints, known or {})
    recorder.convolved = Convolved() if remember and not may_write else None
    args, kwargs = cloned((args, kwargs))
    # Of the copies, because these are what the run is given, and values are known by identity.
    recorder.placeholders((args, kwargs))
    try:
        seed()
        with as_called(), recorder.active():
            output = private(*args, **kwargs)
        recorder.finish(output)
    except (TraceError, WritesParameter):
        raise
    except Exception as problem:
        raise cannot_run(private, recorder.where, (args, kwargs), problem) from problem
    finally:
        recorder.state.restore_generators()
    return recorder


class Recorder(TorchFunctionMode):
    """Turns the calls of one run into graph nodes.

    Values are known by the identity of the tensor object.  An in-place call returns the tensor it was given, so the
    newest node that returned a tensor is the one that stands for it; writes are replayed in the order they happened.
    ``given`` are the modules of the user by name, of which none may run; ``may_write`` says that the parameters are the
    copy's own; ``known`` is what layers give for what, on the meta device.
    """

    def __init__(
        self, root: nn.Module, given: Mapping[nn.Module, str], may_write: bool, fingerprints: bool, known: Forms
    ) -> None:
        super().__init__()
        self.root, self.given = root, given
        self.state = State(root, parameters=may_write)
        self.constants: dict[str, Tensor] = {}
        self.graph = fx.Graph()
        self.names = qualified_names(root)
        self.stack: list[str] = []
        self.running: dict[str, int] = {}
        """By module that runs now, which of its calls this is, counted from 0."""
        self._times = Counter[str]()
        self.where = ""
        self.paused = False
        self.doubts: list[str] = []
        self.involved: set[str] = set()
        self.reads_sizes = False
        self.outputs: list[Tensor] = []
        self.prints: dict[str, Tensor] = {}
        self.forms: dict[tuple[str, Form], Form] = {}
        """By layer and what it was given, what it gave."""
        self.shaped: dict[fx.Node, tuple[Form, Form | None]] = {}
        """What a layer made of what on the meta device, where that is all there is to it; None where it gave its input.
        """
        self.convolved: Convolved | None = None
        """What convolutions read and gave, for a replay."""
        self._fingerprints = fingerprints
        self._known = known
        # By identity, since tensors compare number by number; and weak, or no value of the run would ever be freed.
        self._nodes = WeakIdKeyDictionary()
        self._attributes = tensor_names(root)
        self._held = set(held_tensors(root))
        self._outside = current_regions()
        self._guarded = set() if may_write else {storage_of(p) for p in root.parameters()}

    # -- recording ---------------------------------------------------------------------------------------------

    def placeholders(self, example: Any) -> None:
        for index, leaf in enumerate(tensors_in(example)):
            self._bind(self.graph.placeholder(f"input_{index}"), leaf)

    def finish(self, output: Any) -> None:
        """Close the graph with the tensors found in ``output``, whatever structure holds them."""
        self.outputs = tensors_in(output)
        if not self.outputs:
            raise TraceError(f"{type(self.root).__name__} returned no tensor, so there is nothing to verify it by.")
        self.graph.output([self._node_of(leaf) for leaf in self.outputs])
        # Copies, because the replay is compared with what was returned, and may write into it.
        self.outputs = [leaf.detach().clone() for leaf in self.outputs]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Record everything that runs inside: torch functions by this mode, module calls by a patched ``__call__``."""
        original = nn.Module.__call__
        recorder = self

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return recorder._call_module(original, module, args, kwargs)

        # The mode sees functions and not whose code calls them; every module is called by this one method.
        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            with uncompiled(), self:
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
        outer = self.running
        # A dict of its own for each call, because nodes keep the one of the time they ran.
        self.running = {**outer, names[0]: self._times[names[0]]}
        self._times[names[0]] += 1
        try:
            leaf = is_leaf(module) and self._owns_weights(module)
            result = (self._call_leaf if leaf else _call)(call, module, args, kwargs)
            self._note_seen((args, kwargs, result), leaf)
            if kwargs or len(args) != 1 or not (isinstance(args[0], Tensor) and isinstance(result, Tensor)):
                self.involved.add(names[0])
            return result
        except Exception:
            self.where = self.where or names[0]  # the innermost module is the first to see the error
            raise
        finally:
            self.stack.pop()
            self.running = outer

    def _note_seen(self, values: Any, by_leaf: bool) -> None:
        """What a module is given and returns, its caller's code sees and (unless it is a leaf) its own, too, whether or
        not they go on with it.
        """
        caller, module = (["", *self.stack])[-2:]
        for tensor in tensors_in(values):
            if (node := self._nodes.get(tensor)) is not None:
                node.meta.setdefault("seen", set()).update({caller} if by_leaf else {caller, module})

    def _stranger(self, module: nn.Module) -> None:
        """A module that runs but is none of the copy's."""
        if module in self.given:
            what = f"The forward of {self._here()}, or a hook on it,"
            raise TraceError(holds_original(what, called(self.given[module], module)))
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
        # Or the functions that a layer of torch's is made of would be recorded beside it.
        self.paused = True
        try:
            if getattr(module, "inplace", False):
                self._guard(args, kwargs)
            arguments = self._argument(args), self._argument(kwargs)
            given = args[0] if args and isinstance(args[0], Tensor) else None
            version = version_of(given)
            result = self._foreseen(module, args, kwargs)
            result = call(module, *args, **kwargs) if result is None else result
            node = self.graph.call_module(self.stack[-1], *arguments)
            passed = result is given and version == version_of(given)  # an Identity: its input stays the input's node
            self._bind(node, None if passed else result)
            if passed:
                node.meta["shapes"] = [tuple(result.shape)]
            if len(args) == 1 and not kwargs and given is not None and isinstance(result, Tensor):
                self._note_form(node, given, result)
                if self.convolved is not None:
                    self.convolved.note(node, module, given, result)
        finally:
            self.paused = False
        return result

    def _note_form(self, node: fx.Node, given: Tensor, result: Tensor) -> None:
        if has_form(given) and has_form(result):
            made = None if result is given else form_of(result)
            if given.is_meta and result.is_meta:
                self.shaped[node] = form_of(given), made
            if made is not None:
                self.forms[str(node.target), form_of(given)] = made

    def _foreseen(self, module: nn.Module, args: Any, kwargs: Any) -> Tensor | None:
        """What a layer gives on the meta device, where another run has shown the form of it; hooks want to be run."""
        if not self._known or len(args) != 1 or kwargs or module._forward_hooks or module._forward_pre_hooks:
            return None
        given = args[0]
        if not (isinstance(given, Tensor) and given.is_meta and has_form(given)):
            return None
        form = self._known.get((self.stack[-1], form_of(given)))
        return None if form is None else empty(form)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if overwrites(func, kwargs):
            self._guard(args, kwargs)
        self._require_plain_tensors()
        if isinstance(generator := kwargs.get("generator"), torch.Generator):
            self.state.keep(generator)
        # Before it runs: what works in place gives the tensor it was given, which then is the new node's.
        read = self._argument(args), self._argument(kwargs)
        result = func(*args, **kwargs)
        self.reads_sizes = self.reads_sizes or reads_size(func, args)
        if reads_data(func, args, kwargs):
            self._doubt("reads a value out of a tensor, so another input may take another path")
        if function_name(func) in ENTRANCES:
            self._doubt(_UNFOLLOWED)
        if holds_tensor(result) or function_name(func) == "__setitem__":
            self._bind(self._create(func, *read), result)
        return result

    def _create(self, func: Callable[..., Any], args: Any, kwargs: Any) -> fx.Node:
        owner = getattr(func, "__self__", None)
        if function_name(func) == "__get__" and owner is not None:
            # A property's getter can be called by no name, but the property has one.
            return self.graph.call_function(getattr, (args[0], owner.__name__))
        if type(func).__name__ in ("method_descriptor", "wrapper_descriptor") and isinstance(args[0], fx.Node):
            return self.graph.call_method(func.__name__, args, kwargs)
        return self.graph.call_function(func, args, kwargs)

    # -- values ------------------------------------------------------------------------------------------------

    def _bind(self, node: fx.Node, value: Any) -> None:
        """Let ``node`` stand for every tensor in ``value``; elements of a structure get a getitem node each."""
        node.meta.setdefault("module", self.stack[-1] if self.stack else "")
        node.meta.setdefault("calls", self.running)
        node.meta["shapes"] = [tuple(leaf.shape) for leaf in tensors_in(value)]
        if (regions := current_regions()) != self._outside:
            node.meta["regions"] = regions
        if isinstance(value, Tensor):
            self._nodes[value] = node
            if self._fingerprints:
                self.prints[node.name] = fingerprint(value)
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                self._bind_item(node, index, item)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self._bind_item(node, key, item)

    def _bind_item(self, node: fx.Node, key: Any, item: Any) -> None:
        if holds_tensor(item):
            self._bind(self.graph.call_function(operator.getitem, (node, key)), item)

    def _argument(self, value: Any) -> Any:
        """``value`` with every tensor in it replaced by the node that stands for it."""
        if isinstance(value, Tensor):
            return self._node_of(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._argument(item) for item in value))
        if isinstance(value, (tuple, list)):
            return type(value)(self._argument(item) for item in value) if holds_tensor(value) else value
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
        target = write_target(args, kwargs)
        if any(storage_of(leaf) in self._guarded for leaf in tensors_in(target)):
            raise WritesParameter

    def _doubt(self, what: str) -> None:
        sentence = f"{self._here()} {what}."
        if sentence not in self.doubts:
            self.doubts.append(sentence)

    def _here(self) -> str:
        return (self.stack and self.stack[-1]) or type(self.root).__name__


def _call(call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    return call(module, *args, **kwargs)
