"""The command line: what each verb prints and returns, and that bad input is one clear line and leaves nothing."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from command import TINY, Cli, refused
from PIL import Image
from torch import nn

from ghostify.networks import resnet8

# -- the verbs -------------------------------------------------------------------------------------------------


def test_scan_lists_every_layer(cli: Cli) -> None:
    answer = cli("scan", "mine:tiny", "--input", "3,8,8")
    assert answer.code == 0
    assert [line.split()[0] for line in answer.out.splitlines()[3:6]] == ["0", "3", "8"]
    assert "Stages" not in answer.out
    staged = cli("scan", "ghostify:resnet20").out
    assert [line.split()[:3] for line in staged.splitlines() if line.split()[1:2] == ["3"]] == [
        ["layer1", "3", "16"],
        ["layer2", "3", "32"],
        ["layer3", "3", "64"],
    ]
    found = json.loads(cli("scan", "mine:tiny", "--input", "3,8,8", "--json").out)
    assert found["cost"]["params"] == sum(p.numel() for p in _tiny().parameters())


def test_a_plan_is_written_edited_and_carried_out(cli: Cli, tmp_path: Path) -> None:
    assert cli("plan", "mine:tiny", "--input", "3,8,8", "-o", "plan.yaml").code == 0
    plan = Path("plan.yaml").read_text()
    assert "target: '3'" in plan
    Path("plan.yaml").write_text(plan.replace("s: 2", "s: 4"))
    answer = cli("compress", "mine:tiny", "--input", "3,8,8", "--plan", "plan.yaml", "--json")
    (layer,) = json.loads(answer.out)["layers"]
    assert (layer["target"], layer["s"]) == ("3", 4)


def test_a_plan_file_is_not_overwritten(cli: Cli) -> None:
    Path("plan.yaml").write_text("mine")
    refused(cli("plan", "mine:tiny", "--input", "3,8,8", "-o", "plan.yaml"), "plan.yaml", "not overwritten")
    assert Path("plan.yaml").read_text() == "mine"


def test_settings_by_pattern(cli: Cli) -> None:
    planned = json.loads(
        cli(
            "plan", "mine:tiny", "--input", "3,8,8", "--also", "stem", "--min-saving", "0", "--set", "3.s=4", "--json"
        ).out
    )
    assert {swap["target"]: swap["s"] for swap in planned["swaps"]} == {"0": 2, "3": 4}


@pytest.mark.parametrize(
    ("options", "cheap"),
    [
        (("--cheap", "depthwise"), "depthwise 3"),
        (("--cheap", "depthwise 5 + pointwise 4"), "depthwise 5 + pointwise 4"),
        (("--cheap", "pointwise 99"), "pointwise"),
        (("--set", "3.cheap=pointwise 4"), "pointwise 4"),
        (("--d", "5", "--pointwise", "none"), "depthwise 5"),  # the older words
        (("--pointwise", "full"), "depthwise 3 + pointwise"),
    ],
)
def test_a_cheap_operation_is_asked_for(cli: Cli, options: tuple[str, ...], cheap: str) -> None:
    options = ("mine:tiny", "--input", "3,8,8", *options, "--min-saving", "0", "--json")
    (swap,) = json.loads(cli("plan", *options).out)["swaps"]
    assert (swap["target"], swap["cheap"]) == ("3", cheap)
    (layer,) = json.loads(cli("compress", *options).out)["layers"]
    assert layer["cheap"] == cheap


def test_a_network_that_resists_as_a_whole_is_compressed_in_parts_and_every_verb_says_so(cli: Cli) -> None:
    options = ("mine:resisting", "--input", "3,8,8")
    scanned = cli("scan", *options)
    assert scanned.code == 0 and "MACs and activations are those of backbone" in scanned.out
    planned = cli("plan", *options, "--min-saving", "0", "-o", "plan.yaml", "--json")
    assert list(json.loads(planned.out)["parts"]["inputs"]) == ["backbone"]
    done = json.loads(cli("compress", *options, "--plan", "plan.yaml", "--json").out)
    assert [layer["target"] for layer in done["layers"]] == ["backbone.3"]
    assert any("Rewritten: backbone; left: loose" in note for note in done["notes"])
    assert "Rewritten: backbone; left: loose" in cli("report", done["folder"]).out
    assert "Rewritten: backbone; left: loose" in cli("compress", *options, "--plan", "plan.yaml", "--dry-run").out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--method", "width"], ["width", "whole"]),
        (["--exclude", "backbone*"], ["changes nothing", "backbone"]),
        (["--include", "trunk*"], ["matches no layer", "Resisting"]),
        (["--method", "g-ghost"], ["no stage"]),
        (["--data", "fake", "--epochs", "1"], ["class scores", "Only classifiers"]),
        (["--plan", "plan.yaml"], ["a part 'trunk'", "Resisting"]),
    ],
)
def test_bad_input_for_parts_is_one_line_and_leaves_nothing(cli: Cli, more: list[str], words: list[str]) -> None:
    options = ("mine:resisting", "--input", "3,8,8")
    if "--plan" in more:
        cli("plan", *options, "--min-saving", "0", "-o", "first.yaml")
        plan = yaml.safe_load(Path("first.yaml").read_text())
        plan["parts"]["inputs"]["trunk"] = plan["parts"]["inputs"].pop("backbone")
        Path("plan.yaml").write_text(yaml.safe_dump(plan))
    refused(cli("compress", *options, *more), *words)
    assert not list(Path().glob("runs/*"))


def test_runs_in_parts_of_what_is_no_classifier_are_not_tested_or_trained(cli: Cli) -> None:
    assert cli("compress", "mine:resisting", "--input", "3,8,8", "--min-saving", "0", "-o", "run").code == 0
    data = ("--data", "fake", "--set", "data.limit=20")
    refused(cli("eval", "run", *data), "class scores")
    refused(cli("finetune", "run", *data), "class scores", "Only classifiers")
    refused(cli("analyze", "run", *data), "Resisting", "torch.vmap")
    refused(
        cli("compress", "run", *data, "--min-saving", "0"),
        "'backbone.3.primary'",
        "C-Ghost module 'backbone.3' already",
    )


def test_dry_run_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    answer = cli("compress", "mine:tiny", "--input", "3,8,8", "--dry-run")
    assert answer.code == 0
    assert "1 swaps" in answer.out
    assert [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)] == before


def test_compress_finetune_eval_report(cli: Cli, images: str) -> None:
    """The whole story on real files: a run folder, trained further in a new one, evaluated, reported again."""
    options = ("--data", images, "--set", "model.args.classes=2", "--epochs", "1", "--distill", "0.5")
    told = json.loads(cli("compress", "mine:tiny", *options, "--json").out)
    assert told["folder"] == "runs/tiny"
    assert set(told["accuracy"]) == {"original", "converted", "finetuned"}
    again = json.loads(cli("report", "runs/tiny", "--json").out)
    assert again == {key: value for key, value in told.items() if key != "folder"}

    accuracy = json.loads(cli("eval", "runs/tiny", "--data", images, "--json").out)
    assert accuracy == told["accuracy"]["finetuned"]

    further = json.loads(cli("finetune", "runs/tiny", "--data", images, "--epochs", "1", "--json").out)
    assert further["folder"] == "runs/tiny-2"
    assert further["accuracy"]["converted"] == told["accuracy"]["finetuned"]


def test_a_run_is_never_overwritten(cli: Cli) -> None:
    names = [json.loads(cli("compress", "mine:tiny", "--input", "3,8,8", "--json").out)["folder"] for _ in range(3)]
    assert names == ["runs/tiny", "runs/tiny-2", "runs/tiny-3"]


def test_a_compressed_run_can_be_compressed_further(cli: Cli) -> None:
    """The second run folder rebuilds from the first source, with the swaps of both."""
    cli("compress", "mine:tiny", "--input", "3,8,8")
    options = ("--also", "stem", "--min-saving", "0", "--json")
    told = json.loads(cli("compress", "runs/tiny", *options).out)
    assert [layer["target"] for layer in told["layers"]] == ["0"]
    assert cli("scan", told["folder"]).code == 0


def test_analyze_tells_and_writes_and_its_advice_is_planned(cli: Cli, images: str, tmp_path: Path) -> None:
    answer = cli("analyze", "mine:tiny", "--data", images, "--tolerance", "0.9", "-o", "seen")
    assert answer.code == 0 and "advice" in answer.out and "report.html" in answer.err
    assert {file.name for file in (tmp_path / "seen").iterdir()} >= {"analysis.json", "layers.csv", "report.html"}
    again = cli("analyze", "mine:tiny", "--data", images, "--tolerance", "0.9", "-o", "seen", "--json")
    found = json.loads(again.out)
    assert found["folder"] == "seen-2" and found["trained"] is None
    advised = {layer["name"] for layer in found["layers"] if layer["advice"]["s"] or layer["advice"]["m"]}
    planned = cli("plan", "mine:tiny", "--input", "3,8,8", "--from-analysis", "seen", "--json")
    assert {swap["target"] for swap in json.loads(planned.out)["swaps"]} == advised != set()
    refused(cli("plan", "mine:tiny", "--input", "3,8,8", "--from-analysis", "seen", "--s", "3"), "leave out --s")
    refused(cli("plan", "mine:tiny", "--input", "3,8,8", "--from-analysis", "nowhere"), "does not exist")


def test_analyze_says_loudly_that_weights_are_random(cli: Cli) -> None:
    answer = cli(
        "analyze", "ghostify:resnet8", "--data", "digits", "--input", "3,16,16", "--images", "16", "-o", "seen"
    )
    assert answer.code == 0 and "WEIGHTS ARE RANDOM" in answer.out


def test_analyze_leaves_damaged_images_out_and_says_so(cli: Cli, tmp_path: Path) -> None:
    """Grey and transparent images are read like others; classes are not needed."""
    folder = tmp_path / "loose"
    folder.mkdir()
    for index in range(12):
        mode = ("RGB", "L", "RGBA")[index % 3]
        Image.effect_noise((8, 8), 60 + index).convert(mode).save(folder / f"{index}.png")
    (folder / "bad.png").write_bytes(b"no image")
    answer = cli("analyze", "mine:tiny", "--data", f"folder:{folder}", "-o", "seen", "--json")
    found = json.loads(answer.out)
    assert answer.code == 0 and found["images"] >= 8
    assert any("1 file was left out" in note and "bad.png" in note for note in found["notes"])
    for index in range(12):
        (folder / f"{index}.png").write_bytes(b"no image")
    refused(cli("analyze", "mine:tiny", "--data", f"folder:{folder}", "-o", "seen-2"), "can be read", "0.png")
    assert not (tmp_path / "seen-2").exists()


def test_a_run_is_analysed_by_the_network_it_began_with(cli: Cli, images: str, tmp_path: Path) -> None:
    made = cli("compress", "mine:tiny", "--data", images, "--set", "pretrain.epochs=1", "-o", "run")
    assert made.code == 0
    answer = cli("analyze", "run", "--data", images, "-o", "seen", "--json")
    found = json.loads(answer.out)
    assert answer.code == 0 and found["trained"] is True
    assert [layer["geometry"] for layer in found["layers"]] == ["3→32 3x3", "32→32 3x3"]
    assert "ghost net" in (tmp_path / "seen" / "report.html").read_text()


def test_analyze_says_that_images_are_synthetic(cli: Cli) -> None:
    assert "synthetic" in cli("analyze", "mine:tiny", "--input", "3,8,8", "--data", "fake", "-o", "seen").out
    refused(
        cli("analyze", "ghostify:resnet8", "--data", "digits", "--layers", "lyer1.*", "-o", "more"),
        "matches no layer",
        "Did you mean 'layer1",
    )


def test_analyze_needs_images(cli: Cli, tmp_path: Path) -> None:
    refused(cli("analyze", "mine:tiny", "--input", "3,8,8"), "--data")
    assert not (tmp_path / "analyses").exists() or not any((tmp_path / "analyses").iterdir())


def test_recipes_are_listed_shown_and_checked(cli: Cli) -> None:
    listed = json.loads(cli("recipes", "list", "--json").out)
    assert "digits" in listed
    assert "papers/c-ghost-vgg16-s2-d3" in listed
    assert "source: ghostify:" in cli("recipes", "show", "digits").out
    checked = cli("recipes", "check", "digits", "--steps", "1")
    assert "digits.yaml is a valid recipe; it took 2 training steps on synthetic images." in checked.out
    assert json.loads(cli("recipes", "show", "digits", "--json").out)["ghost"]["s"] == 2


def test_a_recipe_that_cannot_be_carried_out_is_told_in_one_line(cli: Cli) -> None:
    Path("wrong.yaml").write_text(
        "{model: {source: 'ghostify:resnet8'}, ghost: {include: [layer9]}, finetune: {epochs: 1}}"
    )
    refused(cli("recipes", "check", "wrong.yaml"), "'wrong.yaml' cannot be carried out: include 'layer9' matches no")
    assert cli("recipes", "check", "wrong.yaml", "--steps", "0").code == 0


def test_env_names_versions(cli: Cli) -> None:
    told = json.loads(cli("env", "--json").out)
    assert told["libraries"]["torch"] == metadata.version("torch")
    assert metadata.version("torch") in cli("env").out


# -- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["scan", "torchvision:resnet17"], ["resnet17", "Did you mean 'resnet18'"]),
        (["scan", "resnet18"], ["torchvision:resnet18"]),
        (["scan", "mine:tinny", "--input", "3,8,8"], ["tinny", "Did you mean 'tiny'"]),
        (["scan", "mine:not_a_model"], ["torch.nn.Module"]),
        (["scan", "mine:tiny"], ["--input"]),
        (["scan", "mine:tiny", "--input", "three"], ["three"]),
        (["scan", "mine:tiny", "--input", "4,8,8"], ["(1, 4, 8, 8)", "module '0'"]),
        (["scan"], ["Which model"]),
        (["compress", "mine:no_convolutions", "--input", "3,2,2"], ["no convolutions"]),
        (["compress", "mine:tiny", "--input", "3,8,8", "--s", "64"], ["changes nothing"]),
        (["compress", "mine:tiny", "--input", "3,8,8", "--set", "3.s=64"], ["3:", "s = 64", "32"]),
        (["compress", "mine:tiny", "--input", "3,8,8", "--d", "4"], ["d", "odd"]),
        (["compress", "mine:tiny", "--input", "3,8,8", "--pointwise", "half"], ["ghost.pointwise = 'half'", "a rank"]),
        (
            ["compress", "mine:tiny", "--input", "3,8,8", "--cheap", "pointwize"],
            ["--cheap", "Did you mean 'pointwise'"],
        ),
        (
            ["compress", "mine:tiny", "--input", "3,8,8", "--cheap", "3x3"],
            ["ghost.cheap = 3x3", "choose method g-ghost"],
        ),
        (
            ["compress", "mine:tiny", "--input", "3,8,8", "--method", "g-ghost", "--cheap", "pointwise"],
            ["ghost.cheap = pointwise", "choose method c-ghost"],
        ),
        (
            ["compress", "mine:tiny", "--input", "3,8,8", "--cheap", "pointwise", "--d", "5"],
            ["ghost.d = 5 has no effect with cheap pointwise", "which tells both"],
        ),
        (["compress", "mine:tiny", "--input", "3,8,8", "--exclude", "3"], ["changes nothing"]),
        (["compress", "mine:tiny", "--input", "3,8,8", "--include", "layer*"], ["layer*", "no layer"]),
        (
            ["compress", "mine:tiny", "--input", "3,8,8", "--set", "finetune.epoch=1"],
            ["epoch", "Did you mean 'epochs'"],
        ),
        (["compress", "mine:tiny", "--input", "3,8,8", "--epochs", "1"], ["--data"]),
        (["compress", "mine:tiny", "--data", "digit"], ["Did you mean 'digits'"]),
        (["compress", "mine:tiny", "--data", "folder:nowhere"], ["nowhere"]),
        (["compress", "--recipe", "digit"], ["Did you mean 'digits'"]),
        (["compress", "mine:tiny", "--input", "3,8,8", "--device", "gpu"], ["gpu"]),
        (["compress", "mine:tiny", "--input", "3,8,8", "--plan", "none.yaml"], ["none.yaml"]),
        (["compress", "mine:tiny", "--input", "3,8,8", "--output", "mine.py/run"], ["mine.py"]),
        (["compress", "--resume", "runs/none"], ["runs/none"]),
        (["compress", "mine:tiny", "--plan", "plan.yaml", "--s", "4"], ["--plan", "leave out --s"]),
        (["compress", "mine:tiny", "--plan", "p.yaml", "--pointwise", "2"], ["--plan", "leave out --pointwise"]),
        (["compress", "--resume", "runs/x", "--min-saving", "0"], ["--resume", "leave out --min-saving"]),
        (["compress", "mine:tiny", "--resume", "runs/x"], ["--resume", "leave out model"]),
        (["finetune", "--resume", "runs/x", "--epochs", "3"], ["--resume", "leave out --epochs"]),
        (["report", "runs/none"], ["runs/none"]),
        (["recipes", "check", "nope.yaml"], ["nope.yaml"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_bad_input_is_one_line_and_leaves_nothing(cli: Cli, args: list[str], words: list[str]) -> None:
    refused(cli(*args), *words)
    assert not list(Path().glob("runs/*"))


def test_a_key_given_twice_is_refused(cli: Cli) -> None:
    Path("twice.yaml").write_text("model:\n  source: digits\nseed: 1\nseed: 2\n")
    refused(cli("recipes", "check", "twice.yaml"), "line 4", "'seed' stands twice")


def test_an_unknown_verb_is_answered_with_a_near_one(cli: Cli) -> None:
    answer = cli("compres")
    assert answer.code == 2
    assert "compress" in answer.err


@pytest.mark.parametrize("damage", ["misfit", "truncated", "pickled", "empty", "missing"])
def test_bad_checkpoints_are_refused(cli: Cli, damage: str) -> None:
    path = Path("weights.pt")
    torch.save(_tiny(classes=7 if damage == "misfit" else 10).state_dict(), path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "pickled":
        path.write_bytes(pickle.dumps({"0.weight": signal.Signals.SIGINT}))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "missing":
        path.unlink()
    refused(cli("compress", "mine:tiny", "--input", "3,8,8", "--weights", str(path)), "weights.pt")
    assert not list(Path().glob("runs/*"))


def test_a_plan_for_another_network_is_refused(cli: Cli) -> None:
    cli("plan", "mine:tiny", "--input", "3,8,8", "-o", "plan.yaml")
    refused(
        cli("compress", "mine:tiny", "--set", "model.args.width=64", "--input", "3,8,8", "--plan", "plan.yaml"),
        "another",
    )
    text = Path("plan.yaml").read_text()
    Path("plan.yaml").write_text(text.replace("target: '3'", "target: '9'"))
    refused(cli("compress", "mine:tiny", "--input", "3,8,8", "--plan", "plan.yaml"), "'9'")


def test_a_corrupt_image_is_named(cli: Cli, images: str) -> None:
    Path("images/test/dark/3.jpg").write_bytes(b"not an image")
    refused(cli("compress", "mine:tiny", "--data", images, "--set", "model.args.classes=2"), "images/test/dark/3.jpg")
    assert not list(Path("runs").glob("*"))


def test_an_unwritable_folder_is_told_before_any_work(cli: Cli) -> None:
    Path("runs").write_text("a file in the way")
    answer = cli("compress", "mine:tiny", "--input", "3,8,8")
    refused(answer, "runs/tiny", "cannot be written")
    assert "Measuring" not in answer.err


@pytest.mark.parametrize("change", ["weights", "plan", "missing"])
def test_a_changed_run_is_refused(cli: Cli, change: str) -> None:
    cli("compress", "mine:tiny", "--input", "3,8,8")
    weights, plan = Path("runs/tiny/weights-converted.safetensors"), Path("runs/tiny/plan.yaml")
    if change == "weights":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif change == "plan":
        text = plan.read_text()
        assert "  s: 2\n" in text
        plan.write_text(text.replace("  s: 2\n", "  s: 4\n"))
    else:
        weights.unlink()
    refused(cli("scan", "runs/tiny"), "runs/tiny/")


# -- whole processes -------------------------------------------------------------------------------------------


def _process(*args: str, folder: Path) -> subprocess.Popen[str]:
    """A ghostify of its own, which Ctrl-C reaches even where these tests run in a background that ignores it."""
    command = [sys.executable, "-m", "ghostify", *args]
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, text=True, preexec_fn=listen, **pipes)


def test_an_interrupted_run_goes_on_where_it_stopped(cli: Cli, tmp_path: Path) -> None:
    """Ctrl-C after the first epoch: exit code 130, how to go on, and a resumed run equal to one never stopped."""
    args = ("compress", "--recipe", "digits", "--set", "model.source=ghostify:resnet8", "--set", "pretrain.epochs=2")
    args = (*args, "--set", "finetune.epochs=1", "--set", "data.limit=64", "--batch-size", "32")
    stopped = _process(*args, "--output", "stopped", folder=tmp_path)
    assert stopped.stderr
    said = []
    with stopped:
        for line in stopped.stderr:
            said.append(line)
            if "epoch 1" in line:
                stopped.send_signal(signal.SIGINT)
    assert stopped.returncode == 130
    assert "ghostify compress --resume stopped" in said[-1]

    resumed = json.loads(cli("compress", "--resume", "stopped", "--json").out)
    straight = json.loads(cli(*args, "--output", "straight", "--json").out)
    assert resumed["accuracy"] == straight["accuracy"]
    files = ["weights-original.safetensors", "weights-converted.safetensors", "weights-finetuned.safetensors"]
    for name in files:
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_a_run_loads_with_equal_bits_in_a_fresh_process(tmp_path: Path) -> None:
    """Source + plan + safetensors give the very outputs of the module that was saved."""
    import ghostify

    module = resnet8().eval()
    ghosted = ghostify.convert(module, torch.randn(1, 3, 32, 32))
    ghostify.save(ghosted, tmp_path / "run", model="ghostify:resnet8")
    example = torch.randn(4, 3, 32, 32)
    torch.save(example, tmp_path / "example.pt")
    script = (
        "import torch, ghostify; torch.set_num_threads(1); x = torch.load('example.pt');"
        "torch.save(ghostify.load('run').module(x).detach(), 'output.pt')"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = ghosted.module.eval()(example).detach()
    torch.set_num_threads(threads)
    assert torch.equal(torch.load(tmp_path / "output.pt"), expected)


def _tiny(classes: int = 10) -> nn.Module:
    space: dict[str, Callable[..., nn.Module]] = {}
    exec(TINY, space)  # type: ignore[arg-type]
    return space["tiny"](classes)
