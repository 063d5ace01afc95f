"""One recording of a network, whole or in parts: each verb takes either, and a conversion records and scans it once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_parts import ANY, METHODS, NETS, SIZES, Detector, X
from torch import Tensor, fx, nn
from zoo import ZOO

import ghostify
from ghostify import convert, convert_parts, plan, record, rewrite, rewrite_fitted, scan, trace
from ghostify.errors import FitError, TraceError
from ghostify.scanning import whole
from ghostify.tracing import Recording, other_runs, sized_as
from ghostify.tracing.convolved import Convolved
from ghostify.tracing.training import speaks_of_training

ALL = {**ANY, "also": ["stem", "classifier"]}
CONVERTED = [net for net in ZOO if net.name in {"residual-stage", "stacked"}]
"""Of both, every method changes something: they have convolutions and a stage."""
IMAGES = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a network was recorded and scanned."""
    counts = {"recordings": 0, "scans": 0}

    def counting(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[what] += 1
            return function(*args, **kwargs)

        return call

    module = sys.modules["ghostify.tracing.trace"]
    monkeypatch.setattr(module, "record", counting("recordings", module.record))
    monkeypatch.setattr(whole, "_made", counting("scans", whole._made))
    return counts


def sized(net: Any, images: int) -> Tensor:
    return torch.rand(images, *net.example().shape[1:], generator=torch.Generator().manual_seed(0))


# -- how often -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["none", "data", "weights", "polish"])
@pytest.mark.parametrize("method", ["c-ghost", "plain", "g-ghost", "both"])
@pytest.mark.parametrize("net", CONVERTED, ids=lambda net: net.name)
def test_a_conversion_records_and_scans_the_original_once_and_the_result_once(
    net: Any, method: str, fit: str, counted: dict[str, int]
) -> None:
    settings = {"method": "c-ghost", "pointwise": "none"} if method == "plain" else {"method": method}
    if method != "g-ghost":
        settings["min_saving"] = 0  # type: ignore[assignment]
    images = {"images": sized(net, 16)} if fit in ("data", "polish") else {}
    how = {
        "none": "none",
        "data": "data",
        "weights": {"how": "weights", "images": 16},
        "polish": {"how": "polish", "seconds": 0.1},
    }
    convert(net.build().eval(), sized(net, 1), fit=how[fit], **images, **settings)
    assert counted == {"recordings": 2, "scans": 2}


@pytest.mark.parametrize(("method", "fit"), [("c-ghost", "data"), ("g-ghost", "data"), ("c-ghost", "none")])
def test_code_that_asks_for_sizes_is_recorded_once_more_for_the_fit(
    method: str, fit: str, counted: dict[str, int]
) -> None:
    """For what it asks may be written into the graph; where it is not the batch, the rewritten graph holds all the
    same."""
    net = next(net for net in ZOO if net.name == "resnet20")
    images = {"images": sized(net, 16)} if fit == "data" else {}
    every = {"min_saving": 0} if method == "c-ghost" else {}
    convert(net.build().eval(), sized(net, 1), method=method, fit=fit, **images, **every)
    assert counted == {"recordings": 3 if fit == "data" else 2, "scans": 2}


def test_the_chapters_one_by_one_share_a_scan(counted: dict[str, int]) -> None:
    recording = record(Plain().eval(), X)
    rewrite(recording, plan(scan(recording), **ALL))
    assert counted == {"recordings": 2, "scans": 2}


def test_the_scan_of_a_result_tells_costs_and_says_so_where_stages_are_asked_of_it() -> None:
    net = next(net for net in ZOO if net.name == "residual-stage")
    ghosted = convert(net.build().eval(), sized(net, 1), min_saving=0, pointwise="none")
    again = scan(ghosted.module, sized(net, 1))
    assert ghosted.after == again.model_copy(update={"stages": (), "searched": False}) and again.stages
    with pytest.raises(ghostify.errors.PlanError, match="stages were not looked for"):
        plan(ghosted.after, method="g-ghost")


# -- the other runs --------------------------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()).mean((2, 3))


def _doubled(module: nn.Module, y: Tensor) -> Tensor:
    return y * 2 if module.training else y


class Method(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.after(super().forward(x))

    def after(self, y: Tensor) -> Tensor:
        return F.dropout(y, 0.5, self.training)


class Function(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return _doubled(self, super().forward(x))


class Hook(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda module, args, y: y * (2 if module.training else 1))


class OwnTrain(Plain):
    def train(self, mode: bool = True) -> OwnTrain:
        self.scale = 2 if mode else 1
        return super().train(mode)


@pytest.mark.parametrize("net", [Method, Function, Hook, OwnTrain])
def test_code_that_asks_for_the_mode_is_found_however_it_asks(net: type[nn.Module]) -> None:
    assert speaks_of_training(net())


def test_code_that_asks_for_nothing_is_recorded_in_no_other_run(counted: dict[str, int]) -> None:
    assert not speaks_of_training(Plain())
    assert other_runs(trace(Plain(), X)) == [] and counted["recordings"] == 1


class Grouped(Plain):
    """Writes the batch size into its graph."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return super().forward(x.view(n, 1, c, h, w).flatten(1, 2))


@pytest.mark.parametrize("net", [Plain, Grouped])
def test_a_run_at_another_batch_size_has_the_shapes_of_one_recorded_there(net: type[nn.Module]) -> None:
    model = net().eval()
    derived, recorded = sized_as(trace(model, X), IMAGES), trace(model, IMAGES)
    assert derived.input_shapes == recorded.input_shapes and derived.output_shapes == recorded.output_shapes
    pairs = zip(derived.graph.nodes, recorded.graph.nodes, strict=True)
    assert all(one.meta.get("shapes") == other.meta.get("shapes") for one, other in pairs)
    assert all(
        str(one.args) == str(other.args) for one, other in zip(derived.graph.nodes, recorded.graph.nodes, strict=True)
    )


# -- what is checked all the same ------------------------------------------------------------------------------


class Widening(Plain):
    """What its first convolution reads is another thing in each run, which no graph says."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Hardtanh(0.0, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        self.act.max_val *= 2
        return super().forward(x)


class Dilating(Plain):
    """A setting of a convolution is another one in each run."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.two.padding = self.two.dilation = (2, 2)
        return y


class Writing(Plain):
    """A convolution's weights are other ones in each run, written where torch does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.two.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        weights = self.two.weight.numpy()
        weights *= 2
        return y


@pytest.mark.parametrize("net", [Widening, Dilating, Writing])
def test_a_replay_takes_again_what_convolutions_gave_only_where_all_is_as_it_was(net: type[nn.Module]) -> None:
    with pytest.raises(TraceError, match="does not reproduce"):
        trace(net().eval(), X)


@pytest.mark.parametrize(("side", "held"), [(8, True), (512, False)])
def test_of_convolutions_small_maps_alone_are_kept_for_the_replay(side: int, held: bool) -> None:
    """However large the example, recording holds little more than a forward pass."""
    layer, node, x = nn.Conv2d(1, 1, 3, padding=1), fx.Graph().placeholder("x"), torch.randn(1, 1, side, side)
    kept = Convolved()
    with torch.no_grad():
        gave = layer(x)
        kept.note(node, layer, x, gave)
        assert (kept.again(node, layer, x) is gave) is held


class ByClass(nn.Module):
    """Takes another way on the meta device; with numbers it is as any other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.two(y).mean((2, 3)) if not x.is_meta else y.mean((2, 3))


def test_numbers_have_the_last_word_on_a_rewritten_network() -> None:
    ghosted = convert(ByClass().eval(), X, **ALL)
    assert {swap.target for swap in ghosted.plan.swaps} == {"one", "two"}
    assert ghosted.after.cost == ghosted.plan.after


# -- whole or in parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_convert_falls_back_to_parts_as_the_command_does(name: str, method: str) -> None:
    torch.manual_seed(0)
    model = NETS[name]().eval()
    ghosted = convert(model, X, **METHODS[method])  # type: ignore[arg-type]
    alias = convert_parts(model, X, **METHODS[method])  # type: ignore[arg-type]
    assert list(ghosted.parts) == list(alias.parts) and ghosted.plan.swaps == alias.plan.swaps
    assert ghosted.whole is ghosted and ghosted.ghosted is ghosted.parts
    text = str(ghosted)
    assert text.startswith("backbone: ") and "cannot be rewritten as a whole (" in text
    assert isinstance(ghosted.module.eval()(X), Tensor)


@pytest.mark.parametrize("name", NETS)
def test_the_chapters_one_by_one_take_a_network_in_parts(name: str) -> None:
    torch.manual_seed(0)
    recording = ghostify.tracing.record_parts(NETS[name]().eval(), X, "it may")
    seen = scan(recording)
    assert seen.parts and seen.parts.reason == "it may" and list(seen.parts.inputs) == list(recording.parts)
    wanted = plan(seen, **ANY)
    assert wanted.parts == seen.parts and wanted == plan(recording, **ANY)  # type: ignore[arg-type]
    carried, fitted = rewrite(recording, wanted), rewrite_fitted(recording, wanted, IMAGES)
    assert carried.plan.parts == wanted.parts and carried.fit is None
    assert fitted.fit and list(fitted.parts) == list(carried.parts)


def test_a_whole_network_is_the_part_without_a_name() -> None:
    recording = record(Plain().eval(), X)
    assert list(recording.parts) == [""] and recording.whole is recording.parts[""]
    ghosted = rewrite(recording, plan(scan(recording), **ALL))
    assert list(ghosted.ghosted) == [""] and ghosted.ghosted[""] is ghosted and not ghosted.parts
    assert scan(recording) == scan(recording.whole) == scan(Plain().eval(), X)


def test_a_network_that_resists_only_once_it_is_fitted_is_converted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = record(Detector().eval(), X)
    assert recording.whole and recording.whole.doubts
    as_a_whole = Recording(recording.model, X, recording.parts), plan(scan(recording), **ANY)
    monkeypatch.setattr(ghostify.pipeline, "agreed", lambda *args, **settings: as_a_whole)
    assert set(convert(Detector().eval(), X, **ANY).parts) == {"backbone", "heads"}


def test_images_of_a_whole_that_are_no_batch_are_refused() -> None:
    with pytest.raises(FitError, match="calibration images"):
        convert(Plain().eval(), X, images=SIZES, **ALL)
