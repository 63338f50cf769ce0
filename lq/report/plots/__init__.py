"""Pictures of what quantization does: functions from plain rows to matplotlib figures (extra ``plots``)."""

from lq.report.plots.layers import plot_sensitivity as plot_sensitivity
from lq.report.plots.layers import plot_sqnr as plot_sqnr
from lq.report.plots.models import plot_models as plot_models
from lq.report.plots.models import plot_overview as plot_overview
from lq.report.plots.tensors import plot_clipping as plot_clipping
from lq.report.plots.tradeoff import plot_tradeoff as plot_tradeoff
from lq.report.plots.training import plot_learning_rate as plot_learning_rate
from lq.report.plots.training import plot_metric as plot_metric
from lq.report.plots.training import plot_scale_drift as plot_scale_drift

__all__ = [
    "plot_clipping",
    "plot_learning_rate",
    "plot_metric",
    "plot_models",
    "plot_overview",
    "plot_scale_drift",
    "plot_sensitivity",
    "plot_sqnr",
    "plot_tradeoff",
]
