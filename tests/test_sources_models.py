"""Networks by name and weights by file: what is found, and the one line that says why something is not."""

from __future__ import annotations

import sys
import urllib.error
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ghostify.errors import GhostifyError, ModelError, WeightsError
from ghostify.inputs import InputSpec
from ghostify.recipe import ModelSettings
from ghostify.sources import build_model, input_shape, model_inputs

USER_MODULE = """
from torch import nn
number = 3
def small(width=4): return nn.Conv2d(3, width, 1)
def nothing(): return {"not": "a module"}
def broken(): raise KeyError("lost")
class Net(nn.Conv2d):
    def __init__(self, width=4): super().__init__(3, width, 1)
"""


def model(source: str, **settings: Any) -> nn.Module:
    return build_model(ModelSettings(source=source, **settings))


def refusal(call: Callable[[], Any], error: type[GhostifyError]) -> str:
    """The message of the ``error`` that ``call`` raises: always one line, always a sentence, never chained."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text and text.endswith((".", "?"))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return text


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(v, w) for (a, v), (b, w) in pairs)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a user's module in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "user_nets", raising=False)
    (tmp_path / "user_nets.py").write_text(USER_MODULE)
    return tmp_path


# --- found


@pytest.mark.parametrize(
    ("source", "args", "shape", "outputs"),
    [
        ("torchvision:squeezenet1_1", {"num_classes": 5}, (3, 224, 224), 5),
        ("timm:mobilenetv3_small_050", {"num_classes": 5, "in_chans": 1}, (1, 224, 224), 5),
        ("ghostify:resnet8", {"num_classes": 5, "in_channels": 1}, (1, 32, 32), 5),
        ("ghostify:vgg16_cifar", {}, (3, 32, 32), 10),
        ("ghostify:c_ghostnet_0_5", {"num_classes": 5, "in_channels": 1}, (1, 224, 224), 5),
    ],
)
def test_a_named_network_takes_the_shape_its_source_tells(
    source: str, args: dict[str, Any], shape: tuple[int, int, int], outputs: int
) -> None:
    if source.startswith("timm:"):
        pytest.importorskip("timm")
    settings = ModelSettings(source=source, args=args)
    built = build_model(settings)
    assert built.training
    assert input_shape(settings, built) == shape
    assert built.eval()(torch.rand(1, *shape)).shape == (1, outputs)


@pytest.mark.parametrize("name", ["small", "Net"])
def test_a_users_function_is_called_with_its_arguments(here: Path, name: str) -> None:
    settings = ModelSettings(source=f"user_nets:{name}", args={"width": 6})
    built = build_model(settings)
    assert isinstance(built, nn.Conv2d) and built.out_channels == 6
    assert input_shape(settings, built) is None


def test_a_random_network_warns_of_nothing_and_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("downloads"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("googlenet", "lraspp_mobilenet_v3_large"):
            model(f"torchvision:{name}")


def test_arguments_win_over_the_quiet_defaults() -> None:
    torch.manual_seed(0)
    plain = model("torchvision:googlenet", args={"init_weights": False})
    torch.manual_seed(0)
    initialised = model("torchvision:googlenet")
    assert not equal(plain, initialised)


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        ("torchvision:inception_v3", (3, 299, 299)),
        ("torchvision:resnet18", (3, 224, 224)),
        ("torchvision:efficientnet_b1", (3, 240, 240)),
        ("torchvision:deeplabv3_resnet50", (3, 520, 520)),
        ("torchvision:r3d_18", None),
    ],
)
def test_torchvision_input_shapes(source: str, shape: tuple[int, int, int] | None) -> None:
    assert input_shape(ModelSettings(source=source), nn.Identity()) == shape


def test_the_input_setting_wins() -> None:
    assert input_shape(ModelSettings(source="ghostify:resnet8", input=(1, 8, 9)), nn.Identity()) == (1, 8, 9)


def test_what_a_network_takes_is_as_set_or_as_its_source_tells() -> None:
    plain = ModelSettings(source="ghostify:resnet8")
    assert model_inputs(plain, build_model(plain)) == (InputSpec((3, 32, 32)),)
    several = ModelSettings(source="ghostify:resnet8", input=("x=3,8,8", "t=scalar:int64"))
    assert model_inputs(several, nn.Identity()) == (InputSpec((3, 8, 8), name="x"), InputSpec((), "int64", "t"))
    assert input_shape(several, nn.Identity()) is None
    assert model_inputs(ModelSettings(source="torchvision:r3d_18"), nn.Identity()) is None


# --- not found, not built


@pytest.mark.parametrize(
    ("source", "args", "says"),
    [
        ("torchvision:resnet118", {}, "Did you mean 'resnet18'?"),
        ("torchvision:quantized_resnet18", {}, "no network 'quantized_resnet18'"),
        ("ghostify:resnet57", {}, "Did you mean 'resnet56'?"),
        ("ghostify:c_ghostnet_10", {}, "Did you mean 'c_ghostnet_1_0'?"),
        ("timm:resnt50", {}, "Did you mean 'resnet50"),
        ("resnet18", {}, "Did you mean 'torchvision:resnet18'?"),
        ("resnet56", {}, "Did you mean 'ghostify:resnet56'?"),
        ("c_ghostnet_1_0", {}, "Did you mean 'ghostify:c_ghostnet_1_0'?"),
        ("resnet", {}, "torchvision:NAME, timm:NAME, ghostify:NAME, package.module:function"),
        ("torchvision:", {}, "does not say where"),
        ("", {}, "does not say where"),
        ("torchvison:resnet18", {}, "Did you mean 'torchvision'?"),
        ("some/path:fn", {}, "not the name of a Python module"),
        ("user_nets:smal", {}, "has no function 'smal'. Did you mean 'small'?"),
        ("user_nets:number", {}, "is a int, not a function"),
        ("user_nets:nothing", {}, "returned a dict; it must return a torch.nn.Module"),
        ("user_nets:broken", {}, "KeyError: 'lost'"),
        ("user_nets:small", {"widht": 3}, "Did you mean 'width'?"),
        ("ghostify:resnet8", {"width": 5}, "with width=5: width must be an even number"),
        ("ghostify:resnet8", {"num_clases": 5}, "Did you mean 'num_classes'?"),
        ("ghostify:vgg16_cifar", {"groups": 1}, "unexpected keyword argument 'groups'."),
        ("torchvision:resnet18", {"num_clases": 5}, "Did you mean 'num_classes'?"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, "multiple values for keyword argument 'weights'"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_line(here: Path, source: str, args: dict[str, Any], says: str) -> None:
    if source.startswith("timm:"):
        pytest.importorskip("timm")
    assert says in refusal(lambda: model(source, args=args), ModelError)


@pytest.mark.parametrize(
    ("code", "says"),
    [("def f(:", "SyntaxError"), ("import no_such_thing", "No module named 'no_such_thing'"), ("1/0", "ZeroDivision")],
)
def test_a_users_module_that_cannot_be_imported_is_one_line(here: Path, code: str, says: str) -> None:
    (here / "bad_nets.py").write_text(code)
    assert says in refusal(lambda: model("bad_nets:f"), ModelError)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'ghostify[timm]'" in refusal(lambda: model("timm:resnet18"), ModelError)


# --- trained weights of the source's own


def test_default_weights_come_from_the_source_unless_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(1)
    trained = squeezenet1_1()
    asked: list[str] = []
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda url, *a, **k: asked.append(url) or trained.state_dict()
    )
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", torch.hub.load_state_dict_from_url)
    settings = ModelSettings(source="torchvision:squeezenet1_1", weights="DEFAULT")
    assert not equal(build_model(settings, pretrained=False), trained) and not asked
    assert equal(build_model(settings), trained) and len(asked) == 1


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    text = refusal(lambda: model("torchvision:squeezenet1_1", weights="DEFAULT"), WeightsError)
    assert "no route to host" in text and "pass a checkpoint file" in text


def test_timm_weights_that_cannot_be_downloaded_name_the_offline_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")

    class NotInCache(FileNotFoundError, ValueError):
        """As huggingface_hub's LocalEntryNotFoundError, which is both."""

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise NotInCache("cannot find the requested files\n\nin the local cache")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", offline)
    text = refusal(lambda: model("timm:mobilenetv3_small_050", weights="DEFAULT"), WeightsError)
    assert "HF_HUB_OFFLINE=1" in text


def test_wrong_arguments_are_not_mistaken_for_a_failed_download() -> None:
    args = {"num_classes": 10}  # torchvision's own weights have 1000
    settings = {"weights": "DEFAULT", "args": args}
    assert "1000" in refusal(lambda: model("torchvision:squeezenet1_1", **settings), ModelError)


@pytest.mark.parametrize("source", ["ghostify:resnet8", "user_nets:small"])
def test_a_source_without_trained_weights_says_so(here: Path, source: str) -> None:
    assert "no trained weights" in refusal(lambda: model(source, weights="DEFAULT"), WeightsError)
