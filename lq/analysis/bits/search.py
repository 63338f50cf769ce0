"""Bits for each weight and activation under a budget, from what each costs and what rounding it does to the output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from lq.analysis.bits.activations import ActivationChoices, Activations
from lq.analysis.bits.budget import LATENCY, Budget
from lq.analysis.bits.choice import BitChoice
from lq.analysis.bits.costs import activation_capacity, float_bytes
from lq.analysis.bits.latency import calibrated_by
from lq.analysis.bits.layers import (
    LayerChoices,
    at_width,
    grids_of,
    layer_choices,
)
from lq.analysis.bits.losses import RoundingLoss
from lq.analysis.bits.selection import ActivationSelection, WeightSelection
from lq.analysis.bits.settings import AutoBits, as_auto_bits
from lq.analysis.bits.timed import MOST_MEASURED, costs_of
from lq.analysis.resume import ResultFile, fingerprint
from lq.backends.prepare import prepare, state_of
from lq.checks import check_module
from lq.compat.float64 import as_float64
from lq.config.qconfig import QConfig
from lq.config.reading import as_qconfig
from lq.console import BatchCounter
from lq.conversion.graph import as_graph
from lq.export.exporters import EXPORTERS, ExporterChoice
from lq.lightning_module.copies import float_copy
from lq.metrics.outputs import plain_targets_of
from lq.ptq.batches import RunBatch, first_batches, first_inputs, run_batch
from lq.ptq.calibrate import calibrate
from lq.tracing.exported_call import call_to_export
from lq.tracing.structure import Inputs


def choose_bits(
    model: nn.Module,
    batches: Iterable[Any],
    qconfig: QConfig | str = "portable",
    options: AutoBits | str | None = None,
    call: RunBatch | None = None,
    target_fn: Callable[[Any], Any] | None = None,
    exporters: Sequence[ExporterChoice] = ("torch",),
    show_progress: bool = True,
) -> BitChoice:
    r"""Choose the bits of each weight, and of each activation if wanted, such that a budget is kept at the least loss.

    .. math:: \min_{b} \sum_l L_l(b_l) \quad \text{such that} \quad \sum_l c_l(b_l) \le C

    with the loss :math:`L_l(b)` of the output when only the weight of layer l is rounded, to b bits, and its cost
    :math:`c_l(b)`. The sum is minimized exactly. That losses add up is an assumption; the rows say what was measured
    with all weights rounded. With ``activation_bits``, the same is done for the activations, whose cost are the bits of
    their values.

    Args:
        model: in float; it is left as it is.
        batches: data; with class labels the loss is the KL divergence of class scores, otherwise noise over signal.
        qconfig: what is quantized. What it overrides keeps its bits, and so do the first and last layers with their
            inputs and outputs unless ``keep`` is "nothing".
        options: budget and widths; text is a budget.
        call: how to run one batch; ``None`` for :func:`~lq.ptq.batches.run_batch`.
        target_fn: batch -> labels; ``None`` takes those of plain inputs and labels.
        exporters: in whose files the weights are stored.
        show_progress: whether to show how far it is.

    Returns:
        the choice: ``found.apply(qconfig)`` is the new qconfig.

    Raises:
        ValueError: if the budget is smaller than the smallest choice or as large as the float model, there is no batch,
            or a quantizer of PT2E decides on the bits.

    Source:
        Dong et al., "HAWQ-V2", https://arxiv.org/abs/1911.03852, and Yao et al., "HAWQ-V3",
        https://arxiv.org/abs/2011.10680, for sensitivities and an integer program.

    Example:
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)), torch.eye(4)
        >>> found = choose_bits(net, [x], QConfig(keep="nothing"), AutoBits("effective_bits=3.5"))
        >>> found.chosen["effective_bits"] <= 3.5, sorted(found.overrides)
        (True, ['0', '2'])
    """
    check_module("model", model)
    options, qconfig, run = as_auto_bits(options), as_qconfig(qconfig), call or run_batch
    if qconfig.backend == "pt2e":
        raise ValueError(
            f"auto_bits: the quantizer {qconfig.quantizer!r} of backend 'pt2e' decides on the bits; use backend 'fx'."
        )
    budget, widths = Budget.parse(options.budget), options.allowed
    if budget.runtime is not None:
        EXPORTERS[budget.runtime].check_installed()
        # The first and last layers may stay in float as well, and at 8 bits they are like all others.
        qconfig = replace(qconfig, keep="nothing")
    kept = list(first_batches(batches, options.batches, "auto_bits"))
    twin = float_copy(model).eval()
    example = first_inputs(twin, twin, kept[0], run)
    of_activations = options.activation_bits is not None
    grids = grids_of(twin, qconfig, widths, example, of_activations)
    weights_are, in_float = fingerprint(twin), float_bytes(twin)
    whole = at_width(qconfig, max(grids), of_activations)
    graph = _calibrated(twin, whole, example, kept, run, of_activations)
    layers = layer_choices(graph, grids, widths, exporters)
    activations, tensors = None, []
    if options.activation_bits is not None:
        activations = Activations(graph, {width: at.activations for width, at in grids.items()})
        tensors = activations.choices(kept[0], run, widths)
        activation_capacity(tensors, options.activation_bits)  # before any loss is measured
    total = _losses(layers, tensors, widths) * len(kept) + (MOST_MEASURED if budget.kind == LATENCY else 0)
    counter = BatchCounter(f"lq: bits of {len(layers)} layers", total, shown=show_progress)
    ranges = calibrated_by(kept, run, counter.advance)
    with counter, torch.no_grad(), costs_of(budget, whole, graph, layers, in_float, model, example, ranges) as costs:
        costs.check()
        loss = RoundingLoss(
            graph, kept, run, target_fn or plain_targets_of, counter.advance, budget.kind == LATENCY, activations
        )
        file = ResultFile(options.resume_file, _key(weights_are, loss), replace_other=True)
        found = WeightSelection(layers, costs, loss, file, widths).found()
        if options.activation_bits is None:
            return found
        of_tensors = ActivationSelection(tensors, loss, file, widths, options.activation_bits)
        return replace(found, activations=of_tensors.found(found.weights))


def _calibrated(
    twin: nn.Module, qconfig: QConfig, example: Inputs, batches: Sequence[Any], run: RunBatch, histograms: bool
) -> fx.GraphModule:
    """A float module as a graph with ranges; those of every width can be found in histograms."""
    prepare(twin, qconfig, *copy.deepcopy(example))
    if histograms:
        state_of(twin).observe_by("histogram")
    calibrate(twin, batches, run, len(batches), show_progress=False)
    return as_graph(twin, call_to_export(twin, example))


def _losses(layers: Sequence[LayerChoices], tensors: Sequence[ActivationChoices], widths: Sequence[int]) -> int:
    """How many losses are measured at most: of each option, of all at each width, and of what is chosen."""
    options = [sum(option.spec is not None for layer in layers for option in layer.options)]
    options += [sum(len(tensor.options) for tensor in tensors)] if tensors else []
    return sum(options) + len(options) * (len(widths) + 2)


def _key(weights_are: str, loss: RoundingLoss) -> dict[str, Any]:
    data = [float(as_float64(out).square().sum()) for out in loss.reference.outputs]
    return {"model": weights_are, "loss": loss.name, "outputs on the data": data}
