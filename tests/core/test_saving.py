"""The hooks by which autograd saves nothing of a tensor that can be made again."""

import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks, save_on_cpu
from torch.nn import functional as F

from lq.core.functional import fake_quantize
from lq.core.saving import Saving, current

GRID = 0.1, -100.0, 155.0


def rounded(x: Tensor, saving: Saving | None) -> Tensor:
    return fake_quantize(x, *GRID, saving=saving)


def gradients(save: bool, consume, dtype=torch.float32) -> tuple[Tensor, ...]:
    """Of an input and a weight, the input beyond both ends of the grid in places."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((2, 3, 8, 8), (4, 3, 3, 3)))
    x, w = (8 * x).requires_grad_(), w.requires_grad_()
    if save:
        with Saving() as saving:
            y = consume(rounded(x * 1, saving), w)
    else:
        y = consume(rounded(x * 1, None), w)
    y.float().sin().sum().backward()
    assert x.grad is not None
    return x.grad, *([] if w.grad is None else [w.grad])


CONSUMERS = {
    "convolution": lambda x, w: F.conv2d(x, w),
    "two of them": lambda x, w: F.conv2d(x, w) * F.conv2d(x, w.flip(0)),
    "linear of a view": lambda x, w: F.linear(x.flatten(1), torch.ones(3, 192, dtype=x.dtype)),
    "slice": lambda x, w: F.conv2d(x[:, :, 2:], w),
    "transposed": lambda x, w: x.transpose(1, 3).square(),
    "product with itself": lambda x, w: x * x,
    "pooling": lambda x, w: F.max_pool2d(x, 2),
    "result that its node saves": lambda x, w: torch.sigmoid(x),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("consumer", CONSUMERS)
def test_gradients_are_the_same_to_the_bit(consumer, dtype):
    with_floats, with_bytes = (gradients(save, CONSUMERS[consumer], dtype) for save in (False, True))
    assert len(with_floats) == len(with_bytes)
    assert all(torch.equal(a, b) for a, b in zip(with_floats, with_bytes, strict=True))


def test_the_floats_are_gone_after_the_forward_pass():
    x, w = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 3, 3, requires_grad=True)
    with Saving() as saving:
        quantized = rounded(x, saving)
        alive = weakref.ref(quantized.untyped_storage())
        y = F.conv2d(quantized, w) + F.max_pool2d(quantized, 3, 1).sum()
        del quantized
    assert alive() is None
    y.sum().backward()


def test_a_result_that_its_own_node_saves_is_freed():
    x = torch.randn(3, requires_grad=True)
    with Saving():
        y = torch.sigmoid(x)
    alive = weakref.ref(y)
    del y
    gc.collect()
    assert alive() is None


def test_writing_into_what_is_saved_is_noticed():
    x = torch.randn(3, requires_grad=True)
    with Saving():
        y = x * 1
        z = y.square()
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_writing_into_what_was_packed_does_no_harm():
    def consume(x: Tensor, w: Tensor) -> Tensor:
        y = F.conv2d(x, w)
        x.detach().zero_()
        return y

    expected, got = gradients(False, CONSUMERS["convolution"]), gradients(True, consume)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_a_tensor_that_is_written_into_is_another_one():
    expected = gradients(False, lambda x, w: F.conv2d(x * 2, w))
    got = gradients(True, lambda x, w: F.conv2d(x.mul_(2), w))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_a_graph_may_be_gone_through_twice():
    x = torch.randn(4, requires_grad=True)
    with Saving() as saving:
        y = rounded(x, saving).square().sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, x)[0], first)


def test_second_derivatives_are_those_without():
    found = []
    for keeps in (False, True):
        x = torch.linspace(-2, 2, 9, requires_grad=True)
        with Saving() as saving:
            y = rounded(x, saving if keeps else None).square().sum()
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert torch.equal(*found)
    assert found[0].any()


def test_only_the_innermost_block_counts():
    assert current() is None
    with Saving() as saving:
        assert current() is saving
        with save_on_cpu():
            assert current() is None
            assert not Saving.is_possible()
        with torch.no_grad():
            assert current() is None
    assert Saving.is_possible()
    with disable_saved_tensors_hooks("here are none"):  # as torch.func does
        assert not Saving.is_possible()
