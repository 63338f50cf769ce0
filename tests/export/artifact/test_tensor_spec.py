from __future__ import annotations

import torch

from lq.export.artifact.tensor_spec import TensorSpec


def test_a_tensor_fits_by_shape_and_type() -> None:
    assert TensorSpec("x", ("batch", 2), "float32").fits(torch.ones(9, 2))
    assert not TensorSpec("x", (4, 2), "float32").fits(torch.ones(9, 2))
    assert not TensorSpec("x", ("batch", 2), "float32").fits(torch.ones(2))
