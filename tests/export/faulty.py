"""An exporter that can go wrong in every way: it writes the prepared model itself, and spoils it when it is loaded."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from lq.export.artifact.flat_model import FlatModel
from lq.export.artifact.signature import Signature
from lq.export.exporters import EXPORTERS, Exporter
from lq.tracing.structure import Inputs

FILE = "faulty.pt"


def register(monkeypatch: pytest.MonkeyPatch, name: str = "faulty") -> Exporter:
    """Enter it into the table."""
    exporter = Exporter(name, (f"{name}.pt",), __name__)
    monkeypatch.setitem(EXPORTERS, name, exporter)
    return exporter


def export(
    prepared: fx.GraphModule,
    example: Inputs,
    directory: Path,
    layer: str = "",
    fails: str = "",
    factor: float = 0.5,
    most: int | None = None,
    loses: int = 0,
) -> dict[str, Any]:
    """Write the model; the weights of ``layer`` shall be halved, or multiplied by ``factor``.

    Of more than ``most`` samples it shall return zeros; of several it shall lose the last ``loses``.
    """
    if fails == "disk":
        raise OSError(28, "No space left on device")
    (directory / FILE).write_bytes(b"half a mod")
    if fails == "export":
        raise ValueError("this cannot\n be exported.")
    if fails == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    torch.save(prepared, directory / FILE)
    return {"layer": layer, "factor": factor, "most": most, "loses": loses}


def load(
    directory: Path, signature: Signature, info: Mapping[str, Any], threads: int | None = None
) -> Callable[..., Any]:
    """The spoilt model."""
    model = torch.load(directory / FILE, weights_only=False)
    if info["layer"] in dict(model.named_modules()) and info["layer"]:
        with torch.no_grad():
            model.get_submodule(info["layer"]).weight.mul_(info["factor"])
    most, loses = info["most"], info["loses"]

    def run(tensors: list[Tensor]) -> list[Tensor]:
        output: Tensor = model(*tensors)
        output = output[: max(1, len(output) - loses)]
        return [output if most is None else torch.cat([output[:most], torch.zeros_like(output[most:])])]

    return FlatModel(run, signature)
