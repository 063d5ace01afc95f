"""What the command says to wrong words: which option, what it must be, which name is near."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import Cli, refused

import ghostify
from ghostify.errors import did_you_mean
from ghostify.files import near_path
from ghostify.networks import resnet8

TINY = ("mine:tiny", "--input", "3,8,8")
SHUFFLE = ("torchvision:shufflenet_v2_x0_5", "--input", "3,64,64", "--method", "width")
PICTURES = """
import torch
from torch.utils.data import TensorDataset

def data():
    images = TensorDataset(torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.long))
    return images, images
"""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["finetune", "runs/digits", "--data", "digits"], ["'runs/digits' does not exist"]),
        (["finetune", "runs/othr", "--data", "digits"], ["does not exist", "Did you mean 'runs/other'"]),
        (["compress", "runs/othr"], ["does not exist", "Did you mean 'runs/other'"]),
        (["scan", "runs/othr"], ["does not exist", "Did you mean 'runs/other'"]),
        (["eval", "runs/othr", "--data", "digits"], ["does not exist", "Did you mean 'runs/other'"]),
        (["report", "runs/othr"], ["does not exist", "Did you mean 'runs/other'"]),
        (["compress", "--resume", "runs/othr"], ["does not exist", "Did you mean 'runs/other'"]),
        (["report", "mine.py"], ["'mine.py' is a file"]),
        (["finetune", "pictures", "--data", "digits"], ["'pictures' is a folder", "no run.json"]),
        (["scan", "./mine.py"], ["'./mine.py' is a file of code", "mine:NAME"]),
        (["scan", "mine.py"], ["a file of code", "mine:NAME"]),
        (["scan", "mine"], ["mine:NAME"]),
        (["scan", "mine.tiny"], ["mine:tiny"]),
        (["scan", "mine:"], ["'mine:'", "behind the colon"]),
        (["scan", "some.pt"], ["is a file, not a network", "--weights some.pt"]),
        (["scan", "torchvision:"], ["behind the colon"]),
        (["scan", "torchvision:ResNet50"], ["Did you mean 'resnet50'"]),
        (["scan", "ghostify:resnet20", "--weights", "smoe.pt"], ["Did you mean 'some.pt'"]),
        (["scan", "--recipe", "mien.yml"], ["does not exist", "Did you mean 'mine.yaml'"]),
        (["scan", "--recipe", "pictures"], ["neither a file nor"]),
        (["scan", "--recipe", "sourceless.yaml"], ["'model.source' is missing", "torchvision:NAME"]),
        (["scan", "--recipe", "modelless.yaml"], ["'model' is missing"]),
        (["plan", *TINY, "--method", "c_ghost"], ["--method", "Did you mean 'c-ghost'"]),
        (["plan", *TINY, "--method", "G-Ghost"], ["--method", "Did you mean 'g-ghost'"]),
        (["compress", *TINY, "--fit", "dat"], ["--fit", "Did you mean 'data'"]),
        (["compress", *TINY, "--device", "gpu"], ["'gpu'", "Did you mean 'cuda'"]),
        (["compress", *TINY, "--device", "0"], ["'0'", "cuda:1"]),
        (["plan", *TINY, "--pointwise", "ful"], ["--pointwise", "Did you mean 'full'"]),
        (["plan", *TINY, "--preset", "cfar"], ["--preset", "Did you mean 'cifar'"]),
        (["plan", *TINY, "--also", "steam"], ["--also", "Did you mean 'stem'"]),
        (["plan", *TINY, "--also", "Stem"], ["--also", "Did you mean 'stem'"]),
        (["compress", "mine:tiny", "--data", "fodler:x"], ["Did you mean 'folder'"]),
        (["compress", *TINY, "--epochs", "-1"], ["--epochs", "-1", "0 or more"]),
        (["compress", *TINY, "--lr", "0"], ["--lr", "more than 0"]),
        (["compress", *TINY, "--ratio", "2"], ["--ratio", "less than 1"]),
        (["compress", *TINY, "--s", "1"], ["--s", "2 or more"]),
        (["compress", *TINY, "--batch-size", "8"], ["'data.source' is missing", "folder:PATH"]),
        (["compress", *TINY, "--set", "s=4"], ["unknown key 's'", "Did you mean 'ghost.s'"]),
        (["compress", *TINY, "--set", "epochs=4"], ["'epochs'", "finetune.epochs"]),
        (["compress", *TINY, "--set", "ghost.s=x"], ["ghost.s = 'x'", "whole number"]),
        (["compress", *TINY, "--set", "ghost.min_saving=low"], ["ghost.min_saving", "a number"]),
        (["compress", *TINY, "--set", "ghost=3"], ["ghost", "key: value"]),
        (["compress", *TINY, "--set", "fit.joint=maybe"], ["fit.joint", "true or false"]),
        (["compress", *TINY, "--plan", "mien.yaml"], ["does not exist", "Did you mean 'mine.yaml'"]),
        (["compress", *TINY, "--plan", "pictures"], ["'pictures' cannot be read", "a folder"]),
        (["analyze", *TINY, "--data", "fake", "--d", "4"], ["--d: ", "must be odd"]),
        (["compress", *SHUFFLE], ["Error: ShuffleNetV2 cannot be scaled", "its code does not run narrower"]),
        (["compress", *TINY, "-o", "."], ["'.'", "there already", "runs/mine"]),
        (["compress", *TINY, "-o", ""], ["there already", "runs/mine"]),
        (["analyze", *TINY, "--data", "fake", "-o", ".."], ["'..'", "there already"]),
        (["finetune", *TINY, "--data", "fake", "-o", "/"], ["'/'", "there already"]),
        (["finetune", *TINY, "--data", "fake", "--epochs", "0"], ["0 epochs", "--epochs of 1 or more"]),
        (["plan", *TINY, "-o", "no/such/plan.yaml"], ["there is no folder 'no/such'"]),
        (
            ["eval", *TINY, "--data", "fake", "--weights-strict", "no"],
            ["weights_strict", "no effect", "--weights FILE"],
        ),
        (["eval", *TINY, "--data", "fake", "--weights-key", "ema"], ["weights_key", "no effect", "--weights FILE"]),
        (["scan", *TINY, "--weights-allow", "argparse.Namespace"], ["weights_allow", "no effect", "--weights FILE"]),
        (["eval", "mine:tiny", "--input", "1,8,8", "--data", "pictures:data"], ["does not run on", "module '0'"]),
        (["eval", *TINY, "--data", "fake", "--device", "meta"], ["'meta' cannot be used", "no numbers"]),
        (["scan", "mine:half", "--input", "3,8,8"], ["weights are float16", "--input 3,224,224:float16"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_wrong_words_are_named_with_what_is_right(cli: Cli, args: list[str], words: list[str]) -> None:
    for folder in ("runs/other", "pictures"):
        Path(folder).mkdir(parents=True)
    Path("pictures.py").write_text(PICTURES)
    Path("mine.py").write_text(Path("mine.py").read_text() + "def half():\n    return tiny().half()\n")
    torch.save({}, "some.pt")
    Path("mine.yaml").write_text("model: {source: 'mine:tiny'}\n")
    Path("sourceless.yaml").write_text("model: {}\n")
    Path("modelless.yaml").write_text("seed: 1\n")
    before = sorted(Path().rglob("*"))
    refused(cli(*args), *words)
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in str(path)] == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["compres", "mine:tiny"], ["'compres'", "Did you mean 'compress'?", "ghostify --help"]),
        (["recipes", "shw"], ["Did you mean 'show'?", "ghostify recipes --help"]),
        (["compress", "mine:tiny", "--epoch", "3"], ["--epoch", "--epochs", "ghostify compress --help"]),
        (["compress", "mine:tiny", "--seed", "x"], ["--seed", "integer", "ghostify compress --help"]),
        (["compress", "mine:tiny", "--resume"], ["--resume", "argument"]),
        (["scan", "one", "two"], ["two", "ghostify scan --help"]),
        (["report"], ["run", "ghostify report --help"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_a_command_that_cannot_be_parsed_is_one_line_too(cli: Cli, args: list[str], words: list[str]) -> None:
    refused(cli(*args), *words, code=2)


@pytest.mark.parametrize(
    ("verb", "setting"),
    [
        ("scan", "ghost.s=4"),
        ("scan", "finetune.lr=0.1"),
        ("scan", "0.s=4"),
        ("analyze", "ghost.s=4"),
        ("analyze", "fit.images=64"),
        ("plan", "fit.how=weights"),
        ("plan", "analysis.d=5"),
        ("compress", "analysis.tolerance=0.5"),
        ("finetune", "ghost.s=4"),
        ("finetune", "pretrain.epochs=1"),
        ("finetune", "layer4.*.d=5"),
        ("eval", "ghost.s=4"),
        ("eval", "finetune.epochs=2"),
    ],
)
def test_a_setting_that_a_verb_makes_no_use_of_is_refused(cli: Cli, verb: str, setting: str) -> None:
    """Set by hand; in a file, it may be there for other verbs."""
    refused(cli(verb, *TINY, "--set", setting), f"--set {setting}", f"no effect in `ghostify {verb}`")


def test_a_recipe_file_may_hold_what_other_verbs_make_use_of(cli: Cli) -> None:
    recipe = "model: {source: 'mine:tiny', input: [3, 8, 8]}\nghost: {s: 4}\nfit: {images: 64}\ndata: {source: fake}\n"
    Path("mine.yaml").write_text(recipe)
    for verb, *more in (["scan"], ["plan"], ["eval", "--set", "data.limit=16"]):
        answer = cli(verb, "--recipe", "mine.yaml", *more)
        assert "no effect in" not in answer.err
        assert answer.code == 0 or verb == "plan", answer


def test_a_name_is_never_suggested_for_itself() -> None:
    assert did_you_mean("stem", ["stem"]) == ""
    assert did_you_mean("Stem", ["stem", "steam"]) == " Did you mean 'stem'?"
    assert did_you_mean("stem", ["stem", "stems"]) == " Did you mean 'stems'?"
    assert did_you_mean("onnx", ["eager", "onnxruntime"]) == " Did you mean 'onnxruntime'?"
    assert did_you_mean("on", ["eager", "onnxruntime"]) == "", "two letters tell nothing"


def test_only_what_lies_beside_a_path_is_suggested_for_it(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    (tmp_path / "z.yaml").touch()
    assert near_path(tmp_path / "wieghts.pth") == " Did you mean 'weights.pt'?"
    assert near_path(tmp_path / "weights.pth", whole=True) == f" Did you mean '{tmp_path / 'weights.pt'}'?"
    assert near_path(tmp_path / "pln.yaml") == ""
    assert near_path(tmp_path / "nowhere" / "weights.pt") == ""


def test_what_is_not_near_or_there_already_is_not_mended(tmp_path: Path) -> None:
    for name in ("sig", "1.png", "11.png"):
        (tmp_path / name).touch()
    assert near_path(tmp_path / "missing") == ""
    assert near_path(tmp_path / "1.png") == ""


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (["eval", "run", "--data", "digits", "--weights", "some.pt"], "weights"),
        (["scan", "run", "--set", "model.args.width=4"], "args"),
        (["plan", "run", "--weights", "DEFAULT"], "weights"),
        (["finetune", "run", "--data", "fake", "--weights", "some.pt", "--weights-strict", "no"], "weights"),
        (["scan", "--recipe", "of_run.yaml"], "weights"),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_a_run_takes_no_weights_or_arguments_of_another_source(cli: Cli, args: list[str], key: str) -> None:
    ghosted = ghostify.convert(resnet8(), torch.randn(1, 3, 32, 32))
    ghostify.save(ghosted, "run", model="ghostify:resnet8")
    torch.save({}, "some.pt")
    Path("of_run.yaml").write_text("model: {source: run, weights: some.pt}\n")
    refused(cli(*args), f"model.{key}", "'run'", "leave it out")


def test_a_run_is_carried_on_with_a_recipe_of_another_source(cli: Cli) -> None:
    ghostify.save(ghostify.convert(resnet8(), torch.randn(1, 3, 32, 32)), "run", model="ghostify:resnet8")
    Path("mine.yaml").write_text("model: {source: 'mine:tiny', args: {classes: 4}}\n")
    assert cli("scan", "run", "--recipe", "mine.yaml").code == 0


def test_an_analysis_that_advises_nothing_is_named(cli: Cli) -> None:
    settings = ("mine:tiny", "--input", "3,8,8")
    assert cli("analyze", *settings, "--data", "fake", "--tolerance", "0.0001", "-o", "seen").code == 0
    refused(cli("plan", *settings, "--from-analysis", "seen"), "'seen' advises no change", "--tolerance")


def test_commands_to_go_on_with_can_be_pasted(cli: Cli) -> None:
    answer = cli("compress", *TINY, "-o", "a run")
    assert "ghostify report 'a run' --layers" in answer.out + answer.err
    refused(cli("compress", "--resume", "a run"), "ghostify finetune 'a run'")
