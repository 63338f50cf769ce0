"""The log of a training, as rows."""

from __future__ import annotations

import csv
import os
from pathlib import Path


def read_history(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    r"""Read what Lightning's CSVLogger wrote.

    Args:
        path: ``metrics.csv``, or the directory that holds it.

    Returns:
        a row per line, only with the columns that it fills.

    Raises:
        FileNotFoundError: if there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "metrics.csv").write_text("epoch,step,qat/fake/accuracy\n0,9,0.5\n1,19,\n")
        ...     read_history(folder)
        [{'epoch': 0.0, 'step': 9.0, 'qat/fake/accuracy': 0.5}, {'epoch': 1.0, 'step': 19.0}]
    """
    file = Path(path) / "metrics.csv" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; give the log_dir of a run with Lightning's CSVLogger.")
    with file.open(newline="", encoding="utf-8") as stream:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]
