"""How images are prepared: bit for bit as the publishers of the weights do, unless a person says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from image_trees import data, refusal, write_tree
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision import models

from ghostify.cli import main
from ghostify.recipe import DataSettings, ModelSettings
from ghostify.sources import Preprocessing, load_data, own_preprocessing
from ghostify.sources.preprocessing import Scale

SIZES = [(500, 375), (375, 500), (224, 224), (301, 299), (90, 70), (1024, 257)]
"""Of images (width, height)."""


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def prepared(image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(preprocessing.framed(image))).permute(2, 0, 1).float() / 255
    return preprocessing.scale(pixels[None])[0]


def own(source: str, weights: str | None = "DEFAULT", model: Any = None) -> Preprocessing:
    found = own_preprocessing(ModelSettings(source=source, weights=weights), model)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "vit_b_16", "inception_v3", "mobilenet_v3_small"])
@pytest.mark.parametrize("size", SIZES)
def test_torchvisions_weights_get_images_as_they_want_them(name: str, size: tuple[int, int]) -> None:
    truth = models.get_model_weights(name).DEFAULT.transforms()(picture(size))
    assert torch.allclose(prepared(picture(size), own(f"torchvision:{name}")), truth, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ghostnet_100", "vit_tiny_patch16_224", "mobilenetv3_small_050", "resnet10t"])
@pytest.mark.parametrize("size", SIZES)
def test_timms_networks_get_images_as_they_want_them(name: str, size: tuple[int, int]) -> None:
    model = timm.create_model(name)
    truth = create_transform(**resolve_data_config(model=model), is_training=False)(picture(size))
    ours = prepared(picture(size), own(f"timm:{name}", model=model))
    assert torch.allclose(ours, truth, rtol=0, atol=1e-6)  # type: ignore[arg-type]


def test_a_checkpoint_of_torchvisions_is_known_by_its_name() -> None:
    first, second = models.ResNet50_Weights.IMAGENET1K_V1, models.ResNet50_Weights.IMAGENET1K_V2
    named = {one: own("torchvision:resnet50", f"somewhere/{Path(one.url).name}") for one in (first, second)}
    assert (named[first].resize, named[second].resize) == (256, 232)
    assert own("torchvision:resnet50", "mine.pt") == named[second], "of any other file, the default"
    assert "IMAGENET1K_V1" in str(named[first])


@pytest.mark.parametrize("source", ["torchvision:resnet18", "ghostify:resnet20", "mine:net"])
def test_weights_that_nobody_knows_want_nothing(source: str) -> None:
    weights = None if source.startswith("torchvision") else "mine.pt"
    assert own_preprocessing(ModelSettings(source=source, weights=weights), torch.nn.Identity()) is None


def test_detectors_take_images_as_they_are() -> None:
    settings = ModelSettings(source="torchvision:retinanet_resnet50_fpn", weights="DEFAULT")
    assert own_preprocessing(settings, torch.nn.Identity()) is None


HALF = Preprocessing(size=(224, 224), resize=248, scale=Scale(mean=(0.5,) * 3, std=(0.5,) * 3), origin="a test")


def test_data_are_prepared_as_the_network_wants_or_as_a_person_says(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"train": 2, "test": 1}, (90, 70))

    def loaded(**settings: Any) -> Preprocessing:
        made = load_data(DataSettings(source=f"folder:{root}", **settings), (3, 224, 224), own=HALF).preprocessing
        assert made is not None
        return made

    assert loaded() == HALF
    assert loaded(prepare="data") == Preprocessing.usual((3, 224, 224)) and loaded(prepare="data").resize == 256
    changed = loaded(resize=300, interpolation="bicubic", mean=(0.1, 0.2, 0.3), std="0.4,0.5,0.6")
    assert (changed.resize, changed.interpolation, changed.size) == (300, "bicubic", (224, 224))
    assert changed.scale == Scale(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def test_at_another_size_as_much_of_an_image_is_seen() -> None:
    smaller = HALF.at((1, 112, 112))
    assert (smaller.size, smaller.resize, smaller.scale.mean) == ((112, 112), 124, (0.5,))
    assert HALF.at((3, 224, 224)) == HALF


def test_sides_of_any_proportions_fit_in() -> None:
    for size in SIZES:
        for shape in ((3, 66, 120), (3, 120, 66), (3, 32, 64)):
            assert Preprocessing.usual(shape).framed(picture(size)).size == (shape[2], shape[1])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mean": (0.5, 0.5)}, "data.mean must have one number for each of 3 channels, not 2."),
        ({"std": (0.5,)}, "data.std must have one number for each of 3 channels, not 1."),
        ({"resize": 100}, "data.resize 100 is smaller than what is cut out, 224x224; give 224 or more."),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    root = write_tree(tmp_path, {"test": 1}, (90, 70))
    assert says in refusal(lambda: data(f"folder:{root}", (3, 224, 224), **settings))


def test_a_run_keeps_how_its_images_were_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["compress", "ghostify:resnet8", "--data", "fake", "--input", "3,16,16", "--fit", "none", "-o", "run"]
    command += ["--set", "data.mean=[0.1, 0.2, 0.3]", "--set", "data.limit=16", "--no-measure"]
    for arguments in (command, ["optimize", "run", "-o", "fast"]):
        monkeypatch.setattr("sys.argv", ["ghostify", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code in (0, None), capsys.readouterr().err
    said = capsys.readouterr().err
    assert "Images are prepared: shorter side to 16 (bilinear), middle 16x16, mean 0.1 0.2 0.3, std 0.25" in said
    for folder in ("run", "fast"):
        kept = json.loads((tmp_path / folder / "run.json").read_text())["preprocessing"]
        assert kept["scale"] == {"mean": [0.1, 0.2, 0.3], "std": [0.25] * 3}, folder
