"""The life of a prepared model, once for every architecture: prepare, train, copy, convert, trace."""

from __future__ import annotations

import copy
import importlib.util
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from lq.backends.convert import convert
from lq.backends.int8 import Int8Layer
from lq.backends.prepare import plan_of, prepare, set_phase, state_of
from lq.core.fake_quantize import FakeQuantize
from lq.deprecations import quiet_torchscript
from lq.metrics import sqnr
from lq.ptq import calibrate
from lq.tracing import ops


def torchvision_model(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return getattr(pytest.importorskip("torchvision").models, name)(**kwargs)

    return make


def timm_model(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, **kwargs)


def small_vit() -> nn.Module:
    models = pytest.importorskip("torchvision").models
    model = models.VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=10)
    nn.init.normal_(model.heads[-1].weight, std=0.1)  # zero at the start: nothing to compare
    return model


# name -> (maker, image size)
ZOO: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (torchvision_model("resnet18"), 32),
    "mobilenet_v2": (torchvision_model("mobilenet_v2", width_mult=0.5), 32),
    "mobilenet_v3_small": (torchvision_model("mobilenet_v3_small"), 32),
    "efficientnet_b0": (torchvision_model("efficientnet_b0"), 32),
    "shufflenet_v2": (torchvision_model("shufflenet_v2_x0_5"), 32),
    "regnet_y": (torchvision_model("regnet_y_400mf"), 32),
    "densenet121": (torchvision_model("densenet121"), 32),
    "googlenet": (torchvision_model("googlenet", init_weights=False), 64),
    "squeezenet": (torchvision_model("squeezenet1_1"), 48),
    "convnext_tiny": (torchvision_model("convnext_tiny"), 32),
    "swin_t": (torchvision_model("swin_t"), 32),
    "vit": (small_vit, 32),
    "timm resnet18": (timm_model("resnet18"), 32),
    "timm mobilenetv3": (timm_model("mobilenetv3_small_100"), 32),
    "timm efficientnet_lite0": (timm_model("efficientnet_lite0"), 32),
    "timm vit_tiny": (timm_model("vit_tiny_patch16_224", img_size=32), 32),
}


def images(count: int, size: int) -> Tensor:
    """Smooth random images with noise, each with its own contrast and brightness: white noise all looks the same."""
    smooth = nn.functional.interpolate(torch.randn(count, 3, 8, 8), size=(size, size), mode="bilinear")
    noisy = smooth + 0.3 * torch.randn(count, 3, size, size)
    return noisy * torch.rand(count, 1, 1, 1) * 2 + torch.randn(count, 3, 1, 1) / 2


def with_statistics(model: nn.Module, size: int) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over all batches, whatever the architecture's own choice
    with torch.no_grad():
        for _ in range(2):
            model.train()(images(16, size))
    return model


def logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # attention's checks of shapes become constants
@pytest.mark.parametrize("name", ZOO)
def test_the_life_of_a_prepared_model(name: str):
    if name.startswith("timm") and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    make, size = ZOO[name]
    model = with_statistics(make(), size)
    # Traced in training, checked in evaluation (prepare compares with the float model).
    prepared = prepare(model, example_args=(images(2, size),))
    assert all(layer.weight for layer in plan_of(prepared).layers if "Attention" not in layer.kind)
    assert_one_quantizer_per_tensor(prepared)
    trains(copy.deepcopy(prepared), images(4, size))
    calibrate(prepared, [images(16, size) for _ in range(3)])
    x = images(16, size)
    assert_copies_are_equal(prepared, x[:2])
    assert_int8_follows(model, prepared, x)


def assert_one_quantizer_per_tensor(prepared: fx.GraphModule) -> None:
    """No two fake quantizers read a tensor, and none reads another's output through operations on its grid only."""
    modules, read = dict(prepared.named_modules()), set()
    for node in prepared.graph.nodes:
        if not isinstance(ops.module_of(node, modules), FakeQuantize):
            continue
        source = node.args[0]
        assert source not in read, node
        read.add(source)
        while ops.is_same_grid(source, modules):
            source = source.args[0]
        assert not isinstance(ops.module_of(source, modules), FakeQuantize), f"{node} rounds {source} again"


def trains(prepared: fx.GraphModule, x: Tensor) -> None:
    for frozen in (False, True):
        set_phase(prepared, fake_quant=True, observer=not frozen, freeze_bn=frozen)
        output = prepared.train()(x)
        parts = [part for part in torch.utils._pytree.tree_leaves(output) if part is not None]
        sum(part.square().mean() for part in parts).backward()
        missing = [n for n, p in prepared.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert not missing


def assert_copies_are_equal(prepared: fx.GraphModule, x: Tensor) -> None:
    with torch.no_grad():
        expected = logits(prepared.eval()(x))
        for copied in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
            assert torch.equal(logits(copied.eval()(x)), expected)
            assert copied.state_dict().keys() == prepared.state_dict().keys()


def assert_int8_follows(model: nn.Module, prepared: fx.GraphModule, x: Tensor) -> None:
    int8 = convert(prepared)
    ran = sum(torch.isfinite(state_of(prepared).min_val).tolist())
    assert ran > len(state_of(prepared).names) * 0.9  # auxiliary heads do not run in evaluation
    assert sum(isinstance(m, Int8Layer) for m in int8.modules()) >= len(plan_of(prepared).quantized) * 0.9
    with torch.no_grad(), quiet_torchscript():
        real, fake, float_ = (logits(m.eval()(x)) for m in (int8, prepared, model))
        # An untrained net amplifies every flipped tie as it does any other noise, so the yardstick is its own
        # quantization noise, of which a wrong wire adds more than all (test_int8.py tests the layers to the integer).
        assert sqnr(fake, real) >= sqnr(float_, fake) + 3
        traced = torch.jit.freeze(torch.jit.trace(int8, x[:2], strict=False))
        torch.testing.assert_close(logits(traced(x)), real, rtol=1e-5, atol=1e-5)  # freezing reorders float operations
