"""The G-Ghost rows of the papers come out exactly, from the shipped recipes through scan, plan and rewrite.

Tables 11 to 19 of the IJCV paper, with the narrower networks and the originals they are compared with.  What the paper
calls FLOPs are MACs; it rounds them to one decimal and adds one for every element that is averaged, which shows in two
cells.  The integers are those of the structures the recipes' heads describe, and they are worked out here once more
from the shapes of the layers alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from paper_rows import ghosted, head_of, recipe_of, traced

from ghostify import GGhostStage, compare, plan, read_plan, rewrite, scan
from ghostify.costs import Cost
from ghostify.planning import scan_for
from ghostify.reporting import Report
from ghostify.shipped import find_recipe, shipped_recipes

RESNET56, RESNET34 = "ghostify:resnet56", "torchvision:resnet34"
REGNET_32, REGNET_40 = "torchvision:regnet_x_3_2gf", "timm:regnetx_040"
REGNET_80, REGNET_160 = "torchvision:regnet_x_8gf", "torchvision:regnet_x_16gf"

BASELINES = {
    # source: parameters, MACs, activations, and what the paper prints where it follows
    RESNET56: (853_018, 125_485_696, 532_480, "0.85M", None, None),  # printed 125.0M is the 125 of Table 6
    RESNET34: (21_797_672, 3_663_761_408, 3_738_112, "21.8M", "3.7B", "3.7M"),
    "torchvision:resnet50": (25_557_032, 4_089_184_256, 11_113_984, "25.6M", "4.1B", "11.1M"),
    "torchvision:resnet101": (44_549_160, 7_801_405_440, 16_231_936, None, "7.8B", "16.2M"),  # printed 44.6M
    "torchvision:resnet152": (60_192_808, 11_513_626_624, 22_554_112, "60.2M", "11.5B", "22.6M"),
    "torchvision:densenet121": (7_978_856, 2_834_161_664, 6_899_200, "8.0M", "2.8B", "6.9M"),
    "torchvision:densenet169": (14_149_480, 3_359_843_328, 7_300_608, None, "3.4B", "7.3M"),  # printed 14.2M
    "torchvision:densenet201": (20_013_928, 4_291_365_888, 7_852_544, "20.0M", "4.3B", "7.9M"),
    "torchvision:densenet161": (28_681_000, 7_727_907_072, 11_063_808, "28.7M", "7.7B", "11.1M"),
    "torchvision:resnext50_32x4d": (
        25_028_904,
        4_230_479_872,
        14_400_512,
        "25.0M",
        "4.2B",
        "14.4M",
    ),  # 4.0B in Table 18
    "torchvision:regnet_x_1_6gf": (9_190_136, 1_602_849_792, 7_932_512, "9.2M", "1.6B", "7.9M"),
    REGNET_32: (15_296_552, 3_176_621_952, 11_366_432, "15.3M", "3.2B", "11.4M"),
    REGNET_40: (22_118_248, 3_964_498_816, 12_200_608, "22.1M", "4.0B", "12.2M"),
    REGNET_80: (39_572_648, 7_995_132_416, 14_058_688, "39.6M", "8.0B", "14.1M"),
    REGNET_160: (54_278_536, 15_940_755_456, 25_514_496, "54.3M", "15.9B", "25.5M"),
}


@dataclass(frozen=True)
class Row:
    table: str
    recipe: str
    stages: int
    """How many become G-Ghost stages."""
    cost: Cost
    printed: tuple[str | None, str | None, str | None]
    """Parameters, FLOPs and activations; None where the paper prints none or its figure does not follow."""


def row(
    table: str, recipe: str, stages: int, params: int, macs: int, acts: int, p: str | None, f: str | None, a: str | None
) -> Row:
    return Row(table, recipe, stages, Cost(params=params, macs=macs, acts=acts), (p, f, a))


ROWS = [
    row("11, 12", "g-ghost-resnet56-mix", 3, 370_578, 53_733_184, 360_448, "0.37M", "53.8M", None),
    row("11, 12", "g-ghost-resnet56-mix-y1", 3, 373_266, 53_735_872, 360_448, "0.37M", None, None),
    row("11, 13, 14", "g-ghost-resnet56", 3, 361_114, 53_723_776, 360_448, "0.36M", "53.7M", None),
    row("13", "g-ghost-resnet56-identity", 3, 358_314, 53_330_560, 346_112, "0.36M", "53.3M", None),
    row("13", "g-ghost-resnet56-none", 3, 409_834, 60_801_664, 403_456, "0.41M", "60.8M", None),
    row("14", "g-ghost-resnet56-3x3", 3, 382_618, 56_869_504, 360_448, "0.38M", "56.9M", None),
    row("14", "g-ghost-resnet56-5x5", 3, 425_626, 63_160_960, 360_448, "0.43M", "63.2M", None),
    row("11", "g-ghost-resnet56-literal", 3, 288_314, 43_106_944, 331_776, None, None, None),
    row("11", "width-resnet56-0.7", 0, 408_282, 63_300_536, 385_536, "0.41M", "63.3M", None),
    row("15, 16", "g-ghost-resnet34-mix", 4, 14_621_256, 2_289_654_784, 3_299_072, "14.6M", "2.3B", "3.3M"),
    row("15", "g-ghost-resnet34", 4, 14_306_408, 2_289_340_416, 3_299_072, "14.3M", "2.3B", "3.3M"),
    row("15", "width-resnet34-0.8", 0, 13_969_072, 2_347_611_949, 2_979_151, "14.0M", "2.3B", "3.0M"),
    row("17-19", "g-ghost-regnetx-3.2gf-mix", 2, 10_511_000, 1_801_746_240, 8_723_456, "10.5M", "1.8B", "8.7M"),
    row("17", "g-ghost-regnetx-3.2gf", 2, 9_691_160, 1_800_927_744, 8_722_784, "9.7M", "1.8B", "8.7M"),
    row("17, 19", "width-regnetx-3.2gf-0.75", 0, 8_807_024, 1_800_812_160, 8_625_176, "8.8M", "1.8B", "8.6M"),
    row("18", "g-ghost-regnetx-4.0gf-mix", 2, 15_726_268, 2_228_368_516, 9_459_388, "15.7M", "2.2B", "9.5M"),
    row("18", "g-ghost-regnetx-4.0gf", 2, 14_452_128, 2_227_096_016, 9_458_568, None, None, None),
    row("18", "g-ghost-regnetx-8.0gf-mix", 2, 24_586_928, 4_149_668_216, 10_437_628, "24.6M", "4.2B", "10.4M"),
    row("18", "g-ghost-regnetx-16gf-mix", 2, 32_381_704, 8_997_384_192, 19_545_216, "32.4M", "9.0B", "19.5M"),
]
every_row = pytest.mark.parametrize("row", ROWS, ids=[f"table {row.table}: {row.recipe}" for row in ROWS])


def as_printed(value: int, printed: str) -> str:
    """A count in millions or billions, rounded to as many digits as ``printed`` has."""
    unit = {"M": 10**6, "B": 10**9}[printed[-1]]
    return f"{value / unit:.{len(printed[:-1].partition('.')[2])}f}{printed[-1]}"


# -- the rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", BASELINES)
def test_the_originals_cost_what_the_papers_say(source: str) -> None:
    *counts, p, f, a = BASELINES[source]
    found = scan(traced(source))
    assert [found.cost.params, found.cost.macs, found.cost.acts] == counts
    assert found.unknown == {}
    for count, printed in zip(counts, (p, f, a), strict=True):
        assert printed in (None, as_printed(count, printed or "M"))


@every_row
def test_a_row_comes_out_exactly(row: Row) -> None:
    """Counted on the rewritten module, not only predicted."""
    result, recipe = ghosted(row.recipe), recipe_of(row.recipe)
    assert result.after.cost == result.plan.after == row.cost
    params, macs, acts, *_ = BASELINES[recipe.model.source]
    assert result.before.cost == Cost(params=params, macs=macs, acts=acts)
    assert len(result.plan.swaps) == (row.stages or 1)  # one swap scales a whole network
    assert sum(isinstance(part, GGhostStage) for part in result.module.modules()) == row.stages


@every_row
def test_a_row_prints_as_the_paper_prints_it(row: Row) -> None:
    p, f, a = row.printed
    averaged = by_hand(*BY_HAND[row.recipe])[1]
    assert p in (None, as_printed(row.cost.params, p or "M"))
    assert f in (None, as_printed(row.cost.macs + averaged, f or "M"))
    assert a in (None, as_printed(row.cost.acts, a or "M"))


def test_averaged_elements_decide_two_of_the_printed_figures() -> None:
    cells = [row for row in ROWS if row.printed[1] not in (None, as_printed(row.cost.macs, row.printed[1] or "M"))]
    assert [row.recipe for row in cells] == ["g-ghost-resnet56-mix", "g-ghost-regnetx-8.0gf-mix"]


def test_a_mix_that_reads_the_first_block_would_print_another_figure() -> None:
    cost, averaged = by_hand(*BY_HAND["g-ghost-resnet56-mix-y1"])
    assert as_printed(cost.macs + averaged, "53.8M") == "53.9M"


def test_every_shipped_g_ghost_and_width_recipe_is_a_row() -> None:
    shipped = {Path(name).name for name in shipped_recipes() if name.startswith(("papers/g-ghost-", "papers/width-"))}
    assert shipped == {row.recipe for row in ROWS}


@pytest.mark.parametrize(
    "name", ["g-ghost-resnet56-none", "g-ghost-resnet56-mix", "g-ghost-regnetx-3.2gf-mix", "width-resnet34-0.8"]
)
def test_a_row_survives_as_a_plan_file(name: str, tmp_path: Path) -> None:
    """The papers' choices are data: the plan alone gives the same network."""
    result, path, source = ghosted(name), tmp_path / "plan.yaml", recipe_of(name).model.source
    path.write_text(result.plan.to_yaml(), encoding="utf-8")
    again = rewrite(traced(source), read_plan(path))
    assert again.plan == result.plan
    assert again.after == result.after


@every_row
def test_the_head_of_a_recipe_tells_the_row(row: Row) -> None:
    head = head_of(row.recipe)
    p, f, a = row.printed
    exact = f"{row.cost.params:,} parameters, {row.cost.macs:,} MACs, {row.cost.acts:,} activations"
    assert exact in head
    assert ("# needs:   timm" in head) == recipe_of(row.recipe).model.source.startswith("timm:")
    for printed, what in ((p, "parameters"), (f, "FLOPs"), (a, "activations")):
        assert printed is None or f"{printed} {what}" in head


# -- the same numbers from the shapes of the layers --------------------------------------------------------------


def conv(c: int, n: int, k: int, side: int, groups: int = 1) -> Cost:
    """k x k, c → n, giving maps of side x side, with its batch norm."""
    weights = k * k * (c // groups) * n
    return Cost(params=weights + 2 * n, macs=side * side * weights, acts=side * side * n)


def linear(c: int, n: int) -> Cost:
    return Cost(params=c * n + n, macs=c * n)


@dataclass(frozen=True)
class Basic:
    """Two 3x3 convolutions; ``projects`` if the shortcut is a 1x1 convolution where the shape changes."""

    projects: bool

    def cost(self, c: int, n: int, side: int, stride: int = 1) -> Cost:
        shortcut = conv(c, n, 1, side) if self.projects and (c != n or stride > 1) else Cost()
        return conv(c, n, 3, side) + conv(n, n, 3, side) + shortcut

    def thin(self, c: int) -> tuple[Basic, int]:
        """Half the width."""
        return self, c // 2


@dataclass(frozen=True)
class Grouped:
    """1x1, grouped 3x3 (which strides), 1x1; a 1x1 convolution as the shortcut where the shape changes."""

    group: int

    def cost(self, c: int, n: int, side: int, stride: int = 1) -> Cost:
        groups = n // min(self.group, n)
        shortcut = conv(c, n, 1, side) if c != n or stride > 1 else Cost()
        return conv(c, n, 1, side * stride) + conv(n, n, 3, side, groups) + conv(n, n, 1, side) + shortcut

    def thin(self, c: int) -> tuple[Grouped, int]:
        """Three quarters of the group width; as many groups as fit half of the channels."""
        group = int(0.75 * min(self.group, c))
        return Grouped(group), c // 2 // group * group


@dataclass(frozen=True)
class Net:
    block: Basic | Grouped
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: int
    """Channels."""
    stem_kernel: int = 3
    stem_side: int = 112
    first_side: int = 56
    first_stride: int = 2
    classes: int = 1000


@dataclass(frozen=True)
class Form:
    """Of a G-Ghost stage."""

    cheap: int = 1
    """Kernel size; 0 passes the other channels of Y1 on, -1 makes no ghosts."""
    full: bool = False
    """Thin path and cheap operation (one that is a convolution) read all of Y1."""
    mix: int = 0
    mix_y1: bool = True
    end: bool = True


def stage_by_hand(block: Basic | Grouped, depth: int, c: int, side: int, form: Form) -> tuple[Cost, int]:
    """What follows the first block: its cost, and how many elements the mix operation averages."""
    thin, raw = block.thin(c)
    n, ghosts = depth - 1 - form.end, c - raw
    cost = thin.cost(c, raw, side) + conv(c, raw, 1, side) if form.full else thin.cost(raw, raw, side)
    for _ in range(n - 2):
        cost += thin.cost(raw, raw, side)
    if form.cheap < 0:
        cost += block.cost(raw, c, side) + conv(raw, c, 1, side)
    elif n > 1:
        cost += thin.cost(raw, raw, side)
    if form.cheap > 0:
        cost += conv(c if form.full else ghosts, ghosts, form.cheap, side)
    pooled = (c if form.mix_y1 else 0) + n * raw
    if form.mix == 1:
        cost += linear(pooled, ghosts)
    if form.mix == 2:
        cost += conv(pooled, ghosts, 1, 1) + conv(ghosts, ghosts, 1, 1)
    return cost + (block.cost(c, c, side) if form.end else Cost()), pooled * side**2 * (form.mix > 0)


def by_hand(net: Net, form: Form | None = None) -> tuple[Cost, int]:
    """A network's cost, its stages of more than two blocks in the given form, and how many elements it averages."""
    cost = conv(3, net.stem, net.stem_kernel, net.stem_side) + linear(net.widths[-1], net.classes)
    averaged = net.widths[-1] * (net.first_side >> len(net.widths) - 1) ** 2
    c, side, stride = net.stem, net.first_side, net.first_stride
    for depth, n in zip(net.depths, net.widths, strict=True):
        cost += net.block.cost(c, n, side, stride)
        if form and depth > 2:
            rest, elements = stage_by_hand(net.block, depth, n, side, form)
            cost, averaged = cost + rest, averaged + elements
        else:
            for _ in range(depth - 1):
                cost += net.block.cost(n, n, side)
        c, side, stride = n, side // 2, 2
    return cost, averaged


def resnet56(widths: tuple[int, ...] = (16, 32, 64)) -> Net:
    return Net(Basic(projects=False), (9, 9, 9), widths, widths[0], 3, 32, 32, 1, classes=10)


def resnet34(widths: tuple[int, ...] = (64, 128, 256, 512)) -> Net:
    return Net(Basic(projects=True), (3, 4, 6, 3), widths, widths[0], 7, first_stride=1)


REGNETX_32 = Net(Grouped(48), (2, 6, 15, 2), (96, 192, 432, 1008), 32)
REGNETX_40 = Net(Grouped(40), (2, 5, 14, 2), (80, 240, 560, 1360), 32)
REGNETX_80 = Net(Grouped(120), (2, 5, 15, 1), (80, 240, 720, 1920), 32)
REGNETX_160 = Net(Grouped(128), (2, 6, 13, 1), (256, 512, 896, 2048), 32)
NARROW_REGNETX = Net(Grouped(36), (2, 6, 15, 2), (72, 144, 324, 756), 32)
CIFAR = Form(full=True)
MIXED = Form(mix=2)

BY_HAND: dict[str, tuple[Net, Form | None]] = {
    "g-ghost-resnet56-mix": (resnet56(), replace(CIFAR, mix=1, mix_y1=False)),
    "g-ghost-resnet56-mix-y1": (resnet56(), replace(CIFAR, mix=1)),
    "g-ghost-resnet56": (resnet56(), CIFAR),
    "g-ghost-resnet56-identity": (resnet56(), replace(CIFAR, cheap=0)),
    "g-ghost-resnet56-none": (resnet56(), replace(CIFAR, cheap=-1)),
    "g-ghost-resnet56-3x3": (resnet56(), replace(CIFAR, cheap=3)),
    "g-ghost-resnet56-5x5": (resnet56(), replace(CIFAR, cheap=5)),
    "g-ghost-resnet56-literal": (resnet56(), replace(CIFAR, end=False)),
    "width-resnet56-0.7": (resnet56((12, 22, 44)), None),
    "g-ghost-resnet34-mix": (resnet34(), Form(mix=1)),
    "g-ghost-resnet34": (resnet34(), Form()),
    "width-resnet34-0.8": (resnet34((51, 102, 204, 409)), None),
    "g-ghost-regnetx-3.2gf-mix": (REGNETX_32, MIXED),
    "g-ghost-regnetx-3.2gf": (REGNETX_32, Form()),
    "width-regnetx-3.2gf-0.75": (NARROW_REGNETX, None),
    "g-ghost-regnetx-4.0gf-mix": (REGNETX_40, MIXED),
    "g-ghost-regnetx-4.0gf": (REGNETX_40, Form()),
    "g-ghost-regnetx-8.0gf-mix": (REGNETX_80, MIXED),
    "g-ghost-regnetx-16gf-mix": (REGNETX_160, MIXED),
}


@every_row
def test_a_row_is_what_its_layers_add_up_to(row: Row) -> None:
    """Worked out from widths, depths and sizes of maps alone."""
    assert by_hand(*BY_HAND[row.recipe])[0] == row.cost


@pytest.mark.parametrize("row", [row for row in ROWS if row.stages], ids=lambda row: row.recipe)
def test_the_same_sum_without_stages_is_the_original(row: Row) -> None:
    params, macs, acts, *_ = BASELINES[recipe_of(row.recipe).model.source]
    assert by_hand(BY_HAND[row.recipe][0])[0] == Cost(params=params, macs=macs, acts=acts)


@pytest.mark.parametrize(
    ("name", "averaged"),
    [
        ("g-ghost-resnet56", 4_096),
        ("g-ghost-resnet56-mix", 104_448),
        ("g-ghost-resnet56-mix-y1", 133_120),
        ("g-ghost-resnet34", 25_088),
        ("g-ghost-resnet34-mix", 715_008),
        ("g-ghost-regnetx-3.2gf-mix", 1_060_752),
        ("g-ghost-regnetx-4.0gf-mix", 1_281_840),
    ],
)
def test_elements_that_are_averaged(name: str, averaged: int) -> None:
    assert by_hand(*BY_HAND[name])[1] == averaged


def test_the_narrow_regnet_with_a_narrow_stem_would_print_other_activations() -> None:
    """Which is why its recipe excludes the stem, and what the recipe's head says."""
    name = "width-regnetx-3.2gf-0.75"
    recipe = recipe_of(name)
    assert recipe.ghost.exclude == ("stem.0",)
    ghost = recipe.ghost.model_copy(update={"exclude": ()})
    recorded = traced(recipe.model.source)
    narrow = rewrite(recorded, plan(scan_for(recorded, ghost), ghost)).after.cost
    assert narrow == by_hand(replace(NARROW_REGNETX, stem=24))[0]
    assert narrow == Cost(params=8_805_640, macs=1_789_070_976, acts=8_524_824)
    assert as_printed(narrow.acts, "8.6M") == "8.5M"
    head = " ".join(find_recipe(f"papers/{name}").read_text(encoding="utf-8").replace("#", " ").split())
    assert f"{narrow.params:,} parameters, {narrow.macs:,} MACs and {narrow.acts:,} activations" in head


# -- theory beside count -----------------------------------------------------------------------------------------


@cache
def report(name: str) -> Report:
    return compare(ghosted(name))


def off(row: Row, theory: str) -> list[tuple[float, float]]:
    """By how much theory promises more than is counted, of each stage: MACs and parameters."""
    return [
        (
            getattr(stage.theory, f"{theory}_f") * stage.after.macs / stage.before.macs - 1,
            getattr(stage.theory, f"{theory}_p") * stage.after.params / stage.before.params - 1,
        )
        for stage in report(row.recipe).stages
    ]


def rows_of(*parts: str, without: str = "-literal -none") -> list[Row]:
    """Rows of the table's own structure whose name has one of these parts."""
    unwanted = without.split()
    return [r for r in ROWS if r.stages and any(p in r.recipe for p in parts) and not r.recipe.endswith((*unwanted,))]


def named(name: str) -> list[Row]:
    return [row for row in ROWS if row.recipe == name]


@pytest.mark.parametrize("row", [row for row in ROWS if row.stages], ids=lambda row: row.recipe)
def test_a_report_tells_each_stage_with_its_counted_cost(row: Row) -> None:
    found = report(row.recipe)
    assert [stage.target for stage in found.stages] == [swap.target for swap in ghosted(row.recipe).plan.swaps]
    assert [stage.after for stage in found.stages] == [swap.after for swap in ghosted(row.recipe).plan.swaps]
    left = found.before.macs - sum(stage.before.macs for stage in found.stages)
    assert left + sum(stage.after.macs for stage in found.stages) == found.after.macs == row.cost.macs
    assert found.by_stage().rows and found.layers == ()


@pytest.mark.parametrize(
    ("rows", "macs", "params"),
    [
        (named("g-ghost-resnet56-literal"), (-0.04, -0.02), (-0.04, -0.02)),
        (rows_of("resnet56"), (0.16, 0.22), (0.17, 0.265)),
        (rows_of("resnet34"), (0.21, 0.33), (0.21, 0.36)),
        (rows_of("regnetx"), (0.18, 0.47), (0.20, 0.69)),
        (named("g-ghost-resnet56-none"), (0.36, 0.40), (0.37, 0.40)),
    ],
    ids=["literal", "resnet56", "resnet34", "regnetx", "no cheap operation"],
)
def test_equations_13_and_14_promise_more_than_the_tables_structure_keeps(
    rows: list[Row], macs: tuple[float, float], params: tuple[float, float]
) -> None:
    """Their last block is thin and they have no projection; the letter of Eq. 6-10 saves a little more than they say.

    The widest of these are stages of few blocks, of grouped convolutions (which shrink by less than (1−λ)²), and of
    parameters with a mix operation of two layers.
    """
    assert rows
    for by_macs, by_params in (values for row in rows for values in off(row, "approx_r")):
        assert macs[0] < by_macs < macs[1]
        assert params[0] < by_params < params[1]


@pytest.mark.parametrize(
    ("rows", "macs", "params"),
    [
        (rows_of("resnet56", without="-none"), (-1e-9, 1e-9), (0.001, 0.009)),
        (rows_of("resnet34"), (-1e-9, 1e-9), (0, 0.0004)),
        (rows_of("regnetx"), (0.05, 0.13), (0.05, 0.12)),
        (named("g-ghost-resnet56-none"), (0.006, 0.007), (0.008, 0.013)),
    ],
    ids=["resnet56", "resnet34", "regnetx", "no cheap operation"],
)
def test_the_corrected_model_fits(rows: list[Row], macs: tuple[float, float], params: tuple[float, float]) -> None:
    """Exactly in MACs where convolutions are dense, and in parameters but for norms, which shrink by (1−λ) alone.

    Grouped convolutions do, too, which costs a few percent; and a last thin block without ghosts has a projection.
    """
    assert rows
    for by_macs, by_params in (values for row in rows for values in off(row, "r")):
        assert macs[0] <= by_macs <= macs[1]
        assert params[0] <= by_params <= params[1]


@pytest.mark.parametrize("row", rows_of("resnet", "regnetx", without="-literal"), ids=lambda row: row.recipe)
def test_the_model_is_nearer_than_the_equations(row: Row) -> None:
    found = report(row.recipe)
    counted = found.before.macs / found.after.macs
    assert counted * (1 - 1e-9) <= found.theory.r_s < found.theory.approx_r_s
    for model, printed in zip(off(row, "r"), off(row, "approx_r"), strict=True):
        assert abs(model[0]) < abs(printed[0]) and abs(model[1]) < abs(printed[1])


def test_the_ratio_of_a_stage_is_what_groups_make_of_it() -> None:
    """Half of 192 channels is 96, which holds two groups of 36: λ comes out as 0.625."""
    assert [stage.ratio for stage in report("g-ghost-regnetx-3.2gf-mix").stages] == [0.625, 0.5]
