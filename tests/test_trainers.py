"""A ghosted network in other people's trainers: each block of docs/trainers.md runs, and does what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ghostify
from ghostify.networks import resnet14, resnet20

PAGE = (Path(__file__).parents[1] / "docs" / "trainers.md").read_text(encoding="utf-8")
CONVERSIONS: dict[str, dict[str, Any]] = {
    "pointwise ghosts": {"s": 2},
    "depthwise ghosts": {"cheap": "depthwise 3", "s": 4},
    "both": {"cheap": "depthwise 3 + pointwise"},
    "norms in parts": {"parts": "norm-act", "cheap": "depthwise 3"},
    "thin": {"method": "thin", "width": 0.5},
    "mixed": {"method": "mixed", "width": 0.5},
    "stages": {"method": "g-ghost", "ratio": 0.5},
    "width": {"method": "width", "width": 0.5},
}


def blocks(section: str) -> list[str]:
    """The Python of a section; of the page's head where the section is empty."""
    text = PAGE.split(f"\n## {section}\n")[1] if section else PAGE
    return re.findall(r"^```python\n(.*?)^```", text.split("\n## ")[0], re.DOTALL | re.MULTILINE)


def code(section: str) -> str:
    """What a person who copies a section has in the file."""
    return "\n".join([*blocks(""), *blocks(section)])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """A section of the page, run in a folder of its own; its names."""
    monkeypatch.chdir(tmp_path)

    def running(section: str) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "trainers"}
        exec(code(section), names)
        return names

    return running


def moved(network: nn.Module, images: Tensor) -> list[str]:
    """The parameters that the page's training changed."""
    torch.manual_seed(0)
    torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    before = dict(ghostify.convert(resnet14(), images[:1], s=2).module.named_parameters())
    return [name for name, now in network.named_parameters() if not torch.equal(now, before[name])]


def test_a_plain_loop_trains_every_parameter_and_saves(run: Callable[[str], dict[str, Any]]) -> None:
    names = run("PyTorch")
    network, images = names["network"], names["images"]
    assert moved(network, images) == [name for name, _ in network.named_parameters()]
    assert torch.equal(names["again"](images), network.eval()(images))


def test_lightning_trains_the_module_that_is_saved(run: Callable[[str], dict[str, Any]]) -> None:
    pytest.importorskip("lightning", reason="Lightning is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning advises on workers and on what it will rename
        names = run("Lightning")
    network = names["network"]
    assert moved(network, names["images"]) == [name for name, _ in network.named_parameters()]
    assert names["ghosted"].module is network


def test_timm_averages_its_weights(run: Callable[[str], dict[str, Any]]) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    names = run("timm's EMA")
    averaged, network = names["average"].module, names["network"]
    names["ghosted"].module.load_state_dict(averaged.state_dict())
    assert torch.equal(averaged.eval()(names["images"]), network.eval()(names["images"]))


def test_compile_sees_one_graph(run: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    compiling = torch.compile
    # graph breaks do not depend on the backend, and the default one takes a minute to compile
    monkeypatch.setattr(torch, "compile", lambda *args, **told: compiling(*args, backend="aot_eager", **told))
    names = run("torch.compile")
    assert all(parameter.grad is not None for parameter in names["network"].parameters())


@pytest.mark.slow
@pytest.mark.parametrize("section", ["DistributedDataParallel", "FSDP2"])
def test_two_processes_train_one_network(section: str, tmp_path: Path) -> None:
    script, told = tmp_path / "train.py", tmp_path / "told"
    whole = "lambda t: t.full_tensor() if hasattr(t, 'full_tensor') else t"
    ending = f"""
whole = {whole}
weights = [whole(parameter).detach() for parameter in network.parameters()]
torch.save(weights, r"{told}" + str(torch.distributed.get_rank()))
torch.distributed.destroy_process_group()
"""
    script.write_text(code(section) + ending)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    ones, others = (torch.load(f"{told}{rank}", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def test_weights_alone_fill_a_network_of_the_plan(run: Callable[[str], dict[str, Any]]) -> None:
    names = run("Without the original's weights")
    images = names["images"]
    assert torch.equal(names["empty"].eval()(images), names["network"].eval()(images))


@pytest.mark.parametrize("settings", CONVERSIONS.values(), ids=CONVERSIONS)
def test_every_parameter_gets_a_gradient(settings: dict[str, Any]) -> None:
    """So that DistributedDataParallel need not look for those that get none."""
    images = torch.randn(4, 3, 32, 32)
    network = ghostify.convert(resnet20(), images[:1], **settings).module.train()
    network(images).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
