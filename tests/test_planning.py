"""Plans: proposals by settings, edits by hand, and every way in which a plan can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import DeformConv2d
from zoo import Aliased, conv_bn, grouped, head, mobile, odd, plain, residual

from ghostify import GhostSettings, Plan, plan, read_plan, rewrite, scan, trace
from ghostify.cheap import Cheap
from ghostify.costs import Cost
from ghostify.errors import PlanError, RecipeError
from ghostify.ghosts import intrinsic_maps
from ghostify.networks import resnet8
from ghostify.planning import check
from ghostify.rules import CGhostSwap, GGhostSwap, Skip, c_ghost
from ghostify.rules.c_ghost import saving_per_element
from ghostify.scanning import Scan, Site

X = torch.zeros(1, 3, 16, 16)
RESNET = scan(resnet8(), X)
PLAIN = scan(plain(), torch.zeros(1, 3, 8, 8))
ALL: dict[str, Any] = {"also": ["stem", "classifier", "pooled", "depthwise"], "min_saving": 0}


def targets(proposal: Plan) -> list[str]:
    return [swap.target for swap in proposal.swaps]


def reasons(proposal: Plan) -> dict[str, str]:
    return {skip.target: skip.reason for skip in proposal.skips}


def ratios(proposal: Plan) -> dict[str, tuple[int, int]]:
    return {swap.target: (swap.s, swap.cheap.d) for swap in proposal.swaps}


def refusal(call: Any, *args: Any, error: type[Exception] = PlanError, **kwargs: Any) -> str:
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?"))
    return message


# -- what is proposed ------------------------------------------------------------------------------------------


def test_the_default_keeps_stem_classifier_and_what_would_be_slower() -> None:
    proposal = plan(RESNET)
    assert targets(proposal) == [
        "layer1.0.conv1",
        "layer1.0.conv2",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer3.0.conv1",
        "layer3.0.conv2",
    ]
    assert {swap.settings for swap in proposal.swaps} == {"s=2 pw"}
    said = reasons(proposal)
    assert "stem" in said["conv1"] and "classifier" in said["linear"]


def test_roles_are_taken_on_request_only() -> None:
    example = torch.zeros(1, 3, 16, 16)
    found = scan(mobile(), example)
    base = set(targets(plan(found, min_saving=0)))
    assert set(targets(plan(found, min_saving=0, also=["stem"]))) - base == {"0.0"}
    assert set(targets(plan(found, min_saving=0, also=["classifier"]))) - base == {"3.2"}
    gates = {"1.gate.reduce", "1.gate.expand", "2.gate.reduce", "2.gate.expand"}
    assert set(targets(plan(found, min_saving=0, also=["pooled"]))) - base == gates


def test_include_and_exclude_are_globs_of_names() -> None:
    everything = targets(plan(RESNET, **ALL))
    assert targets(plan(RESNET, include=["layer[23].*"], **ALL)) == [
        n for n in everything if n[:6] in ("layer2", "layer3")
    ]
    assert targets(plan(RESNET, exclude=["*.conv1"], **ALL)) == [n for n in everything if not n.endswith(".conv1")]
    both = plan(RESNET, include=["layer1.*", "conv1"], exclude=["layer1.0.conv2"], **ALL)
    assert targets(both) == ["conv1", "layer1.0.conv1"]
    assert reasons(both)["layer1.0.conv2"] == "is excluded by 'layer1.0.conv2'"
    assert reasons(both)["layer2.0.conv1"] == "is matched by no include pattern"


def test_settings_by_pattern_inherit_and_the_later_wins() -> None:
    proposal = plan(
        RESNET,
        s=4,
        d=5,
        set={"layer*": {"s": 2}, "layer3.*": {"d": 1}, "layer3.0.conv2": {"s": 3}, "*.0.conv1": {"d": 7}},
        **ALL,
    )
    assert ratios(proposal) == {
        "conv1": (4, 5),
        "layer1.0.conv1": (2, 7),
        "layer1.0.conv2": (2, 5),
        "layer2.0.conv1": (2, 7),
        "layer2.0.conv2": (2, 5),
        "layer3.0.conv1": (2, 7),
        "layer3.0.conv2": (3, 1),
        "linear": (4, 5),
    }


def test_parts_may_be_set_by_pattern() -> None:
    proposal = plan(RESNET, parts="norm-act", set={"layer1.*": {"parts": "linear"}}, **ALL)
    assert {swap.target: swap.parts for swap in proposal.swaps} == {
        "conv1": "norm-act",
        "layer1.0.conv1": "linear",
        "layer1.0.conv2": "linear",
        **dict.fromkeys(("layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1", "layer3.0.conv2"), "norm-act"),
    }
    assert "linear layer" in reasons(proposal)["linear"]


def test_a_ratio_above_the_width_is_a_skip_for_all_and_an_error_by_name() -> None:
    """Asking too much of every layer leaves some alone; asking it of one layer is a mistake to be told."""
    found = scan(odd(), torch.zeros(1, 3, 8, 8))
    general = plan(found, s=6, **ALL)
    assert targets(general) == ["0", "2"]
    assert reasons(general)["3"] == "has 5 output maps per group, fewer than s = 6"
    message = refusal(plan, found, set={"3": {"s": 6}}, **ALL)
    assert "3: " in message and "s = 6 is larger than the 5 output maps" in message


def test_the_width_that_counts_is_that_of_a_group() -> None:
    found = scan(grouped(), torch.zeros(1, 3, 8, 8))
    assert "1.body.1.0" in ratios(plan(found, s=4, **ALL))
    assert reasons(plan(found, s=5, **ALL))["1.body.1.0"] == "has 4 output maps per group, fewer than s = 5"


def test_settings_are_an_object_changes_or_both() -> None:
    settings = GhostSettings(s=4, min_saving=0)
    assert plan(RESNET, settings) == plan(RESNET, s=4, min_saving=0)
    assert plan(RESNET, settings, d=5) == plan(RESNET, s=4, min_saving=0, d=5)


def test_totals_are_the_sums_of_the_parts() -> None:
    proposal = plan(RESNET, s=3, **ALL)
    after = RESNET.cost
    for swap in proposal.swaps:
        after = after - swap.before + swap.after
    assert (proposal.before, proposal.after) == (RESNET.cost, after)


# -- what pays -------------------------------------------------------------------------------------------------


def a_site(c: int, n: int, k: int, groups: int = 1) -> Site:
    weights = n * c // groups * k * k
    return Site(
        name="x",
        kind="conv",
        in_channels=c,
        out_channels=n,
        kernel=(k, k),
        groups=groups,
        calls=1,
        positions=10,
        cost=Cost(params=weights, macs=10 * weights, acts=10 * n),
    )


def a_swap(site: Site, s: int = 2, cheap: str = "depthwise 3") -> CGhostSwap:
    swap = CGhostSwap(target="x", geometry=site.geometry, s=s, cheap=cheap, before=site.cost)
    return swap.model_copy(update={"after": c_ghost.predict(site, swap)})


@pytest.mark.parametrize(
    ("site", "s", "d", "by_hand"),
    [
        # 32 maps fewer of 64·9 MACs, 32 cheap ones of 9; 32 read, 32 written, 64 concatenated from, 64 to
        (a_site(64, 64, 3), 2, 3, (32 * 576 - 32 * 9) / (2 * 32 + 64 + 64)),
        (a_site(64, 64, 1), 2, 3, (32 * 64 - 32 * 9) / (2 * 32 + 64 + 64)),
        (a_site(8, 10, 1), 4, 1, (7 * 8 - 9) / (2 * 9 + 12 + 10)),
        (a_site(8, 8, 1, groups=4), 2, 3, (4 * 2 - 4 * 9) / (2 * 4 + 8 + 8)),
    ],
)
def test_saving_per_element_by_hand(site: Site, s: int, d: int, by_hand: float) -> None:
    assert saving_per_element(site, a_swap(site, s, f"depthwise {d}")) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("site", "s", "rank", "by_hand"),
    [
        # besides: 32·32 weights; 32 maps read and 32 written, 64 read to be added and 32 written
        (a_site(64, 64, 3), 2, 32, (32 * 576 - 32 * 9 - 32 * 32) / (192 + 64 + 96)),
        # 4·64 weights, and 4 maps written and read between
        (a_site(64, 64, 3), 2, 4, (32 * 576 - 32 * 9 - 4 * 64) / (192 + 64 + 96 + 8)),
        # 3 intrinsic maps, 7 ghosts, 10 for the one map between them
        (a_site(64, 10, 1), 4, 1, (7 * 64 - 9 * 9 - 10) / (2 * 9 + 12 + 10 + 3 + 2 + 7 + 21)),
    ],
)
def test_a_pointwise_convolution_moves_elements_too(site: Site, s: int, rank: int, by_hand: float) -> None:
    assert saving_per_element(site, a_swap(site, s, f"depthwise 3 + pointwise {rank}")) == pytest.approx(by_hand)


LOSES = "would cost more as a ghost (s = 2, cheap = depthwise 3) than it does now"


def test_min_saving_is_a_threshold_and_zero_is_none() -> None:
    site = a_site(64, 64, 3)
    saving = saving_per_element(site, a_swap(site))
    for threshold, swapped in ((0, True), (saving, True), (saving + 1e-6, False)):
        proposal = c_ghost.propose(site, GhostSettings(min_saving=threshold))
        assert isinstance(proposal, CGhostSwap) is swapped
    assert "too few to be faster" in proposal.reason
    losing = a_site(4, 8, 1)
    assert isinstance(c_ghost.propose(losing, GhostSettings(min_saving=0)), CGhostSwap)
    refused = c_ghost.propose(losing, GhostSettings(min_saving=0.001))
    assert isinstance(refused, Skip) and refused.reason == LOSES
    refused = c_ghost.propose(a_site(4, 64, 3), GhostSettings(cheap="depthwise 3 + pointwise"))
    assert "as a ghost (s = 2, cheap = depthwise 3 + pointwise) than" in refused.reason


@pytest.mark.parametrize(
    "model", [plain(), residual(), mobile(), grouped(), odd()], ids=lambda m: str(len(list(m.modules())))
)
def test_no_default_swap_costs_more_macs_than_it_saves(model: nn.Module) -> None:
    for s in (2, 3, 4):
        for swap in plan(scan(model, torch.zeros(1, 3, 16, 16)), s=s, min_saving=0.1).swaps:
            assert swap.after.macs < swap.before.macs


# -- the pointwise convolution ---------------------------------------------------------------------------------


def rank_of(site: Site, **changes: Any) -> int:
    proposal = c_ghost.propose(site, GhostSettings(min_saving=0, **changes))
    assert isinstance(proposal, CGhostSwap)
    return rank(proposal)


def rank(swap: CGhostSwap) -> int:
    """Of its pointwise convolution, 0 for none."""
    n = int(swap.geometry.partition("→")[2].partition(" ")[0])
    return swap.cheap.rank(n, intrinsic_maps(n, swap.s))


@pytest.mark.parametrize(
    ("site", "changes", "rank"),
    [
        (a_site(64, 64, 3), {}, 32),
        (a_site(64, 64, 3), {"pointwise": "none"}, 0),
        (a_site(64, 64, 3), {"pointwise": "auto"}, 32),
        (a_site(64, 64, 3), {"pointwise": "auto", "s": 4}, 16),
        (a_site(64, 9, 3), {"pointwise": "auto"}, 4),
        (a_site(64, 64, 1), {"pointwise": "full"}, 32),
        (a_site(64, 64, 1), {"pointwise": 4}, 4),
        (a_site(64, 64, 1), {"pointwise": 99}, 32),
        (a_site(256, 64, 1), {"pointwise": "auto"}, 0),
        (a_site(64, 64, 3, groups=2), {"pointwise": "auto"}, 0),
        (a_site(64, 64, 3, groups=2), {"pointwise": "full"}, 0),
        (a_site(64, 64, 3, groups=2), {"pointwise": 4}, 0),
        (a_site(64, 64, 3), {"pointwise": "auto", "parts": "norm-act"}, 0),
        (a_site(64, 64, 3), {"pointwise": "full", "parts": "norm-act"}, 0),
    ],
)
def test_the_rank_that_a_setting_comes_to(site: Site, changes: dict[str, Any], rank: int) -> None:
    assert rank_of(site, **changes) == rank


def test_auto_falls_back_to_a_plain_ghost_where_a_pointwise_convolution_moves_too_much() -> None:
    site = a_site(64, 64, 3)
    plain = saving_per_element(site, c_ghost.propose(site, GhostSettings(cheap="depthwise 3", min_saving=0)))
    for auto in ({}, {"cheap": "auto"}, {"pointwise": "auto"}):
        proposed = c_ghost.propose(site, GhostSettings(**auto, min_saving=plain))
        assert isinstance(proposed, CGhostSwap) and proposed.cheap == Cheap(3)
    for mixed in ("pointwise", "depthwise 3 + pointwise"):
        assert isinstance(c_ghost.propose(site, GhostSettings(cheap=mixed, min_saving=plain)), Skip)


@pytest.mark.parametrize(
    ("site", "changes", "form"),
    [
        (a_site(64, 64, 3), {}, "s=2 pw"),
        (a_site(64, 64, 1), {}, "s=2 d=3"),  # where a mixture costs half a ghost
        (a_site(64, 64, 3, groups=2), {}, "s=2 d=3"),
        (a_site(64, 64, 3), {"parts": "norm-act"}, "s=2 d=3 norm-act"),
        (a_site(64, 64, 3), {"cheap": "depthwise 5"}, "s=2 d=5"),
        (a_site(64, 64, 1), {"cheap": "pointwise"}, "s=2 pw"),
        (a_site(64, 64, 3, groups=2), {"cheap": "pointwise"}, "s=2 d=3"),
        (a_site(64, 64, 3, groups=2), {"cheap": "depthwise 5 + pointwise"}, "s=2 d=5"),
        (a_site(64, 64, 3), {"cheap": "depthwise 5", "set": {"x": {"cheap": "auto"}}}, "s=2 pw"),
        # 22 of 64 is near 24, and 43 of 128 near 40; 11 of 32 is near no multiple of 8, and 6 of 12 none at all
        (a_site(64, 64, 3), {"s": 3}, "s=3 m=24 pw"),
        (a_site(64, 128, 3), {"s": 3}, "s=3 m=40 pw"),
        (a_site(64, 32, 3), {"s": 3}, "s=3 pw"),
        (a_site(64, 12, 3), {}, "s=2 pw"),
        (a_site(64, 64, 3), {"s": 3, "round_to": 1}, "s=3 pw"),
        (a_site(64, 64, 3), {"s": 3, "round_to": 10}, "s=3 m=20 pw"),
        # m in place of s; the later word is the only one
        (a_site(64, 64, 3), {"m": 40}, "s=2 m=40 pw"),
        (a_site(64, 64, 3), {"m": 20}, "s=4 m=20 pw"),
        (a_site(64, 64, 3), {"m": 32}, "s=2 pw"),
        (a_site(64, 64, 1), {"m": 40}, "s=2 m=40 d=3"),
        (a_site(64, 64, 3), {"s": 3, "set": {"*": {"m": 17}}}, "s=4 m=17 pw"),
        (a_site(64, 64, 3), {"m": 17, "set": {"*": {"s": 2}}}, "s=2 pw"),
        (a_site(64, 64, 3), {"s": 3, "cheap": "depthwise 3"}, "s=3 d=3"),  # as the papers have it
        (a_site(64, 64, 3), {"s": 3, "cheap": "depthwise 3 + pointwise"}, "s=3 d=3 pw"),
    ],
)
def test_the_form_that_a_layer_is_given(site: Site, changes: dict[str, Any], form: str) -> None:
    proposal = c_ghost.propose(site, GhostSettings(min_saving=0, **changes))
    assert isinstance(proposal, CGhostSwap) and proposal.settings == form


def test_a_layer_that_cannot_keep_so_many_maps_is_left_alone_or_refused_by_name() -> None:
    for site, m in ((a_site(64, 64, 3), 64), (a_site(64, 64, 3, groups=2), 33)):
        left = c_ghost.propose(site, GhostSettings(m=m))
        assert isinstance(left, Skip) and left.reason == f"cannot keep m = {m} of its 64 output maps"
        assert "intrinsic maps" in refusal(c_ghost.propose, site, GhostSettings(set={"*": {"m": m}}))


def test_a_plan_tells_m_where_it_is_set_and_may_set_it_by_hand() -> None:
    values = as_dict(plan(RESNET, s=3, round_to=1, min_saving=0))
    assert not any("m" in swap for swap in values["swaps"])
    swap = next(swap for swap in values["swaps"] if swap["target"] == "layer3.0.conv2")
    swap["m"] = 20
    edited = check(Plan.model_validate(values), RESNET)
    assert as_dict(edited)["swaps"] != values["swaps"]  # its cost is worked out anew
    ghosted = rewrite(trace(resnet8(), X), edited)
    assert ghosted.module.get_submodule("layer3.0.conv2").m == 20
    swap["m"] = 64
    assert "layer3.0.conv2: m = 64 intrinsic maps: of 64 outputs they must be 1 to 63" in refusal(
        check, Plan.model_validate(values), RESNET
    )


def test_auto_gives_a_linear_layer_none_and_a_rank_gives_it_one() -> None:
    ranks = [{s.target: rank(s) for s in plan(RESNET, pointwise=p, **ALL).swaps}["linear"] for p in ("auto", 2)]
    assert ranks == [0, 2]


def test_a_pointwise_convolution_is_set_by_pattern() -> None:
    by_name = {"layer1.*": {"pointwise": "full"}, "layer2.0.conv1": {"pointwise": 3}, "layer3.*": {"pointwise": "none"}}
    proposal = plan(RESNET, pointwise=1, set=by_name, include=["layer*.conv1"], min_saving=0)
    assert [(str(swap.cheap), swap.settings) for swap in proposal.swaps] == [
        ("depthwise 3 + pointwise", "s=2 d=3 pw"),
        ("depthwise 3 + pointwise 3", "s=2 d=3 pw3"),
        ("depthwise 3", "s=2 d=3"),
    ]
    assert "s=2 d=3 pw3" in str(proposal)


@pytest.mark.parametrize(
    ("net", "own", "words"),
    [
        (grouped(), {"pointwise": "full"}, ["1.body.1.0: cheap = depthwise 3 + pointwise", "groups"]),
        (grouped(), {"pointwise": 1}, ["1.body.1.0: cheap = depthwise 3 + pointwise 1", "groups"]),
        (grouped(), {"pointwise": 1, "parts": "norm-act"}, ["1.body.1.0: cheap = depthwise 3 + pointwise 1"]),
        (grouped(), {"cheap": "pointwise"}, ["1.body.1.0: cheap = pointwise", "groups", "write depthwise 3"]),
        (resnet8(), {"cheap": "pointwise", "parts": "norm-act"}, ["layer1.0.conv1: cheap = ", "linear parts only"]),
    ],
)
def test_one_that_cannot_be_is_refused_by_name(net: nn.Module, own: dict[str, Any], words: list[str]) -> None:
    name = words[0].partition(":")[0]
    message = refusal(plan, scan(net, X), set={name: own}, min_saving=0)
    assert [word for word in words if word not in message] == []
    others = {key: value for key, value in own.items() if key not in ("pointwise", "cheap")}
    for auto in ("pointwise", "cheap"):
        kept = plan(scan(net, X), set={name: {**others, auto: "auto"}}, min_saving=0)
        assert {swap.target: swap.cheap for swap in kept.swaps}[name] == Cheap(3)


@settings(deadline=None, max_examples=40, derandomize=True, database=None)
@given(st.data())
def test_its_predicted_cost_is_the_counted_one(data: st.DataObject) -> None:
    """Of any geometry, per swap: rewrite refuses a ghost that costs anything else; here it is counted once more."""
    c, n, k = (data.draw(st.integers(low, high)) for low, high in ((1, 6), (2, 17), (1, 3)))
    s, rank = data.draw(st.integers(2, min(4, n))), data.draw(st.integers(1, 9))
    net = nn.Sequential(nn.Conv2d(c, n, k, data.draw(st.integers(1, 2)), 1, bias=data.draw(st.booleans())))
    ghosted = rewrite(traced := trace(net, torch.zeros(1, c, 5, 6)), plan(scan(traced), s=s, pointwise=rank, **ALL))
    (swap,) = ghosted.plan.swaps
    assert swap.after == ghosted.plan.after == ghosted.after.cost
    plain = plan(scan(traced), s=s, pointwise="none", **ALL).after
    m = -(-n // s)
    weights, r = min(rank * n, m * (n - m)), rank if rank * n < m * (n - m) else 0
    positions = ghosted.before.sites[0].positions
    assert swap.after - plain == Cost(params=weights, macs=positions * weights, acts=positions * (r + n - m))


# -- mistakes in settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"include": ["lair3.*"]}, ["include 'lair3.*'", "CifarResNet", "'layer3"]),
        ({"exclude": ["*.conv7"]}, ["exclude '*.conv7'", "matches no layer"]),
        ({"set": {"layer9.*": {"s": 4}}}, ["set 'layer9.*'", "Did you mean 'layer"]),
        ({"include": ["*", "nothing"]}, ["include 'nothing'"]),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name(
    changes: dict[str, Any], words: list[str]
) -> None:
    message = refusal(plan, RESNET, **changes)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ss": 2}, ["'ss'"]),
        ({"min_savings": 2}, ["'min_savings'", "Did you mean 'min_saving'?"]),
        ({"d": 4}, ["odd", "3 or 5"]),
        ({"s": 1}, ["s = 1", "2 or more"]),
        ({"also": ["steam"]}, ["also"]),
        ({"pointwise": 0}, ["pointwise = 0", "none, auto, full or a rank of 1 or more"]),
        ({"pointwise": "ful"}, ["pointwise = 'ful'", "none, auto, full or a rank of 1 or more"]),
        ({"set": {"layer1.*": {"pointwise": True}}}, ["set.layer1.*.pointwise = True", "a rank of 1 or more"]),
        ({"set": {"layer1.*": {"d": 2}}}, ["odd"]),
    ],
)
def test_a_setting_that_cannot_be_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    message = refusal(plan, RESNET, error=RecipeError, **changes)
    assert [word for word in words if word not in message] == []


def test_a_network_without_convolutions_is_refused() -> None:
    found = scan(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 3))
    assert "no convolutions" in refusal(lambda: plan(found).require_changes())


def test_a_plan_that_changes_nothing_says_why() -> None:
    idle = plan(RESNET, include=["linear"])
    message = refusal(idle.require_changes)
    assert "changes nothing" in message and "all 8 layers" in message
    assert "is matched by no include pattern" in message and "(and 6 more)" in message
    changing = plan(RESNET)
    assert changing.require_changes() is changing


# -- files -----------------------------------------------------------------------------------------------------


def written(tmp_path: Path, values: Any, suffix: str = ".yaml") -> Path:
    path = tmp_path / f"plan{suffix}"
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return path


def as_dict(proposal: Plan) -> dict[str, Any]:
    return proposal.model_dump(mode="json")


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_plan_is_read_from_yaml_and_from_json(tmp_path: Path, suffix: str) -> None:
    by_name = {"layer3.*": {"s": 2, "parts": "norm-act"}, "layer2.*": {"pointwise": 3}}
    proposal = plan(RESNET, s=3, pointwise="none", set=by_name, **ALL)
    assert {str(swap.cheap) for swap in proposal.swaps} == {"depthwise 3", "depthwise 3 + pointwise 3"}
    text = proposal.to_yaml() if suffix == ".yaml" else proposal.model_dump_json()
    assert read_plan(written(tmp_path, text, suffix)) == proposal


def test_the_file_says_how_to_edit_it_and_is_readable() -> None:
    text = plan(RESNET).to_yaml()
    assert text.startswith("#") and "--plan" in text
    values = yaml.safe_load(text)
    assert values["swaps"][0]["target"] == "layer1.0.conv1" and values["swaps"][0]["geometry"] == "16→16 3x3"
    assert "→" in text and "stem is kept" in text


def test_numbers_that_a_person_did_not_correct_are_worked_out_anew() -> None:
    proposal = plan(RESNET)
    values = as_dict(proposal)
    values["swaps"][0]["s"] = 4
    edited = check(Plan.model_validate(values), RESNET)
    assert edited.swaps[0].after == plan(RESNET, s=4).swaps[0].after
    assert edited.after.macs < proposal.after.macs
    for field in ("before", "after"):
        values["swaps"][0].pop(field)
    assert check(Plan.model_validate(values), RESNET) == edited


def test_a_plan_of_two_numbers_means_what_it_meant() -> None:
    """As plans of format 1 are: d, and since there was a pointwise convolution its rank."""
    proposal = plan(RESNET, cheap="depthwise 3")
    values = as_dict(proposal)
    for swap in values["swaps"]:
        del swap["cheap"], swap["ordered"]
        swap["d"] = 3
    assert check(Plan.model_validate(values), RESNET) == proposal
    for swap in values["swaps"]:
        swap["pointwise"] = 99
    edited = check(Plan.model_validate(values), RESNET)
    assert edited.after == plan(RESNET, pointwise="full", min_saving=0).after
    assert {swap.settings for swap in edited.swaps} == {"s=2 d=3 pw"}


def test_a_deleted_swap_is_a_layer_left_alone() -> None:
    values = as_dict(plan(RESNET))
    gone = values["swaps"].pop(2)
    edited = check(Plan.model_validate(values), RESNET)
    assert reasons(edited)[gone["target"]] == "is not named in the plan"
    assert len(edited.swaps) == len(values["swaps"])


def test_a_skipped_layer_can_be_swapped_by_hand() -> None:
    """The stem too, which the settings keep."""
    values = as_dict(plan(RESNET))
    values["skips"] = [skip for skip in values["skips"] if skip["target"] != "conv1"]
    values["swaps"].append({"target": "conv1", "geometry": "3→16 3x3", "s": 2, "cheap": "depthwise 1"})
    edited = check(Plan.model_validate(values), RESNET)
    assert targets(edited)[0] == "conv1"
    ghosted = rewrite(trace(resnet8(), X), Plan.model_validate(values))
    assert type(ghosted.module.conv1).__name__ == "CGhost"


def test_an_alias_in_a_plan_means_its_layer() -> None:
    found = scan(Aliased(), torch.zeros(1, 3, 8, 8))
    proposal = plan(found, **ALL)
    renamed = proposal.model_copy(
        update={
            "swaps": tuple(s.model_copy(update={"target": s.target.replace("body.0", "again")}) for s in proposal.swaps)
        }
    )
    assert check(renamed, found) == proposal


def edited(change: Any) -> Plan:
    values = as_dict(plan(RESNET))
    change(values)
    return Plan.model_validate(values)


def twice(values: dict[str, Any]) -> None:
    values["swaps"].append(values["swaps"][0])


def both(values: dict[str, Any]) -> None:
    values["skips"].append({"target": values["swaps"][0]["target"], "reason": "of doubt"})


def renamed(values: dict[str, Any]) -> None:
    values["swaps"][0]["target"] = "layer1.0.convv1"


def unknown_skip(values: dict[str, Any]) -> None:
    values["skips"].append({"target": "laier1", "reason": "of doubt"})


def wider(values: dict[str, Any]) -> None:
    values["swaps"][0]["geometry"] = "16→32 3x3"


def too_large(values: dict[str, Any]) -> None:
    values["swaps"][0]["s"] = 17


def two_numbers(swap: dict[str, Any], d: int = 3, pointwise: Any = 0) -> None:
    """A swap as format 1 tells it."""
    del swap["cheap"]
    swap.update(d=d, pointwise=pointwise)


def with_norms(values: dict[str, Any]) -> None:
    values["swaps"][0] |= {"cheap": "pointwise 2", "parts": "norm-act"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (twice, "names 'layer1.0.conv1' twice"),
        (both, "names 'layer1.0.conv1' twice"),
        (renamed, "Did you mean 'layer1.0.conv1'?"),
        (unknown_skip, "names 'laier1', which CifarResNet does not have"),
        (wider, "made for another network: 'layer1.0.conv1' is 16→16 3x3 in CifarResNet, and 16→32 3x3 in the plan"),
        (too_large, "s = 17 is larger than the 16 output maps"),
        (with_norms, "layer1.0.conv1: cheap = pointwise 2: a pointwise convolution goes with linear parts only"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_edit_is_refused_by_the_layer(change: Any, words: str) -> None:
    assert words in refusal(check, edited(change), RESNET)


def test_a_plan_for_another_network_is_refused() -> None:
    assert "plain" not in targets(plan(RESNET))
    assert "does not have" in refusal(check, plan(RESNET), PLAIN)
    assert "another network" in refusal(check, plan(scan(resnet8(width=8), X), min_saving=0), RESNET)


def test_a_layer_with_an_obstacle_cannot_be_swapped_by_hand() -> None:
    model = nn.Sequential(conv_bn(3, 8), nn.ConvTranspose2d(8, 8, 1), head(8))
    found = scan(model, torch.zeros(1, 3, 8, 8))
    site = found.site("1")
    assert site is not None
    forced = Plan(
        network="Sequential", inputs=found.inputs, before=found.cost,
        swaps=(CGhostSwap(target="1", geometry=site.geometry, s=2, d=3),),
    )  # fmt: skip
    message = refusal(check, forced, found)
    assert message.startswith("1 cannot be swapped: it is a ConvTranspose2d")


def test_a_grouped_layer_cannot_be_given_a_pointwise_convolution_by_hand() -> None:
    found = scan(grouped(), torch.zeros(1, 3, 8, 8))
    values = as_dict(plan(found, **ALL))
    next(swap for swap in values["swaps"] if swap["target"] == "1.body.1.0")["cheap"] = "depthwise 3 + pointwise 1"
    message = refusal(check, Plan.model_validate(values), found)
    assert message.startswith("1.body.1.0: cheap = depthwise 3 + pointwise 1: ") and "groups" in message


def test_a_linear_layer_cannot_be_given_a_norm_by_hand() -> None:
    def with_norm(values: dict[str, Any]) -> None:
        values["swaps"].append(
            {"target": "linear", "geometry": "64→10 1x1", "s": 2, "cheap": "depthwise 1", "parts": "norm-act"}
        )
        values["skips"] = [skip for skip in values["skips"] if skip["target"] != "linear"]

    assert "linear" in refusal(check, edited(with_norm), RESNET)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["swaps"][0].update(cheap="depthwise 4"), "swaps.0.cheap = 'depthwise 4': it must be odd"),
        (lambda v: v["swaps"][0].update(cheap="pointwize"), "Did you mean 'pointwise'?"),
        (lambda v: v["swaps"][0].pop("cheap"), "key 'swaps.0.cheap' is missing"),
        (lambda v: two_numbers(v["swaps"][0], d=4), "swaps.0.cheap = 'depthwise 4': it must be odd"),
        (lambda v: v["swaps"][0].update(s=1), "swaps.0.s"),
        (lambda v: v["swaps"][0].update(s="two"), "swaps.0.s"),
        (lambda v: two_numbers(v["swaps"][0], pointwise=-1), "swaps.0.cheap = 'depthwise 3 + pointwise -1'"),
        (lambda v: two_numbers(v["swaps"][0], pointwise="all"), "swaps.0.cheap = 'depthwise 3 + pointwise all'"),
        (lambda v: v["swaps"][0].update(pointwise=2), "unknown key 'swaps.0.pointwise'"),
        (lambda v: v["swaps"][0].update(targett="x"), "unknown key 'swaps.0.targett'. Did you mean 'target'?"),
        (lambda v: v["swaps"][0].pop("target"), "key 'swaps.0.target' is missing"),
        (lambda v: v["swaps"][0].update(rule="c-gost"), "swaps.0.rule = 'c-gost'"),
        (lambda v: v["swaps"][0].update(rule="g-ghost"), "key 'swaps.0.blocks' is missing"),
        (lambda v: v.update(swapps=[]), "unknown key 'swapps'. Did you mean 'swaps'?"),
        (lambda v: v.pop("network"), "key 'network' is missing"),
        (lambda v: v.update(format=99), "format 99"),
        (lambda v: v["skips"][0].update(reason=None), "skips.0.reason"),
    ],
)
def test_a_malformed_plan_is_refused_by_its_file_and_key(tmp_path: Path, change: Any, words: str) -> None:
    values = as_dict(plan(RESNET))
    change(values)
    message = refusal(read_plan, written(tmp_path, values))
    assert "plan.yaml" in message and words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [("swaps: [", "not valid YAML"), ("- 1\n- 2\n", "must hold settings"), ("", "must hold settings")],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: str, words: str) -> None:
    assert words in refusal(read_plan, written(tmp_path, content))


def test_a_plan_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(read_plan, tmp_path / "none.yaml")
    assert "cannot be read" in refusal(read_plan, tmp_path)


# -- telling ---------------------------------------------------------------------------------------------------


def test_a_plan_is_told_in_a_table_with_every_layer() -> None:
    proposal = plan(RESNET)
    text = str(proposal)
    assert "6 swaps, 2 left alone" in text
    for entry in (*proposal.swaps, *proposal.skips):
        assert entry.target in text
    assert f"{proposal.before.macs / proposal.after.macs:.2f}x" in text


def test_a_plan_made_without_looking_has_no_layers() -> None:
    empty = Plan(network="Nothing", inputs=())
    assert "nothing to ghost" in refusal(empty.require_changes)
    nothing = Scan(network="Nothing", inputs=(), sites=(), cost=Cost(), ops=(), unknown={}, params={})
    assert check(empty, nothing) == empty


def test_a_layer_that_a_stage_takes_with_it_cannot_be_swapped_by_itself() -> None:
    """Also where a block is several modules in a row, of which the plan names the first and the last alone."""
    body = [part for _ in range(4) for part in (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    seen = scan(net, torch.zeros(1, 3, 16, 16))
    stages = plan(seen, method="g-ghost")
    (stage,) = stages.swaps
    convs = [swap for swap in plan(seen, min_saving=0).swaps if seen.stages[0].holds(swap.target)]
    assert convs
    for conv in convs:
        both = stages.model_copy(update={"swaps": (stage, conv)})
        message = refusal(check, both, seen)
        assert conv.target in message and stage.target in message and "twice" in message


def test_two_stages_cannot_replace_the_same_block() -> None:
    net = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(9)))
    blocks = [tuple(str(i) for i in range(first, first + 4)) for first in (0, 2)]
    swaps = tuple(GGhostSwap(blocks=names) for names in blocks)
    given = Plan(network="Sequential", inputs=((1, 16, 8, 8),), swaps=swaps)
    seen = scan(net, torch.zeros(1, 16, 8, 8), stages=blocks)
    assert "'3' twice" in refusal(check, given, seen)


# -- layers with weights that are no convolutions --------------------------------------------------------------


class Mixed(nn.Module):
    """A convolution, and every other kind of layer that multiplies by weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.offsets, self.deformed = nn.Conv2d(16, 18, 3, padding=1), DeformConv2d(16, 16, 3, padding=1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.ModuleDict({"up": nn.Linear(16, 32), "down": nn.Linear(32, 16)})
        self.memory, self.cell = nn.GRU(16, 16, batch_first=True), nn.LSTMCell(16, 16)
        self.pair, self.aside, self.head = nn.Bilinear(16, 16, 8), nn.Linear(16, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.stem(x))
        tokens = self.deformed(y, self.offsets(y)).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        tokens = tokens + self.mlp["down"](self.mlp["up"](tokens).relu())
        if self.training:
            return self.aside(tokens.mean(1))
        return self.head(self.pair(*self.cell(self.memory(tokens)[0][:, -1])))


OTHERS = {
    "deformed": "DeformConv2d",
    "attention": "MultiheadAttention",
    "mlp.up": "tokens",
    "mlp.down": "tokens",
    "memory": "GRU",
    "cell": "LSTMCell",
    "pair": "Bilinear",
    "aside": "did not run",
}


def test_every_layer_that_multiplies_by_weights_is_a_swap_or_a_skip(tmp_path: Path) -> None:
    """What lies in an attention layer is told with that; and a file, or a rewrite, says the same."""
    traced = trace(Mixed().eval(), torch.randn(2, 3, 8, 8))
    proposal = plan(scan(traced), min_saving=0)
    reasons = {skip.target: skip.reason for skip in proposal.skips}
    assert [swap.target for swap in proposal.swaps] == ["body", "offsets"]
    assert reasons.keys() == {"stem", "head", *OTHERS}
    assert all(word in reasons[name] for name, word in OTHERS.items())
    (tmp_path / "plan.yaml").write_text(proposal.to_yaml())
    assert rewrite(traced, read_plan(tmp_path / "plan.yaml")).plan == proposal


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "aside"])
def test_a_swap_of_what_no_rule_takes_is_refused_with_the_reason(name: str) -> None:
    found = scan(Mixed().eval(), torch.randn(2, 3, 8, 8))
    wanted = CGhostSwap(target=name, geometry="16→16 3x3", s=2, d=3)
    with pytest.raises(PlanError, match=f"^{name} cannot be swapped: it is a .*{OTHERS[name]}"):
        check(plan(found, min_saving=0).model_copy(update={"swaps": (wanted,), "skips": ()}), found)
