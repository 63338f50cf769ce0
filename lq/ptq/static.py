"""Static post-training quantization: prepare, calibrate, convert, with what can be mended without training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from lq.backends.prepare import is_prepared, prepare
from lq.checks import as_dataclass, check_flag, check_integer, check_module
from lq.compat.packages import is_lightning_module, overrides
from lq.config.qconfig import QConfig
from lq.config.reading import as_qconfig
from lq.conversion.convert import convert
from lq.conversion.graph import as_graph
from lq.lightning_module.copies import float_copy
from lq.lightning_module.target import find_target, target_of
from lq.ptq.batch_norm import reestimate_batch_norm
from lq.ptq.batches import RunBatch, check_batches, first_batches, first_inputs, reusable, run_batch
from lq.ptq.bias import correct_bias
from lq.ptq.calibrate import calibrate
from lq.tracing.axes import Axes, DynamicAxes, checked_axes
from lq.tracing.exported_call import call_to_export
from lq.tracing.structure import Inputs


@dataclass(frozen=True)
class StaticOptions:
    """What to do in addition to calibration.

    Args:
        batch_norm: measure BatchNorm statistics again behind quantized weights, before the ranges; see
            :func:`~lq.ptq.batch_norm.reestimate_batch_norm`.
        bias: correct biases for the mean error of the weights; see :func:`~lq.ptq.bias.correct_bias`.
        limit: batches to use for each.
        target: dotted name of the part of a LightningModule to quantize; None finds it.

    Example:
        >>> StaticOptions(batch_norm=True, limit=20).limit
        20
    """

    batch_norm: bool = False
    bias: bool = False
    limit: int = 100
    target: str | None = None

    def __post_init__(self) -> None:
        check_flag("batch_norm", self.batch_norm)
        check_flag("bias", self.bias)
        check_integer("limit", self.limit, 100, least=1)


def quantize_static(
    model: nn.Module,
    batches: Iterable[Any],
    qconfig: QConfig | str = "portable",
    call: RunBatch | None = None,
    options: StaticOptions | None = None,
    dynamic_axes: DynamicAxes | None = None,
) -> nn.Module:
    """Quantize a copy of a trained float model to int8, without training; the model itself is not changed.

    Args:
        model: any module, or a LightningModule, of which the target is quantized.
        batches: data, e.g. a DataLoader; about 100 of them are used.
        qconfig: preset name or :class:`lq.QConfig`; activations are calibrated by their histogram unless
            ``qconfig.activation`` says otherwise.
        call: how to run one batch, ``call(model, batch)``; see :func:`~lq.ptq.batches.run_batch`.
        options: see :class:`StaticOptions`.
        dynamic_axes: as :func:`lq.convert` takes them.

    Returns:
        the int8 model on the CPU, in evaluation mode; of a LightningModule, a copy whose target is the int8 model
        (the int8 model alone if the LightningModule itself is the target).

    Raises:
        ValueError: as :func:`lq.prepare` and :func:`lq.calibrate` do.

    Example:
        >>> import torch
        >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(64, 4)
        >>> int8 = quantize_static(model, x.split(16))
        >>> bool((int8(x) - model(x)).abs().max() < 0.05)
        True
    """
    settings, axes = as_dataclass(StaticOptions, options, "options"), checked_axes(dynamic_axes)
    prepared, owner, name = _prepared(model, batches, qconfig, call, settings, axes)
    int8 = convert(prepared)
    if not name:
        return int8
    owner.set_submodule(name, int8)
    return owner.eval()


def prepare_static(
    model: nn.Module,
    batches: Iterable[Any],
    qconfig: QConfig | str = "portable",
    call: RunBatch | None = None,
    options: StaticOptions | None = None,
) -> fx.GraphModule:
    """The fake-quantized model that :func:`quantize_static` converts, as a graph, for analysis.

    To train from calibrated ranges, call :func:`lq.prepare` on the float model and :func:`lq.calibrate` on the result.

    Args:
        model: as in :func:`quantize_static`, and so are the other arguments.
        batches: data.
        qconfig: preset name or QConfig.
        call: how to run one batch.
        options: see :class:`StaticOptions`.

    Returns:
        the graph of a prepared copy of the model (of a LightningModule, of its target), calibrated.

    Example:
        >>> import torch
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [torch.randn(8, 4)])
        >>> prepared.qat_state.specs[0].observer
        'histogram'
    """
    return _prepared(model, batches, qconfig, call, as_dataclass(StaticOptions, options, "options"))[0]


def with_histograms(qconfig: QConfig | str) -> QConfig:
    """The qconfig with histogram observers, if it does not say what its activations are observed by.

    Example:
        >>> with_histograms("portable").activation.observer
        'histogram'
    """
    qconfig = as_qconfig(qconfig)
    if qconfig.activation is not None and "observer" in qconfig.activation.given:
        return qconfig
    return replace(qconfig, activation=replace(qconfig.resolved_activation, observer="histogram"))


def _prepared(
    model: nn.Module,
    batches: Iterable[Any],
    qconfig: QConfig | str,
    call: RunBatch | None,
    options: StaticOptions,
    axes: Axes | None = None,
) -> tuple[fx.GraphModule, nn.Module, str]:
    """The prepared graph, the copy of the model that holds what it was made of, and under which name."""
    check_module("model", model)
    check_batches(batches, "quantize_static()")
    if is_prepared(model):
        raise ValueError("The model is prepared already: lq.calibrate(prepared, batches), then lq.convert(prepared).")
    owner, name = _copied(model, options.target)
    if call is None and name and not overrides(owner, "forward"):
        raise ValueError(
            f"{type(model).__name__} has no forward() to run a batch with. Give the part itself, "
            f"lq.quantize_static(module.{name}, ...), or call=lambda module, batch: module.{name}(batch[0]), with what "
            f"{name} takes of a batch."
        )
    example = prepare_and_calibrate(owner, name, batches, qconfig, call, options)
    part = target_of(owner, name)
    return as_graph(part, call_to_export(part, example), axes=axes or {}), owner, name


def prepare_and_calibrate(
    owner: nn.Module,
    name: str,
    batches: Iterable[Any],
    qconfig: QConfig | str = "portable",
    call: RunBatch | None = None,
    options: StaticOptions | None = None,
) -> Inputs:
    """Prepare a part of a float model in place, and calibrate it.

    Args:
        owner: holds the part, and is what batches are run through.
        name: of the part; "" is ``owner`` itself.
        batches: data.
        qconfig: grids.
        call: how to run one batch.
        options: what else to do.

    Returns:
        inputs of one call of the part.

    Raises:
        ValueError: as :func:`lq.prepare` and :func:`lq.calibrate` do.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> args, kwargs = prepare_and_calibrate(net, "", [torch.randn(8, 4)])
        >>> is_prepared(net)
        True
    """
    options, run = options or StaticOptions(), call or run_batch
    batches, part = reusable(batches, options.limit), target_of(owner, name)
    example = first_inputs(owner, part, next(first_batches(batches, 1, "quantize_static()")), run)
    prepare(part, with_histograms(qconfig), *example)
    _go_through(part, batches, lambda _, batch: run(owner, batch), options)
    return example


def _copied(model: nn.Module, target: str | None) -> tuple[nn.Module, str]:
    if target is not None and not is_lightning_module(model):
        raise ValueError(
            f"target={target!r} is for LightningModules, and {type(model).__name__} is none: give the part itself, "
            f"model.get_submodule({target!r})."
        )
    name = find_target(model, target) if is_lightning_module(model) else ""
    return float_copy(model).eval(), name


def _go_through(prepared: nn.Module, batches: Iterable[Any], call: RunBatch, options: StaticOptions) -> None:
    def again() -> Iterable[Any]:
        return first_batches(batches, options.limit, "quantize_static()")

    if options.batch_norm:
        reestimate_batch_norm(prepared, again(), call)
    if options.bias:
        correct_bias(prepared, again(), call)
    calibrate(prepared, batches, call, options.limit)
