from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lq.tracing.exported_call import ReadArguments, call_to_export, without_unread

X, T = torch.ones(2), torch.zeros(2)


class Detector(nn.Module):
    """Reads the targets in training only; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor, targets: Any = None, scale: Tensor | None = None) -> Any:
        if self.training:
            return {"loss": (x - targets[0]).square().mean()}
        return x if scale is None else x * scale


class WithLoss(nn.Module):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": x} if labels is None else {"loss": (x - labels).sum(), "logits": x}


class Needs(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is not None
        return x * mask


class First(nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0]


@pytest.mark.parametrize(
    ("module", "args", "kwargs", "left"),
    [
        (Detector(), (X, [T]), {}, ((X,), {})),
        (Detector(), (X,), {"targets": [T]}, ((X,), {})),
        (Detector(), (X, [T], T), {}, ((X, None, T), {})),
        (Detector(), (X, [T]), {"scale": T}, ((X,), {"scale": T})),
        (Detector(), (X,), {}, ((X,), {})),
        (WithLoss(), (X, T), {}, ((X, T), {})),
        (Needs(), (X, X), {}, ((X, X), {})),
        (First(), (X, T), {}, ((X, T), {})),
    ],
)
def test_what_changes_nothing_in_evaluation_is_left_out(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], left: Any
) -> None:
    found = without_unread(module.train(), (args, kwargs))
    assert repr(found) == repr(left)
    assert module.training


def test_statistics_stay() -> None:
    net = Detector().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    without_unread(net, ((X, [T]), {}))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


IMAGES = [torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]


class Finds(nn.Module):
    """One answer for each image, or, asked so, one for all."""

    def forward(self, images: Any, targets: Any = None, together: bool = False) -> Any:
        found = [{"boxes": image.mean().expand(1, 4)} for image in images]
        return found[0] if together else found


class Sequences(nn.Module):
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [torch.cat(features)]


class Masked(nn.Module):
    """Reads a mask that changes nothing where it is 1, as transformers do."""

    def forward(self, features: list[Tensor], mask: Tensor | None = None) -> Tensor:
        x = torch.stack(features).sum((1, 2, 3))
        return x if mask is None else x * mask


@pytest.mark.parametrize(
    ("module", "args", "kwargs", "count"),
    [
        (Finds(), (IMAGES,), {}, 1),
        (Finds(), (tuple(IMAGES), [X, T]), {}, 1),
        (Finds(), (IMAGES[:1],), {}, 1),
        (Finds(), (IMAGES,), {"together": True}, 2),
        (Sequences(), (IMAGES,), {}, 2),
        (Masked(), (IMAGES, torch.ones(2)), {}, 2),
    ],
)
def test_one_image_is_exported_where_each_has_an_answer(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], count: int
) -> None:
    (given, *others), named = call_to_export(module, (args, kwargs))
    assert len(given) == count
    assert type(given) is type(args[0])
    assert len(others) == (count > 1) * (len(args) - 1)
    assert named == kwargs


def test_later_calls_are_read_as_the_first_one_was() -> None:
    read = ReadArguments(Finds())
    assert read((IMAGES, [X, T]), {}) == ((IMAGES,), {})
    assert read((IMAGES,), {}) == ((IMAGES,), {})
    assert read((IMAGES,), {"targets": [X]}) == ((IMAGES,), {})
    args, kwargs = read((IMAGES, [X], True), {})
    assert (args[1:], kwargs) == ((None, True), {})


def test_all_is_read_of_other_modules() -> None:
    given = (IMAGES, torch.ones(2)), {}
    assert ReadArguments(Masked())(*given) == given
