"""Every run that is saved comes back in a process that knows nothing of this one, with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

import built_nets
import kinds_of_state
import pytest
import torch
from hard_nets import HARD_NETS
from kinds_of_state import BUILDERS, Holder
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from zoo import ZOO, run

import ghostify
from ghostify.errors import GhostifyError, PlanError, RunError
from ghostify.planning import plan, scan_for
from ghostify.recipe import GhostSettings, ModelSettings, Role
from ghostify.rewriting import Ghosted, rewrite
from ghostify.saving import weights
from ghostify.saving.weights import named_tensors, put_weights, read_weights, write_weights
from ghostify.tracing import trace

TESTS = Path(__file__).parent
METHODS = {
    "c-ghost": GhostSettings(also=get_args(Role), min_saving=0),
    "g-ghost": GhostSettings(method="g-ghost"),
    "width": GhostSettings(method="width", width=0.5),
    "thin": GhostSettings(method="thin", width=0.5),
}
LOADING = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch, ghostify
from test_saved_networks import state_and_outputs

for folder in json.load(open(sys.argv[1])):
    module = ghostify.load(folder + "/run").module
    torch.save(state_and_outputs(module, torch.load(folder + "/input.pt", weights_only=False)), folder + "/found.pt")
"""
NO_FILE_CAN_HOLD = {"meta": "meta device"}
"""Hard nets that are refused, with words of the reason."""


@dataclass
class Saved:
    """A run in a folder, and what its network holds and gives."""

    name: str
    folder: Path
    wanted: list[Tensor]


def state_and_outputs(module: nn.Module, example: Any) -> list[Tensor]:
    """All numbers of a network in the order of their names, then what it gives in eval mode."""
    held = named_tensors(module)
    state = [held[name].detach().clone() for name in sorted(held)]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = run(module.eval(), example)
    return [*state, *(leaf.detach() for leaf in tree_leaves(given) if isinstance(leaf, Tensor))]


def saved(folder: Path, source: ModelSettings, ghosted: Ghosted, example: Any, name: str) -> Saved:
    """Save a network; what it holds and gives is taken before saving, which must not change it."""
    ghostify.save(ghosted, folder / "run", model=source)
    torch.save(example, folder / "input.pt")
    return Saved(name, folder, state_and_outputs(ghosted.module, example))


def require_the_same_elsewhere(runs: list[Saved], tmp_path: Path) -> None:
    """Load all runs in one fresh process, and compare the bits."""
    (tmp_path / "runs.json").write_text(json.dumps([str(one.folder) for one in runs]))
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", LOADING, str(tmp_path / "runs.json")]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    for one in runs:
        found = torch.load(one.folder / "found.pt", weights_only=False)
        assert len(found) == len(one.wanted), one.name
        assert all(same_bits(a, b) for a, b in zip(found, one.wanted, strict=True)), one.name


def same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    views = (tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*views)


def converted(module: nn.Module, example: Any, method: str = "c-ghost") -> Ghosted:
    """The module rewritten wherever the method can."""
    settings = METHODS[method]
    traced = trace(module, example)
    return rewrite(traced, plan(scan_for(traced, settings), settings))


def trained(module: nn.Module) -> nn.Module:
    """As if trained: no number is what its source gives it."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.rand_like(parameter), alpha=0.1)
    return module


# -- every way to hold numbers ---------------------------------------------------------------------------------


def test_whatever_holds_the_numbers_they_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    runs = []
    for name in BUILDERS:
        example = kinds_of_state.example(name)
        ghosted = converted(kinds_of_state.build(name), example)
        trained(ghosted.module)
        (tmp_path / name).mkdir()
        source = ModelSettings(source="kinds_of_state:build", args={"name": name})
        runs.append(saved(tmp_path / name, source, ghosted, example, name))
    require_the_same_elsewhere(runs, tmp_path)


PRECISE = ("line", "volume", "AliasedModules", "SharedParameter", "Frozen", "Embedding")


def test_every_precision_comes_back(tmp_path: Path) -> None:
    """Though the sources build float32."""
    torch.manual_seed(0)
    runs = []
    cases = product(PRECISE, ("c-ghost", "width", "thin"), (torch.float16, torch.bfloat16, torch.float64))
    for name, method, dtype in cases:
        example = built_nets.in_precision(kinds_of_state.example(name), dtype)
        try:
            ghosted = converted(kinds_of_state.build(name).to(dtype), example, method)
        except PlanError:  # this method is not for this network
            continue
        folder = tmp_path / f"{name}-{method}-{dtype}"
        folder.mkdir()
        source = ModelSettings(source="kinds_of_state:build", args={"name": name})
        runs.append(saved(folder, source, ghosted, example, folder.name))
    assert len(runs) >= 3 * (len(PRECISE) + 4)
    require_the_same_elsewhere(runs, tmp_path)


@pytest.mark.parametrize("name", BUILDERS)
def test_what_is_one_tensor_stays_one_and_what_learns_learns(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, other = kinds_of_state.build(name), kinds_of_state.build(name)
    write_weights(module, tmp_path / "weights.safetensors")
    put_weights(other, read_weights(tmp_path / "weights.safetensors"))
    assert tied(other) == tied(module)
    assert learning(other) == learning(module)
    strides = {key: tensor.stride() for key, tensor in named_tensors(module).items()}
    assert {key: tensor.stride() for key, tensor in named_tensors(other).items()} == strides


def tied(module: nn.Module) -> set[tuple[str, str]]:
    """Pairs of names of one tensor, and of tensors that share memory."""
    named = [(name, tensor) for name, tensor in named_tensors(module).items() if tensor.numel()]
    memory = {name: tensor.untyped_storage().data_ptr() for name, tensor in named}
    return {(a, b) for a, one in named for b, other in named if one is other or memory[a] == memory[b]}


def learning(module: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in module.named_parameters()}


def test_ties_that_the_source_does_not_make_are_made(tmp_path: Path) -> None:
    """And those it makes are cut where the saved network's tensors have parted."""
    torch.manual_seed(0)
    bound, free = BUILDERS["SharedParameter"](), Holder()
    for source, target in ((bound, free), (free, bound)):
        write_weights(source, tmp_path / "weights.safetensors")
        put_weights(target, read_weights(tmp_path / "weights.safetensors"))
        assert tied(target) == tied(source)
        wanted = named_tensors(source)
        assert all(same_bits(tensor, wanted[name]) for name, tensor in named_tensors(target).items())
        bound, free = BUILDERS["SharedParameter"](), Holder()


def test_weights_in_another_order_of_memory_keep_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Holder().to(memory_format=torch.channels_last)
    write_weights(module, tmp_path / "weights.safetensors")
    other = Holder()
    put_weights(other, read_weights(tmp_path / "weights.safetensors"))
    assert other.body.weight.is_contiguous(memory_format=torch.channels_last)
    assert same_bits(other.body.weight, module.body.weight)


def test_runs_of_earlier_versions_load(tmp_path: Path) -> None:
    """Their weights were written by safetensors' own save_model, their scans know no form of the input."""
    from safetensors.torch import save_model

    torch.manual_seed(0)
    for name in ("AliasedModules", "SharedParameter", "OldWeightNorm", "Unlisted"):
        module = kinds_of_state.build(name)
        save_model(module, str(tmp_path / "weights.safetensors"))
        other = kinds_of_state.build(name)
        put_weights(other, read_weights(tmp_path / "weights.safetensors"))
        state, expected = other.state_dict(), module.state_dict()
        assert all(same_bits(state[key], expected[key]) for key in expected)


# -- what would not come back is refused -----------------------------------------------------------------------


class Secret(Holder):
    """Computes with a random number that is no parameter and no buffer."""

    def hold(self) -> None:
        self.secret = torch.randn(16)

    def tail(self, x: Tensor) -> Tensor:
        return x + self.secret


class Luck(Holder):
    """Is built in another way each time."""

    def hold(self) -> None:
        self.extra = nn.Linear(16, int(torch.randint(2, 1000, ())))


class Extra(Holder):
    """Keeps state that is no tensor."""

    def get_extra_state(self) -> Any:
        return object()

    def set_extra_state(self, state: Any) -> None: ...


class Sparse(Holder):
    def hold(self) -> None:
        self.register_buffer("edges", torch.eye(4).to_sparse())


REFUSED = {
    "Secret": (Secret, "gives other outputs"),
    "Luck": (Luck, "does not build the network"),
    "Extra": (Extra, "get_extra_state"),
    "Sparse": (Sparse, "'edges' of Sparse is sparse"),
}


def refused(name: str) -> nn.Module:
    return REFUSED[name][0]()


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_come_back_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ghosted = converted(refused(name), torch.randn(2, 3, 8, 8))
    source = ModelSettings(source=f"{__name__}:refused", args={"name": name})
    with pytest.raises(RunError, match=REFUSED[name][1]) as said:
        ghostify.save(ghosted, tmp_path / "deep" / "run", model=source)
    assert "\n" not in str(said.value)
    assert not list(tmp_path.iterdir())


def test_a_network_of_other_classes_than_its_source_is_refused_with_what_to_do(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    ghosted = ghostify.convert(resnet18(num_classes=10), torch.randn(1, 3, 32, 32))
    with pytest.raises(
        RunError, match=r"'fc\.weight' is 10x512 in the file and 1000x512.*args=.*package\.module"
    ) as said:
        ghostify.save(ghosted, tmp_path / "run", model="torchvision:resnet18")
    assert "\n" not in str(said.value) and not list(tmp_path.iterdir())
    source = ModelSettings(source="torchvision:resnet18", args={"num_classes": 10})
    ghostify.save(ghosted, tmp_path / "run", model=source)
    assert ghostify.load(tmp_path / "run").module.fc.out_features == 10


def test_damage_on_the_way_to_the_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read back: a bit that fell over while it was written does not pass."""
    written = weights.save_file

    def flipped(tensors: dict[str, Tensor], path: str, metadata: Any) -> None:
        written(tensors, path, metadata)
        content = bytearray(Path(path).read_bytes())
        content[-1] ^= 1
        Path(path).write_bytes(content)

    monkeypatch.setattr(weights, "save_file", flipped)
    ghosted = converted(Holder(), torch.randn(2, 3, 8, 8))
    with pytest.raises(RunError, match="does not come back"):
        ghostify.save(ghosted, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_saving_changes_nothing_of_its_caller(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ghosted = converted(BUILDERS["OldSpectralNorm"]().train(), torch.randn(2, 3, 8, 8))
    before = [tensor.clone() for tensor in named_tensors(ghosted.module).values()]
    random, modes = torch.get_rng_state(), [part.training for part in ghosted.module.modules()]
    source = ModelSettings(source="kinds_of_state:build", args={"name": "OldSpectralNorm"})
    ghostify.save(ghosted, tmp_path / "run", model=source)
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in ghosted.module.modules()] == modes
    assert all(same_bits(a, b) for a, b in zip(named_tensors(ghosted.module).values(), before, strict=True))


# -- the zoo and the hard nets ---------------------------------------------------------------------------------


def rewrites(names: list[str], dtype: torch.dtype) -> Iterator[tuple[str, str, Ghosted, Any]]:
    """Each net by each method that applies to it in that precision."""
    for name in names:
        for method, settings in METHODS.items():
            example = built_nets.example(name, dtype)
            try:
                traced = trace(built_nets.build(name).to(dtype), example)
                yield name, method, rewrite(traced, plan(scan_for(traced, settings), settings)), example
            except (GhostifyError, RuntimeError, TypeError):  # a method that does not apply, or not in this precision
                continue


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("nets", [ZOO, HARD_NETS], ids=["zoo", "hard"])
def test_every_net_comes_back_in_a_fresh_process(nets: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    runs = []
    for name, method, ghosted, example in rewrites([net.name for net in nets], dtype):
        folder = tmp_path / f"{name}-{method}"
        folder.mkdir()
        source = ModelSettings(source="built_nets:build", args={"name": name})
        if name in NO_FILE_CAN_HOLD:
            with pytest.raises(RunError, match=NO_FILE_CAN_HOLD[name]):
                ghostify.save(ghosted, folder / "run", model=source)
        else:
            runs.append(saved(folder, source, ghosted, example, folder.name))
    assert len(runs) > 60
    require_the_same_elsewhere(runs, tmp_path)
