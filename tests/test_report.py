"""The report: theory, count and clock side by side, each worked out another way here."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from zoo import ZOO, Net

from ghostify import Report, compare, convert
from ghostify.costs import Cost
from ghostify.measuring import Accuracy, Comparison
from ghostify.measuring.latency import Latency
from ghostify.networks import resnet8, vgg16_cifar
from ghostify.reporting import report as reporting
from ghostify.tables import quantity, ratio

X = torch.zeros(1, 3, 16, 16)
ALL: dict[str, Any] = {"also": ["stem", "classifier", "pooled", "depthwise"], "min_saving": 0}


def timing(ms: float) -> Latency:
    return Latency(median_ms=ms, low_ms=ms * 0.9, high_ms=ms * 1.2, runs=20, threads=1, device="cpu")


CLOCK = Comparison(before=timing(12.0), after=timing(8.0), speedup=1.53, low=1.4, high=1.6)
TOP1 = {
    "finetuned": Accuracy(top1=0.912, correct=912, total=1000, loss=0.3),
    "original": Accuracy(top1=0.925, correct=925, total=1000, loss=0.2),
    "converted": Accuracy(top1=0.301, correct=301, total=1000, loss=2.0),
}


def a_report(**measured: Any) -> Report:
    """Of plain ghosts, as the papers have them."""
    return compare(convert(resnet8(), X, pointwise="none", **ALL), **measured)


def cells(text: str, row: str) -> list[str]:
    """The cells of the line that begins with ``row``."""
    (line,) = (line for line in text.splitlines() if line.startswith(row + "  "))
    return line.removeprefix(row).split()


# -- theory ----------------------------------------------------------------------------------------------------


def test_theory_of_a_layer_by_hand() -> None:
    """Eq. 4: c·k² / (c·k²/s + (s−1)/s·d²), for 16 inputs, a 3x3 kernel, s = 2 and d = 3."""
    (layer,) = (layer for layer in a_report().layers if layer.target == "layer1.0.conv1")
    assert (layer.geometry, layer.s, layer.cheap) == ("16→16 3x3", 2, "depthwise 3")
    assert layer.theory.r_s == pytest.approx(144 / (72 + 4.5))
    assert layer.theory.r_c == pytest.approx(144 / (72 + 4.5))
    assert layer.theory.approx_r_s == pytest.approx(2 * 16 / (2 + 16 - 1))
    assert layer.before == Cost(params=2304, macs=256 * 2304, acts=256 * 16)
    assert layer.after == Cost(params=8 * 144 + 72, macs=256 * (8 * 144 + 72), acts=256 * 16)


@pytest.mark.parametrize(
    ("cheap", "weights", "told"),
    [
        ("depthwise 3 + pointwise", 72 + 64, "s=2 d=3 pw"),
        ("depthwise 3 + pointwise 3", 72 + 48, "s=2 d=3 pw3"),
        ("pointwise", 64, "s=2 pw"),
        ("pointwise 3", 48, "s=2 pw3"),
    ],
)
def test_theory_of_a_layer_with_a_pointwise_convolution_by_hand(cheap: str, weights: int, told: str) -> None:
    """Its weights by output map, beside those of Eq. 4; the approximation knows of none."""
    report = compare(convert(resnet8(), X, cheap=cheap, **ALL))
    (layer,) = (layer for layer in report.layers if layer.target == "layer1.0.conv1")
    assert layer.theory.r_s == layer.theory.r_c == pytest.approx(144 / (72 + weights / 16))
    assert layer.theory.approx_r_s == pytest.approx(2 * 16 / (2 + 16 - 1))
    assert layer.theory.r_s == pytest.approx(layer.before.macs / layer.after.macs, rel=1e-12)
    assert (layer.cheap, layer.form) == (cheap, told)
    assert told + "  " in str(report.by_layer())


def test_a_report_made_before_there_were_forms_is_told() -> None:
    values = a_report().model_dump()
    for layer in values["layers"]:
        del layer["form"], layer["cheap"]
        layer["d"] = 3
    old = Report.model_validate(values)
    assert str(old.by_layer()) == str(a_report().by_layer())


def test_theory_counts_the_inputs_of_one_filter_and_the_area_of_its_kernel() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, (1, 3), groups=2, bias=False))
    (layer,) = compare(convert(model, torch.zeros(1, 8, 4, 4), d=1, **ALL)).layers
    assert layer.theory.r_s == pytest.approx(12 / (6 + 0.5))
    assert layer.theory.approx_r_s == pytest.approx(2 * 4 / (2 + 4 - 1))


def test_theory_of_the_whole_leaves_the_rest_as_it_is() -> None:
    """A stem of 8·27 MACs stays; 16 filters of 72 shrink by r_s = 72 / (36 + 4.5); maps are 4x4."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 16, 3, padding=1))
    report = compare(
        convert(model, torch.zeros(1, 3, 4, 4), pointwise="none", min_saving=0, include=["1"], also=["classifier"])
    )
    kept, swapped, r_s = 8 * 27, 16 * 72, 72 / 40.5
    assert report.theory.r_s == pytest.approx((kept + swapped) / (kept + swapped / r_s))
    assert report.theory.r_c == pytest.approx((kept + swapped + 16) / (kept + swapped / r_s + 16))
    approximate = 2 * 8 / (2 + 8 - 1)
    assert report.theory.approx_r_s == pytest.approx((kept + swapped) / (kept + swapped / approximate))


@pytest.mark.parametrize("pointwise", ["none", "auto", "full", 2])
@pytest.mark.parametrize("s", [2, 4])
def test_theory_is_the_count_where_s_divides_every_width(s: int, pointwise: str | int) -> None:
    report = compare(convert(resnet8(), X, s=s, d=3, pointwise=pointwise, also=["stem"], min_saving=0))
    assert report.theory.r_s == pytest.approx(report.before.macs / report.after.macs, rel=1e-12)
    assert report.theory.r_c == pytest.approx(report.before.params / report.after.params, rel=1e-12)


def test_theory_is_at_most_three_percent_high_on_the_papers_networks() -> None:
    """VGG16 of Table 5 at s = 3, where s divides no width."""
    model, x = vgg16_cifar().to("meta"), torch.zeros(1, 3, 32, 32, device="meta")
    report = compare(convert(model, x, s=3, d=3, also=["stem"], min_saving=0))
    assert 1 < report.theory.r_s / (report.before.macs / report.after.macs) < 1.03
    assert 1 < report.theory.r_c / (report.before.params / report.after.params) < 1.03


@pytest.mark.parametrize("net", ZOO, ids=lambda net: net.name)
def test_a_report_is_made_of_every_network(net: Net) -> None:
    """Its layers are the plan's swaps, its costs the counted ones, and it survives JSON."""
    ghosted = convert(net.build(), net.example(), **ALL)
    report = compare(ghosted)
    assert [layer.target for layer in report.layers] == [swap.target for swap in ghosted.plan.swaps]
    assert [layer.after for layer in report.layers] == [swap.after for swap in ghosted.plan.swaps]
    assert (report.before, report.after) == (ghosted.before.cost, ghosted.after.cost)
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert all(swap.target in str(report) for swap in ghosted.plan.swaps)


# -- what is told ----------------------------------------------------------------------------------------------


def test_the_summary_puts_count_theory_and_approximation_side_by_side() -> None:
    report = a_report()
    text = str(report.summary())
    theory = report.theory
    rows = (("params", "params", theory.r_c, theory.approx_r_c), ("MACs", "macs", theory.r_s, theory.approx_r_s))
    for row, name, promised, approximate in rows:
        before, after = getattr(report.before, name), getattr(report.after, name)
        numbers = [quantity(before), quantity(after), ratio(before, after)]
        assert cells(text, row) == [*numbers, f"{promised:.2f}x", f"{approximate:.2f}x"]
    assert len(cells(text, "activations")) == 3
    assert "latency" not in text and "accuracy" not in text
    assert text.splitlines()[0] == "CifarResNet on 1x3x16x16: 8 layers became C-Ghost modules"


def test_the_clock_stands_beside_theory() -> None:
    report = a_report(latency=CLOCK)
    row = cells(str(report.summary()), "latency (1 thread)")
    assert row[:5] == ["12.00", "ms", "8.00", "ms", "1.53x"]
    assert row[5] == f"{report.theory.r_s:.2f}x"


def test_accuracy_is_told_in_the_order_it_was_measured() -> None:
    lines = [line for line in str(a_report(accuracy=TOP1).summary()).splitlines() if line.startswith("accuracy")]
    assert [line.split()[-1] for line in lines] == ["92.50%", "30.10%", "91.20%"]
    assert [line.partition("  ")[0] for line in lines] == [f"accuracy {stage}" for stage in reporting.STAGES.values()]


def test_notes_and_uncounted_operations_are_told() -> None:
    class Transform(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.fft.fft2(x).abs())

    report = compare(convert(Transform(nn.Conv2d(3, 8, 3)), X, **ALL), notes=["measured on a Sunday"])
    assert report.notes == ("Not counted: fft_fft2 (1x).", "measured on a Sunday")
    assert all(note in str(report.summary()) for note in report.notes)


def test_layer_by_layer_tells_counted_and_promised_ratios() -> None:
    report = a_report()
    text = str(report.by_layer())
    layer = report.layers[1]
    row = cells(text, layer.target)
    assert row[0] + " " + row[1] == layer.geometry
    assert row[-2:] == [f"{layer.theory.r_s:.2f}x", f"{layer.theory.approx_r_s:.2f}x"]
    assert ratio(layer.before.macs, layer.after.macs) in row


def test_a_report_survives_json_with_everything_measured() -> None:
    report = a_report(latency=CLOCK, accuracy=TOP1, notes=["a note"])
    assert list(report.accuracy) == ["original", "converted", "finetuned"]
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert json.loads(report.model_dump_json())["accuracy"]["original"]["top1"] == 0.925


@pytest.mark.parametrize("loss", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_survives_json(loss: float) -> None:
    """As where the network rules a label out: its score is -inf."""
    told = a_report(accuracy={"original": Accuracy(top1=0.5, correct=1, total=2, loss=loss)}).model_dump_json()
    json.loads(told, parse_constant=pytest.fail)
    read = Report.model_validate_json(told).accuracy["original"].loss
    assert read == loss or (read != read and loss != loss)


def test_a_report_with_an_unknown_key_is_no_report() -> None:
    values = a_report().model_dump(mode="json") | {"speed": 3}
    with pytest.raises(ValidationError, match="speed"):
        Report.model_validate(values)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00k"), (12_345, "12.35k"), (4_089_184_256, "4.09G"), (-2_500_000, "-2.50M")],
)
def test_quantities_are_in_the_fields_units(value: int, text: str) -> None:
    assert quantity(value) == text


def test_a_ratio_by_nothing_is_a_dash() -> None:
    assert (ratio(3, 2), ratio(0, 2), ratio(3, 0)) == ("1.50x", "0.00x", "-")
