"""Every runtime gives what the module gives, of whatever form its inputs and outputs are, or refuses in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ghostify.cheap import Cheap
from ghostify.errors import GhostifyError, ModelError, RecipeError
from ghostify.ghosts import CGhost
from ghostify.measuring import measure, timed
from ghostify.networks import resnet8
from ghostify.runtimes import RUNTIMES, Compiled, Runtime, Session, runtime
from ghostify.runtimes.exporting import export

EXPORTING = ("onnxruntime", "openvino")
EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Unbuilt(Compiled):
    """Compiled as far as the graph: what is about the way there needs no compiler."""

    backend = "eager"


class Nested(nn.Module):
    """Several inputs, some by keyword and in a dict, one of integers, one that is no tensor; a dict of lists out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.words = nn.Embedding(10, 4)

    def forward(self, images: Tensor, scale: float, *, more: Mapping[str, Tensor], unused: Tensor) -> dict[str, Any]:
        maps = scale * self.conv(images) + self.words(more["tokens"]).mean(1)[:, :, None, None]
        return {"maps": [maps, maps.mean((2, 3))], "none": None}


class Unwritable(nn.Module):
    """No ONNX operation gives a matrix's eigenvalues."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(images)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def sessions_of(name: str) -> Runtime:
    return Unbuilt() if name == "compile" else runtime(name)


def outputs(session: Session) -> list[Tensor]:
    """The tensors that a pass gives, whatever its runtime holds them in."""
    with torch.inference_mode():
        given = session()
    leaves = given.values() if hasattr(given, "to_dict") else tree_leaves(given)
    arrays = (torch.from_numpy(leaf.copy()) if isinstance(leaf, numpy.ndarray) else leaf for leaf in leaves)
    return [leaf for leaf in arrays if isinstance(leaf, Tensor)]


def agree(session: Session, expected: list[Tensor], tolerance: float = 1e-4) -> bool:
    found = outputs(session)
    return len(found) == len(expected) and all(
        torch.allclose(a.float(), b.float(), atol=tolerance, rtol=tolerance)
        for a, b in zip(found, expected, strict=True)
    )


@pytest.fixture(params=list(RUNTIMES))
def one(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    yield sessions_of(request.param)
    torch._dynamo.reset()


def test_a_session_gives_what_the_network_gives(one: Runtime) -> None:
    network = resnet8().eval()
    images = torch.randn(1, 3, 32, 32)
    assert agree(one.session(network, (images,)), outputs(lambda: network(images)))


def test_inputs_and_outputs_may_be_nested_and_of_any_kind(one: Runtime) -> None:
    network = Nested().eval()
    more = {"more": {"tokens": torch.tensor([[1, 2], [3, 4]])}, "unused": torch.ones(1)}
    expected = outputs(lambda: network(EXAMPLE, 0.5, **more))
    assert len(expected) == 2
    assert agree(one.session(network, (EXAMPLE, 0.5), more), expected)


def test_half_precision_runs_as_it_is(one: Runtime) -> None:
    network = small().half()
    assert agree(one.session(network, (EXAMPLE.half(),)), outputs(lambda: network(EXAMPLE.half())), 1e-2)


def test_layouts_of_the_example_are_those_of_the_file(one: Runtime) -> None:
    network, images = small(), EXAMPLE.to(memory_format=torch.channels_last)
    assert agree(one.session(network, (images,)), outputs(lambda: network(EXAMPLE)))


@pytest.mark.parametrize("s", [2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_ghosts_in_groups_run_in_any_layout(
    s: int, layout: torch.memory_format, one: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    """A group of 8 outputs is no multiple of three; nothing is printed where an exporter has to try twice."""
    ghost = (
        CGhost.from_conv(nn.Conv2d(8, 16, 3, padding=1, groups=2), s, cheap=Cheap(3)).eval().to(memory_format=layout)
    )
    images = torch.randn(1, 8, 6, 6).to(memory_format=layout)
    assert agree(one.session(ghost, (images,)), outputs(lambda: ghost(images)))
    assert not capsys.readouterr().out


def test_the_module_is_left_as_it_was(one: Runtime) -> None:
    network = small().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    one.session(network, (EXAMPLE,))
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_a_file_is_written_without_a_change_of_mode(training: bool, tmp_path: Path) -> None:
    network = small().train(training)
    network[0].train(not training)
    export(network, (EXAMPLE,), {}, tmp_path / "network.onnx")
    assert [part.training for part in network.modules()].count(training) == len([*network.modules()]) - 1


@pytest.mark.parametrize("name", EXPORTING)
def test_what_an_exporting_runtime_cannot_run_is_one_line(name: str) -> None:
    cases: list[tuple[nn.Module, tuple[Any, ...]]] = [
        (small().bfloat16(), (EXAMPLE.bfloat16(),)),
        (Unwritable(), (EXAMPLE,)),
        (nn.Identity(), (3,)),
    ]
    for module, args in cases:
        with pytest.raises(ModelError) as caught:
            runtime(name).session(module, args)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("name", EXPORTING)
def test_an_exporting_runtime_refuses_a_gpu(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"^The runtime {name} runs on the CPU only, not on 'cuda:0'; give"):
        runtime(name).session(small(), (EXAMPLE,), device="cuda:0")


def test_an_unknown_runtime_is_told_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"^There is no runtime 'onnx-runtime'; give one of .* Did you mean 'onnxru"):
        runtime("onnx-runtime")


@pytest.mark.parametrize("name", EXPORTING)
def test_a_missing_package_is_told_with_what_installs_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghostify.runtimes.protocol.find_spec", lambda package: None if package == name else "there")
    with pytest.raises(RecipeError, match=rf"^The runtime {name} needs {name}: pip install 'ghostify\[{name}\]'\.$"):
        runtime(name)


def test_a_computer_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
    told = pytest.raises(RecipeError, match=r"^The runtime compile needs a C\+\+ compiler, and none was found")
    # Code of an earlier run would do without one.
    with config.patch(force_disable_caches=True), told:
        Compiled().session(nn.Sequential(nn.Softmax(1), nn.Sigmoid(), nn.Softmax(2)), (torch.randn(2, 7, 3),))
    torch._dynamo.reset()


def test_modules_of_one_class_are_each_compiled() -> None:
    """Torch keeps few variants of one code object, and runs what comes later as eager: each session has its own."""
    made = [nn.Sequential(nn.Conv2d(3, width, 1), nn.ReLU()).eval() for width in range(1, 12)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        sessions = [Unbuilt().session(module, (EXAMPLE,)) for module in made]
        for session, module in zip(sessions, made, strict=True):
            assert agree(session, outputs(lambda module=module: module(EXAMPLE)))
    torch._dynamo.reset()


def test_a_session_is_set_up_for_the_threads_it_is_asked_for() -> None:
    seen: list[int] = []

    class Watched(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            return images

    torch._dynamo.reset()
    Unbuilt().session(torch.compiler.disable(Watched()), (EXAMPLE,), threads=torch.get_num_threads() + 1)
    assert seen == [torch.get_num_threads() + 1]
    torch._dynamo.reset()


@pytest.mark.parametrize("name", EXPORTING)
def test_networks_are_measured_on_a_runtime(name: str) -> None:
    timings = measure({"a": small(), "b": small()}, EXAMPLE, seconds=0.01, runtime=name)
    assert timings.latency("a").place == f"{name}, 1 thread" and timings.latency("a").median_ms > 0
    with pytest.raises(ModelError, match=r"^'a': It is fed arrays, and NumPy has no bfloat16"):
        measure({"a": small().bfloat16()}, EXAMPLE.bfloat16(), seconds=0.01, runtime=name)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_network_that_does_not_take_the_example_is_told_alike(name: str) -> None:
    with pytest.raises(ModelError, match=r"^Model 'a' does not run on the example: Given groups=1"):
        measure({"a": small()}, torch.randn(1, 5, 8, 8), runtime=name)


def test_any_calls_are_timed_in_turns_within_the_threads_and_without_gradients() -> None:
    order: list[tuple[str, int, bool]] = []

    def call(name: str) -> Session:
        return lambda: order.append((name, torch.get_num_threads(), torch.is_inference_mode_enabled()))

    threads = torch.get_num_threads() + 1
    timings = timed({"a": call("a"), "b": call("b")}, seconds=0.001, threads=threads)
    turns = [sorted(order[start : start + 2]) for start in range(0, len(order), 2)]
    assert turns == [[("a", threads, True), ("b", threads, True)]] * len(turns)
    assert len(timings.ms["a"]) == len(timings.ms["b"]) < len(order) // 2  # the warm-up is not kept
    with pytest.raises(GhostifyError):
        timed({}, seconds=1)


def test_runtimes_say_their_version() -> None:
    assert all(one.version()[0].isdigit() for one in RUNTIMES.values())
