"""Integers of nine bits."""

import pytest
import torch

from lq.core.packed import pack, unpack


@pytest.mark.parametrize("lowest", [-1.0, -129.0, -256.0, torch.tensor(-129.0)])
@pytest.mark.parametrize("shape", [(512,), (1,), (0,), (7, 3), (2, 3, 5, 7)])
def test_every_integer_comes_back(shape, lowest):
    integers = (torch.arange(torch.Size(shape).numel()) * 5 % 512).reshape(shape) + lowest
    packed = pack(integers, lowest)
    assert torch.equal(unpack(packed, lowest).float(), integers)
    assert packed.bytes.nbytes + packed.bits.nbytes == integers.numel() + -(-integers.numel() // 8)


@pytest.mark.parametrize("make", [lambda x: x.to(memory_format=torch.channels_last), lambda x: x.permute(2, 0, 3, 1)])
def test_the_order_in_memory_is_kept(make):
    integers = make(torch.randint(0, 258, (2, 3, 4, 5)).float())
    there = unpack(pack(integers, 0.0), 0.0)
    assert there.stride() == integers.stride()
    assert torch.equal(there.float(), integers)
