"""int8: what is done to a network before it is quantised, and the files that three backends make of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ghostify
from ghostify.errors import ExportError
from ghostify.exporting import FORMATS, portable
from ghostify.exporting.formats.executorch import pieces
from ghostify.exporting.quantizing import Calibration, calibration_of, prepared
from ghostify.exporting.quantizing.faint import without_faint_maps
from ghostify.exporting.quantizing.sensitivity import TOO_MUCH, errors_alone
from ghostify.networks import resnet8

SIDE = 16


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy copies of ten patterns, (count, 3, 16, 16), and which pattern each is of."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(10, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(count) % 10
    return patterns[labels] + 0.5 * torch.randn(count, 3, SIDE, SIDE, generator=generator), labels


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A ghosted network in its inference form that tells the patterns apart: its classifier is solved for."""
    torch.manual_seed(0)
    model = resnet8().eval()
    seen, labels = images(256)
    features: list[Tensor] = []
    watching = model.linear.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    with torch.no_grad():
        model(seen)
        watching.remove()
        wanted = nn.functional.one_hot(labels, 10).float() - 0.1
        gram = features[0].T @ features[0] + 0.01 * len(seen) * torch.eye(64)
        model.linear.weight.copy_(torch.linalg.solve(gram, features[0].T @ wanted).T)
    ghosted = ghostify.convert(model, seen[:1], s=2, images=seen, min_saving=0)
    return ghostify.optimize(ghosted, seen[:1]).module


# -- before anything is quantised


class Two(nn.Sequential):
    """Two convolutions; of the four maps between them the first is ``strength`` as strong as the others."""

    def __init__(self, strength: float) -> None:
        super().__init__(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 3, padding=1))
        self[0].weight.data[0] *= strength
        self[1].weight.data[:, 0] = 50

    def forward(self, *tensors: Tensor) -> tuple[Tensor]:
        return (super().forward(*tensors),)


@pytest.mark.parametrize(("strength", "faint"), [(1e-4, True), (0.1, False)])
def test_maps_that_int8_makes_zeros_of_are_not_read(strength: float, faint: bool) -> None:
    network = Two(strength)
    before = network[1].weight.detach().clone()
    found = without_faint_maps(network, [(images(32)[0],)])
    assert found == ({"1": 1} if faint else {})
    assert torch.equal(network[1].weight[:, 1:], before[:, 1:])
    assert bool((network[1].weight[:, 0] == 0).all()) is faint


def test_a_map_that_is_strong_on_any_image_is_read() -> None:
    network = InARow(nn.Conv2d(2, 2, 1))
    strong = torch.ones(1, 2, 4, 4)
    weak = strong * torch.tensor([1e-5, 1.0]).view(1, 2, 1, 1)
    assert without_faint_maps(network, [(weak,), (strong,)]) == {}
    assert without_faint_maps(network, [(weak,), (weak,)]) == {"layers": 1}


def test_a_layer_that_does_not_bear_int8_stays_in_float_and_is_named() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    layers[2].weight.data[:, 0] *= 300  # one weight sets the scale of the others
    layers[0].weight.data[0] /= 300
    layers[0].bias.data[0] /= 300
    network = InARow(layers)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    errors = errors_alone(network, [(images(16)[0],)])
    assert errors.keys() == {"layers.0", "layers.2", "layers.4"}
    assert errors["layers.2"] > TOO_MUCH > max(errors["layers.0"], errors["layers.4"])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class InARow(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, *tensors: Tensor) -> tuple[Tensor]:
        return (self.layers(*tensors),)


def test_the_layers_of_a_sound_network_are_all_in_int8(network: nn.Module) -> None:
    found = prepared(InARow(network), Calibration((images(64)[0],)))
    assert found.samples == 64 and found.kept == ()
    assert found.layers == sum(isinstance(one, nn.Conv2d | nn.Linear) for one in network.modules())
    assert str(found) == f"int8 calibrated on 64 images, {found.layers} of {found.layers} layers"


# -- the images


def test_scales_are_read_off_images_and_nothing_else() -> None:
    example = (torch.randn(1, 3, SIDE, SIDE),)
    with pytest.raises(ExportError, match="int8 needs training images to read its scales off"):
        calibration_of(None, example, 1)
    with pytest.raises(ExportError, match="on 32 images at least, and there are 31"):
        calibration_of(torch.randn(31, 3, SIDE, SIDE), example, None)
    with pytest.raises(
        ExportError, match=r"have the shapes \[\(1, 16, 16\)\], but the network takes \[\(3, 16, 16\)\]"
    ):
        calibration_of(torch.randn(40, 1, SIDE, SIDE), example, None)
    with pytest.raises(ExportError, match="NaN or infinite"):
        calibration_of(torch.full((40, 3, SIDE, SIDE), float("nan")), example, None)


@pytest.mark.parametrize(
    ("size", "count", "sizes"),
    [(None, None, [64, 36]), (None, 16, [16]), (1, 3, [1, 1, 1]), (40, None, [40, 40]), (40, 16, [40])],
)
def test_a_network_is_given_batches_that_it_takes(size: int | None, count: int | None, sizes: list[int]) -> None:
    given = Calibration((torch.randn(100, 3),), size).batches(count)
    assert [len(tensor) for (tensor,) in given] == sizes


# -- the files


def written(network: nn.Module, format: str, folder: Path, **changes: Any) -> tuple[Path, float]:
    """An int8 file, and the share of samples of which it gives the network's class."""
    if any(find_spec(package) is None for package in (*FORMATS[format].packages, *NEEDED.get(format, ()))):
        pytest.skip(f"what writes int8 as {format} is not installed")
    dynamic = "batch" if "batch" in FORMATS[format].dynamics else ""
    ready, _ = portable(network, images(1)[0], dynamic=dynamic, precision="int8").calibrated(images(64)[0])
    file = folder / f"network{FORMATS[format].suffix}"
    FORMATS[format].write(replace(ready, **changes), file)
    unseen, run = images(100, seed=1)[0], FORMATS[format].open(file)
    found = torch.cat([run(batch)[0] for batch in unseen.split(20 if dynamic else 1)])
    with torch.no_grad():
        wanted = network(unseen)
    return file, float((found.argmax(1) == wanted.argmax(1)).float().mean())


NEEDED = {"openvino": ("nncf",)}


def weights_of(file: Path) -> dict[str, Any]:
    """What the layers of an ONNX file read as weights: a float tensor as it is, an int8 one with its scales."""
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(file).graph
    held = {one.name: to_array(one) for one in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    found = {}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            reader = made.get(node.input[1])
            found[node.input[1]] = held[node.input[1]] if reader is None else [held[one] for one in reader.input[:2]]
    return found


def test_onnx_files_hold_8_bit_weights_with_a_scale_for_each_output_channel(network: nn.Module, tmp_path: Path) -> None:
    file, agreement = written(network, "onnx", tmp_path)
    weights = weights_of(file)
    assert agreement >= 0.97
    assert len(weights) == sum(isinstance(one, nn.Conv2d | nn.Linear) for one in network.modules())
    assert all(str(values.dtype) == "int8" and scales.shape == values.shape[:1] for values, scales in weights.values())


def test_onnxruntime_computes_every_layer_in_integers(network: nn.Module, tmp_path: Path) -> None:
    file, _ = written(network, "onnx", tmp_path)
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # that a file as it was optimised is for this machine
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
    run = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    layers = [one for one in network.modules() if isinstance(one, nn.Conv2d)]
    assert run["QLinearConv"] == len(layers) and run["QGemm"] == 1 and run["QLinearAdd"] == 3
    assert not run["Conv"] and not run["Gather"]


def test_layers_that_are_kept_have_float_weights(network: nn.Module, tmp_path: Path) -> None:
    kept = {"module.conv1.weight", "module.linear.weight"}
    file, _ = written(network, "onnx", tmp_path, kept=frozenset(kept))
    floats = {name for name, weight in weights_of(file).items() if not isinstance(weight, list)}
    assert floats == kept


def test_openvino_files_hold_8_bit_weights(network: nn.Module, tmp_path: Path) -> None:
    file, agreement = written(network, "openvino", tmp_path)
    import openvino

    operations = openvino.Core().read_model(file).get_ops()
    small = [one for one in operations if one.get_type_name() == "Constant" and "8" in str(one.get_element_type())]
    assert agreement >= 0.97
    assert len(small) == sum(isinstance(one, nn.Conv2d | nn.Linear) for one in network.modules())


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    """A ghosted network of nothing but convolutions, a residual addition and a pool, in its inference form."""
    torch.manual_seed(0)
    example = images(1)[0]
    return ghostify.optimize(ghostify.convert(Plain(), example, s=2, min_saving=0), example).module


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32))
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        return self.classifier(self.pool((maps + self.second(maps)).relu()).flatten(1))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_xnnpack_runs_all_of_a_ghosted_network_in_one_piece(plain: nn.Module, precision: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    ready = portable(plain, images(1)[0], precision=precision)
    if precision == "int8":
        ready, _ = ready.calibrated(images(32)[0])
    file = tmp_path / "network.pte"
    FORMATS["executorch"].write(ready, file)
    given = images(1, seed=3)[0]
    (found,) = FORMATS["executorch"].open(file)(given)
    with torch.no_grad():
        wanted = plain(given)
    assert pieces(file) == (1, {}) and str(pieces(file)) == "XNNPACK runs all of it in 1 piece"
    assert float((found - wanted).abs().max() / wanted.abs().max()) < (1e-5 if precision == "fp32" else 0.1)


class Sliced(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:, :, ::2])


def test_what_cuts_a_file_into_pieces_is_told(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    file = tmp_path / "network.pte"
    FORMATS["executorch"].write(portable(Sliced().eval(), images(1)[0]), file)
    assert pieces(file) == (1, {"aten::slice_copy": 1})
    assert FORMATS["executorch"].notes(file) == (
        "XNNPACK runs it in 1 piece; what it does not run: aten::slice_copy (1)",
    )


# -- the verb


def test_no_int8_file_without_images_to_calibrate_on(network: nn.Module, tmp_path: Path) -> None:
    tested = images(40, seed=1)[0]
    with pytest.raises(ExportError, match="int8 needs training images"):
        ghostify.export(network, tmp_path / "network.onnx", example=tested[:1], images=tested, precision="int8")
    assert not list(tmp_path.iterdir())


def test_an_int8_file_says_what_it_was_calibrated_on_and_how_accurate_it_is(network: nn.Module, tmp_path: Path) -> None:
    tested, labels = images(40, seed=1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made = ghostify.export(
        network,
        tmp_path / "network.onnx",
        example=tested[:1],
        images=tested,
        labels=labels,
        precision="int8",
        calibration=images(64)[0],
    )
    assert made.quantized is not None and made.quantized.samples == 64 and made.quantized.kept == ()
    assert made.parity.passed and made.parity.accuracy is not None and made.parity.accuracy.file > 0.9
    assert "int8 calibrated on 64 images, 12 of 12 layers" in str(made)
    assert made.bytes < 2.5 * made.params
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
