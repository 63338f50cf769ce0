import io
import time

import pytest
import torch
from torch import nn

from lq.timing.latency import Latency, compare_latency, latency, size_mb


def test_size_of_a_module_is_that_of_its_saved_state_dict(tmp_path):
    module = nn.Sequential(nn.Linear(500, 500), nn.BatchNorm1d(500))
    torch.save(module.state_dict(), tmp_path / "state.pt")
    on_disk = (tmp_path / "state.pt").stat().st_size / 1e6
    # a file carries its name inside the archive, a buffer does not: a few hundred bytes
    assert size_mb(module) == pytest.approx(on_disk, abs=1e-3)
    assert size_mb(module) == pytest.approx((500 * 500 + 5 * 500) * 4 / 1e6, rel=0.01)


def test_size_of_a_path_counts_every_byte_below_it(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"x" * 1500)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.bin").write_bytes(b"x" * 500)
    assert size_mb(tmp_path / "a.bin") == 0.0015
    assert size_mb(str(tmp_path)) == 0.002


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # TorchScript is deprecated from torch 2.15 on
def test_size_of_a_frozen_torchscript_module_has_its_weights():
    model = torch.jit.freeze(torch.jit.trace(nn.Linear(500, 500).eval(), torch.zeros(1, 500)))
    assert not model.state_dict()
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    assert size_mb(model) == pytest.approx(len(buffer.getvalue()) / 1e6, rel=0.01)
    assert size_mb(model) > 1


def test_size_of_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing does not exist; give the file"):
        size_mb(tmp_path / "nothing")


def test_latency_measures_milliseconds():
    result = latency(lambda: time.sleep(0.005), min_time=0.1, warmup=1)
    assert 5 <= result.min_ms <= result.median_ms < 50  # sleep never returns early; a busy machine adds
    assert result.n >= 15
    assert result.iqr_ms >= 0


def test_latency_collects_at_least_the_time_asked_for():
    total = []

    def call():
        start = time.perf_counter()
        time.sleep(0.001)
        total.append(time.perf_counter() - start)

    result = latency(call, min_time=0.2, warmup=0)
    assert sum(total) >= 0.2
    assert len(total) == result.n * 4 / 3, "one call in four only warms the caches"


def test_arguments_reach_the_call_without_gradients():
    seen = []

    def call(x, *, scale):
        seen.append((x.shape, scale, torch.is_grad_enabled()))

    result = latency(call, [torch.zeros(7, 3)], {"scale": 2}, min_time=1e-3, warmup=2)
    assert set(seen) == {((7, 3), 2, False)}
    assert len(seen) == 2 + result.n * 4 / 3
    assert result.batch_size == 7
    assert torch.is_grad_enabled()


def test_threads_are_set_for_the_calls_and_restored_even_after_an_error():
    before = torch.get_num_threads()
    wanted = before + 1
    seen = set()
    assert latency(lambda: seen.add(torch.get_num_threads()), threads=wanted, min_time=1e-3).threads == wanted
    assert seen == {wanted}
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError):
        latency(lambda: 1 / 0, threads=wanted)
    assert torch.get_num_threads() == before


def test_the_functions_take_turns():
    order = []
    fns = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    results = compare_latency(fns, min_time=1e-4, warmup=0)
    assert list(results) == ["a", "b"]
    assert results["a"].n == results["b"].n
    assert "".join(order) == ("aaaa" + "bbbb") * (len(order) // 8)


def test_the_slower_one_is_seen_as_slower():
    small, large = torch.zeros(8, 8), torch.zeros(512, 512)
    results = compare_latency({"small": lambda: small @ small, "large": lambda: large @ large}, min_time=0.05)
    assert results["large"].min_ms > 5 * results["small"].min_ms


@pytest.mark.gpu
def test_a_gpu_is_waited_for():
    x = torch.randn(8192, 8192, device="cuda")
    waited = latency(lambda x: x @ x, [x], min_time=0.2)
    start = time.perf_counter()
    x @ x  # only queued
    queued_ms = 1e3 * (time.perf_counter() - start)
    assert waited.min_ms > 5 * queued_ms


def test_str_states_threads_and_batch():
    text = str(Latency(12.5, 11, 0.5, threads=4, batch_size=None, n=20))
    assert text == "12.50 ms (min 11.00, IQR 0.50; 4 threads, 20 calls)"


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"threads": 0}, "threads=0 must be at least 1"),
        ({"threads": True}, "threads=True"),
        ({"warmup": -1}, "warmup=-1 must be at least 0"),
        ({"min_time": 0}, "min_time=0 must be above 0 seconds"),
        ({"min_time": float("nan")}, "min_time=nan"),
        ({"min_time": "1"}, "min_time='1' .* is not a number"),
    ],
)
def test_impossible_numbers_are_refused(kwargs, text):
    with pytest.raises((TypeError, ValueError), match=text):
        latency(torch.zeros, [1], **kwargs)


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="fns is empty"):
        compare_latency({})
