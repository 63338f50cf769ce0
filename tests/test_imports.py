import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "lq").rglob("*.py"))
HEAVY = ("executorch", "torchvision", "matplotlib", "onnx", "onnxruntime", "torchao", "sklearn", "timm")


def names_imported_from_the_root(source: str) -> list[int]:
    """Lines of a module that import from `lq` itself rather than from one of its modules."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            at_root = any(alias.name == "lq" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            at_root = node.module == "lq" or node.level > 0
        else:
            continue
        if at_root:
            lines.append(node.lineno)
    return lines


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_import_is_light():
    code = f"import sys, lq; print([name for name in {HEAVY} if name in sys.modules])"
    assert run(code) == "[]"


def test_processes_that_run_an_artifact_import_what_they_need_only():
    modules = "lq.export.parity.worker, lq.timing.stopwatch"
    code = f"import sys, {modules}; print({{'torchmetrics', 'lightning', 'sympy'}} & {{*sys.modules}})"
    assert run(code) == "set()"


def test_public_names_exist():
    code = """import lq, lq.metrics
print([name for package in (lq, lq.metrics) for name in package.__all__ if not hasattr(package, name)])
print(len(lq.__all__) > 0, len(lq.metrics.__all__) > 0)"""
    assert run(code) == "[]\nTrue True"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_imports_from_the_root(module):
    assert names_imported_from_the_root(module.read_text()) == []


def test_the_check_itself_finds_what_it_looks_for():
    wrong = "import lq\nfrom lq import QConfig\nfrom . import x\n"
    source = wrong + "from lq.config.qconfig import QConfig\nimport lq.config.qconfig\n"
    assert names_imported_from_the_root(source) == [1, 2, 3]


def test_imports_flow_downwards():
    """The layers are in pyproject.toml, under [tool.importlinter]."""
    result = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
