"""The public surface: a name or a signature changes only together with this file."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ghostify

NAMES = [
    "Analysis",
    "Bench",
    "CGhost",
    "Exported",
    "FitSettings",
    "GGhostStage",
    "GhostSettings",
    "Ghosted",
    "GhostifyError",
    "Optimized",
    "Parts",
    "Plan",
    "Recipe",
    "Recording",
    "Report",
    "Scan",
    "TrainSettings",
    "Traced",
    "analyze",
    "bench",
    "compare",
    "convert",
    "convert_parts",
    "export",
    "finetune",
    "load",
    "optimize",
    "plan",
    "read_plan",
    "record",
    "rewrite",
    "rewrite_fitted",
    "save",
    "scan",
    "trace",
]

OLD_NAMES = {"Parts": "Ghosted"}
"""Names from before two things came to be one, and what that is called."""

SIGNATURES = {
    "convert_parts": [
        "model: nn.Module",
        "example: Any",
        "ghost: GhostSettings | Mapping[str, Any] | str | None = None",
        "**changes: Any",
        "-> Ghosted",
    ],
    "analyze": [
        "model: nn.Module",
        "images: Batch",
        "settings: AnalysisSettings | Mapping[str, Any] | None = None",
        "*",
        "trained: bool | None = None",
        "source: str = ''",
        "data: str = ''",
        "notes: Sequence[str] = ()",
        "device: torch.device | None = None",
        "camera: Camera | None = None",
        "told: Told | None = None",
        "**changes: Any",
        "-> Analysis",
    ],
    "bench": [
        "models: Mapping[str, nn.Module | Ghosted]",
        "example: Any",
        "*",
        "runtimes: str | Sequence[str] = 'eager'",
        "batches: int | Sequence[int] = 1",
        "threads: int | Sequence[int] = 1",
        "device: Device | None = None",
        "seconds: float = 3.0",
        "-> Bench",
    ],
    "export": [
        "model: nn.Module | Ghosted",
        "file: str | Path",
        "*",
        "to: str = 'onnx'",
        "example: Any = None",
        "images: Batch | None = None",
        "labels: Tensor | None = None",
        "calibration: Batch | None = None",
        "dynamic: str = ''",
        "precision: str = 'fp32'",
        "half_io: bool = False",
        "opset: int | None = None",
        "form: str = 'inference'",
        "-> Exported",
    ],
    "CGhost": [
        "in_channels: int",
        "out_channels: int",
        "kernel_size: int | tuple[int, int]",
        "stride: int | tuple[int, int] = 1",
        "padding: str | int | tuple[int, int] = 0",
        "dilation: int | tuple[int, int] = 1",
        "groups: int = 1",
        "bias: bool = True",
        "padding_mode: PaddingMode = 'zeros'",
        "device: Any = None",
        "dtype: Any = None",
        "*",
        "s: int = 2",
        "d: int = 3",
        "norm: Callable[[int], nn.Module] | None = None",
        "act: Callable[[], nn.Module] | None = None",
        "pointwise: int = 0",
        "ordered: bool = False",
        "cheap: Cheap | str | None = None",
        "m: int | None = None",
        "-> None",
    ],
    "compare": [
        "ghosted: Ghosted",
        "latency: Comparison | None = None",
        "accuracy: Mapping[str, Accuracy | Score] | None = None",
        "notes: Sequence[str] = ()",
        "agreement: float | None = None",
        "clock: Measured | None = None",
        "classes: Sequence[str] = ()",
        "-> Report",
    ],
    "convert": [
        "model: nn.Module",
        "example: Any",
        "ghost: GhostSettings | Mapping[str, Any] | str | None = None",
        "*",
        "images: Batch | Iterable[Any] | None = None",
        "fit: FitSettings | Mapping[str, Any] | str | None = None",
        "budget: BudgetSettings | Mapping[str, Any] | str | None = None",
        "**changes: Any",
        "-> Ghosted",
    ],
    "finetune": [
        "model: nn.Module | Ghosted",
        "data: TrainingData",
        "settings: TrainSettings | Mapping[str, Any]",
        "*",
        "teacher: nn.Module | None = None",
        "seed: int = 0",
        "device: Device | None = None",
        "batch_size: int = 128",
        "workers: int = 0",
        "checkpoint: Path | None = None",
        "progress: Progress | None = None",
        "measure: Measure | None = None",
        "loss: Callable[..., Any] | None = None",
        "known: bool = False",
        "-> History",
    ],
    "load": [
        "folder: str | Path",
        "model: nn.Module | None = None",
        "example: Any = None",
        "-> Ghosted",
    ],
    "optimize": ["ghosted: Ghosted | nn.Module", "example: Any = None", "-> Optimized"],
    "plan": [
        "scan: Scan",
        "settings: GhostSettings | Mapping[str, Any] | str | None = None",
        "*",
        "device: torch.device | None = None",
        "fitted: bool = False",
        "refused: Refused | None = None",
        "**changes: Any",
        "-> Plan",
    ],
    "read_plan": [
        "path: str | Path",
        "-> Plan",
    ],
    "record": [
        "model: nn.Module",
        "example: Any",
        "-> Recording",
    ],
    "rewrite": [
        "recorded: Recording | Traced",
        "plan: Plan",
        "choices: Choices | None = None",
        "-> Ghosted",
    ],
    "rewrite_fitted": [
        "recorded: Recording | Traced",
        "plan: Plan",
        "images: Batch | Iterable[Any] | None",
        "settings: FitSettings | Mapping[str, Any] | str | None = None",
        "*",
        "device: torch.device | None = None",
        "told: Progress | None = None",
        "-> Ghosted",
    ],
    "save": [
        "ghosted: Ghosted",
        "folder: str | Path",
        "*",
        "model: ModelSettings | str | None = None",
        "recipe: Recipe | None = None",
        "report: Report | None = None",
        "original: nn.Module | None = None",
        "state: str = 'converted'",
        "environment: dict[str, Any] | None = None",
        "overwrite: bool = False",
        "preprocessing: Preprocessing | None = None",
        "-> Path",
    ],
    "scan": [
        "model: Traced | Recording | nn.Module",
        "example: Any = None",
        "*",
        "stages: Sequence[Sequence[str]] = ()",
        "whole: bool = False",
        "steady: Sequence[str] = ()",
        "stream: Stream = 'scaled'",
        "-> Scan",
    ],
    "trace": [
        "module: nn.Module",
        "example: Any",
        "*",
        "verify: bool = True",
        "-> Traced",
    ],
}


def signature(name: str) -> list[str]:
    found = inspect.signature(getattr(ghostify, name))
    parts: list[str] = []
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        parts.append(described(parameter))
    return [*parts, f"-> {found.return_annotation}"]


def described(parameter: inspect.Parameter) -> str:
    stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{stars}{parameter.name}: {parameter.annotation}{default}"


def test_the_public_names_are_these() -> None:
    assert sorted(ghostify.__all__) == sorted(NAMES)
    assert dir(ghostify) == sorted([*NAMES, "__version__"])


def test_every_public_name_is_there_and_is_itself() -> None:
    """Lazily loaded, a name is the one object its chapter defines."""
    for name in NAMES:
        value = getattr(ghostify, name)
        own = OLD_NAMES.get(name, name)
        assert value.__name__ == own
        assert getattr(sys.modules[value.__module__], own) is value


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_these(name: str) -> None:
    assert signature(name) == SIGNATURES[name]


def test_every_public_function_has_its_signature_pinned() -> None:
    assert set(SIGNATURES) == {name for name in NAMES if inspect.isfunction(getattr(ghostify, name))} | {"CGhost"}


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_documented(name: str) -> None:
    text = getattr(ghostify, name).__doc__
    assert text and len(text.split()) >= 5
    assert not text.startswith((f"{name}(", "Usage docs"))  # what dataclasses and pydantic write by themselves


@pytest.mark.parametrize("name", [name for name in NAMES if inspect.isclass(getattr(ghostify, name))])
def test_every_public_method_is_documented_or_tells_itself(name: str) -> None:
    """Methods of the class itself; ``table`` and the like, which only return a value of their name, may do without."""
    kind = getattr(ghostify, name)
    told = {"table", "forward", "extra_repr", "by_layer", "by_stage"}
    for method, value in vars(kind).items():
        if inspect.isfunction(value) and not method.startswith("_") and value.__module__.startswith("ghostify"):
            assert value.__doc__ or method in told, f"{name}.{method}"


def test_errors_are_one_tree() -> None:
    from ghostify import errors

    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, Exception)]
    assert len(kinds) >= 9
    assert all(issubclass(kind, ghostify.GhostifyError) and kind.__doc__ for kind in kinds)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'prune'"):
        ghostify.prune  # noqa: B018


def test_importing_the_package_waits_for_nothing_heavy() -> None:
    """Its names are told by dir() all the same."""
    code = (
        "import sys, ghostify; dir(ghostify); print(sorted({'torch', 'pydantic', 'numpy', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(ghostify.__file__).parents[1]
    )
    assert done.stdout.strip() == "[]"


def test_the_version_is_one_number() -> None:
    assert [part.isdigit() for part in ghostify.__version__.split(".")] == [True] * 3
