"""Validation: the other versions of the target that are judged beside the fake-quantized one."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lq.backends.convert import convert
from lq.callback.float_reference import FloatReference
from lq.evaluation import Results
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


def figures_of(results: Results) -> dict[str, float]:
    """What is logged: ``qat/<version>/<metric>``.

    Example:
        >>> figures_of({"fake": {"accuracy": 0.9}})
        {'qat/fake/accuracy': 0.9}
    """
    return {f"qat/{version}/{metric}": v for version, values in results.items() for metric, v in values.items()}
