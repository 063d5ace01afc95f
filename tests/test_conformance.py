"""The promises of ``benchmarks/conformance.py`` on torchvision's networks, on the meta device: a sample in every run,
all of them in the slow one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ghostify.costs import Cost
from ghostify.planning import Plan
from ghostify.rewriting import Ghosted

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
conformance: Any = importlib.import_module("conformance")

ALL = {network.name: network for network in conformance.networks()}
SAMPLE = (
    "resnet18",
    "squeezenet1_1",
    "googlenet",
    "mobilenet_v3_small",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_32",
    "lraspp_mobilenet_v3_large",
)
NOTHING_TO_GHOST = ("vit_", "swin_", "swin3d_", "mvit_")
NO_STAGE = ("resnet18", "squeezenet1_1", "vit_b_32")
METHODS = ("c-ghost", "g-ghost")


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_networks_holds_every_property(name: str) -> None:
    assert_conforms(name)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_networks_with_ghost_stages_holds_every_property(name: str) -> None:
    case = conformance.meta_case(with_stages(name))
    assert conformance.broken(case) == []
    assert bool(case.nothing) == case.stageless == (name in NO_STAGE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in SAMPLE])
def test_every_network_holds_every_property(name: str) -> None:
    assert_conforms(name)


TIMM = (
    "convnext_atto",
    "csatv2",
    "dla34",
    "efficientnet_lite0",
    "ghostnet_050",
    "hardcorenas_a",
    "hgnet_tiny",
    "inception_next_atto",
    "mobileone_s0",
    "nf_regnet_b0",
    "regnetz_b16_evos",
    "repvgg_a0",
    "resnest14d",
    "resnetv2_50x1_bit",
    "selecsls42",
    "skresnet18",
    "tf_efficientnet_b0",
    "tinynet_e",
    "visformer_tiny",
    "xception41",
)
"""A sample of timm's habits: convolutions of its own class, gates, splits, branches to be merged."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_a_sample_of_timms_networks_holds_every_property(name: str) -> None:
    timm = pytest.importorskip("timm")
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    case = conformance.meta_case(conformance.Network(name, "timm"))
    assert conformance.broken(case) == []
    assert case.plan.swaps


def assert_conforms(name: str) -> None:
    case = conformance.meta_case(ALL[name])
    assert conformance.broken(case) == []
    assert bool(case.nothing) == name.startswith(NOTHING_TO_GHOST)
    assert not case.scan.unknown


def with_stages(name: str) -> Any:
    return replace(ALL[name], method="g-ghost")


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1"])
def test_small_networks_run_and_train_on_real_numbers(name: str) -> None:
    assert conformance.numeric_problem(conformance.numeric_case(ALL[name], 96)) is None


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x1_0"])
def test_small_networks_with_ghost_stages_run_and_train_on_real_numbers(name: str) -> None:
    case = conformance.numeric_case(with_stages(name), 96)
    assert conformance.numeric_problem(case) is None
    assert len(case.swapped) == len(case.stages) > 0


def test_there_are_sixty_networks_and_more() -> None:
    assert len(ALL) >= 60
    assert {network.kind for network in ALL.values()} == {
        "classification",
        "quantizable",
        "segmentation",
        "video",
    }


# -- the properties notice what they are there for -------------------------------------------------------------


def small_case() -> Any:
    with torch.device("meta"):
        layers = [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten()]
        return conformance.Case(nn.Sequential(*layers, nn.Linear(32 * 6 * 6, 4)), torch.empty(1, 3, 12, 12))


def small_case_with_a_stage() -> Any:
    with torch.device("meta"):
        blocks = [nn.Sequential(nn.Conv2d(c, 16, 3, padding=1), nn.ReLU()) for c in (3, 16, 16, 16)]
        layers = [*blocks, nn.Flatten(), nn.Linear(16 * 12 * 12, 4)]
        return conformance.Case(nn.Sequential(*layers), torch.empty(1, 3, 12, 12), "g-ghost")


def write_to_a_weight(case: Any) -> None:
    with torch.no_grad():
        case.model[0].weight.add_(1)


def leave_a_hook(case: Any) -> None:
    case.model[1].register_forward_hook(lambda module, args, output: None)


def leave_eval_mode(case: Any) -> None:
    case.model[2].eval()


def forget_a_layer(case: Any) -> None:
    case.plan = with_plan(case.plan, skips=case.plan.skips[1:])


def give_no_reason(case: Any) -> None:
    mute = case.plan.skips[0].model_copy(update={"reason": " "})
    case.plan = with_plan(case.plan, skips=(mute, *case.plan.skips[1:]))


def predict_too_little(case: Any) -> None:
    swap, *others = case.ghosted.plan.swaps
    cheaper = swap.model_copy(update={"after": swap.after - Cost(macs=1)})
    with_ghosted(case, plan=with_plan(case.plan, swaps=(cheaper, *others)))


def cut_the_output(case: Any) -> None:
    with_ghosted(case, module=nn.Sequential(*case.ghosted.module, nn.Linear(4, 3, device="meta")))


def keep_the_original(case: Any) -> None:
    with_ghosted(case, module=case.model)


def count_too_much(case: Any) -> None:
    case.scan = case.scan.model_copy(update={"cost": case.scan.cost + Cost(macs=1)})


def forget_a_stage(case: Any) -> None:
    case.plan = with_plan(case.plan, swaps=case.plan.swaps[1:])


def lose_the_stages(case: Any) -> None:
    assert case.plan.swaps
    case.scan = case.scan.model_copy(update={"stages": ()})


def with_plan(plan: Plan, **changes: Any) -> Plan:
    return plan.model_copy(update=changes)


def with_ghosted(case: Any, **changes: Any) -> None:
    case.ghosted = Ghosted(**{**vars(case.ghosted), **changes})


def test_a_network_that_conforms_breaks_nothing() -> None:
    case = small_case()
    assert case.plan.swaps and conformance.broken(case) == []
    case = small_case_with_a_stage()
    assert len(case.swapped) == 1 and conformance.broken(case) == []


@pytest.mark.parametrize(
    ("breaks", "named"),
    [
        (write_to_a_weight, "untouched"),
        (leave_a_hook, "untouched"),
        (leave_eval_mode, "untouched"),
        (forget_a_layer, "lines"),
        (give_no_reason, "lines"),
        (predict_too_little, "costs"),
        (cut_the_output, "shapes"),
        (keep_the_original, "again"),
        (count_too_much, "MACs"),
    ],
)
def test_each_property_notices_its_breach(breaks: Callable[[Any], None], named: str) -> None:
    case = small_case()
    breaks(case)
    assert named in broken_names(case)


@pytest.mark.parametrize(
    ("breaks", "named"),
    [
        (leave_a_hook, "untouched"),
        (forget_a_layer, "lines"),
        (forget_a_stage, "lines"),
        (predict_too_little, "costs"),
        (cut_the_output, "shapes"),
        (keep_the_original, "again"),
        (count_too_much, "MACs"),
        (lose_the_stages, "refused"),
    ],
)
def test_each_property_notices_its_breach_by_stages(breaks: Callable[[Any], None], named: str) -> None:
    case = small_case_with_a_stage()
    breaks(case)
    assert named in broken_names(case)


def broken_names(case: Any) -> list[str]:
    return [name for line in conformance.broken(case) for name in line.partition(":")[0].split(", ")]


def test_a_ghost_that_does_not_train_is_noticed() -> None:
    layers = [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 2, 3)]
    ghosted = conformance.Case(nn.Sequential(*layers), torch.randn(1, 3, 12, 12)).ghosted
    assert conformance._gradient_problem(ghosted, 12) is None
    ghosted.module[1].pointwise.requires_grad_(False)
    assert "1.pointwise.weight does not train" in conformance._gradient_problem(ghosted, 12)


def test_a_ghost_stage_that_does_not_train_is_noticed() -> None:
    layers = [nn.Sequential(nn.Conv2d(c, 16, 3, padding=1), nn.ReLU()) for c in (3, 16, 16, 16)]
    ghosted = conformance.Case(nn.Sequential(*layers), torch.randn(1, 3, 12, 12), "g-ghost").ghosted
    assert conformance._gradient_problem(ghosted, 12) is None
    (stage,) = ghosted.before.stages
    ghosted.module.get_submodule(stage.slot).cheap.requires_grad_(False)
    assert f"{stage.slot}.cheap.0.weight does not train" in conformance._gradient_problem(ghosted, 12)


# -- the run ---------------------------------------------------------------------------------------------------


def test_a_failure_is_a_row_with_its_reason() -> None:
    row = conformance.examine(conformance.Network("resnet19", "classification"))
    assert row.failed and "resnet19" in row.verdict
    assert "resnet19" in conformance.document([row], "the command")


@pytest.mark.parametrize("method", METHODS)
def test_a_second_run_takes_its_rows_from_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    wanted, kept = conformance.networks("squeezenet1_1", method), tmp_path / "rows.jsonl"
    first = list(conformance.rows_of(wanted, 1, kept))
    with kept.open("a", encoding="utf-8") as file:
        file.write('{"name": "cut off in the mid')
    monkeypatch.setattr(conformance, "examine", lambda network: pytest.fail("examined again"))
    assert list(conformance.rows_of(wanted, 1, kept)) == first


def test_rows_of_other_sources_are_not_taken(tmp_path: Path) -> None:
    kept = tmp_path / "rows.jsonl"
    kept.write_text('{"name": "squeezenet1_1", "kind": "classification", "key": "older"}\n', encoding="utf-8")
    assert conformance.cached_rows(kept) == {}


def test_rows_of_another_method_are_not_taken(tmp_path: Path) -> None:
    kept = tmp_path / "rows.jsonl"
    (row,) = conformance.rows_of(conformance.networks("squeezenet1_1", "g-ghost"), 1, kept)
    assert row.verdict == "✓ nothing to ghost: no stage"
    assert conformance.cached_rows(kept, "c-ghost") == {}
    assert conformance.cached_rows(kept, "g-ghost") == {"squeezenet1_1": row}


def test_the_page_of_ghost_stages_counts_them() -> None:
    row = conformance.examine(with_stages("mobilenet_v3_small"))
    page = conformance.document([row], "the command")
    assert "- 2 stages: 2 swapped, 0 left alone" in page and "method g-ghost" in page
    assert "- left alone: mobilenet_v3_small: features.4 is" in conformance.document(
        [replace(row, left={"features.4": "is"})], "the command"
    )
