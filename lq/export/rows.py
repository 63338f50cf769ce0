"""What models cost, side by side: rows for the tables, from size and latency."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lq.benchmark import Latency, compare_latency, size_mb
from lq.export.exporters import EXPORTERS
from lq.export.signature import Inputs
from lq.export.torchscript import export_torchscript, like_original

FP32, FAKE = "fp32", "fake"
LATENCY_THREADS = 1
LATENCY_SECONDS = 1.0

Results = Mapping[str, Mapping[str, float]]


def comparison_rows(
    models: Mapping[str, Callable[..., Any]],
    float_model: nn.Module | None,
    place: Path,
    results: Results,
    sample: Inputs,
) -> list[dict[str, Any]]:
    """Rows for FP32 in its fastest form, the fake-quantized model, and each artifact as it is deployed.

    Args:
        models: the loaded int8 models, by exporter.
        float_model: on the CPU, or ``None`` for a row without size and latency.
        place: where their files are.
        results: metrics by version ("fp32", "fake" and the exporters), and fidelity as ``<exporter>_vs_fake``.
        sample: inputs of one call, whose latency is taken.

    Returns:
        rows as :func:`lq.report.table.comparison_table` takes them.
    """
    calls = dict[str, Callable[..., Any]](models)
    if float_model is not None:
        calls |= float_forms(float_model, sample)
    times: dict[str, Latency] = {}
    if calls:
        with torch.inference_mode():
            times = compare_latency(calls, *sample, threads=LATENCY_THREADS, min_time=LATENCY_SECONDS)
    rows: list[dict[str, Any]] = []
    if float_model is not None:
        row = {"model": "FP32", "metrics": results.get(FP32, {}), "size_mb": size_mb(float_model)}
        rows.append(row | _latency(fastest_float(times)))
    elif FP32 in results:
        rows.append({"model": "FP32", "metrics": results[FP32]})
    rows.append({"model": "QAT fake", "metrics": results.get(FAKE, {})})
    return rows + [_int8_row(kind, place, results) | _latency(times[kind]) for kind in models]


def artifact_mb(kind: str, place: Path) -> float:
    """Size of the files of an artifact's model in MB (1e6 bytes)."""
    return sum((place / file).stat().st_size for file in EXPORTERS[kind].files) / 1e6


def float_forms(model: nn.Module, sample: Inputs) -> dict[str, Callable[..., Any]]:
    """The float model in the forms that people deploy without further tools: eager, frozen and fused TorchScript.

    None is the fastest everywhere, and int8 has to be compared with the one that is.
    """
    forms: dict[str, Callable[..., Any]] = {"fp32 eager": model}
    for name, optimize in (("fp32 frozen", False), ("fp32 fused", True)):
        # Whatever TorchScript cannot do with the user's float model leaves the eager one.
        with suppress(Exception):
            scripted = export_torchscript(copy.deepcopy(model), *sample, optimize=optimize)
            forms[name] = like_original(scripted, model, *sample)
    return forms


def fastest_float(times: Mapping[str, Latency]) -> Latency:
    """The latency of the fastest of :func:`float_forms`."""
    return min((t for name, t in times.items() if name.startswith("fp32")), key=lambda t: t.median_ms)


def _int8_row(kind: str, place: Path, results: Results) -> dict[str, Any]:
    fidelity = results.get(f"{kind}_vs_{FAKE}", {})
    return {
        "model": f"int8 {kind}",
        "metrics": results.get(kind, {}),
        "size_mb": artifact_mb(kind, place),
        "agreement": fidelity.get("agreement"),
        "sqnr_db": fidelity.get("sqnr_db"),
    }


def _latency(measured: Latency) -> dict[str, Any]:
    return {"latency_ms": measured.median_ms, "threads": LATENCY_THREADS}
