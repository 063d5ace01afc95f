"""The runtimes by name."""

from __future__ import annotations

from ghostify.errors import RecipeError, did_you_mean
from ghostify.runtimes.in_onnxruntime import OnnxRuntime
from ghostify.runtimes.in_openvino import OpenVino
from ghostify.runtimes.in_torch import Compiled, Eager
from ghostify.runtimes.protocol import Runtime

RUNTIMES: dict[str, Runtime] = {one.name: one for one in (Eager(), Compiled(), OnnxRuntime(), OpenVino())}


def runtime(name: str) -> Runtime:
    """The runtime of that name, with all that it needs.

    Raises ``RecipeError`` when there is none of the name, or when a package that it needs is not installed.
    """
    if name not in RUNTIMES:
        raise RecipeError(
            f"There is no runtime {name!r}; give one of {', '.join(RUNTIMES)}.{did_you_mean(name, RUNTIMES)}"
        )
    found = RUNTIMES[name]
    found.require_packages()
    return found
