from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from lq.tracing.any_batch import of_any_batch, run_any_batch
from lq.tracing.batch import FixedBatch, set_fixed_batch


def scores_of(images: list[Tensor]) -> list[dict[str, Tensor]]:
    return [{"scores": image.mean()} for image in images]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_images_are_run_in_parts(count: int) -> None:
    sizes: list[int] = []

    def run(images: list[Tensor]) -> Any:
        sizes.append(len(images))
        return scores_of(images)

    images = list(torch.rand(count, 3, 4, 4))
    assert run_any_batch(run, ((images,), {}), FixedBatch(2, images=True)) == scores_of(images)
    assert set(sizes) == {2}


def test_independent_samples_are_filled_up_and_others_are_not() -> None:
    x = torch.rand(3, 4)
    for independent, size in ((True, 2), (False, 3)):
        sizes: list[int] = []

        def run(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(len(x))
            return x.sum(1)

        out = run_any_batch(run, ((x,), {}), FixedBatch(2, independent=independent))
        assert torch.equal(out, x.sum(1))
        assert set(sizes) == {size}


def test_a_graph_of_any_batch_gets_it_whole() -> None:
    graph = fx.symbolic_trace(nn.Linear(4, 2))
    x = torch.rand(3, 4)
    assert torch.equal(of_any_batch(graph)(x), graph(x))
    set_fixed_batch(graph, FixedBatch(2, independent=True))
    assert torch.allclose(of_any_batch(graph)(input=x), graph(x))
