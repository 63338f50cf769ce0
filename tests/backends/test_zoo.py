"""The contract of ``prepare`` and ``convert``, once for every architecture; docs/matrix.md shows what it finds."""

from __future__ import annotations

import pytest

from tests.backends.zoo import ZOO, keep_contract


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # attention's checks of shapes become constants
@pytest.mark.filterwarnings("ignore:lq. gate stays float")
@pytest.mark.parametrize("name", ZOO)
def test_the_contract(name: str) -> None:
    entry = ZOO[name]
    if not entry.is_installed:
        pytest.skip(f"{entry.needs} is not installed")
    kept = keep_contract(entry)
    # Attention computes in float, whether PyTorch's own or written with the weights of layers.
    inside = {"torchvision vit_b_16": ".self_attention", "torchvision swin_t": ".attn."}
    others = {"LSTM classifier": ("lstm",), "branch that depends on values": ("gate",)}
    if name in inside:
        assert kept.float_parts
        assert all(inside[name] in part for part in kept.float_parts)
    else:
        assert kept.float_parts == others.get(name, ())
