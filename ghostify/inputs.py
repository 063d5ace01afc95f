"""What a network takes, written by a person: ``[NAME=]SHAPE[:DTYPE]``, once for each of its inputs.

    3,224,224            an image                       1024           a signal
    3,16,112,112         a video                        128:int64      tokens: places in a table
    x=3,32,32            an input by its name           t=scalar:int64 one number for each sample

SHAPE is that of one sample, without the batch; ``x`` may stand for the comma.  Inputs without a name are handed over in
the order given.  A recipe holds the same: ``input: [3, 224, 224]`` for one, a list of such texts for several.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ghostify.errors import did_you_mean

DTYPES = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
)
SCALAR = "scalar"
GRAMMAR = "[NAME=]SHAPE[:DTYPE], as in 3,224,224 or 1024 or tokens=128:int64"


@dataclass(frozen=True)
class InputSpec:
    """One input of a network: the shape of a sample, the dtype's name in torch, and the keyword, if it has one."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    name: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether its shape says all there is to say."""
        return bool(self.shape) and self.dtype == "float32" and not self.name

    def __str__(self) -> str:
        name = f"{self.name}=" if self.name else ""
        kind = f":{self.dtype}" if self.dtype != "float32" else ""
        return f"{name}{','.join(map(str, self.shape)) or SCALAR}{kind}"


Inputs = tuple[InputSpec, ...]


def parse_input(text: str) -> InputSpec:
    """An input as a person writes it.  Raises ``ValueError`` with what is wrong, as the end of a sentence."""
    name, equals, rest = text.strip().rpartition("=")
    shape, _, dtype = rest.partition(":")
    name, dtype = name.strip(), dtype.strip().removeprefix("torch.") or "float32"
    if equals and not name.isidentifier():
        raise ValueError(f"{name!r} is no name of an argument")
    if dtype not in DTYPES:
        raise ValueError(f"{dtype!r} is no dtype of an input.{did_you_mean(dtype, DTYPES)}".removesuffix("."))
    return InputSpec(_shape(shape), dtype, name)


def parse_inputs(value: Any) -> Inputs:
    """All inputs of a network, from a recipe's or a command line's value.  Raises ``ValueError`` as above.

    A whole number or a text is one input; whole numbers in a list are the shape of one; a mapping names each.
    """
    if isinstance(value, Mapping):
        found = [parse_input(f"{name}={_written(one)}") for name, one in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str) and not all(map(_is_size, value)):
        found = [parse_input(_written(one)) for one in value]
    else:
        found = [parse_input(_written(value))]
    _require_told_apart(found)
    return tuple(found)


def settled_inputs(value: Any) -> tuple[int, ...] | tuple[str, ...]:
    """Inputs as a recipe keeps them: the shape of a plain one, else a text for each.  Raises ``ValueError``."""
    found = parse_inputs(value)
    if len(found) == 1 and found[0].is_plain:
        return found[0].shape
    return tuple(map(str, found))


def described(inputs: Inputs) -> str:
    """Inputs in words: ``3x32x32``, or ``x 3x32x32 and t scalar (int64)`` of several with names."""
    return " and ".join(map(_described, inputs))


def _described(spec: InputSpec) -> str:
    kind = f" ({spec.dtype})" if spec.dtype != "float32" else ""
    return f"{spec.name} {'x'.join(map(str, spec.shape)) or SCALAR}{kind}".lstrip()


def _shape(text: str) -> tuple[int, ...]:
    text = text.strip().strip("()[]").strip()
    if text == SCALAR:
        return ()
    sizes = [part.strip() for part in re.split("[,x×]", text)]
    if len(sizes) > 1 and not sizes[-1]:
        sizes.pop()  # Python's way to write a tuple of one
    if not all(size.isdecimal() and int(size) >= 1 for size in sizes):
        raise ValueError(f"the sizes of a shape are whole numbers of 1 or more, and {text!r} are not")
    return tuple(map(int, sizes))


def _written(value: Any) -> str:
    """One input of a recipe as the text of it."""
    if isinstance(value, str | InputSpec):
        return str(value)
    if _is_size(value):
        return f"{value}"
    if isinstance(value, Sequence) and value and all(map(_is_size, value)):
        return ",".join(map(str, value))
    raise ValueError(f"{value!r} is no shape")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_told_apart(inputs: Sequence[InputSpec]) -> None:
    names = [spec.name for spec in inputs]
    if any(names) and not all(names):
        raise ValueError("some inputs have a name and others have none; name all of them or none")
    if any(names) and (twice := next((name for name in names if names.count(name) > 1), None)):
        raise ValueError(f"two inputs have the name {twice!r}")
