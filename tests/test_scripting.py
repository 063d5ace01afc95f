"""Ghost modules in every other form a network takes: scripted, traced, exported, copied, pickled."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torchvision.models import resnet18
from zoo import basic

from ghostify import CGhost, GGhostStage, convert
from ghostify.ghosts import CGhostLinear

IMAGE = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _deprecated() -> Iterator[None]:
    """torch tells that TorchScript is no longer worked on; people deploy by it all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..*")
        yield


def unsettled(module: nn.Module) -> nn.Module:
    """All parameters and statistics at random, so that no part does nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return module.eval()


def c_ghost(conv: nn.Module, **changes: Any) -> Callable[[], nn.Module]:
    return lambda: CGhost.from_conv(conv, **changes)  # type: ignore[arg-type]


def g_ghost(**changes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        kept: Any = changes.get("kept", 4)
        options = {key: value for key, value in changes.items() if key != "kept"}
        thin = [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)]
        return GGhostStage(thin, 6, kept, **options)

    return make


FORMS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "plain": (c_ghost(nn.Conv2d(6, 8, 3, padding=1)), IMAGE),
    "strided": (c_ghost(nn.Conv2d(6, 8, 3, 2, 1, bias=False)), IMAGE),
    "odd": (c_ghost(nn.Conv2d(6, 7, 3), s=3, d=5), IMAGE),
    "pointwise": (c_ghost(nn.Conv2d(6, 8, 3), pointwise=8), IMAGE),
    "pointwise of more parts": (c_ghost(nn.Conv2d(6, 10, 3), s=4, pointwise=8), IMAGE),
    "low rank": (c_ghost(nn.Conv2d(6, 8, 3), pointwise=1), IMAGE),
    "ordered": (c_ghost(nn.Conv2d(6, 8, 3), pointwise=2, order=[3, 1, 2, 0, 7, 6, 5, 4]), IMAGE),
    "grouped": (c_ghost(nn.Conv2d(6, 8, 3, groups=2)), IMAGE),
    "grouped and odd": (c_ghost(nn.Conv2d(6, 10, 3, groups=2)), IMAGE),
    "norm and act": (c_ghost(nn.Conv2d(6, 8, 3), norm=nn.BatchNorm2d, act=nn.ReLU), IMAGE),
    "one dimension": (c_ghost(nn.Conv1d(6, 8, 3), pointwise=2), IMAGE[:, :, 0]),
    "three dimensions": (c_ghost(nn.Conv3d(6, 8, 3)), IMAGE[..., None].expand(-1, -1, -1, -1, 4)),
    "replicating": (c_ghost(nn.Conv2d(6, 8, 3, padding="same", padding_mode="replicate")), IMAGE),
    "vectors": (lambda: CGhostLinear.from_linear(nn.Linear(6, 8)), IMAGE[:, :, 0, 0]),
    "channels-last maps": (lambda: CGhostLinear.from_linear(nn.Linear(9, 8), pointwise=2), IMAGE),
    **{
        f"stage of {mix} mixes{' and Y1' * y1}, {cheap}": (g_ghost(mix=mix, mix_y1=y1, cheap=cheap), IMAGE)
        for mix, y1, cheap in product((0, 1, 2), (False, True), ("1x1", "3x3", "identity"))
    },
    "stage of any channels": (g_ghost(kept=[5, 0, 3, 1], kept_out=[1, 2, 3, 4]), IMAGE),
    "stage that ends whole": (g_ghost(end=nn.Conv2d(6, 6, 1), act=None, cheap_input="full"), IMAGE),
    "stage without ghosts": (
        lambda: GGhostStage([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1)], 6, 4, cheap="none", mix=0, thin_widths=[4, 6]),
        IMAGE,
    ),
    "stage that projects": (
        lambda: GGhostStage([nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 1)], 6, 4, entry="projection"),
        IMAGE,
    ),
}
each_form = pytest.mark.parametrize("form", FORMS)


@each_form
@pytest.mark.parametrize("training", [False, True])
def test_a_script_gives_what_the_module_gives(form: str, training: bool) -> None:
    make, x = FORMS[form]
    module = unsettled(make()).train(training)
    scripted = torch.jit.script(copy.deepcopy(module))
    kept = io.BytesIO()
    torch.jit.save(scripted, kept)
    kept.seek(0)
    for memory in (torch.contiguous_format, torch.channels_last):
        laid = x.contiguous(memory_format=memory) if x.dim() == 4 else x
        wanted = copy.deepcopy(module)(laid)
        assert torch.allclose(scripted(laid), wanted, atol=1e-5)
        assert torch.allclose(torch.jit.load(kept)(laid), wanted, atol=1e-5) or training  # statistics have moved on
        kept.seek(0)


@each_form
def test_every_other_form_gives_what_the_module_gives(form: str) -> None:
    make, x = FORMS[form]
    module = unsettled(make())
    wanted = module(x)
    pickled = io.BytesIO()
    torch.save(module, pickled)
    pickled.seek(0)
    others = [
        torch.jit.trace(module, x),
        torch.export.export(module, (x,)).module(),
        fx.symbolic_trace(module),
        copy.deepcopy(module),
        torch.load(pickled, weights_only=False),
    ]
    for other in others:
        assert torch.allclose(other(x), wanted, atol=1e-5), type(other)


@pytest.mark.parametrize(
    "changes",
    [{}, {"parts": "norm-act", "pointwise": "none"}, {"method": "g-ghost"}, {"method": "both"}, {"method": "thin"}],
    ids=str,
)
def test_a_converted_network_is_scripted(changes: dict[str, Any]) -> None:
    x = torch.randn(2, 3, 64, 64)
    net: nn.Module = resnet18(weights=None)
    if "ghost" in changes.get("method", "") or changes.get("method") == "both":
        net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *(basic(16, 16) for _ in range(5)))
        for block in net[1:]:
            block.downsample = nn.Identity()  # torch.jit.script reads the branch that is not taken, too
    module = convert(net, x, min_saving=0, **changes).module.eval()
    scripted = torch.jit.script(module)
    assert torch.allclose(scripted(x), module(x), atol=1e-4)
