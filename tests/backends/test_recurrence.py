"""QConfig(recurrence="int8"): recurrent layers trained with weights, inputs and states on grids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import plan_of, prepare, prepare_again, set_phase
from lq.config.qconfig import QConfig
from lq.conversion.convert import convert
from lq.conversion.int8 import Int8Layer
from lq.core.functional import fake_quantize
from lq.instrument.attach import instrument_of
from tests.export.nets import calibrated, example_of, round_trip
from tests.instrument.nets import assert_same, step

INT8 = QConfig(recurrence="int8")


class Reader(nn.Module):
    """Reads sequences, and classifies them by the last state."""

    def __init__(self, kind: Any = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(8, 16, batch_first=True, **options)
        self.head = nn.Linear(32 if options.get("bidirectional") else 16, 5)

    def forward(self, x: Any) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class OfCells(nn.Module):
    """The same, with a loop of its own."""

    def __init__(self, kind: Any = nn.LSTMCell) -> None:
        super().__init__()
        self.cell, self.head = kind(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def sequences(count: int = 6, length: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(count, length, 8, generator=torch.Generator().manual_seed(seed))


def trained(net: nn.Module, x: Tensor, qconfig: QConfig = INT8) -> nn.Module:
    """Prepared, with ranges, and a few steps on."""
    prepared = prepare(net, qconfig, example_args=(x,))
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    optimizer = torch.optim.SGD(prepared.train().parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()
    return prepared


NETS: dict[str, Any] = {
    "LSTM": (Reader, 2),
    "two GRUs": (lambda: Reader(nn.GRU, num_layers=2, dropout=0.2), 4),
    "RNN both ways": (lambda: Reader(nn.RNN, bidirectional=True), 4),
    "LSTMCell": (OfCells, 2),
    "GRUCell": (lambda: OfCells(nn.GRUCell), 2),
}


@pytest.mark.parametrize("name", NETS)
def test_weights_are_on_grids_and_int8_computes_what_was_trained(name: str) -> None:
    torch.manual_seed(0)
    build, weights = NETS[name]
    net, x = build(), sequences()
    expected = net.eval()(x)
    prepared = prepare(net, INT8, example_args=(x,))
    torch.testing.assert_close(prepared(x), expected)
    plan = plan_of(prepared)
    assert len(plan.quantized) == len(plan.layers) == weights + 1
    assert plan.share == 1.0
    trained(net, x)
    assert not instrument_of(net).unplanned
    with torch.no_grad():
        got = prepared.eval()(x)
        assert not torch.allclose(got, expected, rtol=1e-3)
        int8 = convert(prepared)
        assert torch.equal(int8(x), got)
    # One for all steps, but for the first and the last of a loop, whose states are rounded on grids of their own.
    assert sum(isinstance(module, Int8Layer) for module in int8.modules()) <= 2 * weights + 1


def test_it_computes_what_a_slow_twin_does() -> None:
    torch.manual_seed(0)
    x = sequences(length=3)
    prepared: Any = trained(Reader(), x).eval()
    state, rnn = prepared.qat_state, prepared.rnn

    def grid(name: str, value: Tensor) -> Tensor:
        return fake_quantize(value, *state.slot_qparams(state.names.index(name)))

    def weight(name: str) -> Tensor:
        return getattr(state, f"wq_rnn_{name}").quantized(getattr(rnn, name), False)

    with torch.no_grad():
        given = grid("fq_rnn_weight_ih_l0", grid("fq_x", x) @ weight("weight_ih_l0").T + rnn.bias_ih_l0)
        hidden, cell = torch.zeros(6, 16), torch.zeros(6, 16)
        for t in range(3):
            kept = grid("fq_rnn_zeros", hidden) @ weight("weight_hh_l0").T + rnn.bias_hh_l0
            entry, forget, new, out = (given[:, t] + grid("fq_rnn_weight_hh_l0", kept)).chunk(4, -1)
            cell = forget.sigmoid() * cell + entry.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
        read = next(tensor.name for tensor in plan_of(prepared).tensors if tensor.after == "rnn.stack")
        head = grid(read, hidden) @ state.wq_head.quantized(prepared.head.weight, False).T + prepared.head.bias
        step_size = float(state.slot_qparams(state.names.index("fq_head"))[0])
        # A value that another order of additions carries over the middle between two steps differs by a step.
        assert float((prepared(x) - grid("fq_head", head)).abs().max()) <= 1.01 * step_size


def test_the_plan_names_weights_and_what_stays_float() -> None:
    plan = plan_of(prepare(Reader(), INT8, example_args=(sequences(),)))
    assert [(row.name, row.kind) for row in plan.layers[1:]] == [
        ("rnn.weight_ih_l0", "LSTM"),
        ("rnn.weight_hh_l0", "LSTM"),
    ]
    assert plan.float_ops == ("rnn.add", "rnn.sigmoid", "rnn.mul", "rnn.tanh")
    assert len(plan.tensors) == 6  # input, its sums, states, their sums, what the head reads, and writes


@pytest.mark.parametrize("pattern", ["rnn", "type:LSTM", "rnn*"])
def test_patterns_leave_it_to_float(pattern: str) -> None:
    plan = plan_of(prepare(Reader(), QConfig(recurrence="int8", exclude=(pattern,)), example_args=(sequences(),)))
    (row,) = [row for row in plan.layers if row.weight is None]
    assert (row.name, row.reason) == ("rnn", f"exclude {pattern!r}")
    assert plan.sites is not None
    assert plan.sites.opened == ()


def test_float_is_the_default_and_says_how_to_change_it() -> None:
    (row,) = [row for row in plan_of(prepare(Reader(), example_args=(sequences(),))).layers if row.weight is None]
    assert row.reason == "recurrent layers compute in float unless QConfig(recurrence='int8') says otherwise"
    with pytest.raises(ValueError, match="backend='fx', or leave recurrence out"):
        QConfig(recurrence="int8", backend="eager")


def test_sequences_of_another_length_are_refused() -> None:
    prepared = trained(Reader(num_layers=2), sequences())
    with pytest.raises(ValueError, match=r"rnn was planned for sequences of 7 steps, and got 5\. Pad or cut"):
        prepared(sequences(length=5))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_packed_sequences_and_projections_stay_float() -> None:
    net = Reader(proj_size=4)
    net.head = nn.Linear(4, 5)
    plan = plan_of(prepare(net, INT8, example_args=(sequences(),)))
    (row,) = [row for row in plan.layers if row.weight is None]
    assert "projects its state" in row.reason


def test_another_process_attaches_the_plan() -> None:
    x = sequences()
    net = trained(Reader(), x)
    other = prepare_again(Reader(), INT8, plan_of(net).to_dict())
    other.load_state_dict(net.state_dict())
    assert_same(step(net, x), step(other.train(), x))


@pytest.mark.parametrize("exporter", ["torch", "onnx"])
def test_files_compute_what_was_trained(exporter: str, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(exporter, exporter))
    torch.manual_seed(0)
    example = example_of(sequences(length=4))
    model, info = round_trip(exporter, prepared := calibrated(Reader(), example, INT8), example, tmp_path)
    other = sequences(3, length=4, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(model(other), prepared(other), atol=1e-5, rtol=0)  # no value lay between two steps
    assert info["float_layers"] == []
    if exporter == "onnx":
        assert info["int8_layers"] == {
            "QGemm": 5,
            "MatMulIntegerToFloat": 1,
        }  # of 4 steps and the head, and of all inputs
