"""What is recorded as one node, and how modules are named."""

from __future__ import annotations

import torch
from torch import nn


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is recorded as one node: torch's own childless layers, and scripts, which cannot be entered."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    if "forward" in vars(module):  # a layer that was patched is no longer what its class is
        return False
    own = type(module).__module__.startswith("torch.nn.modules")
    return own and not any(True for _ in module.children())


def qualified_names(root: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module below ``root`` (itself as ``""``) with all its qualified names."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that lie in no module of it; ``parameters(recurse=False)`` is slow to tell."""
    return [parameter for parameter in module._parameters.values() if parameter is not None]
