"""Every notebook runs from top to bottom, and is stored with the outputs of such a run."""

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location("run_notebooks", NOTEBOOKS[0].with_name("run.py"))
run = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(run)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


ABSOLUTE = re.compile(r"(?<![\w.:/])/\w[\w.-]*/")  # a path of the machine that made the output


# One kernel for all, because each start imports PyTorch and Lightning anew. The gate runs there, and no stopwatch:
# `make notebooks` and the demo in test_recipes.py have those.
START = "import pytest; from tests.tiny import quicken_deployment; quicken_deployment(pytest.MonkeyPatch())"


def in_kernel(kernel: KernelManager, code: str) -> None:
    client = kernel.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    reply = client.execute(code, reply=True)
    client.stop_channels()
    assert reply["content"]["status"] == "ok", reply["content"]


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    )
    in_kernel(manager, START)
    yield manager
    manager.shutdown_kernel(now=True)


@each_notebook
def test_notebook_runs(path, tmp_path, kernel):
    in_kernel(kernel, f"%reset -f\nimport os; os.chdir({str(tmp_path)!r}); del os")
    cells = code_cells(run.executed(path, tmp_path, kernel))
    assert cells
    assert all(cell.execution_count for cell in cells)


@each_notebook
def test_stored_outputs_are_those_of_the_stored_cells(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.get("lq", {}).get("source") == run.source_of(notebook), (
        f"the cells have changed: python notebooks/run.py {path.stem}"
    )
    assert any(cell.outputs for cell in code_cells(notebook))


@each_notebook
def test_stored_outputs_are_small_and_those_of_any_machine(path):
    for cell in code_cells(nbformat.read(path, as_version=4)):
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data", "execute_result")
            assert len(str(output)) < run.LARGEST
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert not ABSOLUTE.search(text)
