"""What this machine is: versions, the CPU and what it can, GPUs, engines, compilers and kernels."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from typing import Any

import torch

from lq.core import native
from lq.export.artifact.manifest import installed_version
from lq.timing.cpu import cpu_features, cpu_name

_PACKAGES = (
    "lightning", "pytorch-lightning", "torchmetrics", "jsonargparse", "torchvision", "torchao",
    "onnx", "onnxscript", "onnxruntime", "openvino", "executorch", "tensorrt", "ai-edge-litert", "matplotlib", "numpy",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """The machine, as plain data.

    Example:
        >>> sorted(describe())
        ['cpu', 'engines', 'gpus', 'kernels', 'tools', 'versions']
    """
    kernels = native.library()
    return {
        "versions": versions(),
        "cpu": {
            "name": cpu_name(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "features": cpu_features(),
        },
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "engines": [name for name in torch.backends.quantized.supported_engines if name != "none"],
        "kernels": {"works": kernels.functions is not None, "about": kernels.reason},
        "tools": {"C++ compiler": _compiler()},
    }


def versions() -> dict[str, str | None]:
    """Of Python, the system and all packages that lq works with; ``None`` for what is not installed.

    Example:
        >>> versions()["torch"] == torch.__version__
        True
    """
    known = {"lq": sys.modules["lq"].__version__, "torch": str(torch.__version__)}
    found = {**known, "python": platform.python_version(), "system": platform.platform()}
    return {**found, **{name: installed_version(name) for name in _PACKAGES}}


def _compiler() -> str | None:
    """The compiler that inductor needs for int8 kernels of "pt2" programs."""
    return shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")
