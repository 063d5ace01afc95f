"""Mixup and cutmix: what becomes of images and labels, and of what alone it depends."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn.functional import cross_entropy

from ghostify.errors import DataError
from ghostify.finetuning import training_loss
from ghostify.finetuning.mixing import Mix, mix_for
from ghostify.recipe import TrainSettings

BOTH = TrainSettings(mixup=0.8, cutmix=1.0)
PLACES = list(product([0, 1], [0, 3], range(20)))


def images(n: int = 6) -> torch.Tensor:
    """Each of one number, its place in the batch, so that a mix tells who is in it."""
    return torch.arange(float(n))[:, None, None, None].expand(n, 3, 8, 8)


@pytest.mark.parametrize("settings", [TrainSettings(mixup=0.4), TrainSettings(cutmix=1.0), BOTH])
def test_labels_are_shares_of_one_and_say_what_an_image_is_made_of(settings: TrainSettings) -> None:
    labels = torch.arange(6)
    for place in PLACES:
        mix = mix_for(images(), settings, *place)
        assert mix is not None
        soft = mix.labels(labels, 6)
        assert torch.allclose(soft.sum(1), torch.ones(6))
        # an image is the sum of its partners' numbers by their shares, and so is its mean
        wanted = soft @ torch.arange(6.0)
        assert torch.allclose(mix.images(images()).mean((1, 2, 3)), wanted, atol=1e-5)


def test_a_mix_depends_on_seed_epoch_and_batch_alone() -> None:
    state = torch.get_rng_state()
    found = [mix_for(images(), BOTH, *place) for place in PLACES]
    torch.manual_seed(123)
    assert found == [mix_for(images(), BOTH, *place) for place in PLACES]
    torch.set_rng_state(state)
    blended = [mix_for(images(), TrainSettings(mixup=0.8), *place) for place in PLACES]
    assert len({mix.share for mix in blended if mix}) == len(PLACES)
    ways = {bool(mix.box) for mix in found if mix}
    assert ways == {True, False}, "each batch draws one of both"


def test_nothing_is_drawn_from_generators_that_others_use() -> None:
    before = torch.get_rng_state()
    mix = mix_for(images(), BOTH, 0, 0, 0)
    assert mix is not None
    mix.images(images())
    assert torch.equal(before, torch.get_rng_state())


def test_a_box_holds_the_partner_and_the_rest_the_image_itself() -> None:
    mix = Mix(0.75, (slice(0, 4), slice(4, 8)))
    mixed = mix.images(images())
    assert torch.equal(mixed[:, :, :4, 4:], images().roll(1, 0)[:, :, :4, 4:])
    assert torch.equal(mixed[:, :, 4:], images()[:, :, 4:])
    assert torch.equal(images()[1], torch.ones(3, 8, 8)), "the images themselves stay"


@pytest.mark.parametrize("shape", [(4, 2, 16), (4, 2, 5, 9), (4, 2, 3, 6, 5)])
def test_maps_of_any_dimension_are_mixed(shape: tuple[int, ...]) -> None:
    batch = torch.randn(shape)
    for settings in (TrainSettings(mixup=1.0), TrainSettings(cutmix=1.0)):
        for step in range(20):
            mix = mix_for(batch, settings, 0, 0, step)
            assert mix is not None
            assert 0 <= mix.share <= 1
            assert mix.images(batch).shape == batch.shape


def test_settings_that_ask_for_no_mixing_mix_nothing() -> None:
    assert mix_for(images(), TrainSettings(), 0, 0, 0) is None


@pytest.mark.parametrize("batch", [torch.ones(4, 3), torch.ones(4, 3, 8, 8, dtype=torch.int64), (torch.ones(4, 3),)])
def test_what_is_no_batch_of_images_is_refused_in_one_line(batch: object) -> None:
    with pytest.raises(DataError, match="mixup and cutmix mix images"):
        mix_for(batch, BOTH, 0, 0, 0)


def test_the_loss_of_soft_labels_is_the_cross_entropy_of_torch() -> None:
    scores, settings = torch.randn(6, 5), TrainSettings(label_smoothing=0.1)
    soft = Mix(0.3).labels(torch.tensor([0, 1, 2, 3, 4, 0]), 5)
    assert training_loss(scores, soft, None, settings) == pytest.approx(
        cross_entropy(scores, soft, label_smoothing=0.1)
    )
    ruled_out = scores.index_fill(1, torch.tensor([4]), float("-inf"))
    without = Mix(0.3).labels(torch.tensor([0, 1, 2, 3, 0, 1]), 5)
    assert training_loss(ruled_out, without, None, TrainSettings()).isfinite()
