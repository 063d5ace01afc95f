"""The harm of a change, against the network really changed, fitted and run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghostify.errors import FitError, PlanError
from ghostify.fitting import rewrite_fitted
from ghostify.fitting.sensitivity import metric, sensitivities
from ghostify.harm import Harms, guessed_harms, measure_harms, read_harms
from ghostify.harm.outputs import Judge
from ghostify.harm.result import between, form_of
from ghostify.harm.rows import Call
from ghostify.harm.walk import Walk
from ghostify.harm.work import Work
from ghostify.leastsquares.principal import Principal
from ghostify.planning import plan, scan_for
from ghostify.recipe import GhostSettings
from ghostify.rules import CGhostSwap, Swap
from ghostify.scanning import scan
from ghostify.tracing import Traced, sized_as, trace
from tests.zoo import basic, conv_bn, head, same_padded

IMAGES = 64


def net(width: int = 16) -> nn.Module:
    """Three convolutions with norms and rectifiers, and a classifier whose scores differ from image to image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(conv_bn(3, width), conv_bn(width, width), conv_bn(width, width), head(width)).eval()
        made[-1][-1].weight.data *= 20
    return made


def residual(n: int, stride: int = 1) -> nn.Module:
    """A convolution, a block and a classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(conv_bn(3, 16), basic(16, n, stride), head(n)).eval()
    made[-1][-1].weight.data *= 20
    return made


def images(count: int = IMAGES, size: int = 8, seed: int = 0) -> Tensor:
    """Smooth ones, so that some combinations of maps carry more than others."""
    noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 3, 1, 1) * 3


def recorded(module: nn.Module) -> Traced:
    return trace(module, images(1))


def mixture(name: str, m: int, n: int = 16, c: int = 16) -> CGhostSwap:
    return CGhostSwap(target=name, geometry=f"{c}→{n} 3x3", s=-(-n // m), m=m, cheap="pointwise")


MIDDLE = "1.0"


@cache
def harms() -> Harms:
    return measure_harms(recorded(net()), images(), [mixture("0.0", 8, c=3), mixture(MIDDLE, 8), mixture("2.0", 8)])


def divergence(changed: nn.Module, original: nn.Module, x: Tensor) -> float:
    """KL of the softmax, by torch."""
    with torch.no_grad():
        q, p = changed(x).double().log_softmax(1), original(x).double().log_softmax(1)
    return float(F.kl_div(q, p, log_target=True, reduction="batchmean"))


# -- of any number of intrinsic maps ---------------------------------------------------------------------------


def test_all_maps_do_no_harm() -> None:
    for layer in harms().layers:
        assert layer.of(layer.maps) == 0
        assert layer.missed(layer.maps) == pytest.approx(0, abs=1e-9)


def test_more_maps_carry_more_and_do_less_harm() -> None:
    for layer in harms().layers:
        assert list(layer.carried) == sorted(layer.carried)
        measured = [harm for _, harm in sorted(layer.measured.items())]
        assert measured == sorted(measured, reverse=True)
        of = [layer.of(m) for m in range(1, layer.maps + 1)]
        assert of == sorted(of, reverse=True)


@pytest.mark.parametrize("m", [4, 8])
def test_harm_is_that_of_the_layer_really_projected(m: int) -> None:
    """A layer without a rectifier behind it gives exactly the projection of its outputs."""
    module = net()
    module[1][2] = nn.Identity()  # no rectifier, so that no target is renewed
    traced = recorded(module)
    found = measure_harms(traced, images(), [mixture(MIDDLE, m)]).layers[0]
    x = images()
    # Images are dealt to batches evenly, the first half of which is fitted to: here eight batches.
    seen = torch.cat([x[first::8] for first in range(4)])
    held = torch.cat([x[first::8] for first in range(4, 8)])
    with torch.no_grad():
        y = module[:1](seen)
        y = module[1][0](y).movedim(1, -1).flatten(0, -2).double()
    slope = (module[1][1].weight / (module[1][1].running_var + module[1][1].eps).sqrt()).double().detach()
    run = sized_as(traced, x[:8])
    (norm,) = (node for node in run.graph.nodes if node.target == "1.1")
    sensitivity = sensitivities(run, module, [x[first::8] for first in range(4)], {norm})[norm]
    weights = metric(slope.square(), slope[:, None] * sensitivity * slope)
    matrix = Principal.of(torch.cov(y.T, correction=0), weights).projection(m)
    projected = nn.Conv2d(16, 16, 1)
    with torch.no_grad():
        projected.weight.copy_(matrix[:, :, None, None])
        projected.bias.copy_(y.mean(0) - matrix @ y.mean(0))
    changed = nn.Sequential(module[0], nn.Sequential(module[1][0], projected, *module[1][1:]), *module[2:])
    assert found.measured[m] == pytest.approx(divergence(changed, module, held), rel=1e-3)


def test_harm_is_that_of_the_module_really_fitted_on_the_whole_and_about_that_for_each_size() -> None:
    """A fit may let go of what a ReLU hides, which no harm counts on: it can do less where many maps are left."""
    module = net()
    traced, many, settings = recorded(module), images(256), GhostSettings(min_saving=0, include=[MIDDLE])
    wanted = plan(scan_for(traced, settings), settings)
    ratios = []
    for m in (2, 4, 8):
        swap = mixture(MIDDLE, m)
        own = wanted.model_copy(update={"swaps": (swap,)})
        made = rewrite_fitted(traced, own, many, {"compensate": False, "kept": False}).module.eval()
        real = divergence(made, module, images(1024, seed=1))
        ratios.append(measure_harms(traced, many, [swap]).layers[0].measured[m] / real)
    assert all(1 / 1.4 < ratio < 1.4 for ratio in ratios)
    assert math.prod(ratios) ** (1 / 3) == pytest.approx(1, abs=0.1)


def test_later_layers_make_good_some_of_a_harm_and_behind_the_last_there_are_none() -> None:
    first, middle, last = harms().layers
    assert first.compensation < 1 and middle.compensation < 1
    assert last.compensation == 1


def test_both_branches_of_a_block_answer_where_they_end_in_one_sum() -> None:
    found = measure_harms(recorded(residual(32, stride=2)), images(256), [mixture("0.0", 4, c=3)]).layers[0]
    assert 0 < found.compensation < 1
    assert 0 < found.of(4) < found.measured[4]


def test_thin_blocks_and_depthwise_ghosts_are_measured_each_by_itself() -> None:
    module = nn.Sequential(conv_bn(3, 16), basic(16, 16), basic(16, 16), head(16)).eval()
    traced = recorded(module)
    settings = [{"method": "thin", "width": width, "round_to": 1} for width in (0.25, 0.75)]
    settings.append({"method": "c-ghost", "cheap": "depthwise 3", "min_saving": 0})
    swaps = [
        swap for own in map(GhostSettings.model_validate, settings) for swap in plan(scan_for(traced, own), own).swaps
    ]
    found = measure_harms(traced, images(), swaps)
    assert not found.layers and len(found.forms) == len(swaps)
    narrow, wide = (next(s for s in swaps if s.settings == f"thin={width}") for width in (0.25, 0.75))
    assert narrow.target == wide.target
    assert found.of(narrow) > found.of(wide) > 0


def test_a_layer_that_is_offered_in_blocks_of_several_widths_is_measured_once() -> None:
    swaps = [CGhostSwap(target=MIDDLE, geometry=f"{c}→16 3x3", s=2, cheap="depthwise 3") for c in (16, 12, 8)]
    found = measure_harms(recorded(net()), images(), swaps)
    assert len(found.forms) == 1
    assert {found.of(swap) for swap in swaps} == {found.forms[0].harm}


class Viewing(nn.Module):
    """A network whose own code views its maps as vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = conv_bn(3, 16), conv_bn(16, 16), nn.Linear(16 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        scores: Tensor = self.last(x.view(len(x), -1))
        return scores


def test_changed_maps_can_be_viewed_as_those_of_the_network_are() -> None:
    found = measure_harms(recorded(Viewing().eval()), images(), [mixture("second.0", 8)])
    assert found.layers[0].measured[8] > 0


def test_layers_of_a_class_of_its_own_are_measured_as_torchs_are() -> None:
    plain = nn.Sequential(conv_bn(3, 16), basic(16, 16), basic(16, 16), head(16)).eval()
    asked = [
        GhostSettings.model_validate({"min_saving": 0, **settings})
        for settings in ({"method": "thin", "width": 0.5}, {"cheap": "pointwise"}, {"cheap": "depthwise 3"})
    ]
    both = [recorded(plain), recorded(same_padded(plain))]
    swaps = [[swap for one in asked for swap in plan(scan_for(traced, one), one).swaps] for traced in both]
    guessed = [guessed_harms(traced, wanted) for traced, wanted in zip(both, swaps, strict=True)]
    found = [measure_harms(traced, images(), wanted) for traced, wanted in zip(both, swaps, strict=True)]
    for of_plain, of_own in (guessed, found):
        assert of_plain.layers and of_plain.forms
        assert of_own.layers == of_plain.layers
        assert of_own.forms == of_plain.forms


def test_a_stage_of_a_larger_network_is_really_fitted() -> None:
    made = nn.Sequential(conv_bn(3, 8), conv_bn(8, 8), *(basic(8, 8) for _ in range(3)), conv_bn(8, 8), head(8)).eval()
    asked = GhostSettings(method="g-ghost")
    traced = recorded(made)
    swaps = plan(scan_for(traced, asked), asked).swaps
    (harm,) = measure_harms(traced, images(16), swaps).forms
    assert harm.measured > 0


def test_of_many_widths_few_are_measured_and_the_others_lie_between() -> None:
    traced = recorded(residual(16))
    asked = [GhostSettings.model_validate({"method": "thin", "width": w / 8, "round_to": 1}) for w in range(1, 8)]
    plans = [plan(scan_for(traced, own), own) for own in asked]
    swaps = [next(swap for swap in one.swaps if swap.target.startswith("1")) for one in plans]
    together = measure_harms(traced, images(256), swaps)
    of = [together.of(swap) for swap in swaps]
    assert of == sorted(of, reverse=True)
    for index in (0, 6):
        alone = measure_harms(traced, images(256), [swaps[index]]).forms[0].measured
        assert alone == pytest.approx(next(f.measured for f in together.forms if f.form == form_of(swaps[index])))


def test_the_model_is_not_touched() -> None:
    module = net().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    measure_harms(recorded(module), images(), [mixture(MIDDLE, 8)])
    assert module.training and all(p.grad is None for p in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# -- how far it is ---------------------------------------------------------------------------------------------


def test_hundredths_of_the_work_are_told_from_none_to_all() -> None:
    told = []
    swaps = [mixture("0.0", 8, c=3), mixture(MIDDLE, 8), mixture("2.0", 8)]
    measure_harms(recorded(net()), images(), swaps, told=lambda done, total: told.append((done, total)))
    hundredths = [done for done, _ in told]
    assert {total for _, total in told} == {100}
    assert hundredths == sorted(hundredths) and hundredths[0] == 0 and hundredths[-1] == 100
    assert 0 < hundredths[1] < 100  # before the first step there is work, too


def test_a_change_near_the_image_is_more_work_than_one_at_the_end() -> None:
    """By the multiply-adds that run again: of a layer and all behind it, for half of the images."""
    traced = recorded(net())
    run, seen = sized_as(traced, images(8)), scan(traced)
    calls = {site.name: Call.all_of(run, site) for site in seen.sites}
    walk = Walk(run, traced.module, [])
    work = Work(walk, seen, calls, images=64)
    macs = [site.cost.macs for site in seen.sites]
    found = [work.changes(walk.index[calls[site.name][0].node], 1, answered=False) for site in seen.sites]
    assert found == pytest.approx([32 * sum(macs[place:]) for place in range(len(macs))])


def test_between_measured_points_harm_is_a_power_of_what_is_missed() -> None:
    points = [(0.1, 0.02), (0.4, 0.32)]  # two missed squares
    assert between(points, 0.2) == pytest.approx(0.08)
    assert between(points, 0.05) == pytest.approx(0.005)
    assert between(points, 0.8) == pytest.approx(1.28)
    assert between(points, 0.0) == 0
    assert between([(0.5, 0.1)], 0.25) == pytest.approx(0.05)


# -- without images --------------------------------------------------------------------------------------------


def test_filters_of_half_rank_are_guessed_to_do_no_harm_at_half_their_maps() -> None:
    module = net()
    with torch.no_grad():
        module[1][0].weight[8:] = 3 * module[1][0].weight[:8]
        found = guessed_harms(recorded(module), [mixture(MIDDLE, 8), mixture("2.0", 8)])
    assert found.of(mixture(MIDDLE, 8)) == pytest.approx(0, abs=1e-9)
    assert found.of(mixture(MIDDLE, 4)) > 0 and found.of(mixture("2.0", 8)) > 0
    assert found.unit == "proxy" and found.images == 0 and "guesses" in str(found)


def test_a_guess_grows_with_the_share_of_multiply_adds() -> None:
    traced = recorded(net())
    found = guessed_harms(traced, [mixture("0.0", 8, c=3), mixture("2.0", 8)])
    first, last = found.layers
    assert first.of(8) / first.missed(8) < last.of(8) / last.missed(8)


# -- of a value ------------------------------------------------------------------------------------------------


def test_harms_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "harms.json"
    path.write_text(harms().model_dump_json())
    assert read_harms(path) == harms()


def test_harms_of_a_plan_are_added_up() -> None:
    swaps: Sequence[Swap] = [mixture(MIDDLE, 4), mixture("2.0", 8)]
    assert harms().total(swaps) == pytest.approx(harms().of(swaps[0]) + harms().of(swaps[1]))


def test_the_share_that_a_thinner_block_leaves_counts_as_the_ratio() -> None:
    assert harms().of(mixture(MIDDLE, 4, n=8), width=0.5) == harms().of(mixture(MIDDLE, 8))


def test_what_was_no_candidate_is_refused() -> None:
    swap = CGhostSwap(target="1.1", geometry="", s=2, cheap="depthwise 3")
    with pytest.raises(PlanError, match=r"'1\.1' as s=2 d=3 was not measured.*Did you mean"):
        harms().of(swap)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(FitError, match="at least 8 images"):
        measure_harms(recorded(net()), images(4), [mixture(MIDDLE, 8)])


# -- how unsure the original is --------------------------------------------------------------------------------


def test_an_error_harms_more_where_the_network_is_unsure_and_by_about_how_unsure_it_is() -> None:
    """Of the same errors of the same scores, on images of which half are sure, or most."""
    generator = torch.Generator().manual_seed(0)
    sure = 8 * torch.nn.functional.one_hot(torch.arange(600) % 10, 10).double()
    unsure = torch.randn(600, 10, generator=generator, dtype=torch.float64)
    error = 0.3 * torch.randn(600, 10, generator=generator, dtype=torch.float64)  # in deviations of the scores
    draws = [torch.cat([sure[:few], unsure[few:]]) for few in (300, 500)]
    judges = [Judge([[scores]], scores=True) for scores in draws]
    harms = [judge.harm([[scores + scores.std(0) * error]]) for judge, scores in zip(judges, draws, strict=True)]
    assert harms[0] > 1.5 * harms[1]
    assert harms[0] / judges[0].unsure == pytest.approx(harms[1] / judges[1].unsure, rel=0.1)


def test_what_has_no_scores_is_neither_sure_nor_unsure() -> None:
    assert Judge([[torch.randn(8, 3, 4, 4)]], scores=False).unsure == 1.0


def test_files_that_do_not_tell_how_unsure_the_network_was_are_read(tmp_path: Path) -> None:
    (tmp_path / "harms.json").write_text(harms().model_dump_json(exclude={"unsure"}))
    assert harms().unsure and read_harms(tmp_path / "harms.json").unsure is None
