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
from torch.utils._pytree import tree_leaves

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
    """Scan, plan, compress with a fit, report, fine-tune, and eval."""
    the = KINDS[kind]
    model = f"other_nets:{the.model}"
    assert "Conv" not in done(cli("scan", model, *the.shapes)).splitlines()[0]
    planned = json.loads(done(cli("plan", model, *the.shapes, "--set", "ghost.min_saving=0", "--json")))
    assert planned["swaps"]

    fed = (*the.feeding, *the.judged, *the.taught)
    report = json.loads(done(cli("compress", model, *the.shapes, *fed, *LEAN, "-o", "runs/one", "--json")))
    assert report["fit"] and report["fit"]["layers"] and report["fit"]["error"] <= report["fit"]["unfitted"]
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


LOADING = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from ghostify.batches import call, example_of
from ghostify.saving import load
torch.manual_seed(0)
for kind in sys.argv[2:]:
    made = load(f"runs/{kind}")
    torch.save(call(made.module, example_of(made.before.specs, 1)), f"{kind}.pt")
"""


def test_runs_of_every_kind_load_in_another_process_bit_for_bit(cli: Cli) -> None:
    for kind, the in KINDS.items():
        done(cli("compress", f"other_nets:{the.model}", *the.shapes, "--min-saving", "0", "-o", f"runs/{kind}"))
    subprocess.run([sys.executable, "-c", LOADING, str(HERE), *KINDS], check=True)
    torch.manual_seed(0)
    for kind in KINDS:
        made = load(f"runs/{kind}")
        with torch.no_grad():
            wanted = tree_leaves(call(made.module, example_of(made.before.specs, 1)))
        again = tree_leaves(torch.load(f"{kind}.pt", weights_only=True))
        assert again and all(torch.equal(a, b) for a, b in zip(again, wanted, strict=True)), kind


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


# -- what cannot be done, in one line --------------------------------------------------------------------------

MINE = """
import math, torch
import other_nets as o

def none(outputs, labels): return None
def nan(outputs, labels): return math.nan
def three(outputs, labels): return torch.ones(3)
def fails(outputs, labels): raise KeyError("boom")
def maker(): return o.MeanIoU()
def make_number(): return 3
number = 3

class Late:
    def update(self, outputs, labels): pass
    def compute(self): raise ValueError("no data yet")

class Counting:
    \"\"\"An object that is used again: it has what it saw in one set only, for each set is given a copy.\"\"\"
    seen = 0
    def update(self, outputs, labels): self.seen += len(labels)
    def compute(self): return self.seen

counting = Counting()

def loss_none(outputs, labels): return None
def loss_many(outputs, labels): return (outputs - labels).square()
def loss_flat(outputs, labels): return torch.tensor(1.0)
def loss_fails(outputs, labels): raise ValueError("bad labels here")
def loss_infinite(outputs, labels): return outputs.sum() * math.inf

def items(make, **more): return {"train": [make(i) for i in range(40)], "test": [make(i) for i in range(6)], **more}
def other_size(): return items(lambda i: (torch.zeros(3, 9, 8), 0.5))
def floats(): return items(lambda i: (torch.zeros(30), 0))
def ragged(): return items(lambda i: (torch.zeros(3, 8, 8), torch.zeros(1 + i % 2)))
def words(): return items(lambda i: (torch.zeros(3, 8, 8), "cat"))
def no_pairs(): return items(lambda i: torch.zeros(2))
def dicts(): return items(lambda i: {"image": torch.zeros(3, 8, 8), "label": 0})
def no_tensor(): return items(lambda i: ([1, 2], 0.5))
def uneven(): return items(lambda i: (torch.zeros(3, 8, 8 + (i == 3)), 0.5))
def broken_collate(): return items(lambda i: (torch.zeros(3, 8, 8), 0.5), collate=lambda pairs: pairs[0].shape)
def collate_is_no_function(): return items(lambda i: (torch.zeros(3, 8, 8), 0.5), collate=3)
"""


@pytest.fixture
def mine(cli: Cli) -> Cli:
    """The command line, with a module ``judges`` of failing functions in its folder."""
    sys.modules.pop("judges", None)
    Path("judges.py").write_text(MINE)
    return cli


TWO = ("--input", "3,8,8", "--input", "3,8,8")
AGES = ("--data", "other_nets:ages", "--device", "cpu", "--set", "ghost.min_saving=0", "--also", "stem")


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("judges:none", "Metric 'judges:none' gives None; it must give one number"),
        ("judges:nan", "gives nan; it must give a finite number"),
        ("judges:three", "gives a tensor of shape (3,); it must give one number"),
        ("judges:fails", "Metric 'judges:fails' failed: KeyError: 'boom'."),
        ("judges:Late", "Metric 'judges:Late' failed: no data yet."),
        ("judges:number", "is an int, not a function"),
        ("judges:make_number", "gives an int, neither a function of (outputs, labels) nor an object"),
        ("judges:nun", "module 'judges' has no function 'nun'. Did you mean"),
        ("no_such_module:fn", "no Python module 'no_such_module'"),
        ("accuracy", "does not say where it is; write package.module:function."),
    ],
)
@pytest.mark.parametrize("verb", ["compress", "eval"])
def test_a_metric_that_gives_no_number_is_one_line(mine: Cli, verb: str, metric: str, says: str) -> None:
    more = AGES if verb == "compress" else AGES[:4]
    refused(mine(verb, "other_nets:regressor", *more, "--metric", metric), says)


def test_what_a_metric_does_wrong_is_told_before_the_fit(mine: Cli) -> None:
    """Also where it shows only in the end, so that the long work is not lost."""
    answer = mine("compress", "other_nets:regressor", *AGES, "--metric", "judges:Late")
    assert answer.code == 1 and "Fitting" not in answer.err


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ("judges:loss_none", "Loss 'judges:loss_none' gives None; it must give a tensor of one number."),
        ("judges:loss_many", "gives a tensor of shape (30,)"),
        ("judges:loss_flat", "gives a number without a gradient"),
        ("judges:loss_fails", "Loss 'judges:loss_fails' failed: bad labels here."),
        ("judges:loss_infinite", "the loss is"),
        ("judges:lost_none", "Did you mean 'loss_none'?"),
        ("torch.nn:CTCLoss", "Loss 'torch.nn:CTCLoss' failed:"),
        ("mse", "The loss 'mse' does not say where it is; write package.module:function."),
    ],
)
def test_a_loss_that_cannot_be_learned_from_is_one_line(mine: Cli, loss: str, says: str) -> None:
    fed = ("--data", "other_nets:ages", "--metric", "other_nets:minus_error", "--device", "cpu", "--batch-size", "30")
    refused(mine("finetune", "other_nets:regressor", *fed, "--loss", loss), says)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("other_size", "gives images of shape (3, 9, 8), but the network takes (3, 8, 8)"),
        ("floats", "gives images of shape (30,), but the network takes (3, 8, 8)"),
        ("ragged", "labels of shapes (1,) and (2,) cannot be stacked; let the function return a collate"),
        ("no_pairs", "cannot be read as (input, label)"),
        ("dicts", "cannot be read as (input, label): it is a dict; let the dataset give pairs"),
        ("no_tensor", "must be a tensor (or a tuple or dict of tensors) and a label; its image is int"),
        ("uneven", "image 3 is (3, 8, 9), not (3, 8, 8)"),
        ("broken_collate", "collate cannot make (inputs, labels)"),
        ("collate_is_no_function", "collate must be a function"),
    ],
)
def test_data_that_a_network_cannot_take_is_one_line(mine: Cli, data: str, says: str) -> None:
    fed = ("--data", f"judges:{data}", "--input", "3,8,8", "--metric", "other_nets:minus_error", "--device", "cpu")
    refused(mine("eval", "other_nets:regressor", *fed), says)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("other_nets:signal", "--input", "64", "--data", "digits"), "has images (C, H, W), but the network takes 64"),
        (("other_nets:flow", *TWO, "--data", "fake"), "the network takes 3x8x8 and 3x8x8"),
        (
            ("other_nets:text", "--input", "30:int64", "--data", "judges:floats"),
            "item 0 is torch.float32 (30,), but the network takes int64",
        ),
        (("other_nets:denoiser", *TWO, "--data", "other_nets:steps"), "name them, as in --input x=3,8,8"),
        (
            ("other_nets:flow", "--input", "3,8,8", "--data", "other_nets:pairs"),
            "gives 3x8x8 and 3x8x8, but the network takes 3x8x8",
        ),
        (("other_nets:regressor", "--data", "other_nets:ages"), "--metric package.module:function"),
        (("other_nets:segmenter", "--data", "other_nets:segments"), "--metric package.module:function"),
    ],
)  # fmt: skip
def test_data_of_another_kind_than_the_network_is_one_line(mine: Cli, args: tuple[str, ...], says: str) -> None:
    refused(mine("eval", *args, "--device", "cpu"), says)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--input", "3,8"), "The model does not run on the example (1, 3, 8)"),
        (("--input", "3,8,8"), "missing 1 required positional argument: 'second'"),
        (("--input", "first=3,8,8", "--input", "third=3,8,8"), "unexpected keyword argument 'third'"),
        (("--input", "3,8,8", "--input", "3,8,8:int63"), "'int63' is no dtype of an input. Did you mean 'int64'?"),
        (("--input", "many"), "whole numbers of 1 or more"),
        (("--input", "x=3,8,8", "--input", "3,8,8"), "name all of them or none"),
        (("--input", "3,8,8", "--input", "3,99999999,9999999"), "cannot be made"),
        ((), "Nothing says the input shape of 'other_nets:flow'; give it, as in --input 3,224,224, once for each"),
    ],
)  # fmt: skip
def test_an_input_that_a_network_does_not_take_is_one_line(mine: Cli, args: tuple[str, ...], says: str) -> None:
    refused(mine("scan", "other_nets:flow", *args), says)


def test_without_a_metric_what_is_no_classifier_is_converted_and_the_report_says_how_to_measure_it(mine: Cli) -> None:
    for model, data in (("regressor", "ages"), ("segmenter", "segments"), ("flow", "pairs")):
        made = done(mine("compress", f"other_nets:{model}", "--data", f"other_nets:{data}", *LEAN, "--json"))
        report = json.loads(made)
        assert report["accuracy"] == report["scores"] == {} and report["fit"]
        assert any("Accuracy was not measured" in note and "--metric" in note for note in report["notes"])


def test_training_what_is_no_classifier_wants_a_loss(mine: Cli) -> None:
    refused(mine("finetune", "other_nets:regressor", "--data", "other_nets:ages"), "Only classifiers", "--loss")


def test_distilling_compares_outputs_of_any_kind_but_not_where_the_network_tells_its_own_losses(mine: Cli) -> None:
    fed = ("--epochs", "1", "--distill", "0.5", *LEAN, "--json")
    flow = ("other_nets:flow", "--data", "other_nets:pairs", "--loss", "torch.nn:MSELoss")
    assert json.loads(done(mine("compress", *flow, *fed)))["folder"]
    boxes = ("other_nets:detector", "--data", "other_nets:boxes", "--loss", "other_nets:own_losses")
    answer = mine("compress", *boxes, *fed)
    assert answer.code == 1 and "distill = 0.5 compares the outputs of both networks" in answer.err


@pytest.mark.parametrize("metric", ["other_nets:MeanIoU", "judges:maker"])
def test_an_object_measures_the_whole_set_whatever_the_batches(mine: Cli, metric: str) -> None:
    found = [
        json.loads(done(mine("eval", "other_nets:segmenter", "--data", "other_nets:segments", "--metric", metric,
                             "--batch-size", size, "--json")))
        for size in ("5", "12")
    ]  # fmt: skip
    assert found[0]["value"] == pytest.approx(found[1]["value"], rel=1e-6) and found[0]["total"] == 12


def test_an_object_is_used_anew_for_each_set(mine: Cli) -> None:
    args = ("compress", "other_nets:regressor", *AGES, "--metric", "judges:counting", "--json")
    scores = json.loads(done(mine(*args)))["scores"]
    assert {stage: score["value"] for stage, score in scores.items()} == {"original": 12.0, "converted": 12.0}


def test_a_function_is_averaged_by_the_samples_of_its_batches(mine: Cli) -> None:
    """A last batch of two counts for two."""
    values = [
        json.loads(done(mine("eval", "other_nets:regressor", "--data", "other_nets:ages", "--metric",
                             "other_nets:minus_error", "--batch-size", size, "--json")))["value"]
        for size in ("5", "12")
    ]  # fmt: skip
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_an_analysis_takes_any_input_that_has_maps_and_says_why_not(mine: Cli) -> None:
    lean = ("--images", "12", "--device", "cpu", "--json")
    found = json.loads(done(mine("analyze", "other_nets:flow", "--data", "other_nets:pairs", *lean)))
    assert found["images"] == 12 and [layer["name"] for layer in found["layers"]]
    named = json.loads(done(mine("analyze", "other_nets:denoiser", "--data", "other_nets:steps", *lean)))
    assert named["layers"]
    signals = mine("analyze", "other_nets:signal", "--data", "other_nets:signals", *lean)
    refused(signals, "no two-dimensional convolutions")
    refused(mine("analyze", "other_nets:detector", "--data", "other_nets:boxes", *lean), "gives lists of inputs")


def test_a_loader_of_the_users_lends_its_dataset_and_its_collate(mine: Cli) -> None:
    Path("lent.py").write_text(
        "import other_nets as o\nfrom torch.utils.data import DataLoader\n"
        "def boxes():\n    data = o.boxes()\n"
        "    return tuple(DataLoader(data[s], batch_size=7, collate_fn=data['collate']) for s in ('train', 'test'))\n"
    )
    sys.modules.pop("lent", None)
    args = ("eval", "other_nets:detector", "--input", "3,8,8", "--metric", "other_nets:box_score", "--json")
    own, lent = (json.loads(done(mine(*args, "--data", data))) for data in ("other_nets:boxes", "lent:boxes"))
    assert own["value"] == pytest.approx(lent["value"]) and own["total"] == lent["total"] == 12


def test_loader_processes_give_the_same(mine: Cli) -> None:
    args = ("eval", "other_nets:flow", "--data", "other_nets:pairs", "--metric", "other_nets:minus_end_point_error")
    values = [done(mine(*args, "--set", f"data.workers={workers}", "--batch-size", "5")) for workers in (0, 1)]
    assert values[0] == values[1]


@pytest.mark.parametrize("kind", ["flow", "denoiser", "detector"])
def test_an_interrupted_run_goes_on_as_it_began(cli: Cli, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after its first epoch, with inputs, metric and loss as they were asked for."""
    the = KINDS[kind]
    fed = (*the.shapes, *the.feeding, *the.judged, *the.taught, "--epochs", "2", *LEAN)
    whole = json.loads(done(cli("compress", f"other_nets:{the.model}", *fed, "-o", "runs/whole", "--json")))

    from ghostify.cli import show

    with monkeypatch.context() as patched:
        patched.setattr(show.TrainingProgress, "epoch", _interrupt)
        stopped = cli("compress", f"other_nets:{the.model}", *fed, "-o", "runs/one")
    assert stopped.code == 130, stopped.err
    resumed = json.loads(done(cli("compress", "--resume", "runs/one", "--json")))
    assert resumed["scores"]["finetuned"] == whole["scores"]["finetuned"]


def _interrupt(self: object, epoch: object, history: object) -> None:
    raise KeyboardInterrupt
