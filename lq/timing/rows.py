"""What models cost, side by side: rows for the tables, from size and latency."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from lq.core.copies import deep_copy
from lq.export.exporters import EXPORTERS
from lq.export.formats.torchscript import export_torchscript, like_original
from lq.timing.latency import Latency, size_mb
from lq.tracing.structure import Inputs

FP32, PTQ, FAKE = "fp32", "ptq", "fake"
EAGER, FROZEN, FUSED = "fp32 eager", "fp32 frozen", "fp32 fused"

Results = Mapping[str, Mapping[str, float]]


def comparison_rows(
    kinds: Iterable[str],
    float_model: nn.Module | None,
    place: Path,
    results: Results,
    times: Mapping[str, Latency],
) -> list[dict[str, Any]]:
    """Rows for FP32 in its fastest form, the fake-quantized model, and each artifact as it is deployed.

    Args:
        kinds: the exporters.
        float_model: on the CPU, or ``None`` for a row without size and latency.
        place: where their files are.
        results: metrics by version ("fp32", "ptq" for what QAT started from, "fake" and the exporters), and fidelity as
            ``<exporter>_vs_fake``.
        times: latencies by exporter, and of the float forms as "fp32 ...".

    Returns:
        rows as :func:`lq.report.table.comparison_table` takes them.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     _ = Path(place, "int8.pt").write_bytes(bytes(500_000))
        ...     results = {"fp32": {"val_acc": 0.92}, "torch": {"val_acc": 0.91}, "torch_vs_fake": {"sqnr_db": 40.2}}
        ...     rows = comparison_rows(["torch"], None, Path(place), results, {})
        >>> [row["model"] for row in rows]
        ['FP32', 'fake-quantized', 'int8 torch']
        >>> rows[-1]
        {'model': 'int8 torch', 'metrics': {'val_acc': 0.91}, 'size_mb': 0.5, 'agreement': None, 'sqnr_db': 40.2}
    """
    rows: list[dict[str, Any]] = []
    if float_model is not None:
        row = {"model": "FP32", "metrics": results.get(FP32, {}), "size_mb": size_mb(float_model)}
        rows.append(row | _latency(fastest_float(times)))
    elif FP32 in results:
        rows.append({"model": "FP32", "metrics": results[FP32]})
    if PTQ in results:
        rows.append({"model": "PTQ, before QAT", "metrics": results[PTQ]})
    rows.append({"model": "fake-quantized", "metrics": results.get(FAKE, {})})
    return rows + [_int8_row(kind, place, results) | _latency(times.get(kind)) for kind in kinds]


def artifact_mb(kind: str, place: str | Path) -> float:
    """Size of the files of an artifact's model in MB (1e6 bytes).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     for file in ("int8.onnx", "int8.onnx.data", "prepared.pt"):
        ...         _ = Path(place, file).write_bytes(bytes(250_000))
        ...     artifact_mb("onnx", place)
        0.5
    """
    return sum(Path(place, file).stat().st_size for file in EXPORTERS[kind].files_in(Path(place))) / 1e6


def float_forms(model: nn.Module, sample: Inputs) -> dict[str, Callable[..., Any]]:
    """The float model in the forms that people deploy without further tools: eager, frozen and fused TorchScript.

    None is the fastest everywhere, and int8 has to be compared with the one that is.

    Example:
        >>> import torch
        >>> x, net = torch.ones(1, 4), nn.Sequential(nn.Linear(4, 2)).eval()
        >>> forms = float_forms(net, ((x,), {}))
        >>> {name: form(x).shape for name, form in forms.items()}
        {'fp32 eager': torch.Size([1, 2]), 'fp32 frozen': torch.Size([1, 2]), 'fp32 fused': torch.Size([1, 2])}
    """
    forms: dict[str, Callable[..., Any]] = {EAGER: model}
    for name, optimize in ((FROZEN, False), (FUSED, True)):
        # Whatever TorchScript cannot do with the user's float model leaves the eager one.
        with suppress(Exception):
            scripted = export_torchscript(deep_copy(model), *sample, optimize=optimize)
            forms[name] = like_original(scripted, model, *sample)
    return forms


def fastest_float(times: Mapping[str, Latency]) -> Latency | None:
    """The latency of the fastest of :func:`float_forms`, if one was measured.

    Example:
        >>> eager, frozen = (Latency(ms, ms, 0.1, threads=1, batch_size=1, n=300) for ms in (9.0, 7.0))
        >>> fastest_float({"fp32 eager": eager, "fp32 frozen": frozen, "onnx": eager}).median_ms
        7.0
    """
    forms = [t for name, t in times.items() if name.startswith(FP32)]
    return min(forms, key=lambda t: t.median_ms, default=None)


def _int8_row(kind: str, place: Path, results: Results) -> dict[str, Any]:
    fidelity = results.get(f"{kind}_vs_{FAKE}", {})
    return {
        "model": f"int8 {kind}",
        "metrics": results.get(kind, {}),
        "size_mb": artifact_mb(kind, place),
        "agreement": fidelity.get("agreement"),
        "sqnr_db": fidelity.get("sqnr_db"),
    }


def _latency(measured: Latency | None) -> dict[str, Any]:
    return {} if measured is None else {"latency_ms": measured.median_ms, "threads": measured.threads}
