"""Which weights of a checkpoint a network takes.

Training scripts wrap a network (``module.``, ``_orig_mod.``), put it inside a larger one (``model.``), average it
(``ema``), and save other things beside it.  So every mapping of tensors in a file is looked at, under every prefix that
its names share with the network's, and the one that fits is taken; where several do, that is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ghostify.errors import WeightsError, did_you_mean
from ghostify.sources.checkpoints import read_checkpoint

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that parallel, compiled, sharded and checkpointed modules add."""
AVERAGES = ("ema", "swa", "averag", "shadow")
"""What the names of averaged weights hold."""
_DEPTH = 5
"""How many wrappings deep weights are looked for."""
_NAMED = 3
"""Entries that are named in a sentence; the others are counted."""
TOP = "top"
"""What the weights at a file's top level are called, with no prefix."""


@dataclass(frozen=True)
class Misfit:
    """What keeps weights from fitting a network, by the network's names."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shapes: Mapping[str, str]
    """By entry of another shape, what it is and what it should be."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.shapes)

    def __str__(self) -> str:
        shapes = [f"{name} is {what}" for name, what in self.shapes.items()]
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": shapes}
        return "; ".join(f"{len(names)} {what} ({_listed(names)})" for what, names in kinds.items() if names)


@dataclass(frozen=True)
class Candidate:
    """A mapping of tensors in a file, seen as weights of the network."""

    label: str
    """Where it stands in the file, as in ``state_dict`` or ``ema.shadow``, with the prefix of its names behind it."""
    entries: Mapping[str, Any]
    """By the network's names."""
    left: tuple[str, ...]
    """Names that do not have the prefix, and so are not the network's."""

    @property
    def averaged(self) -> bool:
        return any(word in self.label.lower() for word in AVERAGES)


def load_weights(
    model: nn.Module, path: str | Path, *, key: str | None = None, strict: bool = True, allowed: Iterable[str] = ()
) -> tuple[str, ...]:
    """Copies the weights in a checkpoint file into ``model``: all of them or, on any misfit, none.

    The file is ``.safetensors`` or written by ``torch.save``; the weights are found inside the usual wrappings, and
    ``key`` says which are meant where several would fit (``model_ema``).  With ``strict=False`` what fits is taken and
    the rest left.  ``allowed`` are classes the file may hold (``argparse.Namespace``).

    Returns what a person should know, a sentence each: what was left over, and what else could have been taken.
    Raises ``WeightsError`` when the file is missing, damaged, holds code, or was made for another network.
    """
    content = read_checkpoint(Path(path).expanduser(), allowed)
    where = f"Weights {str(path)!r}"
    found = _chosen_by_key(_candidates(content, model, path), key, where)
    tried = [(candidate, _misfit(candidate, model)) for candidate in found]
    fitting = [candidate for candidate, misfit in tried if not misfit]
    if fitting:
        chosen, notes = _one_of(fitting, where)
        _take(model, chosen.entries)
        return (*notes, *_left_over(chosen, where))
    closest, misfit = min(tried, key=lambda pair: len(pair[1]))
    says = f"{where} do not fit this {type(model).__name__}: {misfit}."
    shared = {name: value for name, value in closest.entries.items() if _goes_in(name, value, misfit)}
    if not shared:
        raise WeightsError(says)
    if strict:
        raise WeightsError(f"{says} To load what fits and leave the rest, add --weights-strict no.")
    _take(model, shared)
    loaded = "1 entry that fits was" if len(shared) == 1 else f"{len(shared)} entries that fit were"
    return (f"{says} {loaded} loaded.", *_left_over(closest, where))


# -- what a file holds -----------------------------------------------------------------------------------------


def _candidates(content: Any, model: nn.Module, path: str | Path) -> list[Candidate]:
    """Everything in a file that may be the network's weights.  Raises ``WeightsError`` where nothing is."""
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping):
        raise WeightsError(f"Weights file {str(path)!r} holds a {type(content).__name__}, not a state dict.")
    mappings = list(_mappings(content))
    if not mappings:
        keys = ", ".join(map(str, list(content)[:5])) or "none"
        raise WeightsError(f"Weights file {str(path)!r} holds no weights; its keys: {keys}.")
    names = list(model.state_dict())
    found = [candidate for label, state in mappings for candidate in _under_prefixes(label, state, names)]
    return found or [_seen_as(*mappings[0], "", str, names)]


def _mappings(content: Mapping[Any, Any], label: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping in a file that holds tensors, and where it stands."""
    state = {str(name): _as_tensor(value) for name, value in content.items()}
    if any(isinstance(value, Tensor) for value in state.values()):
        yield label, {name: value for name, value in state.items() if not isinstance(value, Mapping)}
    if depth:
        for name, value in content.items():
            if isinstance(value, Mapping):
                yield from _mappings(value, f"{label}.{name}".strip("."), depth - 1)


def _as_tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, numpy.ndarray) and value.dtype.kind in "fiub" else value


def _under_prefixes(label: str, state: Mapping[str, Any], names: Sequence[str]) -> Iterator[Candidate]:
    """A mapping under the prefix with which most of its names are the network's, and any that covers half of them.

    Wrappers at the head of a name are a prefix like any other; those further in are looked past where that finds more.
    """
    views: list[tuple[Callable[[str], str], Counter[str]]] = [
        (view, _prefixes(state, names, view)) for view in (str, _unwrapped) if _tells_apart(view, state, names)
    ]
    view, prefixes = max(views, key=lambda pair: max(pair[1].values(), default=0))
    for place, (prefix, covered) in enumerate(prefixes.most_common()):
        if place == 0 or 2 * covered >= len(names):
            yield _seen_as(label, state, prefix, view, names)


def _tells_apart(view: Callable[[str], str], *groups: Iterable[str]) -> bool:
    return all(len({view(name) for name in names}) == len(list(names)) for names in groups)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(state: Iterable[str], names: Iterable[str], view: Callable[[str], str]) -> Counter[str]:
    """How many of the network's names a mapping holds behind each prefix."""
    wanted = {view(name) for name in names}
    found: Counter[str] = Counter()
    for name in map(view, state):
        starts = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]
        found.update(name[:start] for start in starts if name[start:] in wanted)
    return found


def _seen_as(
    label: str, state: Mapping[str, Any], prefix: str, view: Callable[[str], str], names: Iterable[str]
) -> Candidate:
    own = {view(name): name for name in names}
    inside = {name: view(name).removeprefix(prefix) for name in state if view(name).startswith(prefix)}
    entries = {own.get(inner, inner): state[name] for name, inner in inside.items()}
    left = tuple(name for name in state if name not in inside)
    full = ".".join(filter(None, (label, prefix.rstrip("."))))
    return Candidate(full or TOP, entries, left)


# -- which of it -----------------------------------------------------------------------------------------------


def _chosen_by_key(found: Sequence[Candidate], key: str | None, where: str) -> Sequence[Candidate]:
    if key is None:
        return found
    asked = [candidate for candidate in found if key in (candidate.label, candidate.label.partition(".")[0])]
    if not asked:
        labels = [candidate.label for candidate in found]
        raise WeightsError(f"{where} hold no {key!r}; they hold {', '.join(labels)}.{did_you_mean(key, labels)}")
    return asked


def _one_of(fitting: Sequence[Candidate], where: str) -> tuple[Candidate, list[str]]:
    """One of the weights that fit: the averaged ones, which is what training scripts test and publish.

    Raises ``WeightsError`` where it cannot be told which are meant.
    """
    averaged = [candidate for candidate in fitting if candidate.averaged]
    chosen = averaged[0] if len(averaged) == 1 else fitting[0]
    others = [candidate for candidate in fitting if candidate is not chosen and not _equal(candidate, chosen)]
    if not others:
        return chosen, []
    labels = ", ".join(repr(candidate.label) for candidate in others)
    if len(averaged) != 1:
        raise WeightsError(
            f"{where} hold several networks that fit: {chosen.label!r}, {labels}; say which, as in "
            f"--weights-key {chosen.label}."
        )
    return chosen, [
        f"{where}: the averaged weights {chosen.label!r} were taken; to take {labels} instead, add "
        f"--weights-key {others[0].label}."
    ]


def _equal(one: Candidate, other: Candidate) -> bool:
    same = one.entries.keys() == other.entries.keys()
    return same and all(torch.equal(value, other.entries[name]) for name, value in one.entries.items())


def _left_over(chosen: Candidate, where: str) -> list[str]:
    if not chosen.left:
        return []
    count = f"{len(chosen.left)} {'entry' if len(chosen.left) == 1 else 'entries'}"
    return [f"{where}: {count} beside the network ({_listed(chosen.left)}) {_were(chosen.left)} left out."]


def _were(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"


# -- whether it fits -------------------------------------------------------------------------------------------


def _misfit(candidate: Candidate, model: nn.Module) -> Misfit:
    """What keeps a candidate from fitting, found by loading it; the model has its own weights again afterwards.

    Loading is what tells, because modules may take weights under other names (older weight norms do).
    """
    own = model.state_dict()
    shapes = {
        name: f"{_shape(value)}, not {_shape(own[name])}"
        for name, value in candidate.entries.items()
        if name in own and _shape(value) != _shape(own[name])
    }
    missing, unexpected = _tried(model, {k: v for k, v in candidate.entries.items() if k not in shapes})
    # Checkpoints older than torch 0.4.1 lack the batch counters, and torch fills them in.
    lacking = [name for name in missing if name not in shapes and not name.endswith("num_batches_tracked")]
    return Misfit(tuple(lacking), tuple(unexpected), shapes)


def _tried(model: nn.Module, entries: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The missing and the unexpected keys of a state dict, with the model as it was afterwards."""
    kept = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    try:
        result = model.load_state_dict(dict(entries), strict=False)
        return list(result.missing_keys), list(result.unexpected_keys)
    except Exception:  # a module's own loading may fail in any way; then nothing of this can be taken
        return list(kept), list(entries)
    finally:
        model.load_state_dict(kept, strict=False)


def _goes_in(name: str, value: Any, misfit: Misfit) -> bool:
    return isinstance(value, Tensor) and name not in misfit.shapes and name not in misfit.unexpected


def _take(model: nn.Module, entries: Mapping[str, Any]) -> None:
    model.load_state_dict(dict(entries), strict=False)


def _listed(names: Iterable[str]) -> str:
    named = list(names)
    return ", ".join(named[:_NAMED]) + (", ..." if len(named) > _NAMED else "")


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return "x".join(map(str, value.shape)) or "scalar"
