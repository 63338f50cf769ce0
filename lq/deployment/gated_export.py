"""From a trained model to an artifact: export, load again, compare, let through what agrees, write it as a whole."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from lq.backends.float_module import check_weights
from lq.backends.prepare import set_phase
from lq.conversion.bias import round_biases
from lq.deployment.compared_calls import calls_to_compare
from lq.deployment.delivery import Delivery
from lq.deployment.handover import as_destination, workplace
from lq.deployment.outputs import output_of
from lq.deployment.provenance import provenance
from lq.deployment.results import Compare, Deployment
from lq.deployment.settings import ExportSettings
from lq.export.artifact.files import save
from lq.export.artifact.int8_model import PREPARED_NAME
from lq.export.artifact.manifest import write_manifest
from lq.export.artifact.signature import Signature
from lq.export.exporters import Chosen
from lq.export.parity.gate import Parity, measure
from lq.export.parity.worker import Worker
from lq.metrics.detections import comparable
from lq.timing.stopwatch import Stopwatch
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

    Example:
        >>> import torch
        >>> from lq.deployment.results import Compared
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.rand(8, 4)
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [x])
        >>> done = gated_export(prepared, ((x,), {}), lambda models, count: Compared(), ExportSettings(["torch"]))
        >>> done.parity["torch"].passed, [row["model"] for row in done.rows], done.directory
        (True, ['fake-quantized', 'int8 torch'], None)
        >>> done.notes
        ['without validation results, agreement and SQNR are those of one training batch']
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
    destination = as_destination(settings.directory)
    with workplace(destination) as place, Worker() as worker:
        save(trained, place / PREPARED_NAME)
        delivery = Delivery(prepared, example, settings, place, float_model)
        delivery.export()
        write_manifest(place, {**entries, "artifacts": delivery.infos})
        delivery.load()
        delivery.note_contents()
        delivery.deployment.notes += _rounding_notes(rounding, settings.choices)
        compared = delivery.run(compare)
        calls = calls_to_compare(prepared, example, compared, signature, delivery.infos)
        with Stopwatch() as stopwatch:  # it starts beside the comparison
            delivery.pass_gate(calls, worker, compared)
            delivery.fill_table(stopwatch)
        delivery.settle(destination, entries)
    return delivery.deployment


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
