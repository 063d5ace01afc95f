"""Which stages does ghostify find in the networks of torchvision and timm?

    python benchmarks/stages.py [--only GLOB] [--output docs/stages.md]

Each network is built with random weights on the meta device and recorded at its natural input size; the table says
its stages (blocks x channels @ resolution), the share of all MACs that lies in them, and the seconds that finding
them took (without the recording).  Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn
from torchvision import models

from ghostify.costs import Cost, count
from ghostify.errors import TraceError
from ghostify.stages import Stage, find_stages
from ghostify.tracing import trace

COMMAND = "python benchmarks/stages.py --output docs/stages.md"
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
        """With random weights on the meta device; what cannot be built there is built on the CPU and moved."""
        try:
            with torch.device("meta"):
                return self._constructor()()
        except (RuntimeError, NotImplementedError):
            return self._constructor()().to("meta")

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

    def example(self, model: nn.Module) -> torch.Tensor:
        if self.library == "timm":
            return torch.empty(1, *model.default_cfg["input_size"], device="meta")
        if self.name in dir(models.video):
            return torch.empty(1, 3, 16, 224, 224, device="meta")
        side = 299 if self.name == "inception_v3" else 224
        return torch.empty(1, 3, side, side, device="meta")


@dataclass
class Row:
    """What was found in one network."""

    network: Network
    stages: list[Stage] = field(default_factory=list)
    share: float = 0.0
    """Of all MACs."""
    seconds: float = 0.0
    problem: str = ""

    def cells(self) -> list[str]:
        found = ", ".join(_shortened(self.stages)) or self.problem or "none"
        share = f"{100 * self.share:.0f}%" if self.stages else ""
        return [f"`{self.network.name}`", self.network.library, found, share, f"{self.seconds:.3f}"]


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
    return Row(network, stages, cost.macs / max(1, whole), seconds)


def page(rows: list[Row]) -> str:
    """The table as Markdown; its first line is the command that makes it."""
    stages = [stage for row in rows for stage in row.stages]
    children = sum(stage.parent is not None for stage in stages)
    having = [row for row in rows if row.stages]
    times = sorted(row.seconds for row in rows)
    columns = ["network", "from", "stages: blocks x channels @ resolution", "MACs in stages", "seconds"]
    lines = [
        f"    {COMMAND}",
        "",
        "# Stages found in the networks of torchvision and timm",
        "",
        f"{len(stages)} stages in {len(having)} of {len(rows)} networks; the blocks of {children} are the children of",
        "one module each. Finding them took "
        f"{times[len(times) // 2]:.3f} s in the median and {times[-1]:.2f} s at most, on one CPU thread.",
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}.",
        "",
        "A stage is three or more blocks in a row of one width and resolution (`ghostify/stages.py` tells how they are",
        'found). "none" is as it should be where a stage has one or two blocks (ResNet18 and 26, VGG13, VoVNet39,',
        "DLA60, SqueezeNet), where every block widens (DenseNet, DPN, ReXNet), and in transformers (no spatial",
        "convolution in a block). Not read: cells with two inputs (NASNet, PNASNet), searched networks whose blocks",
        "differ from one to the next (MixNet, HardCoRe-NAS, MobileNetV4), blocks on channels-last maps (MambaOut).",
        "",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB", help="only networks of such a name")
    parser.add_argument("--output", type=Path, help="write the page here instead of printing it")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for network in networks():
        if fnmatchcase(network.name, options.only):
            rows.append(row(network))
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
