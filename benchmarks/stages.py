"""Which stages does ghostify find in the networks of torchvision and timm, and which of them can it thin?

    python benchmarks/stages.py [--only GLOB] [--thin] [--output docs/stages.md]

Each network is built with random weights on the meta device and recorded at its natural input size; the table says
its stages (blocks x channels @ resolution), the share of all MACs that lies in them, and the seconds that finding
them took (without the recording).  With ``--thin`` the networks that are small enough are built once more on the CPU,
and every stage is rewritten on real numbers at a ghost ratio of 0.5 and takes a step; Torch-Pruning halves the same
blocks.  Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import timm
import torch
import torch_pruning as tp
import torchvision
from torch import Tensor, nn
from torchvision import models

from ghostify.costs import Cost, count
from ghostify.errors import GhostifyError, TraceError
from ghostify.recipe import GhostSettings
from ghostify.rules import g_ghost
from ghostify.rules.base import Skip
from ghostify.stages import Stage, find_stages
from ghostify.tracing import Traced, trace

COMMAND = "python benchmarks/stages.py --thin --output docs/stages.md"
LARGEST = 80_000_000
"""Networks of more parameters are not thinned: they would take most of the time."""
PATIENCE = 30
"""Seconds of CPU time to thin a stage in."""
SETTINGS = GhostSettings(method="g-ghost", ratio=0.5)
WHO = ("ghostify", "Torch-Pruning")
HOW = f"""
Thinned means: at the default settings, with a ghost ratio of 0.5 and random weights, the G-Ghost stage is built; each
thin block does on real numbers what the block does with the dropped channels silenced; every convolution and linear
layer in the thin blocks has fewer filters than before (unless it had one); the stage runs forward and backward in
training mode on a batch of two, gives maps of the same shape, and every parameter gets a finite gradient; and it has
exactly the parameters that were predicted. Torch-Pruning's `BasePruner` gets the modules of blocks 2 … n behind a 1x1
convolution, which makes the stream (an input has no filters to prune), with `pruning_ratio=0.5` and nothing ignored;
the same step must run, and the stream and the same layers must have become narrower. What its blocks compute is
compared with nothing. A stage that takes more than {PATIENCE} seconds of CPU time is given up.
"""
TIMM = """
bat_resnext26ts botnet26t_256 coat_lite_mini coatnet_0_rw_224 convformer_s18 convmixer_768_32 convnext_tiny
convnextv2_nano cs3darknet_m cspdarknet53 cspresnet50 cspresnext50 darknet53 densenet121 dla60 dpn92 eca_nfnet_l0
edgenext_small efficientformer_l1 efficientnet_lite0 efficientnetv2_rw_s efficientvit_b1 ese_vovnet39b fastvit_t8
fbnetc_100 focalnet_tiny_srf gcresnet50t gernet_m ghostnet_100 ghostnetv2_100 halonet26t hardcorenas_a hgnetv2_b0
hrnet_w18 inception_next_tiny inception_resnet_v2 inception_v4 lcnet_100 legacy_senet154 levit_128 mambaout_tiny
mixnet_s mobilenetv1_100 mobilenetv3_large_100 mobilenetv4_conv_medium mobileone_s1 mobilevit_s mobilevitv2_100
nasnetalarge nf_regnet_b1 nfnet_f0 pnasnet5large poolformer_s12 pvt_v2_b1 regnety_032 regnetz_b16 repghostnet_100
repvgg_b0 repvit_m1 res2net50_26w_4s resnest26d resnest50d resnet26 resnet50d resnetaa50 resnetblur50 resnetrs50
resnetv2_50 rexnet_100 sedarknet21 selecsls60 seresnet50 skresnet34 skresnext50_32x4d spnasnet_100 starnet_s1
tf_efficientnet_b0 tinynet_a tresnet_m vgg16_bn visformer_small vovnet39a wide_resnet50_2 xception41 xception71
"""


@dataclass(frozen=True)
class Network:
    """A network by its library and name."""

    library: str
    name: str

    def build(self) -> nn.Module:
        """On the meta device; what cannot be built there is built on the CPU and moved."""
        try:
            with torch.device("meta"):
                return self._constructor()()
        except (RuntimeError, NotImplementedError):
            return self.build_on_cpu().to("meta")

    def build_on_cpu(self) -> nn.Module:
        """With random weights."""
        torch.manual_seed(0)
        return self._constructor()()

    def _constructor(self) -> Callable[[], nn.Module]:
        if self.library == "timm":
            return partial(timm.create_model, self.name, pretrained=False)
        builder = models.get_model_builder(self.name)
        given: dict[str, object] = {"weights": None}
        if "weights_backbone" in inspect.signature(builder).parameters:
            given["weights_backbone"] = None
        if self.name in ("googlenet", "inception_v3"):
            given["init_weights"] = False  # their own initialisation warns, and takes a minute
        return partial(builder, **given)

    def example(self, model: nn.Module) -> Tensor:
        if self.library == "timm":
            return torch.empty(1, *model.default_cfg["input_size"], device="meta")
        if self.name in dir(models.video):
            return torch.empty(1, 3, 16, 224, 224, device="meta")
        side = 299 if self.name == "inception_v3" else 224
        return torch.empty(1, 3, side, side, device="meta")


@dataclass(frozen=True)
class Attempt:
    """A stage that was to be thinned."""

    network: str
    stage: str
    problems: dict[str, str]
    """By who tried, what went wrong; empty if nothing did."""


@dataclass
class Row:
    """What was found in one network."""

    network: Network
    stages: list[Stage] = field(default_factory=list)
    params: int = 0
    attempts: list[Attempt] = field(default_factory=list)
    share: float = 0.0
    """Of all MACs."""
    seconds: float = 0.0
    problem: str = ""

    def cells(self) -> list[str]:
        found = ", ".join(_shortened(self.stages)) or self.problem or "none"
        share = f"{100 * self.share:.0f}%" if self.stages else ""
        succeeded = (_succeeded(self.attempts, who) for who in WHO)
        counts = [f"{n} of {len(self.attempts)}" if self.attempts else "" for n in succeeded]
        return [f"`{self.network.name}`", self.network.library, found, share, *counts, f"{self.seconds:.3f}"]


def _shortened(stages: list[Stage]) -> Iterator[str]:
    """``4 x 18 @ 56x56``; several alike (the branches of HRNet) are told once."""
    texts = sorted(str(stage).partition(": ")[2] for stage in stages)
    order = [str(stage).partition(": ")[2] for stage in stages]
    for text, alike in groupby(sorted(texts, key=order.index)):
        times = len(list(alike))
        yield text if times == 1 else f"{times} times {text}"


def networks() -> list[Network]:
    """All of torchvision's classifiers and clip readers, its segmentation nets, and the list above."""
    modules = (models, models.segmentation, models.video)
    names = [name for module in modules for name in models.list_models(module=module)]
    return [Network("torchvision", name) for name in names] + [Network("timm", name) for name in TIMM.split()]


def row(network: Network) -> Row:
    """Build, record, find."""
    try:
        model = network.build()
        traced = trace(model, network.example(model), verify=False)
    except (TraceError, RuntimeError) as problem:
        return Row(network, problem=f"not recorded: {problem}".split("\n")[0][:100])
    begin = time.perf_counter()
    stages = find_stages(traced)
    seconds = time.perf_counter() - begin
    whole = sum(op.macs for op in count(traced)[0])
    cost = sum((stage.cost for stage in stages), Cost())
    params = sum(parameter.numel() for parameter in model.parameters())
    return Row(network, stages, params, share=cost.macs / max(1, whole), seconds=seconds)


# -- thinning what was found -----------------------------------------------------------------------------------


def attempts(network: Network) -> list[Attempt]:
    """Thin every stage of a network, by ghostify and by Torch-Pruning."""
    model = network.build_on_cpu()
    _unsettle(model)
    traced = trace(model, torch.randn_like(network.example(model), device="cpu"), verify=False)
    tried = dict(zip(WHO, (_thin_by_ghostify, _halve_by_torch_pruning), strict=True))
    return [
        Attempt(network.name, stage.name, {who: _problem(thin, traced, stage) for who, thin in tried.items()})
        for stage in find_stages(traced)
    ]


class Failure(Exception):
    """A stage is not thinned, or not as it should be."""


def _problem(thin: Callable[[Traced, Stage], None], traced: Traced, stage: Stage) -> str:
    """What went wrong, if anything did."""
    signal.signal(signal.SIGPROF, _give_up)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        thin(traced, stage)
    except (Failure, GhostifyError) as problem:
        return str(problem)
    except Exception as problem:  # whatever it is, it is counted
        return f"{type(problem).__name__}: {problem}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ""


def _give_up(*_: object) -> None:
    raise Failure(f"took more than {PATIENCE} seconds")


def _thin_by_ghostify(traced: Traced, stage: Stage) -> None:
    """Propose, build (each thin block is checked against the original, silenced), take a step, count."""
    swap = g_ghost.propose(stage, SETTINGS)
    if isinstance(swap, Skip):
        raise Failure(swap.reason)
    tail = next(iter(g_ghost.replacements(traced, stage, swap).values()))
    if _step(tail, stage).shape[1] != stage.width:
        raise Failure("gives another width than before")
    for block, thin in zip(stage.blocks[1:], tail.thin, strict=False):
        _check_shrunk([traced.module.get_submodule(name) for name in block.modules], thin)
    counted = stage.blocks[0].cost.params + sum(parameter.numel() for parameter in tail.parameters())
    if counted != swap.after.params:
        raise Failure(f"has {counted} parameters where {swap.after.params} were predicted")


def _halve_by_torch_pruning(traced: Traced, stage: Stage) -> None:
    """Blocks 2 … n behind a 1x1 convolution, which makes the stream, so that it can be halved, too."""
    if not all(block.modules for block in stage.blocks[1:]):
        raise Failure("has a block that is no module, so it was not tried")
    blocks = [copy.deepcopy(traced.module.get_submodule(name)) for b in stage.blocks[1:] for name in b.modules]
    before = copy.deepcopy(blocks)
    conv = nn.Conv3d if len(stage.resolution) == 3 else nn.Conv2d
    model = nn.Sequential(conv(stage.width, stage.width, 1), *blocks).eval()
    importance = tp.importance.MagnitudeImportance(p=2)
    tp.pruner.BasePruner(model, torch.randn(stage.blocks[1].in_shape), importance, pruning_ratio=0.5).step()
    if _step(model, stage).shape[1] >= stage.width:
        raise Failure("the stream keeps its width")
    _check_shrunk(before, model[1:])


def _step(model: nn.Module, stage: Stage) -> Tensor:
    """Forward and backward in training mode on a batch of two."""
    _, *sizes = stage.blocks[1].in_shape
    x = torch.randn(2, *sizes, requires_grad=True)
    y: Tensor = model.train()(x.clone())  # a copy, for the first block may overwrite what it reads
    if y.shape[2:] != x.shape[2:] or len(y) != 2:
        raise Failure(f"gives maps of another size: {tuple(y.shape)}")
    y.square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all()):
            raise Failure(f"{name!r} has no finite gradient")
    return y


def _check_shrunk(before: Sequence[nn.Module], after: nn.Module) -> None:
    """Whether every convolution and linear layer of more than one filter has fewer than it had."""
    widths = [sorted(_filters(modules)) for modules in (before, [after])]
    if len(widths[0]) != len(widths[1]):
        raise Failure("has other layers than before")
    kept = [old for old, new in zip(*widths, strict=True) if new >= old]
    if kept:
        raise Failure(f"{len(kept)} of {len(widths[0])} layers inside keep all their filters")


def _filters(modules: Sequence[nn.Module]) -> Iterator[int]:
    for layer in (part for module in modules for part in module.modules()):
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) and len(layer.weight) > 1:
            yield len(layer.weight)


def _unsettle(model: nn.Module) -> None:
    """Norms, biases and the scales of branches as in a trained network; new ones hide what they are multiplied by."""
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if not tensor.is_floating_point() or tensor.numel() > max(tensor.shape, default=1):
                continue
            if name in ("bias", "running_mean"):
                nn.init.normal_(tensor)
            else:
                nn.init.uniform_(tensor, 0.5, 1.5)


# -- the page --------------------------------------------------------------------------------------------------


def page(rows: list[Row]) -> str:
    """The table as Markdown; its first line is the command that makes it."""
    stages = [stage for row in rows for stage in row.stages]
    children = sum(stage.parent is not None for stage in stages)
    having = [row for row in rows if row.stages]
    times = sorted(row.seconds for row in rows)
    columns = [
        "network",
        "from",
        "stages: blocks x channels @ resolution",
        "MACs in stages",
        "thinned",
        WHO[1],
        "seconds",
    ]
    lines = [
        f"    {COMMAND}",
        "",
        "# Stages found in the networks of torchvision and timm, and thinned",
        "",
        f"{len(stages)} stages in {len(having)} of {len(rows)} networks; the blocks of {children} are the children of",
        "one module each. Finding them took "
        f"{times[len(times) // 2]:.3f} s in the median and {times[-1]:.2f} s at most, on one CPU thread.",
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, "
        f"Torch-Pruning {version('torch-pruning')}.",
        "",
        "A stage is three or more blocks in a row of one width and resolution (`ghostify/stages/` tells how they are",
        'found). "none" is as it should be where a stage has one or two blocks (ResNet18 and 26, VGG13, VoVNet39,',
        "DLA60, SqueezeNet), where every block widens (DenseNet, DPN, ReXNet), and in transformers (no spatial",
        "convolution in a block). Not read: cells with two inputs (NASNet, PNASNet), searched networks whose blocks",
        "differ from one to the next (MixNet, HardCoRe-NAS, MobileNetV4), blocks on channels-last maps (MambaOut).",
        "",
        *_thinning(rows),
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _thinning(rows: list[Row]) -> Iterator[str]:
    """How many stages were thinned, how, and why the others were not."""
    attempts = [attempt for row in rows for attempt in row.attempts]
    if not attempts:
        return
    left = [row for row in rows if row.stages and not row.attempts]
    ours, theirs = (_succeeded(attempts, who) for who in WHO)
    yield f"**Thinned {ours} of {len(attempts)} stages ({100 * ours / len(attempts):.1f} %); Torch-Pruning {theirs} of"
    yield f"{len(attempts)}.** Not tried: {sum(len(row.stages) for row in left)} stages of {len(left)} networks of more"
    yield f"than {LARGEST / 1e6:.0f} million parameters, which would take most of the time."
    yield HOW
    for who in WHO:
        yield from _failures(attempts, who)


def _succeeded(attempts: list[Attempt], who: str) -> int:
    return sum(not attempt.problems[who] for attempt in attempts)


def _failures(attempts: list[Attempt], who: str) -> Iterator[str]:
    """A line for each kind of problem, the most frequent first."""
    kinds: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        if problem := attempt.problems[who]:
            kinds.setdefault(_kind(problem.replace(attempt.stage, "…")), []).append(attempt)
    if kinds:
        yield f"What kept {who} from it:"
        yield ""
    for kind, alike in sorted(kinds.items(), key=lambda one: -len(one[1])):
        found = ", ".join(f"`{network}`" for network in dict.fromkeys(attempt.network for attempt in alike))
        yield f"- {len(alike)} x {kind}: {found}"
    if kinds:
        yield ""


def _kind(problem: str) -> str:
    """A problem without names, numbers and advice; its first line alone."""
    line = re.sub(r"'[^' ]*'", "…", problem.partition("\n")[0].partition(" Leave it out:")[0])
    line = re.sub(r"has a block, [^ ]+,", "has a block, …,", line)
    line = re.sub(r"[…\w]+(\.\w+)+", "…", line)
    return re.sub(r"\d+", "N", line)[:160]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB", help="only networks of such a name")
    parser.add_argument("--thin", action="store_true", help="thin the stages of the smaller networks, too (minutes)")
    parser.add_argument("--output", type=Path, help="write the page here instead of printing it")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for network in networks():
        if fnmatchcase(network.name, options.only):
            rows.append(row(network))
            if options.thin and rows[-1].stages and rows[-1].params <= LARGEST:
                rows[-1].attempts = attempts(network)
            print(" ".join(rows[-1].cells()), file=sys.stderr)
    if not rows:
        print(f"No network is named like {options.only!r}.", file=sys.stderr)
        return 2
    if options.output:
        options.output.write_text(page(rows), encoding="utf-8")
    else:
        print(page(rows))
    return 1 if any(row.problem for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
