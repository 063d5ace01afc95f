"""What cannot be fitted is left alone when a fit is asked for, and the plan says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Cli, refused
from torch import Tensor, nn
from zoo import ZOO, Net, conv_bn

from ghostify import convert, plan, rewrite, rewrite_fitted, scan, trace
from ghostify.errors import PlanError
from ghostify.fitting.agenda.correspondence import Matching, origins
from ghostify.planning import Plan, scan_for
from ghostify.recipe import GhostSettings
from ghostify.rewriting import rehearse

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ALONE = "is given an image without a batch"
SEVERAL = "is called with more than one tensor, or gives more than one"
NONE = {"min_saving": 0}


class OneByOne(nn.Module):
    """Runs its body over each image by itself, and the rest of it over all at once."""

    def __init__(self, rest: bool = True) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.rest = nn.Sequential(conv_bn(16, 16), conv_bn(16, 16)) if rest else nn.Identity()
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([self.body(image) for image in self.stem(x)])
        return self.head(self.rest(maps).mean((2, 3)))


class Frames(nn.Module):
    """Of two dimensions at once and of one, a row without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.maps = conv_bn(3, 16), conv_bn(16, 16)
        self.rows = nn.Conv1d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.maps(self.stem(x)).flatten(2)
        return self.head(torch.stack([self.rows(one).mean(1) for one in rows]))


class Twice(nn.Module):
    """One convolution on a batch, and again on an image without one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.both, self.rest = conv_bn(3, 16), nn.Conv2d(16, 16, 3, padding=1), conv_bn(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((self.rest(self.both(x)) + self.both(x[0])).mean((2, 3)))


class Gate:
    """What a network hands to its convolutions on the side."""

    value: Tensor | float = 1.0


class GatedConv(nn.Conv2d):
    """Reads a gate that is computed elsewhere, besides its maps."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(16, 16, 3, padding=1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.gate.value)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.stem, self.weigh = conv_bn(3, 16), nn.Linear(16, 16)
        self.gated, self.rest = GatedConv(self.gate), conv_bn(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.gate.value = self.weigh(x.mean((2, 3))).sigmoid()[:, :, None, None]
        return self.head(self.rest(self.gated(x)).mean((2, 3)))


class Block(nn.Module):
    """One of a stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = conv_bn(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def looped() -> nn.Module:
    """For the command."""
    return OneByOne()


def all_looped() -> nn.Module:
    """Nothing in it can be fitted."""
    return OneByOne(rest=False)


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, str], set[str]]] = {
    "images one by one": (OneByOne, {"body.0": ALONE, "body.2": ALONE}, {"rest.0.0", "rest.1.0"}),
    "rows one by one": (Frames, {"rows": ALONE}, {"maps.0"}),
    "a batch and one image": (Twice, {"both": ALONE}, {"rest.0"}),
    "a gate on the side": (Gated, {"gated": SEVERAL}, {"rest.0"}),
}
"""What cannot be fitted and why, and what can."""
each_case = pytest.mark.parametrize("case", CASES)


def built(case: str) -> tuple[nn.Module, dict[str, str], set[str]]:
    torch.manual_seed(0)
    build, unfit, fit = CASES[case]
    return build().eval(), unfit, fit


def targets(proposal: Plan) -> set[str]:
    return {swap.target for swap in proposal.swaps}


def reasons(proposal: Plan) -> dict[str, str]:
    return {skip.target: skip.reason for skip in proposal.skips}


@each_case
def test_with_images_it_is_left_alone_and_the_plan_says_why(case: str) -> None:
    model, unfit, fit = built(case)
    ghosted = convert(model, X, images=IMAGES, **NONE)
    assert targets(ghosted.plan) == fit
    for name, reason in unfit.items():
        wanted = f"cannot be fitted, because it {reason}; fit none swaps it all the same"
        assert reasons(ghosted.plan)[name] == wanted
    assert ghosted.fit is not None
    assert {layer.target for layer in ghosted.fit.layers if layer.kind == "ghost"} == fit
    assert not any("keeps the weights" in note for note in ghosted.fit.notes)


@each_case
@pytest.mark.parametrize("fit", ["weights", "polish", "none"])
def test_it_is_left_alone_by_every_way_of_fitting_and_by_no_other(case: str, fit: str) -> None:
    model, unfit, can = built(case)
    proposal = rehearse(trace(model, X), GhostSettings(**NONE), fitted=fit != "none")  # type: ignore[arg-type]
    assert targets(proposal) == (can | set(unfit) if fit == "none" else can)
    if fit == "none":
        assert targets(convert(model, X, fit=fit, images=IMAGES, **NONE).plan) == can | set(unfit)


@each_case
def test_without_images_it_is_swapped(case: str) -> None:
    model, unfit, fit = built(case)
    ghosted = convert(model, X, **NONE)
    assert targets(ghosted.plan) == fit | set(unfit)
    assert not any("fitted" in reason for reason in reasons(ghosted.plan).values())


@each_case
def test_a_plan_by_hand_keeps_its_swaps_and_the_fit_says_so(case: str) -> None:
    model, unfit, fit = built(case)
    traced = trace(model, X)
    ghosted = rewrite_fitted(traced, plan(scan(traced), **NONE), IMAGES)
    assert targets(ghosted.plan) == fit | set(unfit)
    (first, reason), *_ = unfit.items()
    assert ghosted.fit is not None
    (note,) = [note for note in ghosted.fit.notes if "keeps the weights" in note]
    assert note.startswith(first) and reason in note


def test_what_is_excluded_or_kept_anyhow_is_said_to_be_that() -> None:
    """``fit none`` would not swap it, so it is not said to."""
    model, _, _ = built("images one by one")
    found = reasons(convert(model, X, images=IMAGES, exclude=("body.0",), **NONE).plan)
    assert "is excluded" in found["body.0"] and "cannot be fitted" in found["body.2"]
    costly = rehearse(trace(model, X), GhostSettings(min_saving=10**6), fitted=True)
    assert not costly.swaps and "too few" in reasons(costly)["body.0"]


def test_parts_that_are_asked_for_and_never_fitted_stay() -> None:
    model, unfit, fit = built("a gate on the side")
    ghosted = convert(model, X, images=IMAGES, parts="norm-act", **NONE)
    assert targets(ghosted.plan) == fit | set(unfit)
    assert ghosted.fit and any("norms and activations" in note for note in ghosted.fit.notes)


def test_a_network_of_nothing_that_can_be_fitted_is_refused_with_the_reason() -> None:
    model = OneByOne(rest=False).eval()
    said = r"changes nothing.*'body.0' \(and 1 more\) cannot be fitted, because it is given an image without a batch"
    with pytest.raises(PlanError, match=f"{said}; fit none"):
        convert(model, X, images=IMAGES, **NONE)
    assert targets(convert(model, X, images=IMAGES, fit="none", **NONE).plan) == {"body.0", "body.2"}


def test_a_layer_set_by_name_that_cannot_be_fitted_is_refused_with_the_reason() -> None:
    model, _, _ = built("images one by one")
    with pytest.raises(PlanError, match=r"set 'body\.2'.*cannot be fitted"):
        convert(model, X, images=IMAGES, set={"body.2": {"s": 4}}, **NONE)


@pytest.mark.parametrize("method", ["thin", "width"])
def test_a_narrower_network_keeps_what_cannot_be_fitted(method: str) -> None:
    model, unfit, _ = built("a gate on the side")
    ghosted = convert(model, X, images=IMAGES, method=method, width=0.5, round_to=4)
    assert ghosted.module.get_submodule("gated").weight.shape == model.get_submodule("gated").weight.shape
    assert "cannot be fitted" in reasons(ghosted.plan)["gated"] and not targets(ghosted.plan) & set(unfit)
    assert ghosted.after.cost.params < ghosted.before.cost.params


@pytest.mark.parametrize("method", ["thin", "width"])
@pytest.mark.parametrize("case", ["images one by one", "a batch and one image"])
def test_an_image_without_a_batch_cannot_become_narrower(case: str, method: str) -> None:
    model, _, _ = built(case)
    with pytest.raises(PlanError, match=ALONE):
        convert(model, X, method=method, width=0.5, round_to=4)


def test_a_stage_around_it_is_left_alone() -> None:
    """A scan that says so of one of its layers stands for any reason that there may be."""
    torch.manual_seed(0)
    model = nn.Sequential(conv_bn(3, 16), *(Block(16) for _ in range(4)), nn.Conv2d(16, 4, 1)).eval()
    settings = GhostSettings(method="g-ghost")
    found = scan_for(trace(model, X), settings)
    inside = next(site for site in found.sites if site.name == "3.conv.0")
    sites = (site.model_copy(update={"unfit": SEVERAL}) if site is inside else site for site in found.sites)
    told = found.model_copy(update={"sites": tuple(sites)})
    assert len(plan(told, settings).swaps) == 1
    with pytest.raises(PlanError, match=r"cannot be fitted, because 3\.conv\.0 is called with more than one tensor"):
        plan(told, settings, fitted=True).require_changes()
    assert plan(found, settings, fitted=True) == plan(found, settings)


@pytest.mark.parametrize("net", ZOO, ids=lambda net: net.name)
def test_what_is_swapped_for_a_fit_is_fitted(net: Net) -> None:
    """Whatever a plan for a fit swaps has its counterpart in the original, and each convolution is named once."""
    traced = trace(net.build().eval(), net.example())
    found = scan(traced)
    free, proposal = plan(found, min_saving=0), plan(found, min_saving=0, fitted=True)
    assert sorted([*targets(proposal), *reasons(proposal)]) == sorted([*targets(free), *reasons(free)])
    assert targets(free) - targets(proposal) == {n for n, why in reasons(proposal).items() if "cannot be fitted" in why}
    if proposal.swaps:
        ghosted = rewrite(traced, proposal)
        again = trace(ghosted.module, net.example(), verify=False)
        matching = Matching(traced, again, ghosted.module, origins(traced, proposal.swaps, ghosted.module))
        fitted = {part.name for part in matching.parts() if part.kind == "ghost"}
        assert not matching.skipped
        assert fitted == targets(proposal)


# -- the command -----------------------------------------------------------------------------------------------


def compressed(cli: Cli, source: str, *more: str) -> Any:
    return cli("compress", f"test_unfit:{source}", "--input", "3,8,8", "--min-saving", "0", "-o", "run", *more)


def test_the_command_leaves_it_alone_and_its_plan_says_why(cli: Cli, images: str) -> None:
    answer = compressed(cli, "looped", "--data", images)
    assert answer.code == 0, answer.err
    written = Path("run/plan.yaml").read_text(encoding="utf-8")
    assert "cannot be fitted, because it is given an image without a batch" in written
    assert "keeps the weights" not in answer.out + answer.err


def test_the_command_swaps_it_without_a_fit(cli: Cli, images: str) -> None:
    answer = compressed(cli, "looped", "--data", images, "--fit", "none")
    assert answer.code == 0, answer.err
    assert "cannot be fitted" not in Path("run/plan.yaml").read_text(encoding="utf-8")


def test_the_command_carries_out_a_plan_by_hand_and_says_what_was_not_fitted(cli: Cli, images: str) -> None:
    made = cli("plan", "test_unfit:looped", "--input", "3,8,8", "--min-saving", "0", "-o", "plan.yaml")
    assert made.code == 0 and "cannot be fitted" not in Path("plan.yaml").read_text(encoding="utf-8")
    answer = cli(
        "compress", "test_unfit:looped", "--input", "3,8,8", "--plan", "plan.yaml", "--data", images, "-o", "run"
    )
    assert answer.code == 0, answer.err
    assert "cannot be fitted" not in Path("run/plan.yaml").read_text(encoding="utf-8")
    assert "body.0 (and 1 more) keeps the weights" in " ".join(answer.out.split())


def test_the_command_refuses_what_it_could_not_fit_at_all(cli: Cli, images: str) -> None:
    refused(compressed(cli, "all_looped", "--data", images), "changes nothing", "cannot be fitted", "fit none")


def test_a_dry_run_tells_it(cli: Cli, images: str) -> None:
    answer = compressed(cli, "looped", "--data", images, "--dry-run", "--json")
    assert answer.code == 0 and "cannot be fitted" in answer.out
