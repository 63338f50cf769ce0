"""What is exported, where to, and how closely it has to agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lq.checks import shown
from lq.deployment.destination import Destination
from lq.export.artifact.directory import AnyPath
from lq.export.exporters import EXPORTERS, Chosen, ExporterChoice, chosen
from lq.export.parity.gate import Gate
from lq.tracing.axes import Axes, DynamicAxes, checked_axes

DEFAULT_EXPORTERS: tuple[ExporterChoice, ...] = ("torch",)


@dataclass(frozen=True)
class ExportSettings:
    """What is to be delivered, checked when it is made.

    Args:
        exporters: names from :data:`lq.export.exporters.EXPORTERS`, or ``{name: options}``.
        gate: what each artifact has to reach.
        directory: where to write, as a path, a URL or a :class:`~lq.deployment.destination.Destination` from before the
            training; ``None`` writes nothing.
        manifest: what else ``lq.json`` shall hold.
        dynamic_axes: for each input, dimensions beside the batch whose size each file shall leave open, as a list or
            as a mapping to names: ``{"x": {2: "height", 3: "width"}}``.

    Raises:
        TypeError: for ``dynamic_axes`` of another form.
        ValueError: for no exporter, an unknown exporter or option, or for dynamic axes where no exporter's files can
            have any.
        ImportError: if an exporter needs a package that is not installed.

    Example:
        >>> settings = ExportSettings(["torch", {"pt2": {}}], Gate(min_sqnr_db=30), dynamic_axes={"x": [2]})
        >>> [choice.name for choice in settings.choices], settings.axes
        (['torch', 'pt2'], {'x': {2: ''}})
        >>> ExportSettings([])
        Traceback (most recent call last):
        ValueError: exporters=[] would leave no model; write exporters=['torch'], or leave the argument out.
    """

    exporters: Sequence[ExporterChoice] = DEFAULT_EXPORTERS
    gate: Gate = field(default_factory=Gate)
    directory: AnyPath | Destination | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    dynamic_axes: DynamicAxes | None = None

    def __post_init__(self) -> None:
        choices = chosen(self.exporters)
        if not choices:
            raise ValueError("exporters=[] would leave no model; write exporters=['torch'], or leave the argument out.")
        if self.axes and all(choice.exporter.static for choice in choices):
            names = ", ".join(choice.name for choice in choices)
            able = ", ".join(exporter.name for exporter in EXPORTERS.values() if not exporter.static)
            raise ValueError(
                f"dynamic_axes={shown(self.dynamic_axes)}, but files of {names} hold the sizes of the example. Add one "
                f"of {able} to the exporters, or leave dynamic_axes out."
            )

    @property
    def choices(self) -> list[Chosen]:
        """The exporters."""
        return chosen(self.exporters)

    @property
    def axes(self) -> Axes:
        """The dynamic axes."""
        return checked_axes(self.dynamic_axes)
