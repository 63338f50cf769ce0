"""Architectures of all kinds, and the contract that ``prepare`` and ``convert`` keep with each of them."""

from __future__ import annotations

import copy
import importlib.util
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from lq.backends.prepare import plan_of, prepare, qconfig_of, set_phase, state_of
from lq.compat.deprecations import quiet_torchscript
from lq.config.qconfig import QConfig
from lq.conversion.convert import convert
from lq.conversion.graph import as_graph
from lq.conversion.int8 import Int8Layer
from lq.core.fake_quantize import FakeQuantize
from lq.metrics import sqnr
from lq.ptq import calibrate
from lq.tracing import ops
from lq.tracing.structure import Inputs


def images(count: int, size: int) -> Tensor:
    """Smooth random images with noise, each with its own contrast and brightness: white noise all looks the same."""
    smooth = nn.functional.interpolate(torch.randn(count, 3, 8, 8), size=(size, size), mode="bilinear")
    noisy = smooth + 0.3 * torch.randn(count, 3, size, size)
    return noisy * torch.rand(count, 1, 1, 1) * 2 + torch.randn(count, 3, 1, 1) / 2


@dataclass(frozen=True)
class Entry:
    """A model of the zoo: how to make it, and the inputs of one call for a batch size.

    With some seeds an untrained net is so chaotic that a single flipped tie changes its whole output.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    needs: str = "torch"
    seed: int = 0

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.needs) is not None


def _of_images(make: Callable[[], nn.Module], size: int, needs: str = "torch") -> Entry:
    return Entry(make, lambda count: ((images(count, size),), {}), needs)


def _torchvision(name: str, size: int = 32, seed: int = 0, **kwargs: Any) -> Entry:
    def make() -> nn.Module:
        from torchvision import models

        model: nn.Module = models.get_model(name, weights=None, **kwargs)
        return model

    return replace(_of_images(make, size, "torchvision"), seed=seed)


def _of_class(name: str, settings: Callable[[], dict[str, Any]]) -> Entry:
    """A class of torchvision in a small size: every kind of block, and not many of each."""

    def make() -> nn.Module:
        from torchvision import models

        model: nn.Module = getattr(models, name)(**settings(), num_classes=10)
        return model

    return _of_images(make, 32, "torchvision")


def _bottleneck_stages() -> dict[str, Any]:
    from torchvision.models.resnet import Bottleneck

    return {"block": Bottleneck, "layers": [1, 1, 1, 1], "width_per_group": 16}


def _timm(name: str, **kwargs: Any) -> Entry:
    def make() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, **kwargs)
        return model

    return _of_images(make, 32, "timm")


def _vit(**kwargs: Any) -> Entry:
    def make() -> nn.Module:
        from torchvision import models

        model: Any = models.VisionTransformer(image_size=32, **kwargs)
        nn.init.normal_(model.heads[-1].weight, std=0.1)  # zero at the start: nothing to compare
        return model

    return _of_images(make, 32, "torchvision")


def _feature_pyramid() -> nn.Module:
    """The backbone of torchvision's detectors."""
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    backbone: nn.Module = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d)
    for parameter in backbone.parameters():
        parameter.requires_grad_(True)  # all of them are frozen at first
    return backbone


class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(50, 16), nn.LSTM(16, 32, batch_first=True)
        self.hidden, self.head = nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        sequence, _ = self.lstm(self.embedding(tokens))
        y: Tensor = self.head(torch.relu(self.hidden(sequence[:, -1])))
        return y


class MultiInput(nn.Module):
    """An image, a vector by keyword, a flag that keeps its default, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = nn.Conv2d(3, 16, 3, stride=2), nn.Linear(8, 16)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x: Tensor, *, vector: Tensor | None = None, doubled: bool = False) -> dict[str, Tensor]:
        y = torch.relu(self.norm(self.image(x))).mean((2, 3))
        if vector is not None:
            y = y + torch.relu(self.vector(vector))
        logits = self.head(y)
        return {"logits": logits * 2 if doubled else logits, "features": y}


ZOO: dict[str, Entry] = {
    "torchvision resnet18": _torchvision("resnet18"),
    "torchvision ResNet, bottlenecks": _of_class("ResNet", _bottleneck_stages),
    "torchvision mobilenet_v2": _torchvision("mobilenet_v2", width_mult=0.5),
    "torchvision mobilenet_v3_small": _torchvision("mobilenet_v3_small"),
    "torchvision mobilenet_v3_large": _torchvision("mobilenet_v3_large"),
    "torchvision efficientnet_b0": _torchvision("efficientnet_b0", seed=1),
    "torchvision shufflenet_v2_x0_5": _torchvision("shufflenet_v2_x0_5"),
    "torchvision regnet_y_400mf": _torchvision("regnet_y_400mf"),
    "torchvision DenseNet, small": _of_class(
        "DenseNet", lambda: {"growth_rate": 8, "block_config": (2, 2, 2, 2), "num_init_features": 16}
    ),
    "torchvision googlenet": _torchvision("googlenet", 64, init_weights=False),
    "torchvision inception_v3": _torchvision("inception_v3", 96, init_weights=False, aux_logits=False),
    "torchvision squeezenet1_1": _torchvision("squeezenet1_1", 48),
    "torchvision convnext_tiny": _torchvision("convnext_tiny"),
    "torchvision SwinTransformer, small": _of_class(
        "SwinTransformer",
        lambda: {
            "patch_size": [2, 2],
            "embed_dim": 24,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": [4, 4],
        },
    ),
    "torchvision VisionTransformer, small": _vit(patch_size=8, num_layers=4, num_heads=3, hidden_dim=96, mlp_dim=192),
    "torchvision deeplabv3_mobilenet_v3_large": _torchvision(
        "deeplabv3_mobilenet_v3_large", 64, weights_backbone=None, num_classes=5
    ),
    "torchvision resnet18 + FPN (detection backbone)": _of_images(_feature_pyramid, 64, "torchvision"),
    "timm resnet18": _timm("resnet18"),
    "timm mobilenetv3_small_100": _timm("mobilenetv3_small_100"),
    "timm efficientnet_lite0": _timm("efficientnet_lite0"),
    "timm vit_tiny_patch16_224": _timm("vit_tiny_patch16_224", img_size=32),
    "LSTM classifier": Entry(LSTMClassifier, lambda count: ((torch.randint(0, 50, (count, 7)),), {})),
    "several inputs, by keyword": Entry(
        MultiInput, lambda count: ((images(count, 16),), {"vector": torch.randn(count, 8)})
    ),
}


@dataclass(frozen=True)
class Kept:
    """What the contract found of a model.

    Args:
        quantized: layers that are quantized.
        layers: layers that could be.
        float_parts: modules that run in float although layers are in them, or that are layers of other kinds.
        noise_db: SQNR of the int8 model against the fake-quantized one.
        quantization_db: SQNR of the fake-quantized model against the float one.
    """

    quantized: int
    layers: int
    float_parts: tuple[str, ...]
    noise_db: float
    quantization_db: float


def keep_contract(entry: Entry, qconfig: QConfig | str = "portable", kernels: float = 0.9) -> Kept:
    """Prepare, train, copy, save, calibrate and convert a model.

    Args:
        entry: which.
        qconfig: how.
        kernels: share of the quantized layers that have an int8 kernel in torch.

    Raises:
        AssertionError: if one of these does not do what it promises.
    """
    torch.manual_seed(entry.seed)
    net = _with_statistics(entry.make(), entry)
    model, theirs = copy.deepcopy(net), dict(net.named_parameters(remove_duplicate=False))
    args, kwargs = entry.inputs(2)
    prepared = prepare(net, qconfig, example_args=args, example_kwargs=kwargs)
    assert prepare(prepared) is prepared
    assert prepared is net
    assert [name for name, _ in prepared.named_parameters(remove_duplicate=False)] == list(theirs)
    assert all(p is theirs[name] for name, p in prepared.named_parameters(remove_duplicate=False))
    _computes_what_the_float_model_does(prepared, model, entry.inputs(2))
    plan = plan_of(prepared)
    explained = [row for row in plan.layers if row.weight is None]
    assert all(row.reason for row in explained)
    graph = as_graph(prepared)  # shares parameters and ranges, and takes seconds of a large model
    assert_one_quantizer_per_tensor(graph)
    _trains(copy.deepcopy(prepared), entry.inputs(4))
    calibrate(prepared, [entry.inputs(16) for _ in range(3)], call=lambda net, batch: net(*batch[0], **batch[1]))
    _copies_are_equal(prepared, model, entry.inputs(2))
    noise, quantization = _int8_follows(model, prepared, graph, entry.inputs(16), kernels)
    parts = tuple(row.name for row in explained)
    return Kept(len(plan.quantized), len(plan.layers), parts, noise, quantization)


def main_tensor(output: Any) -> Tensor:
    """The first tensor of an output, whatever its structure."""
    return next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))


def assert_one_quantizer_per_tensor(prepared: fx.GraphModule) -> None:
    """No two fake quantizers read a tensor, and none reads another's output through operations on its grid only."""
    modules, read = dict(prepared.named_modules()), set()
    for node in prepared.graph.nodes:
        if not isinstance(ops.module_of(node, modules), FakeQuantize):
            continue
        source = node.args[0]
        assert source not in read, node
        read.add(source)
        while ops.is_same_grid(source):
            source = source.args[0]
        assert not isinstance(ops.module_of(source, modules), FakeQuantize), f"{node} rounds {source} again"


def _with_statistics(model: nn.Module, entry: Entry) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over all batches, whatever the architecture's own choice
    with torch.no_grad():
        for _ in range(2):
            args, kwargs = entry.inputs(16)
            model.train()(*args, **kwargs)
    return model


def _computes_what_the_float_model_does(prepared: nn.Module, model: nn.Module, inputs: Inputs) -> None:
    with torch.no_grad():
        expected, got = (pytree.tree_leaves(m.eval()(*inputs[0], **inputs[1])) for m in (model, prepared))
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def _trains(prepared: nn.Module, inputs: Inputs) -> None:
    for frozen in (False, True):
        set_phase(prepared, fake_quant=True, observer=not frozen, freeze_bn=frozen)
        output = prepared.train()(*inputs[0], **inputs[1])
        parts = [part for part in pytree.tree_leaves(output) if part is not None]
        sum(part.square().mean() for part in parts).backward()
        reached = [(n, p.grad) for n, p in prepared.named_parameters()]
        assert not [name for name, grad in reached if grad is None or not torch.isfinite(grad).all()]


def _copies_are_equal(prepared: nn.Module, model: nn.Module, inputs: Inputs) -> None:
    file = io.BytesIO()
    torch.save(prepared.state_dict(), file)
    file.seek(0)
    # Other weights, so that what is not loaded shows.
    saved = prepare(_shaken(copy.deepcopy(model)), qconfig_of(prepared), *inputs)
    saved.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expected = main_tensor(prepared.eval()(*inputs[0], **inputs[1]))
        again = main_tensor(prepared(*inputs[0], **inputs[1]))
        assert torch.equal(again, expected), "evaluation is not deterministic"
        for copied in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared)), saved):
            assert torch.equal(main_tensor(copied.eval()(*inputs[0], **inputs[1])), expected)
            assert copied.state_dict().keys() == prepared.state_dict().keys()


def _shaken(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return model


def _int8_follows(
    model: nn.Module, prepared: nn.Module, graph: fx.GraphModule, inputs: Inputs, share: float
) -> tuple[float, float]:
    """SQNR in dB of the int8 model against the fake-quantized one, and of that against the float one."""
    int8 = convert(graph)
    ran = sum(torch.isfinite(state_of(prepared).min_val).tolist())
    assert ran > len(state_of(prepared).names) * 0.9  # auxiliary heads do not run in evaluation
    kernels = sum(isinstance(m, Int8Layer) for m in int8.modules())
    assert kernels >= len(plan_of(prepared).quantized) * share
    with torch.no_grad(), quiet_torchscript():
        outputs = [main_tensor(m.eval()(*inputs[0], **inputs[1])) for m in (int8, prepared, model, graph)]
    real, fake, float_, of_graph = outputs
    assert float(sqnr(fake, of_graph)) > 60, "the graph is another model"
    noise, quantization = float(sqnr(fake, real)), float(sqnr(float_, fake))
    # An untrained net amplifies every flipped tie as it does any other noise, so the yardstick is its own
    # quantization noise, of which a wrong wire adds more than all (test_int8.py tests the layers to the integer).
    assert noise >= quantization + 3, f"int8 against fake {noise:.1f} dB, fake against float {quantization:.1f} dB"
    if not inputs[1]:
        _traces(int8, tuple(x[:2] for x in inputs[0]))
    return noise, quantization


def _traces(int8: nn.Module, args: tuple[Tensor, ...]) -> None:
    with torch.no_grad(), quiet_torchscript():
        traced: Any = torch.jit.freeze(torch.jit.trace(int8, args, strict=False))
        # Freezing reorders float operations.
        torch.testing.assert_close(main_tensor(traced(*args)), main_tensor(int8(*args)), rtol=1e-5, atol=1e-5)
