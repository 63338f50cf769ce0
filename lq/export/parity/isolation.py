"""How a process is started that sees neither the working directory nor the user's ``PYTHON...`` variables.

A file ``queue.py`` beside the user's script, or ``PYTHONWARNINGS=error``, is no reason for a model not to run.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

# Runs under ``python -I``. What is printed goes nowhere: the standard output is where the parent waits for replies.
# The standard library comes first, so that nothing can take its place; lq is that of the parent, wherever that lies.
START = """
import json, os, sys, threading, time
job = json.loads(sys.argv[1])
replies = os.fdopen(os.dup(1), "wb")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
def watch():
    while os.getppid() == job["parent"]:
        time.sleep(0.3)
    os._exit(70)
if os.name == "posix":
    threading.Thread(target=watch, daemon=True).start()
sys.path[:] = job["path"]
import importlib, importlib.util
spec = importlib.util.spec_from_file_location("lq", job["lq"], submodule_search_locations=[os.path.dirname(job["lq"])])
sys.modules["lq"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["lq"])
main = importlib.import_module(job["module"]).main
importlib.import_module("lq.export.parity.fresh_process").serve(main, sys.stdin.buffer, replies)
"""


def job_of(module: str) -> dict[str, Any]:
    """What the process has to know.

    Args:
        module: whose ``main`` it calls.

    Example:
        >>> job = job_of("lq.export.parity.worker")
        >>> job["module"], Path(job["lq"]).parts[-2:], job["parent"] == os.getpid()
        ('lq.export.parity.worker', ('lq', '__init__.py'), True)
    """
    return {
        "parent": os.getpid(),
        "path": search_path(),
        "lq": str(Path(__file__).resolve().parents[2] / "__init__.py"),
        "module": module,
    }


def search_path() -> list[str]:
    """This process's ``sys.path`` in a safer order, without the working directory and that of the script.

    The standard library, where torch lies, other installed packages, and what else was given, such as by PYTHONPATH.

    Example:
        >>> "" in search_path()
        False
    """
    kept = [
        entry for entry in dict.fromkeys(sys.path) if os.path.isabs(entry) and os.path.realpath(entry) not in _unsafe()
    ]
    ranks = {os.path.realpath(entry): 2 for entry in [*site.getsitepackages(), site.getusersitepackages()]}
    ranks[os.path.realpath(Path(torch.__file__).parents[1])] = 1
    for name in ("stdlib", "platstdlib"):
        folder = os.path.realpath(sysconfig.get_path(name))
        ranks |= {folder: 0, os.path.join(folder, "lib-dynload"): 0}
    return sorted(kept, key=lambda entry: 0 if entry.endswith(".zip") else ranks.get(os.path.realpath(entry), 3))


def worker_environment() -> dict[str, str]:
    """This process's environment without devices.

    Example:
        >>> worker_environment()["CUDA_VISIBLE_DEVICES"]
        ''
    """
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def _unsafe() -> set[str]:
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    folders = [os.path.dirname(script)] if script else []
    with suppress(OSError):  # it was deleted
        folders.append(os.getcwd())
    installed = os.path.realpath(Path(torch.__file__).parents[1])
    return {os.path.realpath(folder) for folder in folders} - {installed}
