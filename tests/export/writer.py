"""A module for a worker that says which lq it runs."""

from pathlib import Path

import torch

import lq


def main(made: str) -> None:
    """Write it down."""
    assert torch.ones(1).item() == 1
    Path(made).write_text(str(lq.__file__))
