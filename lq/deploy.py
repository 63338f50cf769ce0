"""The end of a run: convert, compare with what was trained, export, and say what came out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lq.backends.convert import convert
from lq.backends.prepare import plan_of, qconfig_of, set_phase, state_of
from lq.benchmark import compare_latency, size_mb
from lq.evaluation import Results, compare_on_validation_data
from lq.export.artifact import write_artifact
from lq.export.torchscript import export_torchscript, save_torchscript, torchscript_mb
from lq.metrics.comparison import AnyMetric
from lq.target import prepared_graph

LABELS = {"fp32": "FP32", "fake": "QAT fake", "int8": "QAT int8"}
LATENCY_THREADS = 1


@dataclass
class Deployment:
    """What a run leaves: the int8 model, the rows of the closing table and, if written, the artifact's directory."""

    int8: nn.Module
    rows: list[dict[str, Any]]
    results: Results
    directory: Path | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Judge:
    """How versions are compared: the loaders and what :class:`lq.evaluation.ValidationComparison` takes."""

    loaders: Any = None
    metric: AnyMetric | None = None
    target_fn: Callable[[Any], Any] | None = None
    limit: int | float | None = None
    progress_bar: bool = True


def deploy(
    module: LightningModule,
    name: str,
    example: tuple[tuple[Any, ...], dict[str, Any]],
    judge: Judge,
    *,
    float_model: nn.Module | None = None,
    fp32_results: dict[str, float] | None = None,
    directory: Path | None = None,
    manifest: dict[str, Any] | None = None,
) -> Deployment:
    """Convert the target of ``module``, compare it with the fake-quantized one, and write the artifact.

    Args:
        module: a copy of the trained module that nothing else uses, on the CPU.
        name: of its target.
        example: inputs of one call of the target, on the CPU.
        judge: data and metric.
        float_model: the target before QAT, for the FP32 row; without it the row has what ``fp32_results`` says.
        fp32_results: metrics of the float model that were measured before.
        directory: where to write; ``None`` writes nothing.
        manifest: what else ``lq.json`` shall hold.

    Returns:
        the deployment.
    """
    prepared = prepared_graph(module, name)
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    prepared.eval()
    int8 = convert(prepared)
    scripted = export_torchscript(int8, *_one_sample(example))
    versions: dict[str, Any] = {"int8": scripted}
    if float_model is not None:
        versions["fp32"] = float_model.eval()
    results: Results = {}
    if judge.loaders is not None:
        results = compare_on_validation_data(
            module, name, versions, judge.loaders, metric=judge.metric, target_fn=judge.target_fn,
            limit=judge.limit, progress_bar=judge.progress_bar,
        )  # fmt: skip
    if "fp32" not in results and fp32_results:
        results["fp32"] = dict(fp32_results)
    deployment = Deployment(int8, [], results)
    _measure(deployment, prepared, scripted, float_model, _one_sample(example))
    if directory is not None:
        deployment.directory = write_artifact(
            directory,
            {
                "int8.pt": lambda path: save_torchscript(scripted, path),
                "prepared.pt": lambda path: torch.save(prepared.state_dict(), path),
            },
            {
                "engine": qconfig_of(prepared).resolved_engine,
                "qconfig": qconfig_of(prepared).to_dict(),
                "plan": plan_of(prepared).to_dict(),
                "ranges": _ranges(prepared),
                "results": results,
                "table": deployment.rows,
                **(manifest or {}),
            },
        )
    return deployment


def _one_sample(example: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example cut to a batch of one, where all its tensors share their first dimension."""
    leaves, spec = torch.utils._pytree.tree_flatten(example)
    sizes = {leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim() > 0}
    if len(sizes) != 1:
        return example
    cut = [leaf[:1] if isinstance(leaf, torch.Tensor) and leaf.dim() > 0 else leaf for leaf in leaves]
    args, kwargs = torch.utils._pytree.tree_unflatten(cut, spec)
    return args, kwargs


def _measure(
    deployment: Deployment,
    prepared: nn.Module,
    scripted: torch.jit.ScriptModule,
    float_model: nn.Module | None,
    sample: tuple[tuple[Any, ...], dict[str, Any]],
) -> None:
    """Fill the rows: float and int8 both as frozen TorchScript, the fake-quantized one as it trained."""
    calls: dict[str, Callable[..., Any]] = {}
    if float_model is not None:
        calls["fp32"] = _scripted_float(float_model, sample, deployment.notes)
    calls |= {"fake": prepared, "int8": scripted}
    sizes = {"int8": torchscript_mb(scripted)}
    if float_model is not None:
        sizes["fp32"] = size_mb(float_model)
    with torch.inference_mode():
        times = compare_latency(calls, *sample, threads=LATENCY_THREADS)
    fidelity = deployment.results.get("int8_vs_fake", {})
    for key, label in LABELS.items():
        if key not in calls and key not in deployment.results:
            continue
        row: dict[str, Any] = {"model": label, "metrics": deployment.results.get(key, {}), "size_mb": sizes.get(key)}
        if key in times:
            row |= {"latency_ms": times[key].median_ms, "threads": LATENCY_THREADS}
        if key == "int8":
            row |= {"agreement": fidelity.get("agreement"), "sqnr_db": fidelity.get("sqnr_db")}
        deployment.rows.append(row)


def _scripted_float(
    model: nn.Module, sample: tuple[tuple[Any, ...], dict[str, Any]], notes: list[str]
) -> Callable[..., Any]:
    try:
        return export_torchscript(copy.deepcopy(model), *sample, optimize=True)
    except Exception as error:  # whatever TorchScript cannot do with the user's float model
        notes.append(f"FP32 latency is that of eager mode, TorchScript could not trace it: {error}")
        return model


def _ranges(prepared: nn.Module) -> dict[str, list[float]]:
    state = state_of(prepared)
    return {
        name: [float(low), float(high)]
        for name, low, high in zip(state.names, state.min_val.tolist(), state.max_val.tolist(), strict=True)
    }
