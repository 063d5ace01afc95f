"""Networks that resist as a whole, rewritten part by part: planned, fitted, put back, saved and loaded as one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from test_pipeline import Listener
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import ghostify
from ghostify import (
    CGhost,
    GGhostStage,
    Ghosted,
    Plan,
    compare,
    convert_parts,
    experiment,
    fitting,
    load,
    plan,
    planned,
    read_plan,
    rewrite_fitted,
    save,
    scan,
    trace,
)
from ghostify.errors import ModelError, PlanError, RewriteError, RunError, TraceError
from ghostify.fitting.parts import given_to
from ghostify.recipe import GhostSettings, ModelSettings, Recipe, make_recipe
from ghostify.rewriting import agreed, agreed_in_parts, counted
from ghostify.saving import read_report
from ghostify.sources import build_model
from ghostify.tracing import Recording, Traced

X = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ANY = {"min_saving": 0, "pointwise": "none"}
METHODS: dict[str, dict[str, object]] = {
    "c-ghost": {**ANY},
    "g-ghost": {"method": "g-ghost"},
    "both": {**ANY, "method": "both"},
}


def conv(c: int, n: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c, n, 3, padding=1, bias=False), nn.BatchNorm2d(n), nn.ReLU())


class Block(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.one, self.two = conv(c, c), conv(c, c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x))


class Heads(nn.Module):
    """Takes a list of maps."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.shared = conv(c, c)
        self.score = nn.Conv2d(c, 1, 1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [self.score(self.shared(one)) for one in maps]


class Detector(nn.Module):
    """As many scores as it finds, of images it scales itself; the loose convolution is in no part."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 32), Block(32), Block(32), Block(32))
        self.loose = nn.Conv2d(32, 32, 3, padding=1)
        self.heads = Heads(32)

    def forward(self, images: Tensor) -> Tensor:
        y = self.loose(self.backbone((images - 0.5) / 0.25))
        scores = torch.cat([one.flatten() for one in self.heads([y, nn.functional.avg_pool2d(y, 2)])])
        return scores[scores > scores.mean()].sort().values


class Transformed(nn.Module):
    """A classifier that cannot be recorded at all."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 32), Block(32), Block(32), Block(32))
        self.classes = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        y: Tensor = torch.vmap(lambda one: one / (1 + one.abs().amax()))(self.backbone(images))
        return self.classes(y.mean((2, 3)))


NETS: dict[str, Callable[[], nn.Module]] = {"detector": Detector, "transformed": Transformed}


def detector() -> nn.Module:
    return Detector()


def transformed() -> nn.Module:
    return Transformed()


UNTIMED = {"measure": False}


def recipe(name: str, **settings: object) -> Recipe:
    """An experiment that goes by no clock, so that its plan is the same on every machine."""
    model = {"source": f"test_parts:{name}", "input": [3, 16, 16]}
    return make_recipe({"model": model, "budget": UNTIMED, **settings})


def in_parts(model: nn.Module, **settings: object) -> tuple[Recording, Plan]:
    recorded, wanted = agreed(model, X, GhostSettings.model_validate({**ANY, **settings}))
    assert recorded.whole is None
    return recorded, wanted


@pytest.fixture(params=NETS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return NETS[request.param]().eval()


# -- what is planned -------------------------------------------------------------------------------------------


def test_every_convolution_is_a_swap_or_a_skip_by_its_name_in_the_whole(model: nn.Module) -> None:
    recorded, wanted = in_parts(model)
    named = [entry.target for entry in (*wanted.swaps, *wanted.skips)]
    convolutions = {name for name, part in model.named_modules() if isinstance(part, _ConvNd)}
    assert len(named) == len(set(named)) and convolutions <= set(named)
    assert wanted.parts and list(wanted.parts.inputs) == list(recorded.parts)
    assert all(any(swap.target.startswith(f"{part}.") for part in recorded.parts) for swap in wanted.swaps)


def test_what_lies_in_no_part_is_left_with_that_reason() -> None:
    _, wanted = in_parts(Detector())
    assert {skip.target: skip.reason for skip in wanted.skips}["loose"] == "lies in no part that can be recorded"
    assert "Rewritten: backbone, heads; left: loose." in wanted.partly and "reads a value" in wanted.partly


def test_a_plan_of_parts_survives_its_file(model: nn.Module, tmp_path: Path) -> None:
    _, wanted = in_parts(model)
    (tmp_path / "plan.yaml").write_text(wanted.to_yaml())
    again = read_plan(tmp_path / "plan.yaml")
    assert again == wanted
    assert agreed(model, X, again)[1] == wanted


def test_a_plan_that_does_not_say_so_is_carried_out_in_parts_all_the_same(model: nn.Module) -> None:
    _, wanted = in_parts(model)
    assert agreed(model, X, wanted.model_copy(update={"parts": None}))[1] == wanted


def test_patterns_are_of_names_in_the_whole() -> None:
    _, wanted = in_parts(Detector(), include=["heads.*"], also=["classifier"])
    assert {swap.target.partition(".")[0] for swap in wanted.swaps} == {"heads"}
    with pytest.raises(PlanError, match="matches no layer or stage of Detector"):
        in_parts(Detector(), include=["shared.0"])


def test_only_what_is_first_or_last_in_the_whole_is_a_stem_or_a_classifier() -> None:
    """The heads' first layer reads no image, and the backbone's last gives no output."""
    recorded, _ = in_parts(Detector())
    roles = {site.name: site.role for site in scan(recorded).sites}
    assert {name for name, role in roles.items() if role == "stem"} == {"backbone.0.0"}
    assert {name for name, role in roles.items() if role == "classifier"} == {"heads.score"}


def test_a_network_that_can_be_recorded_has_no_parts() -> None:
    recorded, wanted = agreed(nn.Sequential(conv(3, 32), Block(32)), X, GhostSettings(min_saving=0))
    assert recorded.whole and wanted.parts is None and not wanted.partly
    assert "\nparts:" not in wanted.to_yaml()


def test_the_scan_of_parts_counts_them_and_the_parameters_of_the_whole(model: nn.Module) -> None:
    recorded, _ = in_parts(model)
    found = scan(recorded)
    alone = [scan(model.get_submodule(name), (*traced.args,)) for name, traced in recorded.parts.items()]
    assert found.cost.macs == sum(one.cost.macs for one in alone) == sum(site.cost.macs for site in found.sites)
    assert found.cost.params == sum(parameter.numel() for parameter in model.parameters())
    assert all(found.within(name).params == one.cost.params for name, one in zip(recorded.parts, alone, strict=True))
    assert [stage.name for stage in found.stages] == ["backbone.1..backbone.3"]


def test_a_convolution_that_was_given_nothing_is_left_alone() -> None:
    """As the heads of a detector that finds no box in an example."""

    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.last = conv(3, 32), conv(32, 32), nn.Conv2d(32, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.head(self.body(x)[:0]))

    with pytest.raises(PlanError, match="changes nothing"):
        agreed(Empty(), X, GhostSettings())
    skips = {skip.target: skip.reason for skip in plan(scan(Empty(), X)).skips}
    assert "was given nothing" in skips["head.0"]


def test_a_part_that_was_given_nothing_is_left_alone() -> None:
    class Nothing(Detector):
        def forward(self, images: Tensor) -> Tensor:
            y = self.loose(self.backbone(images))
            scores = self.heads([y[:0]])[0]
            return scores[: int(y.abs().sum())]

    recorded, wanted = agreed_in_parts(Nothing(), X, GhostSettings.model_validate(ANY), "it may")
    assert list(recorded.parts) == ["backbone"] and "was given nothing" in recorded.left["heads"]
    assert "was given nothing" in {skip.target: skip.reason for skip in wanted.skips}["heads.score"]


@pytest.mark.parametrize("method", ["width", "thin"])
def test_methods_of_whole_networks_are_refused(method: str) -> None:
    with pytest.raises(PlanError, match="take whole networks"):
        in_parts(Transformed(), method=method)


# -- what is rewritten -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_predicted_is_counted_and_the_model_is_not_touched(model: nn.Module, method: str) -> None:
    before = copy.deepcopy(model.state_dict())
    parts = convert_parts(model, X, **METHODS[method])  # type: ignore[arg-type]
    done = parts.whole
    assert done.plan.swaps and set(parts.ghosted) <= set(done.plan.parts.inputs if done.plan.parts else ())
    for swap in done.plan.swaps:
        assert counted(swap, done.before, done.after) == swap.after
    assert done.after.cost == done.plan.after
    assert done.after.cost.params == sum(parameter.numel() for parameter in done.module.parameters())
    assert compare(done).after == done.after.cost
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not {id(p) for p in done.module.parameters()} & {id(p) for p in model.parameters()}
    assert not any(isinstance(part, CGhost | GGhostStage) for part in model.modules())


def test_a_part_under_two_names_stays_one() -> None:
    model = Detector()
    model.again = model.backbone
    module = convert_parts(model, X, **ANY).module
    assert module.again is module.backbone and any(isinstance(part, CGhost) for part in module.again.modules())


def test_a_part_that_shares_weights_with_others_is_left_alone() -> None:
    model = Detector()
    model.heads.shared[0].weight = model.loose.weight
    parts = convert_parts(model, X, **ANY)
    assert list(parts.ghosted) == ["backbone"] and "shares weights" in parts.left["heads"]
    assert parts.module.heads.shared[0].weight is parts.module.loose.weight


def test_a_forward_that_holds_on_to_the_original_is_refused() -> None:
    """What would come out would go on with a layer of the model that was given."""
    model = Transformed()
    classes = model.classes

    def forward(self: Transformed, images: Tensor) -> Tensor:
        return classes(self.backbone(images).mean((2, 3)))

    model.forward = MethodType(forward, model)  # type: ignore[method-assign]
    with pytest.raises(RewriteError, match="'classes' of the original"):
        convert_parts(model, X, **ANY)


def test_a_network_without_parts_is_told_why_the_whole_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda one: one * 2)(self.only(x))

    with pytest.raises(TraceError, match=r"torch\.vmap"):
        agreed(Bare(), X, GhostSettings())


# -- what is fitted --------------------------------------------------------------------------------------------


def test_a_part_is_fitted_to_what_it_is_given() -> None:
    torch.manual_seed(0)
    model, images = Detector().eval(), torch.rand(24, 3, 16, 16)
    recorded, wanted = in_parts(model)
    given = given_to(recorded, wanted, images, 20)
    assert list(given) == ["backbone", "heads"]
    assert torch.equal(given["backbone"], ((images - 0.5) / 0.25)[:20])
    fitted = convert_parts(model, X, images=images, **ANY).whole
    carried = convert_parts(model, X, **ANY).whole
    fresh = (torch.rand(8, 3, 16, 16) - 0.5) / 0.25
    wrong = [(one.module.eval().backbone(fresh) - model.backbone(fresh)).square().mean() for one in (fitted, carried)]
    assert wrong[0] < wrong[1] / 2
    assert fitted.fit and any(layer.target.startswith("backbone.") for layer in fitted.fit.layers)
    notes = compare(fitted).notes
    assert any("Fitted part by part" in note for note in notes)
    assert not any("carried over unfitted" in note for note in notes)


def test_a_part_that_takes_a_list_is_fitted_to_its_tensors() -> None:
    """Its maps of several resolutions are one sample's; as the whole gives them to the part."""
    torch.manual_seed(0)
    model, images = Detector().eval(), torch.rand(12, 3, 16, 16)
    recorded, wanted = in_parts(model)
    with torch.no_grad():
        fine = model.loose(model.backbone((images - 0.5) / 0.25))
    ((maps,),) = [given_to(recorded, wanted, images, 20)["heads"]]
    assert torch.allclose(maps[0], fine, atol=1e-5)
    assert torch.allclose(maps[1], nn.functional.avg_pool2d(fine, 2), atol=1e-5)


SIZES = [torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(size)) for size in (16, 24, 16, 24)]


def test_parts_that_are_given_images_of_several_sizes_are_left_alone_and_nothing_else_is_left_to_change() -> None:
    torch.manual_seed(0)
    said = r"No part of Detector would change: backbone cannot be fitted: .* tensors of several sizes; use fit none\.$"
    with pytest.raises(PlanError, match=said):
        convert_parts(Detector().eval(), X, images=SIZES, **ANY)
    assert convert_parts(Detector().eval(), X, images=SIZES, fit="none", **ANY).whole.plan.swaps


class Cropping(Detector):
    """Its heads see maps of one size, whatever the images are."""

    def forward(self, images: Tensor) -> Tensor:
        y = nn.functional.adaptive_avg_pool2d(self.loose(self.backbone((images - 0.5) / 0.25)), 8)
        scores = torch.cat([one.flatten() for one in self.heads([y, nn.functional.avg_pool2d(y, 2)])])
        return scores[scores > scores.mean()].sort().values


def test_a_part_that_cannot_be_fitted_is_left_alone_and_the_plan_says_why() -> None:
    torch.manual_seed(0)
    model = Cropping().eval()
    done = convert_parts(model, X, images=SIZES, **ANY)
    assert {swap.target for swap in done.whole.plan.swaps} == {"heads.shared.0"}
    reasons = {skip.target: skip.reason for skip in done.whole.plan.skips}
    lies = "lies in 'backbone', which was left alone: backbone cannot be fitted: it is given other inputs"
    assert reasons["backbone.1.one.0"].startswith(lies) and reasons["backbone.1.one.0"].endswith("use fit none")
    assert torch.equal(done.module.backbone(SIZES[1]), model.backbone(SIZES[1]))


def test_a_plan_by_hand_of_parts_keeps_its_swaps_and_the_notes_say_they_are_unfitted() -> None:
    torch.manual_seed(0)
    model = Detector().eval()
    recorded, wanted = in_parts(model)
    fitted = rewrite_fitted(recorded, wanted, SIZES)
    assert fitted.plan.swaps == wanted.swaps
    assert any("Weights of backbone carried over unfitted" in note for note in compare(fitted).notes)


# -- runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_a_run_loads_as_it_was_saved_and_its_report_names_the_parts(name: str, method: str, tmp_path: Path) -> None:
    outcome = experiment.compress(recipe(name, ghost=METHODS[method]), tmp_path / "run", Listener())
    again = load(tmp_path / "run")
    made = outcome.ghosted.module.eval()
    assert torch.equal(again.module(X), made(X))
    assert (again.plan, again.before, again.after) == tuple(
        getattr(outcome.ghosted, key) for key in ("plan", "before", "after")
    )
    report = read_report(tmp_path / "run")
    assert any("cannot be rewritten as a whole" in note and "Rewritten: backbone" in note for note in report.notes)
    assert report.before.params == sum(parameter.numel() for parameter in NETS[name]().parameters())


def test_a_classifier_in_parts_is_fitted_trained_tested_and_rewritten_again(tmp_path: Path) -> None:
    data = {"source": "fake", "limit": 40}
    settings = recipe("transformed", data=data, finetune={"epochs": 1}, ghost={"method": "g-ghost"}, fit={"images": 16})
    first = experiment.compress(settings, tmp_path / "run", Listener())
    assert set(first.report.accuracy) == {"original", "converted", "finetuned"} and first.report.fit
    run = {"model": {"source": str(tmp_path / "run")}, "data": data}
    second = experiment.train(make_recipe({**run, "finetune": {"epochs": 1}}), tmp_path / "trained", Listener())
    assert any("Rewritten: backbone" in note for note in second.report.notes)
    third = experiment.compress(
        make_recipe({"model": {"source": str(tmp_path / "trained")}, "ghost": ANY, "budget": UNTIMED}),
        tmp_path / "twice",
        Listener(),
    )
    rules = {swap.rule for swap in load(tmp_path / "twice").plan.swaps}
    assert rules == {"c-ghost", "g-ghost"}
    assert torch.equal(load(tmp_path / "twice").module(X), third.ghosted.module.eval()(X))
    twice = make_recipe({"model": {"source": str(tmp_path / "twice")}, "data": data})
    assert experiment.measure_accuracy(twice, Listener())[0].total == 40


def test_what_is_no_classifier_is_compressed_with_images_and_not_trained(tmp_path: Path) -> None:
    data = {"source": "fake", "limit": 24}
    outcome = experiment.compress(recipe("detector", data=data), tmp_path / "run", Listener())
    assert not outcome.report.accuracy and outcome.report.fit
    assert any(note.startswith("Accuracy was not measured") for note in outcome.report.notes)
    with pytest.raises(ModelError, match="Only classifiers"):
        experiment.compress(recipe("detector", data=data, finetune={"epochs": 1}), tmp_path / "more", Listener())


def test_a_network_that_resists_only_once_it_is_fitted_is_rewritten_in_parts_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial may find as many boxes by chance."""

    fit_run = fitting.parts.fit_run

    def refuse_whole(run: Traced, *others: Any, **settings: Any) -> Ghosted:
        if isinstance(run.module, Detector):
            raise RewriteError("The rewritten Detector gives outputs of other shapes.")
        return fit_run(run, *others, **settings)

    monkeypatch.setattr(planned, "agreed", _as_a_whole)
    monkeypatch.setattr(fitting.parts, "fit_run", refuse_whole)
    settings = recipe("detector", data={"source": "fake", "limit": 24}, fit={"images": 16}, ghost=ANY)
    listener = Listener()
    outcome = experiment.compress(settings, tmp_path / "run", listener)
    assert outcome.ghosted.plan.parts and outcome.report.fit
    assert any("Rewritten: backbone, heads; left: loose" in line for line in listener.said)


def _as_a_whole(model: nn.Module, example: Tensor, *others: object, fitted: bool) -> tuple[Recording, Plan]:
    recording = Recording(model, example, {"": trace(model, example)})
    return recording, plan(scan(recording), GhostSettings.model_validate(ANY))


def test_a_run_without_a_source_needs_the_module(tmp_path: Path) -> None:
    model = Transformed().eval()
    parts = convert_parts(model, X, method="g-ghost")
    save(parts.whole, tmp_path / "run")
    with pytest.raises(RunError, match="without a model source"):
        load(tmp_path / "run")
    assert torch.equal(load(tmp_path / "run", model=Transformed()).module(X), parts.module.eval()(X))
    with pytest.raises(ghostify.GhostifyError, match="backbone"):
        load(tmp_path / "run", model=nn.Sequential(conv(3, 8)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "ghost"),
    [
        ("torchvision:retinanet_resnet50_fpn", {}),
        ("torchvision:maskrcnn_resnet50_fpn", {}),
        ("torchvision:ssdlite320_mobilenet_v3_large", {}),
        ("test_detection:regnet_detector", {"method": "g-ghost", "preset": "regnet"}),
    ],
)
def test_detectors_are_compressed_saved_and_loaded(source: str, ghost: dict[str, object], tmp_path: Path) -> None:
    args = {} if source.startswith("test") else {"num_classes": 3}
    args |= {"min_size": 64, "max_size": 64} if "rcnn" in source or "retina" in source else {}
    model = {"source": source, "args": args, "input": [3, 64, 64]}
    outcome = experiment.compress(
        make_recipe({"model": model, "ghost": ghost, "budget": UNTIMED}), tmp_path / "run", Listener()
    )
    assert any(swap.target.startswith("backbone.") for swap in outcome.ghosted.plan.swaps)
    image, again = torch.rand(1, 3, 64, 64), load(tmp_path / "run").module
    for one, two in zip(outcome.ghosted.module.eval()(image), again(image), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    params = sum(parameter.numel() for parameter in build_model(ModelSettings.model_validate(model)).parameters())
    assert outcome.report.before.params == params
