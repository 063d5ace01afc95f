"""A teacher's feature maps: where they are compared, by what, and that nothing of it reaches the teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import ghostify
from ghostify.errors import RecipeError
from ghostify.finetuning.distilling import Teacher, maps_at, places_for
from ghostify.networks import resnet20
from ghostify.recipe import TrainSettings
from tests.blobs import held_images, net, train

STAGES = TrainSettings(distill=0.5, features=1.0)
BLOCKS = TrainSettings(distill=0.5, features=1.0, features_at="blocks")
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    return resnet20().eval()


def test_stages_are_compared_at_the_outputs_of_their_last_blocks(original: nn.Module) -> None:
    ends = ("layer1.2", "layer2.2", "layer3.2")
    assert places_for(resnet20(), original, X[:1], STAGES) == tuple(zip(ends, ends, strict=True))


def test_blocks_are_all_compared(original: nn.Module) -> None:
    places = places_for(resnet20(), original, X[:1], BLOCKS)
    assert [mine for mine, _ in places] == [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]


@pytest.mark.parametrize("method", ["c-ghost", "thin", "g-ghost"])
@pytest.mark.parametrize("settings", [STAGES, BLOCKS])
def test_what_was_made_of_a_network_has_maps_of_its_shapes(
    original: nn.Module, method: str, settings: TrainSettings
) -> None:
    ghosted = ghostify.convert(original, X[:1], method=method)
    teacher = Teacher(original, places_for(ghosted, original, X[:1], settings))
    assert teacher.places
    with teacher.watching(ghosted.module.train()) as ours:
        ghosted.module(X)
    _, theirs = teacher.taught(X)
    assert float(teacher.missed(ours, theirs).detach()) > 0


def test_of_a_g_ghost_stage_only_the_whole_is_compared(original: nn.Module) -> None:
    """What follows the first block is one module there, which gives what the last block gave."""
    ghosted = ghostify.convert(original, X[:1], method="g-ghost", include=["layer2"])
    places = [mine for mine, _ in places_for(ghosted, original, X[:1], BLOCKS)]
    assert places == ["layer1.0", "layer1.1", "layer1.2", "layer2.0", "layer2.2", "layer3.0", "layer3.1", "layer3.2"]


def test_the_loss_is_that_of_its_formula_and_zero_for_the_teacher_itself(original: nn.Module) -> None:
    teacher = Teacher(original, (("layer1.2", "layer1.2"), ("layer3.2", "layer3.2")))
    torch.manual_seed(1)
    student = resnet20().eval()
    with teacher.watching(student) as ours:
        student(X)
    _, theirs = teacher.taught(X)
    found = [(ours[name].detach(), theirs[name]) for name in ("layer1.2", "layer3.2")]
    by_hand = [float((mine - other).square().mean() / other.var(correction=0)) for mine, other in found]
    assert float(teacher.missed(ours, theirs).detach()) == pytest.approx(sum(by_hand) / 2)
    assert float(teacher.missed(theirs, theirs)) == 0


def test_no_gradient_reaches_the_teacher_and_none_of_its_hooks_stays(original: nn.Module) -> None:
    teacher = Teacher(original, places_for(resnet20(), original, X[:1], STAGES))
    student = resnet20()
    with teacher.watching(student) as ours:
        student(X)
    answer, theirs = teacher.taught(X)
    assert not answer.requires_grad
    assert not any(maps.requires_grad for maps in theirs.values())
    teacher.missed(ours, theirs).backward()
    assert all(parameter.grad is None for parameter in original.parameters())
    assert student.get_parameter("layer1.0.conv1.weight").grad is not None
    for module in (*student.modules(), *original.modules()):
        assert not module._forward_hooks


def test_hooks_go_even_after_an_error(original: nn.Module) -> None:
    with pytest.raises(KeyError), maps_at(original, ["layer1.2"]):
        raise KeyError
    assert not original.get_submodule("layer1.2")._forward_hooks


def test_another_network_teaches_stage_by_stage(original: nn.Module) -> None:
    class Renamed(nn.Module):
        """The same network under other names."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = resnet20()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.inner(x))

    places = places_for(Renamed(), original, X[:1], STAGES)
    assert places == tuple((f"inner.layer{stage}.2", f"layer{stage}.2") for stage in (1, 2, 3))


def test_maps_of_other_shapes_are_refused_in_one_line(original: nn.Module) -> None:
    student = resnet20(width=8)
    teacher = Teacher(original, places_for(student, original, X[:1], STAGES))
    with teacher.watching(student) as ours:
        student(X)
    _, theirs = teacher.taught(X)
    with pytest.raises(RecipeError, match=r"'layer1\.2' gives \(2, 8, 16, 16\), the teacher's 'layer1\.2' \(2, 16,"):
        teacher.missed(ours, theirs)


def test_a_network_without_stages_is_refused_in_one_line() -> None:
    with pytest.raises(RecipeError, match="Small has none"):
        places_for(net(), net(), torch.randn(1, 3, 4, 4), STAGES)


class Halved(nn.Module):
    """A network of one stage fewer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = resnet20()
        self.inner.layer3 = nn.Sequential(*list(self.inner.layer3)[:2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.inner(x))


def test_another_number_of_stages_is_refused_in_one_line(original: nn.Module) -> None:
    with pytest.raises(RecipeError, match="the network has 2 stages, its teacher 3"):
        places_for(Halved(), original, X[:1], STAGES)


def test_without_features_nothing_is_looked_at(original: nn.Module) -> None:
    assert places_for(net(), original, X[:1], TrainSettings(distill=0.5)) == ()


def test_training_brings_maps_nearer_and_leaves_the_teacher_as_it_was() -> None:
    teacher = resnet20(3).eval()
    before = copy.deepcopy(teacher.state_dict())
    images = next(iter(held_images()))[0]
    missed = []
    for features in (0.0, 2.0):
        torch.manual_seed(1)
        student = resnet20(3)
        train(student, TrainSettings(epochs=6, lr=0.01, distill=0.5, features=features), teacher=teacher)
        taught = Teacher(teacher, places_for(student, teacher, images[:1], STAGES))
        with torch.no_grad(), taught.watching(student.train()) as ours:
            student(images)
        _, theirs = taught.taught(images)
        missed.append(float(taught.missed(ours, theirs)))
    assert missed[1] < missed[0]
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
