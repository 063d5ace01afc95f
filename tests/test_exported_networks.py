"""Networks leave as files that are the same networks: every habit of the zoo, every form of a ghost, every format.

``export`` itself compares a file with its network; what is asked here is that no network fails, whatever it is made of.
The sample is fixed: networks take the formats and the forms of ghosts by turns, so that each meets each.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_inference import FORMS, ghosted_by_turns
from test_zoo import tensors
from torch import Tensor, nn
from zoo import ZOO, Net, by_name_example, conv_bn, head, run

import ghostify
from ghostify.batches import take
from ghostify.errors import ExportError, GhostifyError
from ghostify.exporting import FORMATS, Exported
from ghostify.networks import resnet8

QUICK = ("torch-export", "torchscript")
"""Formats that torch writes in a moment; each other takes seconds for the smallest network."""
COMPILED = "aoti"
"""It compiles every file for half a minute, so few networks are enough."""


def is_here(format: str) -> bool:
    try:
        FORMATS[format].require_packages()
    except GhostifyError:
        return False
    return True


HERE = [name for name in FORMATS if is_here(name)]
in_every_format = pytest.mark.parametrize(
    "format", [pytest.param(one, marks=() if one in QUICK else pytest.mark.slow) for one in HERE]
)


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


@pytest.mark.parametrize(("net", "format", "first"), turns())
def test_every_network_leaves_as_the_same_network(net: Net, format: str, first: int, tmp_path: Path) -> None:
    ghosted = ghosted_by_turns(net, first)
    ghosted.module.eval()
    before = copy.deepcopy(ghosted.module.state_dict())
    found = exported(ghosted, net.example(), format, tmp_path)
    assert found.parity.passed and found.file.exists()
    after = ghosted.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if isinstance(value, Tensor))
