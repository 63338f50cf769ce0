"""What the target is called with, where the training has not called it yet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import plan_of
from lq.callback import QATCallback
from lq.callback.example import declared_example, example_without_training
from lq.deployment.evaluation import ValidationData
from tests.callback.conftest import Fit
from tests.tiny import Tiny, val_loader


class Head(nn.Module):
    """With an argument that has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 3)

    def forward(self, x: Tensor, scale: Tensor | None = None, twice: bool = False) -> Tensor:
        y: Tensor = self.layer(x)
        y = y if scale is None else y * scale
        return 2 * y if twice else y


class Flattens(Tiny):
    """Gives its network something else than it gets itself."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Head()
        self.example_input_array = torch.rand(2, 1, 6, 6)

    def forward(self, x: Tensor) -> Any:
        return self.model(x.flatten(1), twice=False, scale=torch.full((1,), 2.0))


@pytest.mark.filterwarnings("ignore:.*forward does more than call model")  # it flattens
def test_the_target_gets_what_the_module_gives_it(fit: Fit) -> None:
    module, callback = Flattens(), QATCallback()
    found = declared_example(module, "model")
    assert found is not None
    (x,), kwargs = found
    assert torch.equal(x, module.example_input_array.flatten(1))  # type: ignore[union-attr]
    assert kwargs.keys() == {"scale", "twice"}
    assert module.model.training
    fit(module, callback, max_epochs=1)
    assert callback.deployment is not None
    assert callback.deployment.parity["torch"].passed


class NotYet(Flattens):
    """Whose forward needs what setup() makes, after QAT is prepared."""

    def setup(self, stage: str) -> None:
        self.factor = 1.0

    def forward(self, x: Tensor) -> Any:
        return self.model(x.flatten(1) * self.factor)


@pytest.mark.filterwarnings("ignore:.*forward does more than call model")  # its own warning is not meant here
def test_what_cannot_be_called_yet_says_nothing(fit: Fit) -> None:
    module = NotYet()
    assert declared_example(module, "model") is None
    fit(module, QATCallback(), max_epochs=1)
    assert plan_of(module.model).quantized


@pytest.mark.parametrize("declared", [torch.rand(2, 36), {"x": torch.rand(2, 36)}, (torch.rand(2, 36), torch.ones(1))])
def test_it_may_be_declared_for_the_target_itself(declared: Any) -> None:
    module = Flattens()
    module.forward = None  # type: ignore[method-assign,assignment]
    module.example_input_array = declared
    found = declared_example(module, "model")
    assert found is not None
    args, kwargs = found
    assert [*args, *kwargs.values()][0].shape == (2, 36)
    assert declared_example(Tiny(), "model") is None


def test_random_numbers_stay_what_they_were() -> None:
    class Noisy(Flattens):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x + torch.rand(1))

    torch.manual_seed(0)
    expected = torch.rand(1)
    module = Noisy()
    torch.manual_seed(0)
    assert declared_example(module, "model") is not None
    assert torch.equal(torch.rand(1), expected)


def test_without_a_validation_the_validation_data_still_judge(fit: Fit) -> None:
    callback = QATCallback()
    fit(Tiny(), callback, max_epochs=1, check_val_every_n_epoch=2, num_sanity_val_steps=0)
    assert callback.deployment is not None
    assert callback.deployment.results.keys() >= {"fp32", "fake", "torch"}


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64], ids=str)
def test_an_example_of_a_module_that_is_not_as_it_was(precision: torch.dtype) -> None:
    module = Flattens()
    expected = module.example_input_array.flatten(1)  # type: ignore[union-attr]
    module.to(precision)
    (x,), _ = example_without_training(module, "model", ValidationData())
    assert torch.equal(x, expected)
    (x,), _ = example_without_training(module, "model", ValidationData(val_loader()))
    assert x.shape[1:] == (36,)


def test_an_example_that_cannot_be_called_is_none() -> None:
    module = Flattens()
    module.example_input_array = torch.rand(2, 5)
    with pytest.raises(ValueError, match="Set example_input_array of Flattens to what it can be called with"):
        example_without_training(module, "model", ValidationData())
