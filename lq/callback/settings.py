"""The callback's settings as YAML and Python give them, refused at once if they cannot be meant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torchmetrics import Metric, MetricCollection

from lq.analysis.bits import AutoBits
from lq.analysis.bits.budget import Budget
from lq.checks import as_dataclass, check_integer, check_path, shown
from lq.deployment.settings import ExportSettings
from lq.export.parity.gate import Gate
from lq.tracing.axes import DynamicAxes


def as_export_settings(
    exporters: Any, gate: Gate | Mapping[str, Any] | None, dynamic_axes: DynamicAxes | None = None
) -> ExportSettings:
    """What is to be delivered; mappings are taken for what they describe.

    Raises:
        TypeError: for settings of another type.
        ValueError: for unknown names and values out of range.
        ImportError: if an exporter needs a package that is not installed.

    Example:
        >>> as_export_settings(["torch"], {"min_sqnr_db": 30}).gate.min_sqnr_db
        30
    """
    listed = isinstance(exporters, Sequence) and not isinstance(exporters, str)
    exporters = tuple(exporters) if listed else exporters
    return ExportSettings(exporters, as_dataclass(Gate, gate, "gate"), dynamic_axes=dynamic_axes)


def check_settings(
    target: Any, metric: Any, target_fn: Any, int8_every_n_epochs: Any, export_dir: Any, float_ckpt_path: Any
) -> None:
    """Refuse what is not what its name says.

    Raises:
        TypeError: naming the setting, what came, and what to write.
        ValueError: for a number out of range.

    Example:
        >>> from torch import nn
        >>> check_settings(nn.Linear(2, 1), None, None, None, None, None)
        Traceback (most recent call last):
        ...
        TypeError: target=<Linear> must be the dotted name of a submodule, e.g. 'model', not the module itself.
    """
    if target is not None and not isinstance(target, str):
        raise TypeError(
            f"target={shown(target)} must be the dotted name of a submodule, e.g. 'model', not the module itself."
        )
    if metric is not None and not isinstance(metric, (Metric, MetricCollection)):
        raise TypeError(
            f"metric={shown(metric)} ({type(metric).__name__}) is not a torchmetrics metric; "
            "write e.g. metric=torchmetrics.classification.BinaryF1Score()."
        )
    if target_fn is not None and not callable(target_fn):
        raise TypeError(
            f"target_fn={shown(target_fn)} is not a function of a batch; write e.g. lambda batch: batch['y']."
        )
    if int8_every_n_epochs is not None:
        check_integer("int8_every_n_epochs", int8_every_n_epochs, 5)
        if int8_every_n_epochs < 1:
            raise ValueError(f"int8_every_n_epochs={int8_every_n_epochs} must be at least 1, or None for the end only.")
    if export_dir is not None:
        check_path("export_dir", export_dir, "runs/int8")
    if float_ckpt_path is not None:
        check_path("float_ckpt_path", float_ckpt_path, "runs/float.ckpt")


def check_searches(auto_exclude: object, auto_bits: AutoBits | None, exporters: Collection[str]) -> None:
    """Refuse two searches in one run, each of which would look at a network that the other changes.

    And a search for a runtime that gets no file.

    Raises:
        ValueError: if that is asked for.

    Example:
        >>> check_searches(None, AutoBits("latency=0.6@onnx"), exporters=["torch"])
        Traceback (most recent call last):
        ...
        ValueError: auto_bits: budget latency=0.6@onnx limits the latency in 'onnx', which is not among the exporters;
        write exporters=['torch', 'onnx'], or limit that of 'torch'.
    """
    if auto_bits is None:
        return
    if auto_exclude is not None:
        raise ValueError(
            "auto_exclude and auto_bits cannot be used in the same run. auto_bits also leaves layers in float if 32 is "
            "among its widths: auto_bits={'budget': ..., 'widths': [2, 4, 8, 32]}."
        )
    runtime = Budget.parse(auto_bits.budget).runtime
    if runtime is not None and runtime not in exporters:
        raise ValueError(
            f"auto_bits: budget {auto_bits.budget} limits the latency in {runtime!r}, which is not among the "
            f"exporters; write exporters={[*exporters, runtime]}, or limit that of {' or '.join(map(repr, exporters))}."
        )
