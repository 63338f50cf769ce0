from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lq.export.formats.onnx_calls import calls_for_onnx
from lq.export.formats.onnx_rewriter import RefusedCallError


def test_inputs_have_the_names_of_the_function_and_results_names_of_their_own() -> None:
    found = calls_for_onnx(lambda left, right: (left + right) + torch.cat([left, right]).sum(), *torch.ones(2, 3))
    assert found.splitlines() == [
        "add = aten.add.Tensor(left, right)",
        "cat = aten.cat.default([left, right])",
        "sum = aten.sum.default(cat)",
        "add_1 = aten.add.Tensor(add, sum)",
    ]


def test_an_input_that_is_called_as_an_operation_keeps_its_name() -> None:
    assert calls_for_onnx(lambda add: add + add, torch.ones(2)) == "add_1 = aten.add.Tensor(add, add)"


def test_tensors_that_a_rewriting_makes_are_constants() -> None:
    lines = calls_for_onnx(lambda x: F.interpolate(x, size=(2, 2), mode="bicubic"), torch.ones(1, 2, 4, 4)).splitlines()
    assert lines == ["matmul = aten.matmul.default(x, constant_1)", "matmul_1 = aten.matmul.default(constant, matmul)"]


def test_results_of_several_are_taken_one_by_one() -> None:
    assert calls_for_onnx(lambda x: x.max(0), torch.ones(2, 3)).splitlines() == [
        "max = aten.max.dim(x, 0)",
        "getitem = getitem(max, 0)",
        "getitem_1 = getitem(max, 1)",
    ]


def test_what_torch_onnx_cannot_take_is_refused() -> None:
    with pytest.raises(RefusedCallError, match=r"no translation of aten\.diagonal_scatter"):
        calls_for_onnx(lambda x: torch.diagonal_scatter(x, x[0]), torch.ones(2, 2))
