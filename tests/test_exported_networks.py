"""Networks leave as files that are the same networks: every habit of the zoo, every form of a ghost, every format.

``export`` itself compares a file with its network; what is asked here is that no network fails, whatever it is made of.
The sample is fixed: networks take the formats and the forms of ghosts by turns, so that each meets each.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_inference import FORMS, ghosted_by_turns
from torch import Tensor, nn
from zoo import ZOO, Net, conv_bn, head

import ghostify
from ghostify.errors import ExportError, GhostifyError
from ghostify.exporting import FORMATS, Exported
from ghostify.networks import resnet8, resnet20

QUICK = ("torch-export", "torchscript")
"""Formats that torch writes in a moment; each other takes seconds for the smallest network."""
COMPILED = "aoti"
"""It compiles every file for half a minute, so two networks are enough."""


def is_here(format: str) -> bool:
    try:
        FORMATS[format].require_packages()
    except GhostifyError:
        return False
    return format != COMPILED or shutil.which("g++") is not None


HERE = [name for name in FORMATS if is_here(name)]


def marked(names: list[str]) -> list[Any]:
    """Formats, those that take long marked."""
    return [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in names]


in_every_format = pytest.mark.parametrize("format", marked(HERE))
in_most_formats = pytest.mark.parametrize("format", marked([name for name in HERE if name != COMPILED]))


def exported(network: Any, example: Any, format: str, folder: Path, **how: Any) -> Exported:
    return ghostify.export(network, folder / f"net{FORMATS[format].suffix}", to=format, example=example, **how)


def dynamics(format: str) -> str:
    """The batch open, where a format can have it so."""
    return "batch" if "batch" in FORMATS[format].dynamics else ""


# -- the zoo, by turns ---------------------------------------------------------------------------------------------


def turns() -> Iterator[Any]:
    """Each network in one format, the formats by turns; the form that its ghosts begin with is another each round."""
    others = [name for name in HERE if name != COMPILED]
    for place, net in enumerate(ZOO):
        format = others[place % len(others)]
        quick = format in QUICK and place % 4 == 0
        first = (place // len(others)) % len(FORMS)
        yield pytest.param(net, format, first, id=f"{net.name}-{format}", marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("net", "format", "first"), list(turns()))
def test_every_network_leaves_as_the_same_network(net: Net, format: str, first: int, tmp_path: Path) -> None:
    ghosted = ghosted_by_turns(net, first)
    ghosted.module.eval()
    before = copy.deepcopy(ghosted.module.state_dict())
    found = exported(ghosted, net.example(), format, tmp_path)
    assert found.parity.passed and found.file.exists()
    after = ghosted.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if isinstance(value, Tensor))


# -- hard cases, in every format -----------------------------------------------------------------------------------


def example(batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def ghosted(layout: torch.memory_format = torch.contiguous_format, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network in train mode whose ghosts are of the kind that stays a ghost in the inference form."""
    torch.manual_seed(0)
    network = ghostify.convert(resnet8(), example(2), s=2, cheap="depthwise 3", min_saving=0).module
    return network.train().to(dtype=dtype, memory_format=layout)


@in_every_format
def test_an_example_of_one_sample_in_another_layout_gives_a_file_for_any_batch(format: str, tmp_path: Path) -> None:
    """And the network is afterwards in train mode, laid out as it was."""
    network = ghosted(torch.channels_last)
    before = copy.deepcopy(network)
    given = example().to(memory_format=torch.channels_last)
    found = exported(network, given, format, tmp_path, dynamic=dynamics(format))
    expected = {1, 2, 7} if dynamics(format) else {1}
    assert {run.batch for run in found.parity.compared} == expected and found.parity.worst < 1e-4
    assert network.training and all(part.training for part in network.modules())
    pairs = zip(network.parameters(), before.parameters(), strict=True)
    assert all(torch.equal(one, other) and one.stride() == other.stride() for one, other in pairs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@in_most_formats
def test_networks_in_half_precision_leave_in_single(format: str, dtype: torch.dtype, tmp_path: Path) -> None:
    found = exported(ghosted(dtype=dtype), example().to(dtype), format, tmp_path)
    assert found.parity.passed and found.parity.precision == {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


class Many(nn.Module):
    """Two inputs by keyword and a flag; a dict of a list of maps, scores, a number and classes, by functions mostly."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.depth = conv_bn(3, 8), conv_bn(1, 8)
        self.weight = nn.Parameter(torch.randn(8, 16, 3, 3) / 12)
        self.head = head(8)

    def forward(self, *, image: Tensor, double: bool, depth: Tensor) -> dict[str, Any]:
        both = torch.cat([self.image(image), self.depth(depth)], 1)
        maps = nn.functional.conv2d(both, self.weight, padding=1).relu_()
        maps = 2 * maps if double else maps
        small = nn.functional.avg_pool2d(maps, 2)
        return {"maps": [maps, small], "logits": self.head(maps), "size": maps.shape[-1], "classes": maps.argmax(1)}


@in_most_formats
def test_several_inputs_and_nested_outputs_leave_in_a_row(format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = {"image": example(), "double": True, "depth": example()[:, :1]}
    found = exported(Many().train(), given, format, tmp_path, dynamic=dynamics(format))
    assert [one.name for one in found.inputs] == ["image", "depth"]
    assert [one.name for one in found.outputs] == ["maps_0", "maps_1", "logits", "classes"]
    assert found.parity.passed and found.parity.agreement == 1


@pytest.mark.parametrize(
    "format", marked([name for name in HERE if name != COMPILED and "size" in FORMATS[name].dynamics])
)
def test_height_and_width_are_open_where_asked(format: str, tmp_path: Path) -> None:
    found = exported(ghosted(), example(), format, tmp_path, dynamic="size")
    assert "32x32" in {run.size for run in found.parity.compared}


def test_what_cannot_take_another_size_is_refused_in_one_line(tmp_path: Path) -> None:
    fixed = nn.Sequential(conv_bn(3, 4), nn.Flatten(), nn.Linear(4 * 16 * 16, 2))
    for format in QUICK:
        with pytest.raises(ExportError) as caught:
            exported(fixed, example(), format, tmp_path, dynamic="size")
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


# -- what every method makes ----------------------------------------------------------------------------------------

METHODS: tuple[dict[str, Any], ...] = (
    {"method": "c-ghost", "parts": "norm-act"},
    {"method": "thin", "width": 0.5},
    {"method": "g-ghost"},
    {"method": "mixed", "width": 0.5},
)


def made_and_written() -> Iterator[Any]:
    """Every method in every format but one, which has the first."""
    for place, settings in enumerate(METHODS):
        for format in HERE:
            if format != COMPILED or not place:
                yield pytest.param(settings, format, id=f"{settings['method']}-{format}")


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "format"), list(made_and_written()))
def test_what_every_method_makes_leaves_in_every_format(settings: dict[str, Any], format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = ghostify.convert(resnet20(width=8), example(2), min_saving=0, **settings)
    assert exported(made, example(), format, tmp_path, dynamic=dynamics(format)).parity.worst < 1e-4
