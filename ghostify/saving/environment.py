"""Versions and platform: what the numbers of a run depend on."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib import metadata
from typing import Any

import torch

_LIBRARIES: tuple[str, ...] = ("ghostify", "torch", "torchvision", "timm", "safetensors", "pydantic", "scikit-learn")
_LIBRARIES += ("numpy", "onnxruntime", "openvino")


def describe_environment() -> dict[str, Any]:
    """Versions and platform, as a run folder and ``ghostify env`` tell them."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None
