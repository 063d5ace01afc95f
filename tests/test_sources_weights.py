"""Checkpoints as people have them: what is found in a file, what is left over, and the line that says why not."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from ghostify.errors import GhostifyError, WeightsError
from ghostify.networks import resnet8
from ghostify.recipe import ModelSettings
from ghostify.sources import build_model, load_weights


def refusal(call: Callable[[], Any], error: type[GhostifyError] = WeightsError) -> str:
    """The message of the ``error`` that ``call`` raises: always one line, always a sentence, never chained."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and text.endswith((".", "?"))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return text


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(v, w) for (a, v), (b, w) in pairs)


def prefixed(prefix: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        OrderedDict,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state, "step": torch.tensor(3)},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"ema": state},
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
        lambda state: {"state_dict": prefixed("model.")(state)},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
)
def test_a_checkpoint_is_found_in_its_wrappings(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    trained, other = resnet8(), resnet8()
    torch.save(wrap(trained.state_dict()), tmp_path / "weights.pt")
    load_weights(other, tmp_path / "weights.pt")
    assert equal(trained, other)


def test_safetensors_are_read(tmp_path: Path) -> None:
    trained, path = resnet8(), tmp_path / "weights.safetensors"
    save_file(trained.state_dict(), path)
    assert equal(build_model(ModelSettings(source="ghostify:resnet8", weights=str(path))), trained)


def test_without_pretrained_the_weights_file_is_not_even_looked_for() -> None:
    build_model(ModelSettings(source="ghostify:resnet8", weights="nowhere.pt"), pretrained=False)


def test_a_network_whose_own_names_have_the_prefix_keeps_it(tmp_path: Path) -> None:
    trained, other = nn.ModuleDict({"model": nn.Linear(2, 2)}), nn.ModuleDict({"model": nn.Linear(2, 2)})
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    load_weights(other, tmp_path / "weights.pt")
    assert equal(trained, other)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("conv1.weight"), "1 missing (conv1.weight)"),
        (lambda s: [s.pop(key) for key in list(s)[1:5]], "4 missing ("),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected (extra)"),
        (lambda s: s.update({"linear.bias": torch.zeros(3)}), "1 of another shape (linear.bias is 3, not 10)"),
        (lambda s: s.update({"linear.bias": "text"}), "1 of another shape (linear.bias is str, not 10)"),
    ],
)
def test_weights_of_another_network_change_nothing(tmp_path: Path, change: Callable[[Any], Any], says: str) -> None:
    path, target = tmp_path / "weights.pt", resnet8()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = resnet8().state_dict()
    change(state)
    torch.save(state, path)
    text = refusal(lambda: load_weights(target, path), WeightsError)
    assert says in text and "weights.pt" in text and "CifarResNet" in text
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


class Payload:
    """Runs code when unpickled by a careless reader."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was run",)


def truncated(path: Path, keep: float, suffix: str) -> None:
    whole = path.with_name(f"whole{suffix}")
    save_file(resnet8().state_dict(), whole) if suffix == ".safetensors" else torch.save(resnet8().state_dict(), whole)
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("empty.pt", lambda p: p.touch(), "is empty"),
        ("folder.pt", lambda p: p.mkdir(), "is a folder"),
        ("text.pt", lambda p: p.write_text("hello, this is no checkpoint\n" * 9), "not a checkpoint"),
        ("half.pt", lambda p: truncated(p, 0.5, ".pt"), "truncated"),
        ("end.pt", lambda p: truncated(p, 0.98, ".pt"), "truncated"),
        ("half.safetensors", lambda p: truncated(p, 0.5, ".safetensors"), "truncated"),
        ("tiny.safetensors", lambda p: p.write_bytes(b"1234"), "truncated"),
        ("code.pt", lambda p: torch.save({"state_dict": Payload()}, p), "holds pickled Python objects, refused"),
        ("plain.pkl", lambda p: p.write_bytes(pickle.dumps({"a": Payload()})), "refused"),
        ("module.pt", lambda p: torch.save(resnet8(), p), "re-save it as model.state_dict()"),
        ("list.pt", lambda p: torch.save([1, 2], p), "holds a list"),
        ("nothing.pt", lambda p: torch.save({"epoch": 3}, p), "holds no weights; its keys: epoch"),
        ("hollow.pt", lambda p: torch.save({}, p), "holds no weights; its keys: none"),
    ],
)
def test_an_unusable_checkpoint_is_one_line(tmp_path: Path, name: str, write: Callable[[Path], Any], says: str) -> None:
    write(tmp_path / name)
    text = refusal(lambda: load_weights(resnet8(), tmp_path / name), WeightsError)
    assert says in text and name in text


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        torch.jit.trace(nn.ReLU(), torch.rand(1)).save(str(tmp_path / "program.pt"))
    assert "TorchScript" in refusal(lambda: load_weights(resnet8(), tmp_path / "program.pt"), WeightsError)


def test_a_missing_checkpoint_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "resnet20-cifar10.pt").touch()
    text = refusal(lambda: load_weights(resnet8(), tmp_path / "resnet20-cifar.pt"), WeightsError)
    assert "does not exist" in text and "Did you mean 'resnet20-cifar10.pt'?" in text


# --- what training scripts write


def trained_pair() -> tuple[nn.Module, nn.Module]:
    """Two networks of other weights."""
    torch.manual_seed(0)
    return resnet8(), resnet8()


def middle_wrapped(wrapper: str) -> Callable[[dict[str, Any]], Any]:
    """As a state dict is whose network has a compiled (or parallel) part."""
    return lambda state: {key.replace("layer2.", f"layer2.{wrapper}."): value for key, value in state.items()}


SCRIPTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    # name: (what is saved of a state dict, what is said of what was left)
    "Lightning": (
        lambda s: {
            "state_dict": {**prefixed("model.")(s), "loss_fn.weight": torch.ones(3)},
            "epoch": 3,
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
            "hparams_name": "kwargs",
        },
        "1 entry beside the network (loss_fn.weight) was left out",
    ),
    "AveragedModel": (
        lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.")(s)},
        "1 entry beside the network (n_averaged) was left out",
    ),
    "a shadow": (lambda s: {"ema": {"shadow": s, "decay": 0.999}, "step": 3}, ""),
    "a deep wrapping": (lambda s: {"checkpoint": {"trainer": {"model": {"state_dict": s}}}}, ""),
    "an unknown wrapping": (lambda s: {"generator_weights": s}, ""),
    "Namespace": (lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1, data=pathlib.PosixPath("x"))}, ""),
    "NumPy scalars": (lambda s: {"state_dict": s, "best": numpy.float64(0.5), "seen": numpy.int64(3)}, ""),
    "NumPy arrays": (lambda s: {key: value.numpy() for key, value in s.items()}, ""),
    "a part of a detector": (
        lambda s: {
            "model": {**prefixed("backbone.body.")(s), "head.weight": torch.ones(3), "head.bias": torch.ones(1)}
        },
        "2 entries beside the network (head.weight, head.bias) were left out",
    ),
    "a compiled part": (middle_wrapped("_orig_mod"), ""),
    "a parallel part": (middle_wrapped("module"), ""),
    "a sharded part": (middle_wrapped("_fsdp_wrapped_module._checkpoint_wrapped_module"), ""),
    "compiled, parallel, Lightning": (prefixed("model._orig_mod.module."), ""),
    "Lightning around parallel": (prefixed("module.model._orig_mod."), ""),
    "with its optimizer": (
        lambda s: {"model": s, "optimizer": {"state": {i: {"momentum_buffer": v} for i, v in enumerate(s.values())}}},
        "",
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_training_scripts_write_is_loaded_and_what_is_left_is_said(tmp_path: Path, name: str) -> None:
    wrap, left = SCRIPTS[name]
    trained, other = trained_pair()
    torch.save(wrap(dict(trained.state_dict())), tmp_path / "weights.pt")
    notes = load_weights(other, tmp_path / "weights.pt")
    assert equal(trained, other)
    assert left in " ".join(notes)
    assert bool(notes) == bool(left)


def test_averaged_weights_as_torch_writes_them(tmp_path: Path) -> None:
    trained, other = trained_pair()
    torch.save(AveragedModel(trained).state_dict(), tmp_path / "weights.pt")
    load_weights(other, tmp_path / "weights.pt")
    assert equal(trained, other)


def test_a_wrapped_network_takes_plain_weights(tmp_path: Path) -> None:
    trained, other = trained_pair()
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    load_weights(nn.DataParallel(other), tmp_path / "weights.pt")
    assert equal(trained, other)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_weight_norms_of_either_form_are_loaded(tmp_path: Path, old: bool) -> None:
    norm = torch.nn.utils.weight_norm if old else parametrizations.weight_norm
    trained = norm(nn.Conv2d(3, 4, 3))
    other = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    load_weights(other, tmp_path / "weights.pt")
    image = torch.rand(1, 3, 5, 5)
    torch.testing.assert_close(trained(image), other(image))


@pytest.mark.parametrize("name", ["weights.bin", "weights.ckpt", "weights.pt", "weights"])
def test_safetensors_are_known_by_what_they_hold(tmp_path: Path, name: str) -> None:
    trained, other = trained_pair()
    save_file(trained.state_dict(), tmp_path / name)
    load_weights(other, tmp_path / name)
    assert equal(trained, other)


def test_a_torch_file_may_be_called_safetensors(tmp_path: Path) -> None:
    trained, other = trained_pair()
    torch.save(trained.state_dict(), tmp_path / "weights.safetensors")
    load_weights(other, tmp_path / "weights.safetensors")
    assert equal(trained, other)


# --- several networks in one file


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("net", "swa_state"), ("model", "ema")],
)
def test_averaged_weights_are_taken_and_said(tmp_path: Path, raw: str, averaged: str) -> None:
    trained, other = trained_pair()
    path = tmp_path / "weights.pt"
    torch.save({raw: other.state_dict(), averaged: trained.state_dict()}, path)
    taken = resnet8()
    (note,) = load_weights(taken, path)
    assert equal(taken, trained)
    assert repr(averaged) in note and f"--weights-key {raw}" in note
    assert not load_weights(taken, path, key=raw)
    assert equal(taken, other)


def test_averaged_weights_within_one_state_dict_are_told_apart(tmp_path: Path) -> None:
    trained, other = trained_pair()
    both = {**prefixed("model.")(other.state_dict()), **prefixed("ema_model.")(trained.state_dict())}
    torch.save({"state_dict": both}, tmp_path / "weights.pt")
    taken = resnet8()
    load_weights(taken, tmp_path / "weights.pt")
    assert equal(taken, trained)
    load_weights(taken, tmp_path / "weights.pt", key="state_dict.model")
    assert equal(taken, other)


def test_one_of_two_networks_must_be_named(tmp_path: Path) -> None:
    student, teacher = trained_pair()
    path = tmp_path / "weights.pt"
    torch.save({**prefixed("student.")(student.state_dict()), **prefixed("teacher.")(teacher.state_dict())}, path)
    taken = resnet8()
    before = {key: value.clone() for key, value in taken.state_dict().items()}
    text = refusal(lambda: load_weights(taken, path))
    assert "'student'" in text and "'teacher'" in text and "--weights-key" in text
    assert all(torch.equal(before[key], value) for key, value in taken.state_dict().items())
    load_weights(taken, path, key="teacher")
    assert equal(taken, teacher)
    assert "Did you mean 'teacher'?" in refusal(lambda: load_weights(taken, path, key="techer"))


def test_twice_the_same_weights_are_no_question(tmp_path: Path) -> None:
    trained, other = trained_pair()
    torch.save({"model": trained.state_dict(), "model_ema": trained.state_dict()}, tmp_path / "weights.pt")
    assert not load_weights(other, tmp_path / "weights.pt")
    assert equal(trained, other)


# --- what does not fit


def test_what_fits_is_loaded_when_asked_for_and_the_rest_is_said(tmp_path: Path) -> None:
    trained, other = trained_pair()
    state = trained.state_dict()
    state["linear.weight"], state["linear.bias"] = torch.ones(7, 64), torch.ones(7)
    state["extra.weight"] = torch.ones(3)
    del state["bn1.weight"]
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    assert "--weights-strict no" in refusal(lambda: load_weights(other, path))
    head, norm = other.linear.weight.clone(), other.bn1.weight.clone()
    (note,) = load_weights(other, path, strict=False)
    assert "2 of another shape" in note and "1 missing (bn1.weight)" in note and "1 unexpected (extra.weight)" in note
    assert torch.equal(other.linear.weight, head) and torch.equal(other.bn1.weight, norm)
    assert torch.equal(other.conv1.weight, trained.conv1.weight)


def test_a_file_of_another_network_is_refused_though_all_that_fits_was_asked_for(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.ones(2, 2)}, tmp_path / "weights.pt")
    text = refusal(lambda: load_weights(resnet8(), tmp_path / "weights.pt", strict=False))
    assert "do not fit this CifarResNet" in text and "1 unexpected (encoder.weight)" in text


class Settings:
    """A class of a training script."""


def test_a_class_that_is_not_known_is_named_and_can_be_allowed(tmp_path: Path) -> None:
    trained, other = trained_pair()
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": trained.state_dict(), "config": Settings()}, path)
    name = f"{Settings.__module__}.Settings"
    assert f"--weights-allow {name}" in refusal(lambda: load_weights(other, path))
    load_weights(other, path, allowed=[name])
    assert equal(trained, other)


@pytest.mark.parametrize("name", ["os.system", "posix.system", "builtins.eval", "no_such_package.Class", "Class", ""])
def test_only_classes_can_be_allowed(tmp_path: Path, name: str) -> None:
    torch.save(resnet8().state_dict(), tmp_path / "weights.pt")
    assert "weights_allow" in refusal(lambda: load_weights(resnet8(), tmp_path / "weights.pt", allowed=[name]))


def test_code_in_a_file_does_not_run_whatever_plain_classes_are_known(tmp_path: Path) -> None:
    torch.save({"state_dict": resnet8().state_dict(), "args": argparse.Namespace(x=Payload())}, tmp_path / "w.pt")
    assert "refused" in refusal(lambda: load_weights(resnet8(), tmp_path / "w.pt"))


def test_the_settings_of_a_recipe_reach_the_file(tmp_path: Path) -> None:
    trained, other = trained_pair()
    path = tmp_path / "weights.pt"
    torch.save({"model": other.state_dict(), "model_ema": {**trained.state_dict(), "odd": torch.ones(1)}}, path)
    said: list[str] = []
    settings: Mapping[str, Any] = {"source": "ghostify:resnet8", "weights": str(path)}
    strict = ModelSettings(**settings, weights_key="model_ema")
    assert "1 unexpected (odd)" in refusal(lambda: build_model(strict))
    lenient = ModelSettings(**settings, weights_key="model_ema", weights_strict="no")
    assert equal(build_model(lenient, told=said.append), trained)
    assert "1 unexpected (odd)" in said[0]
