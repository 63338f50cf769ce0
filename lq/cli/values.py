"""Checks of numbers and places that options name, before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path


def check_counts(**counts: int | None) -> None:
    """Refuse numbers below 1; ``None`` stands for an option that was left out.

    Args:
        counts: option to its value.

    Raises:
        ValueError: if one is below 1.

    Example:
        >>> check_counts(batches=0)
        Traceback (most recent call last):
        ...
        ValueError: --batches 0 must be at least 1.
    """
    for option, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"--{option} {value} must be at least 1.")


def check_folder(option: str, path: str) -> None:
    """Refuse a place that no directory can be made at.

    Raises:
        ValueError: if the place, or one that it lies in, is a file, or nothing can be written there.

    Example:
        >>> check_folder("out", "analysis")
    """
    place = Path(path)
    nearest = next(folder for folder in (place, *place.absolute().parents) if folder.exists() or folder.is_symlink())
    if not nearest.is_dir():
        raise ValueError(f"--{option} {path}: {nearest} is not a directory; give another path.")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"--{option} {path}: you may not write in {nearest}; give another path.")


def check_file(option: str, path: str | None, example: str) -> None:
    """Refuse a place that no file can be written at; ``None`` stands for an option that was left out.

    Raises:
        ValueError: if it is a directory, or as :func:`check_folder` for the directory that it lies in.

    Example:
        >>> check_file("out", ".", "report.html")
        Traceback (most recent call last):
        ...
        ValueError: --out . is a directory; give a file, such as report.html.
    """
    if path is None:
        return
    place = Path(path)
    if place.is_dir():
        raise ValueError(f"--{option} {path} is a directory; give a file, such as {(place / example).as_posix()}.")
    if place.is_file():
        if not os.access(place, os.W_OK):
            raise ValueError(f"--{option}: you may not write {path}; give another path.")
        return
    check_folder(option, str(place.parent))
