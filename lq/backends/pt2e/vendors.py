"""Vendors' quantizers by name: each with the defaults of its vendor, and configured for QAT if it has such a switch."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

TORCHAO = "torchao"
EXECUTORCH = "'lightning-qat[executorch]'"


@dataclass(frozen=True)
class Vendor:
    """How a quantizer is made.

    Args:
        make: takes ``quantizer_options``.
        needs: what ``pip install`` gets if something cannot be imported.

    Example:
        >>> VENDORS["ethos_u"].needs
        "'executorch[ethos-u]'"
        >>> type(VENDORS["x86_inductor"].make()).__name__
        'X86InductorQuantizer'
    """

    make: Callable[..., Any]
    needs: str = EXECUTORCH


def _torchao(name: str, vendor: str, options: Mapping[str, Any]) -> Any:
    home = importlib.import_module(f"torchao.quantization.pt2e.quantizer.{name}_quantizer")
    config = getattr(home, f"get_default_{name}_quantization_config")(**{"is_qat": True, **options})
    return getattr(home, f"{vendor}Quantizer")().set_global(config)


def _x86_inductor(**options: Any) -> Any:
    return _torchao("x86_inductor", "X86Inductor", options)


def _arm_inductor(**options: Any) -> Any:
    return _torchao("arm_inductor", "ArmInductor", options)


def _xnnpack(**options: Any) -> Any:
    try:
        home = importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    except ImportError:
        home = importlib.import_module("torchao.testing.pt2e._xnnpack_quantizer")
    config = home.get_symmetric_quantization_config(**{"is_per_channel": True, "is_qat": True, **options})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "XNNPACKQuantizer is deprecated")  # torchao's; that of executorch is not
        return home.XNNPACKQuantizer().set_global(config)


def _arm(name: str, compile_spec: Any, options: Mapping[str, Any]) -> Any:
    home = importlib.import_module("executorch.backends.arm.quantizer")
    config = home.get_symmetric_quantization_config(**{"is_qat": True, **options})
    return getattr(home, name)(compile_spec).set_global(config)


def _ethos_u(target: str = "ethos-u55-128", **options: Any) -> Any:
    home = importlib.import_module("executorch.backends.arm.ethosu")
    return _arm("EthosUQuantizer", home.EthosUCompileSpec(target), options)


def _vgf(tosa_spec: str | None = None, **options: Any) -> Any:
    home = importlib.import_module("executorch.backends.arm.vgf")
    return _arm("VgfQuantizer", home.VgfCompileSpec(tosa_spec), options)


def _tosa(tosa_spec: str = "TOSA-1.0+INT", **options: Any) -> Any:
    home = importlib.import_module("executorch.backends.arm.tosa")
    return _arm("TOSAQuantizer", home.TosaSpecification.create_from_string(tosa_spec), options)


def _cortex_m(use_explicit_layout: bool = True, **options: Any) -> Any:
    """Without an explicit layout it leaves convolutions in float unless the example is in channels_last."""
    home = importlib.import_module("executorch.backends.cortex_m.quantizer.quantizer")
    return home.CortexMQuantizer(use_explicit_layout=use_explicit_layout, **options)


def _qnn(quant_dtype: str = "use_8a8w", **options: Any) -> Any:
    home = importlib.import_module("executorch.backends.qualcomm.quantizer.quantizer")
    quantizer = home.QnnQuantizer()
    settings = {"is_qat": True, "is_conv_per_channel": True, "is_linear_per_channel": True, **options}
    quantizer.set_default_quant_config(_member(home.QuantDtype, quant_dtype), **settings)
    return quantizer


def _coreml(**options: Any) -> Any:
    home = importlib.import_module("executorch.backends.apple.coreml.quantizer")
    configs = importlib.import_module("coremltools.optimize.torch.quantization")
    config = configs.ModuleLinearQuantizerConfig.from_dict(options)
    return home.CoreMLQuantizer(configs.LinearQuantizerConfig(global_config=config))


def _openvino(mode: str = "INT8_SYM", **options: Any) -> Any:
    """With one scale for each activation, even of a depthwise convolution: lq has no others."""
    home = importlib.import_module("executorch.backends.openvino.quantizer")
    parameters = importlib.import_module("nncf.quantization.advanced_parameters").QuantizationParameters
    settings = {} if "WO" in mode else {"activations_quantization_params": parameters(per_channel=False)}
    return home.OpenVINOQuantizer(mode=_member(home.QuantizationMode, mode), **{**settings, **options})


def _samsung(precision: str = "A8W8", **options: Any) -> Any:
    home = importlib.import_module("executorch.backends.samsung.quantizer")
    quantizer = home.EnnQuantizer()
    settings = {"is_per_channel": True, "is_qat": True, **options}
    quantizer.setup_quant_params(_member(home.Precision, precision), **settings)
    return quantizer


def _cadence(name: str = "CadenceFusedConvReluQuantizer", **options: Any) -> Any:
    """With the symmetric weights that it has for convolutions in linear layers, too: lq has no others."""
    home = importlib.import_module("executorch.backends.cadence.aot.quantizer.quantizer")
    quantizer = getattr(home, name)(**{"is_qat": True, **options})
    for part in quantizer.quantizers:
        config = part.quantization_config
        if config.weight.qscheme == torch.per_tensor_affine:
            part.quantization_config = replace(
                config, weight=replace(config.weight, qscheme=torch.per_tensor_symmetric)
            )
    return quantizer


def _member(choices: Any, name: str) -> Any:
    """The member of an enumeration, which YAML can only name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in choices.__members__:
        raise ValueError(f"Unknown {choices.__name__} {name!r}. Choose one of {list(choices.__members__)}.")
    return choices[name]


VENDORS: Mapping[str, Vendor] = {
    "x86_inductor": Vendor(_x86_inductor, TORCHAO),
    "arm_inductor": Vendor(_arm_inductor, TORCHAO),
    "xnnpack": Vendor(_xnnpack, TORCHAO),
    "ethos_u": Vendor(_ethos_u, "'executorch[ethos-u]'"),
    "vgf": Vendor(_vgf, "'executorch[vgf]'"),
    "tosa": Vendor(_tosa, "'executorch[ethos-u]'"),
    "cortex_m": Vendor(_cortex_m, "'executorch[ethos-u]'"),
    "qnn": Vendor(_qnn),
    "coreml": Vendor(_coreml),
    "openvino": Vendor(_openvino, "'executorch[openvino]' nncf"),
    "samsung": Vendor(_samsung),
    "cadence": Vendor(_cadence),
}
