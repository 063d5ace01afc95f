"""A user's own data: ``package.module:function`` returns datasets of (input, label) items, of any kind.

An input is a tensor of any shape, a tuple of tensors (positional arguments) or a dict of them (keywords); a label is a
number, a tensor, or anything else that the user's loss and metric understand.  Items are stacked into batches:

    input (C, H, W)     → (N, C, H, W)          label int       → (N,) int64
    input (a, b)        → ((N, …), (N, …))      label float     → (N,) float32
    input {x: a, t: b}  → {x: (N, …), t: …}     label tensor    → (N, …); a tuple of them → a tuple
                                                label of any other kind → a list of N

unless the function gives a ``collate`` of its own, as detectors want.  A list of inputs that it makes holds one entry
per sample, and goes to the network as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from ghostify.arguments import a
from ghostify.batches import Batch, inputs_in
from ghostify.errors import DataError, did_you_mean
from ghostify.inputs import Inputs, InputSpec, described
from ghostify.sources.damaged import read_each
from ghostify.sources.images import Images
from ghostify.sources.named import find_function, reason_of
from ghostify.sources.seeding import seeded, seeds_in

Collate = Callable[[list[Any]], Any]
KEYS = ("train", "val", "test", "classes", "collate")
"""Of what a data function may return."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UserSamples(Images):
    """A user's own dataset of (input, label) items.

    What it draws itself, from torch, numpy or random, is seeded per item: in training by the epoch's draws, else by the
    item's place, so that epochs are compared by the very same samples.
    """

    items: Any
    indices: Sequence[int]
    given: Inputs
    """What the network takes; what items hold is checked by it and, among floats and among whole numbers, cast."""
    name: str
    collate: Collate | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = self.indices[index]
        return self._item(place, place)

    @property
    def inputs(self) -> Inputs:
        return self.given

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of the first input."""
        return self.given[0].shape

    @cached_property
    def has_classes(self) -> bool:
        """As the first label tells."""
        labels = self.batch([0])[1]
        whole = isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex()
        return whole and labels.shape == (1,)

    @property
    def structured(self) -> bool:
        return True

    def batch(self, indices: Sequence[int], draws: Tensor | None = None) -> tuple[Batch, Any]:
        places = [self.indices[index] for index in indices]
        seeds = places if draws is None else seeds_in(draws)
        items = read_each(lambda row: self._item(places[row], seeds[row]), len(places))
        if self.collate is not None:
            with seeded(seeds[0]):  # what a collate draws must not hang on which loader process calls it
                return collated(self.collate, items, self.name)
        return stacked([one for one, _ in items]), together([label for _, label in items], self.name)

    def take(self, indices: Sequence[int]) -> UserSamples:
        return replace(self, indices=[self.indices[index] for index in indices])

    @property
    def known_labels(self) -> Tensor | None:
        """As torchvision's datasets tell them, by ``targets`` or ``labels``."""
        told = getattr(self.items, "targets", getattr(self.items, "labels", None))
        try:
            labels = torch.as_tensor(told)
        except (TypeError, ValueError, RuntimeError):  # it is a user's: it may be anything
            return None
        if labels.shape != (len(self.items),) or labels.is_floating_point():
            return None
        return labels[torch.as_tensor(self.indices)].long()

    def _item(self, place: int, seed: int) -> tuple[Any, Any]:
        one, label = read_item(self.items, place, seed, self.name)
        if self.collate is None:
            one = as_given(one, self.given, place, self.name)
        return one, label


@dataclass(frozen=True)
class UserData:
    """What a data function gave: its datasets, what the network is given of them, and how many classes there are."""

    train: UserSamples | None
    val: UserSamples | None
    test: UserSamples
    classes: tuple[str, ...]


def read_function(name: str, wanted: Inputs | None, classes: int | None, kinds: Sequence[str]) -> UserData:
    """Call ``package.module:function`` and look at what it gives, for a network that takes ``wanted`` (None: anything).

    Raises DataError where that is no data, or not what the network takes.
    """
    function = find_function(name, kinds, DataError)
    try:
        made = function()
    except Exception as problem:  # a user's function may fail in any way
        raise DataError(f"Data function {name!r} failed: {reason_of(problem)}.") from None
    parts = _parts(made, name)
    collate = parts.get("collate") or next(filter(None, map(_own_collate, map(parts.get, KEYS[:3]))), None)
    if collate is not None and not callable(collate):
        raise DataError(f"Data function {name!r}: collate must be a function of a list of (input, label) items.")
    datasets = {split: getattr(parts[split], "dataset", parts[split]) if isinstance(parts[split], DataLoader)
                else parts[split] for split in KEYS[:3] if parts.get(split) is not None}  # fmt: skip
    given = _agreed(datasets["test"], collate, wanted, name)
    samples = {
        split: UserSamples(items=items, indices=range(len(items)), given=given, name=name, collate=collate)
        for split, items in datasets.items()
    }
    named = parts.get("classes")
    names = _class_names(named if named is not None else getattr(datasets["test"], "classes", classes), samples["test"])
    return UserData(samples.get("train"), samples.get("val"), samples["test"], names)


# -- items -----------------------------------------------------------------------------------------------------


def read_item(items: Any, index: int, seed: int, name: str) -> tuple[Any, Any]:
    """Item ``index`` of a user's dataset: an input, and a label that is an int where it is a whole number."""
    try:
        with seeded(seed):
            item = items[index]
    except Exception as problem:  # a user's dataset may fail in any way
        text = " ".join(f"{type(problem).__name__}: {problem}".split())
        raise DataError(f"Data {name!r}: item {index} cannot be read as (input, label): {text}.") from None
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(
            f"Data {name!r}: item {index} cannot be read as (input, label): it is {a(type(item).__name__)}; let the "
            "dataset give pairs."
        )
    one, label = item
    return tuple(one) if isinstance(one, list) else one, _plain(label)


def as_given(one: Any, given: Inputs, place: int, name: str) -> Any:
    """An item's input, checked to be what the network is given, its tensors in those dtypes.  Raises DataError."""
    found = _tensors(one, name, place)
    if [key for key, _ in found] != [spec.name for spec in given]:
        raise DataError(f"Data {name!r}: item {place} holds {_told(found)}, not {described(given)}.")
    made = [_in_dtype(tensor, spec, place, name) for (_, tensor), spec in zip(found, given, strict=True)]
    for tensor, spec in zip(made, given, strict=True):
        if tuple(tensor.shape) != spec.shape:
            what = f"input {spec.name!r} of item" if spec.name else "image"
            raise DataError(f"Data {name!r}: {what} {place} is {tuple(tensor.shape)}, not {spec.shape}.")
    if isinstance(one, Mapping):
        return {spec.name: tensor for spec, tensor in zip(given, made, strict=True)}
    return tuple(made) if isinstance(one, tuple) else made[0]


def stacked(inputs: Sequence[Any]) -> Batch:
    """Inputs of samples, checked before, as one batch."""
    first = inputs[0]
    if isinstance(first, Mapping):
        return {key: torch.stack([one[key] for one in inputs]) for key in first}
    if isinstance(first, tuple):
        return tuple(torch.stack(parts) for parts in zip(*inputs, strict=True))
    return torch.stack(list(inputs))


def together(labels: Sequence[Any], name: str) -> Any:
    """Labels of samples as those of a batch, as the head of this file says.  Raises DataError."""
    first = labels[0]
    if isinstance(first, int) and all(isinstance(label, int) for label in labels):
        return torch.tensor(labels)
    if isinstance(first, int | float) and all(isinstance(label, int | float) for label in labels):
        return torch.tensor(labels, dtype=torch.float32)
    if isinstance(first, Tensor) and all(isinstance(label, Tensor) for label in labels):
        if len({label.shape for label in labels}) > 1:
            shapes = " and ".join(map(str, sorted({tuple(label.shape) for label in labels})[:2]))
            raise DataError(
                f"Data {name!r}: labels of shapes {shapes} cannot be stacked; let the function return a collate, too."
            )
        return torch.stack(list(labels))
    if isinstance(first, tuple) and all(isinstance(label, tuple) and len(label) == len(first) for label in labels):
        return tuple(together(parts, name) for parts in zip(*labels, strict=True))
    return list(labels)


def collated(collate: Collate, items: list[Any], name: str) -> tuple[Batch, Any]:
    """A batch as the user's own function makes it.  Raises DataError where that fails or gives no pair."""
    try:
        inputs, labels = collate(items)
    except Exception as problem:  # a user's function may fail in any way
        raise DataError(f"Data {name!r}: collate cannot make (inputs, labels): {reason_of(problem)}.") from None
    return inputs, labels


def _plain(label: Any) -> Any:
    """Whole numbers and floats as Python's, whichever library they are of; all else as it is."""
    if isinstance(label, int | np.integer):
        return int(label)
    if isinstance(label, np.floating):
        return float(label)
    if isinstance(label, Tensor) and label.dim() == 0 and not label.is_complex():
        return float(label) if label.is_floating_point() else int(label)
    if isinstance(label, np.ndarray):
        return torch.from_numpy(label)
    return label


def _tensors(one: Any, name: str, place: int) -> list[tuple[str, Tensor]]:
    """The tensors of an item's input, by keyword.  Raises DataError where it is anything else."""
    found = list(one.items()) if isinstance(one, Mapping) else [("", part) for part in _positional(one)]
    wrong = next((part for _, part in found if not isinstance(part, Tensor)), None)
    if not found or wrong is not None:
        raise DataError(
            f"Data {name!r}: item {place} must be a tensor (or a tuple or dict of tensors) and a label; its image is "
            f"{type(one if wrong is None else wrong).__name__}."
        )
    return found


def _positional(one: Any) -> tuple[Any, ...]:
    return one if isinstance(one, tuple) else (one,)


def _in_dtype(tensor: Tensor, spec: InputSpec, place: int, name: str) -> Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if tensor.is_floating_point() != dtype.is_floating_point:
        raise DataError(
            f"Data {name!r}: item {place} is {tensor.dtype} {tuple(tensor.shape)}, but the network takes {spec.dtype}."
        )
    return tensor.to(dtype)


# -- what the network takes ------------------------------------------------------------------------------------


def _agreed(items: Any, collate: Collate | None, wanted: Inputs | None, name: str) -> Inputs:
    """What the network is given of a dataset's items.  Raises DataError where that is not what it takes."""
    one, label = read_item(items, 0, 0, name)
    if collate is not None:
        return wanted or _collated_inputs(collated(collate, [(one, label)], name)[0], name)
    found = _tensors(one, name, 0)
    if wanted is None:
        return tuple(_natural(key, tensor, name) for key, tensor in found)
    names, keys = [spec.name for spec in wanted], [key for key, _ in found]
    if any(keys) and len(found) == len(wanted) and not any(names):
        raise DataError(
            f"Data {name!r} gives inputs by name, {_told(found)}, but the network takes {described(wanted)}; name "
            f"them, as in --input {keys[0]}={wanted[0]}."
        )
    if sorted(keys) != sorted(names):
        raise DataError(f"Data {name!r} gives {_told(found)}, but the network takes {described(wanted)}.")
    given = tuple(wanted[names.index(key)] for key in keys) if any(keys) else wanted
    for (_, tensor), spec in zip(found, given, strict=True):
        if tuple(tensor.shape) != spec.shape:
            raise DataError(
                f"Data {name!r} gives images of shape {tuple(tensor.shape)}, but the network takes {spec.shape}"
                f"{f' as {spec.name}' * bool(spec.name)}."
            )
        _in_dtype(tensor, spec, 0, name)
    return given


def _natural(key: str, tensor: Tensor, name: str) -> InputSpec:
    """What an item's tensor says of a network's input, where nothing else does."""
    shape = tuple(tensor.shape)
    if tensor.dtype == torch.uint8 and len(shape) == 3:  # a picture nobody has scaled yet
        written = InputSpec(shape, "uint8", key)
        raise DataError(
            f"Data {name!r}: item 0 must be a float tensor (C, H, W); its image is {tensor.dtype} {shape}. Scale it, "
            f"or say that the network takes bytes: --input {written}."
        )
    kind = "float32" if tensor.dtype == torch.float64 else str(tensor.dtype).removeprefix("torch.")
    return InputSpec(shape, kind, key)


def _collated_inputs(batch: Batch, name: str) -> Inputs:
    if isinstance(batch, list) and batch and isinstance(batch[0], Tensor):
        return (InputSpec(tuple(batch[0].shape)),)
    try:
        return inputs_in(batch)
    except ValueError:
        what = type(batch).__name__
        raise DataError(
            f"Data {name!r}: collate gives inputs of type {what}; they must be a tensor, a tuple or dict of tensors, "
            "or a list of one tensor per sample."
        ) from None


def _told(found: Sequence[tuple[str, Tensor]]) -> str:
    return described(
        tuple(InputSpec(tuple(part.shape), str(part.dtype).removeprefix("torch."), key) for key, part in found)
    )


# -- what a function returned ----------------------------------------------------------------------------------


def _parts(made: Any, name: str) -> Mapping[str, Any]:
    """What a data function returned: its test samples and, where there are any, the others."""
    if isinstance(made, Mapping):
        if extra := [key for key in made if key not in KEYS]:
            hint = did_you_mean(str(extra[0]), KEYS)
            raise DataError(f"Data function {name!r} returned an unknown key {extra[0]!r}.{hint}")
        parts = made
    elif isinstance(made, tuple) and len(made) == 2:
        parts = {"train": made[0], "test": made[1]}
    else:
        what = type(made).__name__
        raise DataError(f"Data function {name!r} returned a {what}, not (train, test) or a dict of {', '.join(KEYS)}.")
    for split in KEYS[:3]:
        part = parts.get(split)
        if not _is_dataset(part) and (split == "test" or part is not None):
            raise DataError(f"Data function {name!r}: {split} must be a dataset with a length and at least one item.")
    return parts


def _is_dataset(part: Any) -> bool:
    items = part.dataset if isinstance(part, DataLoader) else part
    return hasattr(items, "__getitem__") and hasattr(items, "__len__") and len(items) > 0


def _own_collate(part: Any) -> Collate | None:
    """The collate of a user's DataLoader, whose dataset is used in batches and orders of ours."""
    own = isinstance(part, DataLoader) and part.collate_fn is not default_collate
    return part.collate_fn if own else None


def _class_names(named: Any, test: UserSamples) -> tuple[str, ...]:
    """The classes' names, as given, or as many as a number says, or as the labels of the test samples tell."""
    if isinstance(named, Sequence) and not isinstance(named, str):
        return tuple(map(str, named))
    if not isinstance(named, int):
        labels = [label for _, label in map(test.__getitem__, range(len(test)))] if _is_class(test[0][1]) else []
        named = 1 + max(labels) if all(map(_is_class, labels)) and labels else 0
    return tuple(f"class {index}" for index in range(named))


def _is_class(label: Any) -> bool:
    return isinstance(label, int) and label >= 0
