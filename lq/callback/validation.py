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
    if reference.model is not None and reference.is_usable and not reference.results:
        versions["fp32"] = reference.model.to(module.device).eval()
    if int8:
        with torch.inference_mode(False), torch.no_grad():
            versions["int8"] = convert(prepared_graph(module, name))
    return versions


def log_results(module: LightningModule, results: Results) -> None:
    """Log ``qat/<version>/<metric>``."""
    for version, values in results.items():
        for metric, value in values.items():
            module.log(f"qat/{version}/{metric}", value, sync_dist=True)
