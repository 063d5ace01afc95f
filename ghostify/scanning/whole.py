"""Traced → Scan, of one recorded run: where it could be rewritten, its stages, and what everything costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import fx, nn

from ghostify.batches import inputs_in
from ghostify.channels import Channels, Unreadable, follow
from ghostify.costs import Cost, count, own_params
from ghostify.names import matches
from ghostify.recipe import Stream
from ghostify.scanning.others import others_in
from ghostify.scanning.result import Scan
from ghostify.scanning.sites import sites_in
from ghostify.scanning.written import nodes_and_outputs, written, written_layers
from ghostify.stages import find_stages, name_stage
from ghostify.tracing import Traced, own_parameters

_scans: WeakKeyDictionary[fx.Graph, Scan] = WeakKeyDictionary()
"""By the graph of a recorded run, its scan: runs that share a graph differ in weights alone, which no scan tells."""


def forms(example: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A scan's ``kinds`` and ``names`` for an example; empty where it is more than a tuple or a dict of tensors."""
    try:
        specs = inputs_in(example)
    except ValueError:
        return (), ()
    return tuple(spec.dtype for spec in specs), tuple(spec.name for spec in specs if spec.name)


def scan_run(
    traced: Traced,
    *,
    stages: Sequence[Sequence[str]] = (),
    whole: bool = False,
    steady: Sequence[str] = (),
    stream: Stream = "scaled",
) -> Scan:
    """The scan of one recorded run; what can be asked for is as in ``scan``."""
    plain = _plain(traced, searched=True)
    # a stage named by hand that was found anyway is not told twice
    known = {tuple(block.name for block in stage.blocks) for stage in plain.stages}
    named = [name_stage(traced, blocks) for blocks in stages if tuple(blocks) not in known]
    asked: dict[str, Any] = {"stages": (*plain.stages, *named)} if named else {}
    if whole:
        channels, uncoupled = _followed(traced, steady, stream)
        asked |= {"coupling": channels.coupling if channels else None, "uncoupled": uncoupled}
        if channels:
            asked |= {
                "closed": channels.closed,
                "idle": channels.idle,
                "written": written_layers(traced, channels, stream == "kept"),
            }
    if whole or steady or stream != plain.stream:
        asked |= {"steady": tuple(steady), "stream": stream}
    return plain.model_copy(update=asked) if asked else plain


def scan_result(traced: Traced) -> Scan:
    """The scan of what was rewritten, for its costs: stages are not looked for, which takes most of a scan's time."""
    return _plain(traced, searched=False)


def _plain(traced: Traced, searched: bool) -> Scan:
    """The scan of a recorded run with nothing more asked of it: the same each time, so it is made once."""
    known = _scans.get(traced.graph)
    if known is None or (searched and not known.searched):
        known = _scans[traced.graph] = _made(traced, searched)
    return known


def _made(traced: Traced, searched: bool) -> Scan:
    ops, unknown = count(traced)
    kinds, names = forms(traced.example)
    cost = Cost(params=own_params(traced.module), macs=sum(op.macs for op in ops), acts=sum(op.acts for op in ops))
    sites = tuple(sites_in(traced, ops))
    return Scan(
        network=type(traced.module).__name__,
        inputs=tuple(traced.input_shapes),
        kinds=kinds,
        names=names,
        sites=sites,
        others=others_in(traced, {site.name for site in sites}),
        cost=cost,
        ops=tuple(ops),
        stages=tuple(find_stages(traced)) if searched else (),
        searched=searched,
        unknown=dict(unknown),
        params=_params_by_module(traced),
        modules=tuple(map(tuple, traced.names.values())),
        doubts=tuple(traced.doubts),
    )


def network_nodes(
    traced: Traced, steady: Sequence[str] = (), inside: bool = False
) -> tuple[list[list[fx.Node]], None, list[fx.Node]]:
    """What ``follow`` takes to follow a whole network: all nodes as one block, no entry, and what keeps all its
    channels: the outputs of the network, sizes that its code writes out, and what the modules that patterns of
    ``steady`` mean read and give.  Where only what lies ``inside`` blocks is to become narrower, what the code cuts in
    parts stays, too.
    """
    nodes, outputs = nodes_and_outputs(traced)
    patterns = tuple(steady)
    held = {module for module, names in traced.names.items() if any(matches(n, p) for n in names for p in patterns)}
    # a dict keeps the order of the nodes, so that the numbers given out later are the same every time
    called = {node: None for node in nodes if node.op.startswith("call_") and node.meta["shapes"]}
    kept = [node for node in called if any(owner in held for owner in _owners(traced, node))]
    read = [source for node in kept for source in node.all_input_nodes if source in called]
    return [nodes], None, list(dict.fromkeys([*outputs, *written(traced, inside), *read, *kept]))


def _owners(traced: Traced, node: fx.Node) -> Iterator[nn.Module]:
    """The module that a node calls, or that it runs in, and those whose parameters it reads."""
    yield traced.part(str(node.target if node.op == "call_module" else node.meta["module"]))
    for source in node.all_input_nodes:
        if source.meta.get("parameter"):
            yield traced.part(str(source.meta["parameter"]).rpartition(".")[0])


def _followed(traced: Traced, steady: Sequence[str], stream: Stream) -> tuple[Channels | None, str]:
    try:
        return follow(traced, *network_nodes(traced, steady, stream == "kept"), sums=stream == "kept"), ""
    except Unreadable as problem:
        return None, str(problem)


def _params_by_module(traced: Traced) -> dict[str, int]:
    """Own parameters of each module, a tied one counted where it is met first."""
    seen: set[int] = set()
    sizes: dict[str, int] = {}
    for module, names in traced.names.items():
        # by identity, because tied parameters are one object with several names
        own = [p for p in own_parameters(module) if id(p) not in seen]
        seen.update(id(p) for p in own)
        if own:
            sizes[names[0]] = sum(p.numel() for p in own)
    return sizes
