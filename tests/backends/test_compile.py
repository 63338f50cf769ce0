"""torch.compile: one graph in every phase, one compilation for each, and the numbers of eager mode."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from lq.backends.prepare import prepare, set_phase
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec

PHASES = {
    "before start": (False, False, False),
    "observers on": (True, True, False),
    "observers off": (True, False, False),
    "frozen": (True, False, True),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.relu6, self.fc = nn.ReLU6(inplace=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu6(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(x.mean((2, 3)))


def enter(prepared: nn.Module, phase: str) -> None:
    fake_quant, observer, freeze_bn = PHASES[phase]
    set_phase(prepared, fake_quant=fake_quant, observer=observer, freeze_bn=freeze_bn)


class Counted:
    """A compiled model, and how many graphs it has been compiled to."""

    def __init__(self, prepared: nn.Module) -> None:
        torch._dynamo.reset()
        self.prepared, self.counter = prepared, CompileCounter()
        self.compiled = torch.compile(prepared, backend=self.counter, fullgraph=True)

    def graphs(self, phase: str, x: Tensor, training: bool = True) -> int:
        """Graphs that three calls in a phase have added."""
        enter(self.prepared.train(training), phase)
        before = self.counter.frame_count
        for _ in range(3):
            y = self.compiled(x)
            if training:
                y.square().mean().backward()
        return self.counter.frame_count - before


def mobilenet() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    blocks = [[1, 16, 1, 1], [6, 24, 2, 2]]  # expansion, channels, repeats, stride: one residual connection
    net: nn.Module = models.MobileNetV2(num_classes=5, width_mult=0.5, inverted_residual_setting=blocks, dropout=0.0)
    return net


@pytest.mark.parametrize(("make", "modes"), [(Net, (True, False)), (mobilenet, (True,))])
def test_models_compile_to_one_graph_a_phase_and_back_to_none(make: Callable[[], nn.Module], modes: tuple[bool, ...]):
    model, x = Counted(prepare(make())), torch.randn(2, 3, 32, 32)
    added = {phase: model.graphs(phase, x) for phase in PHASES}  # from the first batch on, when no slot has a range
    assert added == dict.fromkeys(PHASES, 1)
    for training in modes[1:]:  # evaluation knows fake quantization on and off
        assert [model.graphs(phase, x, training) for phase in PHASES] == [1, 1, 0, 0]
    assert [model.graphs(phase, x, mode) for phase in reversed(PHASES) for mode in modes] == [0] * 4 * len(modes)


QCONFIGS = {
    "clipped ranges": (QConfig(activation=ActivationSpec(observer="mse")), 1),
    "weights of least squares": (QConfig(weight=WeightSpec(-7, 7, observer="mse")), 1),
    "per tensor": (QConfig(weight=WeightSpec(-7, 7, per_channel=False)), 1),
    "learned": (QConfig(weight=WeightSpec(learned_scale=True), activation=ActivationSpec(learned_scale=True)), 1),
    # Layers search for the start of their scales in the first step.
    "learned from least squares": (QConfig(weight=WeightSpec(-7, 7, learned_scale=True, observer="mse")), 2),
}


@pytest.mark.parametrize("kind", QCONFIGS)
def test_other_grids_compile_to_as_few(kind: str):
    qconfig, first = QCONFIGS[kind]
    model, x = Counted(prepare(Net(), qconfig)), torch.randn(8, 3, 8, 8)
    assert [model.graphs(phase, x) for phase in PHASES] == [1, first, 1, 1]
    assert [model.graphs(phase, x) for phase in reversed(PHASES)] == [0] * 4


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs a C++ compiler")
@torch._inductor.config.patch(compile_threads=1)  # processes that compile would import PyTorch first
def test_compiled_steps_have_the_outputs_and_gradients_of_eager_mode():
    net = Net()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.5)
    x = torch.randn(8, 3, 16, 16)
    prepared = prepare(net, example_args=(x,))
    torch._dynamo.reset()
    compiled = torch.compile(prepared, fullgraph=True)
    for phase in ("observers on", *PHASES):  # twice, the first time from no ranges at all
        enter(prepared.train(), phase)
        eager, fast = (step(prepared, call, x) for call in (prepared, compiled))
        largest = max(float(gradient.norm()) for gradient in eager.values())
        # Compiled BatchNorm differs in the last bits, which moves some values in ten thousand over a rounding edge,
        # and with them the statistics of the next BatchNorm; without batch statistics nothing moves.
        tolerance = 0.1 if phase.startswith("observers") else 1e-3
        for name, a in eager.items():
            assert (a - fast[name]).norm() <= tolerance * max(float(a.norm()), 0.1 * largest), (phase, name)
        compiled(x)


def step(prepared: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and ranges of one step, after which everything is as before."""
    before = copy.deepcopy(prepared.state_dict())
    prepared.zero_grad()
    y = call(x)
    # A target for every image: what BatchNorm cannot change has a gradient of rounding errors only.
    (y * torch.linspace(-1, 1, y.numel()).view_as(y).sin()).sum().backward()
    results = {"y": y.detach(), **{n: p.grad.clone() for n, p in prepared.named_parameters()}}
    results["max_val"] = prepared.qat_state.max_val.nan_to_num(posinf=0.0, neginf=0.0)
    prepared.load_state_dict(before)
    return results
