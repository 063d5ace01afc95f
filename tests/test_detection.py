"""G-Ghost stages in a detector (IJCV paper, Table 19): its backbone's body is rewritten alone and put back.

RetinaNet on RegNetX-3.2GF, and torchvision's own on ResNet50, with small images, made up.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model, regnet_x_3_2gf
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from ghostify import CGhost, GGhostStage, Ghosted, convert, convert_parts, load, save
from ghostify.errors import PlanError

SIDE, CLASSES = 128, 3
LEVELS = {"block2": "0", "block3": "1", "block4": "2"}
WIDTHS = [192, 432, 1008]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def example() -> Tensor:
    return torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def regnet_detector() -> RetinaNet:
    """As torchvision wraps its ResNets: the network's stages, a feature pyramid on the last three, two levels more."""
    network = regnet_x_3_2gf()
    stages = nn.Sequential(OrderedDict(stem=network.stem, **dict(network.trunk_output.named_children())))
    backbone = BackboneWithFPN(stages, LEVELS, WIDTHS, 64, extra_blocks=LastLevelP6P7(64, 64))
    return RetinaNet(backbone, CLASSES, min_size=SIDE, max_size=SIDE, score_thresh=0.0, detections_per_img=20)


@cache
def converted() -> tuple[nn.Module, Ghosted]:
    """The body of a detector's backbone, and what it became; neither is to be changed."""
    torch.manual_seed(0)
    body = regnet_detector().backbone.body
    return body, convert(body, example(), method="g-ghost", preset="regnet")


def ghosted_detector() -> RetinaNet:
    detector = regnet_detector()
    detector.backbone.body = copy.deepcopy(converted()[1].module)
    return detector


def pictures() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of unequal size, with boxes."""
    images = [torch.rand(3, SIDE, SIDE), torch.rand(3, 120, 100)]
    boxes = [[[10.0, 20, 60, 70]], [[5.0, 5, 90, 70], [40.0, 40, 60, 90]]]
    labels = [[1], [2, 0]]
    targets = [{"boxes": torch.tensor(b), "labels": torch.tensor(c)} for b, c in zip(boxes, labels, strict=True)]
    return images, targets


def step(detector: RetinaNet, optimizer: torch.optim.Optimizer, images: int = 2) -> Tensor:
    shown, targets = pictures()
    losses = detector(shown[:images], targets[:images])
    assert set(losses) == {"classification", "bbox_regression"}
    loss = sum(losses.values(), torch.zeros(()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def sgd(detector: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD([p for p in detector.parameters() if p.requires_grad], lr=0.01, momentum=0.9)


def stages_of(module: nn.Module) -> list[GGhostStage]:
    return [part for part in module.modules() if isinstance(part, GGhostStage)]


# -- the body --------------------------------------------------------------------------------------------------


def test_the_body_of_a_backbone_is_rewritten_alone() -> None:
    body, ghosted = converted()
    assert [swap.target for swap in ghosted.plan.swaps] == ["block2", "block3"]
    assert len(stages_of(ghosted.module)) == 2 and not stages_of(body)
    assert type(ghosted.module) is type(body)
    saved = ghosted.before.cost.macs / ghosted.after.cost.macs
    assert 1.7 < saved < 1.8  # 3.2B and 1.8B in the table
    assert ghosted.after.cost.params == 10_511_000 - 1_009_000  # the classifier's row less its linear layer


def test_the_maps_of_all_levels_keep_their_names_and_shapes() -> None:
    body, ghosted = converted()
    x = example()
    with torch.no_grad():
        before, after = (copy.deepcopy(module).eval()(x) for module in (body, ghosted.module))
    assert list(before) == list(after) == list(LEVELS.values())
    assert [value.shape for value in before.values()] == [value.shape for value in after.values()]
    assert all(value.isfinite().all() for value in after.values())


# -- training and detecting ------------------------------------------------------------------------------------


def test_a_detector_trains_on_a_ghosted_backbone() -> None:
    detector = ghosted_detector().train()
    body = detector.backbone.body
    before = {name: parameter.detach().clone() for name, parameter in body.named_parameters()}
    optimizer = sgd(detector)
    assert step(detector, optimizer).isfinite()
    for stage in stages_of(body):
        for layer in (stage.cheap[0], stage.cheap[1], stage.thin[0].f.a[0], stage.end.f.a[0], stage.mix.fc[-1]):
            assert layer.weight.grad.any()
    for name, parameter in body.named_parameters():
        if parameter.ndim == 4 and ".mix." not in name:
            assert not torch.equal(parameter, before[name]), name
    assert step(detector, optimizer).isfinite()  # the mix operation begins as nothing: now its first layers learn, too
    for name, parameter in body.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_a_batch_of_one_image_trains() -> None:
    """A mix operation's norms see a single value of each channel then."""
    detector = ghosted_detector().train()
    assert step(detector, sgd(detector), images=1).isfinite()


def test_detections_have_the_form_they_had() -> None:
    detector, (images, _) = ghosted_detector().eval(), pictures()
    with torch.no_grad():
        found = detector(images)
    assert len(found) == len(images)
    for image, detections in zip(images, found, strict=True):
        assert set(detections) == {"boxes", "scores", "labels"}
        n = len(detections["scores"])
        assert n > 0 and detections["boxes"].shape == (n, 4) and detections["labels"].shape == (n,)
        assert detections["labels"].dtype == torch.int64 and detections["labels"].max() < CLASSES
        height, width = image.shape[1:]
        right, bottom = detections["boxes"][:, 2], detections["boxes"][:, 3]
        assert detections["boxes"].min() >= 0 and right.max() <= width and bottom.max() <= height


def test_a_trained_backbone_comes_back_from_its_folder(tmp_path: Path) -> None:
    body, ghosted = converted()
    detector = ghosted_detector().train()
    step(detector, sgd(detector))
    trained = Ghosted(detector.backbone.body, ghosted.plan, ghosted.before, ghosted.after)
    again = load(save(trained, tmp_path / "run"), model=body)
    state = detector.backbone.body.state_dict()
    assert list(again.module.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in again.module.state_dict().items())
    other = regnet_detector()
    other.backbone.body = again.module
    other.load_state_dict(detector.state_dict())
    images, _ = pictures()
    with torch.no_grad():
        for one, two in zip(detector.eval()(images), other.eval()(images), strict=True):
            assert all(torch.equal(one[key], two[key]) for key in one)


def test_layers_that_were_frozen_stay_frozen() -> None:
    """Detectors do not train the first stages of their backbone."""
    body = regnet_detector().backbone.body
    for part in (body.stem, body.block1, body.block2):
        part.requires_grad_(False)
    ghosted = convert(body, example(), method="g-ghost", preset="regnet").module
    trained = {name for name, parameter in ghosted.named_parameters() if parameter.requires_grad}
    first = {name for name in trained if name.startswith(("stem", "block1", "block2"))}
    assert first and all(".cheap." in name or ".mix." in name for name in first)  # these are new
    assert any(name.startswith("block3.block3-1.thin") for name in trained)


# -- other ways to make a backbone -----------------------------------------------------------------------------


def test_torchvisions_own_detector_trains_on_a_ghosted_backbone() -> None:
    sizes = {"num_classes": CLASSES, "min_size": SIDE, "max_size": SIDE}
    detector = retinanet_resnet50_fpn(weights=None, weights_backbone=None, **sizes)
    ghosted = convert(detector.backbone.body, example(), method="g-ghost")
    assert [swap.target for swap in ghosted.plan.swaps] == ["layer1", "layer2", "layer3", "layer4"]
    detector.backbone.body = ghosted.module
    assert step(detector.train(), sgd(detector)).isfinite()
    for stage in stages_of(detector):
        assert stage.cheap[0].weight.grad.any() and stage.mix.fc.weight.grad.any()


def test_features_can_be_taken_out_of_a_ghosted_classifier() -> None:
    """The other way round: rewritten as a classifier, made a backbone then."""
    classifier = convert(regnet_x_3_2gf(), example(), method="g-ghost", preset="regnet").module
    levels = {f"trunk_output.{block}": level for block, level in LEVELS.items()}
    body = create_feature_extractor(classifier, levels, tracer_kwargs={"leaf_modules": [GGhostStage]})
    detector = regnet_detector()
    detector.backbone.body = body
    assert step(detector.train(), sgd(detector)).isfinite()
    assert all(stage.cheap[0].weight.grad.any() for stage in stages_of(detector))


def test_a_detector_that_resists_as_a_whole_is_converted_part_by_part() -> None:
    """The backbone is found by itself, rewritten and put back; the detector runs as before, and is not touched."""
    detector = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, min_size=64, max_size=64
    ).eval()
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    before = copy.deepcopy(detector.state_dict())
    parts = convert_parts(detector, (images,), pointwise="none")
    assert "backbone" in parts.ghosted and parts.ghosted["backbone"].plan.swaps
    assert any(isinstance(part, CGhost) for part in parts.module.backbone.modules())
    assert not any(isinstance(part, CGhost) for part in detector.modules())
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())
    found = parts.module(images)
    assert [set(one) for one in found] == [{"boxes", "scores", "labels"}] * 2
    assert str(parts).startswith("backbone: ")


def test_a_model_without_a_part_to_convert_is_refused() -> None:
    with pytest.raises(PlanError, match="No part of Sequential would change"):
        convert_parts(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.randn(1, 3, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "ssdlite320_mobilenet_v3_large"])
def test_torchvisions_detectors_are_converted_part_by_part(name: str) -> None:
    small = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 64}
    detector = get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES, **small).eval()
    images = [torch.rand(3, 64, 64)]
    parts = convert_parts(detector, (images,))
    assert parts.ghosted["backbone"].plan.swaps
    (found,) = parts.module(images)
    assert {"boxes", "scores", "labels"} <= set(found)


@pytest.mark.slow
def test_an_optical_flow_network_is_converted_as_a_whole() -> None:
    images = [torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    ghosted = convert(get_model("raft_small", weights=None).eval(), tuple(images), pointwise="none")
    assert ghosted.plan.swaps and ghosted.before.cost.macs > ghosted.after.cost.macs
