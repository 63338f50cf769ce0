from __future__ import annotations

import threading
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.compile import from_compiled
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lq.core.copies import deep_copy
from lq.lightning_module.copies import detached_copy, float_copy
from tests.tiny import Tiny


def test_detached_copy_leaves_the_trainer_behind() -> None:
    module = Tiny()
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    twin = detached_copy(module)
    assert twin._trainer is None
    assert module.trainer is not None
    assert twin.model is not module.model


@pytest.mark.parametrize("how", ["module.compile()", "torch.compile(module)"])
def test_detached_copy_of_a_compiled_module_runs_its_own_weights(how: str) -> None:
    module: Any = Tiny().eval()
    if how == "module.compile()":
        module.compile(backend="eager")
    else:
        module = from_compiled(torch.compile(module, backend="eager"))
    x = torch.randn(2, 1, 6, 6)
    module(x)
    twin = detached_copy(module)
    with torch.no_grad():
        next(twin.parameters()).add_(1.0)
    batch = x, torch.zeros(2, dtype=torch.int64)
    assert not torch.equal(twin(x), module(x))
    assert not torch.equal(twin.training_step(batch, 0), module.training_step(batch, 0))


class Keeps(Tiny):
    """Holds what cannot be copied: a loss with its graph, outputs of steps, a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.outputs: list[Any] = []
        self.last: Any = None

    def keep(self) -> None:
        self.last = self.training_step((torch.randn(4, 1, 6, 6), torch.zeros(4, dtype=torch.int64)), 0)
        self.outputs.append({"loss": self.last})


def test_what_cannot_be_copied_is_no_hindrance() -> None:
    module = Keeps()
    module.keep()
    twin: Any = detached_copy(module)
    assert twin.lock is module.lock
    assert float(twin.last) == float(module.last.detach())
    assert not twin.last.requires_grad
    assert module.last.requires_grad
    twin.outputs.append("its own")
    assert len(module.outputs) == 1
    assert twin.outputs[0]["loss"] is twin.last
    assert all(a is not b for a, b in zip(twin.parameters(), module.parameters(), strict=True))
    assert isinstance(twin.model, nn.Sequential)


class Listens(Keeps):
    """Keeps what one of its layers gives, as a method of its own hears it: a buffer with a graph, too."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Tensor] = []
        self.model[0].register_forward_hook(self.hear)
        self.register_buffer("mean", torch.zeros(()))

    def hear(self, layer: nn.Module, args: Any, output: Tensor) -> None:
        self.heard.append(output)
        self.mean = output.mean()


def test_a_copy_has_hooks_of_its_own() -> None:
    module = Listens()
    module.keep()
    twin: Any = detached_copy(module)
    twin.model[0].register_forward_hook(lambda *_: pytest.fail("the original has called what listens to its copy"))
    module.keep()
    assert (len(module.heard), len(twin.heard)) == (2, 1)
    assert not twin.heard[0].requires_grad
    assert float(twin.mean) == float(twin.heard[0].mean())


@pytest.mark.parametrize("of_lightning", [True, False])
def test_float_copy_takes_whatever_the_model_holds(of_lightning: bool) -> None:
    module = Keeps().double()
    module.model.lock = module.lock  # type: ignore[assignment]
    model: nn.Module = module if of_lightning else module.model
    twin = float_copy(model)
    for own, copied in zip(model.parameters(), twin.parameters(), strict=True):
        assert copied is not own
        assert torch.equal(copied, own.float())


def test_a_copy_of_lazy_batch_norm_has_buffers_of_its_own() -> None:
    lazy = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LazyBatchNorm2d())
    copied = deep_copy(lazy)
    copied(torch.randn(2, 1, 5, 5))
    assert copied[1].running_mean.shape == (4,)
    assert is_lazy(lazy[1].running_mean)
    lazy(torch.randn(2, 1, 5, 5))
