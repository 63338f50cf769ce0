from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.fixture
def batches() -> list[Any]:
    """Two batches of images of one channel, 6x6, and three classes."""
    torch.manual_seed(1)
    return [(torch.randn(16, 1, 6, 6), torch.arange(16) % 3) for _ in range(2)]
