"""Prepared models of which autograd saves bytes: the same gradients to the bit, whatever is done with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lq.backends.prepare import set_phase
from lq.backends.saving import set_saving
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.core import saving
from lq.core.weight_quantizer import WeightQuantizer
from tests.instrument.nets import Net, images, step
from tests.instrument.test_fake_gpu import PHASES, Detector, Skipping, Transformer, made

QCONFIGS = {
    "portable": QConfig(),
    "tensorrt": QConfig("tensorrt"),
    "4 bits": QConfig(activation=ActivationSpec(0, 15), weight=WeightSpec(-7, 7)),
    "learned": QConfig(activation=ActivationSpec(learned_scale=True), weight=WeightSpec(-63, 63, learned_scale=True)),
    "per tensor": QConfig(weight=WeightSpec(per_channel=False)),
}


class Mixed(nn.Module):
    """Depthwise and transposed convolutions, a gate, a dense connection, pooling, and an odd number of values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.gate = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 6, 1)
        self.up, self.head = nn.ConvTranspose2d(12, 5, 2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.norm(self.stem(x)))
        gated = self.depthwise(x) * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = nn.functional.max_pool2d(torch.cat([x, gated], 1), 3, 1)
        return self.head(torch.relu(self.up(x)).mean((2, 3)))


class Checkpointed(nn.Module):
    """Blocks that are computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net = Net(partial(checkpoint, use_reentrant=reentrant))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


NETS: dict[str, Callable[[], nn.Module]] = {
    "cnn": Net,
    "mixed": Mixed,
    "transformer": Transformer,
    "detector": Detector,
    "skipping": Skipping,
    "checkpoint": partial(Checkpointed, False),
    "reentrant checkpoint": partial(Checkpointed, True),
}


def prepared_net(net: str, qconfig: str = "portable") -> nn.Module:
    torch.manual_seed(0)
    module = NETS[net]()
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoderLayer):
            part.eval()  # no dropout
    return made(module, QCONFIGS[qconfig])


def both(prepared: nn.Module, x: Tensor, call: Callable[[nn.Module], Any] = lambda module: module) -> Any:
    """One step with floats and one with bytes, of a batch that partly saturates."""
    found = []
    for save in ("floats", "bytes"):
        module = copy.deepcopy(prepared)
        set_saving(module, save)
        found.append(step(module, x, call=_one_output(call(module))))
    return found


def _one_output(module: Callable[..., Any]) -> Callable[..., Tensor]:
    def call(x: Tensor) -> Tensor:
        y = module(x)
        return torch.cat([part.flatten() for part in y.values()]) if isinstance(y, dict) else y

    return call


def assert_equal_to_the_bit(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert len(a) > 3
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# What a reentrant checkpoint says without gradients, as in evaluation.
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("phase", ["observers on", "BN frozen"])
@pytest.mark.parametrize(
    ("net", "qconfig"),
    [*((net, "portable") for net in NETS), *(("mixed", qconfig) for qconfig in QCONFIGS if qconfig != "portable")],
)
def test_gradients_are_the_same_to_the_bit(net, qconfig, phase):
    prepared = prepared_net(net, qconfig)
    set_phase(prepared, **PHASES[phase])
    assert_equal_to_the_bit(*both(prepared, 3 * images()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype):
    prepared = prepared_net("mixed")
    with torch.autocast("cpu", dtype):
        assert_equal_to_the_bit(*both(prepared, 3 * images()))


def test_in_less_than_float32_and_channels_last():
    prepared = prepared_net("mixed").to(torch.bfloat16, memory_format=torch.channels_last)
    x = (3 * images()).to(torch.bfloat16, memory_format=torch.channels_last)
    assert_equal_to_the_bit(*both(prepared, x))


def test_compiled_code_saves_what_it_wants():
    prepared = made(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3)), QConfig())
    assert_equal_to_the_bit(*both(prepared, images(), lambda module: torch.compile(module, backend="eager")))


def test_with_distributed_data_parallel(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert_equal_to_the_bit(*both(prepared_net("cnn"), images(), DistributedDataParallel))
    finally:
        distributed.destroy_process_group()


def test_gradients_add_up_over_batches():
    found = []
    for save in ("floats", "bytes"):
        prepared = prepared_net("mixed")
        set_saving(prepared, save)
        for loss in [prepared(images(seed)).sin().sum() for seed in range(2)]:  # two graphs at a time
            loss.backward()
        found.append({name: p.grad for name, p in prepared.named_parameters() if p.grad is not None})
    assert_equal_to_the_bit(*found)


def test_a_weight_that_was_changed_before_the_backward_pass_is_noticed():
    prepared = prepared_net("cnn")
    set_saving(prepared, "bytes")
    loss = prepared(images()).sum()
    with torch.no_grad():
        prepared.blocks[0].conv1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_memory_is_held_for_weights():
    prepared = prepared_net("cnn")
    prepared(images()).sum().backward()
    quantizers = [module for module in prepared.modules() if isinstance(module, WeightQuantizer)]
    assert all(quantizer._memory.free is not None for quantizer in quantizers)
    set_saving(prepared, "bytes")
    prepared(images()).sum().backward()
    assert all(quantizer._memory.free is None for quantizer in quantizers)


def test_other_hooks_come_first():
    packed = []
    prepared = prepared_net("cnn")
    set_saving(prepared, "bytes")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.dtype) or t, lambda t: t):
        prepared(images()).sum().backward()
    assert packed.count(torch.float32) > 10


def test_before_the_start_nothing_is_done(monkeypatch):
    prepared = prepared_net("cnn")
    set_saving(prepared, "bytes")
    set_phase(prepared, fake_quant=False, observer=True, freeze_bn=False)
    monkeypatch.setattr(saving.Saving, "_pack", None)  # which cannot be called
    prepared(images()).sum().backward()
    assert all(p.grad is not None for p in prepared.parameters())


def test_another_word_is_refused():
    with pytest.raises(ValueError, match=r"choose one of .*'bytes'"):
        set_saving(prepared_net("cnn"), "int8")
