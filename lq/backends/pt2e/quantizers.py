"""The quantizers of torchao's PT2E flow, by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from lq.backends.pt2e.vendors import VENDORS
from lq.config.qconfig import QConfig


def make_quantizer(qconfig: QConfig) -> Any:
    """The quantizer that ``qconfig.quantizer`` names, made with ``qconfig.quantizer_options``.

    Raises:
        ImportError: if torchao, or a package that the quantizer needs, is not installed.
        ValueError: if there is no such name, or it makes no quantizer.

    Example:
        >>> type(make_quantizer(QConfig(backend="pt2e", quantizer="x86_inductor"))).__name__
        'X86InductorQuantizer'
        >>> make_quantizer(QConfig(backend="pt2e", quantizer="MyQuantizer"))
        Traceback (most recent call last):
            ...
        ValueError: quantizer='MyQuantizer' is neither one of ['x86_inductor', ...] nor a dotted path ...
    """
    try:
        importlib.import_module("torchao.quantization.pt2e")
    except ImportError as error:
        raise ImportError(
            f"backend='pt2e' takes its quantizers from torchao.quantization.pt2e, which cannot be imported ({error}): "
            "pip install -U torchao."
        ) from error
    vendor = VENDORS.get(qconfig.quantizer)
    make = vendor.make if vendor is not None else _imported(qconfig.quantizer)
    try:
        quantizer = make(**qconfig.quantizer_options)
    except ImportError as error:
        if vendor is None:
            raise
        raise ImportError(
            f"quantizer={qconfig.quantizer!r} cannot be imported ({error}): pip install {vendor.needs}."
        ) from error
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
            f"quantizer={path!r} is neither one of {list(VENDORS)} nor a dotted path such as 'my_package.MyQuantizer'."
        )
    found: Any = getattr(importlib.import_module(home), name, None)
    if not callable(found):
        raise ValueError(f"quantizer={path!r}: {home} has nothing of that name that can be called.")
    return found  # type: ignore[no-any-return]
