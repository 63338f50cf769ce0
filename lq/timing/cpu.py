"""The CPU of this machine: its name, and the instructions that int8 is fast with."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

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
