"""What is compared is what its name says, with the same weights everywhere."""

import pytest
import torch

from benchmarks._variants import FLOAT, VARIANTS, Step, UnavailableError, build, cases
from lq.backends.prepare import state_of

pytest.importorskip("torchvision")
SIZE = 32
CASES = cases(SIZE)


@pytest.fixture
def x():
    return torch.randn(2, 3, SIZE, SIZE)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "stock eager"])
def test_all_start_from_the_same_weights_in_training_mode(variant, x):
    model = build(variant, CASES["resnet18"], x)
    assert model.training
    expected = build(FLOAT, CASES["resnet18"], x).state_dict()["layer1.0.conv1.weight"]
    assert torch.equal(model.state_dict()["layer1.0.conv1.weight"], expected)


def test_before_start_lq_is_float(x):
    before = build("lq, before start", CASES["resnet18"], x)
    assert torch.equal(before(x), build(FLOAT, CASES["resnet18"], x)(x))


@pytest.mark.parametrize(
    ("variant", "flags"),
    [
        ("lq, before start", (False, False, False)),
        ("lq, observers on", (True, True, False)),
        ("lq, observers off", (True, False, False)),
        ("lq, BN frozen", (True, False, True)),
    ],
)
def test_lq_is_in_the_phase_and_has_ranges(variant, flags, x):
    state = state_of(build(variant, CASES["resnet18"], x))
    assert (state.fake_quant, state.observer, state.freeze_bn) == flags
    assert all(state.ready(slot) for slot in range(len(state.names))) == state.fake_quant


@pytest.mark.parametrize(("variant", "moves"), [("stock FX", True), ("stock FX, frozen", False)])
def test_stock_observers_and_statistics_move_unless_frozen(variant, moves, x):
    model = build(variant, CASES["resnet18"], x)
    model(x)
    before = {k: v.clone() for k, v in model.state_dict().items() if k.endswith(("running_mean", "max_val"))}
    model(x * 10)
    changed = [k for k, v in model.state_dict().items() if k in before and "weight_fake" not in k]
    changed = [k for k in changed if not torch.equal(before[k], model.state_dict()[k])]
    assert bool(changed) == moves, changed[:3]


@pytest.mark.parametrize(("variant", "case"), [("stock eager", "vit_tiny"), ("lq, BN frozen", "mlp")])
def test_what_does_not_exist_says_why(variant, case):
    known = CASES[case]
    with pytest.raises(UnavailableError, match="no "):
        build(variant, known, torch.randn(2, *known.shape))


def test_a_step_moves_the_weights_and_stays_finite(x):
    model = build("lq, observers on", CASES["mlp"], torch.randn(2, 784))
    step = Step.of(model, *CASES["mlp"].batch(2, torch.device("cpu")))
    before = model.state_dict()["0.weight"].clone()
    losses = [float(step()) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert not torch.equal(model.state_dict()["0.weight"], before)
