import pytest
import torch

from lq.lightning_module.last_call import LastCall, on_cpu
from tests.tiny import make_net


def test_tap_gives_the_last_call_once() -> None:
    net = make_net()
    tap, x = LastCall(net), torch.randn(2, 1, 6, 6)
    net(torch.zeros(2, 1, 6, 6))
    y = net(x)
    call = tap.take()
    assert call is not None
    args, kwargs, output = call
    assert args[0] is x
    assert kwargs == {}
    assert output is y
    assert tap.take() is None
    tap.check()
    tap.remove()
    net(x)
    assert not net._forward_hooks


def test_only_steps_none_of_which_calls_are_an_error() -> None:
    tap = LastCall(make_net())
    tap.check()
    assert tap.take() is None
    with pytest.raises(ValueError, match=r"did not call the quantized target.*QATCallback\(target="):
        tap.check()


def test_on_cpu_copies_and_casts() -> None:
    x = torch.ones(2, dtype=torch.bfloat16)
    copied = on_cpu({"x": x, "ids": torch.ones(2, dtype=torch.int64), "flag": True})
    assert copied["x"].dtype == torch.float32
    assert copied["ids"].dtype == torch.int64
    assert copied["flag"] is True
    y = torch.ones(2)
    assert on_cpu((y,))[0].data_ptr() != y.data_ptr()
