"""Attention as LiteRT's operators compute it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.export.formats.litert.ran import in_float

pytest.importorskip("ai_edge_litert")


@pytest.mark.parametrize("scale", [None, 0.0, 0.3])
def test_scores_have_the_scale_that_is_given(scale: float | None, tmp_path: Path) -> None:
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    expected, got = in_float(lambda x: F.scaled_dot_product_attention(x, x, x, scale=scale), x, directory=tmp_path)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
