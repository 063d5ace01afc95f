"""A network as a file: the same outputs in the file's own runtime, whatever its form, sizes and precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ghostify
from ghostify import GhostifyError
from ghostify.networks import resnet8


def test_a_file_gives_what_the_network_gives(tmp_path: Path) -> None:
    network = resnet8().train()
    done = ghostify.export(network, tmp_path / "net.onnx", example=torch.randn(1, 3, 32, 32), dynamic="batch")
    assert {one.batch for one in done.parity.compared} == {1, 2, 7}
    assert done.parity.worst < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert network.training


def test_an_unknown_format_is_named_with_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(GhostifyError, match="Did you mean 'onnx'"):
        ghostify.export(resnet8(), tmp_path / "net.onnx", to="onx", example=torch.randn(1, 3, 32, 32))
