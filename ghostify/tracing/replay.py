"""Running a recorded graph, and the check that it reproduces the run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from ghostify.errors import TraceError
from ghostify.running import agree, fingerprint, one_line, run_node, seed
from ghostify.tracing.recorder import Recorder, record
from ghostify.tracing.values import cloned, empty, form_of, tensors_in
from ghostify.tracing.wording import module_text


def require_reproduced(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a recording whose replay gives other outputs, naming the module where it first goes wrong."""
    run = f"The recorded run of {type(recorder.root).__name__}"
    replay = _Replay(recorder)
    try:
        outputs = replay.through(args, kwargs)
    except Exception as problem:
        raise TraceError(
            f"{run} cannot be replayed: in {module_text(replay.current)}: {one_line(problem)}"
        ) from problem
    if all(agree(a, b) for a, b in zip(recorder.outputs, outputs, strict=True)):
        return
    culprit = _first_difference(recorder, args, kwargs)
    raise TraceError(
        f"{run} does not reproduce its output; it first differs in {culprit}. "
        "Its forward depends on something a graph cannot hold; trace the part around it instead."
    )


def _first_difference(first: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The module in which a second recording and its replay first disagree, by fingerprints of every value."""
    # Once more with fingerprints: they take a pass over every value, so only a recording that failed has them.
    recorder = record(first.root, first.given, args, kwargs, may_write=True, fingerprints=True)
    replay = _Replay(recorder, fingerprints=True)
    replay.through(args, kwargs)
    for node in recorder.graph.nodes:
        recorded, replayed = recorder.prints.get(node.name), replay.prints.get(node.name)
        if recorded is not None and replayed is not None and not agree(recorded, replayed):
            return module_text(node)
    return type(first.root).__name__


class _Replay(fx.Interpreter):
    """Runs a recorded graph, remembering where it is, and on request a fingerprint of every value.

    The graph is run as it is, not as the code of a ``GraphModule``, which cannot write down every argument there is.
    """

    def __init__(self, recorder: Recorder, fingerprints: bool = False) -> None:
        super().__init__(recorder.root, graph=recorder.graph)
        self.extra_traceback = False
        self.current: fx.Node | None = None
        self.prints: dict[str, Tensor] = {}
        self._recorder = recorder
        self._fingerprints = fingerprints

    def through(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The outputs for an example, from the state that the recorded run began with."""
        seed()
        self._recorder.state.restore()
        try:
            return self.run(*tensors_in(cloned((args, kwargs))))
        finally:
            self._recorder.state.restore_generators()

    def fetch_attr(self, target: str) -> Any:
        constants = self._recorder.constants
        return constants[target] if target in constants else super().fetch_attr(target)

    def leaf(self, node: fx.Node) -> nn.Module:
        return self._recorder.root.get_submodule(str(node.target))

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        result = self._known(n)
        if result is None:
            calls = n.op.startswith("call_")
            result = run_node(self, n, *self.fetch_args_kwargs_from_env(n)) if calls else super().run_node(n)
        if self._fingerprints and isinstance(result, Tensor):
            self.prints[n.name] = fingerprint(result)
        return result

    def _known(self, node: fx.Node) -> Tensor | None:
        """What a layer gives, where the recorded run tells it."""
        given = self.env.get(node.args[0]) if node.op == "call_module" and node.args else None  # type: ignore[arg-type]
        if not isinstance(given, Tensor):
            return None
        if given.is_meta:
            return self._of_known_form(node, given)
        convolved = self._recorder.convolved
        return convolved.again(node, self.leaf(node), given) if convolved is not None else None

    def _of_known_form(self, node: fx.Node, given: Tensor) -> Tensor | None:
        """What a layer of torch's gives on the meta device for an input of the form that it was recorded with."""
        read, made = self._recorder.shaped.get(node, (None, None))
        if read is None or form_of(given) != read:
            return None
        return given if made is None else empty(made)
