"""At equal measured latency: what do a plan under a budget and other methods keep, right after the fit and trained?

    GHOSTIFY_DATA_DIR=<folder with resnet20-cifar10.pt, resnet56-cifar10.pt> \\
    python benchmarks/equal_latency.py --data <folder with train/CLASS and test/CLASS>
        [--network resnet56] [--runtime onnxruntime] [--batches 1 16] [--faster 1.3 1.6 2.0]
        [--methods planned c-ghost g-ghost thin width torch-pruning] [--images 512] [--limit N] [--threads 2]
        [--json results.json] [--epochs 1] [--trained-on 10000]

``planned`` is what ``--target latency=…x`` makes of the network.  Each other method has one strength for all layers (s
of C-Ghost modules, the width inside G-Ghost stages, the width of blocks or layers, Torch-Pruning's ratio), and gets the
mildest of its strengths that comes within 3 % of the time asked for, or is faster; where none does, the fastest.  A
plan that cannot be had has no row.
Strengths are timed first, all in turns with the original, in the inference form and on one thread; then those chosen
once more, side by side, which is what the table tells; only then are they fitted (Torch-Pruning: norms re-estimated,
which is not how its authors use it) and tested.  With ``--epochs`` they are then trained, the original as their
teacher, at the rate that ``auto`` finds.  ``--threads`` are for fits, training and tests.

Torch-Pruning's network has two 1x1 convolutions besides, in place of shortcuts that it cannot read (``fitting.py``);
that costs it a little time.  ``--json`` keeps all that was measured, and a second start does only what is missing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from fitting import BATCH, C_GHOST, TRAIN, Results, Subject, measure_norms, percent, pruned_by, readable, say
from torch import Tensor, nn

import ghostify
from ghostify.budget.preparing import prepared
from ghostify.budget.trying import tried
from ghostify.clock import Place
from ghostify.clock.wholes import recorded, side_by_side
from ghostify.errors import GhostifyError, PlanError
from ghostify.finetuning import finetune
from ghostify.fitting import fitted
from ghostify.harm import Harms, read_harms
from ghostify.planning import Plan, plan, scan_for
from ghostify.recipe import BudgetSettings, DataSettings, FitSettings, GhostSettings
from ghostify.rewriting import agreed, rewrite
from ghostify.sources import Data, load_data
from ghostify.sources.data import PICK
from ghostify.sources.seeding import shuffled
from ghostify.tables import Table
from ghostify.tracing import Recording

HELD = 1024
"""Training images, none of those fitted to, on which harm is judged."""
NEAR = 0.03
"""By what share a time may miss the one asked for."""
STEPS = 16
"""Strengths of a method are timed in steps of one in so many, where they are shares."""
NARROWED = {"method": "width", "keep": "strongest"}
STAGES = {"method": "g-ghost", "preset": "stream", "ratio": 0.25, "round_to": 1}
"""The G-Ghost stages that keep most of a ResNet56 (``fitting.py``)."""


def _widths(settings: dict[str, Any], name: str = "width") -> dict[str, dict[str, Any]]:
    """From the widest to the narrowest."""
    return {
        f"{name} {step}/{STEPS}": settings | {name: step / STEPS, "round_to": 1} for step in range(STEPS - 1, 1, -1)
    }


STRENGTHS: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "c-ghost": {f"s {s}": C_GHOST | {"s": s} for s in range(2, 9)},
    "g-ghost": _widths(STAGES, "inner_width"),
    "thin": _widths({"method": "thin"}),
    "width": _widths(NARROWED),
    "torch-pruning": {f"ratio {step}/{STEPS}": {"ratio": step / STEPS} for step in range(1, STEPS - 1)},
}
"""By method, its strengths from the mildest on: settings of ``convert``, or the share that Torch-Pruning takes."""
METHODS = ("planned", *STRENGTHS)


Entry = tuple[str, str]
"""A method, and the name of its strength."""


@dataclass
class Contest:
    """One network whose conversions are compared."""

    subject: Subject
    options: argparse.Namespace
    results: Results

    @cached_property
    def recording(self) -> Recording:
        return ghostify.record(self.subject.model, self.subject.example)

    @cached_property
    def images(self) -> Tensor:
        return self.subject.data.calibration(self.options.images)

    @cached_property
    def harms(self) -> Harms | None:
        """What harm was measured before; None where it is still to be measured."""
        return read_harms(self._harms_file) if self._harms_file and self._harms_file.is_file() else None

    @property
    def _harms_file(self) -> Path | None:
        return self.options.json and self.options.json.with_suffix(".harms.json")

    def place(self, batch: int) -> Place:
        return Place(runtime=self.options.runtime, threads=1, batch=batch)

    def key(self, **more: Any) -> dict[str, Any]:
        return {"network": self.subject.name, "images": self.options.images, **more}

    # -- what is compared --------------------------------------------------------------------------------------

    def planned(self, batch: int, faster: float) -> str:
        """The plan, as JSON, that is so many times faster at a batch; empty where none is, and that is said."""
        key = self.key(planned=faster, batch=batch, runtime=self.options.runtime)
        try:
            return self.results.get(key, lambda: {"plan": self._planned(batch, faster).model_dump_json()})["plan"]
        except PlanError as problem:
            say(f"batch {batch}, {faster:g}x: {problem}")
            return ""

    def _planned(self, batch: int, faster: float) -> Plan:
        budget = BudgetSettings(target=f"latency={1 / faster:.4f}x", runtime=self.options.runtime, batch=batch)
        held = self.subject.data.calibration(HELD, beyond=self.options.images)
        choosing = prepared(
            self.recording,
            GhostSettings(),
            budget,
            self.place(batch),
            images=self.images,
            held=held,
            harms=self.harms,
        )
        self.harms = choosing.measured
        if self._harms_file and self.harms:
            self._harms_file.write_text(self.harms.model_dump_json(), encoding="utf-8")
        return tried(choosing, choosing.plan(), self.fitted, say)

    def fitted(self, plan: Plan) -> nn.Module:
        """The network of a plan, fitted."""
        recording, checked = agreed(self.subject.model, self.subject.example, plan, fitted=True)
        return fitted(recording, checked, self.images, FitSettings(images=len(self.images))).module

    def unfitted(self, method: str, strength: str) -> Recording | None:
        """A conversion to be timed, for which weights do not matter; None where the method changes nothing."""
        if method == "planned":
            return recorded(rewrite(self.recording, Plan.model_validate_json(strength)), self.recording)
        settings = STRENGTHS[method][strength]
        if method == "torch-pruning":
            return ghostify.record(self._pruned(settings["ratio"]), self.subject.example)
        asked = GhostSettings(**settings)
        try:
            made = rewrite(self.recording, plan(scan_for(self.recording, asked), asked))
        except PlanError:
            return None
        return recorded(made, self.recording)

    def _pruned(self, share: float) -> nn.Module:
        twin = readable(self.subject.model, self.subject.example)
        return pruned_by(share, share, twin, "magnitude", self.images, self.subject.example).module

    def converted(self, method: str, strength: str) -> nn.Module:
        """The same with its weights fitted, or its norms measured anew."""
        if method == "torch-pruning":
            module = self._pruned(STRENGTHS[method][strength]["ratio"])
            measure_norms(module, self.images)
            return module
        if method == "planned":
            return self.fitted(Plan.model_validate_json(strength))
        ghost = STRENGTHS[method][strength]
        return ghostify.convert(
            self.subject.model,
            self.subject.example,
            ghost,
            images=self.images,
            fit=FitSettings(images=len(self.images)),
        ).module

    # -- what comes of it --------------------------------------------------------------------------------------

    def ladder(self, batch: int, method: str) -> dict[str, float]:
        """By strength, how many times faster a method is than the original."""
        key = self.key(ladder=method, batch=batch, runtime=self.options.runtime)
        return self.results.get(key, lambda: self._timed(batch, {name: (method, name) for name in STRENGTHS[method]}))

    def side_by_side(self, batch: int, chosen: Sequence[Entry]) -> dict[str, float]:
        """The same of what was chosen, in one run, by method and strength: strengths of two methods share names."""
        entries = {" ".join(one): one for one in chosen}
        key = self.key(beside=sorted(entries), batch=batch, runtime=self.options.runtime)
        return self.results.get(key, lambda: self._timed(batch, entries))

    def _timed(self, batch: int, entries: Mapping[str, Entry]) -> dict[str, float]:
        networks = {name: self.unfitted(*entry) for name, entry in entries.items()}
        made = {name: recording for name, recording in networks.items() if recording is not None}
        timings = side_by_side({"original": self.recording, **made}, self.place(batch))
        return {name: timings.compare("original", name).speedup for name in made}

    def tested(self, method: str, strength: str) -> float:
        """Accuracy on the test images right after the fit."""
        key = self.key(tested=len(self.subject.data.test), method=method, strength=strength)
        found = self.results.get(key, lambda: {"accuracy": self.subject.accuracy(self.converted(method, strength))})
        return found["accuracy"]

    def trained(self, method: str, strength: str) -> float:
        """The same after some epochs of training, with the original as its teacher."""
        epochs, count = self.options.epochs, self.options.trained_on
        key = self.key(tested=len(self.subject.data.test), method=method, strength=strength, epochs=epochs, of=count)
        return self.results.get(key, lambda: {"accuracy": self._trained(method, strength)})["accuracy"]

    def _trained(self, method: str, strength: str) -> float:
        module, settings = self.converted(method, strength), TRAIN.model_copy(update={"lr": "auto"})
        settings = settings.model_copy(update={"epochs": self.options.epochs})
        finetune(module, self._training, settings, teacher=self.subject.model, batch_size=BATCH)
        return self.subject.accuracy(module)

    @cached_property
    def _training(self) -> Data:
        """The training images, or as many as are trained on; none is held out, so the last epoch counts."""
        data, count = self.subject.data, self.options.trained_on
        if data.train is None or count is None:
            return data
        return replace(data, train=data.train.take(shuffled(len(data.train), PICK)[:count]))


def chosen(speeds: Mapping[str, float], faster: float) -> str:
    """The mildest strength that is fast enough; where none is, the fastest."""
    enough = (name for name, speed in speeds.items() if speed >= faster * (1 - NEAR))
    return next(enough, max(speeds, key=lambda name: speeds[name]))


def rows(contest: Contest) -> Iterator[list[str]]:
    """A row for each batch, speed-up and method."""
    for batch in contest.options.batches:
        entries = list(_entries(contest, batch))
        speeds = contest.side_by_side(batch, [(method, name) for _, method, name in entries])
        for faster, method, name in entries:
            accuracy = percent([contest.tested(method, name)])
            told = "" if method == "planned" else name
            row = [str(batch), f"{faster:g}x", method, told, f"{speeds[f'{method} {name}']:.2f}x", accuracy]
            if contest.options.epochs:
                row.append(percent([contest.trained(method, name)]))
            say(*row)
            yield row


def _entries(contest: Contest, batch: int) -> Iterator[tuple[float, str, str]]:
    """What is compared at a batch: by speed-up and method, the strength."""
    for faster in contest.options.faster:
        for method in contest.options.methods:
            if method != "planned":
                yield faster, method, chosen(contest.ladder(batch, method), faster)
            elif found := contest.planned(batch, faster):
                yield faster, method, found


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--network", choices=["resnet20", "resnet56"], default="resnet56")
    parser.add_argument("--runtime", choices=["eager", "onnxruntime", "openvino"], default="onnxruntime")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--faster", type=float, nargs="+", default=[1.3, 1.6, 2.0], help="than the original")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--images", type=int, default=512, help="training images to fit to")
    parser.add_argument(
        "--epochs", type=int, default=0, help="of training behind the fit, at the rate that a test finds"
    )
    parser.add_argument("--trained-on", type=int, help="only so many of the training images")
    parser.add_argument("--limit", type=int, help="use only so many images of each split, for a quick look")
    parser.add_argument("--threads", type=int, default=2, help="of fits and tests; what is timed has one")
    parser.add_argument("--json", type=Path, help="keep what was measured in this file and go on from it")
    options = parser.parse_args(arguments)
    if not os.environ.get("GHOSTIFY_DATA_DIR"):
        parser.error("GHOSTIFY_DATA_DIR does not say where the trained weights are")
    return options


def main() -> int:
    options = parsed()
    torch.set_num_threads(options.threads)
    feeding = DataSettings(source=f"folder:{options.data}", augment=False, limit=options.limit, hold_out=0)
    folder = Path(os.environ["GHOSTIFY_DATA_DIR"])
    subject = Subject.load(options.network, folder, load_data(feeding))
    contest = Contest(subject, options, Results(options.json))
    columns = ["batch", "asked", "method", "strength", "faster", "accuracy %"]
    columns += [f"after {options.epochs} ep."] if options.epochs else []
    title = f"{options.network}, {options.runtime}: test accuracy right after the fit, by measured speed-up"
    try:
        print("", Table(title, columns, list(rows(contest)), left=frozenset({"method", "strength"})), sep="\n")
    except GhostifyError as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
