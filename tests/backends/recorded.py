"""A call of a module as backends get it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lq.backends.base import Recorded
from lq.config.qconfig import QConfig
from lq.instrument.record import record
from lq.tracing.labels import labels_of
from lq.tracing.layers import LayerFinder


def recorded(
    net: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    qconfig: QConfig | None = None,
    stubs: bool = False,
) -> Recorded:
    """Record a call with these inputs."""
    qconfig, named = qconfig or QConfig(), dict(kwargs or {})
    recorder = record(net, args, named, stubs).evaluation
    graph, labels = recorder.graph, labels_of(recorder.calls, dict(net.named_modules(remove_duplicate=False)))
    return Recorded(net, graph, qconfig, LayerFinder(graph, net, qconfig), labels, (args, named))
