"""How good a model is, and how close two versions of it are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lq.lazy import lazy_names
from lq.metrics.detections import detection_agreement
from lq.metrics.fidelity import max_abs_error, sqnr, top1_agreement
from lq.metrics.outputs import main_tensor, targets_of

if TYPE_CHECKING:
    from lq.metrics.accumulated import SQNR as SQNR
    from lq.metrics.accumulated import DetectionAgreement as DetectionAgreement
    from lq.metrics.accumulated import MaxAbsError as MaxAbsError
    from lq.metrics.accumulated import Top1Agreement as Top1Agreement
    from lq.metrics.comparison import ModelComparison as ModelComparison
    from lq.metrics.comparison import classification_metric as classification_metric
    from lq.metrics.comparison import metric_name as metric_name

__all__ = [
    "SQNR",
    "DetectionAgreement",
    "MaxAbsError",
    "ModelComparison",
    "Top1Agreement",
    "classification_metric",
    "detection_agreement",
    "main_tensor",
    "max_abs_error",
    "metric_name",
    "sqnr",
    "targets_of",
    "top1_agreement",
]

# These import torchmetrics, which takes longer than torch; processes that only run a model do without.
_HOMES = {
    "DetectionAgreement": "lq.metrics.accumulated",
    "SQNR": "lq.metrics.accumulated",
    "MaxAbsError": "lq.metrics.accumulated",
    "ModelComparison": "lq.metrics.comparison",
    "Top1Agreement": "lq.metrics.accumulated",
    "classification_metric": "lq.metrics.comparison",
    "metric_name": "lq.metrics.comparison",
}
__getattr__ = lazy_names(__name__, _HOMES)
