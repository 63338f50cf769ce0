from __future__ import annotations

import torch

from lq.deployment.outputs import larger_call
from tests.export.nets import example_of, images, residual


def test_a_larger_call_has_the_samples_of_another_in_another_order() -> None:
    prepared, x = residual(), images(4)
    found = larger_call(prepared, [example_of(x), example_of(images(4, seed=3))])
    assert found is not None
    (given,), _ = found[0]
    assert torch.equal(given, torch.cat([x, x.flip(0), x[:1]]))
    with torch.no_grad():
        assert torch.equal(found[1], prepared(given))


def test_there_is_none_if_the_calls_have_several_sizes() -> None:
    assert larger_call(residual(), [example_of(images(4)), example_of(images(3))]) is None
