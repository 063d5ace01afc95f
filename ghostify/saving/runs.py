"""Ghosted ⇄ run folder.  Artefacts are data, not code: a source, a plan, safetensors; nothing is pickled.

    run.json            what this is: format, model source, which weights, and the sha256 of every other file
    plan.yaml           the swaps and skips
    scan.json           the network before and after
    fit.json            how its weights were fitted, where they were
    recipe.yaml         the whole experiment, where there was one
    weights-*.safetensors
    report.json         theory, counts and measurements
    environment.json    versions, platform, device, seed

``run.json`` is written last, in one step; a folder without it holds no finished run, and a file that no longer has its
sha256 is refused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from ghostify.arguments import as_path, given, instance, network, or_none, takes
from ghostify.errors import GhostifyError, RunError
from ghostify.files import near_path, replacing, sha256, undone_on_failure
from ghostify.fitting import Fit
from ghostify.planning import read_plan
from ghostify.recipe import ModelSettings, Recipe
from ghostify.reporting import Report
from ghostify.rewriting import Ghosted, rebuilt, rewritten
from ghostify.running import undisturbed
from ghostify.saving.environment import describe_environment
from ghostify.scanning import Scan
from ghostify.sources import build_model

FORMAT = 1
RUN = "run.json"


class Run(BaseModel):
    """What ``run.json`` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    state: str
    """converted, or finetuned."""
    model: ModelSettings | None
    """Where the network came from; None for one that was handed over in Python."""
    weights: str
    original: str | None = None
    """The original network's weights, kept when they exist nowhere else."""
    files: dict[str, str]


class Scans(BaseModel):
    """The network before and after."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: Scan
    after: Scan


# -- writing ---------------------------------------------------------------------------------------------------


def _source(value: Any) -> ModelSettings:
    if isinstance(value, str):
        return ModelSettings(source=value)
    if isinstance(value, ModelSettings):
        return value
    raise RunError(
        f"What rebuilds the network is its source, as in model='torchvision:resnet50', and {given(value)} was given; "
        "without one, load must be given the network."
    )


@takes(
    ghosted=rewritten,
    folder=as_path("runs/mine", RunError),
    model=or_none(_source),
    recipe=or_none(instance(Recipe, maker="ghostify.recipe.read_recipe(path)", error=RunError)),
    report=or_none(instance(Report, maker="ghostify.compare(ghosted)", error=RunError)),
    original=or_none(network),
)
@undisturbed()
def save(
    ghosted: Ghosted,
    folder: str | Path,
    *,
    model: ModelSettings | str | None = None,
    recipe: Recipe | None = None,
    report: Report | None = None,
    original: nn.Module | None = None,
    state: str = "converted",
    environment: dict[str, Any] | None = None,
) -> Path:
    """Write a run folder, or bring one up to date; a crash leaves what was there before.

    ``model`` is the source that rebuilds the network (``torchvision:resnet50``); without it, ``load`` must be given
    the module.  ``original`` is kept too when given.  Raises ``RunError`` when the folder holds another model's run or
    cannot be written.
    """
    folder = Path(folder)
    source = ModelSettings(source=model) if isinstance(model, str) else model or (recipe.model if recipe else None)
    weights = f"weights-{state}.safetensors"
    texts = {
        "plan.yaml": ghosted.plan.to_yaml(),
        "scan.json": Scans(before=ghosted.before, after=ghosted.after).model_dump_json(),
        "environment.json": json.dumps({**describe_environment(), **(environment or {})}, indent=2),
    }
    if ghosted.fit is not None:
        texts["fit.json"] = ghosted.fit.model_dump_json(indent=2)
    if report is not None:
        texts["report.json"] = report.model_dump_json(indent=2)
    if recipe is not None:
        texts["recipe.yaml"] = as_yaml(recipe)
    modules = {weights: ghosted.module} | ({"weights-original.safetensors": original} if original else {})
    with writing(folder), undone_on_failure() as made:
        if not folder.is_dir():
            made.folder(folder)
        kept = _files_kept(folder)
        there = {path.name for path in folder.iterdir()}
        files = {}
        for name in [*texts, *modules]:
            path = folder / name
            files[name] = (
                write_file(path, texts[name].encode()) if name in texts else _write_weights(path, modules[name])
            )
            if name not in there:
                made.file(path)
        run = Run(
            state=state,
            model=source,
            weights=weights,
            original="weights-original.safetensors" if "weights-original.safetensors" in kept | files else None,
            files=kept | files,
        )
        write_file(folder / RUN, run.model_dump_json(indent=2).encode())
    return folder


# -- reading ---------------------------------------------------------------------------------------------------


@takes(folder=as_path("runs/mine", RunError), model=or_none(network))
@undisturbed()
def load(folder: str | Path, model: nn.Module | None = None, example: Any = None) -> Ghosted:
    """The rewritten module of a run folder, on the CPU in eval mode, with bit-equal outputs to the one saved.

    Which parameters were frozen is not in the folder: it is what the source, or ``model``, says.
    ``model`` is the original module, needed only where the run was saved without a source; its weights do not matter.
    ``example`` is one input, needed only where stages of a network that takes no plain tensors were rewritten.
    Raises ``RunError`` for a folder that holds no run, or one with a changed, truncated or unfitting file.
    """
    folder = Path(folder)
    run = read_run(folder)
    plan = read_plan(_verified(folder, run, "plan.yaml"))
    scans = _parsed(Scans, _verified(folder, run, "scan.json"))
    fit = _parsed(Fit, _verified(folder, run, "fit.json")) if "fit.json" in run.files else None
    weights = _verified(folder, run, run.weights)
    inputs = _blank(scans.before) if example is None else example
    module = rebuilt(_base(folder, run, model), plan, inputs)
    _load_weights(module, weights)
    return Ghosted(module.eval(), plan, scans.before, scans.after, fit)


def _blank(scan: Scan) -> Any:
    """An example to rebuild a network with: zeros and, of whole numbers, ones, which are lengths and places, too."""
    kinds = [getattr(torch, kind) for kind in scan.kinds] or [torch.float32] * len(scan.inputs)
    tensors = [
        torch.zeros(shape, dtype=kind) if kind.is_floating_point else torch.ones(shape, dtype=kind)
        for shape, kind in zip(scan.inputs, kinds, strict=True)
    ]
    return dict(zip(scan.names, tensors, strict=True)) if scan.names else tuple(tensors)


def load_original(folder: str | Path) -> nn.Module | None:
    """The network a run began with, trained, or None where the run can no longer tell (weights given in Python)."""
    folder = Path(folder)
    run = read_run(folder)
    if run.original:
        module = _base(folder, run, None)
        _load_weights(module, _verified(folder, run, run.original))
        return module.eval()
    return build_model(run.model).eval() if run.model and run.model.weights else None


def read_run(folder: str | Path) -> Run:
    """What ``run.json`` of a folder says.  Raises ``RunError``."""
    folder = Path(folder)
    path = folder / RUN
    if not folder.is_dir():
        raise RunError(not_there(folder))
    if not path.is_file():
        raise RunError(f"{str(folder)!r} holds no finished run: it has no {RUN}.")
    run = _parsed(Run, path)
    if run.format != FORMAT:
        raise RunError(f"{str(path)!r} has format {run.format}; this version reads format {FORMAT}.")
    return run


def read_report(folder: str | Path) -> Report:
    """The report of a run folder.  Raises ``RunError``."""
    folder = Path(folder)
    return _parsed(Report, _verified(folder, read_run(folder), "report.json"))


def not_there(folder: Path) -> str:
    """What to say of a run folder that is none."""
    if folder.exists():
        return f"{str(folder)!r} is a file, and a run folder is wanted."
    return f"Run folder {str(folder)!r} does not exist.{near_path(folder)}"


def is_run(path: str | Path) -> bool:
    """Whether ``path`` is a folder with a run in it."""
    return (Path(path) / RUN).is_file()


def _base(folder: Path, run: Run, model: nn.Module | None) -> nn.Module:
    if model is not None:
        return model
    if run.model is None:
        raise RunError(
            f"{str(folder)!r} was saved without a model source; load it in Python: load(folder, model=original)."
        )
    return build_model(run.model, pretrained=False)


def _load_weights(module: nn.Module, path: Path) -> None:
    try:
        _match_dtypes(module, path)
        load_model(module, path, strict=True)
    except (RuntimeError, SafetensorError, OSError, KeyError) as problem:
        reason = " ".join(str(problem).split())[:300]
        raise RunError(f"{str(path)!r} does not fit the network its source builds: {reason}") from None


def _match_dtypes(module: nn.Module, path: Path) -> None:
    """Give every tensor the dtype it was saved in, so that a half-precision network comes back as one."""
    with safe_open(path, "pt") as file:
        saved = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        kind = kinds.get(saved.get(name, ""))
        if kind is not None and tensor.dtype != kind:
            tensor.data = tensor.data.to(kind)


def _verified(folder: Path, run: Run, name: str) -> Path:
    """The path of a run's file, once its content is what was written."""
    path = folder / name
    if name not in run.files:
        raise RunError(f"Run {str(folder)!r} has no {name}.")
    if not path.is_file():
        raise RunError(f"{str(path)!r} is missing from its run folder.")
    if sha256(path) != run.files[name]:
        raise RunError(f"{str(path)!r} was changed or truncated since it was written (its sha256 differs); refused.")
    return path


_Model = TypeVar("_Model", bound=BaseModel)


def _parsed(kind: type[_Model], path: Path) -> _Model:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as problem:
        first = problem.errors()[0]["msg"] if isinstance(problem, ValidationError) else str(problem)
        raise RunError(f"{str(path)!r} cannot be read: {first}.") from None


def as_yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


# -- the disk --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise RunError(f"Run folder {str(folder)!r} cannot be written: {reason}.") from problem
    except SafetensorError as problem:
        raise RunError(f"Run folder {str(folder)!r} cannot be written: {problem}.") from problem


def write_file(path: Path, content: bytes) -> str:
    """Write a file under its name in one step, unless it says so already; its sha256."""
    if path.is_file() and path.read_bytes() == content:
        return sha256(path)
    with replacing(path) as new:
        new.write_bytes(content)
    return sha256(path)


def _write_weights(path: Path, module: nn.Module) -> str:
    with replacing(path) as new:
        save_model(module, str(new))
        new.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files only their owner can read
    return sha256(path)


def _files_kept(folder: Path) -> dict[str, str]:
    """The files of the run already there, when it is being brought up to date."""
    if not is_run(folder):
        return {}
    try:
        return dict(read_run(folder).files)
    except GhostifyError:
        return {}
