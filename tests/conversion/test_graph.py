from __future__ import annotations

import pytest
import torch
from torch import nn

from lq.backends.prepare import prepare
from lq.conversion.graph import as_graph
from lq.ptq import calibrate


def make_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1))


def test_the_graph_holds_the_users_own_counters_of_batches() -> None:
    x = torch.randn(4, 1, 5, 5)
    prepared = prepare(make_net(), example_args=(x,))
    calibrate(prepared, [x], show_progress=False)
    graph = as_graph(prepared)
    norm = graph.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked is prepared[1].num_batches_tracked
    assert as_graph(graph) is graph


def test_without_inputs_there_is_no_graph() -> None:
    with pytest.raises(ValueError, match=r"has not been called since it was prepared.*example_args=\(x,\)"):
        as_graph(prepare(make_net()))
