"""Names of calls and of values, and which call in training is which in evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import plan_of, prepare, set_phase, state_of
from tests.instrument.nets import Net, images


def test_values_are_named_by_the_layer_or_by_the_operation_in_its_module() -> None:
    plan = plan_of(prepare(Net(), example_args=(images(),)))
    assert [(t.name, t.after, t.absorbs) for t in plan.tensors] == [
        ("fq_x", "x", "none"),
        ("fq_stem", "stem", "relu"),
        ("fq_blocks_0_conv1", "blocks.0.conv1", "relu"),
        ("fq_blocks_0_conv2", "blocks.0.conv2", "none"),
        ("fq_blocks_0_add", "blocks.0.add", "relu"),
        ("fq_blocks_1_conv1", "blocks.1.conv1", "relu"),
        ("fq_blocks_1_conv2", "blocks.1.conv2", "none"),
        ("fq_blocks_1_add", "blocks.1.add", "relu"),
        ("fq_mean", "mean", "none"),
        ("fq_head", "head", "none"),
    ]
    assert plan.float_ops == ("mean",)


def test_work_is_counted_and_its_line_is_known() -> None:
    plan = plan_of(prepare(Net(), example_args=(images(count=1),)))
    work = {row.name: row.work for row in plan.layers}
    assert (work["stem"], work["blocks.0.conv1"], work["head"]) == (2 * 9 * 4 * 36, 4 * 9 * 4 * 36, 12)
    assert all("nets.py:" in row.line for row in plan.layers)
    assert plan.share == 1.0


def test_slots_of_one_name_are_numbered() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.fc(x)))

    names = [t.name for t in plan_of(prepare(Twice(), example_args=(torch.randn(2, 4),))).tensors]
    assert names == ["fq_x", "fq_fc", "fq_fc_1"]


class Training(nn.Module):
    """Calls more in training, in front of what it always calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.training:
            x = x + nn.functional.linear(self.aux(x), self.w)
        y = nn.functional.linear(x, self.w.T)
        return self.b(y + x)


def test_calls_that_only_training_makes_do_not_shift_the_others() -> None:
    net = Training()
    x = torch.randn(16, 4)
    prepared = prepare(net, example_args=(x,))
    quantized = [row.name for row in plan_of(prepared).quantized]
    assert sorted(quantized) == ["a", "b", "linear"]
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    prepared.train()(x)
    with torch.no_grad():
        y = net.a(x)
        y = y + nn.functional.linear(net.aux(y), net.w)
        y = nn.functional.linear(y, net.w.T)
    state = state_of(prepared)
    slot = state.names.index("fq_linear")
    assert state.max_val[slot].item() == pytest.approx(y.max().item(), rel=0.05)


def test_a_layer_of_training_only_is_a_row_with_its_reason() -> None:
    rows = {row.name: row for row in plan_of(prepare(Training(), example_args=(torch.randn(8, 4),))).layers}
    assert rows["aux"].weight is None
    assert rows["aux"].reason == "it is not called; whatever reads its weight computes in float"
