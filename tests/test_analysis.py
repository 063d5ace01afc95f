"""The redundancy report: what it measures is what least squares gives, ghosts are recognised, and bad input is told."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import ZOO, Net, conv_bn, head, resnet8, same_padded

from ghostify import analyze, plan, scan
from ghostify.analysis import Analysis, Camera, advised, as_picture, read_analysis, with_converted
from ghostify.analysis.findings import LayerRedundancy
from ghostify.analysis.layers import compare_maps
from ghostify.analysis.stages import compare_blocks, stage_positions
from ghostify.errors import DataError, FitError, PlanError, RecipeError
from ghostify.leastsquares.sampling import Positions
from ghostify.pipeline import convert
from ghostify.reporting.analysis_files import layers_csv, stages_csv, write_analysis
from ghostify.rules import CGhostSwap, GGhostSwap

IMAGES = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def layer(found: Analysis, name: str) -> LayerRedundancy:
    return next(layer for layer in found.layers if layer.name == name)


def known_ghosts(noise: float = 0.0) -> nn.Sequential:
    """Eight maps, of which the last four are 3x3 filters of the first four, in that order, and some noise."""
    torch.manual_seed(1)
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:4, :, 1, 1] = torch.randn(4, 3)
        taps = torch.randn(4, 3, 3)
        for j in range(4):
            conv.weight[4 + j] = conv.weight[j, :, 1, 1][:, None, None] * taps[j]
        conv.weight += noise * torch.randn_like(conv.weight)
    model = nn.Sequential(conv, nn.ReLU(), head(8))
    model.taps = taps
    return model.eval()


# -- what is measured ------------------------------------------------------------------------------------------


def least_squares(source: Tensor, made: Tensor, d: int) -> tuple[Tensor, float]:
    """The best d x d filter and constant of one map (B, H, W) for another, and its mean squared error, in float64."""
    x = F.unfold(source[:, None].double(), d, padding=d // 2).transpose(1, 2).flatten(0, 1)
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    y = made.double().flatten()
    taps = torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0]
    return taps[:-1].reshape(d, d), float((y - x @ taps).square().mean())


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_streaming_fits_are_those_of_a_direct_solve(offset: float) -> None:
    """To 1e-6 of the variance, for every pair and every size of filter, whatever the maps' means are."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(24, 6, 7, 8, generator=generator).cumsum(3) + offset
    y[:, 4] = F.conv2d(y[:, :1], torch.randn(1, 1, 3, 3, generator=generator), padding=1)[:, 0] + 0.3 * y[:, 4]
    batches = y.split(6)
    positions = Positions(batches[0].shape, 10**6, len(batches), 0, 1)
    found = compare_maps(lambda batch: batches[batch], positions, 3, 1)
    variances = y.double().transpose(0, 1).flatten(1).var(1, unbiased=False)
    table = torch.tensor([[least_squares(y[:, i], y[:, j], 3)[1] for j in range(6)] for i in range(6)])
    shares = table.double() / variances
    best = (shares + torch.eye(6) * 9).min(0)
    assert found.best == pytest.approx(best.values.tolist(), rel=1e-6, abs=1e-6)
    for pair in found.pairs:
        assert pair.source == int(best.indices[pair.made])
        taps, _ = least_squares(y[:, pair.source], y[:, pair.made], 3)
        assert torch.allclose(torch.tensor(pair.taps, dtype=torch.float64), taps, rtol=1e-4, atol=1e-4)
        for d, mse in pair.mse.items():
            wanted = least_squares(y[:, pair.source], y[:, pair.made], d)[1]
            assert mse == pytest.approx(wanted, rel=1e-6, abs=1e-6 * float(variances[pair.made])), d
        r = torch.corrcoef(y[:, [pair.source, pair.made]].double().transpose(0, 1).flatten(1))[0, 1]
        assert pair.correlation == pytest.approx(float(r), abs=1e-6)
    for split in found.splits:
        wrong = [shares[i, j] for i, made in zip(split.intrinsic, split.ghosts, strict=True) for j in made]
        assert split.error == pytest.approx(float(torch.stack(wrong).mean()), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("n", [6, 7, 12])
def test_a_split_is_one_that_c_ghost_can_have(n: int) -> None:
    """⌈n/s⌉ intrinsic maps, at most s−1 ghosts of each, and every map once."""
    y = torch.randn(16, n, 5, 5, generator=torch.Generator().manual_seed(n))
    found = compare_maps(lambda batch: y.split(4)[batch], Positions((4, n, 5, 5), 10**6, 4, 0, 1), 3, 1)
    for split in found.splits:
        assert len(split.intrinsic) == math.ceil(n / split.s)
        assert max(map(len, split.ghosts)) <= split.s - 1
        assert sorted([*split.intrinsic, *(j for made in split.ghosts for j in made)]) == list(range(n))
        assert split.lost == pytest.approx(split.error * (n - len(split.intrinsic)) / n)


def test_a_larger_filter_is_never_worse() -> None:
    for net in (known_ghosts(0.1), resnet8().eval()):
        for one in analyze(net, IMAGES).layers:
            errors = [found.error for found in one.filters]
            assert errors == sorted(errors, reverse=True)
            assert all(0 <= error <= 1 for error in errors)


def test_known_ghosts_are_recognised() -> None:
    """Pairs, filters and the split of maps that are made of others."""
    model = known_ghosts()
    (found,) = analyze(model, IMAGES).layers
    known = {frozenset((j, j + 4)) for j in range(4)}
    assert {frozenset((pair.source, pair.made)) for pair in found.pairs[:4]} == known
    for pair in found.pairs:
        if pair.source < 4:
            taps = torch.tensor(pair.taps).flatten()
            assert F.cosine_similarity(taps, model.taps[pair.source].flatten(), dim=0) > 0.999
    (two, *_) = found.splits
    assert two.error < 1e-3 and two.spread < 1e-3
    assert {frozenset((i, *made)) for i, made in zip(two.intrinsic, two.ghosts, strict=True)} == known


def test_independent_maps_are_not_redundant() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.linalg.qr(torch.randn(8, 8)).Q[:, :, None, None])
    images = torch.randn(64, 8, 12, 12)
    (found,) = analyze(nn.Sequential(conv, nn.ReLU(), head(8)), images).layers
    assert found.redundancy < 0.02 and found.similarity < 0.1
    assert all(split.error > 0.98 for split in found.splits)
    assert found.advice.s is None and "would lose" in found.advice.reason


def test_maps_of_one_group_are_not_made_of_anothers() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False)
    images = torch.randn(32, 2, 9, 9).repeat(1, 2, 1, 1)
    with torch.no_grad():
        conv.weight[4:] = conv.weight[:4]  # each map stands in both groups
    (found,) = analyze(nn.Sequential(conv, nn.ReLU(), head(8)), images).layers
    for pair in found.pairs:
        assert pair.source // 4 == pair.made // 4
    for split in found.splits:
        for i, made in zip(split.intrinsic, split.ghosts, strict=True):
            assert all(i // 4 == j // 4 for j in made)


def test_silent_maps_are_counted_and_cost_nothing() -> None:
    model = known_ghosts(0.3)
    with torch.no_grad():
        model[0].weight[2] = 0
    (found,) = analyze(model, IMAGES).layers
    assert found.silent == 1 and len(found.best) == 7
    assert all(pair.source != 2 and pair.made != 2 for pair in found.pairs)


def test_a_layer_that_is_dead_is_left_alone() -> None:
    model = known_ghosts()
    with torch.no_grad():
        model[0].weight.zero_()
    (found,) = analyze(model, IMAGES).layers
    assert found.silent == 8 and not found.pairs and found.redundancy == 0
    assert found.advice.s is None and "do not vary" in found.advice.reason


def test_more_images_agree_better() -> None:
    """The spread between halves says how stable an answer is."""
    model = resnet8().eval()
    few, many = (
        analyze(model, torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))) for n in (8, 256)
    )
    spreads = [sum(one.spread for layer in found.layers for one in layer.splits) for found in (few, many)]
    assert spreads[1] < spreads[0] / 2


def of_rank(rank: int) -> nn.Sequential:
    """Sixteen maps that are combinations of a few, before a norm of many slopes."""
    torch.manual_seed(2)
    conv, norm = nn.Conv2d(32, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
    with torch.no_grad():
        conv.weight.copy_(torch.einsum("nm,mckl->nckl", torch.randn(16, rank), torch.randn(rank, 32, 3, 3)))
        norm.running_var.uniform_(0.1, 4)
        norm.weight.uniform_(0.5, 2)
    return nn.Sequential(conv_bn(3, 32), conv, norm, nn.ReLU(), head(16)).eval()


def test_the_rank_curve_is_that_of_the_singular_values_of_what_the_norm_makes_of_the_maps() -> None:
    model = of_rank(16)
    images = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found = layer(analyze(model, images), "1")
    with torch.no_grad():
        rows = model[:3](images).double().transpose(0, 1).flatten(1).T
    squares = torch.linalg.svdvals(rows - rows.mean(0)).square()
    assert found.carried == pytest.approx((squares.cumsum(0) / squares.sum()).tolist(), abs=1e-6)
    assert found.carried[found.needed(0.05) - 1] >= 0.95 > found.carried[found.needed(0.05) - 2]


def test_maps_that_are_combinations_of_a_few_are_recognised_and_advised_and_planned_without_loss() -> None:
    """No map is a filter of one other, so only the rank curve sees it; what is advised then gives the same outputs."""
    model = of_rank(5)
    analysis = analyze(model, IMAGES, tolerance=0.01)
    found = layer(analysis, "1")
    assert found.needed(1e-5) == 5 and min(split.lost for split in found.splits) > 0.05
    assert found.advice.m == 5 and found.advice.short == "m=5 pw" and found.advice.error < 1e-5
    chosen = advised(analysis.layers, analysis.stages, "c-ghost")
    ghosted = convert(model, IMAGES[:1], chosen, images=IMAGES)
    (swap,) = (swap for swap in ghosted.plan.swaps if swap.target == "1")
    assert isinstance(swap, CGhostSwap) and swap.m == 5 and str(swap.cheap) == "pointwise"
    with torch.no_grad():
        kept = ghosted.module[:3](IMAGES), model[:3](IMAGES)
    assert (kept[0] - kept[1]).square().mean() < 1e-4 * kept[1].var()


def test_layers_of_one_tap_or_of_groups_are_advised_no_pointwise_ghost() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=4), head(16)).eval()
    one, grouped = analyze(model, IMAGES, tolerance=0.9).layers
    assert one.needed(0.01) == 3 and one.advice.m is None
    assert grouped.carried == () and grouped.advice.m is None


# -- stages ----------------------------------------------------------------------------------------------------


class Adding(nn.Module):
    """A block that leaves the first ``kept`` channels to a convolution and the others as they are."""

    def __init__(self, width: int, changed: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        with torch.no_grad():
            self.conv.weight[changed:] = 0
            self.conv.weight *= 3

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.conv(x))


def test_a_stage_that_passes_channels_on_has_them_as_ghosts() -> None:
    """Half of the channels reach the end as the first block gave them: λ up to 0.5 costs nothing, more does."""
    torch.manual_seed(0)
    model = nn.Sequential(conv_bn(3, 8), nn.Sequential(*(Adding(8, 4) for _ in range(4))), head(8)).eval()
    (stage,) = analyze(model, torch.randn(64, 3, 10, 10)).stages
    errors = {point.ratio: point.cheap for point in stage.curve}
    assert errors[0.5] < 1e-4 < 0.01 < errors[0.9]
    assert sum(error < 1e-4 for error in stage.cheap_channels) == 4
    assert list(errors.values()) == sorted(errors.values())
    assert all(point.mix <= point.cheap + 1e-9 for point in stage.curve)
    assert all(pair.made >= 4 and pair.made == pair.source for pair in stage.pairs[:4])


def test_the_mix_finds_what_is_the_same_all_over_a_map() -> None:
    """Channels moved by a number that averages over maps tell: the cheap operation cannot, the mix can."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(64, 8, 10, 10, generator=generator)
    between = torch.randn(64, 8, 10, 10, generator=generator) + torch.randn(64, 8, 1, 1, generator=generator)
    last = first + between.mean((2, 3), keepdim=True) + 0.1 * torch.randn(64, 8, 10, 10, generator=generator)
    readers = [lambda batch, maps=maps: maps.split(8)[batch] for maps in (first, last, between)]
    positions = stage_positions((8, 8, 10, 10), 8, 1)
    found = compare_blocks(readers[0], readers[1], [readers[0], readers[2]], positions, held=1, batches=8)
    point = found.curve[-1]
    assert point.mix < 0.1 < 0.3 < point.cheap
    unrelated = compare_blocks(readers[0], readers[1], [readers[0]], positions, held=1, batches=8).curve[-1]
    assert unrelated.mix > 0.8 * unrelated.cheap


# -- on every net ----------------------------------------------------------------------------------------------

SINGLE = [net for net in ZOO if isinstance(net.example(), Tensor) and net.example().dim() == 4]


@pytest.mark.parametrize("net", SINGLE, ids=lambda net: net.name)
def test_every_net_is_analysed_and_stays_as_it_was(net: Net) -> None:
    """Every convolution is looked at or left out with a reason; what comes out survives JSON; CSV has its rows."""
    model, example = net.build(), net.example()
    images = torch.randn(8, *example.shape[1:], generator=torch.Generator().manual_seed(0)).to(example.dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    camera = Camera(as_picture(images[0][:3] if images.shape[1] >= 3 else images[0][:1]))
    found = analyze(model, images, camera=camera)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert modes == [part.training for part in model.modules()]
    names = {site.name for site in scan(model, example).sites}
    assert {one.name for one in found.layers} | {*found.skipped} >= names
    assert Analysis.model_validate_json(found.model_dump_json()) == found
    assert len(list(csv.reader(io.StringIO(layers_csv(found))))) == 1 + len(found.layers)
    assert len(list(csv.reader(io.StringIO(stages_csv(found))))) == 1 + sum(len(s.curve) for s in found.stages)
    assert camera.pictures.layers.keys() == {one.name for one in found.layers}
    assert found.network in str(found.table()) and str(found.stage_table())


def test_layers_of_a_class_of_its_own_are_looked_at_as_torchs_are() -> None:
    """Convolutions that pad by a module of their own."""
    made = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), head(8)).eval()
    ours, own = (analyze(net, IMAGES) for net in (made, same_padded(made)))
    assert own.layers and own.layers == ours.layers
    assert own.skipped == ours.skipped


def test_advice_is_a_plan() -> None:
    """With everything tolerated all layers that may are swapped as advised; with nothing, none is."""
    model = resnet8(width=32).eval()
    images = torch.randn(16, 3, 16, 16)
    found = analyze(model, images, tolerance=0.99)
    assert found.plan.swaps and all(isinstance(swap, CGhostSwap) for swap in found.plan.swaps)
    for swap in found.plan.swaps:
        advice = layer(found, swap.target).advice
        assert isinstance(swap, CGhostSwap)
        m = swap.m or math.ceil(layer(found, swap.target).maps / swap.s)
        told = (None, m) if swap.cheap.pointwise else (swap.s, None)
        assert told == (advice.s, advice.m) and swap.cheap.depthwise == advice.d
        assert (swap.before, swap.after) == (advice.before, advice.after)
    seen = scan(model, images[:1])
    again = plan(seen, advised(found.layers, found.stages, "c-ghost"))
    assert again == found.plan
    strict = analyze(model, images, tolerance=1e-6)
    assert not strict.plan.swaps and strict.plan.after == strict.plan.before


def test_advice_for_stages_is_a_plan_of_stages() -> None:
    model = nn.Sequential(conv_bn(3, 16), nn.Sequential(*(Adding(16, 8) for _ in range(4))), head(16)).eval()
    found = analyze(model, torch.randn(16, 3, 10, 10), tolerance=0.9)
    made = plan(scan(model, IMAGES[:1, :, :10, :10]), advised(found.layers, found.stages, "g-ghost"))
    swaps = [swap for swap in made.swaps if isinstance(swap, GGhostSwap)]
    assert [swap.ratio for swap in swaps] == [stage.advice.ratio for stage in found.stages if stage.advice.ratio]


# -- bad input and interruptions -------------------------------------------------------------------------------


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="at least 8 images"):
        analyze(known_ghosts(), IMAGES[:4])


def test_a_layer_that_gives_nan_is_named() -> None:
    model = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), head(8)).eval()
    with torch.no_grad():
        model[1][0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(FitError, match=r"1\.0 gives values that are not finite"):
        analyze(model, IMAGES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_looked_at_in_float32_and_said(dtype: torch.dtype) -> None:
    model = known_ghosts().to(dtype)
    found = analyze(model, IMAGES)
    assert any("half precision" in note for note in found.notes)
    assert next(model.parameters()).dtype == dtype
    assert layer(found, "0").splits[0].error < 0.05


def test_a_pattern_that_matches_nothing_is_answered_with_a_near_name() -> None:
    with pytest.raises(PlanError, match=r"'layer1\.0\.convx' matches no layer.*Did you mean 'layer1\.0\.conv"):
        analyze(resnet8(), torch.randn(8, 3, 16, 16), layers=("layer1.0.convx",))


def test_only_what_is_asked_for_is_looked_at() -> None:
    found = analyze(resnet8(), torch.randn(8, 3, 16, 16), layers=("layer2*",))
    assert found.layers and all(one.name.startswith("layer2") for one in found.layers)


def test_settings_are_checked() -> None:
    for wrong in ({"d": 2}, {"tolerance": 0}, {"image": 5}):
        with pytest.raises(RecipeError):
            analyze(known_ghosts(), IMAGES, **wrong)


def test_an_interruption_keeps_what_was_done() -> None:
    def told(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    found = analyze(resnet8(), torch.randn(8, 3, 16, 16), told=told)
    assert not found.complete and len(found.layers) + len(found.stages) == 2
    assert any("interrupted" in warning for warning in found.warnings)


# -- pictures and files ----------------------------------------------------------------------------------------


def test_the_ghost_in_the_picture_is_what_the_filter_makes() -> None:
    camera = Camera(as_picture(IMAGES[0]))
    analyze(known_ghosts(), IMAGES, camera=camera)
    (taken,) = camera.pictures.layers.values()
    assert taken.maps == tuple(range(8)) and taken.pixels.shape == (8, 12, 12)
    for one in taken.replaced:
        inside = (slice(1, -1), slice(1, -1))
        assert abs(one.original[inside].astype(int) - one.ghost[inside]).mean() < 3
        assert abs(one.difference[inside].astype(int) - 128).mean() < 3


def test_the_maps_of_a_converted_network_stand_beside_the_original_ones() -> None:
    """Also where the conversion put channels in another order."""
    torch.manual_seed(0)
    model = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), head(8)).eval()
    camera = Camera(as_picture(IMAGES[0]))
    analyze(model, IMAGES, camera=camera)
    ghosted = convert(model, IMAGES[:1], also=["stem"], min_saving=0, pointwise="none", images=IMAGES)
    pictures = with_converted(camera.pictures, model, ghosted.module, IMAGES[:8])
    for name, taken in pictures.layers.items():
        assert taken.converted is not None and taken.converted.shape == taken.pixels.shape, name
    assert all(taken.converted is None for taken in camera.pictures.layers.values())


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    found = analyze(known_ghosts(), IMAGES)
    files = write_analysis(tmp_path, found, None)
    assert {file.name for file in files} == {"analysis.json", "layers.csv", "stages.csv", "report.html"}
    assert read_analysis(tmp_path) == found == read_analysis(tmp_path / "analysis.json")


def test_an_analysis_of_before_there_were_rank_curves_is_read(tmp_path: Path) -> None:
    found = json.loads(analyze(known_ghosts(), IMAGES).model_dump_json())
    for one in found["layers"]:
        del one["carried"], one["advice"]["m"]
    (tmp_path / "analysis.json").write_text(json.dumps(found))
    read = read_analysis(tmp_path)
    assert layer(read, "0").carried == ()
    table = read.table()
    assert table.rows[0][table.columns.index("m 90%")] == ""
    assert len(layers_csv(read).splitlines()) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: {**value, "format": 9}, "format 9"),
        (lambda value: {**value, "layer": []}, "unknown key 'layer'.*Did you mean 'layers'"),
        (lambda value: [], "must hold"),
    ],
    ids=["format", "key", "list"],
)
def test_a_damaged_analysis_is_refused(tmp_path: Path, change: Callable[[Any], Any], words: str) -> None:
    path = tmp_path / "analysis.json"
    path.write_text(json.dumps(change(json.loads(analyze(known_ghosts(), IMAGES).model_dump_json()))))
    with pytest.raises(PlanError, match=words):
        read_analysis(path)


def test_figures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    camera = Camera(as_picture(IMAGES[0]))
    model = nn.Sequential(conv_bn(3, 8), nn.Sequential(*(Adding(8, 4) for _ in range(4))), head(8)).eval()
    files = write_analysis(tmp_path, analyze(model, IMAGES, camera=camera), camera.pictures, figures=True)
    drawn = {file.name for file in files if file.parent.name == "figures"}
    assert {"layers.png", "layers.svg", "filters.svg", "stages.png", "maps-0.0.png"} <= drawn
    assert all(file.stat().st_size > 1000 for file in files if file.parent.name == "figures")
