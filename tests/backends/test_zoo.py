"""The contract of ``prepare`` and ``convert``, once for every architecture; docs/matrix.md shows what it finds."""

from __future__ import annotations

import pytest

from tests.backends.zoo import ZOO, keep_contract

# Their blocks are those of deeplabv3_mobilenet_v3_large and of timm's mobilenetv3_small_100; the matrix has them all.
IN_THE_MATRIX_ALONE = {"torchvision mobilenet_v3_large", "timm efficientnet_lite0"}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # attention's checks of shapes become constants
@pytest.mark.parametrize("name", [name for name in ZOO if name not in IN_THE_MATRIX_ALONE])
def test_the_contract(name: str) -> None:
    entry = ZOO[name]
    if not entry.is_installed:
        pytest.skip(f"{entry.needs} is not installed")
    kept = keep_contract(entry)
    if name == "torchvision googlenet":  # its auxiliary heads are not deployed
        assert kept.float_parts
        assert all(part.startswith("aux") for part in kept.float_parts)
    else:
        assert kept.float_parts == (("lstm",) if name == "LSTM classifier" else ())
