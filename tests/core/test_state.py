from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lq.config.specs import ActivationSpec
from lq.core.fake_quantize import FakeQuantize
from lq.core.functional import EPS, fake_quantize
from lq.core.state import QATState

SPECS = [
    ActivationSpec(),
    ActivationSpec(averaging_constant=0.5),
    ActivationSpec(observer="minmax"),
    ActivationSpec(-128, 127, symmetric=True),
    ActivationSpec(0, 15),
    ActivationSpec(),
]
ACTIVATIONS = ["none", "relu", "relu6", "relu", "none", "none"]
NEVER_RUNS = 5


def make_state() -> QATState:
    state = QATState([f"fq_{i}" for i in range(len(SPECS))], SPECS, ACTIVATIONS)
    state.observer = state.fake_quant = True
    return state


def feed(state: QATState, batches: list[Tensor]) -> None:
    for slot, x in enumerate(batches):
        state.observe(slot, x)
    state.update()


def _observed_and_rounded(state: QATState, slot: int, x: Tensor) -> Tensor:
    state.observe(slot, x)
    return fake_quantize(x, *state.slot_qparams(slot))


class LoopObserver:
    """One tensor at a time, as the stock observers do it."""

    def __init__(self, spec: ActivationSpec) -> None:
        self.spec = spec
        self.low = self.high = float("nan")
        self.nonfinite = 0

    def __call__(self, x: Tensor) -> None:
        low, high = x.min().item(), x.max().item()
        if not torch.isfinite(x).all():
            self.nonfinite += 1
        elif self.low != self.low:
            self.low, self.high = low, high
        elif self.spec.observer == "minmax":
            self.low, self.high = min(self.low, low), max(self.high, high)
        else:
            self.low += self.spec.averaging_constant * (low - self.low)
            self.high += self.spec.averaging_constant * (high - self.high)


def test_one_update_equals_a_loop_over_observers():
    state, loop = make_state(), [LoopObserver(spec) for spec in SPECS[:NEVER_RUNS]]
    for step in range(8):
        batches = [torch.randn(3, 4) * (i + 1) + step for i in range(NEVER_RUNS)]
        if step in (0, 3):
            batches[0][0, 0] = torch.nan
        if step == 4:
            batches[2][1, 1] = torch.inf
        for observer, x in zip(loop, batches, strict=True):
            observer(x)
        feed(state, batches)
        for slot, observer in enumerate(loop):
            if observer.low == observer.low:  # has seen a usable batch
                low = observer.low if state.activations[slot] == "none" else 0.0  # a ReLU's lower end is known
                assert state.min_val[slot].item() == pytest.approx(low, rel=1e-6)
                assert state.max_val[slot].item() == pytest.approx(observer.high, rel=1e-6)
    assert state.nonfinite.tolist() == [o.nonfinite for o in loop] + [0]
    assert [state.ready(slot) for slot in range(6)] == [True] * 5 + [False]
    assert (state.min_val[NEVER_RUNS].item(), state.max_val[NEVER_RUNS].item()) == (torch.inf, -torch.inf)


def test_the_first_batch_is_not_quantized_and_the_second_is_on_the_grid_of_the_first():
    # Each process has its own first batch; on its own range, each would train another model.
    state = make_state()
    x = torch.tensor([-1.0, 1e-9, 1.55])
    assert torch.equal(_observed_and_rounded(state, 0, x), x)
    assert not state.ready(0)
    state.update()
    assert state.slot_qparams(0) == (pytest.approx(0.01), -100.0, 155.0)


def test_a_relu_works_before_there_is_a_range():
    state = make_state()
    x = torch.tensor([-1.0, 1.0, 7.0])
    assert _observed_and_rounded(state, 1, x).tolist() == [0.0, 1.0, 7.0]
    assert _observed_and_rounded(state, 2, x).tolist() == [0.0, 1.0, 6.0]


def test_a_nan_in_the_first_batch_does_not_poison_the_ranges():
    state = make_state()
    feed(state, [torch.tensor([torch.nan, 1.0])])
    assert not state.ready(0)
    state.observe(0, torch.tensor([-1.0, 1.55]))
    state.update()
    assert state.ready(0)
    assert state.nonfinite[0] == 1
    assert state.qparams()[0][0] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("writers", "waits", "expected"),
    [(2, False, (-1.0, 1.5)), (1, True, (-1.0, 1.5)), (1, False, (0.0, 1.5))],
    ids=["two quantizers", "two calls of the model", "one quantizer"],
)
def test_which_batches_of_a_step_are_joined(writers: int, waits: bool, expected: tuple[float, float]):
    state = make_state()
    state.writers[0], state.waits = writers, waits
    for batch in ([-1.0, 1.0], [0.0, 1.5]):
        state.observe(0, torch.tensor(batch))
    state.update()
    assert (state.min_val[0].item(), state.max_val[0].item()) == expected


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("count", [1, 3])
def test_every_kind_of_batch_that_is_not_finite_is_counted(value: float, count: int):
    state = make_state()
    feed(state, [torch.tensor([value, 1.0, 2.0][:count]) for _ in range(NEVER_RUNS)])
    # Behind a ReLU nobody looks at the lower end.
    seen = [activation == "none" or value != -torch.inf or count == 1 for activation in ACTIVATIONS[:NEVER_RUNS]]
    assert state.nonfinite.tolist() == [*map(int, seen), 0]
    assert [state.ready(slot) for slot in range(6)] == [not bad for bad in seen] + [False]


@pytest.mark.parametrize(
    ("slot", "batch", "expected"),
    [
        (0, [-1.0, 1.55], (0.01, -100.0, 155.0)),
        (1, [-1.0, 2.55], (0.01, 0.0, 255.0)),
        (2, [-1.0, 9.00], (6 / 255, 0.0, 255.0)),
        (2, [-1.0, 2.55], (0.01, 0.0, 255.0)),
        (3, [-9.0, 1.27], (0.01, 0.0, 127.0)),
        (4, [0.0, 1.5], (0.1, 0.0, 15.0)),
        (0, [0.0, 0.0], (EPS, 0.0, 255.0)),
    ],
)
def test_absorbed_activations_cut_the_range(slot: int, batch: list[float], expected: tuple[float, float, float]):
    state = make_state()
    state.observe(slot, torch.tensor(batch))
    state.update()
    assert state.qparams()[slot] == pytest.approx(expected)
    scale, zero_point = state.scale_zero_point()
    assert scale[slot].item() == pytest.approx(expected[0])
    if ACTIVATIONS[slot] != "relu" or not SPECS[slot].symmetric:
        assert SPECS[slot].quant_min - zero_point[slot].item() == expected[1]
    assert SPECS[slot].quant_max - zero_point[slot].item() == expected[2]


def test_qparams_follow_every_way_to_change_a_range():
    state = make_state()
    feed(state, [torch.tensor([0.0, 2.55])])
    other = make_state()
    feed(other, [torch.tensor([0.0, 5.1])])
    assert state.qparams()[0][0] == pytest.approx(0.01)
    state.max_val.copy_(other.max_val)
    assert state.qparams()[0][0] == pytest.approx(0.02)
    with torch.inference_mode():
        state.max_val[0] = 25.5
    assert state.qparams()[0][0] == pytest.approx(0.1)
    state.load_state_dict(other.state_dict())
    assert state.qparams()[0][0] == pytest.approx(0.02)
    state.max_val.data = torch.full_like(state.max_val, 7.65)
    assert state.qparams()[0][0] == pytest.approx(0.03)


def test_ranges_learned_under_inference_mode_do_not_break_training():
    state = make_state()
    with torch.inference_mode():
        feed(state, [torch.tensor([0.0, 2.55])])
        state.qparams()
    x = torch.rand(4, requires_grad=True)
    quantizer = FakeQuantize(state, 0)
    state.train()
    y = quantizer(x)
    state(y)
    y.sum().backward()
    assert x.grad is not None
    assert not state.min_val.is_inference()


def test_a_state_built_under_inference_mode_still_evaluates():
    with torch.inference_mode():
        state = make_state()
        feed(state, [torch.tensor([0.0, 2.55])])
    assert state.qparams()[0][0] == pytest.approx(0.01)


# ---- saving, loading, copying, moving ---------------------------------------------------------------------------


def trained_state() -> QATState:
    state = make_state()
    feed(state, [torch.randn(5) for _ in range(NEVER_RUNS)])
    feed(state, [torch.full((2,), torch.nan)])
    state.freeze_bn = True
    return state


def through_state_dict(state: QATState) -> QATState:
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    other = make_state()
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("copied", [through_state_dict, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_are_equal_to_the_bit(copied: Callable[[QATState], QATState]):
    state = trained_state()
    state.observe(0, torch.ones(2))  # what was not yet taken in is not copied
    other = copied(state)
    for name, buffer in state.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name)), name
    for name in ("fake_quant", "observer", "freeze_bn", "names", "specs", "activations"):
        assert getattr(other, name) == getattr(state, name), name
    assert other.qparams() == state.qparams()
    assert [other.ready(slot) for slot in range(len(SPECS))] == [True] * NEVER_RUNS + [False]
    before = other.min_val.clone()
    other.update()
    assert torch.equal(other.min_val, before)


def test_a_checkpoint_of_another_plan_is_refused_by_name_before_anything_is_loaded():
    other = QATState(["fq_0", "fq_x", *[f"fq_{i}" for i in range(2, 6)]], SPECS, ACTIVATIONS)
    state = trained_state()
    before = copy.deepcopy(state.state_dict())
    with pytest.raises(ValueError, match=r"lacks the fake quantizers \['fq_1'\], and it has .* \['fq_x'\]"):
        state.load_state_dict(other.state_dict())
    after = state.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.qat_state = trained_state()


def test_a_float_checkpoint_loads_strictly_and_leaves_the_state_alone():
    model = Model()
    before = copy.deepcopy(model.qat_state.state_dict())
    model.load_state_dict({k: v for k, v in model.state_dict().items() if "qat_state" not in k}, strict=True)
    after = model.qat_state.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert model.qat_state.ready(0)


def test_a_checkpoint_with_half_a_state_is_refused():
    model = Model()
    checkpoint = model.state_dict()
    del checkpoint["qat_state.max_val"]
    with pytest.raises(RuntimeError, match=r"Missing key.*qat_state\.max_val"):
        model.load_state_dict(checkpoint)


@pytest.mark.parametrize(
    "cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda m: m.to("cpu", torch.bfloat16)]
)
def test_ranges_stay_float32_whatever_the_model_is_cast_to(cast: Callable[[nn.Module], nn.Module]):
    model = Model()
    before, qparams = copy.deepcopy(model.qat_state), model.qat_state.qparams()
    cast(model)
    assert model.layer.weight.dtype != torch.float32
    for name, buffer in before.named_buffers():
        assert torch.equal(buffer, model.qat_state.get_buffer(name)), name
    assert model.qat_state.qparams() == qparams


# ---- several processes ------------------------------------------------------------------------------------------

RANK = """
import sys, torch, torch.distributed as dist
from lq.core.state import QATState
from lq.config.specs import ActivationSpec
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
state = QATState(list("abcd"), [ActivationSpec()] * 4, ["none"] * 4)
state.observe(0, torch.tensor([-1.0, 1.0]) * (rank + 1))
state.observe(1, torch.tensor([0.0, torch.nan if rank else 1.0]))
if rank == 0:
    state.observe(2, torch.tensor([-3.0, -2.0]))
state.update()
print(state.min_val.tolist(), state.max_val.tolist(), state.nonfinite.tolist())
dist.destroy_process_group()  # or its threads may end the process with an error
"""


def test_ranges_are_those_of_all_processes(tmp_path):
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "rendezvous")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    expected = "[-2.0, inf, -3.0, inf] [2.0, -inf, -2.0, -inf] [0, 1, 0, 0]"
    assert [rank.communicate(timeout=120)[0].strip() for rank in ranks] == [expected, expected]


# ---- histograms -------------------------------------------------------------------------------------------------

CLIPPED = [
    ActivationSpec(),
    ActivationSpec(observer="histogram"),
    ActivationSpec(observer="minmax"),
    ActivationSpec(0, 15, observer="mse"),
]
CLIPPED_ACTIVATIONS = ["none", "none", "relu", "relu"]


def clipped_state(batches: int = 2) -> QATState:
    state = QATState(list("abcd"), CLIPPED, CLIPPED_ACTIVATIONS)
    state.observer = state.fake_quant = True
    for seed in range(batches):
        generator = torch.Generator().manual_seed(seed)
        for slot in range(4):
            x = torch.randn(2000, generator=generator)
            state.observe(slot, torch.cat([x, torch.tensor([30.0])]))
        state.update()
    return state


def test_without_histograms_nothing_is_kept_for_them():
    assert make_state().histograms is None
    assert list(make_state().state_dict()) == ["min_val", "max_val", "nonfinite", "_extra_state"]


def test_histogram_slots_get_clipped_ranges_and_the_others_what_they_had():
    state = clipped_state()
    state.qparams()
    assert state.max_val[0].item() == 30.0
    assert state.max_val[2].item() == 30.0
    assert 2.0 < state.max_val[3].item() < 25.0  # 15 steps for 4000 normal values and two of 30
    assert state.histograms is not None
    assert state.max_val[1] <= state.histograms.high.max()


def test_qparams_and_scales_follow_the_histograms():
    state = clipped_state()
    scale, zero_point = state.scale_zero_point()
    for slot, (step, low, high) in enumerate(state.qparams()):
        assert step == pytest.approx(scale[slot].item())
        if CLIPPED_ACTIVATIONS[slot] == "none":
            assert low == CLIPPED[slot].quant_min - zero_point[slot].item()
        assert high == CLIPPED[slot].quant_max - zero_point[slot].item()
    before = state.qparams()[3][0]
    for _ in range(3):
        state.observe(3, torch.rand(5000) * 100)
        state.update()
    assert state.qparams()[3][0] > 2 * before


@pytest.mark.parametrize("reads", [QATState.qparams, QATState.scale_zero_point, QATState.state_dict])
def test_while_only_observing_nothing_is_searched_until_it_is_asked_for(reads: Callable[[QATState], object]):
    state = clipped_state(batches=0)
    state.fake_quant = False
    x = torch.cat([torch.randn(2000), torch.tensor([30.0])])
    state.observe(3, x)
    state.update()
    assert state.max_val[3].item() == 30.0
    reads(state)
    assert state.max_val[3].item() < 25.0


def test_with_fake_quantization_every_update_searches():
    state = clipped_state(batches=1)
    assert state.max_val[3].item() < 25.0


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("how", ["state dict", "deepcopy", "pickle"])
def test_copies_of_histograms_go_on_like_the_original(settled: bool, how: str):
    state = clipped_state()
    if settled:
        state.settle()
    if how == "state dict":
        other = QATState(list("abcd"), CLIPPED, CLIPPED_ACTIVATIONS)
        other.load_state_dict(state.state_dict())
    else:
        other = copy.deepcopy(state) if how == "deepcopy" else pickle.loads(pickle.dumps(state))
    assert other.qparams() == state.qparams()
    for each in (state, other):
        for slot in range(4):
            each.observe(slot, torch.linspace(-50, 60, 4000))
        each.update()
    assert other.qparams() == state.qparams()


def test_casts_and_inference_mode_do_not_harm_histograms():
    state = clipped_state().half()
    expected = clipped_state().qparams()
    with torch.inference_mode():
        assert state.qparams() == expected
    state.observe(1, torch.randn(5))
    state.update()
    assert not any(buffer.is_inference() for buffer in state.buffers())


def test_a_float_checkpoint_leaves_histograms_alone():
    model = nn.Sequential(nn.Linear(1, 1))
    float_checkpoint = model.state_dict()
    model.add_module("qat_state", clipped_state())
    expected = clipped_state().qparams()
    model.load_state_dict(float_checkpoint, strict=True)
    assert model.qat_state.qparams() == expected


def test_a_nan_batch_is_counted_and_not_in_the_histogram():
    state = clipped_state()
    expected = state.qparams()
    state.observe(1, torch.tensor([torch.nan, 1e6]))
    state.observe(3, torch.tensor([torch.inf]))
    state.update()
    assert state.nonfinite.tolist() == [0, 1, 0, 1]
    assert state.qparams() == expected


def test_a_fixed_range_is_there_from_the_start_and_stays():
    fixed = [ActivationSpec(fixed_range=(0.0, 1.0), observer="histogram"), ActivationSpec(observer="histogram")]
    state = QATState(["fixed", "seen"], fixed, ["none", "none"])
    state.observer = state.fake_quant = True
    assert state.observed() == [False]
    feed(state, [torch.linspace(-5, 5, 100), torch.linspace(0, 4, 100)])
    assert state.observed() == [True]
    assert (float(state.min_val[0]), float(state.max_val[0])) == (0.0, 1.0)
    scale, zero_point = state.scale_zero_point()
    assert (float(scale[0]), float(zero_point[0])) == (pytest.approx(1 / 255), 0.0)
    assert float(scale[1]) == pytest.approx(4 / 255, rel=0.05)
    state.observe_by("minmax")
    assert state.observed() == [False]
    assert float(state.max_val[0]) == 1.0


# ---- starting over ----------------------------------------------------------------------------------------------


def test_another_observer_starts_without_ranges_and_in_the_slots_of_the_usual_one():
    specs = [ActivationSpec(), ActivationSpec(observer="percentile"), ActivationSpec(observer="minmax")]
    state = QATState(list("abc"), specs, ["none"] * 3)
    feed(state, [torch.randn(9)] * 3)
    state.observe_by("histogram")
    assert [spec.observer for spec in state.specs] == ["histogram", "percentile", "minmax"]
    assert state.observed() == [False] * 3
    assert state.histograms.rows.keys() == {0, 1}


def test_an_empty_state_has_neither_slots_nor_children():
    state = QATState(list("ab"), [ActivationSpec(), ActivationSpec(observer="histogram")], ["none"] * 2)
    feed(state, [torch.randn(9)] * 2)
    state.empty()
    assert (state.names, state.specs, state.observed(), state.qparams()) == ([], [], [], [])
    assert list(state.children()) == []


def test_qparams_are_computed_once_as_long_as_ranges_stay():
    state = make_state()
    feed(state, [torch.randn(9)] * 5)
    known = state.qparams()
    assert state.qparams() is known
    feed(state, [torch.randn(9)] * 5)
    assert state.qparams() is not known


def test_a_relu_that_lets_nothing_pass_has_a_range_of_zeros() -> None:
    state = QATState(["dead"], [ActivationSpec()], ["relu"])
    state.observer = True
    for x in (torch.tensor([-3.0, -1.0]), torch.tensor([-2.0, -0.5])):
        state.observe(0, x)
        state.update()
        assert state.ready(0)
        assert (state.min_val.item(), state.max_val.item()) == (0.0, 0.0)


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_what_was_all_zeros_takes_the_next_range_as_it_is(activation: str) -> None:
    """As the branch of a residual network whose last weight starts at 0."""
    state = QATState(["branch"], [ActivationSpec()], [activation])
    state.observer = True
    for x, expected in ((torch.zeros(4), 0.0), (torch.tensor([0.0, 2.0]), 2.0), (torch.tensor([0.0, 3.0]), 2.01)):
        state.observe(0, x)
        state.update()
        assert state.max_val.item() == pytest.approx(expected)


# ---- averages of copies -----------------------------------------------------------------------------------------


def test_all_entries_of_a_checkpoint_are_tensors_of_one_shape_for_all_copies():
    """As those who average the entries of two state dicts one by one take them, timm and YOLO among them."""
    state, average = trained_state(), make_state()
    average.fake_quant = not state.fake_quant
    for ours, theirs in zip(state.state_dict().values(), average.state_dict().values(), strict=True):
        theirs.copy_(ours)
    assert average.qparams() == state.qparams()


def test_a_checkpoint_of_before_has_a_dictionary_among_its_entries():
    state = make_state()
    flags = {"fake_quant": True, "observer": False, "freeze_bn": True}
    state.load_state_dict({**trained_state().state_dict(), "_extra_state": {"names": state.names, **flags}})
    assert (state.fake_quant, state.observer, state.freeze_bn) == (True, False, True)


@pytest.mark.parametrize("mean", [lambda a, b: torch.lerp(a, b, 0.1), lambda a, b: 0.9 * a + 0.1 * b])
def test_the_average_of_equal_states_is_this_state(mean: Callable[[Tensor, Tensor], Tensor]):
    clipped = ActivationSpec(observer="percentile", percentile=99.0)
    state = QATState(["fq_0", "fq_1"], [ActivationSpec(), clipped], ["relu", "none"])
    state.observer = state.fake_quant = True
    state.observe(0, torch.tensor([0.0, 4.0]))
    state.observe(1, torch.arange(256.0))
    state.end_of_step()
    average = copy.deepcopy(state)
    for averaged, buffer in zip(average.buffers(), state.buffers(), strict=True):
        if buffer.is_floating_point():
            averaged.copy_(mean(averaged, buffer))
    got, expected = torch.tensor(average.qparams()), torch.tensor(state.qparams())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)  # float32, and ends of the grid near 255
    average.histograms.write(average.min_val, average.max_val)
    torch.testing.assert_close(average.max_val, state.max_val)
