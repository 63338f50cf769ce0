"""Validation: the other versions of the target that are judged beside the fake-quantized one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lq.backends.convert import convert
from lq.callback.float_reference import FloatReference
from lq.callback.processes import on_first_process
from lq.detached import detached_copy
from lq.evaluation import Judge, Results, own_figures
from lq.target import prepared_graph


def other_versions(
    module: LightningModule, name: str, reference: FloatReference, *, int8: bool
) -> dict[str, nn.Module]:
    """What one validation compares with the running target.

    Args:
        module: the running LightningModule.
        name: of its target.
        reference: the float model; it is judged once, while it has no figures.
        int8: whether to convert the target as it is now.

    Returns:
        "fp32" on the module's device and "int8" on the CPU, each where it is wanted.
    """
    versions: dict[str, nn.Module] = {}
    if reference.model is not None and reference.is_usable and not (reference.results or reference.is_judged):
        versions["fp32"] = reference.model.to(module.device).eval()
    if int8:
        with torch.inference_mode(False), torch.no_grad():
            versions["int8"] = convert(prepared_graph(module, name))
    return versions


def figures_of_the_module(
    trainer: Trainer,
    module: LightningModule,
    name: str,
    judge: Judge,
    versions: Mapping[str, Callable[..., Any]],
    reference: FloatReference,
) -> Results:
    """What the module's own validation logs with other versions in the target's place.

    Each takes a pass over the validation data, in the first process and on the CPU, while the others wait.

    Args:
        trainer: of the run; all processes have to call this.
        module: the running LightningModule; a copy runs.
        name: of its target.
        judge: the validation data.
        versions: from :func:`other_versions`.
        reference: the float model.

    Returns:
        the figures of each version; none of one that the user's code cannot be run with, which a warning says.
    """
    weights = reference.baseline().weights(name)

    def judge_all() -> Results:
        found: Results = {}
        with torch.inference_mode(False):
            twin = detached_copy(module).float()
            for version, model in versions.items():
                try:
                    found[version] = own_figures(twin, name, judge, version, model, weights)
                except Exception as error:  # whatever the user's validation cannot do outside of its own run
                    reason = f"{version} could not be judged on the validation data: {type(error).__name__}: {error}"
                    warnings.warn(f"lq: {reason}", stacklevel=2)
        return found

    return on_first_process(trainer, judge_all) if versions else {}


def log_at_the_end(trainer: Trainer, results: Mapping[str, Mapping[str, float]], exporter: str) -> None:
    """Log the figures of the closing table that the fit has not logged, and those of the first exporter as "int8".

    Args:
        trainer: at the end of a fit.
        results: figures by version.
        exporter: the first one.
    """
    found = figures_of({"fp32": dict(results.get("fp32", {})), "int8": dict(results.get(exporter, {}))})
    known = trainer.callback_metrics
    figures = {name: value for name, value in found.items() if name.startswith("qat/int8") or name not in known}
    if not figures:
        return
    known.update({name: torch.tensor(value) for name, value in figures.items()})
    epoch = {"epoch": max(trainer.current_epoch - 1, 0)}  # the last one that ran
    for logger in trainer.loggers:
        logger.log_metrics({**epoch, **figures}, step=trainer.global_step)


def figures_of(results: Results) -> dict[str, float]:
    """What is logged: ``qat/<version>/<metric>``.

    Example:
        >>> figures_of({"fake": {"accuracy": 0.9}})
        {'qat/fake/accuracy': 0.9}
    """
    return {f"qat/{version}/{metric}": v for version, values in results.items() for metric, v in values.items()}
