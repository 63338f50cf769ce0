"""The end of a run: export, compare with what was trained, let through what agrees, and say what came out."""

from __future__ import annotations

import copy
import hashlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, fx, nn

from lq.backends.prepare import plan_of, qconfig_of, set_phase, state_of
from lq.benchmark import Latency, compare_latency, size_mb
from lq.evaluation import FP32, Judge, Results, compare_on_validation_data, on_cpu
from lq.export.artifact import PREPARED_NAME, Int8Model, load, new_artifact
from lq.export.exporters import EXPORTERS, Choice, Chosen, chosen
from lq.export.manifest import write_manifest
from lq.export.parity import Gate, Parity, check, first_difference
from lq.export.signature import Inputs, Signature, one_sample
from lq.export.torchscript import export_torchscript, like_original
from lq.metrics import main_tensor
from lq.target import prepared_graph

FAKE = "fake"
DEFAULT_EXPORTERS: tuple[Choice, ...] = ("torch",)
LATENCY_THREADS = 1
LATENCY_SECONDS = 1.0

Calls = list[tuple[Inputs, Tensor]]


@dataclass
class Deployment:
    """What a run leaves.

    Args:
        models: the int8 models by exporter, as they were loaded again from the disk.
        rows: of the closing table.
        results: metrics by version, and how far each int8 model agrees with the fake-quantized one.
        parity: what the gate found, by exporter.
        directory: of the artifact, if one was written.
        notes: to be read beside the table.
        failures: what went wrong with single exporters; their files are not in the artifact.
    """

    models: dict[str, Int8Model] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    results: Results = field(default_factory=dict)
    parity: dict[str, Parity] = field(default_factory=dict)
    directory: Path | None = None
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def raise_failures(self) -> None:
        """End with an error if an exporter failed.

        Raises:
            RuntimeError: with what failed, and what stands nevertheless.
        """
        if self.failures:
            where = "nothing was written" if self.directory is None else f"everything else is in {self.directory}"
            raise RuntimeError(f"The training is over, but {'; '.join(self.failures)}. As for the rest, {where}.")


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
    exporters: Sequence[Choice] = DEFAULT_EXPORTERS,
    gate: Gate | None = None,
    baseline: Baseline | None = None,
    directory: Path | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Deployment:
    """Export the target of ``module``, compare each artifact with the fake-quantized model, write those that agree.

    Args:
        module: a copy of the trained module that nothing else uses.
        name: of its target.
        example: inputs of one call of the target, on the CPU.
        judge: data and metric.
        exporters: names from :data:`lq.export.exporters.EXPORTERS`, or ``{name: options}``.
        gate: what an artifact has to reach.
        baseline: for the FP32 row.
        directory: where to write; ``None`` writes nothing.
        manifest: what else ``lq.json`` shall hold.

    Returns:
        the deployment; see :meth:`Deployment.raise_failures`.
    """
    module = module.cpu().float()
    prepared = prepared_graph(module, name)
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    prepared.eval()
    baseline, gate = baseline or Baseline(), gate or Gate()
    deployment = Deployment()
    with torch.no_grad():
        signature = Signature.of(prepared, example, prepared(*copy.deepcopy(example[0]), **copy.deepcopy(example[1])))
    with new_artifact(directory) as place:
        torch.save(prepared.state_dict(), place / PREPARED_NAME)
        entries = {**_provenance(prepared, baseline), "signature": signature.to_dict(), **(manifest or {})}
        picks = chosen(exporters)
        infos = _export(deployment, prepared, picks, example, place)
        write_manifest(place, {**entries, "artifacts": infos})
        deployment.models = {kind: load(place, kind, LATENCY_THREADS) for kind in infos}
        calls = _compare(deployment, module, name, baseline, judge, gate.batches)
        calls = calls or [(example, main_tensor(prepared(*example[0], **example[1])).detach())]
        _pass_gate(deployment, prepared, picks, place, calls, gate)
        deployment.rows = _measured(deployment, baseline, place, one_sample(example))
        if gate.on_failure == "error":
            _leave_out(deployment, place, infos)
        entries["parity"] = {kind: parity.to_dict() for kind, parity in deployment.parity.items()}
        entries |= {"results": deployment.results, "table": deployment.rows}
        if deployment.failures:
            entries["error"] = "; ".join(deployment.failures)
        write_manifest(place, {**entries, "artifacts": infos})
    if directory is not None:
        deployment.directory = directory
        for model in deployment.models.values():
            model.path = directory
    return deployment


def rehearse(prepared: fx.GraphModule, example: Inputs, exporters: Sequence[Choice] = DEFAULT_EXPORTERS) -> None:
    """Export a copy with made-up ranges and run it, so that what would fail after the training fails before it.

    Args:
        prepared: a copy that nothing else uses, on the CPU; it is spoilt.
        example: inputs of one call, on the CPU.
        exporters: as for :func:`deploy`.

    Raises:
        ValueError: if an exporter cannot export the model.
    """
    state = state_of(prepared)
    made_up = {"min_val": torch.full_like(state.min_val, -1.0), "max_val": torch.ones_like(state.max_val)}
    state.load_state_dict({**state.state_dict(), **made_up})
    prepared.eval()
    with torch.no_grad():
        signature = Signature.of(prepared, example, prepared(*copy.deepcopy(example[0]), **copy.deepcopy(example[1])))
    for choice in chosen(exporters):
        try:
            with tempfile.TemporaryDirectory() as scratch:
                info = choice.export(prepared, example, Path(scratch))
                model = choice.exporter.load(Path(scratch), signature, info)
                sample = one_sample(example)
                model(*sample[0], **sample[1])
        except Exception as error:
            raise ValueError(
                f"The int8 model of {plan_of(prepared).model} cannot be exported as {choice.name!r}, which would only "
                f"show at the end of the training: {_one_line(error)}. Name an inner module without that part, "
                f"QATCallback(target=...), or export otherwise: exporters is one or more of {', '.join(EXPORTERS)}."
            ) from error


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


# ---- the steps --------------------------------------------------------------------------------------------------


def _export(
    deployment: Deployment, prepared: fx.GraphModule, picks: Iterable[Chosen], example: Inputs, place: Path
) -> dict[str, dict[str, Any]]:
    """Write the files of every exporter that can; returns what they say of them."""
    infos = {}
    for choice in picks:
        try:
            infos[choice.name] = choice.export(prepared, example, place)
        except OSError:
            raise  # a full disk is no fault of one exporter
        except Exception as error:
            _remove(choice.name, place)
            deployment.failures.append(f"its int8 model could not be exported as {choice.name!r} ({_one_line(error)})")
    return infos


def _compare(
    deployment: Deployment, module: LightningModule, name: str, baseline: Baseline, judge: Judge, keep: int
) -> Calls:
    """Fill the results from the validation data; returns the target's first calls there, or none."""
    versions: dict[str, Any] = dict(deployment.models)
    if baseline.model is not None and baseline.has_weights:
        versions[FP32] = baseline.model.eval()
    calls: Calls = []
    if judge.loaders is not None:
        try:
            results, calls = compare_on_validation_data(module, name, versions, judge, keep)
            deployment.results |= results
        except Exception as error:  # whatever the user's validation code cannot do outside its own run
            warnings.warn(
                f"lq: the int8 model could not be judged on the validation data, so the table lacks metrics: {error}",
                stacklevel=2,
            )
    if not calls:
        deployment.notes.append("without validation results, agreement and SQNR are those of one training batch")
    if FP32 not in deployment.results and baseline.results:
        deployment.results[FP32] = dict(baseline.results)
    return calls


def _pass_gate(
    deployment: Deployment, prepared: fx.GraphModule, picks: Iterable[Chosen], place: Path, calls: Calls, gate: Gate
) -> None:
    """Fill ``parity``; complaints become failures or warnings, with the layer to look at."""
    inputs, expected = [call for call, _ in calls], [output for _, output in calls]
    for choice in picks:
        if choice.name not in deployment.models:
            continue
        parity = check(place, choice.name, inputs, expected, gate)
        if not parity.passed:
            layer = first_difference(prepared, choice, on_cpu(inputs[0]), gate.min_sqnr_db or Gate.min_sqnr_db or 30.0)
            parity = replace(parity, first_layer=layer)
            message = f"{choice.name!r} does not compute what was trained: {parity.complaint}; they part at {layer}"
            if gate.on_failure == "error":
                deployment.failures.append(message)
            else:
                warnings.warn(f"lq: {message}", stacklevel=2)
        deployment.parity[choice.name] = parity
        deployment.results.setdefault(f"{choice.name}_vs_{FAKE}", _fidelity(parity))


def _measured(deployment: Deployment, baseline: Baseline, place: Path, sample: Inputs) -> list[dict[str, Any]]:
    """The rows; latencies of float in its fastest form and of int8 as it is exported."""
    results, calls = deployment.results, dict[str, Callable[..., Any]](deployment.models)
    if baseline.model is not None:
        calls |= float_forms(baseline.model, sample)
    times: dict[str, Latency] = {}
    if calls:
        with torch.inference_mode():
            times = compare_latency(calls, *sample, threads=LATENCY_THREADS, min_time=LATENCY_SECONDS)
    rows: list[dict[str, Any]] = []
    if baseline.model is not None:
        row = {"model": "FP32", "metrics": results.get(FP32, {}), "size_mb": size_mb(baseline.model)}
        rows.append(row | _latency(fastest_float(times)))
    elif FP32 in results:
        rows.append({"model": "FP32", "metrics": results[FP32]})
    rows.append({"model": "QAT fake", "metrics": results.get(FAKE, {})})
    for kind in deployment.models:
        fidelity = results.get(f"{kind}_vs_{FAKE}", {})
        rows.append(
            {
                "model": f"int8 {kind}",
                "metrics": results.get(kind, {}),
                "size_mb": sum((place / file).stat().st_size for file in EXPORTERS[kind].files) / 1e6,
                "agreement": fidelity.get("agreement"),
                "sqnr_db": fidelity.get("sqnr_db"),
                **_latency(times[kind]),
            }
        )
    return rows


def _latency(measured: Latency) -> dict[str, Any]:
    return {"latency_ms": measured.median_ms, "threads": LATENCY_THREADS}


def _leave_out(deployment: Deployment, place: Path, infos: dict[str, Any]) -> None:
    """Take out of the artifact what did not pass the gate."""
    for kind, parity in deployment.parity.items():
        if not parity.passed:
            _remove(kind, place)
            del infos[kind], deployment.models[kind]


def _remove(kind: str, place: Path) -> None:
    for file in EXPORTERS[kind].files:
        (place / file).unlink(missing_ok=True)


def _fidelity(parity: Parity) -> dict[str, float]:
    found = {"sqnr_db": parity.sqnr_db, "max_abs_error": parity.max_abs_error}
    return found if parity.agreement is None else {"agreement": parity.agreement, **found}


def _provenance(prepared: fx.GraphModule, baseline: Baseline) -> dict[str, Any]:
    """What an artifact says of where it comes from."""
    float_weights = baseline.model if baseline.has_weights else None
    return {
        "qconfig": qconfig_of(prepared).to_dict(),
        "plan": plan_of(prepared).to_dict(),
        "ranges": _ranges(prepared),
        "float_weights_sha256": None if float_weights is None else _digest(float_weights),
    }


def _digest(model: nn.Module) -> str:
    """SHA-256 of the names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _ranges(prepared: nn.Module) -> dict[str, list[float]]:
    state = state_of(prepared)
    return {
        name: [float(low), float(high)]
        for name, low, high in zip(state.names, state.min_val.tolist(), state.max_val.tolist(), strict=True)
    }


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
