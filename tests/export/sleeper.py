"""A module for a worker that does not end by itself."""

import os
import time
from pathlib import Path


def main(place: str) -> None:
    """Say who it is, and sleep."""
    Path(place, "waiting").write_text(str(os.getpid()))
    Path(place, "waiting").rename(Path(place, "pid"))
    time.sleep(120)
