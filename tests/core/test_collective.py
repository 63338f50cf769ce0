from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn

from lq.core.collective import all_reduce, alone
from lq.ptq import prepare_static

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed training")


@pytest.fixture
def reductions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A process group of one, and the reductions in it."""
    seen: list[str] = []
    original = distributed.all_reduce

    def note(tensor: torch.Tensor, operation: object) -> None:
        seen.append(str(operation))
        original(tensor, operation)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    monkeypatch.setattr(distributed, "all_reduce", note)
    yield seen
    distributed.destroy_process_group()


def test_everything_is_reduced_by_name_but_not_by_a_process_alone(reductions: list[str]) -> None:
    all_reduce(torch.ones(1), "SUM")
    assert len(reductions) == 1
    with alone(), alone():
        all_reduce(torch.ones(1), "SUM")
    assert len(reductions) == 1
    with pytest.raises(ZeroDivisionError), alone():
        raise ZeroDivisionError
    all_reduce(torch.ones(1), "MAX")
    assert len(reductions) == 2


def test_one_process_calibrates_alone(reductions: list[str]) -> None:
    net, x = nn.Sequential(nn.Linear(4, 2)), torch.randn(8, 4)
    with alone():
        lonely = prepare_static(net, [x])
    assert reductions == []
    together = prepare_static(net, [x])
    assert reductions
    assert torch.equal(lonely.qat_state.min_val, together.qat_state.min_val)
