"""What is proposed of each block by the settings: a swap, or the reason there is none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ghostify.channels import InnerBlock
from ghostify.names import matches
from ghostify.recipe import GhostSettings
from ghostify.rules.base import Skip, cannot_be_fitted
from ghostify.rules.thin.chosen import Chosen, Widths, followed
from ghostify.rules.thin.swap import ThinSwap
from ghostify.scanning import Scan, Site

_STREAMS = "none of its channels is inside a block, because all are outputs or added to others"


def proposed(
    scan: Scan, block: InnerBlock, settings: GhostSettings, unfit: Mapping[str, Site], widths: Widths
) -> ThinSwap | Skip:
    """A swap of a block, or the reason there is none."""
    coupling = followed(scan)
    reasons: list[str] = []
    inner: list[str] = []
    for segment, maker in zip(block.segments, block.makers, strict=True):
        layers = {weight.layer for weight in coupling.touching([segment])}
        reason = _left_alone(scan, block, maker, layers, settings, unfit)
        if reason:
            reasons.append(reason)
        else:
            inner.append(maker)
    if not inner:
        return Skip(target=block.name, reason=reasons[0])
    swap = _swap(scan, block, tuple(dict.fromkeys(inner)), settings)
    whole = Chosen.everything(coupling)
    # Whether rounding leaves anything to be changed is simplest seen by the cost.
    if whole.thinned(block, swap, widths).cost(block.segments) == whole.cost(block.segments):
        return Skip(target=block.name, reason=f"keeps its inner width, because {_rounds(swap)}")
    return swap


def _swap(scan: Scan, block: InnerBlock, inner: tuple[str, ...], settings: GhostSettings) -> ThinSwap:
    """A swap by what is set for all, and over it what is set by name; not yet priced."""
    width, group_width, keep = settings.width, settings.group_width, settings.keep
    for pattern, own in settings.set.items():
        if is_meant(block, pattern):
            width = own.width or width
            group_width = own.group_width or group_width
            keep = own.keep or keep
    return ThinSwap(
        target=block.name,
        geometry=geometry(scan, block),
        inner=inner,
        width=width,
        group_width=group_width or width,
        keep=keep or "strongest",
        round_to=settings.round_to,
        rounding=settings.rounding,
    )


def _left_alone(
    scan: Scan,
    block: InnerBlock,
    maker: str,
    layers: Collection[str],
    settings: GhostSettings,
    unfit: Mapping[str, Site],
) -> str | None:
    """Why the channels that ``maker`` makes stay: nothing a layer makes or reads changes where it is excluded."""
    if not any(matches(name, pattern) for name in (block.name, maker) for pattern in settings.include):
        return "is matched by no include pattern"
    for pattern in settings.exclude:
        if any(matches(name, pattern) for layer in layers for name in _names(scan, layer)):
            return f"is excluded by {pattern!r}"
    if (layer := next((name for name in unfit if name in layers), None)) is not None:
        return cannot_be_fitted(f"{layer} {unfit[layer].unfit}")
    return None


def _names(scan: Scan, layer: str) -> Sequence[str]:
    """All names of a layer."""
    return next((names for names in scan.modules if layer in names), (layer,))


def is_meant(block: InnerBlock, pattern: str) -> bool:
    """Whether a pattern means a block: by its name, or by that of a layer that makes its channels."""
    return any(matches(name, pattern) for name in (block.name, *block.makers))


def geometry(scan: Scan, block: InnerBlock) -> str:
    """The inner widths of a block as a person writes them: ``64+64 inside``."""
    coupling = followed(scan)
    widths = [coupling.width(coupling.of_layer(maker)[0].out) for maker in dict.fromkeys(block.makers)]
    return f"{'+'.join(map(str, widths))} inside"


def _rounds(swap: ThinSwap) -> str:
    if swap.width == 1:
        return "its width is set to 1"
    return f"at {swap.width:g} it rounds to what it is (round_to is {swap.round_to})"


def why_none(scan: Scan, skips: Sequence[Skip], settings: GhostSettings) -> str:
    """Why no block of a network becomes narrower."""
    if scan.idle and not skips:
        return f"{', '.join(scan.idle)} did not run on the example or in training, and what may be read there stays"
    if not skips:
        return _STREAMS
    telling = next((skip for skip in skips if not skip.reason.startswith("keeps its inner width")), None)
    if telling is None:
        return f"at {settings.width:g} they round to what they are (round_to is {settings.round_to})"
    return f"{telling.target} {telling.reason}"
