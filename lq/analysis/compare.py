"""Is QAT worth it? Float, post-training quantization and QAT, on the same data, in one table."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import fx, nn

from lq.analysis.model_table import FAKE, HISTOGRAM, INT8, CompareOptions, ModelTable
from lq.analysis.tensors import evaluating
from lq.config.qconfig import QConfig
from lq.config.reading import as_qconfig
from lq.conversion.bias import round_biases
from lq.conversion.convert import convert
from lq.core.copies import deep_copy
from lq.deployment.gated_export import BIAS_ROUNDING
from lq.export.artifact.directory import AnyPath
from lq.export.artifact.int8_model import at_hand
from lq.export.artifact.manifest import read_manifest
from lq.ptq.batches import RunBatch, first_batches, first_inputs, reusable, run_batch
from lq.ptq.dynamic import DYNAMIC_LAYERS, quantize_dynamic
from lq.ptq.static import StaticOptions, prepare_static
from lq.timing.latency import size_mb
from lq.tracing.exported_call import call_to_export
from lq.tracing.images import image_list
from lq.tracing.samples import one_sample

MINMAX, CORRECTED, DYNAMIC = "PTQ per-tensor MinMax", "PTQ histogram, bias corrected", "PTQ dynamic"


def compare(
    model: nn.Module,
    calibration: Iterable[Any],
    test: Iterable[Any],
    qconfig: QConfig | str = "portable",
    qat: fx.GraphModule | None = None,
    artifact: AnyPath | None = None,
    options: CompareOptions | None = None,
) -> list[dict[str, Any]]:
    """Evaluate the float model, three kinds of post-training quantization, and QAT on the same test data.

    Rows: FP32 (latency of the fastest of eager, frozen and fused TorchScript); static PTQ per tensor with MinMax, per
    channel with histograms, and the latter with corrected biases; dynamic PTQ where there are recurrent layers or
    linear ones hold most of the weights; the fake-quantized QAT model and what was exported from it. Latency is that
    of one sample, int8 as frozen TorchScript or in the artifact's own runtime.

    Args:
        model: the float model, on the CPU.
        calibration: batches for PTQ, e.g. the training data's loader.
        test: batches with labels.
        qconfig: grids of the PTQ models: those of QAT.
        qat: the prepared model that was trained, with its ranges.
        artifact: directory of its artifact; every file whose runtime is installed is evaluated. Without it the int8
            row is converted from ``qat``.
        options: see :class:`CompareOptions`.

    Returns:
        rows for :func:`lq.report.table.print_table`. ``recovered`` is the share of PTQ's loss that QAT regains,
        ``(QAT - PTQ) / (FP32 - PTQ)`` with PTQ per channel with histograms; it is left out where that loss is below
        0.5 % of the float metric, or PTQ is better than float.

    Raises:
        ValueError: if there are no data, or the metric does not fit them.

    Example:
        >>> import torch
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(64, 4)
        >>> rows = compare(net, [x], [(x, net(x).argmax(1))], options=CompareOptions(seconds=0.01))
        >>> [row["model"] for row in rows][:3]
        ['FP32', 'PTQ per-tensor MinMax', 'PTQ per-channel histogram']
    """
    options = options or CompareOptions()
    call = options.call or run_batch
    calibration, test = reusable(calibration, options.calibration), reusable(test, options.limit)
    model = deep_copy(model).cpu().eval()
    example = next(first_batches(test, 1, "compare()"))
    inputs = call_to_export(model, first_inputs(model, model, example, call))
    table = ModelTable(one_sample(inputs) if image_list(inputs) is None else inputs, options)
    table.add_float(model)
    for name, prepared in _static(model, calibration, qconfig, call, options.calibration):
        table.add_int8(name, convert(prepared))
    if _dynamic_pays(model):
        dynamic = quantize_dynamic(model)
        table.add(DYNAMIC, dynamic, size_mb(dynamic))
    for name, other in options.others.items():
        table.add(name, other)
    _add_qat(table, qat, artifact)
    return table.rows(test, call)


def _add_qat(table: ModelTable, qat: fx.GraphModule | None, artifact: AnyPath | None) -> None:
    if qat is not None:
        if artifact is not None and _has_rounded_biases(artifact):
            qat = copy.deepcopy(qat)
            round_biases(qat)  # as in what was exported
        table.models[FAKE] = _fake_quantized(qat)
    if artifact is not None:
        table.add_artifact(artifact)
    elif qat is not None:
        table.add_int8(INT8, convert(qat))


def _has_rounded_biases(artifact: AnyPath) -> bool:
    with at_hand(artifact) as place:
        return read_manifest(place).get(BIAS_ROUNDING) is not None


def _static(
    model: nn.Module, batches: Iterable[Any], qconfig: QConfig | str, call: RunBatch, limit: int
) -> Iterable[tuple[str, fx.GraphModule]]:
    qconfig = as_qconfig(qconfig)
    weight = replace(qconfig.resolved_weight, learned_scale=False)
    activation = replace(qconfig.resolved_activation, learned_scale=False)
    minmax, histogram = (replace(activation, observer=observer) for observer in ("minmax", "histogram"))
    per_tensor = replace(qconfig, weight=replace(weight, per_channel=False), activation=minmax)
    per_channel = replace(qconfig, weight=replace(weight, per_channel=True), activation=histogram)
    plain, corrected = StaticOptions(limit=limit), StaticOptions(limit=limit, bias=True)
    yield MINMAX, prepare_static(model, batches, per_tensor, call, plain)
    yield HISTOGRAM, prepare_static(model, batches, per_channel, call, plain)
    yield CORRECTED, prepare_static(model, batches, per_channel, call, corrected)


def _dynamic_pays(model: nn.Module) -> bool:
    recurrent = any(isinstance(m, (nn.LSTM, nn.GRU)) for m in model.modules())
    kinds = tuple(DYNAMIC_LAYERS.values())
    held = sum(p.numel() for m in model.modules() if isinstance(m, kinds) for p in m.parameters(recurse=False))
    return recurrent or 2 * held > sum(p.numel() for p in model.parameters())


def _fake_quantized(prepared: fx.GraphModule) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with evaluating(prepared):
            return prepared(*args, **kwargs)

    return run
