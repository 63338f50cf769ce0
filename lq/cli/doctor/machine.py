"""What this machine is: versions, the CPU and what it can, GPUs, engines and compilers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from lq.export.artifact.manifest import installed_version

_PACKAGES = (
    "lightning", "pytorch-lightning", "torchmetrics", "jsonargparse", "torchvision", "torchao",
    "onnx", "onnxscript", "onnxruntime", "openvino", "executorch", "tensorrt", "ai-edge-litert", "matplotlib", "numpy",
)  # fmt: skip

# What int8 arithmetic depends on, by the names that Linux and macOS give them.
_X86 = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "AVX-512 VNNI": ("avx512_vnni",),
    "AVX-VNNI": ("avx_vnni",),
    "AMX int8": ("amx_int8",),
}
_ARM = {
    "NEON dot product": ("asimddp", "hw.optional.arm.FEAT_DotProd"),
    "int8 matrix product": ("i8mm", "hw.optional.arm.FEAT_I8MM"),
}


def describe() -> dict[str, Any]:
    """The machine, as plain data.

    Example:
        >>> sorted(describe())
        ['cpu', 'engines', 'gpus', 'tools', 'versions']
    """
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


def cpu_name() -> str:
    """What the CPU calls itself.

    Example:
        >>> cpu_name() != ""
        True
    """
    named = _cpuinfo("model name") or _sysctl("machdep.cpu.brand_string")
    return named or platform.processor() or platform.machine()


def cpu_features() -> dict[str, bool | None]:
    """Whether the CPU has the instructions that int8 is fast, or right, with; ``None`` if this system does not say.

    Example:
        >>> {type(has) for has in cpu_features().values()} <= {bool, type(None)}
        True
    """
    wanted = _ARM if platform.machine().lower() in ("arm64", "aarch64") else _X86
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    if flags:
        return {feature: bool(flags & set(names)) for feature, names in wanted.items()}
    if platform.system() == "Darwin":
        return {feature: any(_sysctl(name) == "1" for name in names) for feature, names in wanted.items()}
    return dict.fromkeys(wanted)


def _cpuinfo(field: str) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == field), "")


def _sysctl(name: str) -> str:
    if platform.system() != "Darwin":
        return ""
    return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True).stdout.strip()


def _compiler() -> str | None:
    """The compiler that inductor needs for int8 kernels of "pt2" programs."""
    return shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")
