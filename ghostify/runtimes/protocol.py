"""What a runtime is: a network and an example in, a session out, whose call is one forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import nn

from ghostify.errors import GhostifyError, ModelError, RecipeError
from ghostify.running import evaluating, one_line

Session = Callable[[], Any]
"""One forward pass on the example it was made with; it gives the outputs as its runtime has them.

Torch's own sessions are to be called as ``measuring.timed`` calls them: in inference mode, within ``pinned_threads``
and with the module in eval mode.  Others have copied all they need.
"""


class Runtime(ABC):
    """A program that runs networks."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    """What it imports beside torch; the extra of ghostify that installs them has the runtime's name."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    """The kinds of device it runs on here; none named means on every one."""

    @abstractmethod
    def version(self) -> str:
        """As its makers number it.  How a network gets there depends on the version of torch as well."""

    @abstractmethod
    def _session(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int) -> Session:
        """As ``session``; whatever it raises is told in one line."""

    def session(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        *,
        threads: int = 1,
        device: torch.device | str = "cpu",
    ) -> Session:
        """Set up one forward pass of ``module`` (on ``device``, like its arguments) with ``threads`` CPU threads.

        All that is done once (exporting, compiling, choosing kernels) is done here; the module is left as it was.
        Raises ``RecipeError`` for a device that the runtime does not run on, ``ModelError`` where it cannot run the
        network.
        """
        self.require_device(torch.device(device))
        try:
            with evaluating(module):
                return self._session(module, args, dict(kwargs or {}), threads)
        except GhostifyError:
            raise
        except Exception as problem:  # exporters and compilers raise anything
            raise self.refusal(one_line(problem)) from problem

    def refusal(self, reason: str) -> ModelError:
        """The error that says why the runtime cannot run a network."""
        return ModelError(f"The runtime {self.name} cannot run this network: {reason.rstrip('.')}.")

    def require_device(self, device: torch.device) -> None:
        """Raises ``RecipeError`` for a device that the runtime does not run on."""
        if self.devices and device.type not in self.devices:
            raise RecipeError(
                f"The runtime {self.name} runs on the CPU only, not on {str(device)!r}; give --device cpu, or the "
                "runtime eager or compile."
            )

    def require_packages(self) -> None:
        """Raises ``RecipeError`` when a package is not installed."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            needed = " and ".join(missing)
            raise RecipeError(f"The runtime {self.name} needs {needed}: pip install 'ghostify[{self.name}]'.")
