"""The width rule: every layer of a network becomes narrower by the same share; a baseline without ghosts.

    every convolution and linear layer   c → n   ⇒   w·c → w·n       (inputs and outputs of the network stay)

It is what the papers compare with (ResNet56-0.7x, ResNet34-0.8x), and it keeps the weights of the channels that stay.
With a stream that is kept (method thin) only what lies inside blocks becomes narrower:

    every channel that is added to another   stays      (both sides of a shortcut, and all that is tied to them)
    every other                              c → w·c    (inside a block; all hidden ones where nothing is added)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ghostify.channels import Channels, Coupling, Unreadable, follow, narrower_ghost, renumbered, silenced, sliced
from ghostify.costs import Cost
from ghostify.errors import PlanError, RewriteError
from ghostify.ghosts import CGhost
from ghostify.names import within
from ghostify.patterns import meant
from ghostify.recipe import GhostSettings, Stream
from ghostify.rules.base import Skip, Swap, WidthSwap, cannot_be_fitted, thinner, unfittable
from ghostify.rules.origins import Origins, index_of, part_or_none
from ghostify.rules.protocol import Needs, Original, Rule
from ghostify.rules.rows import Promise, Ratios, Rows
from ghostify.running import THINNED, Failed, agree, attempt, coarsest, quiet
from ghostify.scanning import Scan, network_nodes
from ghostify.tracing import Traced, is_leaf, other_runs, without_numbers

WHOLE = "*"
"""Target of a swap that concerns the whole network."""
_FIXED: dict[Stream, str] = {
    "scaled": "all its channels are outputs",
    "kept": "none of its channels is inside a block, because all are outputs or added to others",
}
_IDLE = "did not run on the example or in training, so it stays as it is, and so do the channels it may read"
_CLOSED = "is a G-Ghost stage, which keeps the channels that it reads and gives"
_REFUSED: dict[Stream, str] = {"scaled": "cannot be scaled as a whole", "kept": "cannot be thinned inside its blocks"}


class WidthRule(Rule[WidthSwap]):
    """A narrower network in place of the whole."""

    name = "width"
    swap = WidthSwap
    methods = frozenset({"width", "thin"})
    noun = "network"
    alone = True

    def needs(self, settings: GhostSettings) -> Needs:
        return Needs(whole=True, steady=settings.exclude, stream=stream(settings))

    def needed_by(self, swap: WidthSwap) -> Needs:
        return Needs(whole=True, steady=swap.exclude, stream=swap.stream)

    def subjects(self, scan: Scan) -> dict[str, str]:
        return {name: name for name in (*scan.idle, *scan.closed)}

    def admit(self, scan: Scan, settings: GhostSettings) -> None:
        if settings.include != ("*",) or settings.set:
            raise PlanError(
                f"Method {settings.method} takes the whole network, so include and set say nothing to it; exclude does."
            )

    def propose(self, scan: Scan, settings: GhostSettings, *, fitted: bool) -> list[WidthSwap | Skip]:
        unfit = unfittable(scan, settings.exclude) if fitted else []
        exclude = (*settings.exclude, *(site.name for site in unfit))
        kept = [Skip(target=site.name, reason=cannot_be_fitted(f"it {site.unfit}")) for site in unfit]
        try:
            swap = propose(scan, settings.model_copy(update={"exclude": exclude}))
        except PlanError as problem:
            if not kept or scan.coupling is None:
                raise
            raise PlanError(f"{problem} Besides, {kept[0].target} {kept[0].reason}.") from None
        return [swap, *skips(scan), *kept]

    def named(self, swap: WidthSwap, scan: Scan) -> WidthSwap:
        return swap.model_copy(update={"target": WHOLE})

    def check(self, said: Mapping[str, Swap | Skip], scan: Scan) -> list[WidthSwap | Skip]:
        swap = said.get(WHOLE)
        if not isinstance(swap, WidthSwap):
            return []
        if swap.geometry != geometry(scan):
            raise PlanError(
                f"The plan was made for another network: {scan.network} has {geometry(scan)}, not {swap.geometry}."
            )
        kept = meant(scan, swap.exclude)
        checked = swap.model_copy(update={"before": scan.cost, "after": predict(scan, swap)})
        told = [entry for entry in said.values() if isinstance(entry, Skip) and entry.target in kept]
        return [checked, *skips(scan), *told]

    def require_kept(self, swap: WidthSwap, scan: Scan, kept: Sequence[str]) -> None:
        own = meant(scan, swap.exclude)
        apart = next((name for name in kept if not any(within(name, home) for home in own)), None)
        if apart is not None:
            raise PlanError(f"The plan's exclude names {apart!r}, which its swap does not; write it under both.")

    def after(self, scan: Scan, swaps: Sequence[WidthSwap]) -> Scan:
        return scan.model_copy(update={"sites": (), "others": {}, "stages": ()}) if swaps else scan

    def replacements(self, original: Original, swap: WidthSwap, memo: Mapping[int, Any]) -> dict[int, Any]:
        return replacements(original.traced, swap)

    def counted(self, swap: WidthSwap, before: Scan, after: Scan) -> Cost:
        return after.cost

    def origins(self, found: Origins, original: Original, swap: WidthSwap, module: nn.Module) -> None:
        traced = original.traced
        for name, outputs in outputs_kept(traced, swap).items():
            found.layers[name] = name, index_of(traced, name, outputs)
            if _differs(traced.module, module, name):
                found.roots.add(name)

    def report(self, rows: Rows, swap: WidthSwap, before: Scan, after: Scan) -> None:
        rows.width, rows.stream = swap.width, swap.stream
        r_s, r_c = promise(before, swap)
        ratios = Ratios(r_s=r_s, r_c=r_c, approx_r_s=r_s, approx_r_c=r_c)
        rows.promises.append(Promise(before.cost.macs, before.cost.params, ratios))


def propose(scan: Scan, settings: GhostSettings) -> WidthSwap:
    """The swap of a whole network, by method width or thin.

    Raises ``PlanError`` when its channels cannot be followed or nothing changes.
    """
    swap = WidthSwap(
        target=WHOLE,
        geometry=geometry(scan),
        width=settings.width,
        stream=stream(settings),
        group_width=settings.group_width or settings.width,
        exclude=settings.exclude,
        keep=settings.keep or ("first" if stream(settings) == "scaled" else "strongest"),
        round_to=settings.round_to,
        rounding=settings.rounding,
    )
    swap = swap.model_copy(update={"before": scan.cost, "after": predict(scan, swap)})
    if swap.after == swap.before:
        fixed = not any(vector.parts for vector in scan.coupling.producers) if scan.coupling else True
        rounds = f"at {settings.width:g} they round to what they are (round_to is {settings.round_to})"
        why = _why_fixed(scan, swap) if fixed else rounds
        raise PlanError(f"{scan.network} has no width that may change: {why}.")
    return swap


def _why_fixed(scan: Scan, swap: WidthSwap) -> str:
    if not scan.idle:
        return _FIXED[swap.stream]
    return f"{', '.join(scan.idle)} did not run on the example or in training, and what may be read there stays"


def skips(scan: Scan) -> list[Skip]:
    """The modules that keep what they read: those that did not run, and G-Ghost stages."""
    idle = [Skip(target=name, reason=_IDLE) for name in scan.idle]
    return idle + [Skip(target=name, reason=_CLOSED) for name in scan.closed]


def stream(settings: GhostSettings) -> Stream:
    """What the method does to channels that are added to each other."""
    return "kept" if settings.method == "thin" else "scaled"


def geometry(scan: Scan) -> str:
    """The network as a plan tells it."""
    return f"{sum(site.role != 'channels-last' for site in scan.sites)} layers"


def predict(scan: Scan, swap: WidthSwap) -> Cost:
    """The exact cost of the narrower network.  Raises ``PlanError`` when it cannot be made."""
    unasked = scan.coupling is None and not scan.uncoupled
    if unasked or (scan.steady, scan.stream) != (swap.exclude, swap.stream):
        asked = "whole=True"
        asked += f", steady={swap.exclude!r}" if swap.exclude else ""
        asked += f", stream={swap.stream!r}" if swap.stream != "scaled" else ""
        raise PlanError(f"The scan of {scan.network} has no channels of the whole network in it: scan(..., {asked}).")
    if scan.coupling is None:
        raise PlanError(f"{scan.network} {_REFUSED[swap.stream]}: {scan.uncoupled}.")
    coupling = scan.coupling
    counts = _counts(coupling, swap)
    everything = [segment.size for segment in coupling.segments]
    return scan.cost - coupling.cost(0, everything) + coupling.cost(0, counts, swap.group_width)


def promise(scan: Scan, swap: WidthSwap) -> tuple[float, float]:
    """By how much MACs and parameters shrink where every width that changes does so by the share itself, unrounded.

    With the stream scaled width⁻², as the papers count; with it kept, a weight between the stream and the inside of a
    block costs the share of what it did, one between two inner layers its square, and what else the network has stays.
    """
    if swap.stream == "scaled" or scan.coupling is None:
        return swap.width**-2, swap.width**-2
    before, after = scan.coupling.shared(1.0, 1.0), scan.coupling.shared(swap.width, swap.group_width)
    macs, params = (
        whole / (whole - old + new)
        for whole, old, new in zip((scan.cost.macs, scan.cost.params), before, after, strict=True)
    )
    return macs, params


def replacements(traced: Traced, swap: WidthSwap) -> dict[int, Any]:
    """By the ``id`` of each layer (and parameter outside of layers) that becomes narrower, what takes its place.

    Raises ``RewriteError`` when the narrower network does not do what the network does with the others silenced.
    """
    channels, kept = _selected(traced, swap)
    tensors = sliced(channels, kept)
    memo: dict[int, Any] = dict(tensors)
    for module in _layers(traced.module):
        if any(id(tensor) in tensors for tensor in [*module.parameters(), *module.buffers()]):
            memo[id(module)] = renumbered(module, copy.deepcopy(module, dict(tensors)))  # a memo used is a memo spoilt
    for module in traced.names:
        if isinstance(module, CGhost) and any(id(part) in memo for part in module.modules()):
            memo[id(module)] = narrower_ghost(channels, module, memo, kept)
    _check(traced, channels, memo, kept, f"{type(traced.module).__name__} {_REFUSED[swap.stream]}")
    return memo


def outputs_kept(traced: Traced, swap: WidthSwap) -> dict[str, np.ndarray]:
    """By layer, which of its outputs stay."""
    channels, kept = _selected(traced, swap)
    return channels.outputs_kept(kept)


def _differs(original: nn.Module, module: nn.Module, name: str) -> bool:
    """Whether a layer became narrower."""
    one, other = (getattr(part_or_none(network, name), "weight", None) for network in (original, module))
    return one is None or other is None or one.shape != other.shape


def _selected(traced: Traced, swap: WidthSwap) -> tuple[Channels, np.ndarray]:
    try:
        channels = follow(traced, *network_nodes(traced, swap.exclude), sums=swap.stream == "kept")
    except Unreadable as problem:
        raise RewriteError(f"{type(traced.module).__name__} {_REFUSED[swap.stream]}: {problem}.") from None
    counts = _counts(channels.coupling, swap)
    return channels, channels.kept(counts, swap.group_width, channels.strengths() if swap.keep == "strongest" else None)


def _counts(coupling: Coupling, swap: WidthSwap) -> list[int]:
    """How many components of each segment stay."""
    target = thinner(swap.width, swap.round_to, swap.rounding)
    return coupling.keep(target, swap.group_width, apart=swap.stream == "kept", step=swap.round_to)


def _check(traced: Traced, channels: Channels, memo: dict[int, Any], kept: np.ndarray, refused: str) -> None:
    """Refuse a narrower network that fails, or does something else than the network with channels silenced."""
    for run in other_runs(traced):
        _require_run(run, copy.deepcopy(traced.module, dict(memo)), refused)
    inputs = [leaf for leaf in tree_leaves((traced.args, traced.kwargs)) if isinstance(leaf, Tensor)]
    if any(leaf.is_meta for leaf in inputs) or any(parameter.is_meta for parameter in traced.module.parameters()):
        return
    given = _run(traced, copy.deepcopy(traced.module, dict(memo)), refused)
    values = silenced(channels, kept, *inputs)
    wanted = [values[node] for node in network_nodes(traced)[2]]
    found = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    if not any(tensor.isfinite().any() for tensor in wanted):
        raise RewriteError(
            f"{refused}: it gives no finite number on the example, so nothing checks what it gives narrower; "
            "give another example."
        )
    if len(wanted) == len(found) and not _agree(wanted, found, values.values()):
        raise RewriteError(
            f"{refused}: narrower, it does not do what it does with the other channels silenced "
            "(a shuffle or the like needs keep: first, or other widths)."
        )


def _require_run(run: Traced, narrower: nn.Module, refused: str) -> None:
    """Refuse a narrower network that does not run where the network does: in training, or at another size."""
    inputs = [leaf for leaf in tree_leaves((run.args, run.kwargs)) if isinstance(leaf, Tensor)]
    if any(leaf.is_meta for leaf in inputs):
        narrower = without_numbers(narrower)
    where = " in training" if run.training else f" on {' and '.join('x'.join(map(str, leaf.shape)) for leaf in inputs)}"
    given = _run(run, narrower, refused, where)
    shapes = [tuple(leaf.shape) for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    if sorted(shapes) != sorted(run.output_shapes):
        raise RewriteError(f"{refused}: narrower, its outputs have other shapes{where}.")


def _run(run: Traced, narrower: nn.Module, refused: str, where: str = "") -> Any:
    """What a narrower network, which nobody else has, gives in a run."""
    with quiet(narrower):
        narrower.train(run.training)
        try:
            return attempt(narrower, *copy.deepcopy((run.args, run.kwargs)))
        except Failed as problem:
            raise RewriteError(f"{refused}: its code does not run narrower{where} ({problem}).") from None


def _agree(wanted: list[Tensor], found: list[Tensor], values: Iterable[Any]) -> bool:
    precision = coarsest(values, torch.float32)
    return all(agree(*pair, THINNED, precision) for pair in zip(wanted, found, strict=True))


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Modules without children."""
    return (part for part in module.modules() if is_leaf(part) or not any(True for _ in part.children()))
