"""What the models of an artifact cost on chips that this machine is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lq.export.artifact.int8_model import known_kinds
from lq.export.exporters import EXPORTERS
from lq.export.formats.mcu.vela import estimate

Row = dict[str, Any]


def on_chips(directory: Path, manifest: Mapping[str, Any], npu: str) -> tuple[list[Row], list[str]]:
    """Memory on a microcontroller, and what Arm's compiler says of the ``.tflite`` files of an artifact.

    Args:
        directory: the artifact.
        manifest: its ``lq.json``.
        npu: of :data:`lq.export.formats.mcu.vela.NPUS`.

    Returns:
        a row of figures for each model that has any, and lines that say the same.

    Example:
        >>> manifest = {"artifacts": {"mcu": {"arena_bytes": 20480}, "torch": {}}}
        >>> rows, notes = on_chips(Path("runs/int8"), manifest, "ethos-u55-128")
        >>> notes[0]
        'int8 mcu takes an arena of 20.0 KiB in tflite-micro'
    """
    rows: list[Row] = []
    notes: list[str] = []
    for kind in known_kinds(manifest):
        info = manifest["artifacts"][kind]
        name, file = f"int8 {kind}", EXPORTERS[kind].files[0]
        row: Row = {"model": name}
        if "arena_bytes" in info:
            row["arena_bytes"] = info["arena_bytes"]
            notes.append(f"{name} takes an arena of {info['arena_bytes'] / 1024:,.1f} KiB in tflite-micro")
        if file.endswith(".tflite"):
            try:
                found = estimate(directory / file, npu)
                row |= asdict(found)
                notes.append(f"{name} on {found}; vela's estimates")
            except RuntimeError as error:
                notes.append(f"{name}: {error}")
            except ImportError as error:
                notes += [f"{name}: {error}"] if kind == "mcu" else []
        rows += [row] if len(row) > 1 else []
    return rows, notes
