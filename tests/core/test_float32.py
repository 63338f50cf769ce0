import pytest
import torch
from torch import Tensor, nn

from lq.core.float32 import Float32Buffers


class Ranges(Float32Buffers):
    low: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor([1 + 2**-20]))
        self.register_buffer("count", torch.tensor([3]))
        self.register_buffer("nothing", None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_casts_leave_the_buffers_and_reach_the_rest(dtype):
    model = nn.Sequential(nn.Linear(1, 1), Ranges()).to(dtype)
    assert model[0].weight.dtype == dtype
    assert model[1].low.dtype == torch.float32
    assert model[1].low.item() == 1 + 2**-20
    assert model[1].count.dtype == torch.int64


def test_devices_are_followed():
    assert Ranges().to("meta").low.is_meta


def test_a_checkpoint_without_them_loads_strictly_and_leaves_them():
    model = nn.Sequential(nn.Linear(1, 1), Ranges())
    model.load_state_dict({f"0.{name}": t for name, t in model[0].state_dict().items()}, strict=True)
    assert model[1].low.item() == 1 + 2**-20


def test_a_checkpoint_with_only_some_of_them_is_refused():
    with pytest.raises(RuntimeError, match="count"):
        nn.Sequential(Ranges()).load_state_dict({"0.low": torch.zeros(1)}, strict=True)
