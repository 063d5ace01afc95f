"""A file that is not its network is found out, whatever is wrong with it and wherever; one that is, passes.

The files here are copies of the network in memory with something wrong on purpose.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ghostify
from ghostify.errors import ExportError
from ghostify.exporting.diverging import first_divergence
from ghostify.exporting.formats import Format, Runner
from ghostify.exporting.parity import Parity, check, precision_of
from ghostify.exporting.portable import AsFile, Portable, portable
from ghostify.exporting.samples import Samples, larger, noise
from ghostify.exporting.tolerances import TOLERANCES
from ghostify.networks import resnet8

Fault = Callable[[nn.Module, bool], None]
"""Spoils a copy of a network, which is to be run optimised or not."""
IMAGES = Samples(torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0)).split(32), "noise", real=False)


class Faulty(Format):
    """A format whose files are copies of the network, and whose runtime spoils some layer's output."""

    name, suffix, runs_on = "faulty", ".faulty", "a runtime at fault"
    can_leave_unoptimized = True

    def __init__(self, fault: Fault) -> None:
        self.fault, self.files = fault, dict[Path, nn.Module]()

    def version(self) -> str:
        return "0"

    def _write(self, network: Portable, file: Path) -> None:
        self.files[file] = copy.deepcopy(network.module)

    def _open(self, file: Path, optimized: bool, threads: int) -> Runner:
        spoilt = copy.deepcopy(self.files[file])
        self.fault(spoilt, optimized)
        return torch.no_grad()(spoilt)


def ready(batch: int = 1) -> Portable:
    torch.manual_seed(0)
    return portable(resnet8().eval(), torch.randn(batch, 3, 16, 16), dynamic="batch")


def opened(format: Format, network: Portable, path: Path) -> dict[bool, Runner]:
    format.write(network, path)
    return {optimized: format.open(path, optimized=optimized) for optimized in (True, False)}


def checked(fault: Fault, precision: str = "fp32", samples: Samples = IMAGES) -> tuple[Parity, Faulty, Portable]:
    format, network = Faulty(fault), ready()
    return (
        check(network.module, opened(format, network, Path("file")), samples, precision=precision),
        format,
        network,
    )


def spoiling(layer: str, by: float, when: Callable[[bool, int], bool] = lambda optimized, batch: True) -> Fault:
    """One layer gives a little more than it should."""

    def spoil(network: nn.Module, optimized: bool) -> None:
        for name, module in network.named_modules():
            if name.endswith(layer):
                module.register_forward_hook(lambda _, args, output: spoilt(output, optimized))

    def spoilt(output: Tensor, optimized: bool) -> Tensor:
        return output + by * output.abs().max() if when(optimized, len(output)) else output

    return spoil


def none_at_all(network: nn.Module, optimized: bool) -> None:
    """A file as it should be."""


def test_a_copy_passes_in_every_way_it_is_run() -> None:
    found, _, _ = checked(none_at_all)
    assert found.passed and not found.reason and found.failed is None
    assert {(run.optimized, run.batch) for run in found.compared} == {(o, b) for o in (True, False) for b in (1, 2, 7)}
    assert found.worst == 0 and found.agreement == 1 and found.samples == 32


LAST = "linear"


def layers_of(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("place", [0, 3, -2, -1])
def test_a_layer_at_fault_is_named(place: int) -> None:
    layer = layers_of(resnet8())[place]
    found, format, network = checked(spoiling(layer, 0.01))
    assert not found.passed and found.failed is not None
    assert found.reason.startswith("at batch 1, optimised by its runtime, outputs differ by 0.")
    first = first_divergence(network, format, IMAGES.first(2), found.failed, "fp32")
    assert first is not None and first.layer == layer
    assert layer in str(first) and first.difference == pytest.approx(0.01, rel=0.2)


def test_what_a_runtime_breaks_by_optimising_is_told_from_the_rest() -> None:
    found, _, _ = checked(spoiling(LAST, 0.1, lambda optimized, batch: optimized))
    assert [run.passes("fp32") for run in found.compared if run.optimized] == [False] * 3
    assert all(run.passes("fp32") for run in found.compared if not run.optimized)
    assert "optimised by its runtime" in found.reason


def test_what_goes_wrong_at_one_batch_size_alone_is_found_at_that_size() -> None:
    found, format, network = checked(spoiling(LAST, 0.1, lambda optimized, batch: batch == 7))
    assert [run.batch for run in found.compared if not run.passes("fp32")] == [7, 7]
    assert found.reason.startswith("at batch 7, ") and found.failed is not None
    first = first_divergence(network, format, IMAGES.first(7), found.failed, "fp32")
    assert first is not None and first.layer == layers_of(resnet8())[-1]


def test_what_takes_the_whole_network_to_go_wrong_blames_no_layer() -> None:
    def whole(network: nn.Module, optimized: bool) -> None:
        if not hasattr(network, "call"):  # only what watches one layer has that
            spoiling(LAST, 0.1)(network, optimized)

    found, format, network = checked(whole)
    assert found.failed is not None
    assert first_divergence(network, format, IMAGES.first(2), found.failed, "fp32") is None


def test_nan_in_a_file_fails_and_survives_json() -> None:
    def not_numbers(network: nn.Module, optimized: bool) -> None:
        network.register_forward_hook(lambda _, args, output: tuple(one.clone().fill_(torch.nan) for one in output))

    found, _, _ = checked(not_numbers)
    assert not found.passed and found.worst == torch.inf and found.agreement == 0
    again = Parity.model_validate_json(found.model_dump_json())
    assert again == found and not again.passed


def test_nan_where_the_network_has_it_is_the_same() -> None:
    def rooted(x: Tensor) -> tuple[Tensor, ...]:
        return (x.sqrt(),)

    network = As(rooted)
    assert check(network, {True: rooted}, IMAGES).passed


class As(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.function(*tensors)


def scored(x: Tensor) -> tuple[Tensor, ...]:
    """Scores of three classes, the first two close together, the first sample a thousand times the others."""
    scores = x.flatten(1)[:, :3].clone()
    scores[:, 1] = scores[:, 0].abs() + 3
    scores[:, 0] = scores[:, 1] - 0.01
    scores[0] *= 1e4
    return (scores,)


def test_classes_are_compared_sample_by_sample() -> None:
    """A difference that is small beside the largest score of all changes the classes of samples with small ones."""

    def other_class(x: Tensor) -> tuple[Tensor, ...]:
        (scores,) = scored(x)
        return (scores + torch.tensor([0.02, 0.0, 0.0]),)

    found = check(As(scored), {True: other_class}, IMAGES, batches=(32,))
    assert found.worst < TOLERANCES["fp32"].difference
    assert not found.passed and found.agreement == pytest.approx(1 / 32)
    assert found.reason == (
        "at batch 32, optimised by its runtime, 3.1% of the samples get the same class (at least 100% must)"
    )


def test_classes_that_rounding_decides_between_are_tied() -> None:
    def flat(x: Tensor) -> tuple[Tensor, ...]:
        return (torch.ones(len(x), 3),)

    def rounded(x: Tensor) -> tuple[Tensor, ...]:
        return (torch.ones(len(x), 3) + torch.tensor([0.0, 1e-6, 0.0]),)

    assert check(As(flat), {True: rounded}, IMAGES).passed


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_scores_of_less_precision_are_judged_by_their_classes(precision: str) -> None:
    def coarse(x: Tensor) -> tuple[Tensor, ...]:
        (scores,) = scored(x)
        return (scores * 1.5,)

    assert check(As(scored), {True: coarse}, IMAGES, precision=precision).passed
    assert not check(As(scored), {True: coarse}, IMAGES, precision="fp32").passed


def test_maps_of_less_precision_are_judged_by_their_difference() -> None:
    def maps(x: Tensor) -> tuple[Tensor, ...]:
        return (x,)

    def off(x: Tensor) -> tuple[Tensor, ...]:
        return (x + 0.05 * x.abs().max(),)

    passed = {one: check(As(maps), {True: off}, IMAGES, precision=one).passed for one in TOLERANCES}
    assert passed == {"fp32": False, "fp16": False, "bf16": True, "int8": True}


def test_a_network_in_half_precision_is_held_to_what_it_computes_in() -> None:
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    assert [precision_of(nn.Linear(2, 2, dtype=dtype), "fp32") for dtype in types.values()] == list(types)
    assert precision_of(nn.Linear(2, 2), "fp16") == "fp16" and precision_of(nn.Linear(2, 2).half(), "int8") == "int8"


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        (lambda x: (), "it gives outputs of shape none, and the network of 2x3x16x16"),
        (lambda x: (x, x), "it gives outputs of shape 2x3x16x16 and 2x3x16x16, and the network of 2x3x16x16"),
        (lambda x: (x[:1],), "it gives outputs of shape 1x3x16x16, and the network of 2x3x16x16"),
        (lambda x: x.view(7, -1), "it does not run: shape '[7, -1]' is invalid for input of size 1536"),
    ],
)
def test_what_cannot_be_compared_fails_and_says_why(outputs: Any, problem: str) -> None:
    found = check(As(lambda x: (x,)), {True: outputs}, IMAGES, batches=(2,))
    assert not found.passed and found.reason == f"at batch 2, optimised by its runtime, {problem}"


def test_whole_numbers_are_equal_or_not() -> None:
    def classes(x: Tensor) -> tuple[Tensor, ...]:
        return (x.flatten(1).argmax(1), x > 0)

    def next_class(x: Tensor) -> tuple[Tensor, ...]:
        return (x.flatten(1).argmax(1) + (torch.arange(len(x)) == 0), x > 0)

    assert check(As(classes), {True: classes}, IMAGES).passed
    found = check(As(classes), {True: next_class}, IMAGES, batches=(2,))
    assert not found.passed and found.worst == 0.5


def test_accuracies_stand_side_by_side() -> None:
    labels = scored(*IMAGES.tensors)[0].argmax(1)
    labels[:8] = 2  # of 32
    labelled = Samples(IMAGES.tensors, "test images of a test", True, labels)

    def half_wrong(x: Tensor) -> tuple[Tensor, ...]:
        (scores,) = scored(x)
        return (torch.where(torch.arange(len(x))[:, None] % 2 == 0, scores, -scores),)

    found = check(As(scored), {True: half_wrong}, labelled, precision="int8", batches=(2, 32))
    assert found.accuracy is not None and found.accuracy.network == 0.75 and found.accuracy.samples == 32
    assert 0.3 < found.accuracy.file < 0.6
    assert "of the network 75.00%" in str(found) and "test images of a test" in str(found)
    assert check(As(scored), {True: scored}, IMAGES).accuracy is None


class Counting(nn.Module):
    """A network that counts its calls, and whose dropout gives other outputs in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        return (self.layers(x),)


def test_a_copy_of_the_network_is_compared_in_eval_mode() -> None:
    network = Counting().train()
    assert check(network, {True: copy.deepcopy(network).eval()}, IMAGES).passed
    assert network.training and network.layers[1].training and not network.calls


class WrittenOtherwise(nn.Module):
    """A layer that computes something else where an exporter looks."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1.01 if torch.compiler.is_exporting() else x


def test_a_real_file_that_differs_is_not_kept_and_its_layer_is_named(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), WrittenOtherwise(), nn.Conv2d(4, 4, 1))
    with pytest.raises(ExportError) as caught:
        ghostify.export(network, tmp_path / "net.onnx", example=torch.randn(1, 3, 8, 8))
    said = str(caught.value)
    assert said.startswith("'net.onnx' was not kept, because it is not the same network: at batch 1, optimised by its")
    assert said.endswith("the first to differ is layer '2' (WrittenOtherwise), by 0.01.")
    assert not list(tmp_path.iterdir())


def test_a_file_of_open_sizes_is_run_at_another_size_as_well() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    kept = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    assert check(Row(network), {True: Row(network)}, IMAGES, open_size=True).passed
    found = check(Row(network), {True: As(lambda x: (network(x[:, :, :16, :16]),))}, IMAGES, open_size=True)
    assert found.reason.startswith("at batch 1 of 32x32, optimised by its runtime, outputs differ by ")
    linear = nn.Sequential(kept, nn.Linear(784, 2))
    found = check(Row(linear), {True: Row(linear)}, IMAGES, open_size=True)
    assert found.reason.startswith("at batch 1 of 32x32, optimised by its runtime, the network itself does not run: ")


class Row(nn.Module):
    """A network whose output is a row of one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return (self.network(*tensors),)


class Cancelling(nn.Module):
    """It makes much of rounding: 32-bit floats near 1e4 are 1e-3 apart."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1e4) - 1e4


def test_a_file_need_not_be_nearer_to_its_network_than_that_is_to_itself() -> None:
    network = AsFile(Cancelling(), torch.randn(1, 3, 16, 16))

    def off_by(share: float) -> Parity:
        return check(network, {True: lambda x: (x * (1 + share),)}, IMAGES, exact=network.exact)

    exact = off_by(0)
    assert exact.worst > TOLERANCES["fp32"].difference, "the sample shows nothing"
    assert exact.passed and exact.rounding == pytest.approx(exact.worst, rel=0.5) and "64-bit floats" in str(exact)
    wrong = off_by(0.005)
    assert not wrong.passed and f"(at most {4 * wrong.rounding:.2g} may be)" in wrong.reason
    assert not check(network, {True: lambda x: (x,)}, IMAGES).passed


def test_rounding_is_asked_of_no_network_whose_file_passes_or_is_far_off() -> None:
    def none() -> nn.Module:
        raise AssertionError("it was asked")

    for share, passes in ((0.0, True), (0.1, False)):
        found = check(As(lambda x: (x,)), {True: lambda x: (x * (1 + share),)}, IMAGES, exact=none)  # noqa: B023
        assert found.passed == passes and not found.rounding


# -- samples ---------------------------------------------------------------------------------------------------


def test_batches_are_full_and_hold_every_sample_once_for_the_first_time() -> None:
    tensors = (torch.arange(32), torch.ones(5))
    batches = list(Samples(tensors, "", False).batches(7))
    assert all(len(one) == 7 and torch.equal(shared, tensors[1]) for (one, shared), _ in batches)
    new = [one[: fresh.stop - fresh.start] for (one, _), fresh in batches]
    assert torch.cat(new).tolist() == list(range(32))


def test_noise_is_like_the_example_and_the_same_every_time() -> None:
    example = (torch.rand(2, 3, 8, 8) + 5, torch.tensor([[3, 7], [7, 3]]), torch.tensor(2.0))
    floats, places, scalar = noise(example).tensors
    assert floats.shape == (32, 3, 8, 8) and abs(float(floats.mean()) - 5.5) < 0.1
    assert places.shape == (32, 2) and set(places.flatten().tolist()) == {3, 7}
    assert scalar is example[2]
    assert torch.equal(noise(example).tensors[0], floats)


def test_noise_of_an_example_of_zeros_is_no_zeros() -> None:
    assert float(noise((torch.zeros(1, 3, 4, 4),)).tensors[0].std()) > 0.5


def test_larger_images_are_multiples_of_what_images_were() -> None:
    def sides(side: int) -> tuple[int, ...]:
        return tuple(larger(noise((torch.randn(1, 3, side, side),))).tensors[0].shape[2:])

    assert [sides(side)[0] for side in (224, 64, 32, 30, 17)] == [352, 96, 64, 46, 26]
    assert larger(noise((torch.randn(1, 8),))).size == ""
