"""Executes the notebooks and stores them with their outputs: ``python notebooks/run.py [NAME ...]``.

What does not read well elsewhere is left out: logs, progress bars, and paths of the machine.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
LARGEST = 200_000  # bytes of one output
_TEMPORARY = re.compile(re.escape(tempfile.gettempdir()) + r"/[\w./-]+/")
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


def executed(path: Path, directory: Path, kernel: Any = None) -> Any:
    """The notebook with the outputs of a run in a directory, by a kernel of its own unless one is given."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(directory)}}
    client = NotebookClient(notebook, km=kernel, timeout=300, kernel_name="python3", resources=resources)
    found = client.execute()
    if kernel is not None:
        client.kc.stop_channels()
    return found


def source_of(notebook: Any) -> str:
    """Checksum of the code, which says whether stored outputs are those of this code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def tidied(notebook: Any) -> Any:
    """A notebook as it is stored."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [_output(output) for output in cell.outputs if _is_worth_reading(output)]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "lq": {"source": source_of(notebook)},
    }
    return notebook


def _is_worth_reading(output: Any) -> bool:
    """No logs, and no objects that are shown by their address."""
    shown = output.get("data", {})
    is_address = "image/png" not in shown and " at 0x" in shown.get("text/plain", "")
    return not is_address and output.get("name") != "stderr"


def _output(output: Any) -> Any:
    """Plain text and pictures, each once."""
    if output.output_type == "stream":
        output.text = _plain(output.text)
    elif "image/png" in output.get("data", {}):
        output.data = {"image/png": output.data["image/png"]}
    else:
        output.data = {"text/plain": _plain(output.data["text/plain"])}
    return output


def _plain(text: str) -> str:
    lines = _COLOR.sub("", _TEMPORARY.sub("", text)).splitlines(keepends=True)
    return "".join(line.rstrip(" \n") + "\n" * line.endswith("\n") for line in lines)


def main(names: Iterable[str]) -> None:
    """Run the notebooks of these names, or all."""
    for path in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as directory:
            nbformat.write(tidied(executed(path, Path(directory))), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
