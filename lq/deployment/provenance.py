"""What an artifact says of where it comes from."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, fx, nn

from lq.backends.prepare import plan_of, qconfig_of, state_of
from lq.timing.rows import FP32


def provenance(prepared: fx.GraphModule, float_model: nn.Module | None) -> dict[str, Any]:
    """What an artifact says of where it comes from.

    Example:
        >>> from lq.ptq.static import prepare_static
        >>> net, x = nn.Sequential(nn.Linear(4, 2)), torch.rand(8, 4)
        >>> found = provenance(prepare_static(net, [x]), net)
        >>> list(found), list(found["ranges"]), len(found["fp32_weights_sha256"])
        (['qconfig', 'plan', 'ranges', 'fp32_weights_sha256'], ['fq_input_1', 'fq_0'], 64)
    """
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
