"""Networks by name, and weights by file.

``torchvision:NAME``, ``timm:NAME``, ``ghostify:NAME`` or ``package.module:function``.  Only the last runs code that is
not installed software, and only because a person names it; a checkpoint never does.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ghostify import networks
from ghostify.errors import ModelError, WeightsError, did_you_mean
from ghostify.ghosts import ghostnets
from ghostify.recipe import ModelSettings
from ghostify.sources.named import find_function, near_path, one_line

NETWORKS: dict[str, Callable[..., nn.Module]] = {**networks.NETWORKS, **ghostnets.NETWORKS}
KINDS = ("torchvision", "timm", "ghostify")
DEFAULT = "DEFAULT"  # the value of ModelSettings.weights that asks for the source's own trained weights
NESTINGS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "ema", "model_ema", "state_dict_ema")
PICKLES = (b"P", b"\x80")  # how archives (PK) and bare pickles begin
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_FORMS = "torchvision:NAME, timm:NAME, ghostify:NAME, package.module:function, or a run folder"


def build_model(settings: ModelSettings, *, pretrained: bool = True) -> nn.Module:
    """The network that ``settings`` names, in training mode on the CPU, with the weights it asks for.

    With ``pretrained=False`` the weights setting is ignored and the weights are random.  Raises ModelError when the
    network cannot be found or built, and WeightsError when its weights cannot be had.
    """
    weights = settings.weights if pretrained else None
    kind, _, name = settings.source.partition(":")
    build = {"torchvision": _torchvision, "timm": _timm, "ghostify": _ghostify}.get(kind, _function)
    if not name:
        raise ModelError(_unknown_form(settings.source))
    model = build(settings.source, settings.args, weights == DEFAULT)
    if weights is not None and weights != DEFAULT:
        load_weights(model, weights)
    return model


def input_shape(settings: ModelSettings, model: nn.Module) -> tuple[int, int, int] | None:
    """(C, H, W) of one input: as set, or as the source knows it; None where nobody knows.

    Raises ModelError when the shape that is set is not three positive numbers.
    """
    if settings.input is not None:
        return _three(settings.input)
    kind, _, name = settings.source.partition(":")
    if kind == "torchvision":
        return _torchvision_shape(name, model)
    if kind == "timm":
        channels, height, width = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
        return settings.args.get("in_chans", channels), height, width
    if kind == "ghostify":
        size: Any = model.image_size
        return settings.args.get("in_channels", 3), size, size
    return None


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copies the weights in a checkpoint file into ``model``, all of them or, on any misfit, none.

    Reads ``.safetensors`` files and ``torch.save`` files of tensors; a state dict inside the usual wrappings is found.
    Raises WeightsError when the file is missing, damaged, holds code, or was made for another network.
    """
    state = _unprefixed(_state_dict(_read(Path(path).expanduser()), path), model)
    if misfit := "; ".join(_misfits(state, model.state_dict())):
        raise WeightsError(f"Weights {str(path)!r} do not fit this {type(model).__name__}: {misfit}.")
    model.load_state_dict(state)


# --- builders: (source, args, whether its own trained weights are wanted) -> network


def _torchvision(source: str, args: Mapping[str, Any], trained: bool) -> nn.Module:
    from torchvision import models

    name = _known(source, [name for name in models.list_models() if not name.startswith("quantized_")])
    builder = models.get_model_builder(name)
    if trained:
        return _called(source, builder, args, {"weights": DEFAULT}, downloads=True)
    return _called(source, builder, {**_no_surprises(builder), **args}, {"weights": None})


def _timm(source: str, args: Mapping[str, Any], trained: bool) -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ImportError:
        raise ModelError(f"{source!r} needs timm: pip install 'ghostify[timm]'.") from None
    base, _, tag = source.partition(":")[2].partition(".")
    name = _known(f"timm:{base}", timm.list_models()) + (f".{tag}" if tag else "")
    return _called(source, timm.create_model, args, {"model_name": name, "pretrained": trained}, downloads=trained)


def _ghostify(source: str, args: Mapping[str, Any], trained: bool) -> nn.Module:
    builder = NETWORKS[_known(source, list(NETWORKS))]
    _refuse_default(source, trained)
    return _called(source, builder, args)


def _function(source: str, args: Mapping[str, Any], trained: bool) -> nn.Module:
    function = find_function(source, KINDS, ModelError)
    _refuse_default(source, trained)
    return _called(source, function, args)


def _known(source: str, names: list[str]) -> str:
    kind, _, name = source.partition(":")
    if name not in names:
        raise ModelError(f"There is no network {name!r} in {kind}.{did_you_mean(name, names)}")
    return name


def _called(
    source: str,
    build: Callable[..., Any],
    args: Mapping[str, Any],
    fixed: Mapping[str, Any] | None = None,
    *,
    downloads: bool = False,
) -> nn.Module:
    """What ``build`` returns; whatever goes wrong in it becomes one line."""
    try:
        made = build(**(fixed or {}), **args)
    except Exception as problem:  # a constructor, and a download library, may fail in any way
        if downloads and _is_download(problem):
            raise WeightsError(_no_download(source, problem)) from None
        raise ModelError(_cannot_build(source, build, args, problem)) from None
    if not isinstance(made, nn.Module):
        raise ModelError(f"{source!r} returned a {type(made).__name__}; it must return a torch.nn.Module.")
    return made


def _is_download(problem: Exception) -> bool:
    # Hugging Face's "not in the cache" is an OSError and a ValueError; wrong arguments are never an OSError.
    return isinstance(problem, OSError) or not isinstance(problem, TypeError | ValueError | AttributeError)


def _cannot_build(source: str, build: Callable[..., Any], args: Mapping[str, Any], problem: Exception) -> str:
    text = one_line(problem)
    wrong = re.search(r"unexpected keyword argument '(\w+)'", text)
    hint = did_you_mean(wrong[1], _parameters(build) - {wrong[1]}) if wrong and "Did you mean" not in text else ""
    with_args = f" with {', '.join(f'{key}={value!r}' for key, value in args.items())}" if args else ""
    return f"{source!r} cannot be built{with_args}: {text}.{hint}"


def _no_download(source: str, problem: Exception) -> str:
    hint = "; where its files are in the cache already, set HF_HUB_OFFLINE=1" if source.startswith("timm:") else ""
    reason = textwrap.shorten(one_line(problem), 160, placeholder=" ...")
    return f"The trained weights of {source!r} cannot be had ({reason}); pass a checkpoint file as weights{hint}."


def _refuse_default(source: str, trained: bool) -> None:
    if trained:
        raise WeightsError(
            f"{source!r} has no trained weights of its own (DEFAULT); pass a checkpoint file as weights."
        )


def _unknown_form(source: str) -> str:
    from torchvision import models

    name = source.rstrip(":")
    known = [f"ghostify:{name}" for name in NETWORKS] + [f"torchvision:{name}" for name in models.list_models()]
    nearest = next((full for full in known if full.partition(":")[2] == name), None)
    hint = f" Did you mean {nearest!r}?" if nearest else did_you_mean(name, known)
    return f"Model {source!r} does not say where the network comes from; write {_FORMS}.{hint}"


def _no_surprises(builder: Callable[..., Any]) -> dict[str, Any]:
    """Settings that keep a random network random: no backbone is downloaded, and no default initialisation warns."""
    given: dict[str, Any] = {}
    if "weights_backbone" in inspect.signature(builder).parameters:
        given["weights_backbone"] = None
    initialise = _constructor(builder).get("init_weights")
    if initialise is not None and initialise.default is None:
        given["init_weights"] = True  # what None means too, after a warning
    return given


def _parameters(build: Callable[..., Any]) -> set[str]:
    return {*inspect.signature(build).parameters, *_constructor(build)}


def _constructor(build: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of the class that ``build`` says it returns, where it says so."""
    made = inspect.signature(build, eval_str=True).return_annotation
    return inspect.signature(made).parameters if inspect.isclass(made) and made is not inspect.Signature.empty else {}


# --- input shapes


def _three(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ModelError(f"An input shape is three positive numbers, (C, H, W), not {tuple(shape)}.")
    return shape[0], shape[1], shape[2]


def _torchvision_shape(name: str, model: nn.Module) -> tuple[int, int, int] | None:
    from torchvision import models

    if models.get_model_builder(name).__module__.startswith(("torchvision.models.video", "torchvision.models.optical")):
        return None  # clips and pairs of frames are not (C, H, W)
    preset: Any = models.get_model_weights(name).DEFAULT.transforms
    known = getattr(preset, "keywords", {})
    # A transformer is built for one size, and its best weights' preset may speak of another.
    size = getattr(model, "image_size", None) or known.get("crop_size") or known.get("resize_size") or 224
    return 3, size, size


# --- checkpoints


def _read(path: Path) -> Any:
    """Whatever a checkpoint file holds, read without running anything in it."""
    if not path.exists():
        raise WeightsError(f"Weights file {str(path)!r} does not exist.{near_path(path)}")
    if path.is_dir():
        raise WeightsError(f"Weights {str(path)!r} is a folder; name the checkpoint file in it.")
    if path.stat().st_size == 0:
        raise WeightsError(f"Weights file {str(path)!r} is empty.")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as problem:
        raise WeightsError(_damaged(path, problem)) from None


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at what is wrong; the error says it
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as problem:  # a damaged archive fails in many ways
        raise WeightsError(_refused(path, problem) or _damaged(path, problem)) from None


def _refused(path: Path, problem: Exception) -> str:
    """Why a file is refused for holding code; empty when that is not the problem."""
    content = ""
    if "TorchScript" in str(problem):
        content = "a TorchScript program"
    elif isinstance(problem, pickle.UnpicklingError) and "Unsupported" in str(problem):
        with path.open("rb") as file:
            content = "pickled Python objects" if file.read(1) in PICKLES else ""  # any text is "unsupported", too
    return content and f"Weights file {str(path)!r} holds {content}, refused; re-save it as model.state_dict()."


def _damaged(path: Path, problem: Exception) -> str:
    if isinstance(problem, PermissionError):
        return f"Weights file {str(path)!r} cannot be read: permission denied."
    return f"Weights file {str(path)!r} is damaged, truncated, or not a checkpoint ({type(problem).__name__})."


def _state_dict(content: Any, path: str | Path) -> dict[str, Any]:
    """The state dict in a checkpoint's content, found inside the wrappings that training scripts use."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in NESTINGS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise WeightsError(f"Weights file {str(path)!r} holds a {type(content).__name__}, not a state dict.")
    if not any(isinstance(value, Tensor) for value in content.values()):
        keys = ", ".join(map(str, list(content)[:5])) or "none"
        raise WeightsError(f"Weights file {str(path)!r} holds no weights; its keys: {keys}.")
    return {str(key): value for key, value in content.items()}


def _unprefixed(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """``state`` without the wrappers' prefixes that all its keys share and the model's keys do not."""
    wanted = list(model.state_dict())
    for prefix in PREFIXES * 2:  # DDP around a compiled module, or the other way round
        ours = all(key.startswith(prefix) for key in wanted)
        if not ours and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _misfits(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    # Checkpoints older than torch 0.4.1 lack the batch counters, and torch fills them in.
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {_shape(state[key])}, not {_shape(value)}"
        for key, value in wanted.items()
        if key in state and _shape(state[key]) != _shape(value)
    ]
    for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
        if keys:
            yield f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"


def _shape(value: Any) -> str:
    return "x".join(map(str, value.shape)) or "scalar" if isinstance(value, Tensor) else type(value).__name__
