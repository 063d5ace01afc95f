"""A sweep: what it makes, what it says and draws of it, and that an interruption loses nothing that was done."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import Cli, refused

from ghostify.clock import Clock, Piece, Place, Time
from ghostify.costs import Cost
from ghostify.errors import RecipeError, RunError
from ghostify.judging import Judge
from ghostify.measuring import Accuracy, Comparison, Latency, Timings
from ghostify.recipe import SweepSettings
from ghostify.reporting.front import front
from ghostify.reporting.sweep import FAMILIES, Kept, Point, Sweep, read_sweep
from ghostify.reporting.sweep_files import render_front, render_sweep, write_sweep
from ghostify.scanning import scan
from ghostify.sweeping import _Sweeping, wanted
from ghostify.tracing import Recording

HOSTILE = "</svg><script>alert(1)</script>\"'&amp;"


def accuracy(top1: float) -> Kept:
    return Kept(accuracy=Accuracy(top1=top1, correct=round(1000 * top1), total=1000, loss=0.5), agreement=top1)


def timed(share: float) -> Comparison:
    before, after = (
        Latency(median_ms=ms, low_ms=ms, high_ms=ms, runs=9, threads=1, device="cpu") for ms in (10, 10 * share)
    )
    return Comparison(before=before, after=after, speedup=1 / share, low=0.97 / share, high=1.03 / share)


def a_point(name: str, family: Any, macs: float, top1: float, share: float | None = None) -> Point:
    cost = Cost(macs=round(macs * 1e6), params=1000, acts=10)
    latency = timed(share) if share else None
    return Point(name=name, family=family, cost=cost, kept=accuracy(top1), latency=latency, plan=f"plans/{name}.yaml")


def a_sweep(clock: bool = True, **changed: Any) -> Sweep:
    """Planned networks, ghosts that fall behind, and a narrow network that lost nearly everything."""
    points = (
        a_point("macs=0.8x", "plan", 8, 0.87, 0.85),
        a_point("macs=0.6x", "plan", 6, 0.85, 0.7),
        a_point("macs=0.4x", "plan", 4, 0.81, 0.5),
        a_point("s=2", "c-ghost", 5.5, 0.83, 0.69),
        a_point("s=3", "c-ghost", 3.9, 0.77, 0.55),
        a_point("width=0.77", "width", 5.9, 0.3, 0.65),
    )
    if not clock:
        points = tuple(point.model_copy(update={"latency": None}) for point in points)
    values: dict[str, Any] = {
        "network": "resnet20",
        "source": "ghostify:resnet20",
        "targets": ("0.8x", "0.6x", "0.4x"),
        "of": "macs",
        "before": Cost(macs=10_000_000, params=2000, acts=20),
        "original": Kept(accuracy=Accuracy(top1=0.88, correct=880, total=1000, loss=0.4)),
        "place": "eager, 1 thread" if clock else "",
        "points": points,
        "complete": True,
    }
    return Sweep(**(values | changed))


# -- what is made ----------------------------------------------------------------------------------------------


def test_neighbours_are_what_one_would_set_for_the_same_shares() -> None:
    made = {one.name: (one.family, one.settings) for one in wanted(SweepSettings(targets=("0.5x", "0.25x"), of="macs"))}
    assert made == {
        "macs=0.5x": ("plan", {}),
        "macs=0.25x": ("plan", {}),
        "s=2": ("c-ghost", {"method": "c-ghost", "s": 2}),
        "s=4": ("c-ghost", {"method": "c-ghost", "s": 4}),
        "thin=0.5": ("thin", {"method": "thin", "width": 0.5}),
        "thin=0.25": ("thin", {"method": "thin", "width": 0.25}),
        "width=0.71": ("width", {"method": "width", "width": 0.71}),
        "width=0.5": ("width", {"method": "width", "width": 0.5}),
    }
    alone = SweepSettings(targets=("0.5x",), neighbours=False)
    assert [one.name for one in wanted(alone)] == ["latency=0.5x"]


@pytest.mark.parametrize("typed", ["0.8x,0.6x", ["0.8x", "0.6x"], " 0.8x , 0.6x,0.8x", ("0.8x,0.6x",)])
def test_targets_are_written_with_commas_or_one_by_one(typed: Any) -> None:
    assert SweepSettings(targets=typed).targets == ("0.8x", "0.6x")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("", "no target"),
        ("1.5x", "0.67x"),
        ("300M", "'300M' is an amount"),
        ("half", "tells no amount"),
        (7, "targets"),
    ],
)
def test_what_is_no_share_is_refused(typed: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        SweepSettings(targets=typed)


# -- what is said and drawn ------------------------------------------------------------------------------------


def test_the_table_has_every_network_and_leaves_out_what_was_not_measured() -> None:
    table = a_sweep().table()
    assert [row[0] for row in table.rows] == ["original", *(point.name for point in a_sweep().points)]
    assert table.rows[2][table.columns.index("faster")] == f"{1 / 0.7:.2f}x"
    untimed = a_sweep(clock=False).table()
    assert not {"latency", "faster"} & {*untimed.columns} and "timed on" not in untimed.title
    assert "macs=0.1x was not made: too little" in str(a_sweep(failed={"macs=0.1x": "too little"}).table())
    assert "interrupted" in str(a_sweep(complete=False).table())


def test_the_verdict_compares_with_the_best_that_costs_about_as_much() -> None:
    """At 70 % of the time: s = 2 takes 69 % and is better than the narrower network, which is cheaper still."""
    said = a_sweep().verdict
    assert "70% of the time, macs=0.6x has 85.00% accuracy" in said and "with 69%, s=2, the best" in said
    assert said.endswith("has 83.00% accuracy.")
    assert "60% of the multiply-adds" in a_sweep(clock=False).verdict
    assert "by hand" not in a_sweep(points=a_sweep().points[:3]).verdict
    assert a_sweep(points=()).verdict == ""


@pytest.mark.parametrize(("high", "doubted"), [(1.4, False), (2.2, True)])
def test_times_that_differ_from_turn_to_turn_are_doubted(high: float, doubted: bool) -> None:
    sweep = a_sweep()
    points = []
    for point in sweep.points:
        assert point.latency is not None
        latency = point.latency.model_copy(update={"low": 1.0, "high": high})
        points.append(point.model_copy(update={"latency": latency}))
    assert ("These times are rough (1.00x to 2.20x" in a_sweep(points=tuple(points)).verdict) == doubted


@pytest.mark.parametrize("clock", [True, False])
def test_cheaper_is_further_left_and_better_is_further_up(clock: bool) -> None:
    sweep = a_sweep(clock)
    drawn = front(sweep)
    assert drawn is not None
    for trail in drawn.trails:
        points = sweep.of_family(trail.family)
        assert [mark.x for mark in trail.marks] == sorted(mark.x for mark in trail.marks)
        for point, mark in zip(points, trail.marks, strict=True):
            assert drawn.left <= mark.x <= drawn.right and drawn.top <= mark.y <= drawn.bottom
            assert mark.low <= mark.x <= mark.high and mark.y >= drawn.original[1]
            assert mark.below == (point.name == "width=0.77")
    (planned,) = (trail for trail in drawn.trails if trail.family == "plan")
    heights = [mark.y for mark in planned.marks]
    assert heights == sorted(heights, reverse=True) and heights[0] < drawn.bottom - 20, "the plans are not pressed flat"
    assert len({trail.label_y for trail in drawn.trails}) == len(drawn.trails)


def test_agreement_or_a_metric_of_ones_own_is_drawn_where_there_is_no_accuracy() -> None:
    agreeing = tuple(
        point.model_copy(update={"kept": Kept(agreement=point.kept.agreement)}) for point in a_sweep().points
    )
    drawn = front(a_sweep(points=agreeing, original=Kept()))
    assert drawn is not None and drawn.original_label == "original: 100%" and drawn.y_axis == "agreement"
    nothing = tuple(point.model_copy(update={"kept": Kept()}) for point in agreeing)
    assert front(a_sweep(points=nothing, original=Kept())) is None
    assert front(a_sweep(points=())) is None


def test_the_picture_stands_alone_and_the_page_needs_nothing_else() -> None:
    picture = render_front(a_sweep())
    assert picture is not None
    drawn = ET.fromstring(picture)
    assert len(drawn.findall(".//{*}circle")) == len(a_sweep().points) + 1
    texts = {text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {*FAMILIES.values()} - {"thinner blocks"} <= texts and "0.6x: 85%" in texts
    page = render_sweep(a_sweep(network=HOSTILE, failed={HOSTILE: HOSTILE}, notes=(HOSTILE,)))
    assert "<script>alert" not in page and "not complete" not in page
    assert "This sweep is not complete" in render_sweep(a_sweep(complete=False, points=()))
    assert "https://" not in page and page.count("http://") == page.count('xmlns="http://www.w3.org/2000/svg"')


def test_a_sweep_survives_its_file(tmp_path: Path) -> None:
    write_sweep(tmp_path, a_sweep())
    assert read_sweep(tmp_path) == a_sweep()
    assert {file.name for file in tmp_path.iterdir()} == {"sweep.json", "sweep.html", "sweep.svg"}
    (tmp_path / "sweep.json").write_text(json.dumps({**json.loads(a_sweep().model_dump_json()), "format": 9}))
    with pytest.raises(RunError, match="format 9"):
        read_sweep(tmp_path)


# -- the command -----------------------------------------------------------------------------------------------

SWEPT = ("sweep", "mine:tiny", "--data", "digits", "--input", "3,8,8", "--calibration", "32")
MACS = ("--of", "macs", "--targets", "0.8x,0.5x")


def test_a_sweep_is_made_and_each_of_its_plans_can_be_carried_out(cli: Cli) -> None:
    answer = cli(*SWEPT, *MACS, "--json")
    found = json.loads(answer.out)
    assert answer.code == 0 and found["folder"] == "sweeps/tiny" and found["complete"]
    points = {point["name"]: point for point in found["points"]}
    assert {*points} | {*found["failed"]} >= {"macs=0.8x", "macs=0.5x", "s=2", "width=0.71"}
    for name, share in (("macs=0.8x", 0.8), ("macs=0.5x", 0.5)):
        assert points[name]["cost"]["macs"] <= share * found["before"]["macs"]
    plan = str(Path(found["folder"]) / points["macs=0.5x"]["plan"])
    again = json.loads(cli("compress", "mine:tiny", "--input", "3,8,8", "--plan", plan, "--json").out)
    assert again["after"]["macs"] == points["macs=0.5x"]["cost"]["macs"]
    assert (Path(found["folder"]) / "harms.json").is_file(), "measured once, for all targets"


def test_an_interrupted_sweep_goes_on_and_ends_as_one_that_was_not(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*SWEPT, *MACS, "--no-neighbours")
    whole = json.loads(cli(*options, "-o", "whole", "--json").out)
    done, agreement = [], Judge.agreement

    def stopped(self: Judge, module: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(module)
        return agreement(self, module)

    monkeypatch.setattr(Judge, "agreement", stopped)
    answer = cli(*options, "-o", "part")
    assert answer.code == 130 and "ghostify sweep --resume part" in answer.err
    left = read_sweep("part")
    assert [point.name for point in left.points] == ["macs=0.8x"] and not left.complete
    monkeypatch.setattr(Judge, "agreement", agreement)
    resumed = json.loads(cli("sweep", "--resume", "part", "--json").out)
    assert resumed["points"] == whole["points"] and resumed["complete"]
    refused(cli("sweep", "--resume", "part"), "finished already", "sweep.html")


def macs_in_time(recording: Recording) -> float:
    return scan(recording).cost.macs / 1e5


def test_the_time_left_is_not_told_by_the_network_that_measures_harm_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first takes 1,000 seconds, each other 10."""
    clock, said = [0.0], []

    def noted(sweeping: Any, one: Any) -> None:
        clock[0] += 10 if sweeping.found.notes else 1000
        sweeping.found = sweeping.found.model_copy(update={"notes": ("harm is known",)})

    monkeypatch.setattr("ghostify.sweeping.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(_Sweeping, "_note", noted)
    monkeypatch.setattr(_Sweeping, "_time", lambda sweeping: None)
    monkeypatch.setattr(_Sweeping, "_put_down", lambda sweeping, complete: None)
    recipe = SimpleNamespace(sweep=SweepSettings(targets=("0.5x", "0.3x", "0.2x", "0.1x"), of="macs", neighbours=False))
    job: Any = SimpleNamespace(recipe=recipe, watcher=SimpleNamespace(say=said.append))
    _Sweeping(job, a_sweep()).run()
    assert [line.partition("(")[2] for line in said] == ["", "", "about 20 s left)", "about 10 s left)"]


def test_with_a_clock_networks_are_planned_and_drawn_by_time(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock by which a multiply-add takes ten nanoseconds, whatever it is part of."""

    def times(self: Clock, pieces: Iterable[Piece], told: Any = None) -> dict[Piece, Time]:
        taken = {}
        for piece in pieces:
            taps = math.prod(piece.kernel) * piece.reads[1] // piece.groups
            taken[piece] = Time(ms=taps * piece.outputs * math.prod(piece.reads[2:]) / 1e5, noise=0.0)
        return taken

    def together(networks: dict[str, Recording], place: Place) -> Timings:
        return Timings({name: [macs_in_time(network)] * 5 for name, network in networks.items()}, 1, "cpu")

    monkeypatch.setattr(Clock, "times", times)
    monkeypatch.setattr("ghostify.budget.timing.session_of", lambda recording, place: recording)
    monkeypatch.setattr("ghostify.budget.timing.in_turns", together)
    monkeypatch.setattr("ghostify.sweeping.side_by_side", together)
    answer = cli(*SWEPT, "--measure", "--targets", "0.8x,0.6x", "--no-neighbours", "-o", "timed")
    assert answer.code == 0, answer.err
    found = read_sweep("timed")
    assert found.by == "latency" and found.place == "eager on 1 thread"
    for point, most in zip(found.points, (0.8, 0.6), strict=True):
        assert point.latency and found.share(point) == pytest.approx(point.cost.macs / found.before.macs)
        assert most - 0.2 < found.share(point) <= 1.03 * most


def test_what_a_sweep_cannot_do_is_told_before_any_long_work(cli: Cli) -> None:
    refused(cli("sweep", "mine:tiny", "--input", "3,8,8", *MACS), "A sweep needs images")
    refused(cli(*SWEPT, "--targets", "0.5x"), "latency=0.5x asks for time")
    refused(cli(*SWEPT, *MACS, "--set", "budget.target=macs=0.5x"), "targets of its own", "leave out budget.target")
    refused(cli(*SWEPT, "--of", "mac", "--targets", "0.5x"), "--of")
    assert not Path("sweeps").exists() or not any(Path("sweeps").iterdir())
