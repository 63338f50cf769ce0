"""From a trained model to an artifact: export, load again, compare, let through what agrees, write it as a whole."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx, nn

from lq.backends.float_module import check_weights
from lq.backends.prepare import plan_of, set_phase
from lq.conversion.bias import round_biases
from lq.deployment.destination import Destination
from lq.deployment.gatekeeper import Gatekeeper
from lq.deployment.handover import as_destination, hand_over, workplace
from lq.deployment.in_float import batch_notes, float_notes, loss_notes, size_notes, unused_notes
from lq.deployment.outputs import calls_of_other_sizes, larger_call, output_of
from lq.deployment.provenance import provenance
from lq.deployment.results import Compare, Compared, Deployment
from lq.deployment.settings import ExportSettings
from lq.export.artifact.files import save
from lq.export.artifact.int8_model import PREPARED_NAME, load
from lq.export.artifact.manifest import write_manifest
from lq.export.artifact.signature import Signature, fits_batch, smallest_call
from lq.export.exporters import EXPORTERS, Chosen
from lq.export.formats.shared import sharing
from lq.export.parity.gate import Parity, measure, metric_complaint
from lq.export.parity.worker import Worker
from lq.messages import one_line
from lq.metrics.detections import Comparable, comparable
from lq.timing.latency import Latency
from lq.timing.rows import FAKE, comparison_rows
from lq.timing.stopwatch import Stopwatch
from lq.tracing.batch import FixedBatch, fixed_batch
from lq.tracing.images import each_image
from lq.tracing.samples import batch_size
from lq.tracing.structure import Inputs

BIAS_ROUNDING = "bias_rounding"  # in lq.json: what rounding the biases has changed, or null


def gated_export(
    prepared: fx.GraphModule,
    example: Inputs,
    compare: Compare,
    settings: ExportSettings,
    float_model: nn.Module | None = None,
) -> Deployment:
    """Export a trained model, compare each artifact with the fake-quantized model, and write those that agree.

    Args:
        prepared: on the CPU, trained or calibrated; it is left in evaluation mode. If a runtime rounds biases,
            those of the model are rounded beforehand (:func:`lq.conversion.bias.round_biases`), so that all artifacts
            and the fake-quantized model have the same ones; ``lq.json`` says how far that moves its output.
        example: inputs of one call, on the CPU.
        compare: takes the loaded int8 models and a number of calls, of which it returns at most that many.
        settings: what to deliver.
        float_model: for the FP32 row, on the CPU.

    Returns:
        the deployment; see :meth:`Deployment.raise_failures`.

    Raises:
        ValueError: if ``prepared`` has no ranges, or weights that are no numbers.
        OSError: if the artifact cannot be written.
    """
    check_weights(prepared)
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    trained = copy.deepcopy(prepared.eval().state_dict())
    output, rounding = _output_with_rounded_biases(prepared, example, settings)
    signature = Signature.of(prepared, example, output)
    entries = {
        BIAS_ROUNDING: rounding and rounding.fidelity,
        **provenance(prepared, float_model),
        "signature": signature.to_dict(),
        **settings.manifest,
    }
    deployment, gate, destination = Deployment(), settings.gate, as_destination(settings.directory)
    with workplace(destination) as place, Worker() as worker:
        save(trained, place / PREPARED_NAME)
        infos = _export(deployment, prepared, settings.choices, example, place)
        write_manifest(place, {**entries, "artifacts": infos})
        _load(deployment, infos, place)
        batch = fixed_batch(prepared)
        deployment.notes += batch_notes(batch_size(example), infos) if batch is None else [batch.note]
        deployment.notes += size_notes(prepared, example, infos)
        deployment.notes += _rounding_notes(rounding, settings.choices)
        deployment.notes += float_notes(plan_of(prepared), infos) + unused_notes(prepared, float_model)
        deployment.notes += loss_notes(prepared)
        # A simulator takes a second for a sample: what it runs is compared by the gate alone.
        quick = {kind: model for kind, model in deployment.models.items() if not EXPORTERS[kind].simulator}
        compared = compare(quick, gate.batches)
        deployment.results |= {version: dict(figures) for version, figures in compared.results.items()}
        deployment.notes += [_without_place(note, place) for note in compared.notes]
        calls, others, notes = _calls_to_compare(compared, signature, batch)
        deployment.notes += notes
        others += [(call, comparable(out)) for call, out in calls_of_other_sizes(prepared, example)]
        calls = calls or [(example, comparable(output))]
        keeper = Gatekeeper(prepared, calls, gate, worker, others, _larger(prepared, calls, infos))
        with Stopwatch() as stopwatch:  # it starts beside the comparison
            _pass_gate(deployment, keeper, settings, place, compared)
            times = _latencies(deployment, stopwatch, place, float_model, smallest_call(prepared, example))
        deployment.rows = comparison_rows(infos, float_model, place, deployment.results, times)
        failed = _leave_out(deployment) if gate.on_failure == "error" else []
        entries["parity"] = {kind: parity.to_dict() for kind, parity in deployment.parity.items()}
        entries |= {"results": deployment.results, "table": deployment.rows}
        if deployment.failures:
            entries["error"] = "; ".join(deployment.failures)
        if destination is not None:
            _settle(deployment, place, destination, failed, entries, infos)
    return deployment


def _fitting(call: Inputs, output: Comparable, batch: FixedBatch | None) -> list[tuple[Inputs, Comparable]]:
    """A call and its output, image by image if that is how the graph takes them; none if it cannot take them."""
    if batch is not None and batch.images and batch.size == 1 and isinstance(output, list):
        return [(one, [answer]) for one, answer in zip(each_image(call), output, strict=True)]
    return [(call, output)] if fits_batch(call, batch) else []


def _calls_to_compare(
    compared: Compared, signature: Signature, batch: FixedBatch | None
) -> tuple[list[tuple[Inputs, Comparable]], list[tuple[Inputs, Comparable]], list[str]]:
    """The calls with the sizes of the example, those with others that files may take, and what to say of the rest."""
    calls = [pair for call, out in compared.calls for pair in _fitting(call, out, batch)]
    possible = [pair for pair in calls if not signature.resized(*pair[0])]
    same, notes = [pair for pair in possible if not signature.static.resized(*pair[0])], []
    if len(possible) < len(calls):
        axes = next(filter(None, (signature.resized(*call) for call, _ in calls)))
        notes.append(
            f"{len(calls) - len(possible)} of {len(calls)} validation batches have other sizes than the example, for "
            f"which the files may hold constants, and were not compared; dynamic_axes={axes} leaves them open"
        )
    if not possible:
        notes.append("without validation results, agreement and SQNR are those of one training batch")
    return same, [pair for pair in possible if not any(pair is one for one in same)], notes


def _larger(
    prepared: fx.GraphModule, calls: Sequence[tuple[Inputs, Comparable]], infos: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[Inputs, Comparable]]:
    """For the files that take any batch, a call with more samples than the others and its output."""
    kinds = [kind for kind, info in infos.items() if info.get("dynamic_batch") is not False]
    found = larger_call(prepared, [call for call, _ in calls]) if kinds else None
    return {} if found is None else dict.fromkeys(kinds, (found[0], comparable(found[1])))


def _without_place(note: str, place: Path) -> str:
    """A note without the path of a file that will have moved when somebody reads it."""
    return re.sub(rf"{re.escape(str(place))} \(\w+\): ", "", note)


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
    deployment.notes += handed.notes
    for model in deployment.models.values():
        model.path = handed.directory or handed.rejected or model.path


def _output_with_rounded_biases(
    prepared: fx.GraphModule, example: Inputs, settings: ExportSettings
) -> tuple[Any, Parity | None]:
    """What the model returns, its biases rounded if a runtime does so, and how far that moves it."""
    before = output_of(prepared, example)
    if not any(choice.exporter.rounds_bias for choice in settings.choices):
        return before, None
    round_biases(prepared)
    after = output_of(prepared, example)
    return after, measure([comparable(before)], [comparable(after)], settings.gate)


def _rounding_notes(rounding: Parity | None, choices: Sequence[Chosen]) -> list[str]:
    """That rounded biases change what was trained by more than the gate lets pass, if they do."""
    if rounding is None or rounding.passed:
        return []
    kinds = [choice.name for choice in choices if choice.exporter.rounds_bias]
    round_them = f"{' and '.join(kinds)} round{'s' * (len(kinds) == 1)} them"
    return [
        f"biases: {round_them} to multiples of input scale times weight scale, which are large with few bits. "
        f"This changes the outputs of the trained model: {rounding.complaint}"
    ]


def _export(
    deployment: Deployment, prepared: fx.GraphModule, choices: Sequence[Chosen], example: Inputs, place: Path
) -> dict[str, dict[str, Any]]:
    """Write the files of every exporter that can; returns what they say of them."""
    infos = {}
    with sharing(len(choices) > 1):
        for choice in choices:
            try:
                infos[choice.name] = choice.export(prepared, example, place)
            except OSError:
                raise  # a full disk is no fault of one exporter
            except Exception as error:
                _remove(choice.name, place)
                reason = one_line(error, None)
                deployment.failures.append(f"The int8 model could not be exported as {choice.name!r} ({reason})")
    return infos


def _load(deployment: Deployment, infos: dict[str, dict[str, Any]], place: Path) -> None:
    """Load what was written; of a file that cannot be, nothing stays, and the others are delivered."""
    for kind in list(infos):
        try:
            deployment.models[kind] = load(place, kind)
        except (OSError, MemoryError):
            raise  # of the machine
        except Exception as error:
            del infos[kind]
            _remove(kind, place)
            deployment.failures.append(f"{kind!r} was written, but cannot be loaded ({one_line(error)})")


def _pass_gate(
    deployment: Deployment,
    keeper: Gatekeeper,
    settings: ExportSettings,
    place: Path,
    compared: Compared,
) -> None:
    """Fill ``parity``; complaints become failures or warnings, with the layer to look at."""
    gate = settings.gate

    def counting(version: str) -> dict[str, float]:
        figures = deployment.results.get(version, {})
        return {name: value for name, value in figures.items() if name in compared.counts}

    for choice in settings.choices:
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
    deployment: Deployment, stopwatch: Stopwatch, place: Path, float_model: nn.Module | None, sample: Inputs
) -> dict[str, Latency]:
    """Of what runs in a fresh process; a failure costs the figures, not the artifact."""
    ran = [kind for kind, parity in deployment.parity.items() if parity.samples]
    kinds = [kind for kind in ran if not EXPORTERS[kind].simulator]
    try:
        return stopwatch.latencies(place, kinds, float_model, sample)
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
    for file in EXPORTERS[kind].written_in(place):
        (place / file).unlink(missing_ok=True)
