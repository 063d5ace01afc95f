"""Does ghostify keep its promises on every network of torchvision, and on those of every architecture file of timm?

    python benchmarks/conformance.py [--only GLOB] [--jobs N] [--output docs/conformance.md] [--json FILE]
    python benchmarks/conformance.py --library timm [...] [--output docs/conformance-timm.md]
    python benchmarks/conformance.py --method g-ghost [...] [--output docs/conformance-g-ghost.md]

Each network is built with random weights and its natural input size, scanned, planned with the method's default
settings and rewritten, all on the meta device (shapes and counts, no numbers), and every property below is checked.
The smaller ones then run on real numbers as well.  A network that breaks a promise is a row with its reason.

``--json`` keeps one line per network; a later run takes from it what the same sources and torch have found already.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import inspect
import json
import math
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from ghostify.costs import Cost, own_params
from ghostify.errors import PlanError
from ghostify.planning import Plan, check, plan, read_plan, scan_for
from ghostify.recipe import GhostSettings
from ghostify.rewriting import Ghosted, counted, rehearse, rewrite
from ghostify.rules import GGhostSwap, Swap
from ghostify.scanning import Scan, scan
from ghostify.stages import Stage
from ghostify.tracing import Traced, trace

Method = Literal["c-ghost", "g-ghost"]
GHOSTS: dict[Method, str] = {"c-ghost": "C-Ghost modules", "g-ghost": "G-Ghost stages"}

OUT_OF_SCOPE = {
    models.detection: "their outputs are lists of boxes whose number depends on the pixels, so no one shape is kept; "
    "`ghostify.convert` rewrites what can be recorded of them, and `tests/test_detection.py` tries it",
    models.optical_flow: "they read pairs of frames and refine one flow in a loop, with its own input protocol; "
    "`tests/test_detection.py` tries one",
}
NUMERIC_PARAMS, NUMERIC_SIZE, NUMERIC_MACS = 60e6, 299, 16e9
"""A network runs on real numbers below these; at this many MACs that is some 10 s on one thread."""
FRAMES = 16
"""Of a clip."""
TIMM_MACS = 1e9
"""The same for timm, whose networks are many."""
PER_FILE = 6
"""Networks of each architecture file of timm, of its names' order evenly."""


# -- the networks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """One network of torchvision or timm by name, and the method it is asked with."""

    name: str
    kind: str
    method: Method = "c-ghost"

    def build(self, device: str) -> nn.Module:
        """With random weights on ``device``; a constructor that needs real numbers runs on the CPU and moves."""
        make = self._maker()
        try:
            with torch.device(device):
                return make()
        except (RuntimeError, NotImplementedError):  # whatever else is wrong, the second try raises it
            return make().to(device)

    def _maker(self) -> Callable[[], nn.Module]:
        if self.kind == "timm":
            import timm

            return lambda: timm.create_model(self.name, pretrained=False)
        builder = models.get_model_builder(self.name)
        given: dict[str, Any] = {"weights": None}
        if "weights_backbone" in inspect.signature(builder).parameters:
            given["weights_backbone"] = None
        if any(part in self.name for part in ("googlenet", "inception")):
            given["init_weights"] = False  # their own initialisation warns, and takes a minute
        return lambda: builder(**given)

    def shape(self, model: nn.Module) -> tuple[int, ...]:
        """Of its natural input: what it was built for, else what its trained weights were evaluated at."""
        if self.kind == "timm":
            channels, height, width = model.pretrained_cfg["input_size"]  # type: ignore[index]
            return channels, height, width
        size = self._side(model)
        return (3, FRAMES, size, size) if self.kind == "video" else (3, size, size)

    @property
    def most_macs(self) -> float:
        """It runs on real numbers up to so many."""
        return TIMM_MACS if self.kind == "timm" else NUMERIC_MACS

    def _side(self, model: nn.Module) -> int:
        preset = models.get_model_weights(self.name).DEFAULT.transforms.keywords
        found = getattr(model, "image_size", None) or preset.get("crop_size") or preset["resize_size"]
        return found[-1] if isinstance(found, (list, tuple)) else found


def networks(only: str = "*", method: Method = "c-ghost") -> list[Network]:
    """Classification (with the quantizable ones, in their floating-point form), segmentation and video networks."""
    kinds = {
        "classification": models,
        "quantizable": models.quantization,
        "segmentation": models.segmentation,
        "video": models.video,
    }
    return [
        Network(name, kind, method)
        for kind, module in kinds.items()
        for name in models.list_models(module=module)
        if fnmatchcase(name, only)
    ]


def timm_networks(only: str = "*", method: Method = "c-ghost") -> list[Network]:
    """Some of every architecture file, whether it has convolutions or not."""
    import timm
    from timm.models import model_entrypoint

    files: dict[str, list[str]] = {}
    for name in timm.list_models():
        files.setdefault(model_entrypoint(name).__module__, []).append(name)
    chosen = [name for names in files.values() for name in names[:: -(-len(names) // PER_FILE)]]
    return [Network(name, "timm", method) for name in chosen if fnmatchcase(name, only)]


# -- one network, rewritten ------------------------------------------------------------------------------------


@dataclass
class Case:
    """A network on its way through ghostify; what a property looks at."""

    model: nn.Module
    example: Tensor
    method: Method = "c-ghost"
    snapshot: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.snapshot = snapshot(self.model)

    @cached_property
    def traced(self) -> Traced:
        return trace(self.model, self.example)

    @property
    def settings(self) -> GhostSettings:
        return GhostSettings(method=self.method)

    @cached_property
    def scan(self) -> Scan:
        return scan_for(self.traced, self.settings)

    @cached_property
    def plan(self) -> Plan:
        """On real numbers after a rehearsal, which leaves alone what turns out not to work with fewer channels."""
        return plan(self.scan, self.settings) if self.example.is_meta else rehearse(self.traced, self.settings)

    @cached_property
    def ghosted(self) -> Ghosted:
        return rewrite(self.traced, self.plan)

    @cached_property
    def twin(self) -> nn.Module:
        """A copy of the model to be run: some remember their runs."""
        return copy.deepcopy(self.model)

    @cached_property
    def flops(self) -> dict[str, int]:
        """torch's own count for the model as it was, by qualified module name."""
        return flops_by_module(self.twin, self.example)

    @cached_property
    def ghost_flops(self) -> dict[str, int]:
        return flops_by_module(self.ghosted.module, self.example)

    @property
    def stages(self) -> list[Stage]:
        """What a plan for G-Ghost stages can swap."""
        return list(self.scan.stages) if self.method == "g-ghost" else []

    @property
    def swapped(self) -> list[Stage]:
        """The stages that the plan swaps."""
        named = [swap.blocks for swap in self.plan.swaps if isinstance(swap, GGhostSwap)]
        return [stage for blocks in named if (stage := self.scan.stage(blocks))]

    @property
    def stageless(self) -> bool:
        """Whether there can be no plan, for want of stages."""
        return self.method == "g-ghost" and not self.stages

    @property
    def nothing(self) -> str:
        """Why there is nothing to ghost; empty when there is something."""
        if self.stageless:
            return "no stage"
        try:
            self.plan.require_changes()
        except PlanError as reason:
            return str(reason).rpartition("left alone: ")[2]
        return ""


def meta_case(network: Network) -> Case:
    """The network and one image of its natural size, on the meta device."""
    model = network.build("meta")
    return Case(model, torch.empty(1, *network.shape(model), device="meta"), network.method)


def snapshot(model: nn.Module) -> list[Any]:
    """Everything about a module that ghostify must leave alone: its parts, modes, hooks, tensors and their versions.

    A tensor's version counts the writes to it, also on the meta device, where there are no values to compare.
    """
    parts = [
        (name, id(part), part.training, sorted(vars(part)), len(part._forward_hooks), len(part._forward_pre_hooks))
        for name, part in model.named_modules(remove_duplicate=False)
    ]
    tensors = [
        (name, id(tensor), tensor._version, tensor.requires_grad, tensor.grad is None, str(tensor.device))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    ]
    return [parts, tensors, type(model).forward, nn.Module.__call__]


def flops_by_module(model: nn.Module, example: Tensor) -> dict[str, int]:
    """FLOPs counted by torch in eval mode, by qualified name; "" is the whole."""
    modes = {part: part.training for part in model.modules()}
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            model.eval()(example)
    finally:
        for part, training in modes.items():
            part.training = training
    root = type(model).__name__
    found = {name.removeprefix(root).removeprefix("."): sum(ops.values()) for name, ops in counter.flop_counts.items()}
    return found | {"": counter.get_total_flops()}


# -- the properties: a sentence for what is broken, or None -----------------------------------------------------


def input_model_untouched(case: Case) -> str | None:
    if snapshot(case.model) != case.snapshot:
        pairs = zip(case.snapshot, snapshot(case.model), strict=True)
        was, now = next((was, now) for was, now in pairs if was != now)
        return f"the input model changed: {_first_difference(was, now)}"
    return None


def output_shapes_kept(case: Case) -> str | None:
    was, now = _output_shapes(case.twin, case.example), _output_shapes(case.ghosted.module, case.example)
    return None if was == now else f"outputs of {was} became {now}"


def predicted_is_counted(case: Case) -> str | None:
    """The plan's costs beside a fresh scan, torch's flop counter and the parameters that are there."""
    after = scan(case.ghosted.module, case.example)
    for swap in case.ghosted.plan.swaps:
        name, kept = _slot(case.ghosted, swap)
        made = swap.after - kept
        found = {
            "cost": (swap.after, counted(swap, case.ghosted.before, after)),
            "params": (made.params, own_params(case.ghosted.module.get_submodule(name))),
            "FLOPs": (2 * made.macs, case.ghost_flops.get(name)),
        }
        for what, (predicted, count) in found.items():
            if predicted != count:
                return f"{swap.target}: {what} predicted {predicted}, counted {count}"
    whole = case.ghosted.plan.after
    if 2 * whole.macs != case.ghost_flops[""]:
        return f"whole: FLOPs predicted {2 * whole.macs}, counted {case.ghost_flops['']}"
    return None if whole == after.cost else f"whole: predicted {whole}, counted {after.cost}"


def planning_again_proposes_nothing(case: Case) -> str | None:
    seen = scan(case.ghosted.module, case.example)
    if case.method == "g-ghost" and not seen.stages:
        return None
    again = plan(seen, case.settings).swaps
    return f"planning again proposes {again[0].target} and {len(again) - 1} more" if again else None


def plan_survives_its_file(case: Case) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.yaml"
        path.write_text(case.plan.to_yaml(), encoding="utf-8")
        read = read_plan(path)
    if read != case.plan:
        return "the plan read from its file is another"
    return None if check(read, case.scan) == case.plan else "the plan read from its file is another once checked"


def every_convolution_has_its_line(case: Case) -> str | None:
    """A swap or a skip with a reason for each convolution module, once, and the same of every site.

    A convolution in a swapped stage has that stage's line.
    """
    convs = {name for name, part in case.model.named_modules() if isinstance(part, nn.modules.conv._ConvNd)}
    said = Counter([entry.target for entry in (*case.plan.swaps, *case.plan.skips)])
    missing = (convs | {site.name for site in case.scan.sites}) - said.keys()
    missing -= {name for name in missing if any(stage.holds(name) for stage in case.swapped)}
    missing |= {stage.name for stage in case.stages} - said.keys()
    if missing:
        return f"{min(missing)} is neither a swap nor a skip"
    if twice := [name for name, times in said.items() if times > 1]:
        return f"{twice[0]} is planned twice"
    mute = next((skip.target for skip in case.plan.skips if not skip.reason.strip()), None)
    return f"{mute} is skipped without a reason" if mute else None


def macs_equal_torchs(case: Case) -> str | None:
    if case.scan.cost.macs * 2 != case.flops[""]:
        return f"counted {case.scan.cost.macs} MACs, torch {case.flops[''] / 2:.0f}" + _unknown(case.scan)
    if not case.nothing and case.ghosted.after.cost.macs * 2 != case.ghost_flops[""]:
        return f"counted {case.ghosted.after.cost.macs} MACs after, torch {case.ghost_flops[''] / 2:.0f}"
    return None


def refused_without_a_stage(case: Case) -> str | None:
    try:
        made = case.plan
    except PlanError as reason:
        return None if "has no stage" in str(reason) else f"refused for another reason: {one_line(reason)}"
    return f"a network without a stage has a plan of {len(made.swaps)} swaps"


PROPERTIES: dict[str, Callable[[Case], str | None]] = {
    "refused": refused_without_a_stage,
    "lines": every_convolution_has_its_line,
    "file": plan_survives_its_file,
    "MACs": macs_equal_torchs,
    "shapes": output_shapes_kept,
    "costs": predicted_is_counted,
    "again": planning_again_proposes_nothing,
    "untouched": input_model_untouched,  # last: everything has been done by then
}
OF_A_PLAN = frozenset({"lines", "file"})
OF_A_REWRITE = frozenset({"shapes", "costs", "again"})


def broken(case: Case) -> list[str]:
    """The properties that do not hold, by their reason; those of a rewrite are asked only where there is one."""
    spared = (OF_A_REWRITE if case.nothing else frozenset()) | (OF_A_PLAN if case.stageless else {"refused"})
    names = [name for name in PROPERTIES if name not in spared]
    found: dict[str, list[str]] = {}
    for name in names:
        if reason := _reason(PROPERTIES[name], case):
            found.setdefault(reason, []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in found.items()]


def _reason(of: Callable[[Case], str | None], case: Case) -> str | None:
    try:
        return of(case)
    except Exception as problem:  # whatever goes wrong inside is the reason
        return f"{type(problem).__name__}: {one_line(problem)}"


def _slot(ghosted: Ghosted, swap: Swap) -> tuple[str, Cost]:
    """The module that a swap put in, and what its cost includes besides: the first block of a stage, which stays."""
    stage = ghosted.before.stage(swap.blocks) if isinstance(swap, GGhostSwap) else None
    return (stage.slot, stage.entry.cost) if stage else (swap.target, Cost())


def _output_shapes(model: nn.Module, example: Tensor) -> list[tuple[int, ...]]:
    modes = {part: part.training for part in model.modules()}
    try:
        with torch.no_grad():
            return [tuple(leaf.shape) for leaf in _tensors(model.eval()(example))]
    finally:
        for part, training in modes.items():
            part.training = training


def _tensors(output: Any) -> list[Tensor]:
    leaves = tree_flatten(output if not hasattr(output, "_asdict") else output._asdict())[0]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _first_difference(was: Any, now: Any) -> str:
    if not isinstance(was, list) or len(was) != len(now):
        return "its parts"
    return str(next((a[0] for a, b in zip(was, now, strict=True) if a != b), "its parts"))


def _unknown(scan: Scan) -> str:
    return f" ({scan.uncounted.rstrip('.')})" if scan.unknown else ""


# -- on real numbers -------------------------------------------------------------------------------------------


def too_large(network: Network, case: Case) -> str | None:
    """Why a network does not run on real numbers here; None if it does."""
    size = case.example.shape[-1]
    cost = case.scan.cost
    if cost.params >= NUMERIC_PARAMS:
        return f"not run: {cost.params / 1e6:.0f} M params"
    if size > NUMERIC_SIZE and network.kind != "segmentation":
        return f"not run: {size}x{size} input"
    return f"not run: {cost.macs / 1e9:.0f} G MACs" if _numeric_macs(network, case) > network.most_macs else None


def numeric_size(network: Network, case: Case) -> int:
    """Side of the images; segmentation networks take any, and theirs are cut to a quarter."""
    return case.example.shape[-1] // (4 if network.kind == "segmentation" else 1)


def _numeric_macs(network: Network, case: Case) -> float:
    return case.scan.cost.macs * (numeric_size(network, case) / case.example.shape[-1]) ** 2


def numeric_case(network: Network, size: int) -> Case:
    """The network and one image of that size, on the CPU."""
    torch.manual_seed(0)
    model = network.build("cpu")
    return Case(model, torch.randn(1, *network.shape(model)[:-2], size, size), network.method)


def numeric_problem(case: Case) -> str | None:
    """Trace (verified by replay), rewrite, run and train one step on real numbers; what goes wrong, or None."""
    model, size = case.model, case.example.shape[-1]
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ghosted = case.ghosted
    with torch.no_grad():
        if not all(leaf.isfinite().all() for leaf in _tensors(ghosted.module.eval()(case.example))):
            return "the forward pass is not finite"
    if reason := _gradient_problem(ghosted, size) or input_model_untouched(case):
        return reason
    wrote = next((name for name, tensor in model.state_dict().items() if not tensor.equal(values[name])), None)
    return f"{wrote} of the input model was written to" if wrote else None


def _gradient_problem(ghosted: Ghosted, size: int) -> str | None:
    outputs = _tensors(ghosted.module.train()(torch.randn(2, *ghosted.before.inputs[0][1:-2], size, size)))
    sum(leaf.square().mean() for leaf in outputs).backward()
    for swap in ghosted.plan.swaps:
        slot, _ = _slot(ghosted, swap)
        for name, parameter in ghosted.module.get_submodule(slot).named_parameters():
            if not parameter.requires_grad:
                return f"{slot}.{name} does not train"
            if parameter.grad is None or not parameter.grad.isfinite().all():
                return f"{slot}.{name} got no finite gradient"
    return None


def _numeric(row: Row, network: Network, case: Case) -> str:
    if case.nothing:
        return "not run: nothing to ghost"
    if reason := too_large(network, case):
        return reason
    size = numeric_size(network, case)
    try:
        real = numeric_case(network, size)
        skips = {skip.target: skip.reason for skip in real.plan.skips}
        row.hindered = {stage.name: skips[stage.name] for stage in case.swapped if stage.name in skips}
        if real.nothing:
            return "not run: no stage works with fewer channels on real numbers"
        problem = numeric_problem(real)
    except Exception as error:  # a failure is a row
        problem = f"{type(error).__name__}: {one_line(error)}"
    return problem or ("✓" if size == case.example.shape[-1] else f"✓ at {size}x{size}")


# -- rows ------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What was found of one network."""

    name: str
    kind: str
    key: str
    method: Method = "c-ghost"
    size: int = 0
    stages: int = 0
    left: dict[str, str] = field(default_factory=dict)
    """The stages left alone, and why."""
    hindered: dict[str, str] = field(default_factory=dict)
    """The stages left alone only on real numbers, and why."""
    convolutions: int = 0
    swaps: int = 0
    skips: int = 0
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    nothing: str = ""
    unknown: str = ""
    numeric: str = "not run"
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return bool(self.broken) or not self.numeric.startswith(("✓", "not run"))

    @property
    def verdict(self) -> str:
        if self.broken:
            return "; ".join(self.broken)
        return f"✓ nothing to ghost: {self.nothing}" if self.nothing else "✓"

    def __str__(self) -> str:
        counts = f"{self.convolutions:4d} convs {self.swaps:4d} swaps {self.skips:4d} left"
        return f"{self.name:32s} {counts}  {self.seconds:5.1f} s  {self.verdict} | numbers: {self.numeric}"


def examine(network: Network) -> Row:
    """The row of one network; never raises."""
    torch.set_num_threads(1)
    row, start = Row(network.name, network.kind, source_key(network.method), network.method), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _fill(row, network)
        except Exception as problem:
            row.broken.append(f"{type(problem).__name__}: {one_line(problem)}")
    row.seconds = round(time.perf_counter() - start, 2)
    return row


def _fill(row: Row, network: Network) -> None:
    case = meta_case(network)
    row.size = case.example.shape[-1]
    convs = {site.name for site in case.scan.sites if site.kind != "linear"}
    row.convolutions, row.unknown = len(convs), case.scan.uncounted
    if not convs:
        row.nothing, row.numeric = "no convolution", "not run: no convolution"
        return
    row.nothing, row.broken = case.nothing, broken(case)
    row.before = row.after = case.scan.cost.model_dump()
    row.skips = len(convs)
    if not case.stageless:
        _fill_from_plan(row, case, convs)
    row.numeric = _numeric(row, network, case)


def _fill_from_plan(row: Row, case: Case, convs: set[str]) -> None:
    stages = {stage.name for stage in case.stages}
    row.stages = len(stages)
    row.left = {skip.target: skip.reason for skip in case.plan.skips if skip.target in stages}
    taken = {name for name in convs if any(stage.holds(name) for stage in case.swapped)}
    row.swaps = len(taken | {swap.target for swap in case.plan.swaps if swap.target in convs})
    row.skips = sum(skip.target in convs for skip in case.plan.skips)
    row.after = case.plan.after.model_dump()


def one_line(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:200]


@cache
def source_key(method: Method = "c-ghost") -> str:
    """What a cached row depends on: the method, the sources imported here and the versions."""
    digest = hashlib.sha256(f"{method} {torch.__version__} {torchvision.__version__}".encode())
    loaded = [str(module.__file__) for name, module in sys.modules.items() if name.startswith("ghostify")]
    for path in [__file__, *sorted(loaded)]:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]


def cached_rows(path: Path | None, method: Method = "c-ghost") -> dict[str, Row]:
    """Rows of an earlier run with that method that still hold, by name."""
    if path is None or not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}"))
    return {line["name"]: Row(**line) for line in lines if line["key"] == source_key(method)}


def rows_of(wanted: list[Network], jobs: int, kept: Path | None) -> Iterator[Row]:
    """A row per network, as they come; each is appended to ``kept``."""
    known = {method: cached_rows(kept, method) for method in {network.method for network in wanted}}
    yield from (known[network.method][network.name] for network in wanted if network.name in known[network.method])
    todo = [network for network in wanted if network.name not in known[network.method]]
    for row in _examined(todo, jobs):
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        yield row


def _examined(todo: list[Network], jobs: int) -> Iterator[Row]:
    if jobs == 1:
        yield from map(examine, todo)
        return
    with ProcessPoolExecutor(jobs) as pool:
        futures = {pool.submit(examine, network): network for network in todo}
        for future in as_completed(futures):
            try:
                yield future.result()
            except Exception as problem:  # a worker that died takes its row with it, not the run
                network = futures[future]
                row = Row(network.name, network.kind, source_key(network.method), network.method)
                row.broken.append(f"the worker died: {one_line(problem)}")
                yield row


# -- the document ----------------------------------------------------------------------------------------------


def document(rows: Iterable[Row], command: str) -> str:
    """The rows, all of one method, as docs/conformance.md or docs/conformance-g-ghost.md."""
    rows = sorted(
        (row for row in rows if row.convolutions or row.failed), key=lambda row: (row.kind, _natural(row.name))
    )
    method = rows[0].method
    scope = [] if rows[0].kind == "timm" else [_scope(method)]
    parts = [_summary(rows, method), _table(rows, method), *scope, _legend(method)]
    return "\n".join([f"`{command}` wrote this page.", *(line for part in parts for line in ("", *part))])


def _summary(rows: list[Row], method: Method) -> Iterator[str]:
    changed = [row for row in rows if row.swaps]
    numeric = [row for row in rows if row.numeric.startswith("✓")]
    not_run = [row for row in rows if row.numeric.startswith("not run")]
    yield "# Conformance" if method == "c-ghost" else f"# Conformance: {GHOSTS[method]}"
    yield ""
    settings = "default settings" if method == "c-ghost" else f"method {method} with its default settings"
    if rows[0].kind == "timm":
        yield f"Up to {PER_FILE} networks of every architecture file, of those that have convolutions."
        yield ""
    yield (
        f"{len(rows)} networks of {_library(rows[0])} on torch "
        f"{torch.__version__.split('+')[0]}, {settings}, random weights."
    )
    yield ""
    yield f"- every property held: **{sum(not row.failed for row in rows)} of {len(rows)}**"
    yield f"- rewritten: {len(changed)}; nothing to ghost by default: {sum(bool(row.nothing) for row in rows)}"
    yield f"- ran and trained a step on real numbers: {len(numeric)}, not run: {len(not_run)}"
    swaps, skips = sum(row.swaps for row in rows), sum(row.skips for row in rows)
    if method == "c-ghost":
        yield f"- {swaps + skips} convolutions: {swaps} swapped, {skips} left alone, each with its reason"
    else:
        yield from _summary_of_stages(rows)
        yield f"- {swaps + skips} convolutions: {swaps} in swapped stages, {skips} left alone"
    if unknown := Counter(row.unknown for row in rows if row.unknown):
        yield "- " + "; ".join(f"{text} ({times} networks)" for text, times in unknown.items())
    for row in (row for row in rows if row.failed):
        yield f"- broken: {row.name}: {'; '.join(row.broken) or row.numeric}"


def _library(row: Row) -> str:
    """The library that a network is of, with its version."""
    import importlib.metadata

    name = "timm" if row.kind == "timm" else "torchvision"
    return f"{name} {importlib.metadata.version(name).split('+')[0]}"


def _summary_of_stages(rows: list[Row]) -> Iterator[str]:
    stages, left, hindered = (
        sum(count) for count in zip(*((row.stages, len(row.left), len(row.hindered)) for row in rows), strict=True)
    )
    yield f"- {stages} stages: {stages - left} swapped, {left} left alone, each with its reason"
    yield (
        "- swapped on the meta device, left alone on real numbers (where a thinned block is compared with the "
        f"original): {hindered}"
    )
    for row in rows:
        for name, reason in row.left.items():
            yield f"- left alone: {row.name}: {name} {reason}"
        for name, reason in row.hindered.items():
            yield f"- left alone on real numbers: {row.name}: {name} {reason}"


def _table(rows: list[Row], method: Method) -> Iterator[str]:
    counts = ("convolutions", "swaps", "skipped")
    if method == "g-ghost":
        counts = ("stages", "swaps", "convolutions", "in swapped stages")
    columns = ("network", "input", *counts, "G MACs before → after", "params ratio", "held", "numeric")
    yield f"| {' | '.join(columns)} |"
    yield f"|---|{'--:|' * (len(counts) + 3)}---|---|"
    for row in rows:
        found = (row.convolutions, row.swaps, row.skips)
        if method == "g-ghost":
            found = (row.stages, row.stages - len(row.left), row.convolutions, row.swaps)
        yield (
            f"| {row.name} | {row.size} | {' | '.join(map(str, found))} | {_macs(row)} | "
            f"{_ratio(row)} | {row.verdict.replace('|', '/')} | {row.numeric.replace('|', '/')} |"
        )


def _scope(method: Method) -> Iterator[str]:
    yield "Out of scope of this page:"
    yield ""
    for module, reason in OUT_OF_SCOPE.items():
        names = ", ".join(models.list_models(module=module))
        yield f"- {module.__name__.rpartition('.')[2]}: {reason.format(ghosts=GHOSTS[method])} ({names})."


def _legend(method: Method) -> list[str]:
    accounted = "every convolution is a swap or a skip with a reason"
    again = "planning the rewritten network again proposes nothing"
    if method == "g-ghost":
        accounted = "every convolution is in a swapped stage or a skip with a reason, every stage is a swap or a skip"
        again += ", or finds no stage; a network without stages is refused"
    return [
        "*held* is ✓ when all of these are true of the network, on the meta device:",
        "",
        f"- {accounted}, and the plan survives its file;",
        "- the MACs counted are torch's `FlopCounterMode` / 2, before and after;",
        "- the output shapes are kept; the cost predicted for each swap and for the whole is the cost counted;",
        f"- {again};",
        "- the input model is untouched: its modules, modes, hooks, tensors and their version counters.",
        "",
        "*numeric* is ✓ when on real numbers the recording replays, the rewritten network's forward pass is finite,",
        "one training step gives every parameter of every swap a finite gradient, and the input model keeps every bit.",
        "Segmentation networks do so on images of a quarter of the side.  Not run are networks of "
        f"{NUMERIC_PARAMS / 1e6:.0f} M parameters and",
        f"more, of inputs above {NUMERIC_SIZE} pixels, or of more than {NUMERIC_MACS / 1e9:.0f} G MACs (of timm "
        f"{TIMM_MACS / 1e9:g}).",
        "",
    ]


def _macs(row: Row) -> str:
    if not row.before:
        return ""
    before, after = row.before["macs"] / 1e9, row.after["macs"] / 1e9
    digits = max(0, 2 - int(math.log10(after))) if after >= 1 else 3
    return f"{before:.{digits}f} → {after:.{digits}f}"


def _ratio(row: Row) -> str:
    return f"{row.before['params'] / row.after['params']:.2f}" if row.after else ""


def _natural(name: str) -> list[Any]:
    """Names in the order a person counts: resnet18 before resnet101."""
    runs = "".join(c if c.isdigit() else f" {c} " for c in name).split()
    return [(1, int(run), "") if run.isdigit() else (0, 0, run) for run in runs]


# -- the command -----------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default="*", metavar="GLOB", help="networks whose name matches")
    parser.add_argument("--method", default="c-ghost", choices=list(GHOSTS), help="what a plan proposes (c-ghost)")
    parser.add_argument("--library", default="torchvision", choices=["torchvision", "timm"])
    parser.add_argument("--jobs", type=int, default=1, help="processes, each of one thread")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the page here (docs/conformance.md or conformance-g-ghost.md)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the rows here, and take them up again")
    options = parser.parse_args()
    found = timm_networks if options.library == "timm" else networks
    wanted = found(options.only, options.method)
    if not wanted:
        parser.error(f"no network matches {options.only!r}")
    rows = []
    for row in rows_of(wanted, options.jobs, options.json):
        print(row, flush=True)
        rows.append(row)
    failed = sum(row.failed for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} networks hold every property")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(document(rows, _command()), encoding="utf-8")
    return 1 if failed else 0


def _command() -> str:
    return " ".join(["python", "benchmarks/conformance.py", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
