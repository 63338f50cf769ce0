from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lq.tracing.samples import batch_size, filled_up, one_sample, run_filled_up
from lq.tracing.structure import Inputs


def of_nested(count: int) -> Inputs:
    given = {"x": torch.arange(count * 2.0).reshape(count, 2), "more": [torch.arange(count)]}
    return (given,), {"scale": torch.tensor(2.0)}


def test_a_nested_call_is_cut_and_filled_up() -> None:
    call = of_nested(4)
    assert batch_size(call) == 4
    (first,), kwargs = one_sample(call)
    assert (first["x"].tolist(), first["more"][0].tolist(), float(kwargs["scale"])) == ([[0.0, 1.0]], [0], 2.0)
    (filled,), _ = filled_up(call, 6)
    assert filled["more"][0].tolist() == [0, 1, 2, 3, 3, 3]
    different: Inputs = (torch.zeros(4, 2), torch.zeros(3)), {}
    assert batch_size(different) is None
    assert one_sample(different) is different


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7])
def test_any_batch_is_run_in_parts_of_one_size(count: int) -> None:
    sizes = []

    def run(given: dict[str, Any], scale: Tensor) -> dict[str, Any]:
        sizes.append(len(given["x"]))
        return {"sum": scale * given["x"].sum(1), "rest": (given["more"][0], "text", 3)}

    output = run_filled_up(run, of_nested(count), 3)
    (given,), _ = of_nested(count)
    assert torch.equal(output["sum"], 2 * given["x"].sum(1))
    assert output["rest"][0].tolist() == list(range(count))
    assert output["rest"][1:] == ("text", 3)
    assert set(sizes) == {3}


def test_an_empty_batch_and_one_of_unknown_size_are_run_as_they_are() -> None:
    empty, other = torch.zeros(0, 2), (torch.zeros(4, 2), torch.zeros(3))
    assert run_filled_up(lambda x: x.shape, ((empty,), {}), 3) == (0, 2)
    assert run_filled_up(lambda x, y: (x.shape, y.shape), (other, {}), 3) == ((4, 2), (3,))
