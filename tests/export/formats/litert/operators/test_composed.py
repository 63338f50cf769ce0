"""Functions that LiteRT lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.export.formats.litert.ran import in_float
from tests.export.nets import images

pytest.importorskip("ai_edge_litert")


def test_weights_of_a_normalization_may_be_computed(tmp_path: Path) -> None:
    expected, got = in_float(
        lambda x: F.group_norm(x, 3, x.mean((0, 2, 3)), x.amax((0, 2, 3))), images(1), directory=tmp_path
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
