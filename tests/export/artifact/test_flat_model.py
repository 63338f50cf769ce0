from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lq.export.artifact.flat_model import FlatModel
from lq.export.artifact.signature import Signature


class Net(nn.Module):
    def forward(self, image: Tensor, mask: Tensor | None = None) -> Any:
        return image


X = torch.arange(8.0).reshape(4, 2)


def signature(*args: Any, output: Any = X, **kwargs: Any) -> Signature:
    return Signature.of(Net(), (args, kwargs), output)


def test_flat_model_returns_what_the_original_returns() -> None:
    def run(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0] * 2, tensors[1] + 1]

    model = FlatModel(run, signature(X, mask=X, output={"a": X, "b": (X, None)}))
    found = model(mask=X, image=X.T.contiguous().T)
    assert torch.equal(found["a"], 2 * X)
    assert torch.equal(found["b"][0], X + 1)
    assert found["b"][1] is None


def test_a_batch_that_is_too_large_is_run_in_parts() -> None:
    sizes = []

    def run(tensors: list[Tensor]) -> list[Tensor]:
        sizes.append(len(tensors[0]))
        return [tensors[0] + tensors[1]]

    model = FlatModel(run, signature(X, mask=X), at_once=3)
    assert torch.equal(model(X, mask=X + 1), 2 * X + 1)
    assert sizes == [3, 1]


def test_threads_wait_for_each_other_where_a_runtime_has_one_memory() -> None:
    memory: list[Tensor] = []

    def run(tensors: list[Tensor]) -> list[Tensor]:
        memory[:] = tensors
        time.sleep(0.01)
        return [memory[0] + 1]

    model = FlatModel(run, signature(X), one_call_at_a_time=True)
    with ThreadPoolExecutor(4) as pool:
        for number, got in enumerate(pool.map(model, [X + number for number in range(8)])):
            assert torch.equal(got, X + number + 1)


def test_tensors_of_another_type_are_refused_before_a_runtime_converts_them() -> None:
    model = FlatModel(lambda tensors: tensors, signature(X))
    with pytest.raises(ValueError, match=r"takes image as float32, but got uint8. Convert it: image.to\(torch.float32"):
        model(X.to(torch.uint8))
    assert torch.equal(model(X.half()), X)  # halves are what a module may have been trained in
