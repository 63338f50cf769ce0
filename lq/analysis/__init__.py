"""What quantization does to a model, tensor by tensor and layer by layer; everything comes out as plain rows."""

from lq.analysis.auto_exclude import AutoExclude as AutoExclude
from lq.analysis.auto_exclude import find_exclusions as find_exclusions
from lq.analysis.compare import compare as compare
from lq.analysis.costs import layer_costs as layer_costs
from lq.analysis.exclusions import Exclusions as Exclusions
from lq.analysis.exclusions import propose_exclusions as propose_exclusions
from lq.analysis.layers import LayerAnalysis as LayerAnalysis
from lq.analysis.layers import analyze_layers as analyze_layers
from lq.analysis.model_table import CompareOptions as CompareOptions
from lq.analysis.ranges import activation_scales as activation_scales
from lq.analysis.ranges import range_statistics as range_statistics
from lq.analysis.sensitivity import SensitivityOptions as SensitivityOptions
from lq.analysis.sensitivity import most_sensitive as most_sensitive
from lq.analysis.sensitivity import sensitivity as sensitivity
from lq.analysis.sqnr import sqnr_per_layer as sqnr_per_layer

__all__ = [
    "AutoExclude",
    "CompareOptions",
    "Exclusions",
    "LayerAnalysis",
    "SensitivityOptions",
    "activation_scales",
    "analyze_layers",
    "compare",
    "find_exclusions",
    "layer_costs",
    "most_sensitive",
    "propose_exclusions",
    "range_statistics",
    "sensitivity",
    "sqnr_per_layer",
]
