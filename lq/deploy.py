"""The end of a run: convert, compare with what was trained, export, and say what came out."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lq.backends.convert import convert
from lq.backends.prepare import plan_of, qconfig_of, set_phase, state_of
from lq.benchmark import Latency, compare_latency, size_mb
from lq.evaluation import Inputs, Judge, Results, compare_on_example, compare_on_validation_data
from lq.export.artifact import INT8_NAME, PREPARED_NAME, write_artifact
from lq.export.torchscript import export_torchscript, int8_kernels, like_original, save_torchscript, torchscript_mb
from lq.target import prepared_graph

LABELS = {"fp32": "FP32", "fake": "QAT fake", "int8": "QAT int8"}
LATENCY_THREADS = 1
LATENCY_SECONDS = 1.0


@dataclass
class Deployment:
    """What a run leaves: the int8 model, the rows of the closing table and, if written, the artifact's directory."""

    int8: nn.Module
    rows: list[dict[str, Any]] = field(default_factory=list)
    results: Results = field(default_factory=dict)
    directory: Path | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Baseline:
    """The float model that QAT started from.

    Args:
        model: the float target, on the CPU.
        results: its metrics, where they were measured before.
        has_weights: whether ``model`` holds the weights from which QAT started; a run that was resumed has lost them.
    """

    model: nn.Module | None = None
    results: Mapping[str, float] = field(default_factory=dict)
    has_weights: bool = True


def deploy(
    module: LightningModule,
    name: str,
    example: Inputs,
    judge: Judge,
    *,
    baseline: Baseline | None = None,
    directory: Path | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Deployment:
    """Convert the target of ``module``, compare it with the fake-quantized one, and write the artifact.

    Args:
        module: a copy of the trained module that nothing else uses.
        name: of its target.
        example: inputs of one call of the target, on the CPU.
        judge: data and metric.
        baseline: for the FP32 row.
        directory: where to write; ``None`` writes nothing.
        manifest: what else ``lq.json`` shall hold.

    Returns:
        the deployment.

    Raises:
        RuntimeError: if the int8 model cannot be made; the directory then holds the trained weights.
    """
    module = module.cpu().float()
    prepared = prepared_graph(module, name)
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    prepared.eval()
    entries = {
        "engine": qconfig_of(prepared).resolved_engine,
        "qconfig": qconfig_of(prepared).to_dict(),
        "plan": plan_of(prepared).to_dict(),
        "ranges": _ranges(prepared),
        **(manifest or {}),
    }
    files: dict[str, Callable[[Path], object]] = {PREPARED_NAME: lambda path: torch.save(prepared.state_dict(), path)}
    try:
        int8 = convert(prepared)
        scripted = export_torchscript(int8, *one_sample(example))
    except Exception as error:
        raise RuntimeError(_rescue(directory, files, entries, error)) from error
    deployment = Deployment(int8)
    baseline = baseline or Baseline()
    callable_int8 = like_original(scripted, int8, *example)
    _compare(deployment, module, name, callable_int8, example, judge, baseline)
    calls: dict[str, Callable[..., Any]] = {"int8": callable_int8}
    sizes = {"int8": torchscript_mb(scripted)}
    if baseline.model is not None:
        calls |= float_forms(baseline.model, one_sample(example))
        sizes["fp32"] = size_mb(baseline.model)
    deployment.rows = _measured(deployment.results, calls, sizes, one_sample(example))
    if directory is not None:
        files[INT8_NAME] = lambda path: save_torchscript(scripted, path)
        entries |= {"results": deployment.results, "table": deployment.rows}
        deployment.directory = write_artifact(directory, files, entries)
    return deployment


def rehearse(prepared: fx.GraphModule, example: Inputs) -> None:
    """Convert and export a copy with made-up ranges, so that what would fail after the training fails before it.

    Args:
        prepared: a copy that nothing else uses, on the CPU; it is spoilt.
        example: inputs of one call, on the CPU.

    Raises:
        ValueError: if the int8 model cannot be converted or exported.
    """
    state = state_of(prepared)
    made_up = {"min_val": torch.full_like(state.min_val, -1.0), "max_val": torch.ones_like(state.max_val)}
    state.load_state_dict({**state.state_dict(), **made_up})
    prepared.eval()
    try:
        export_torchscript(convert(prepared), *one_sample(example))
    except Exception as error:
        raise ValueError(
            f"The int8 model of {plan_of(prepared).model} cannot be exported, which would only show at the end of the "
            f"training: {_one_line(error)}. Name an inner module without that part: QATCallback(target=...)."
        ) from error


def one_sample(example: Inputs) -> Inputs:
    """The example cut to a batch of one, where all its tensors share their first dimension."""
    leaves, spec = tree_flatten(example)
    sizes = {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0}
    if len(sizes) != 1:
        return example
    cut = [leaf[:1] if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(cut, spec)
    return args, kwargs


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _rescue(
    directory: Path | None,
    files: Mapping[str, Callable[[Path], object]],
    entries: Mapping[str, Any],
    error: Exception,
) -> str:
    """Keep the trained weights where no int8 model can be; says where they are."""
    where = "nothing was written"
    if directory is not None:
        write_artifact(directory, files, {**entries, "error": str(error)})
        where = f"the trained weights and ranges are in {directory / PREPARED_NAME}, as in the checkpoints"
    return f"The training is over, but its int8 model could not be made ({_one_line(error)}); {where}."


def _compare(
    deployment: Deployment,
    module: LightningModule,
    name: str,
    int8: Callable[..., Any],
    example: Inputs,
    judge: Judge,
    baseline: Baseline,
) -> None:
    """Fill the results: from the validation data, or from the example where there are none."""
    versions: dict[str, Any] = {"int8": int8}
    if baseline.model is not None and baseline.has_weights:
        versions["fp32"] = baseline.model.eval()
    if judge.loaders is not None:
        try:
            deployment.results |= compare_on_validation_data(module, name, versions, judge)
        except Exception as error:  # whatever the user's validation code cannot do outside its own run
            warnings.warn(
                f"lq: the int8 model could not be judged on the validation data, so the table lacks metrics: {error}",
                stacklevel=2,
            )
    if "int8" not in deployment.results:
        prepared = prepared_graph(module, name)
        deployment.results["int8_vs_fake"] = compare_on_example(prepared, int8, example)
        deployment.notes.append("without validation results, agreement and SQNR are those of one training batch")
    if "fp32" not in deployment.results and baseline.results:
        deployment.results["fp32"] = dict(baseline.results)


def _measured(
    results: Results, calls: Mapping[str, Callable[..., Any]], sizes: Mapping[str, float], sample: Inputs
) -> list[dict[str, Any]]:
    """The rows; latencies of float in its fastest form and of int8 as it is exported."""
    with torch.inference_mode(), int8_kernels():
        times = compare_latency(calls, *sample, threads=LATENCY_THREADS, min_time=LATENCY_SECONDS)
    if "fp32 eager" in times:
        times["fp32"] = fastest_float(times)
    fidelity = results.get("int8_vs_fake", {})
    rows = []
    for key, label in LABELS.items():
        if key == "fp32" and key not in times and key not in results:
            continue
        row: dict[str, Any] = {"model": label, "metrics": results.get(key, {}), "size_mb": sizes.get(key)}
        if key in times:
            row |= {"latency_ms": times[key].median_ms, "threads": LATENCY_THREADS}
        if key == "int8":
            row |= {"agreement": fidelity.get("agreement"), "sqnr_db": fidelity.get("sqnr_db")}
        rows.append(row)
    return rows


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


def _ranges(prepared: nn.Module) -> dict[str, list[float]]:
    state = state_of(prepared)
    return {
        name: [float(low), float(high)]
        for name, low, high in zip(state.names, state.min_val.tolist(), state.max_val.tolist(), strict=True)
    }
