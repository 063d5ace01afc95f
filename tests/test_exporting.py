"""A network as a file: the same outputs in the file's own runtime, whatever its form, sizes and precision."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from command import Cli, refused
from torch import Tensor, nn
from zoo import ZOO, Net, conv_bn, head

import ghostify
from ghostify import Exported, Ghosted, GhostifyError
from ghostify.errors import ExportError, RecipeError
from ghostify.exporting import FORMATS, exports_in, portable, read_manifest
from ghostify.exporting.formats.programs import program
from ghostify.exporting.formats.protocol import Format
from ghostify.exporting.naming import input_names, output_names
from ghostify.networks import resnet8, resnet20
from ghostify.recipe import DataSettings, ModelSettings, Recipe
from ghostify.running import quiet

EXAMPLE = torch.randn(1, 3, 32, 32)
SMALL = torch.randn(1, 3, 16, 16)
COMPILED = "aoti"
"""Written by a C++ compiler, in half a minute: its tests are slow ones."""
QUICK = [name for name in FORMATS if name != COMPILED]
OPEN = [name for name in QUICK if "size" in FORMATS[name].dynamics]
HALVED = [name for name in QUICK if "fp16" in FORMATS[name].precisions]
each_format = pytest.mark.parametrize(
    "format",
    [*map(FORMATS.get, QUICK), pytest.param(FORMATS[COMPILED], marks=pytest.mark.slow)],
    ids=lambda format: format.name,
)


def small() -> nn.Module:
    """Two layers that become ghosts: an exporter takes its time for each."""
    return nn.Sequential(conv_bn(3, 16), conv_bn(16, 16), head(16, 10)).eval()


def export(network: nn.Module | Ghosted, folder: Path, to: str = "onnx", **more: Any) -> Exported:
    example = None if isinstance(network, Ghosted) else EXAMPLE
    return ghostify.export(network, folder / f"net{FORMATS[to].suffix}", to=to, **{"example": example, **more})


@pytest.fixture(scope="module")
def ghosted() -> Ghosted:
    return ghostify.convert(small(), EXAMPLE, s=2, min_saving=0)


class Several(nn.Module):
    """Keyword inputs, one of whole numbers; a dict of outputs, one of which has an input's name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.words = conv_bn(3, 4), nn.Embedding(10, 4)

    def forward(self, *, image: Tensor, tokens: Tensor) -> dict[str, Any]:
        maps = self.conv(image) + self.words(tokens).mean(1)[:, :, None, None]
        return {"image": maps, "scores": [maps.mean((2, 3))], "none": None}


# -- the file and its network --------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [*OPEN, pytest.param(COMPILED, marks=pytest.mark.slow)])
def test_a_file_is_the_network_at_every_size_it_leaves_open(to: str, ghosted: Ghosted, tmp_path: Path) -> None:
    """The example is one sample, which torch would take for a batch that is always one."""
    done = export(ghosted, tmp_path, to, dynamic="size")
    assert {one.batch for one in done.parity.compared} == {1, 2, 7}
    assert {one.size for one in done.parity.compared} == {"", "64x64"}
    assert done.parity.passed and done.parity.worst < 1e-4
    assert done.inputs[0].shape == ("batch", 3, "height", "width")
    assert done.outputs[0].shape == ("batch", 10)


@pytest.mark.parametrize("to", QUICK)
def test_a_file_of_fixed_sizes_holds_those_of_the_example(to: str, ghosted: Ghosted, tmp_path: Path) -> None:
    done = export(ghosted, tmp_path, to)
    assert done.inputs[0].shape == (1, 3, 32, 32)
    assert {one.batch for one in done.parity.compared} == {1}


@pytest.mark.parametrize("to", OPEN)
def test_several_inputs_and_nested_outputs_have_names_of_their_own(to: str, tmp_path: Path) -> None:
    example = {"image": torch.randn(2, 3, 8, 8), "tokens": torch.ones(2, 5, dtype=torch.long)}
    done = export(Several(), tmp_path, to, example=example, dynamic="batch")
    assert [one.name for one in done.inputs] == ["image", "tokens"]
    assert [one.name for one in done.outputs] == ["image_output", "scores_0"]
    assert [one.dtype for one in done.inputs] == ["float32", "int64"]


def test_images_are_found_by_their_names(tmp_path: Path) -> None:
    example = {"image": torch.randn(2, 3, 8, 8), "tokens": torch.ones(2, 5, dtype=torch.long)}
    images = {"tokens": torch.ones(8, 5, dtype=torch.long), "image": torch.randn(8, 3, 8, 8)}
    assert export(Several(), tmp_path, example=example, images=images, dynamic="batch").parity.real
    with pytest.raises(ExportError, match="tokens"):
        export(Several(), tmp_path, example=example, images={"image": images["image"]})


def test_inputs_and_outputs_may_be_halved_too(ghosted: Ghosted, tmp_path: Path) -> None:
    done = export(ghosted, tmp_path, precision="fp16", half_io=True)
    assert {one.dtype for one in (*done.inputs, *done.outputs)} == {"float16"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_any_precision_becomes_a_file(dtype: torch.dtype, tmp_path: Path) -> None:
    done = export(small().to(dtype), tmp_path, example=EXAMPLE.to(dtype), dynamic="batch")
    assert done.parity.passed and done.inputs[0].dtype == "float32"


@pytest.mark.parametrize("to", OPEN)
def test_layouts_of_network_and_example_are_not_those_of_the_file(to: str, tmp_path: Path) -> None:
    """And a file made of contiguous maps takes others."""
    network = small().to(memory_format=torch.channels_last)
    done = export(network, tmp_path, to, example=EXAMPLE.to(memory_format=torch.channels_last), dynamic="batch")
    images = torch.randn(3, 3, 32, 32)
    run = FORMATS[to].open(done.file)
    (one,), (other,) = run(images), run(images.to(memory_format=torch.channels_last))
    with quiet(network):
        assert torch.allclose(one, network(images), atol=1e-4)
    assert torch.allclose(one, other, atol=1e-5)


def test_the_network_stays_as_it_was(tmp_path: Path) -> None:
    network = small().train()
    network[1].eval()
    modes = {name: module.training for name, module in network.named_modules()}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    export(network, tmp_path)
    assert modes == {name: module.training for name, module in network.named_modules()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_training_form_is_written_on_demand(ghosted: Ghosted, tmp_path: Path) -> None:
    made = {}
    for form in ("inference", "training"):
        done = export(ghosted, tmp_path, form=form)
        assert done.form == form
        made[form] = nodes(done.file)
    assert made["inference"] != made["training"]


def test_what_has_no_inference_form_is_written_as_it_is(tmp_path: Path) -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = conv_bn(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            normed = sum(isinstance(layer, nn.BatchNorm2d) for layer in self.body)
            return self.body(x) * float(normed)

    done = export(Asking(), tmp_path)
    assert done.form == "training" and "has no inference form" in done.notes[0]
    assert done.parity.passed


# -- what is in a file ---------------------------------------------------------------------------------------------


def nodes(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file).graph.node)


REORDERED = {"fit": {"arrange": "reorder"}}
"""Maps in the order of the network's channels: none is put in order as it runs."""
DEPTHWISE = {"cheap": "depthwise 3", "min_saving": 0}


@pytest.mark.parametrize("settings", [{}, {"cheap": "pointwise"}, {"method": "mixed"}, DEPTHWISE | REORDERED], ids=str)
def test_nothing_in_a_file_cuts_a_delegate(settings: dict[str, Any], tmp_path: Path) -> None:
    """No gather, no slice (but for the two of the network's own shortcuts), and no depthwise convolution that gives
    more maps than it reads.
    """
    network = resnet20().eval()
    own = nodes(export(network, tmp_path).file)
    made = ghostify.convert(network, EXAMPLE, images=torch.randn(16, 3, 32, 32), **settings)
    file = export(made, tmp_path).file
    held = nodes(file)
    assert {kind: held[kind] for kind in MOVING} == {kind: own[kind] for kind in MOVING}
    assert not with_multiplier(file)


def test_maps_that_a_file_puts_in_order_are_told(tmp_path: Path) -> None:
    network = resnet20().eval()
    own = nodes(export(network, tmp_path).file)["Gather"]
    made = ghostify.convert(network, EXAMPLE, images=torch.randn(16, 3, 32, 32), **DEPTHWISE)
    done = export(made, tmp_path)
    (note,) = done.notes
    gathers = nodes(done.file)["Gather"] - own
    assert gathers > 1 and f"{gathers} layers put their maps in order" in note


MOVING = ("Gather", "GatherElements", "GatherND", "Slice", "Split", "Transpose", "If", "Loop")


def with_multiplier(file: Path) -> list[str]:
    """The grouped convolutions of a file with one map to a group, and more filters than groups."""
    graph = onnx.load(file).graph
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    found = []
    for node in graph.node:
        groups = next((one.i for one in node.attribute if one.name == "group"), 1)
        if node.op_type == "Conv" and groups > 1 and shapes[node.input[1]][1] == 1:
            found += [node.name] * (shapes[node.input[1]][0] != groups)
    return found


def test_a_multiplier_would_be_found(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.ReLU()).eval()
    assert with_multiplier(export(network, tmp_path).file)


@pytest.mark.parametrize("net", ZOO, ids=lambda net: net.name)
def test_no_graph_asks_how_its_maps_lie(net: Net) -> None:
    """Ghosts choose their way by strides; in a file the choice is made, and it is that of contiguous maps."""
    with_ghosts = _everything_ghosted(net)
    ready = portable(with_ghosts, net.example())
    graph = program(ready).graph
    asked = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert not [name for name in asked if "stride" in name or "is_contiguous" in name or "cond" in name]
    laid = portable(with_ghosts.to(memory_format=torch.channels_last), net.example()) if _has_maps(net) else ready
    assert [str(node.target) for node in program(laid).graph.nodes if node.op == "call_function"] == asked


def _has_maps(net: Net) -> bool:
    return all(tensor.dim() < 5 for tensor in net.build().state_dict().values())


def _everything_ghosted(net: Net) -> nn.Module:
    for method in ("both", "c-ghost"):
        try:
            return ghostify.convert(net.build(), net.example(), method=method, min_saving=0).module
        except GhostifyError:
            continue
    return net.build()


@pytest.mark.parametrize("to", HALVED)
def test_a_file_holds_its_weights_and_little_else(to: str, tmp_path: Path) -> None:
    """At most a twentieth more than four bytes for each parameter, once there are a million; half of that in fp16,
    whose inputs and outputs are 32-bit floats all the same.
    """
    network = nn.Sequential(conv_bn(3, 320), conv_bn(320, 320), head(320, 10)).eval()
    whole = export(network, tmp_path, to, example=SMALL)
    half = export(network, tmp_path, to, example=SMALL, precision="fp16")
    assert whole.params > 0.9e6
    assert whole.bytes <= 1.05 * 4 * whole.params
    assert half.bytes <= 1.05 * 2 * half.params
    assert half.inputs == whole.inputs and half.outputs == whole.outputs
    assert half.parity.precision == "fp16" and half.parity.passed


@pytest.mark.parametrize("to", QUICK)
def test_a_file_names_no_folder_of_its_maker(to: str, ghosted: Ghosted, tmp_path: Path) -> None:
    done = export(ghosted, tmp_path, to)
    home = str(Path(ghostify.__file__).parent).encode()
    for name in done.sha256:
        assert home not in (tmp_path / name).read_bytes()


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_the_opset_is_that_asked_for(opset: int, ghosted: Ghosted, tmp_path: Path) -> None:
    done = export(ghosted, tmp_path, opset=opset)
    assert [one.version for one in onnx.load(done.file).opset_import if not one.domain] == [opset]
    assert done.opset == opset


def test_the_default_opset_is_reordered_no_more_than_any_other(ghosted: Ghosted, tmp_path: Path) -> None:
    """Reorders are what ONNX Runtime puts where an operation does not take its own layout of maps."""
    counts: dict[int | None, int] = {}
    for opset in (None, 18, 20, 23):
        file = export(ghosted, tmp_path, opset=opset).file
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
        onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        held = nodes(tmp_path / "optimized.onnx")
        counts[opset] = held["ReorderInput"] + held["ReorderOutput"]
    assert counts[None] == min(counts.values())


# -- what lies beside a file ---------------------------------------------------------------------------------------


@each_format
def test_the_script_beside_a_file_runs_it_without_ghostify(format: Format, ghosted: Ghosted, tmp_path: Path) -> None:
    done = export(ghosted, tmp_path, format.name)
    lines = done.script.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if not line.startswith("#")]) == 5
    blocked = f"import sys, runpy; sys.modules['ghostify'] = None; runpy.run_path({str(done.script)!r})"
    command = [sys.executable, "-W", "ignore", "-c", blocked]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path.parent)
    assert ran.returncode == 0, ran.stderr
    assert "(1, 10)" in ran.stdout.replace("[1,10]", "(1, 10)")


def test_the_manifest_says_what_a_file_is_wherever_its_folder_goes(ghosted: Ghosted, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = export(ghosted, tmp_path / "here", to="openvino")
    told = json.loads(done.manifest.read_text(encoding="utf-8"))
    assert told["file"] == "net.xml" and set(told["sha256"]) == {"net.xml", "net.bin", "net.xml.py"}
    assert told["versions"]["ghostify"] == ghostify.__version__
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    moved = read_manifest(tmp_path / "there" / "net.xml.json")
    assert moved.file == tmp_path / "there" / "net.xml"
    assert moved.model_copy(update={"file": done.file}) == done


def test_an_export_is_replaced_and_nothing_else_is(ghosted: Ghosted, tmp_path: Path) -> None:
    done = export(ghosted, tmp_path)
    assert export(ghosted, tmp_path, dynamic="batch").dynamic == "batch"
    done.file.write_bytes(b"mine")
    with pytest.raises(ExportError, match="is there already"):
        export(ghosted, tmp_path)
    assert done.file.read_bytes() == b"mine"


def test_a_file_that_is_not_the_network_is_not_left(
    ghosted: Ghosted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor anything beside it."""
    write = FORMATS["onnx"].write

    def wrongly(network: Any, file: Path) -> None:
        with torch.no_grad():
            next(network.module.parameters()).mul_(1.1)
        write(network, file)

    monkeypatch.setattr(FORMATS["onnx"], "write", wrongly)
    with pytest.raises(ExportError, match="was not kept, because it is not the same network"):
        export(ghosted, tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"to": "onx"}, "Did you mean 'onnx'"),
        ({"dynamic": "bach"}, "Did you mean 'batch'"),
        ({"precision": "fp61"}, "precision is fp32, fp16 or int8"),
        ({"opset": 9}, "The opset is 18 to"),
        ({"to": "torch-export", "opset": 18}, "An opset is that of an ONNX file"),
        ({"half_io": True}, "are those of precision fp16"),
    ],
)
def test_what_there_is_not_is_refused_in_a_line(asked: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=says):
        ghostify.export(small(), tmp_path / "net.onnx", **{"example": EXAMPLE, **asked})


def test_a_file_of_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"end in \.onnx, and 'net\.xml' does not"):
        ghostify.export(small(), tmp_path / "net.xml", example=EXAMPLE)


def test_a_missing_package_is_told_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FORMATS["onnx"], "packages", ("onnx", "no_such_runtime"))
    with pytest.raises(RecipeError, match=r"needs no_such_runtime: pip install 'ghostify\[onnxruntime\]'"):
        export(small(), tmp_path)


def test_a_size_that_code_makes_a_constant_of_cannot_stay_open(tmp_path: Path) -> None:
    counting = next(net for net in ZOO if net.name == "counting")
    with pytest.raises(ExportError, match="makes a constant of the number of samples"):
        export(counting.build(), tmp_path, example=counting.example(), dynamic="batch")


def test_names_of_inputs_are_those_of_arguments() -> None:
    def forward(image: Tensor, others: list[Tensor]) -> None: ...

    module = nn.Module()
    module.forward = forward  # type: ignore[assignment]
    assert input_names(module, (EXAMPLE, [EXAMPLE, EXAMPLE]), {}) == ("image", "others_0", "others_1")
    assert input_names(module, (EXAMPLE,), {}) == ("input",)
    assert output_names((EXAMPLE, {"a b": EXAMPLE}), ()) == ("output_0", "output_1_a_b")


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(ghosted: Ghosted, tmp_path: Path) -> Path:
    return ghostify.save(ghosted, tmp_path / "small")


def test_a_run_is_exported_beside_itself_and_its_report_tells(cli: Cli, images: str) -> None:
    ghosted = ghostify.convert(resnet8().eval(), EXAMPLE)
    ghostify.save(ghosted, "small", model="ghostify:resnet8", report=ghostify.compare(ghosted), recipe=_recipe(images))
    assert cli("export", "small", "--dynamic", "batch").code == 0
    assert cli("export", "small", "--to", "torchscript", "--precision", "fp16", "--json").code == 0
    found = exports_in(Path("small"))
    assert [one.file.name for one in found] == ["small-batch.onnx", "small-fp16.torchscript"]
    assert all(one.origin and one.origin.source == "small" and len(one.origin.weights) == 64 for one in found)
    assert all(one.parity.real and one.parity.accuracy for one in found)
    assert "small-batch.onnx" in cli("report", "small").out
    told = json.loads(cli("report", "small", "--json").out)
    assert [one["format"] for one in told["exports"]] == ["onnx", "torchscript"]
    assert isinstance(ghostify.load("small"), Ghosted)


def _recipe(images: str) -> Recipe:
    return Recipe(model=ModelSettings(source="ghostify:resnet8"), data=DataSettings(source=images))


def test_images_that_are_gone_are_told_of(cli: Cli) -> None:
    ghosted = ghostify.convert(resnet8().eval(), EXAMPLE)
    ghostify.save(ghosted, "small", model="ghostify:resnet8", recipe=_recipe("folder:gone"))
    answer = cli("export", "small")
    assert answer.code == 0
    assert "compared on noise, because the run's images cannot be read" in answer.err
    assert not exports_in(Path("small"))[0].parity.real


def test_what_is_refused_leaves_no_folder(cli: Cli, run_folder: Path) -> None:
    refused(cli("export", str(run_folder), "--to", "onx"), "Did you mean 'onnx'")
    assert not (run_folder / "exports").exists()
