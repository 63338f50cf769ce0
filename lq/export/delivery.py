"""From a trained model to an artifact: export, load again, compare, let through what agrees, write it as a whole."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from lq.backends.bias import round_biases
from lq.backends.prepare import plan_of, qconfig_of, set_phase, state_of
from lq.benchmark import Latency
from lq.export.artifact import PREPARED_NAME, Int8Model, load
from lq.export.destination import Destination
from lq.export.directory import AnyPath
from lq.export.exporters import EXPORTERS, Choice, Chosen, chosen
from lq.export.files import save
from lq.export.gatekeeper import Gatekeeper
from lq.export.handover import as_destination, hand_over, workplace
from lq.export.in_float import float_notes
from lq.export.manifest import write_manifest
from lq.export.parity import Gate, Parity, measure, metric_complaint
from lq.export.rows import FAKE, FP32, comparison_rows
from lq.export.scratch import scratch
from lq.export.signature import Signature, batch_size, smallest_call
from lq.export.stopwatch import fresh_latencies
from lq.metrics.outputs import main_tensor
from lq.tracing.batch import fixed_batch
from lq.tracing.structure import Inputs

DEFAULT_EXPORTERS: tuple[Choice, ...] = ("torch",)

BIAS_ROUNDING = "bias_rounding"  # in lq.json: what rounding the biases has changed, or null

Calls = Sequence[tuple[Inputs, Tensor]]


@dataclass(frozen=True)
class Compared:
    """What running several versions of a model on the same data has found.

    Args:
        results: figures by version, and how far each agrees with the fake-quantized one as ``<version>_vs_fake``.
        calls: inputs and main output of some calls of the fake-quantized model.
        counts: names of the figures that the gate looks at.
        notes: to be read beside the table.
    """

    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calls: Calls = ()
    counts: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


Compare = Callable[[Mapping[str, Int8Model], int], Compared]


@dataclass
class Deployment:
    """The result of a run: int8 models, figures, and where the files are.

    Args:
        models: the int8 models by exporter, loaded again from the disk.
        rows: rows of the closing table.
        results: figures by version, and how closely each int8 model agrees with the fake-quantized one.
        parity: what the gate measured, by exporter.
        directory: directory or URL of the artifact, if one was written.
        rejected: directory of the files that did not pass the gate; of all files, if an older artifact was kept.
        notes: notes on the table.
        failures: errors of single exporters, whose files are not in the artifact.
    """

    models: dict[str, Int8Model] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    parity: dict[str, Parity] = field(default_factory=dict)
    directory: Path | str | None = None
    rejected: Path | str | None = None
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def raise_failures(self) -> None:
        """Raise an error if an exporter failed.

        Raises:
            RuntimeError: naming what failed and where the other files are.
        """
        if self.failures:
            where = "nothing was written" if self.directory is None else f"everything else is in {self.directory}"
            if self.rejected is not None:
                kept = f"what did not pass is kept in {self.rejected}"
                # Without a directory of its own all of it is there: the artifact of an earlier run stayed.
                where = kept if self.directory is None else f"{kept}, {where}"
            raise RuntimeError(f"{'; '.join(self.failures)}. The trained weights are safe; {where}.")


@dataclass(frozen=True)
class Order:
    """What is to be delivered, checked when it is made.

    Args:
        exporters: names from :data:`lq.export.exporters.EXPORTERS`, or ``{name: options}``.
        gate: what each artifact has to reach.
        directory: where to write, as a path, a URL or a :class:`~lq.export.destination.Destination` from before the
            training; ``None`` writes nothing.
        manifest: what else ``lq.json`` shall hold.

    Raises:
        ValueError: for an unknown exporter or option.
        ImportError: if an exporter needs a package that is not installed.
    """

    exporters: Sequence[Choice] = DEFAULT_EXPORTERS
    gate: Gate = field(default_factory=Gate)
    directory: AnyPath | Destination | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chosen(self.exporters)

    @property
    def choices(self) -> list[Chosen]:
        """The exporters."""
        return chosen(self.exporters)


def deliver(
    prepared: fx.GraphModule, example: Inputs, compare: Compare, order: Order, float_model: nn.Module | None = None
) -> Deployment:
    """Export a trained model, compare each artifact with the fake-quantized model, and write those that agree.

    Args:
        prepared: on the CPU, trained or calibrated; it is left in evaluation mode. If a runtime rounds biases,
            those of the model are rounded beforehand (:func:`lq.backends.bias.round_biases`), so that all artifacts and
            the fake-quantized model have the same ones; ``lq.json`` says how far that moves its output.
        example: inputs of one call, on the CPU.
        compare: takes the loaded int8 models and a number of calls, of which it returns at most that many.
        order: what to deliver.
        float_model: for the FP32 row, on the CPU.

    Returns:
        the deployment; see :meth:`Deployment.raise_failures`.

    Raises:
        ValueError: if ``prepared`` has no ranges.
        OSError: if the artifact cannot be written.
    """
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    trained = copy.deepcopy(prepared.eval().state_dict())
    output, rounding = _output_with_rounded_biases(prepared, example, order)
    entries = {
        BIAS_ROUNDING: rounding,
        **_provenance(prepared, float_model),
        "signature": Signature.of(prepared, example, output).to_dict(),
        **order.manifest,
    }
    deployment, gate, destination = Deployment(), order.gate, as_destination(order.directory)
    with workplace(destination) as place:
        save(trained, place / PREPARED_NAME)
        infos = _export(deployment, prepared, order.choices, example, place)
        write_manifest(place, {**entries, "artifacts": infos})
        batch = fixed_batch(prepared)
        deployment.notes += [] if batch is None else [batch.remark]
        deployment.notes += float_notes(plan_of(prepared), infos)
        deployment.models = {kind: load(place, kind) for kind in infos}
        compared = compare(deployment.models, gate.batches)
        deployment.results |= {version: dict(figures) for version, figures in compared.results.items()}
        deployment.notes += compared.notes
        calls = [(call, out) for call, out in compared.calls if batch is None or batch_size(call) == batch.size]
        if not calls:
            deployment.notes.append("without validation results, agreement and SQNR are those of one training batch")
        _pass_gate(deployment, prepared, order, place, compared, calls or [(example, main_tensor(output))])
        times = _latencies(deployment, place, float_model, smallest_call(prepared, example))
        deployment.rows = comparison_rows(infos, float_model, place, deployment.results, times)
        failed = _leave_out(deployment) if gate.on_failure == "error" else []
        entries["parity"] = {kind: parity.to_dict() for kind, parity in deployment.parity.items()}
        entries |= {"results": deployment.results, "table": deployment.rows}
        if deployment.failures:
            entries["error"] = "; ".join(deployment.failures)
        if destination is not None:
            _settle(deployment, place, destination, failed, entries, infos)
    return deployment


def _settle(
    deployment: Deployment,
    place: Path,
    destination: Destination,
    failed: Sequence[str],
    entries: Mapping[str, Any],
    infos: Mapping[str, Any],
) -> None:
    """Move the artifact to where it belongs, and say where that is."""

    def describe(directory: Path, kinds: Sequence[str]) -> None:
        write_manifest(directory, {**entries, "artifacts": {kind: infos[kind] for kind in kinds}})

    handed = hand_over(place, destination, list(deployment.models), failed, not deployment.failures, describe)
    deployment.directory, deployment.rejected = handed.directory, handed.rejected
    deployment.notes += handed.remarks
    for model in deployment.models.values():
        model.path = handed.directory or handed.rejected or model.path


def rehearse(prepared: fx.GraphModule, example: Inputs, exporters: Sequence[Choice] = DEFAULT_EXPORTERS) -> list[str]:
    """Export a copy with made-up ranges and run it, so that what would fail after the training fails before it.

    Args:
        prepared: a copy that nothing else uses, on the CPU; it is spoilt.
        example: inputs of one call, on the CPU.
        exporters: as for :class:`Order`.

    Returns:
        what the files will hold in float although it is planned in int8, a line for each exporter.

    Raises:
        ValueError: if an exporter cannot export the model.
    """
    state = state_of(prepared)
    made_up = {"min_val": torch.full_like(state.min_val, -1.0), "max_val": torch.ones_like(state.max_val)}
    state.load_state_dict({**state.state_dict(), **made_up})
    state.fix_ranges()
    prepared.eval()
    signature = Signature.of(prepared, example, _output(prepared, example))
    args, kwargs = smallest_call(prepared, example)
    infos = {}
    for choice in chosen(exporters):
        try:
            with scratch() as place, torch.no_grad():
                info = infos[choice.name] = choice.export(prepared, example, place)
                choice.exporter.load(place, signature, info)(*args, **kwargs)
        except OSError:
            raise  # a full disk is no fault of the model
        except Exception as error:
            raise ValueError(
                f"The int8 model of {plan_of(prepared).model} cannot be exported as {choice.name!r}, which would only "
                f"show at the end of the training: {_one_line(error)}. Name an inner module without that part, "
                f"QATCallback(target=...), or choose other exporters, of {', '.join(EXPORTERS)}."
            ) from error
    return float_notes(plan_of(prepared), infos)


def _output_with_rounded_biases(
    prepared: fx.GraphModule, example: Inputs, order: Order
) -> tuple[Any, dict[str, float] | None]:
    """What the model returns, its biases rounded if a runtime does so, and how far that moves it."""
    before = _output(prepared, example)
    if not any(choice.exporter.rounds_bias for choice in order.choices):
        return before, None
    round_biases(prepared)
    after = _output(prepared, example)
    return after, measure([main_tensor(before)], [main_tensor(after)], order.gate).fidelity


@torch.no_grad()
def _output(prepared: fx.GraphModule, example: Inputs) -> Any:
    args, kwargs = copy.deepcopy(example)  # a model may work in place
    return prepared(*args, **kwargs)


def _export(
    deployment: Deployment, prepared: fx.GraphModule, choices: Sequence[Chosen], example: Inputs, place: Path
) -> dict[str, dict[str, Any]]:
    """Write the files of every exporter that can; returns what they say of them."""
    infos = {}
    for choice in choices:
        try:
            infos[choice.name] = choice.export(prepared, example, place)
        except OSError:
            raise  # a full disk is no fault of one exporter
        except Exception as error:
            _remove(choice.name, place)
            deployment.failures.append(f"The int8 model could not be exported as {choice.name!r} ({_one_line(error)})")
    return infos


def _pass_gate(
    deployment: Deployment, prepared: fx.GraphModule, order: Order, place: Path, compared: Compared, calls: Calls
) -> None:
    """Fill ``parity``; complaints become failures or warnings, with the layer to look at."""
    gate = order.gate

    def counting(version: str) -> dict[str, float]:
        figures = deployment.results.get(version, {})
        return {name: value for name, value in figures.items() if name in compared.counts}

    keeper = Gatekeeper(prepared, calls, gate)
    for choice in order.choices:
        if choice.name not in deployment.models:
            continue
        changed = metric_complaint(counting(FAKE), counting(choice.name), gate)
        parity = keeper.judge(choice, place, changed)
        if not parity.passed:
            what = "does not compute what was trained" if parity.samples else "does not run"
            message = f"{choice.name!r} {what}: {parity.complaint}"
            message += f"; they first differ at {parity.first_layer}" if parity.first_layer else ""
            if gate.on_failure == "error":
                deployment.failures.append(message)
            else:
                warnings.warn(f"lq: {message}", stacklevel=2)
        deployment.parity[choice.name] = parity
        deployment.results.setdefault(f"{choice.name}_vs_{FAKE}", parity.fidelity)
    deployment.notes += keeper.notes


def _latencies(
    deployment: Deployment, place: Path, float_model: nn.Module | None, sample: Inputs
) -> dict[str, Latency]:
    """Of what runs in a fresh process; a failure costs the figures, not the artifact."""
    kinds = [kind for kind, parity in deployment.parity.items() if parity.samples]
    try:
        return fresh_latencies(place, kinds, float_model, sample)
    except RuntimeError as error:
        deployment.notes.append(f"latencies could not be measured: {error}")
        return {}


def _leave_out(deployment: Deployment) -> list[str]:
    """Take out of the models what did not pass the gate; returns the kinds."""
    failed = [kind for kind, parity in deployment.parity.items() if not parity.passed]
    for kind in failed:
        del deployment.models[kind]
    return failed


def _remove(kind: str, place: Path) -> None:
    for file in EXPORTERS[kind].files:
        (place / file).unlink(missing_ok=True)


def _provenance(prepared: fx.GraphModule, float_model: nn.Module | None) -> dict[str, Any]:
    """What an artifact says of where it comes from."""
    state = state_of(prepared)
    ends = zip(state.names, state.min_val.tolist(), state.max_val.tolist(), strict=True)
    return {
        "qconfig": qconfig_of(prepared).to_dict(),
        "plan": plan_of(prepared).to_dict(),
        "ranges": {name: [low, high] for name, low, high in ends},
        f"{FP32}_weights_sha256": None if float_model is None else _digest(float_model),
    }


def _digest(model: nn.Module) -> str:
    """SHA-256 of the names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
