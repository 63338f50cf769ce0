"""The kernels of ``kernels.c`` as functions of this process: the system's C compiler makes them when they are needed.

About a second, once in a process and only where a float32 tensor on the CPU is rounded. Nothing is left on the disk.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import NamedTuple

BLOCK = 4096  # values that a kernel takes at once, and adds up by themselves
SWITCH = "LQ_NATIVE"  # the environment variable that switches the kernels off

# A product and a sum have to be rounded as PyTorch rounds them, and NaN has to count, whatever CC asks for: it may name
# flags, too, with which the linker would even let the whole process take small values for zeros.
_EXACT = ("-O3", "-fno-fast-math", "-ffp-contract=off")
# Nobody reads errno or traps.
_FLAGS = (
    *("-march=native", "-fopenmp", "-fPIC", f"-DBLOCK={BLOCK}"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing"),
)
_POINTER, _COUNT, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float, ctypes.c_int
_ARGUMENTS = {
    "lq_round": (_POINTER, _POINTER, _COUNT, _FLOAT, _FLOAT, _FLOAT, _FLOAT, _POINTER, _INT),
    "lq_round_and_pack": (
        *(_POINTER, _POINTER, _COUNT, _FLOAT, _FLOAT, _FLOAT, _FLOAT, _FLOAT, _FLOAT),
        *(_POINTER, _POINTER, _POINTER, _INT),
    ),
    "lq_unpack": (_POINTER, _POINTER, _POINTER, _COUNT, _FLOAT, _FLOAT, _FLOAT, _FLOAT, _INT),
    "lq_weight_scale": (_POINTER, _COUNT, _COUNT, _FLOAT, _FLOAT, _POINTER, _INT),
    "lq_search_scale": (_POINTER, _COUNT, _COUNT, _POINTER, _FLOAT, _POINTER, _INT, _POINTER, _INT),
    "lq_round_rows": (_POINTER, _POINTER, _COUNT, _COUNT, _POINTER, _POINTER, _FLOAT, _FLOAT, _INT),
    "lq_round_weight": (_POINTER, _POINTER, _COUNT, _COUNT, _FLOAT, _FLOAT, _POINTER, _POINTER, _INT),
    "lq_factor_gradients": (_POINTER, _POINTER, _COUNT, _COUNT, _POINTER, _POINTER, _INT),
    "lq_fold_batch_norm": (
        *(_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _FLOAT, _FLOAT, _COUNT),
        *(_POINTER, _POINTER, _POINTER, _INT),
    ),
    "lq_learned_gradients": (
        *(_POINTER, _POINTER, _POINTER, _COUNT, _COUNT, _POINTER, _FLOAT, _FLOAT, _FLOAT, _POINTER, _POINTER, _INT),
    ),
}


class Library(NamedTuple):
    """What came of compiling.

    Args:
        functions: the shared library, or ``None``.
        reason: why there is none, and the remedy; else how it was compiled.

    Example:
        >>> kernels = library()
        >>> kernels.reason.startswith("compiled by ") == (kernels.functions is not None)
        True
    """

    functions: ctypes.CDLL | None
    reason: str


@functools.cache
def library() -> Library:
    """The kernels, compiled at the first call; without them every caller takes PyTorch's operations.

    Example:
        >>> isinstance(library().reason, str)
        True
    """
    if os.environ.get(SWITCH, "1") == "0":
        return Library(None, f"switched off by {SWITCH}=0")
    if platform.system() != "Linux" or sys.byteorder != "little":
        return Library(None, f"used on Linux alone, on machines with the low byte first, not on {platform.platform()}")
    compiler = _compiler()
    if not compiler or shutil.which(compiler[0]) is None:
        return Library(None, "no C compiler found: install one, e.g. apt install gcc, or name it in the variable CC")
    try:
        return Library(_compiled(compiler), f"compiled by {shlex.join(compiler)}")
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        return Library(None, f"{shlex.join(compiler)} failed: {said[0] if said else type(error).__name__}")


def _compiler() -> list[str]:
    try:
        return shlex.split(os.environ.get("CC", "cc"))
    except ValueError:  # a quotation mark without its partner
        return []


def _compiled(compiler: list[str]) -> ctypes.CDLL:
    source = resources.files(__package__).joinpath("kernels.c").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="lq-native-") as place:
        binary, compiled = str(Path(place, "kernels.so")), str(Path(place, "kernels.o"))
        _run([*compiler, *_EXACT, *_FLAGS, "-x", "c", "-c", "-", "-o", compiled], source)
        # Without a library of OpenMP: the one that PyTorch has loaded is found, and with it the same threads.
        _run([*compiler, *_EXACT, "-shared", compiled, "-o", binary, "-lm"])
        functions = ctypes.CDLL(binary)
    for name, arguments in _ARGUMENTS.items():
        function = getattr(functions, name)
        function.argtypes, function.restype = arguments, None
    return functions


def _run(command: list[str], text: str = "") -> None:
    subprocess.run(command, input=text, text=True, errors="replace", capture_output=True, check=True, timeout=60)
