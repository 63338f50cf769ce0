import pytest
import torch
from torch import Tensor, nn

from lq.config.specs import ActivationSpec
from lq.core.fake_quantize import FakeQuantize
from lq.core.float32 import Float32Buffers
from lq.core.state import QATState


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


def found_with(default: torch.dtype) -> dict[str, Tensor]:
    """What a state finds and rounds by, of the same values, while another type is the default."""
    observers = ["moving_average_minmax", "minmax", "histogram", "mse", "entropy", "percentile"]
    specs = [ActivationSpec(observer=observer) for observer in observers]
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)) + 0.3
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        state = QATState(observers, specs, ["none"] * len(specs))
        for batch in (x, 1.7 * x):
            for slot in range(len(specs)):
                state.observe(slot, batch)
            state.update()
        scale, zero_point = state.scale_zero_point()
        quantizer = FakeQuantize(state, 0)
        state.fake_quant = True
        return dict(state.named_buffers()) | {
            "scale": scale,
            "zero_point": zero_point,
            "of one": quantizer.scale,
            "rounded": quantizer.eval()(x),
        }
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_ranges_are_the_same_whatever_type_is_the_default(default: torch.dtype) -> None:
    """Lightning's "bf16-true" makes bfloat16 the default of every step."""
    expected, found = found_with(torch.float32), found_with(default)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
