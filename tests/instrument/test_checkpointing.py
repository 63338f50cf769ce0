"""torch.utils.checkpoint: what is computed again is quantized as it was the first time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from lq.backends.prepare import prepare, set_phase
from lq.compat.torch_private import innermost_saved_tensors_hooks, is_backward
from tests.instrument.nets import Net, assert_same, images, ready, step

# What a reentrant checkpoint says without gradients, as in evaluation.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")


def in_a_closure(block: Any, x: Tensor) -> Tensor:
    def function(y: Tensor) -> Tensor:
        return block.act(block.conv2(block.act(block.bn1(block.conv1(y)))) + y)

    return checkpoint(function, x, use_reentrant=False)


FORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "module": lambda block, x: checkpoint(block, x, use_reentrant=False),
    "closure": in_a_closure,
    "module, reentrant": lambda block, x: checkpoint(block, x, use_reentrant=True),
    "bound method, reentrant": lambda block, x: checkpoint(block.__call__, x, use_reentrant=True),
    "closure of a module, reentrant": lambda block, x: checkpoint(lambda y: block(y), x, use_reentrant=True),
    "partial, reentrant": lambda block, x: checkpoint(functools.partial(block), x, use_reentrant=True),
}


def models(run: Callable[[Any, Tensor], Tensor], **phase: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = Net()
    other = Net(run)
    other.load_state_dict(plain.state_dict())
    return ready(plain, images(), **phase), ready(other, images(), **phase)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("frozen", "observer"), [(False, True), (False, False), (True, False)])
def test_gradients_and_ranges_are_those_without(form: str, frozen: bool, observer: bool) -> None:
    plain, other = models(FORMS[form], frozen=frozen, observer=observer)
    x = images(1) * 2  # moves the ranges
    expected, got = step(plain, x), step(other, x)
    for name in ("blocks.0.bn1.weight", "stem.weight", "max_val"):
        assert expected[name].abs().max() > 0
    assert_same(expected, got)


def functions(block: Any, x: Tensor) -> Tensor:
    return checkpoint(lambda y: block.conv2(y) + y, x, use_reentrant=True)


def folded(block: Any, x: Tensor) -> Tensor:
    return checkpoint(lambda y: block.bn1(block.conv1(y)), x, use_reentrant=True)


class Within(nn.Module):
    """Checkpoints a function of its own."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)
        self.last, self.run = nn.Conv2d(2, 2, 1), run

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.run(self, self.conv2(self.bn1(self.conv1(x)) if self.run is functions else x)))


@pytest.mark.parametrize(("run", "what"), [(functions, r"add\(\) itself"), (folded, "bn1")])
def test_a_reentrant_checkpoint_of_a_function_that_nobody_would_see_again_is_refused(run: Any, what: str) -> None:
    net = Within(run)
    prepare(net, example_args=(images(),))
    set_phase(net, fake_quant=True, observer=True, freeze_bn=False)
    with pytest.raises(
        ValueError, match=rf"use_reentrant=True\) in the target: .*calls {what}.*Write use_reentrant=False"
    ):
        net(images())
    with torch.no_grad():
        net.eval()(images())  # without gradients nothing is computed again


class Sequence(nn.Module):
    """Two segments of two layers; ``reentrant`` is how they are checkpointed, ``None`` not at all."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.body(x)
        return checkpoint_sequential(self.body, 2, x, use_reentrant=self.reentrant)


def test_segments_of_a_sequence_have_the_gradients_of_the_whole() -> None:
    x, found = torch.randn(8, 4).requires_grad_(), []
    for reentrant in (None, False, True):
        torch.manual_seed(0)
        found.append(step(ready(Sequence(reentrant), x), x))
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")  # of dynamo's own
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_checkpoint_is_quantized_like_an_eager_one(fullgraph: bool) -> None:
    plain, other = models(FORMS["module"], frozen=True)
    torch._dynamo.reset()
    expected = step(plain, images(1))
    # One graph needs torch's leave to count calls within a checkpoint.
    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=fullgraph):
        got = step(other, images(1), call=torch.compile(other, backend="aot_eager", fullgraph=fullgraph))
    assert_same(expected, got)


def test_the_private_parts_of_torch_that_this_relies_on() -> None:
    assert innermost_saved_tensors_hooks(False) is None
    seen: list[Any] = []

    def function(x: Tensor) -> Tensor:
        seen.append((innermost_saved_tensors_hooks(False), is_backward()))
        return x.exp()

    checkpoint(function, torch.ones(1, requires_grad=True), use_reentrant=False).backward()
    (hooks, first), (_, second) = seen
    frames = [cell.cell_contents for cell in hooks[0].__closure__]
    assert any(hasattr(frame, "recompute_fn") for frame in frames)
    assert (first, second) == (False, True)


class PreActivated(nn.Module):
    """A checkpointed part begins with what belongs to the layer in front of it: its ReLU or its BatchNorm."""

    def __init__(self, begins: str, checkpointed: bool) -> None:
        super().__init__()
        self.stem, self.last, self.checkpointed = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), checkpointed
        first = nn.ReLU() if begins == "relu" else nn.BatchNorm2d(4)
        self.block = nn.Sequential(first, nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = checkpoint(self.block, y, use_reentrant=False) if self.checkpointed else self.block(y)
        return self.last(y)


@pytest.mark.parametrize("begins", ["relu", "norm"])
def test_the_input_of_a_checkpointed_part_is_not_overwritten(begins: str) -> None:
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        found.append(step(ready(PreActivated(begins, checkpointed), images(), frozen=True), images(1)))
    assert_same(*found)
