"""The models that are trained, and what each way of training them makes of a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lq.backends.prepare import prepare, set_phase
from lq.backends.saving import set_saving
from lq.core import native

Build = Callable[[], nn.Module]

PRECISIONS = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}
_STOCK_QCONFIG = "x86"


class UnavailableError(Exception):
    """This model cannot be had in this way; the message says why."""


@dataclass(frozen=True)
class Case:
    """A model to train.

    Args:
        build: makes the float model.
        shape: one input, without the batch dimension.
        batch_factor: how many times the usual batch it takes.
        annotated: makes the model with the stubs that stock eager mode needs, modules fused.
    """

    build: Build
    shape: tuple[int, ...]
    batch_factor: int = 1
    annotated: Build | None = None

    def batch(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Random inputs, and class 0 to 9 for each."""
        count = size * self.batch_factor
        return torch.randn(count, *self.shape, device=device), torch.randint(10, (count,), device=device)


# On a CPU these take minutes.
LARGE = ("resnet50", "vit_b_16")


def cases(image_size: int) -> dict[str, Case]:
    """All models, by name."""
    image = (3, image_size, image_size)
    return {
        "resnet18": Case(lambda: _torchvision("resnet18"), image, annotated=lambda: _annotated("resnet18")),
        "mobilenet_v2": Case(lambda: _torchvision("mobilenet_v2"), image, annotated=lambda: _annotated("mobilenet_v2")),
        "efficientnet_lite0": Case(lambda: _timm("efficientnet_lite0"), image),
        "vit_tiny": Case(lambda: _timm("vit_tiny_patch16_224", img_size=image_size), image),
        "mlp": Case(_mlp, (784,), batch_factor=8, annotated=_annotated_mlp),
        "resnet50": Case(lambda: _torchvision("resnet50"), image, annotated=lambda: _annotated("resnet50")),
        "vit_b_16": Case(lambda: _torchvision("vit_b_16", image_size=image_size), image),
    }


def _torchvision(name: str, **settings: Any) -> nn.Module:
    from torchvision import models

    model: nn.Module = models.get_model(name, weights=None, **settings)
    return model


def _timm(name: str, **settings: Any) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UnavailableError("timm is not installed") from error
    model: nn.Module = timm.create_model(name, pretrained=False, **settings)
    return model


def _mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(784, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def _annotated(name: str) -> nn.Module:
    """torchvision's own; its MobileNetV2 has ReLU where the float one has ReLU6."""
    from torchvision.models import quantization

    model: nn.Module = getattr(quantization, name)(weights=None, quantize=False)
    model.train().fuse_model(is_qat=True)  # type: ignore[operator]
    return model


def _annotated_mlp() -> nn.Module:
    from torch.ao.quantization import QuantWrapper, fuse_modules_qat

    pairs = [["0", "1"], ["2", "3"], ["4", "5"]]
    wrapped: nn.Module = QuantWrapper(fuse_modules_qat(_mlp().train(), pairs))  # type: ignore[no-untyped-call]
    return wrapped


# ---- ways to train ----------------------------------------------------------------------------------------------


def _float(case: Case, x: Tensor) -> nn.Module:
    return case.build().to(x.device).train()


def _stock_fx(case: Case, x: Tensor) -> nn.Module:
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    with _quiet():
        model: nn.Module = prepare_qat_fx(_float(case, x), get_default_qat_qconfig_mapping(_STOCK_QCONFIG), (x,))
    return model.to(x.device)


def _stock_fx_frozen(case: Case, x: Tensor) -> nn.Module:
    from torch.ao.nn.intrinsic.qat import freeze_bn_stats
    from torch.ao.quantization import disable_observer

    model = _stock_fx(case, x)
    model(x)
    return model.apply(disable_observer).apply(freeze_bn_stats)


def _stock_eager(case: Case, x: Tensor) -> nn.Module:
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    if case.annotated is None:
        raise UnavailableError("no model with stubs")
    with _quiet():
        model = case.annotated().train()
        model.qconfig = get_default_qat_qconfig(_STOCK_QCONFIG)  # type: ignore[no-untyped-call]
        prepared: nn.Module = prepare_qat(model)  # type: ignore[no-untyped-call]
    return prepared.to(x.device)


def _lq(fake_quant: bool, observer: bool, freeze_bn: bool, save: str = "floats") -> Callable[[Case, Tensor], nn.Module]:
    def build(case: Case, x: Tensor) -> nn.Module:
        model = prepare(_float(case, x))
        set_saving(model, save)
        if freeze_bn and not any(isinstance(module, _BatchNorm) for module in model.modules()):
            raise UnavailableError("no BatchNorm")
        if fake_quant:
            set_phase(model, fake_quant=True, observer=True, freeze_bn=False)
            model(x)
        set_phase(model, fake_quant=fake_quant, observer=observer, freeze_bn=freeze_bn)
        return model

    return build


FLOAT = "float"
VARIANTS: dict[str, Callable[[Case, Tensor], nn.Module]] = {
    FLOAT: _float,
    "stock FX": _stock_fx,
    "stock FX, frozen": _stock_fx_frozen,
    "stock eager": _stock_eager,
    "lq, before start": _lq(False, False, False),
    "lq, observers on": _lq(True, True, False),
    "lq, observers off": _lq(True, False, False),
    "lq, BN frozen": _lq(True, False, True),
    "lq, observers on, bytes": _lq(True, True, False, "bytes"),
    "lq, BN frozen, bytes": _lq(True, False, True, "bytes"),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Stock quantization announces at every call that it is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass
class Step:
    """A training step: gradients to None, forward, cross entropy, backward, SGD; autocast if a precision is given.

    ``c``: whether lq's kernels in C may run.
    """

    model: Callable[[Tensor], Tensor]
    x: Tensor
    y: Tensor
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler
    c: bool = True

    @classmethod
    def of(
        cls, model: nn.Module, x: Tensor, y: Tensor, compiled: bool = False, precision: str = "32", c: bool = True
    ) -> Step:
        """A step of ``model``; the learning rate is low enough for thousands of steps on random data."""
        optimizer, dtype = torch.optim.SGD(model.parameters(), lr=1e-6), PRECISIONS[precision]
        scaler = torch.amp.GradScaler(x.device.type, enabled=dtype is torch.float16)
        return cls(torch.compile(model) if compiled else model, x, y, optimizer, dtype, scaler, c)

    def forward(self) -> Tensor:
        """The loss, multiplied by what the scaler has found; gradients to None."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.x.device.type, self.dtype, enabled=self.dtype is not None):
            loss = F.cross_entropy(self.model(self.x), self.y)
        return self.scaler.scale(loss)

    def forward_backward(self) -> Tensor:
        """The step but for its end; the gradients stay."""
        loss = self.forward()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def __call__(self) -> Tensor:
        with nullcontext() if self.c else native.off():
            loss = self.forward_backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss


def build(variant: str, case: Case, x: Tensor, precision: str = "32") -> nn.Module:
    """The model of a variant, every time with the same random weights, in training mode.

    Raises:
        UnavailableError: if this variant does not exist for this model, or does not run in this precision.
    """
    if variant.startswith("stock") and PRECISIONS[precision] is not None:
        raise UnavailableError("its observers take float32 only")
    torch.manual_seed(0)
    return VARIANTS[variant](case, x).train()
