"""model + example → TracedParts: what can be recorded of a network that resists as a whole, as one network.

Its scans and plans are as those of any network: every name in them is that of the whole.  Their MACs and activations
are those of the parts; what runs between them was not recorded.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves, tree_map

from ghostify.costs import Cost, own_params
from ghostify.errors import PlanError, TraceError, did_you_mean
from ghostify.names import within
from ghostify.planning import GIVEN_NOTHING, InParts, Plan, check, needs_of, scan_for
from ghostify.recipe import GhostSettings
from ghostify.rewriting.naming import left_by, named_in, of_part
from ghostify.rewriting.rewrite import build, rehearsed
from ghostify.rules import Original, Swap
from ghostify.running import undisturbed
from ghostify.scanning import Scan, Site, forms, scan
from ghostify.tracing import Traced, call_arguments, qualified_names, recordable, trace

_UNRECORDED = "lies in no part that can be recorded"
_SHARING = "shares weights with modules outside of it, which rewriting it alone would cut off"


class NoParts(PlanError):
    """A network has no part that can be rewritten by itself."""


@dataclass
class TracedParts:
    """A model of which parts were recorded, each on what it is given in one run of the whole."""

    model: nn.Module
    example: Any
    reason: str
    """Why it is not recorded as a whole, as a sentence without its end."""
    parts: dict[str, Traced]
    """By qualified name."""
    left: dict[str, str] = field(default_factory=dict)
    """Parts that can be recorded and must not be rewritten alone, and why."""
    course: list[str] = field(default_factory=list)
    """The modules with parameters of their own, as they were called in a run of the whole."""

    def scan(self, wanted: GhostSettings | Plan) -> Scan:
        """The parts as one network, with what settings or a plan need.  Raises ``PlanError`` for rule width."""
        self._require_no_width(wanted)
        return self._merged(self.model, {name: self._scanned(name, wanted) for name in self.parts})

    def plan(self, settings: GhostSettings, device: torch.device | None = None, *, fitted: bool = False) -> Plan:
        """The plan that settings propose, after stages were built once; where the parts are to be ``fitted``, what
        cannot be is left alone.  Raises ``PlanError``.
        """
        self.require_parts()
        return self._told(rehearsed(self.scan(settings), settings, self._build, device, fitted=fitted))

    def require_parts(self) -> TracedParts:
        """Itself, or ``NoParts`` when there is nothing to rewrite."""
        if not self.parts:
            said = (f"{name} {reason}" for name, reason in self.left.items())
            told = next(said, "it has no part with convolutions that can be recorded")
            raise NoParts(f"No part of {self._name} would change: {told}.")
        return self

    def check(self, plan: Plan) -> Plan:
        """A plan as it holds for these parts.  Raises ``PlanError``."""
        for name in plan.parts.inputs if plan.parts else ():
            if name not in self.parts:
                hint = did_you_mean(name, self.parts)
                raise PlanError(f"The plan has a part {name!r}, which {self._name} does not have.{hint}")
        return self._told(check(plan, self.scan(plan)))

    def scanned_with(self, module: nn.Module, scans: Mapping[str, Scan]) -> Scan:
        """The parts of a copy as one network, some of them as ``scans`` tell."""
        return self._merged(module, {name: scans.get(name) or self._plain[name] for name in self.parts})

    @cached_property
    def _plain(self) -> dict[str, Scan]:
        return {name: scan(traced) for name, traced in self.parts.items()}

    def _scanned(self, name: str, wanted: GhostSettings | Plan) -> Scan:
        """The scan of a part, in its own names; anew only for stages named by hand."""
        if isinstance(wanted, Plan):
            own = of_part(wanted, name)
            if any(self._plain[name].stage(blocks) is None for blocks in needs_of(own).stages):
                return scan_for(self.parts[name], own)
        return self._plain[name]

    def _merged(self, module: nn.Module, scans: Mapping[str, Scan]) -> Scan:
        inside = [named_in(name, self._placed(name, found)) for name, found in scans.items()]
        kinds, names = forms(self.example)
        unknown = sum((Counter(found.unknown) for found in inside), Counter[str]())
        return Scan(
            network=self._name,
            inputs=_shapes(self.example),
            kinds=kinds,
            names=names,
            sites=(*(site for found in inside for site in found.sites), *self._outside(module)),
            others={name: reason for found in inside for name, reason in found.others.items()},
            cost=Cost(
                params=own_params(module),
                macs=sum(found.cost.macs for found in inside),
                acts=sum(found.cost.acts for found in inside),
            ),
            ops=tuple(op for found in inside for op in found.ops),
            stages=tuple(stage for found in inside for stage in found.stages),
            unknown=dict(unknown),
            params={name: n for found in inside for name, n in found.params.items()},
            modules=tuple(map(tuple, qualified_names(module).values())),
            doubts=self._doubts(),
        )

    def _outside(self, module: nn.Module) -> Iterator[Site]:
        """The convolutions that are in no part."""
        for part, names in qualified_names(module).items():
            if isinstance(part, _ConvNd) and not any(within(name, home) for name in names for home in self.parts):
                reason = next((why for home, why in self.left.items() if within(names[0], home)), None)
                yield _site_outside(part, names, f"lies in a part that {reason}" if reason else _UNRECORDED)

    def _placed(self, name: str, found: Scan) -> Scan:
        """The scan of a part in which what is first or last there alone, and not in the whole, is of its body."""
        inside = [within(module, name) for module in self.course]
        kept = {"stem": inside[:1] != [False], "classifier": inside[-1:] != [False]}
        sites = (
            site if kept.get(site.role, True) or site.kind == "linear" else site.model_copy(update={"role": "body"})
            for site in found.sites
        )
        return found.model_copy(update={"sites": tuple(sites)})

    def _doubts(self) -> tuple[str, ...]:
        if "" in self.parts:
            return ()
        why = f" ({self.reason})" if self.reason else ""
        counted = ", ".join(self.parts)
        return (f"{self._name} is not recorded as a whole{why}; MACs and activations are those of {counted}.",)

    def _build(self, swap: Swap) -> None:
        name = next(part for part in self.parts if within(swap.target, part))
        traced = self.parts[name]
        build(Original(traced.module, traced, self._plain[name]), left_by(name, swap))

    def _told(self, plan: Plan) -> Plan:
        if "" in self.parts:
            return plan
        inputs = {name: tuple(traced.input_shapes) for name, traced in self.parts.items()}
        return plan.model_copy(update={"parts": InParts(reason=self.reason, inputs=inputs)})

    def _require_no_width(self, wanted: GhostSettings | Plan) -> None:
        if needs_of(wanted).whole:
            raise PlanError(
                f"{self._name} is not rewritten as a whole, and methods width and thin take whole networks; "
                "take c-ghost or g-ghost, or in Python one part: ghostify.convert(model.backbone, ...)."
            )

    @property
    def _name(self) -> str:
        return type(self.model).__name__


@undisturbed()
def trace_parts(model: nn.Module, example: Any, reason: str = "") -> TracedParts:
    """The largest parts of a model that can be recorded.  Raises ``TraceError`` when it does not run."""
    found = recordable(model, example)
    left = {name: _SHARING for name in found if _shares(model, model.get_submodule(name))}
    left |= {name: GIVEN_NOTHING for name, given in found.items() if any(0 in shape for shape in _shapes(given))}
    traced = {
        name: trace(model.get_submodule(name), given, verify=False) for name, given in found.items() if name not in left
    }
    return TracedParts(model, example, reason, traced, left, _course(model, example))


def survey(model: nn.Module, example: Any) -> Scan:
    """The scan of a network, or of its parts where it cannot be recorded as a whole.  Raises ``TraceError``."""
    try:
        return scan(model, example)
    except TraceError as problem:
        try:
            return trace_parts(model, example, reason_of(problem)).require_parts().scan(GhostSettings())
        except (NoParts, TraceError):
            raise problem from None


def reason_of(problem: Exception) -> str:
    """What is wrong, without its end and what to do about it."""
    return re.split(r"[.;] ", str(problem))[0].removesuffix(".")


def run_told(module: nn.Module, example: Any, told: Callable[[nn.Module], None]) -> None:
    """Run a module that nobody else has, in eval mode, and tell of every module that is called."""
    args, kwargs = tree_map(_cloned, call_arguments(example))
    hook = register_module_forward_pre_hook(lambda part, args: told(part))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            module.eval()(*args, **kwargs)
    finally:
        hook.remove()


def _course(model: nn.Module, example: Any) -> list[str]:
    private = copy.deepcopy(model)
    names = {part: name for name, part in private.named_modules() if any(True for _ in part.parameters(recurse=False))}
    called: list[nn.Module] = []
    run_told(private, example, called.append)
    return [names[part] for part in called if part in names]


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


def _shares(model: nn.Module, part: nn.Module) -> bool:
    """Whether a part has a module or a parameter that others reach, too."""
    outside: set[nn.Module] = set()
    waiting = [] if model is part else [model]
    while waiting:
        module = waiting.pop()
        outside.add(module)
        waiting.extend(child for child in module.children() if child is not part and child not in outside)
    parameters = {id(parameter) for module in outside for parameter in module.parameters(recurse=False)}
    return any(module in outside for module in part.modules()) or any(id(p) in parameters for p in part.parameters())


def _cloned(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _shapes(example: Any) -> tuple[tuple[int, ...], ...]:
    leaves = tree_leaves(call_arguments(example))
    return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor))
