"""Recording → Scan, of a network recorded in parts: they are scanned one by one and told as one network.

Every name in the scan is that of the whole.  MACs and activations are those of the parts; what runs between them was
not recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ghostify.costs import Cost, own_params
from ghostify.errors import PlanError
from ghostify.names import within
from ghostify.scanning.naming import leaving, named_in
from ghostify.scanning.result import InParts, Scan, Site
from ghostify.scanning.whole import forms, scan_run
from ghostify.tracing import Recording, qualified_names, tensors_of_call

_UNRECORDED = "lies in no part that can be recorded"


def scan_parts(recording: Recording, stages: Sequence[Sequence[str]] = (), whole: bool = False) -> Scan:
    """The parts as one network, with ``stages`` that are named by hand.

    Raises ``PlanError`` where the channels of the ``whole`` network are asked for.
    """
    if whole:
        raise PlanError(
            f"{recording.name} is not rewritten as a whole, and methods width, thin and mixed take whole networks; "
            "take c-ghost or g-ghost, or in Python one part: ghostify.convert(model.backbone, ...)."
        )
    inside: dict[str, list[list[str]]] = {name: [] for name in recording.parts}
    for blocks in stages:
        if (home := recording.part_of(blocks)) is not None:
            inside[home].append([leaving(home, block) for block in blocks])
    scans = {name: scan_run(traced, stages=inside[name]) for name, traced in recording.parts.items()}
    return merged(recording, recording.model, scans)


def merged(recording: Recording, module: nn.Module, scans: Mapping[str, Scan]) -> Scan:
    """One scan of a copy of the model, made of those of its parts: as ``scans`` tell, by name, or as they were."""
    found = {name: scans.get(name) or scan_run(traced) for name, traced in recording.parts.items()}
    parts = [named_in(name, _placed(recording, name, part)) for name, part in found.items()]
    kinds, names = forms(recording.example)
    return Scan(
        network=recording.name,
        inputs=tuple(tuple(tensor.shape) for tensor in tensors_of_call(recording.example)),
        kinds=kinds,
        names=names,
        sites=(*(site for part in parts for site in part.sites), *_outside(recording, module)),
        others={name: reason for part in parts for name, reason in part.others.items()},
        cost=Cost(
            params=own_params(module),
            macs=sum(part.cost.macs for part in parts),
            acts=sum(part.cost.acts for part in parts),
        ),
        ops=tuple(op for part in parts for op in part.ops),
        stages=tuple(stage for part in parts for stage in part.stages),
        searched=all(part.searched for part in parts),
        unknown=dict(sum((Counter(part.unknown) for part in parts), Counter[str]())),
        params={name: n for part in parts for name, n in part.params.items()},
        modules=tuple(map(tuple, qualified_names(module).values())),
        doubts=(_doubt(recording),),
        parts=_in_parts(recording),
    )


def _in_parts(recording: Recording) -> InParts:
    inputs = {name: tuple(traced.input_shapes) for name, traced in recording.parts.items()}
    return InParts(reason=recording.reason, inputs=inputs)


def _doubt(recording: Recording) -> str:
    why = f" ({recording.reason})" if recording.reason else ""
    counted = ", ".join(recording.parts)
    return f"{recording.name} is not recorded as a whole{why}; MACs and activations are those of {counted}."


def _placed(recording: Recording, name: str, found: Scan) -> Scan:
    """The scan of a part in which what is first or last there alone, and not in the whole, is of its body."""
    inside = [within(module, name) for module in recording.course]
    kept = {"stem": inside[:1] != [False], "classifier": inside[-1:] != [False]}
    sites = (
        site if kept.get(site.role, True) or site.kind == "linear" else site.model_copy(update={"role": "body"})
        for site in found.sites
    )
    return found.model_copy(update={"sites": tuple(sites)})


def _outside(recording: Recording, module: nn.Module) -> Iterator[Site]:
    """The convolutions that are in no part."""
    for part, names in qualified_names(module).items():
        if isinstance(part, _ConvNd) and all(recording.part_of([name]) is None for name in names):
            reason = next((why for home, why in recording.left.items() if within(names[0], home)), None)
            yield _site_outside(part, names, f"lies in a part that {reason}" if reason else _UNRECORDED)


def _site_outside(module: _ConvNd, names: Sequence[str], reason: str) -> Site:
    kinds = {1: "conv1d", 2: "conv", 3: "conv3d"}
    return Site(
        name=names[0],
        aliases=tuple(names[1:]),
        kind="transposed" if module.transposed else kinds[len(module.kernel_size)],  # type: ignore[arg-type]
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=module.kernel_size,
        stride=module.stride,
        groups=module.groups,
        bias=module.bias is not None,
        cost=Cost(params=own_params(module)),
        obstacle=reason,
    )
