"""The clock: what runs in a layer's place, what it takes, and that each geometry is measured once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_clock import by_macs, macs_of
from test_parts import Detector
from torch import nn
from zoo import ZOO, Net

import ghostify
from ghostify.clock import Cache, Clock, Piece, Place, Time, clock, pieces_of, surroundings_in, total
from ghostify.clock.building import ACTIVATIONS, Frame, given_by, network_of
from ghostify.clock.piece import Pool
from ghostify.ghosts import CGhost
from ghostify.measuring import Timings
from ghostify.networks import resnet8
from ghostify.planning import Plan
from ghostify.rules import CGhostSwap, by_rule
from ghostify.runtimes import Session
from ghostify.tracing import Recording, record_parts, trace

CONV = Piece(kind="conv", reads=(1, 8, 6, 6), outputs=16, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))
PIECES = {
    "convolution": CONV,
    "with what follows": CONV.model_copy(update={"act": "relu", "add": True}),
    "with a norm": CONV.model_copy(update={"norm": True, "act": "hardswish"}),
    "pooled": CONV.model_copy(
        update={"act": "prelu", "pool": Pool(kind="max", kernel=(2, 2), stride=(2, 2), padding=(0, 0))}
    ),
    "depthwise": CONV.model_copy(update={"outputs": 8, "groups": 8}),
    "of one dimension": Piece(
        kind="conv", reads=(2, 8, 6), outputs=4, kernel=(3,), stride=(2,), padding=(1,), dilation=(1,), add=True
    ),
    "of three": Piece(
        kind="conv",
        reads=(1, 4, 6, 6, 6),
        outputs=4,
        kernel=(1, 1, 1),
        stride=(1,) * 3,
        padding="same",
        dilation=(1,) * 3,
    ),
    "transposed": Piece(
        kind="transposed",
        reads=(1, 8, 6, 6),
        outputs=4,
        kernel=(2, 2),
        stride=(2, 2),
        padding=(0, 0),
        output_padding=(1, 1),
        dilation=(1, 1),
    ),
    "linear": Piece(kind="linear", reads=(2, 8), outputs=4, act="gelu"),
    "linear on maps": Piece(kind="linear", reads=(1, 6, 6, 8), outputs=4, add=True),
}


# -- what runs in a layer's place -------------------------------------------------------------------------------


def pieces_by(plan: Plan | None, model: nn.Module, example: Any) -> list[Piece]:
    """All pieces of a network that a plan of C-Ghost modules and thinner blocks was carried out on."""
    recording = Recording.of(trace(model, example))
    around = surroundings_in(recording)
    seen = ghostify.scan(recording, **({"whole": True, "stream": "kept"} if plan else {}))
    swaps: dict[str, CGhostSwap] = {}
    for rule, own in by_rule(plan.swaps if plan else ()):
        seen = rule.after(seen, own)
        swaps |= {swap.target: swap for swap in own if isinstance(swap, CGhostSwap)}
    return [piece for site in seen.sites for piece in pieces_of(site, around[site.name], swaps.get(site.name))]


def layers_that_run(module: nn.Module, example: Any) -> Counter[tuple[Any, ...]]:
    """What the convolutions of a network are given and what they are, ghosts as a whole."""
    found: Counter[tuple[Any, ...]] = Counter()

    def note(layer: Any, given: tuple[Any, ...], gives: Any) -> None:
        m = layer.m if isinstance(layer, CGhost) else None
        found[tuple(given[0].shape), gives.shape[1], m, m is None and layer.bias is not None] += 1

    inner = {
        part for ghost in module.modules() if isinstance(ghost, CGhost) for part in ghost.modules() if part != ghost
    }
    layers = (part for part in module.modules() if isinstance(part, CGhost | nn.Conv2d | nn.Linear))
    hooks = [layer.register_forward_hook(note) for layer in layers if layer not in inner]
    module(example)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"s": 4, "cheap": "pointwise", "min_saving": 0},
        {"cheap": "depthwise 3", "min_saving": 0},
        {"cheap": "pointwise 4", "min_saving": 0},
        {"method": "thin", "width": 0.5},
        {"method": "mixed", "width": 0.5, "min_saving": 0},
    ],
    ids=str,
)
def test_pieces_are_the_layers_of_the_inference_form(settings: dict[str, Any]) -> None:
    model, example = resnet8().eval(), torch.randn(1, 3, 32, 32)
    ghosted = ghostify.convert(model, example, settings) if settings else None
    runs = ghostify.optimize(ghosted) if ghosted else ghostify.optimize(model, example)
    pieces = pieces_by(ghosted.plan if ghosted else None, model, example)
    told = Counter(
        (piece.reads, piece.outputs, ghost.m if ghost else None, not ghost and piece.bias)
        for piece in pieces
        for ghost in [
            piece.ghost and CGhost(1, piece.outputs, 1, s=piece.ghost.s, cheap=piece.ghost.cheap, m=piece.ghost.m)
        ]
    )
    assert told == layers_that_run(runs.module, example)
    assert sum(piece.add for piece in pieces) == 3, "each block adds once"


@pytest.mark.parametrize("net", ZOO, ids=lambda net: net.name)
def test_every_layer_of_every_net_has_pieces_of_its_cost(net: Net) -> None:
    recording = Recording.of(trace(net.build(), net.example()))
    around = surroundings_in(recording)
    for site in ghostify.scan(recording).sites:
        pieces = pieces_of(site, around.get(site.name, ()))
        layers: list[Any] = [network_of(Frame.of(piece), piece).piece for piece in pieces]
        costs = [macs_of(one.layer, torch.randn(piece.reads)) for one, piece in zip(layers, pieces, strict=True)]
        assert not pieces or sum(costs) == site.cost.macs


def test_layers_of_parts_are_known_by_their_names_in_the_whole() -> None:
    recording = record_parts(Detector(), torch.rand(1, 3, 32, 32), "")
    around = surroundings_in(recording)
    assert all(pieces_of(site, around[site.name]) for site in ghostify.scan(recording).sites if site.calls)


POOLS = {
    "module": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "function": lambda x: nn.functional.max_pool2d(x, 3, 2, 1, 1, True),
    "by name": lambda x: nn.functional.max_pool2d(x, kernel_size=3, stride=2, padding=1, ceil_mode=True),
    "average": nn.AvgPool2d((3, 3), 2, 1, ceil_mode=True),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_behind_a_layer_is_told_as_it_runs(name: str) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.pool = nn.Conv2d(3, 8, 3), nn.PReLU(8), POOLS[name]

        def forward(self, x: Any) -> Any:
            return self.pool(self.act(self.conv(x)))

    (call,) = surroundings_in(Recording.of(trace(Pooled().eval(), torch.zeros(1, 3, 12, 12))))["conv"]
    kind = "avg" if name == "average" else "max"
    assert call.pool == Pool(kind=kind, kernel=(3, 3), stride=(2, 2), padding=(1, 1), ceil=True)
    assert call.act == "prelu"


def test_a_layer_that_is_called_twice_runs_twice() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    recording = Recording.of(trace(nn.Sequential(shared, nn.ReLU(), shared), torch.randn(1, 4, 8, 8)))
    (site,) = ghostify.scan(recording).sites
    first, second = pieces_of(site, surroundings_in(recording)[site.name])
    assert (first.act, second.act) == ("relu", "")


def test_a_piece_is_measured_at_the_batch_of_its_place() -> None:
    recording = Recording.of(trace(resnet8(), torch.randn(2, 3, 32, 32)))
    site = ghostify.scan(recording).sites[0]
    assert pieces_of(site, surroundings_in(recording, batch=16)[site.name])[0].reads == (16, 3, 32, 32)


# -- a piece in its frame -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES.keys())
def test_a_frame_adds_its_own_cost_alone(piece: Piece) -> None:
    frame = Frame.of(piece)
    within, alone = network_of(frame, piece), network_of(frame)
    layer: Any = within.piece
    own = macs_of(layer.layer, torch.randn(piece.reads))
    assert macs_of(within, *frame.inputs) == macs_of(alone, *frame.inputs) + own
    assert within(*frame.inputs).numel() <= math.prod(given_by(piece)), "little is read of what a piece gives"


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_are_those_that_recordings_name(act: str) -> None:
    traced = trace(nn.Sequential(nn.Conv2d(3, 4, 1), ACTIVATIONS[act]()), torch.randn(1, 3, 4, 4))
    (around,) = surroundings_in(Recording.of(traced))["0"]
    assert around.act == act


# -- measured once ------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sessions take as many milliseconds as thousands of multiply-adds, and those that ran are noted."""
    return by_macs(monkeypatch)


def test_times_are_those_of_the_pieces_alone(measured: list[str], tmp_path: Path) -> None:
    times = Clock(Place(), tmp_path).times([CONV, CONV, PIECES["linear"]])
    assert {piece: time.ms for piece, time in times.items()} == {
        CONV: pytest.approx(16 * 8 * 9 * 36 / 1e3),
        PIECES["linear"]: pytest.approx(2 * 8 * 4 / 1e3),
    }
    assert total([CONV, CONV], times).ms == pytest.approx(2 * times[CONV].ms)


def test_a_geometry_is_measured_once_on_a_machine(measured: list[str], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    first = Clock(Place(), tmp_path).times(PIECES.values(), lambda done, of: told.append((done, of)))
    assert told[-1] == (len(PIECES), len(PIECES)) == (len(measured), len(measured))
    assert Clock(Place(), tmp_path).times(PIECES.values()) == first
    assert len(measured) == len(PIECES)
    Clock(Place(threads=2), tmp_path).times([CONV])
    assert len(measured) == len(PIECES) + 1


def test_a_small_group_has_company_and_a_large_one_none(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(clock, "MOST_BYTES", 1)  # so that each piece is a group, as pieces of a large batch are
    Clock(Place(), tmp_path / "small").times(PIECES.values())
    assert len(measured) == sum(range(1, len(PIECES) + 1)), "each with all that are known"
    measured.clear()
    monkeypatch.setattr(clock, "FLUSHING_BYTES", 1)
    Clock(Place(), tmp_path / "large").times(PIECES.values())
    assert len(measured) == len(PIECES), "each is timed once"


@pytest.mark.parametrize("damage", ["", "[]", '{"format": 1}', "\x00" * 100])
def test_a_damaged_file_is_measured_anew(damage: str, measured: list[str], tmp_path: Path) -> None:
    place = Place()
    before = Clock(place, tmp_path).times([CONV])
    Cache(place, tmp_path).path.write_text(damage)
    assert Clock(place, tmp_path).times([CONV]) == before
    assert Cache(place, tmp_path).read() == before


def test_a_file_of_another_place_is_measured_anew(measured: list[str], tmp_path: Path) -> None:
    here, there = Cache(Place(), tmp_path), Cache(Place(threads=2), tmp_path)
    there.add({CONV: Time(ms=1.0)})
    there.path.rename(here.path)
    assert here.read() == {}


def test_two_writers_keep_a_whole_file(tmp_path: Path) -> None:
    one, other = Cache(Place(), tmp_path), Cache(Place(), tmp_path)
    one.add({CONV: Time(ms=1.0)})
    other.add({PIECES["linear"]: Time(ms=2.0)})
    assert one.read() == {CONV: Time(ms=1.0), PIECES["linear"]: Time(ms=2.0)}
    assert [path.name for path in tmp_path.iterdir()] == [one.path.name]


def test_a_disk_that_cannot_be_written_to_loses_nothing(measured: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert CONV in Clock(Place(), tmp_path / "file" / "folder").times([CONV])


def test_the_folder_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GHOSTIFY_CACHE", str(tmp_path))
    assert Cache(Place()).path.parent == tmp_path


def test_noise_tells_how_far_rounds_are_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def drifting(sessions: Mapping[str, Session], **asked: Any) -> Timings:
        turns = {name: [(10.0 if name.startswith("piece") else 1.0) + i // 4 for i in range(20)] for name in sessions}
        return Timings(turns, 1, "cpu")

    monkeypatch.setattr(clock, "timed", drifting)
    found = Clock(Place(), tmp_path).times([CONV])[CONV]
    assert (found.ms, found.noise) == (9.0, 0.0), "what drifts alike for a frame with and without its piece cancels"


def test_what_a_busy_machine_tells_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def disturbed(sessions: Mapping[str, Session], **asked: Any) -> Timings:
        turns = {name: [10.0 + 9 * name.startswith("piece") * (i // 4) for i in range(20)] for name in sessions}
        return Timings(turns, 1, "cpu")

    monkeypatch.setattr(clock, "timed", disturbed)
    found = Clock(Place(), tmp_path).times([CONV])[CONV]
    assert found.noise > 0.1 * found.ms
    assert Cache(Place(), tmp_path).read() == {}


def test_errors_of_one_piece_add_up_and_those_of_two_do_not() -> None:
    times = {CONV: Time(ms=1.0, noise=0.3), PIECES["linear"]: Time(ms=1.0, noise=0.4)}
    assert total([CONV, CONV], times).noise == pytest.approx(0.6)
    assert total(times, times).noise == pytest.approx(0.5)
