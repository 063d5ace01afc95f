"""How much of a trained network does closed-form fitting keep, beside thinner networks of as many MACs?

    GHOSTIFY_DATA_DIR=<folder with resnet20-cifar10.pt, resnet56-cifar10.pt> \\
    python benchmarks/fitting.py --data <folder with train/CLASS and test/CLASS>
        [--networks resnet20 resnet56] [--methods c-ghost thin ...] [--images 512] [--epochs 0] [--seeds 0 1 2]
        [--lr 0.005] [--reference c-ghost-both] [--threads 1] [--limit N] [--json results.json] [--ablation]

Each trained network is converted by each method and tested on all test images as it is, with no training.  With
``--epochs`` it is then trained once per seed, the original as its teacher, with the same settings for all methods: no
image is cropped or mirrored, for in one epoch none is seen twice.
``--ablation`` takes pieces of the fit away instead, one at a time, and trains nothing.

Methods that narrow a network get the MACs of ``c-ghost-both`` (or of ``--reference``): the nearest not above (by more
than a thousandth).  What is not fitted gets its batch norms' statistics measured anew on the same images, by running
averages over all of them.

Torch-Pruning cannot read option-A shortcuts (a strided slice between zero maps).  It gets the same network with each of
them as a strided 1x1 convolution of fixed weights, 0 and 1; that the outputs are equal is checked.  A shortcut costs
the original nothing, so MACs and parameters are told without those convolutions, and once more with them.  It prunes
all layers by one ratio in steps of 1/64, where the inner layers of blocks may be one step ahead.

``--json`` keeps every finished run, and a second start does only what is not in the file.  It does not know when the
code of the library has changed: then begin with a new file.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

import ghostify
from ghostify.costs import Cost
from ghostify.errors import PlanError
from ghostify.files import replacing
from ghostify.finetuning import finetune
from ghostify.measuring import evaluate
from ghostify.networks import NETWORKS, BasicBlock, CifarResNet
from ghostify.planning import Plan, plan, scan_for
from ghostify.recipe import DataSettings, GhostSettings, TrainSettings
from ghostify.scanning import scan
from ghostify.sources import Data, load_data
from ghostify.tables import Table, quantity, ratio
from ghostify.tracing import Traced, trace

# -- what is compared ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A way to convert a network."""

    settings: dict[str, Any]
    """Of ``convert``; for Torch-Pruning, its importance."""
    on: dict[str, dict[str, Any]] = field(default_factory=dict)
    """More settings, by network."""
    matched: bool = False
    """Whether it is made as narrow as the MACs of ``REFERENCE`` ask for."""
    fitted: bool = True
    """Whether the converted network is fitted to images."""

    @property
    def prunes(self) -> bool:
        """Whether Torch-Pruning does it."""
        return "importance" in self.settings


C_GHOST = {"method": "c-ghost", "s": 2, "also": ["stem"], "min_saving": 0}
WIDTH = {"method": "width", "keep": "strongest"}
MIXED = {"method": "mixed", "cheap": "pointwise", "min_saving": 0, "round_to": 1}
MIXES: dict[str, dict[str, Any]] = {
    "mixed-1.85": {
        "include": ["layer1", "layer2"],
        "set": {"layer1": {"width": 0.5, "s": 3}, "layer2": {"width": 0.75, "s": 2}},
    },
    "mixed-2.4": {
        "include": ["layer[123]"],
        "set": {
            "layer1": {"width": 0.5},
            "layer2": {"width": 0.75},
            "layer3": {"width": 0.75},
            "layer3.*.conv1": {"s": 1},
        },
    },
    "mixed-2.9": {
        "include": ["layer[123]"],
        "set": {"layer1": {"width": 0.5, "s": 3}, "layer2": {"width": 0.5, "s": 2}, "layer3": {"width": 1, "s": 2}},
    },
}
"""Settings by stage, for at least so many times fewer MACs: how much of a block's inner width stays, and of how many
maps one is intrinsic.  Later stages keep more: a layer there costs as many MACs, and is missed more.
"""
DEEPER: dict[str, Any] = {
    "include": ["layer[123]"],
    "set": {"layer1": {"width": 0.75}, "layer2": {"width": 1}, "layer3": {"width": 0.75}, "layer3.*.conv1": {"s": 1}},
}
"""A ResNet56 has so many blocks that each may lose a little of its width, those of the last stage, too."""
METHODS = {
    "c-ghost-plain": Method(C_GHOST | {"cheap": "depthwise 3"}),
    "c-ghost-both": Method(C_GHOST | {"cheap": "depthwise 3 + pointwise"}),
    "c-ghost": Method(C_GHOST),
    "c-ghost-3": Method(C_GHOST | {"s": 3}),
    "c-ghost-4": Method(C_GHOST | {"s": 4}),
    "g-ghost": Method(
        {"method": "g-ghost", "ratio": 0.5},
        on={
            "resnet20": {"preset": "default", "end": False},
            "resnet56": {"preset": "stream", "ratio": 0.25, "inner_width": 0.43, "round_to": 1},
        },
    ),
    "g-ghost-projection": Method(
        {"method": "g-ghost", "ratio": 0.55, "end": False, "cheap_input": "full", "entry": "projection"}
    ),
    "thin": Method({"method": "thin"}, matched=True),
    **{
        name: Method(MIXED | mix, on={"resnet56": DEEPER} if name == "mixed-1.85" else {})
        for name, mix in MIXES.items()
    },
    "width": Method(WIDTH, matched=True),
    "width-sliced": Method(WIDTH, matched=True, fitted=False),
    "torch-pruning": Method({"importance": "magnitude"}, matched=True, fitted=False),
    "torch-pruning-taylor": Method({"importance": "taylor"}, matched=True, fitted=False),
}
REFERENCE = "c-ghost-both"
"""The method whose MACs the others get, where no other is named."""
SLACK = 1.001
"""How much above it they may be."""
TRAIN = TrainSettings(lr=0.005, distill=0.7, temperature=4.0)
BATCH = 64

ABLATED = ("c-ghost-plain", "c-ghost-both", "g-ghost")
LESS: tuple[dict[str, Any], ...] = (
    {"compensate": False},
    {"rectified": False},
    {"kept": False},
    {"arrange": "reorder"},
    {"arrange": "none"},
    {"joint": False},
)
"""``FitSettings`` that take a piece of the fit away."""
SIZES = (16, 64, 256, 512, 1024)
"""Numbers of images to fit to."""


@dataclass(frozen=True)
class Fit:
    """What is done to the weights of a converted network, and with how many images."""

    how: Literal["data", "weights", "norms", "none"]
    """As ``FitSettings`` have it; norms: not fitted, but the norms' statistics measured anew."""
    images: int = 0
    less: dict[str, Any] = field(default_factory=dict)
    """Of ``LESS``."""


def ablations(images: int) -> dict[str, Fit]:
    """By its name in the table, each fit that is compared with the whole one."""
    fits = {"all of it": Fit("data", images)}
    fits |= {" ".join(f"{name}: {value}" for name, value in less.items()): Fit("data", images, less) for less in LESS}
    fits |= {f"{size} images": Fit("data", size) for size in SIZES if size != images}
    fits["weights, no images"] = Fit("weights")
    fits["not fitted, norms measured anew"] = Fit("norms", images)
    fits["not fitted"] = Fit("none")
    return fits


# -- a network and its conversions -----------------------------------------------------------------------------


@dataclass
class Converted:
    """A converted network and what it costs; ``shortcuts`` is what the convolutions for shortcuts cost beside that."""

    module: nn.Module
    cost: Cost
    how: str
    shortcuts: Cost = field(default_factory=Cost)


@dataclass
class Subject:
    """A trained network and the images it is converted, tested and trained with."""

    name: str
    model: nn.Module
    data: Data
    reference: str = REFERENCE
    """The method whose MACs a matched method gets."""

    @classmethod
    def load(cls, name: str, folder: Path, data: Data, reference: str = REFERENCE) -> Self:
        model = NETWORKS[name]()
        model.load_state_dict(torch.load(folder / f"{name}-cifar10.pt", weights_only=True))
        return cls(name, model.eval(), data, reference)

    @property
    def example(self) -> Tensor:
        return torch.randn(1, *self.data.shape, generator=torch.Generator().manual_seed(0))

    @cached_property
    def traced(self) -> Traced:
        return trace(self.model, self.example)

    @cached_property
    def cost(self) -> Cost:
        return scan(self.traced).cost

    @cached_property
    def target(self) -> int:
        """MACs that a matched method may have."""
        return int(SLACK * self.planned(self.settings(self.reference)).after.macs)

    def settings(self, method: str) -> dict[str, Any]:
        """As they are declared for this network."""
        return METHODS[method].settings | METHODS[method].on.get(self.name, {})

    def planned(self, settings: dict[str, Any]) -> Plan:
        asked = GhostSettings(**settings)
        return plan(scan_for(self.traced, asked), asked)

    def accuracy(self, module: nn.Module) -> float:
        """On the test images, 0 to 1."""
        return evaluate(module, self.data.test_loader(250)).top1


def converted(subject: Subject, method: str, fit: Fit) -> Converted:
    """The network converted by a method and then fitted, or with its norms measured anew."""
    settings = subject.settings(method)
    if METHODS[method].prunes:
        made = pruned(subject, settings["importance"], subject.data.calibration(fit.images))
    else:
        made = rewritten(subject, matched(subject, settings) if METHODS[method].matched else settings, fit)
    if fit.how == "norms":
        measure_norms(made.module, subject.data.calibration(fit.images))
    return made


def rewritten(subject: Subject, settings: dict[str, Any], fit: Fit) -> Converted:
    asked = {"how": "none" if fit.how == "norms" else fit.how, **fit.less}
    images = None
    if fit.how == "data":
        images = subject.data.calibration(fit.images)
        asked["images"] = len(images)
    made = ghostify.convert(subject.model, subject.example, settings, images=images, fit=asked)
    return Converted(made.module, made.after.cost, json.dumps(settings))


WIDTHS = [{"width": step / 128, "round_to": to} for to in (1, 2) for step in range(1, 128)]


def matched(
    subject: Subject, settings: dict[str, Any], forms: Iterable[dict[str, Any]] = tuple(WIDTHS)
) -> dict[str, Any]:
    """``settings`` in the form (a width) that comes nearest to the MACs that are allowed."""
    seen = scan_for(subject.traced, GhostSettings(**settings))
    found: dict[int, dict[str, Any]] = {}
    for form in forms:
        try:
            found.setdefault(plan(seen, GhostSettings(**settings | form)).after.macs, form)
        except PlanError:  # so near to 1 that it rounds to what it is
            continue
    return settings | found[max(macs for macs in found if macs <= subject.target)]


def measure_norms(module: nn.Module, images: Tensor) -> None:
    """The statistics of all batch norms anew, averaged over ``images`` (N, C, H, W), in place."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    module.train()
    with torch.no_grad():
        for batch in images.split(BATCH):
            module(batch)
    module.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


# -- Torch-Pruning ---------------------------------------------------------------------------------------------


class Shortcut(nn.Conv2d):
    """An option-A shortcut as a convolution: every ``stride``-th pixel, zero maps on either side.

    (N, C, H, W) → (N, width, H / stride, W / stride)
    """

    def __init__(self, channels: int, width: int, stride: int | tuple[int, ...]) -> None:
        super().__init__(channels, width, 1, stride, bias=False)
        with torch.no_grad():
            nn.init.dirac_(self.weight)
            self.weight.copy_(self.weight.roll((width - channels) // 2, 0))


class ReadableBlock(nn.Module):
    """The layers of a block around a ``Shortcut``."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.shortcut = Shortcut(block.conv1.in_channels, block.conv2.out_channels, block.stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def readable(model: nn.Module, example: Tensor) -> CifarResNet:
    """A copy of a ResNet in which Torch-Pruning can follow all channels; it gives the same outputs."""
    assert isinstance(model, CifarResNet)
    twin = copy.deepcopy(model)
    for stage in (twin.layer1, twin.layer2, twin.layer3):
        for index, block in enumerate(stage):
            if block.stride != 1:
                stage[index] = ReadableBlock(block)
    torch.testing.assert_close(twin(example), model(example), atol=1e-5, rtol=0)
    return twin


def pruned(subject: Subject, importance: str, images: Tensor) -> Converted:
    """The network with as many channels as the target allows.  ``images`` (N, C, H, W) give gradients to rank by."""
    twin = readable(subject.model, subject.example)

    @cache
    def narrowed(step: int) -> Converted:
        return pruned_by((step + 1) // 2 / 64, step // 2 / 64, twin, importance, images, subject.example)

    return narrowed(bisect_left(range(126), True, key=lambda step: narrowed(step).cost.macs <= subject.target))


def pruned_by(
    inner: float, outer: float, twin: CifarResNet, importance: str, images: Tensor, example: Tensor
) -> Converted:
    """A copy of ``twin`` without the least important channels: a share ``inner`` of those inside of blocks."""
    module = copy.deepcopy(twin)
    if importance == "taylor":
        _give_gradients(module, images)
    within = [block.conv1 for stage in (module.layer1, module.layer2, module.layer3) for block in stage]
    tp.pruner.BasePruner(
        module,
        example,
        tp.importance.TaylorImportance() if importance == "taylor" else tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=outer,
        pruning_ratio_dict=dict.fromkeys(within, inner),
        ignored_layers=[module.linear],
    ).step()
    module.zero_grad()
    shortcuts = {name: part for name, part in module.named_modules() if isinstance(part, Shortcut)}
    for part in shortcuts.values():
        part.requires_grad_(False)
    seen = scan(module, example)
    extra = sum(map(seen.within, shortcuts), Cost())
    return Converted(module, seen.cost - extra, f"{importance}, ratio {outer:g}, in blocks {inner:g}", extra)


def _give_gradients(module: nn.Module, images: Tensor) -> None:
    """Of the loss on ``images``, where the network's own answers are the labels."""
    for batch in images.split(BATCH):
        scores = module(batch)
        F.cross_entropy(scores, scores.argmax(1), reduction="sum").backward()


# -- runs ------------------------------------------------------------------------------------------------------


class Results:
    """Finished runs, each by its key, in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.runs: list[dict[str, Any]] = []
        if path and path.exists():
            self.runs = json.loads(path.read_text(encoding="utf-8"))["runs"]

    def get(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the run of that key gave; ``measure`` does it where nobody has yet."""
        known = self.known(key)
        if known is None:
            known = measure()
            self.add(key, known)
        return known

    def known(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """What the run of that key gave; None where nobody has done it."""
        key = json.loads(json.dumps(key))
        return next((run["found"] for run in self.runs if run["key"] == key), None)

    def add(self, key: dict[str, Any], found: dict[str, Any]) -> None:
        """Keep what a run gave."""
        self.runs.append({"key": json.loads(json.dumps(key)), "found": found})
        self._write()

    def _write(self) -> None:
        if self.path:
            said = {"torch": torch.__version__, "torch_pruning": version("torch-pruning")}
            said["threads"] = torch.get_num_threads()
            with replacing(self.path) as new:
                new.write_text(json.dumps(said | {"runs": self.runs}, indent=1), encoding="utf-8")


@dataclass
class Row:
    """A network converted by a method, and what became of it."""

    network: str
    method: str
    before: Cost
    found: dict[str, Any]
    trained: list[dict[str, Any]] = field(default_factory=list)

    @property
    def cost(self) -> Cost:
        return Cost(params=self.found["params"], macs=self.found["macs"])

    def cells(self, epochs: int) -> list[str]:
        cells = [
            self.network,
            self.method,
            f"{quantity(self.cost.macs)} ({ratio(self.before.macs, self.cost.macs)})",
            f"{quantity(self.cost.params)} ({ratio(self.before.params, self.cost.params)})",
            percent([self.found["accuracy"]]),
        ]
        seconds = [run["seconds"] / epochs for run in self.trained]
        return [*cells, percent(self.accuracies), f"{statistics.mean(seconds):.0f}" if seconds else ""]

    @property
    def accuracies(self) -> list[float]:
        return [run["accuracy"] for run in self.trained]

    @property
    def note(self) -> str:
        """What its costs leave out."""
        macs, params = self.found["shortcut_macs"], self.found["shortcut_params"]
        if not macs:
            return ""
        both = f"{quantity(self.cost.macs + macs)} MACs, {quantity(self.cost.params + params)} params"
        return f"{self.network}, {self.method}: with its shortcuts, 1x1 convolutions of fixed 0 and 1, {both}."


def percent(shares: list[float]) -> str:
    """``84.70``, or mean and standard deviation of several; nothing for none."""
    values = [100 * share for share in shares]
    if len(values) < 2:
        return "".join(f"{value:.2f}" for value in values)
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def epochs(options: argparse.Namespace) -> str:
    return f"{options.epochs} epoch" + "s" * (options.epochs != 1)


def say(*parts: str) -> None:
    print(time.strftime("%H:%M:%S"), *parts, flush=True)


def right_after(subject: Subject, make: Callable[[], Converted]) -> dict[str, Any]:
    """Cost and accuracy of a converted network, and how long it took to make."""
    began = time.perf_counter()
    made = make()
    seconds = time.perf_counter() - began
    return {
        "how": made.how,
        "macs": made.cost.macs,
        "params": made.cost.params,
        "shortcut_macs": made.shortcuts.macs,
        "shortcut_params": made.shortcuts.params,
        "accuracy": subject.accuracy(made.module),
        "seconds": seconds,
    }


def after_training(
    subject: Subject, make: Callable[[], Converted], settings: TrainSettings, seed: int
) -> dict[str, Any]:
    """Accuracy of a copy that was trained, and the time of all epochs.

    No image is held out (``main``), so it is that of the last epoch, whatever the test images say of others.
    """
    module = copy.deepcopy(make().module)
    done = finetune(module, subject.data, settings, teacher=subject.model, seed=seed, batch_size=BATCH).epochs
    return {
        "accuracy": subject.accuracy(module),
        "losses": [epoch.loss for epoch in done],
        "seconds": sum(epoch.seconds for epoch in done),
    }


def converted_row(subject: Subject, method: str, fit: Fit, results: Results) -> tuple[Row, dict[str, Any], Any]:
    """The row of a conversion, tested; its key; and what makes the converted network (once) if it is needed."""
    key = {
        "network": subject.name,
        "method": method,
        "settings": subject.settings(method) | ({"macs": subject.target} if METHODS[method].matched else {}),
        **asdict(fit),
        "tested": len(subject.data.test),
    }
    make = cache(partial(converted, subject, method, fit))
    found = results.get(key, partial(right_after, subject, make))
    return Row(subject.name, method, subject.cost, found), key, make


def compared(subject: Subject, options: argparse.Namespace, results: Results) -> Iterator[Row]:
    """A row for the original and for each method, told as soon as they are known."""
    yield original(subject, results)
    settings = TRAIN.model_copy(update={"epochs": options.epochs, "lr": options.lr})
    for method in options.methods:
        fit = Fit("data" if METHODS[method].fitted else "norms", options.images)
        row, key, make = converted_row(subject, method, fit, results)
        _, _, macs, params, accuracy, *_ = row.cells(options.epochs)
        costs = f"MACs {macs}, params {params}"
        say(subject.name, method, f"{costs}: {accuracy} % right after conversion, {row.found['seconds']:.0f} s")
        for seed in options.seeds if options.epochs else ():
            trained = key | {"epochs": options.epochs, "seed": seed, "train": settings.model_dump(), "batch": BATCH}
            run = results.get(trained, partial(after_training, subject, make, settings, seed))
            row.trained.append(run)
            told = f"seed {seed}: {percent([run['accuracy']])} % after {epochs(options)}, {run['seconds']:.0f} s"
            say(subject.name, method, told, f"(all seeds: {percent(row.accuracies)})")
        yield row


def original(subject: Subject, results: Results) -> Row:
    key = {"network": subject.name, "method": "original", "tested": len(subject.data.test)}
    found = results.get(key, partial(right_after, subject, lambda: Converted(subject.model, subject.cost, "")))
    say(subject.name, f"{percent([found['accuracy']])} % as it is")
    return Row(subject.name, "original", subject.cost, found)


def table(rows: Iterable[Row], options: argparse.Namespace) -> Table:
    rows = list(rows)
    columns = ["network", "method", "MACs", "params", "right after", f"after {epochs(options)}", "s per epoch"]
    title = f"Test accuracy, %, {options.images} images to fit to"
    cells = [row.cells(options.epochs) for row in rows]
    width = len(columns) if options.epochs else 5
    note = "\n".join(row.note for row in rows if row.note)
    return Table(title, columns[:width], [line[:width] for line in cells], left=frozenset({"method"}), note=note)


def ablation(subject: Subject, options: argparse.Namespace, results: Results) -> Table:
    """Accuracy right after conversion, a line for each fit and a column for each method."""
    original(subject, results)
    rows = []
    for name, fit in ablations(options.images).items():
        found = [converted_row(subject, method, fit, results)[0].found for method in options.methods]
        rows.append([name, *(percent([one["accuracy"]]) for one in found)])
        say(subject.name, "  ".join(rows[-1]))
    title = f"{subject.name}: test accuracy right after conversion, %, {options.images} images where not said"
    return Table(title, ["fit", *options.methods], rows)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trained = ("resnet20", "resnet56")
    parser.add_argument("--data", required=True, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--networks", nargs="+", choices=trained, help="all; with --ablation resnet20")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="all; with --ablation " + ", ".join(ABLATED))
    parser.add_argument("--reference", choices=METHODS, default=REFERENCE, help="method whose MACs others get")
    parser.add_argument("--images", type=int, default=512, help="training images to fit to")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of distillation after the conversion")
    parser.add_argument("--lr", type=float, default=TRAIN.lr, help="largest learning rate of that training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the training runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="use only so many images of each split, for a quick look")
    parser.add_argument("--json", type=Path, help="keep finished runs in this file and go on from it")
    parser.add_argument("--ablation", action="store_true", help="take pieces of the fit away, one at a time")
    options = parser.parse_args(arguments)
    options.networks = options.networks or (trained[:1] if options.ablation else trained)
    options.methods = options.methods or (ABLATED if options.ablation else tuple(METHODS))
    if not os.environ.get("GHOSTIFY_DATA_DIR"):
        parser.error("GHOSTIFY_DATA_DIR does not say where the trained weights are")
    if options.ablation and not all(METHODS[method].fitted for method in options.methods):
        parser.error("--ablation takes methods that are fitted")
    return options


def main() -> int:
    options = parsed()
    torch.set_num_threads(options.threads)
    data = load_data(DataSettings(source=f"folder:{options.data}", augment=False, limit=options.limit, hold_out=0))
    folder, results = Path(os.environ["GHOSTIFY_DATA_DIR"]), Results(options.json)
    subjects = [Subject.load(name, folder, data, options.reference) for name in options.networks]
    if options.ablation:
        print("", *(ablation(subject, options, results) for subject in subjects), sep="\n")
    else:
        print(
            "", table([row for subject in subjects for row in compared(subject, options, results)], options), sep="\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
