"""Post-training quantization: no training, ranges from a few batches; the baseline that QAT has to beat."""

from lq.ptq.calibrate import calibrate as calibrate
from lq.ptq.dynamic import quantize_dynamic as quantize_dynamic
from lq.ptq.static import StaticOptions as StaticOptions
from lq.ptq.static import prepare_static as prepare_static
from lq.ptq.static import quantize_static as quantize_static

__all__ = ["StaticOptions", "calibrate", "prepare_static", "quantize_dynamic", "quantize_static"]
