"""What is exported, where to, and how closely it has to agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lq.deployment.destination import Destination
from lq.export.artifact.directory import AnyPath
from lq.export.exporters import Choice, Chosen, chosen
from lq.export.parity.gate import Gate

DEFAULT_EXPORTERS: tuple[Choice, ...] = ("torch",)


@dataclass(frozen=True)
class ExportSettings:
    """What is to be delivered, checked when it is made.

    Args:
        exporters: names from :data:`lq.export.exporters.EXPORTERS`, or ``{name: options}``.
        gate: what each artifact has to reach.
        directory: where to write, as a path, a URL or a :class:`~lq.deployment.destination.Destination` from before the
            training; ``None`` writes nothing.
        manifest: what else ``lq.json`` shall hold.

    Raises:
        ValueError: for an unknown exporter or option.
        ImportError: if an exporter needs a package that is not installed.
    """

    exporters: Sequence[Choice] = DEFAULT_EXPORTERS
    gate: Gate = field(default_factory=Gate)
    directory: AnyPath | Destination | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chosen(self.exporters)

    @property
    def choices(self) -> list[Chosen]:
        """The exporters."""
        return chosen(self.exporters)
