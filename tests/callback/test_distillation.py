"""The float model teaches: its gradient arrives as if the user's loss held the term, however the user trains."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F

from lq.callback import QATCallback
from lq.callback.distillation import Distillation
from lq.checkpoints.entry import TEACHER
from lq.config.schedule import QATSchedule
from lq.core.distillation import distillation_loss, hint_loss
from tests.callback.conftest import Fit
from tests.tiny import NoNoise

# A checkpoint is taken up by a trainer that keeps its own elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")

SETTINGS: Any = {"temperature": 2.0, "weight": 0.5}
STEADY = QATSchedule(lr=None)


class Plain(NoNoise):
    """Loss and learning rate that nothing moves but the steps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(None)


class ByHand(Plain):
    """The term written into the training step, with a float model of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.float_model = [copy.deepcopy(self.model).eval()]  # a list hides it from PyTorch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        scores = self(batch[0])
        with torch.no_grad():
            known = self.float_model[0](batch[0])
        return F.cross_entropy(scores, batch[1]) + 0.5 * distillation_loss(scores, known, 2.0)


class HintsByHand(ByHand):
    """The terms of an inner layer as well."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        heard: list[Tensor] = []
        layers = [self.model.get_submodule("0"), self.float_model[0].get_submodule("0")]
        handles = [layer.register_forward_hook(lambda *call: heard.append(call[2].clone())) for layer in layers]
        loss = super().training_step(batch, batch_idx)
        for handle in handles:
            handle.remove()
        student, teacher = heard
        return loss + 0.3 * hint_loss(student, teacher)


class Manual(Plain):
    """Two losses, both backward in the user's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        optimizer.zero_grad()
        self.manual_backward(loss / 2, retain_graph=True)
        self.manual_backward(loss / 2)
        optimizer.step()


def trained(fit: Fit, module: Plain, distill: Any = None, **kwargs: Any) -> list[Tensor]:
    fit(module, QATCallback(schedule=STEADY, distill=distill), max_epochs=2, **kwargs)
    return [p.detach().clone() for p in module.model.parameters()]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    # The same sums of float32 gradients, in another order, over six steps.
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.1}], ids=str)
def test_as_if_it_stood_in_the_training_step(fit: Fit, settings: Any) -> None:
    expected = trained(fit, ByHand(), **settings)
    assert_same(trained(fit, Plain(), SETTINGS, **settings), expected)
    without = trained(fit, Plain(), **settings)
    assert not torch.allclose(without[-2], expected[-2], rtol=1e-2)


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}], ids=str)
def test_inner_layers_teach_as_if_it_stood_in_the_training_step(fit: Fit, settings: Any) -> None:
    expected = trained(fit, HintsByHand(), **settings)
    given = {**SETTINGS, "layers": ["0"], "layer_weight": 0.3}
    assert_same(trained(fit, Plain(), given, **settings), expected)
    assert not torch.allclose(trained(fit, Plain(), SETTINGS, **settings)[0], expected[0], rtol=1e-3)


def test_every_layer_that_teaches_is_logged_and_no_hook_is_left(fit: Fit) -> None:
    module = Plain()
    callback = QATCallback(schedule=STEADY, distill={"layers": ["0", "4"]})
    trainer = fit(module, callback, max_epochs=1)
    assert {"qat/distillation", "qat/distillation/0", "qat/distillation/4"} <= trainer.callback_metrics.keys()
    assert not any(part._forward_hooks for part in module.modules())


class Unused(nn.Sequential):
    """The last one is not called."""

    def forward(self, x: Tensor) -> Tensor:
        for part in self[:-1]:
            x = part(x)
        return x


def test_layers_that_cannot_teach_are_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"names '00', which is no module of Sequential; that has '0'"):
        trained(fit, Plain(), {"layers": ["00"]})
    with pytest.raises(TypeError, match=r"distill: layers='0' must be names, e\.g\. layers=\['features\.18'\]"):
        QATCallback(distill={"layers": "0"})
    module = Plain()
    module.model = Unused(*module.model, nn.Linear(3, 3))
    last = str(len(module.model) - 1)
    with pytest.raises(ValueError, match=rf"the layer '{last}' is not called in the forward of Unused"):
        trained(fit, module, {"layers": [last]})


def test_manual_optimization_and_two_losses(fit: Fit) -> None:
    assert_same(trained(fit, Manual(), SETTINGS), trained(fit, ByHand()))


def test_the_scale_of_mixed_precision_is_that_of_the_users_gradient(fit: Fit) -> None:
    def amp() -> dict[str, Any]:
        return {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))}

    # float16 has 11 bits, and the two sums are rounded differently at every step; without the scale all is lost.
    by_hand = trained(fit, ByHand(), **amp())
    torch.testing.assert_close(trained(fit, Plain(), SETTINGS, **amp()), by_hand, rtol=0.02, atol=0.005)


def test_it_is_logged_and_the_users_loss_stays(fit: Fit) -> None:
    trainer = fit(Plain(), QATCallback(schedule=STEADY, distill=SETTINGS), max_epochs=1)
    assert trainer.callback_metrics["qat/distillation"] > 0


def test_a_resumed_run_has_the_same_teacher(fit: Fit, tmp_path: Path) -> None:
    def run(folder: str, **kwargs: Any) -> list[Tensor]:
        module, every = Plain(), ModelCheckpoint(tmp_path / folder, "{epoch}", save_top_k=-1)
        fit(module, QATCallback(schedule=STEADY, distill=SETTINGS), every, max_epochs=2, **kwargs)
        return [p.detach().clone() for p in module.model.parameters()]

    whole = run("whole")
    assert_same(run("rest", ckpt_path=tmp_path / "whole" / "epoch=0.ckpt"), whole)


def test_a_checkpoint_without_a_teacher_is_refused(fit: Fit, tmp_path: Path) -> None:
    first = fit(Plain(), QATCallback(schedule=STEADY, distill=SETTINGS), max_epochs=1)
    first.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)
    for name, change in (("none", saved.pop(TEACHER) and None), ("other", {"0.weight": torch.zeros(2)})):
        torch.save(saved if change is None else {**saved, TEACHER: change}, tmp_path / f"{name}.ckpt")
        with pytest.raises(ValueError, match=r"and holds none|holds other weights"):
            trained(fit, Plain(), SETTINGS, ckpt_path=tmp_path / f"{name}.ckpt")


class InTrainingToo(nn.Module):
    """Returns more in training, as detectors do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return torch.cat([y, y], 1) if self.training else y


def test_an_output_of_another_shape_in_training_is_refused(fit: Fit) -> None:
    module = Plain()
    module.model = InTrainingToo(module.model)
    with pytest.raises(ValueError, match=r"these differ: .*\(8, 6\).* and .*\(8, 3\)"):
        trained(fit, module, SETTINGS)


def test_compiled_code_is_refused(fit: Fit) -> None:
    module = Plain()
    module.compile(backend="eager")
    with pytest.raises(ValueError, match=r"distill needs a hook on .*torch.compile"):
        trained(fit, module, SETTINGS)


def test_what_is_no_class_score_is_compared_by_its_squared_error() -> None:
    one, other = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    assert float(distillation_loss(one, other, None)) == 2.5


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": 0}, {"temperature": math.inf}, {"weight": -1.0}, {"loss": "l1"}, {"weight": "much"}],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="distill: "):
        QATCallback(distill=wrong)
    assert QATCallback(distill={}).distill == Distillation()
