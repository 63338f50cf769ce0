"""The quantizers of torchao's PT2E flow, by name."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from lq.config.qconfig import QConfig


def make_quantizer(qconfig: QConfig) -> Any:
    """The quantizer that ``qconfig.quantizer`` names, made with ``qconfig.quantizer_options``.

    Raises:
        ImportError: if torchao, or the package that a dotted path begins with, is not installed.
        ValueError: if there is no such name, or it makes no quantizer.
    """
    try:
        importlib.import_module("torchao.quantization.pt2e")
    except ImportError as error:
        raise ImportError(
            f"backend='pt2e' takes its quantizers from torchao.quantization.pt2e, which cannot be imported ({error}): "
            "pip install -U torchao."
        ) from error
    make = QUANTIZERS.get(qconfig.quantizer) or _imported(qconfig.quantizer)
    try:
        quantizer = make(**qconfig.quantizer_options)
    except TypeError as error:
        raise ValueError(
            f"quantizer_options={qconfig.quantizer_options} do not fit {qconfig.quantizer}: {error}."
        ) from error
    if not hasattr(quantizer, "annotate"):
        raise ValueError(
            f"quantizer={qconfig.quantizer!r} makes a {type(quantizer).__name__}, which has no annotate(); give the "
            "path of a class derived from torchao.quantization.pt2e.quantizer.Quantizer, or of a function that returns "
            "one."
        )
    return quantizer


def _imported(path: str) -> Callable[..., Any]:
    home, _, name = path.rpartition(".")
    if not home:
        raise ValueError(
            f"quantizer={path!r} is neither one of {sorted(QUANTIZERS)} nor a dotted path such as "
            "'my_package.MyQuantizer'."
        )
    found: Any = getattr(importlib.import_module(home), name, None)
    if not callable(found):
        raise ValueError(f"quantizer={path!r}: {home} has nothing of that name that can be called.")
    return found  # type: ignore[no-any-return]


def _x86_inductor(**options: Any) -> Any:
    home = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    config = home.get_default_x86_inductor_quantization_config(is_qat=True, **options)
    return home.X86InductorQuantizer().set_global(config)


def _xnnpack(**options: Any) -> Any:
    try:
        home = importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    except ImportError:
        home = importlib.import_module("torchao.testing.pt2e._xnnpack_quantizer")
    config = home.get_symmetric_quantization_config(**{"is_per_channel": True, "is_qat": True, **options})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "XNNPACKQuantizer is deprecated")  # torchao's; that of executorch is not
        return home.XNNPACKQuantizer().set_global(config)


QUANTIZERS: Mapping[str, Callable[..., Any]] = {"x86_inductor": _x86_inductor, "xnnpack": _xnnpack}
