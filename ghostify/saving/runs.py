"""Ghosted ⇄ run folder.  Artefacts are data, not code: a source, a plan, safetensors; nothing is pickled.

    run.json            what this is: format, model source, which weights, and the sha256 of every other file
    plan.yaml           the swaps and skips
    scan.json           the network before and after
    fit.json            how its weights were fitted, where they were
    span.safetensors    what its layers read of the images that it was fitted to
    recipe.yaml         the whole experiment, where there was one
    weights-*.safetensors
    report.json         theory, counts and measurements
    environment.json    versions, platform, device, seed
    README.md           a model card: what this is, for who finds it elsewhere

Beside them lie ``training/``, what training went through, ``request.json`` and ``plan-given.yaml``, what an interrupted
run was asked for, and checkpoints.

``run.json`` is written last, in one step, after the others were read back; a folder without it holds no finished run,
and a file that no longer has its sha256 is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import nn

from ghostify.arguments import as_path, given, instance, network, or_none, takes
from ghostify.costs import Cost
from ghostify.errors import GhostifyError, ModelError, RewriteError, RunError, WeightsError
from ghostify.files import near_path, undone_on_failure
from ghostify.fit_result import Fit
from ghostify.inference import Optimized
from ghostify.measuring.span import Span
from ghostify.planning import Plan, read_plan
from ghostify.recipe import ModelSettings, Recipe, read_yaml, validated
from ghostify.reporting import Report, compare
from ghostify.reporting.card import CARD, card
from ghostify.rewriting import Ghosted, rewritten
from ghostify.running import undisturbed
from ghostify.saving import blanks
from ghostify.saving.blanks import Blank, blank_from, blank_from_source, fill
from ghostify.saving.environment import describe_environment
from ghostify.saving.installing import NAMES, RUN, Installation, listed, owned, require_owned, writing
from ghostify.saving.weights import require_plain, write_weights
from ghostify.scanning import Scan
from ghostify.scanning.form import Form
from ghostify.settings import first_problem
from ghostify.sources import Preprocessing, build_model

FORMAT = 1
STATES = ("converted", "finetuned")
ORIGINAL = "weights-original.safetensors"
RECIPE = "recipe.yaml"
SPAN = "span.safetensors"


class Run(BaseModel):
    """What ``run.json`` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    state: str
    """converted, or finetuned."""
    form: Literal["training", "inference"] = "training"
    """Which form of the network the weights are of."""
    model: ModelSettings | None
    """Where the network came from; None for one that was handed over in Python."""
    weights: str
    original: str | None = None
    """The original network's weights, kept when they exist nowhere else."""
    files: dict[str, str]
    directory: str | None = None
    """The folder it was made in, where the source or the weights are found from there."""
    preprocessing: Preprocessing | None = None
    """How images were prepared for it; None where that is not known, or there are no images."""


class Scans(BaseModel):
    """The network before and after."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: Scan
    after: Scan
    inference: Cost | None = None
    """What the inference form costs, where the network is in it."""


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
    overwrite: bool = False,
    preprocessing: Preprocessing | None = None,
) -> Path:
    """Write a run folder, read it back, and only then call it saved; a crash leaves what was there before.

    ``model`` is the source that rebuilds the network (``torchvision:resnet50``); without it, ``load`` must be given
    the module.  ``original`` is kept too when given.  A run that is there is replaced only with ``overwrite``; the
    finetuned state of a converted run is put beside it.  ``preprocessing`` tells how images were prepared for it.

    Raises ``RunError`` when the folder holds another run or a file that is no run's, when it cannot be written, and
    when the run would not come back: ``model`` builds another network, or the network keeps what no file can hold.
    """
    source = ModelSettings(source=model) if isinstance(model, str) else model
    return save_rehearsed(
        ghosted,
        Path(folder),
        model=source,
        recipe=recipe,
        report=report,
        original=original,
        state=state,
        environment=environment,
        overwrite=overwrite,
        preprocessing=preprocessing,
    )


@undisturbed()
def save_rehearsed(
    ghosted: Ghosted,
    folder: Path,
    *,
    model: ModelSettings | None,
    recipe: Recipe | None,
    report: Report | None,
    original: nn.Module | None,
    state: str,
    environment: dict[str, Any] | None,
    overwrite: bool,
    blank: Blank | None = None,
    preprocessing: Preprocessing | None = None,
) -> Path:
    """``save``, with the ``blank`` that ``rehearse`` gave for this network, where it did."""
    source = model or (recipe.model if recipe else None)
    texts = _texts(folder, ghosted, recipe, report, environment)
    listed_there = [*texts, _weights_of(state)]
    texts[CARD] = card(report or compare(ghosted), source, _form(ghosted), listed_there).encode()
    with writing(folder), undone_on_failure() as made:
        old = _run_there(folder, ghosted, source, state, overwrite)
        blank = _blank_for(ghosted, source, blank)
        if not folder.is_dir():
            made.folder(folder)
        new = Installation(folder)
        try:
            for name, text in texts.items():
                new.add(name, lambda path, text=text: path.write_bytes(text))  # type: ignore[misc]
            weights = _add_weights(new, ghosted, blank, original, state)
            files = (old.files if old else {}) | new.files
            kept = ORIGINAL if ORIGINAL in files else None
            where = str(Path.cwd()) if source and found_from_here(source) else None
            run = Run(
                state=state,
                form=_form(ghosted),
                model=source,
                weights=weights,
                original=kept,
                files=files,
                directory=where,
                preprocessing=preprocessing,
            )
            new.commit(run.model_dump_json(indent=2))
        except BaseException:
            new.undo()
            raise
    return folder


def rehearse(
    source: ModelSettings, plan: Plan, present: nn.Module, example: Any, folder: Path, pristine: bool = True
) -> Blank | None:
    """Find out before any long work whether a run could be saved and would come back; what ``save`` is given then.

    ``present`` is the network as it is now, ``pristine`` where its source built just that, and ``example`` one input.
    None where only ``load`` with an example could tell.  Raises ``RunError`` as ``save`` does, and
    ``RewriteError`` where the plan cannot be carried out.
    """
    known = owned(folder)
    for name in (*NAMES, *map(_weights_of, STATES), ORIGINAL):
        require_owned(folder, name, known)
    require_plain(present)
    blank = _blank(source, plan, Form.of_example(example), carried_out=not pristine)
    if blank is not None and pristine:
        blanks.require_alike(present, blank.original, blank.built_by)
    return blank


def require_own_run(folder: Path, recipe: Recipe) -> None:
    """Refuse a folder with a run, or a request for one, that another recipe made.  Raises ``RunError``."""
    if _recipe_there(folder, recipe) is None:
        require_owned(folder, RECIPE, {})
        if is_run(folder):
            raise _taken(folder)
    if is_run(folder) and read_run(folder).state != STATES[0]:
        raise _taken(folder)


def _texts(
    folder: Path, ghosted: Ghosted, recipe: Recipe | None, report: Report | None, more: Mapping[str, Any] | None
) -> dict[str, bytes]:
    """What is written, by file name, apart from the weights."""
    texts = {
        "plan.yaml": ghosted.plan.to_yaml(),
        "scan.json": _scans(ghosted).model_dump_json(),
        "environment.json": json.dumps({**describe_environment(), **(more or {})}, indent=2),
    }
    if ghosted.fit is not None:
        texts["fit.json"] = ghosted.fit.model_dump_json(indent=2)
    if report is not None:
        texts["report.json"] = report.model_dump_json(indent=2)
    contents = {name: text.encode() for name, text in texts.items()}
    if ghosted.span is not None:
        contents[SPAN] = to_safetensors(ghosted.span.tensors())
    if recipe is not None:
        contents[RECIPE] = _recipe_there(folder, recipe) or as_yaml(recipe).encode()
    return contents


def _weights_of(state: str) -> str:
    return f"weights-{state}.safetensors"


def _form(ghosted: Ghosted) -> Literal["training", "inference"]:
    return "inference" if isinstance(ghosted, Optimized) else "training"


def _scans(ghosted: Ghosted) -> Scans:
    inference = ghosted.inference if isinstance(ghosted, Optimized) else None
    return Scans(before=ghosted.before, after=ghosted.after, inference=inference)


def _recipe_there(folder: Path, recipe: Recipe) -> bytes | None:
    """The recipe in the folder as a person wrote it, comments and all, where it asks for the same."""
    path = folder / RECIPE
    try:
        there = recipe_begun_with(path, RECIPE) if path.is_file() else None
    except RunError:
        return None
    return path.read_bytes() if there and _request(there) == _request(recipe) else None


def recipe_begun_with(path: Path, where: str) -> Recipe:
    """The recipe in a run folder's file; of a version that measured nothing before it swapped, one that goes on so.

    Raises ``RunError`` with ``where``.
    """
    values = read_yaml(path, RunError, "Recipe")
    if isinstance(values, dict):
        values = {"budget": {"measure": False}} | values
    return validated(Recipe, values, where, RunError)


def _request(recipe: Recipe) -> Recipe:
    """A recipe without its learning rates, which a run settles where they were left open."""
    trainings = {"pretrain": recipe.pretrain, "finetune": recipe.finetune}
    open_rates = {name: one.model_copy(update={"lr": None}) for name, one in trainings.items() if one}
    return recipe.model_copy(update=open_rates)


def _run_there(folder: Path, ghosted: Ghosted, source: ModelSettings | None, state: str, overwrite: bool) -> Run | None:
    """The run that is brought up to date, if one is.  Raises ``RunError`` where one would be lost."""
    if not is_run(folder):
        return None
    old = read_run(folder)  # also to be overwritten: another program's run.json is none of ours
    if overwrite:
        return None
    goes_on = (old.state, state) == STATES and (old.form, old.model) == (_form(ghosted), source)
    if goes_on and read_plan(_verified(folder, old, "plan.yaml")) == ghosted.plan:
        return old
    raise _taken(folder)


def _taken(folder: Path) -> RunError:
    return RunError(
        f"{str(folder)!r} holds a run already, which is not overwritten; choose another folder, or in Python give "
        "overwrite=True."
    )


def _blank_for(ghosted: Ghosted, source: ModelSettings | None, blank: Blank | None) -> Blank | None:
    """A network to read the run back into; None where there is no source to build one."""
    require_plain(ghosted.module)
    if source is None:
        return None
    if blank is None or blank.plan != ghosted.plan:
        form, optimized = Form.of_scan(ghosted.before), isinstance(ghosted, Optimized)
        blank = _blank(source, ghosted.plan, form, optimized=optimized)
    if blank is not None:
        blanks.require_alike(ghosted.module, blank.module, blank.built_by)
    return blank


def _blank(
    source: ModelSettings, plan: Plan, form: Form, carried_out: bool = True, optimized: bool = False
) -> Blank | None:
    """``carried_out`` says that the plan was, on the network that the source is said to build."""
    if not blanks.can_rebuild(plan, form, optimized):
        return None
    try:
        return blank_from_source(source, plan, form, optimized)
    except GhostifyError as problem:
        if isinstance(problem, RewriteError) and not carried_out:
            raise  # the plan itself cannot be carried out, which is no fault of the source
        raise blanks.cannot_rebuild(repr(source.source), problem) from None


def _add_weights(
    new: Installation, ghosted: Ghosted, blank: Blank | None, original: nn.Module | None, state: str
) -> str:
    """Write the weights and read them back; the name of the network's file."""
    name, builder = _weights_of(state), blank.built_by if blank else "the original"
    written = new.add(name, lambda path: write_weights(ghosted.module, path))
    blanks.require_readable(written, ghosted.module, blank.module if blank else None, builder)
    if blank is not None:
        blanks.require_same_outputs(ghosted, blank)
    if original is not None:
        written = new.add(ORIGINAL, lambda path: write_weights(original, path))
        blanks.require_readable(written, original, blank.original if blank else None, builder)
    return name


def found_from_here(source: ModelSettings) -> bool:
    """Whether a source or its weights are found from the folder that one stands in."""
    kind = source.source.partition(":")[0]
    own_code = kind not in ("torchvision", "timm", "ghostify")
    return own_code or (source.weights not in (None, "DEFAULT") and not Path(str(source.weights)).is_absolute())


# -- reading ---------------------------------------------------------------------------------------------------


@takes(folder=as_path("runs/mine", RunError), model=or_none(network))
@undisturbed()
def load(folder: str | Path, model: nn.Module | None = None, example: Any = None) -> Ghosted:
    """The rewritten module of a run folder, on the CPU in eval mode, with bit-equal outputs to the one saved; an
    ``Optimized`` where the folder holds an inference form.

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
    base, form, builder = _base(folder, run, model), Form.of_scan(scans.before), _builder(run, model)
    blank = blank_from(base, plan, form, builder, example, optimized=run.form == "inference")
    fill(blank.module, weights, blank.built_by)
    loaded = Ghosted(blank.module.eval(), plan, scans.before, scans.after, fit, span=_span(folder, run))
    if blank.changes is None or scans.inference is None:
        return loaded
    return Optimized(**vars(loaded), inference=scans.inference, changes=blank.changes)


def _span(folder: Path, run: Run) -> Span | None:
    """What its layers read of the images it was fitted to, where the run tells."""
    return Span.from_tensors(load_file(_verified(folder, run, SPAN))) if SPAN in run.files else None


def load_original(folder: str | Path) -> nn.Module | None:
    """The network a run began with, trained, or None where the run can no longer tell (weights given in Python)."""
    folder = Path(folder)
    run = read_run(folder)
    if run.original:
        module = _base(folder, run, None)
        fill(module, _verified(folder, run, run.original), _builder(run, None))
        return module.eval()
    return _built(run, pretrained=True).eval() if run.model and run.model.weights else None


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
    return f"Run folder {str(folder)!r} does not exist.{near_path(folder, whole=True)}"


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
    return _built(run, pretrained=False)


def _built(run: Run, pretrained: bool) -> nn.Module:
    """The network of a run's source.  What is found only from the folder the run was made in is told with its path."""
    assert run.model is not None
    try:
        return build_model(run.model, pretrained=pretrained)
    except (ModelError, WeightsError) as problem:
        if run.directory is None or run.directory == str(Path.cwd()):
            raise
        hint = f"The run was made in {run.directory!r}: load it from there, or put that folder on PYTHONPATH."
        raise type(problem)(f"{problem} {hint}") from None


def _builder(run: Run, model: nn.Module | None) -> str:
    return repr(run.model.source) if run.model and model is None else "the module given"


def _verified(folder: Path, run: Run, name: str) -> Path:
    """The path of a run's file, once its content is what was written."""
    path = folder / name
    if name not in run.files:
        raise RunError(f"Run {str(folder)!r} has no {name}.")
    found = listed(folder, name, run.files[name])
    if found is None and not path.is_file():
        raise RunError(f"{str(path)!r} is missing from its run folder.")
    if found is None:
        raise RunError(f"{str(path)!r} was changed or truncated since it was written (its sha256 differs); refused.")
    return found


_Model = TypeVar("_Model", bound=BaseModel)


def _parsed(kind: type[_Model], path: Path) -> _Model:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as problem:
        raise RunError(f"{str(path)!r} cannot be read: {first_problem(kind, problem)[1]}") from None
    except OSError as problem:
        raise RunError(f"{str(path)!r} cannot be read: {problem.strerror}.") from None


def as_yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
