"""What presets and exporters do here, from trials in a fresh process, or from a look at what is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lq.config.presets import PRESETS
from lq.export.artifact.manifest import installed_version
from lq.export.artifact.scratch import scratch
from lq.export.exporters import EXPORTERS, Exporter
from lq.export.parity.fresh_process import WorkerError, run_module

Rows = list[dict[str, Any]]

PRESET, EXPORTER = "preset", "exporter"

# What runs the files that an exporter writes, where that is not among what the exporter needs.
_RUNTIMES = {
    "tensorrt": "tensorrt",
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch",
    "litert": "ai-edge-litert",
    "mcu": "tflite-micro",
    "qnn": "onnxruntime-qnn",
}


def names_of_trials() -> list[str]:
    """All that can be tried.

    Example:
        >>> names_of_trials()[0], names_of_trials()[-1]
        ('preset portable', 'exporter mcu')
    """
    return [*(f"{PRESET} {name}" for name in PRESETS), *(f"{EXPORTER} {name}" for name in EXPORTERS)]


def run_trials(names: list[str]) -> dict[str, dict[str, Any]]:
    """Try in a fresh process; where it dies, what it was at does not work, and another one goes on behind that.

    Args:
        names: of :func:`names_of_trials`.

    Returns:
        the outcome of each.

    Example:
        >>> found = run_trials(["preset portable", "exporter nothing"])
        >>> found["preset portable"]["works"], found["exporter nothing"]["error"]
        (True, "KeyError: 'nothing'")
    """
    found: dict[str, dict[str, Any]] = {}
    with scratch() as place:
        results = place / "outcomes.jsonl"
        while left := [name for name in names if name not in found]:
            try:
                run_module("lq.cli.doctor.trials", str(results), *left)
                death = "it wrote no result"
            except WorkerError as error:
                death = str(error)
            found |= _read(results)
            culprit = next((name for name in left if name not in found), None)
            if culprit is not None:
                found[culprit] = {"works": False, "error": death[-300:]}
    return found


def _read(results: Path) -> dict[str, dict[str, Any]]:
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    rows = [json.loads(line) for line in lines]
    return {row.pop("name"): row for row in rows}


def rows_of(outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, Rows]:
    """Rows of presets and exporters; what lacks a package or an engine does not work.

    Args:
        outcomes: from :func:`run_trials`, by name.

    Returns:
        "presets" and "exporters"; "works" is ``None`` where nothing was tried.

    Example:
        >>> rows = rows_of({"exporter torch": {"works": True, "sqnr_db": 60.0}})["exporters"]
        >>> rows[0]["name"], rows[0]["works"], rows[0]["files"]
        ('torch', True, ['int8.pt'])
    """
    presets = [
        {"name": name, "for": preset.about, "engine": preset.engine, **_preset(name, preset.engine, outcomes)}
        for name, preset in PRESETS.items()
    ]
    exporters = [{"name": name, **_exporter(exporter, outcomes)} for name, exporter in EXPORTERS.items()]
    return {"presets": presets, "exporters": exporters}


def _preset(name: str, engine: str, outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if engine not in _engines():
        return {"works": False, "error": f"this build of PyTorch has no engine {engine!r}"}
    return {"works": None, **outcomes.get(f"{PRESET} {name}", {})}


def _engines() -> list[str]:
    return list(torch.backends.quantized.supported_engines)


def _exporter(exporter: Exporter, outcomes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    packages = [*exporter.needs, *([_RUNTIMES[exporter.name]] if exporter.name in _RUNTIMES else [])]
    names = dict.fromkeys(package.replace("_", "-") for package in packages)  # modules as pip calls them
    installed = {name: installed_version(name) for name in names}
    row: dict[str, Any] = {"files": list(exporter.files), "packages": installed, "works": None}
    try:
        exporter.check_installed()
    except ImportError as error:
        install = str(error).rpartition(": ")[2]
        return {**row, "works": False, "error": str(error).rpartition(": ")[0], "install": install}
    return {**row, **outcomes.get(f"{EXPORTER} {exporter.name}", {})}
