"""Tensors and operators of a file in the making."""

from __future__ import annotations

import numpy as np

from lq.export.formats.litert.file import File, FileTensor, Size


def test_each_tensor_has_a_name_of_its_own() -> None:
    file = File()
    for name in ("x", "x", "x_2", "x", "y"):
        file.tensor(FileTensor(name, (Size(1),)))
    file.constant("y", np.zeros(1, np.float32))
    names = [tensor.name for tensor in file.tensors]
    assert names[:2] == ["x", "x_2"]
    assert names[-2:] == ["y", "y_2"]
    assert len({*names}) == len(names)
