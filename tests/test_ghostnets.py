"""C-GhostNet and G-GhostNet: their counts exactly, timm's outputs from its weights, and what ghostify makes of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ghostify
from ghostify.errors import ModelError
from ghostify.ghosts import CGhost, GGhostStage
from ghostify.ghosts.ghostnets import (
    BOTTLENECKS,
    NETWORKS,
    ROUNDINGS,
    STAGES,
    CGhostBottleneck,
    CGhostNet,
    GGhostNet,
    ResidualBottleneck,
    RoundingName,
    c_ghostnet_0_5,
)
from ghostify.recipe import ModelSettings, Role
from ghostify.scanning import Scan
from ghostify.sources import build_model, input_shape

PYTORCH: RoundingName = "pytorch"
TENSORFLOW: RoundingName = "tensorflow"
EXACT = [
    # (name, rounding): parameters, MACs, activations; at 1.1x only the MACs were known from elsewhere, as 164M
    ("c_ghostnet_0_5", PYTORCH, 2_587_292, 42_328_152, 1_772_840),
    ("c_ghostnet_0_5", TENSORFLOW, 2_588_232, 42_327_816, 1_772_836),
    ("c_ghostnet_1_0", PYTORCH, 5_182_508, 141_150_512, 3_544_396),
    ("c_ghostnet_1_0", TENSORFLOW, 5_183_016, 141_149_744, 3_544_392),
    ("c_ghostnet_1_1", PYTORCH, 5_855_650, 166_986_864, 3_844_372),
    ("c_ghostnet_1_1", TENSORFLOW, 5_858_409, 164_483_640, 3_802_039),
    ("c_ghostnet_1_3", PYTORCH, 7_358_820, 227_003_256, 4_595_252),
    ("c_ghostnet_1_3", TENSORFLOW, 7_352_622, 226_995_784, 4_595_246),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def scanned(name: str = "c_ghostnet", **args: Any) -> Scan:
    """The scan of a network on the meta device, at the input it names itself."""
    settings = ModelSettings(source=f"ghostify:{name}", args=args)
    with torch.device("meta"):
        model = build_model(settings)
        return ghostify.scan(model, torch.zeros(1, *input_shape(settings, model) or ()))


# -- the papers' counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rounding", "params", "macs", "acts"), EXACT)
def test_counts_are_those_of_the_papers_tables(name: str, rounding: str, params: int, macs: int, acts: int) -> None:
    scan = scanned(name, rounding=rounding)
    assert (scan.cost.params, scan.cost.macs, scan.cost.acts) == (params, macs, acts)
    assert not scan.uncounted and not scan.doubts


def test_the_tensorflow_rule_prints_every_cell_of_tables_8_and_10() -> None:
    printed = [macs // 1_000_000 for _, rounding, _, macs, _ in EXACT if rounding == TENSORFLOW]
    assert printed == [42, 141, 164, 226]


@pytest.mark.parametrize(
    ("channels", "width", "pytorch", "tensorflow"),
    [
        (16, 1.0, 16, 16),
        (16, 0.3, 8, 8),  # 4.8: 4 would lose more than a tenth; at least 8
        (16, 0.2, 4, 8),
        (200, 0.5, 100, 100),
        (72, 0.25, 20, 16),  # 18: half up; tie to even
        (40, 0.15, 8, 8),
        (184, 1.3, 240, 240),
        (40, 1.35, 56, 56),  # 54: 13.5 quarters, even on both sides
        (24, 0.5, 12, 12),
        (72, 0.75, 56, 56),
        (24, 1.75, 44, 40),  # 42: half up; tie to even
    ],
)
def test_the_rules_round_as_published(channels: int, width: float, pytorch: int, tensorflow: int) -> None:
    assert ROUNDINGS[PYTORCH].scaled(channels, width) == pytorch
    assert ROUNDINGS[TENSORFLOW].scaled(channels, width) == tensorflow


def test_the_rules_squeeze_as_published() -> None:
    widths = (72, 120, 88, 308)
    assert [ROUNDINGS[PYTORCH].squeezed(width) for width in widths] == [20, 32, 24, 76]
    assert [ROUNDINGS[TENSORFLOW].squeezed(width) for width in widths] == [18, 30, 22, 77]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_network_grows_with_its_width(rounding: str) -> None:
    costs = [scanned(width=width, rounding=rounding).cost for width in (0.1, 0.5, 0.77, 1.0, 2.0)]
    assert all(a.params < b.params and a.macs < b.macs for a, b in pairwise(costs))


# -- timm's network, computed by timm --------------------------------------------------------------------------


def same_weights(model: nn.Module, other: nn.Module) -> None:
    """Copies the tensors of ``other``, in order, into ``model``."""
    theirs = list(other.state_dict().values())
    model.load_state_dict(dict(zip(model.state_dict(), theirs, strict=True)))


def unsettle(model: nn.Module) -> None:
    """Batch norms of a trained network are not the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias.data, module.running_mean):
                nn.init.normal_(values, std=0.2)


@pytest.mark.parametrize("name", ["ghostnet_050", "ghostnet_100", "ghostnet_130"])
def test_the_pytorch_rule_is_timms_network(name: str) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, pretrained=False)
    ours = CGhostNet(int(name[-3:]) / 100)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    unsettle(theirs)
    same_weights(ours, theirs)
    x = torch.randn(2, 3, 97, 64)
    with torch.no_grad():
        expected, got = theirs.eval()(x), ours.eval()(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("width", [0.1, 0.35, 0.75, 1.1, 2.0])
def test_every_width_has_the_shapes_of_timms(width: float) -> None:
    ghostnet = pytest.importorskip("timm.models.ghostnet")
    rows = [[[kernel, exp, out, 0.25 * se, stride]] for kernel, exp, out, se, stride in BOTTLENECKS]
    with torch.device("meta"):
        ours, theirs = CGhostNet(width), ghostnet.GhostNet(rows, width=width)
    assert [v.shape for v in ours.state_dict().values()] == [v.shape for v in theirs.state_dict().values()]


# -- G-GhostNet, of which the paper prints no totals ------------------------------------------------------------


def test_g_ghostnet_counts_as_its_reading_of_table_2_does() -> None:
    scan = scanned("g_ghostnet_1_0")
    assert (scan.cost.params, scan.cost.macs, scan.cost.acts) == (11_187_724, 1_028_325_696, 3_489_372)
    assert not scan.uncounted and not scan.doubts


@pytest.mark.parametrize("width", [0.1, 0.2, 0.33, 0.5, 1.3, 2.0])
def test_a_g_ghostnet_of_any_width_has_ghosts_in_every_stage(width: float) -> None:
    with torch.device("meta"):
        model = GGhostNet(width)
    stages = [module for module in model.modules() if isinstance(module, GGhostStage)]
    assert [len(stage.thin) for stage in stages] == [blocks for _, blocks in STAGES]
    assert [stage.width for stage in stages] == [ROUNDINGS[PYTORCH].scaled(out, width) for out, _ in STAGES]
    assert all(0 < stage.kept < stage.width for stage in stages)


def test_a_g_ghostnet_grows_with_its_width() -> None:
    costs = [scanned("g_ghostnet", width=width).cost for width in (0.1, 0.2, 0.5, 0.77, 1.0, 2.0)]
    assert all(a.params < b.params and a.macs < b.macs for a, b in pairwise(costs))


def test_its_intrinsic_widths_leave_two_fifths_to_ghosts() -> None:
    with torch.device("meta"):
        model = GGhostNet()
    kept = [module.kept for module in model.modules() if isinstance(module, GGhostStage)]
    assert kept == [16, 24, 48, 96]
    assert kept[1:] == [3 * out // 5 for out, _ in STAGES[1:]]  # 0.6 of 24 is no multiple of 4


def test_a_stage_of_it_is_its_first_block_and_the_ghosts_of_that() -> None:
    model = GGhostNet(0.5).eval()
    unsettle(model)
    first, rest = model.stages[1]
    x = torch.randn(2, first.expand[0].in_channels, 11, 8)
    y1 = first(x)
    assert y1.shape == (2, 20, 6, 4) and rest.kept == 12
    out = rest(y1)
    z = rest.thin[0](y1[:, :12])
    tau = rest.mix.fc(torch.cat([y1, z], 1).mean((2, 3)))
    ghosts = (rest.cheap(y1[:, 12:]) + tau[:, :, None, None]).clamp_min(0)
    torch.testing.assert_close(out, torch.cat([z, ghosts], 1))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("out_channels", [8, 12])
def test_a_residual_bottleneck_is_the_sum_of_its_branches(stride: int, out_channels: int) -> None:
    block = ResidualBottleneck(8, out_channels, stride).eval()
    unsettle(block)
    x = torch.randn(2, 8, 9, 10)
    branch = block.project(block.se(block.conv(block.expand(x))))
    assert branch.min() < 0
    torch.testing.assert_close(block(x), (branch + block.shortcut(x)).clamp_min(0))
    assert block(x).shape == (2, out_channels, -(-9 // stride), -(-10 // stride))
    assert block.conv[0].in_channels == 3 * out_channels and block.conv[0].groups == 1
    assert isinstance(block.shortcut, nn.Identity) == (stride == 1 and out_channels == 8)


@pytest.mark.parametrize("images", [1, 4])
def test_a_g_ghostnet_trains_on_batches_of_any_size(images: int) -> None:
    model = GGhostNet(0.2, num_classes=7, in_channels=1)
    out = model(torch.randn(images, 1, 65, 47))
    assert out.shape == (images, 7)
    out.square().sum().backward()
    unmoved = [name for name, p in model.named_parameters() if p.grad is None or not 0 < p.grad.abs().sum() < 1e6]
    assert not unmoved


# -- a network like any other ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("size", [(64, 64), (65, 47)], ids=str)
def test_it_runs_and_trains_on_any_size(rounding: RoundingName, size: tuple[int, int]) -> None:
    model = CGhostNet(0.5, num_classes=7, in_channels=1, rounding=rounding)
    out = model(torch.randn(4, 1, *size))
    assert out.shape == (4, 7)
    out.square().sum().backward()
    unmoved = [name for name, p in model.named_parameters() if p.grad is None or not 0 < p.grad.abs().sum() < 1e6]
    assert not unmoved


@pytest.mark.parametrize("network", [CGhostNet, GGhostNet])
def test_it_learns_a_batch_by_heart(network: type[CGhostNet | GGhostNet]) -> None:
    model, images, classes = network(0.1, num_classes=2, dropout=0), torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(model(images), classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("squeezed", [0, 5])
@pytest.mark.parametrize("out_channels", [8, 12])
def test_a_bottleneck_is_the_sum_of_its_branches(stride: int, squeezed: int, out_channels: int) -> None:
    block = CGhostBottleneck(8, 24, out_channels, 5, stride, squeezed).eval()
    unsettle(block)
    x = torch.randn(2, 8, 9, 10)
    y = block.ghost1(x)
    assert y.min() == 0  # ReLU ends the first module
    y = block.down(y)
    if squeezed:
        gate = block.se.expand(block.se.reduce(y.mean((2, 3), keepdim=True)).clamp_min(0))
        y = y * ((gate + 3).clamp(0, 6) / 6)
    branch: Tensor = block.ghost2(y)
    assert branch.min() < 0  # and not the second
    torch.testing.assert_close(block(x), branch + block.shortcut(x))
    assert block(x).shape == (2, out_channels, -(-9 // stride), -(-10 // stride))
    assert isinstance(block.shortcut, nn.Identity) == (stride == 1 and out_channels == 8)


def test_every_module_of_table_1_is_there() -> None:
    ghosts = [module for module in CGhostNet().modules() if isinstance(module, CGhost)]
    assert len(ghosts) == 32 and all((ghost.s, ghost.d, ghost.kernel_size) == (2, 3, (1, 1)) for ghost in ghosts)
    assert [ghost.out_channels for ghost in ghosts] == [n for _, exp, out, *_ in BOTTLENECKS for n in (exp, out)]


# -- by name ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_every_name_builds_for_224_pixels(name: str) -> None:
    settings = ModelSettings(source=f"ghostify:{name}", args={"in_channels": 1, "num_classes": 5})
    with torch.device("meta"):
        model = build_model(settings)
        assert input_shape(settings, model) == (1, 224, 224)
        assert model(torch.zeros(2, 1, 224, 224)).shape == (2, 5)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"rounding": "torch"}, "rounding must be one of 'pytorch', 'tensorflow', not 'torch'."),
        ({"width": 0}, "width must be a positive number, not 0."),
        ({"width": float("nan")}, "width must be a positive number, not nan."),
        ({"width": float("inf")}, "width must be a positive number, not inf."),
        ({"widht": 2}, "Did you mean 'width'?"),
    ],
)
def test_what_cannot_be_built_is_one_line(args: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_model(ModelSettings(source="ghostify:c_ghostnet", args=args))
    assert str(caught.value).endswith(says) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["c_ghostnet_1_0", "g_ghostnet_1_0"])
def test_a_name_that_says_a_width_takes_no_other(name: str) -> None:
    with pytest.raises(ModelError, match=r"unexpected keyword argument 'width'\.$"):
        build_model(ModelSettings(source=f"ghostify:{name}", args={"width": 2}))


@pytest.mark.parametrize("width", [0, -1, float("nan"), float("inf")])
def test_a_g_ghostnet_needs_a_width(width: float) -> None:
    with pytest.raises(ModelError, match="width must be a positive number, not"):
        build_model(ModelSettings(source="ghostify:g_ghostnet", args={"width": width}))


# -- as ghostify sees it ---------------------------------------------------------------------------------------


def test_planning_it_proposes_nothing_inside_its_ghost_modules() -> None:
    with torch.device("meta"):
        model, x = c_ghostnet_0_5(), torch.zeros(1, 3, 224, 224)
    inside = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, CGhost)
        for part, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d)
    }
    everything: list[Role] = ["stem", "classifier", "pooled", "depthwise"]
    plan = ghostify.plan(ghostify.scan(model, x), also=everything, min_saving=0)
    left = {skip.target for skip in plan.skips if "is part of the C-Ghost module" in skip.reason}
    assert left == inside and len(inside) == 64
    assert plan.swaps and not inside & {swap.target for swap in plan.swaps}


def test_what_is_left_of_it_can_be_ghosted() -> None:
    ghosted = ghostify.convert(c_ghostnet_0_5(num_classes=4), torch.randn(1, 3, 64, 64), min_saving=0)
    assert ghosted.after.cost.macs < ghosted.before.cost.macs
    assert ghosted.module(torch.randn(2, 3, 64, 64)).shape == (2, 4)
