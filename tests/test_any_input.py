"""Networks of any input and any output through every verb of the command line, and what cannot be done, in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from command import Answer, Cli

from ghostify.batches import call, example_of
from ghostify.saving import load

HERE = Path(__file__).parent
LEAN = ("--calibration", "32", "--set", "ghost.min_saving=0", "--also", "stem", "--device", "cpu")


class Kind(NamedTuple):
    model: str
    data: str
    inputs: tuple[str, ...]
    """As ``--input`` has them; where none are needed the data tell."""
    metric: str = ""
    loss: str = ""

    @property
    def feeding(self) -> list[str]:
        return ["--data", f"other_nets:{self.data}", "--set", "data.batch_size=8"]

    @property
    def shapes(self) -> list[str]:
        return [part for text in self.inputs for part in ("--input", text)]

    @property
    def judged(self) -> list[str]:
        return ["--metric", f"other_nets:{self.metric}"] if self.metric else []

    @property
    def taught(self) -> list[str]:
        return ["--loss", self.loss] if self.loss else []


KINDS = {
    "signal": Kind("signal", "signals", ("64",)),
    "video": Kind("video", "videos", ("2,4,6,6",)),
    "flow": Kind("flow", "pairs", ("3,8,8", "3,8,8"), "minus_end_point_error", "torch.nn:MSELoss"),
    "tokens": Kind("text", "texts", ("30:int64",)),
    "denoiser": Kind("denoiser", "steps", ("x=3,8,8", "t=scalar:int64"), "minus_error", "torch.nn.functional:mse_loss"),
    "segmenter": Kind("segmenter", "segments", ("3,8,8",), "MeanIoU", "other_nets:pixel_loss"),
    "regressor": Kind("regressor", "ages", ("3x8x8",), "minus_error", "torch.nn.functional:l1_loss"),
    "detector": Kind("detector", "boxes", ("3,8,8",), "box_score", "other_nets:own_losses"),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def other_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)


def done(answer: Answer) -> str:
    assert answer.code == 0, answer.err
    return answer.out


def refused(answer: Answer, *says: str) -> None:
    """By one line with these words, and no traceback; nothing is left."""
    assert answer.code == 1 and "Traceback" not in answer.err, answer.err
    last = answer.err.strip().splitlines()[-1]
    assert last.startswith("Error: ") and all(word in last for word in says), last
    assert not list(Path("runs").glob("*"))


@each_kind
def test_the_whole_chain_by_the_command_line(cli: Cli, kind: str) -> None:
    """Scan, plan, compress with a fit, report, fine-tune, eval; and the run loads in another process, bit for bit."""
    the = KINDS[kind]
    model = f"other_nets:{the.model}"
    assert "Conv" not in done(cli("scan", model, *the.shapes)).splitlines()[0]
    planned = json.loads(done(cli("plan", model, *the.shapes, "--set", "ghost.min_saving=0", "--json")))
    assert planned["swaps"]

    fed = (*the.feeding, *the.judged, *the.taught)
    report = json.loads(done(cli("compress", model, *the.shapes, *fed, *LEAN, "-o", "runs/one", "--json")))
    assert report["fit"] and report["fit"]["error"] < report["fit"]["unfitted"]
    measured = report["scores" if the.metric else "accuracy"]
    assert set(measured) == {"original", "converted"}
    assert bool(report["latency"]) and not any("was not measured" in note for note in report["notes"])

    row = f"{the.metric or 'accuracy'} original"
    (line,) = [line for line in done(cli("report", "runs/one")).splitlines() if line.startswith(row)]
    assert ("%" in line) != bool(the.metric)
    train = ("--epochs", "1", "--lr", "0.001", "--set", "finetune.warmup=0")
    tuned = done(cli("finetune", "runs/one", *fed, *train, "-o", "runs/two", "--json"))
    assert set(json.loads(tuned)["scores" if the.metric else "accuracy"]) == {"converted", "finetuned"}

    found = json.loads(done(cli("eval", "runs/two", *the.feeding, *the.judged, "--json")))
    finetuned = json.loads(tuned)["scores" if the.metric else "accuracy"]["finetuned"]
    assert found.get("value", found.get("top1")) == finetuned.get("value", finetuned.get("top1"))
    assert_loads_elsewhere("runs/two")


def assert_loads_elsewhere(folder: str) -> None:
    ghosted = load(folder)
    code = f"""
import sys, torch
sys.path.insert(0, {str(HERE)!r})
from ghostify.batches import call, example_of
from ghostify.saving import load
made = load({folder!r})
torch.manual_seed(0)
torch.save(call(made.module, example_of(made.before.specs, 1)), "outputs.pt")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=".")
    again = torch.load("outputs.pt", weights_only=True)
    with torch.no_grad():
        wanted = call(ghosted.module, example_of(ghosted.before.specs, 1))
    leaves = torch.utils._pytree.tree_leaves
    assert leaves(again) and all(torch.equal(a, b) for a, b in zip(leaves(again), leaves(wanted), strict=True))


@pytest.mark.parametrize("kind", ["signal", "flow", "tokens", "denoiser", "segmenter"])
def test_the_data_tell_what_a_network_takes(cli: Cli, kind: str) -> None:
    the = KINDS[kind]
    done(cli("compress", f"other_nets:{the.model}", *the.feeding, *LEAN, "-o", "runs/one", "--json"))
    inputs = load("runs/one").before.specs
    assert [spec.shape for spec in inputs] == [spec.shape for spec in _specs(the.inputs)]
    assert [(spec.dtype, spec.name) for spec in inputs] == [(spec.dtype, spec.name) for spec in _specs(the.inputs)]


def _specs(texts: tuple[str, ...]) -> tuple:
    from ghostify.inputs import parse_inputs

    return parse_inputs(list(texts))
