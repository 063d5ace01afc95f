"""Networks by name, and weights by file.

``torchvision:NAME``, ``timm:NAME``, ``ghostify:NAME`` or ``package.module:function``.  Only the last runs code that is
not installed software, and only because a person names it; a checkpoint never does.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ghostify import networks
from ghostify.errors import ModelError, WeightsError, did_you_mean
from ghostify.files import near_path
from ghostify.ghosts import ghostnets
from ghostify.inputs import Inputs, InputSpec, parse_inputs
from ghostify.recipe import ModelSettings
from ghostify.sources.named import find_function, reason_of
from ghostify.sources.weights import load_weights

NETWORKS: dict[str, Callable[..., nn.Module]] = {**networks.NETWORKS, **ghostnets.NETWORKS}
KINDS = ("torchvision", "timm", "ghostify")
DEFAULT = "DEFAULT"  # the value of ModelSettings.weights that asks for the source's own trained weights
_FORMS = "torchvision:NAME, timm:NAME, ghostify:NAME, package.module:function, or a run folder"


def build_model(
    settings: ModelSettings, *, pretrained: bool = True, told: Callable[[str], None] = lambda note: None
) -> nn.Module:
    """The network that ``settings`` names, in training mode on the CPU, with the weights it asks for.

    With ``pretrained=False`` the weights setting is ignored and the weights are random.  ``told`` is called with each
    sentence a person should know of the weights that were taken.  Raises ModelError when the
    network cannot be found or built, and WeightsError when its weights cannot be had.
    """
    weights = settings.weights if pretrained else None
    require_form(settings.source)
    kind = settings.source.partition(":")[0]
    build = {"torchvision": _torchvision, "timm": _timm, "ghostify": _ghostify}.get(kind, _function)
    model = build(settings.source, settings.args, weights == DEFAULT)
    if weights is not None and weights != DEFAULT:
        strict, allowed = settings.weights_strict, settings.weights_allow
        for note in load_weights(model, weights, key=settings.weights_key, strict=strict, allowed=allowed):
            told(note)
    return model


def model_inputs(settings: ModelSettings, model: nn.Module) -> Inputs | None:
    """What the network takes: as set, or as the source knows it; None where nobody knows."""
    if settings.input is not None:
        return parse_inputs(settings.input)
    shape = input_shape(settings, model)
    return (InputSpec(shape),) if shape else None


def input_shape(settings: ModelSettings, model: nn.Module) -> tuple[int, ...] | None:
    """The shape of a sample, as in (C, H, W): as set, or as the source knows it; None where nobody knows, or where the
    network takes several inputs.
    """
    if settings.input is not None:
        inputs = parse_inputs(settings.input)
        return inputs[0].shape if len(inputs) == 1 else None
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
    text = reason_of(problem)
    wrong = re.search(r"unexpected keyword argument '(\w+)'", text)
    hint = did_you_mean(wrong[1], _parameters(build) - {wrong[1]}) if wrong and "Did you mean" not in text else ""
    with_args = f" with {', '.join(f'{key}={value!r}' for key, value in args.items())}" if args else ""
    return f"{source!r} cannot be built{with_args}: {text}.{hint}"


def _no_download(source: str, problem: Exception) -> str:
    hint = "; where its files are in the cache already, set HF_HUB_OFFLINE=1" if source.startswith("timm:") else ""
    reason = textwrap.shorten(reason_of(problem), 160, placeholder=" ...")
    return f"The trained weights of {source!r} cannot be had ({reason}); pass a checkpoint file as weights{hint}."


def _refuse_default(source: str, trained: bool) -> None:
    if trained:
        raise WeightsError(
            f"{source!r} has no trained weights of its own (DEFAULT); pass a checkpoint file as weights."
        )


def require_form(source: str) -> None:
    """Refuse what does not say where a network comes from.  Raises ``ModelError``."""
    if source.partition(":")[2]:
        return
    path = Path(source)
    if path.suffix == ".py":
        module = ".".join(part for part in path.with_suffix("").parts if part != path.anchor)
        raise ModelError(
            f"Model {source!r} is a file of code; name the function in it that builds the network: {module}:NAME."
        )
    if source and path.is_file():
        raise ModelError(
            f"Model {source!r} is a file, not a network; weights go to --weights, behind the network that they are of: "
            f"torchvision:NAME --weights {source}."
        )
    if source and path.is_dir():
        raise ModelError(f"Model {source!r} is a folder without a finished run: it has no run.json.")
    if len(path.parts) > 1:
        raise ModelError(f"Run folder {source!r} does not exist.{near_path(path, whole=True)}")
    raise ModelError(_unknown_form(source))


def _unknown_form(source: str) -> str:
    from torchvision import models

    home, _, function = source.rpartition(".")
    if source.endswith(":") and source != ":":
        return f"Model {source!r} does not say where the network comes from, because no name stands behind the colon."
    for module, name in ((source, "NAME"), (home, function)):
        if module and Path(module.replace(".", "/")).with_suffix(".py").is_file():
            return f"Model {source!r} names no function; write {module}:{name}."

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


def _torchvision_shape(name: str, model: nn.Module) -> tuple[int, int, int] | None:
    from torchvision import models

    if models.get_model_builder(name).__module__.startswith(("torchvision.models.video", "torchvision.models.optical")):
        return None  # clips and pairs of frames are not (C, H, W)
    preset: Any = models.get_model_weights(name).DEFAULT.transforms
    known = getattr(preset, "keywords", {})
    # A transformer is built for one size, and its best weights' preset may speak of another.
    size = getattr(model, "image_size", None) or known.get("crop_size") or known.get("resize_size") or 224
    return 3, size, size
