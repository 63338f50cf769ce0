"""How good a model is, and how close two versions of it are."""

from lq.metrics.comparison import ModelComparison, classification_metric, metric_name
from lq.metrics.fidelity import SQNR, MaxAbsError, Top1Agreement, max_abs_error, sqnr, top1_agreement
from lq.metrics.outputs import main_tensor, targets_of

__all__ = [
    "SQNR",
    "MaxAbsError",
    "ModelComparison",
    "Top1Agreement",
    "classification_metric",
    "main_tensor",
    "max_abs_error",
    "metric_name",
    "sqnr",
    "targets_of",
    "top1_agreement",
]
