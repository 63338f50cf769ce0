"""Quantization-aware training for PyTorch Lightning.

Public names are imported when they are first used, so that ``import lq`` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lq.lazy import lazy_names

if TYPE_CHECKING:
    from lq.analysis.auto_exclude import AutoExclude as AutoExclude
    from lq.analysis.bits import AutoBits as AutoBits
    from lq.analysis.bits import choose_bits as choose_bits
    from lq.backends.prepare import plan_of as plan_of
    from lq.backends.prepare import prepare as prepare
    from lq.backends.prepare import set_phase as set_phase
    from lq.backends.saving import set_saving as set_saving
    from lq.callback import QATCallback as QATCallback
    from lq.callback.distillation import Distillation as Distillation
    from lq.checkpoints.checkpoint import load_checkpoint as load_checkpoint
    from lq.config.qconfig import LayerQConfig as LayerQConfig
    from lq.config.qconfig import QConfig as QConfig
    from lq.config.schedule import QATSchedule as QATSchedule
    from lq.config.specs import ActivationSpec as ActivationSpec
    from lq.config.specs import WeightSpec as WeightSpec
    from lq.conversion.convert import convert as convert
    from lq.core.copies import unsharded as unsharded
    from lq.deployment.deploy import export_artifact as export_artifact
    from lq.export.artifact.int8_model import load as load
    from lq.export.parity.gate import Gate as Gate
    from lq.ptq import StaticOptions as StaticOptions
    from lq.ptq import prepare_static as prepare_static
    from lq.ptq import quantize_dynamic as quantize_dynamic
    from lq.ptq import quantize_static as quantize_static
    from lq.ptq.calibrate import calibrate as calibrate
    from lq.timing.bench import bench as bench

__version__ = "0.1.0"

_HOMES = {
    "ActivationSpec": "lq.config.specs",
    "AutoBits": "lq.analysis.bits",
    "AutoExclude": "lq.analysis.auto_exclude",
    "Distillation": "lq.callback.distillation",
    "LayerQConfig": "lq.config.qconfig",
    "QATCallback": "lq.callback",
    "QATSchedule": "lq.config.schedule",
    "QConfig": "lq.config.qconfig",
    "StaticOptions": "lq.ptq",
    "WeightSpec": "lq.config.specs",
    "bench": "lq.timing.bench",
    "convert": "lq.conversion.convert",
    "calibrate": "lq.ptq",
    "choose_bits": "lq.analysis.bits",
    "export_artifact": "lq.deployment.deploy",
    "Gate": "lq.export.parity.gate",
    "load": "lq.export.artifact.int8_model",
    "load_checkpoint": "lq.checkpoints.checkpoint",
    "plan_of": "lq.backends.prepare",
    "prepare": "lq.backends.prepare",
    "prepare_static": "lq.ptq",
    "quantize_dynamic": "lq.ptq",
    "quantize_static": "lq.ptq",
    "set_phase": "lq.backends.prepare",
    "set_saving": "lq.backends.saving",
    "unsharded": "lq.core.copies",
}
__all__ = ["__version__", *sorted(_HOMES)]

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
