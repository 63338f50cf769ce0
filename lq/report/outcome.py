"""What came of a deployment, on the terminal."""

from __future__ import annotations

from lightning_utilities.core.rank_zero import rank_zero_info

from lq.deployment.results import Deployment
from lq.report.table import print_table


def print_deployment(done: Deployment) -> None:
    """Print the closing table, and log the notes and where the artifact is.

    Args:
        done: the deployment.

    Example:
        >>> print_deployment(Deployment(rows=[{"model": "int8 torch", "metrics": {"accuracy": 0.9}}]))
        <BLANKLINE>
        ... model       accuracy ...
        ... int8 torch    0.9000 ...
        <BLANKLINE>
    """
    print_table(done.rows)
    for note in done.notes:
        rank_zero_info(f"lq: {note}")
    if done.directory is not None:
        rank_zero_info(f"lq: artifact in {done.directory}")
