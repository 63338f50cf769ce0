"""What is uploaded: wheel and sdist build, say what they are, and bring everything that they need."""

from __future__ import annotations

import email
import importlib.util
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lq.core import native

ROOT = Path(__file__).parent.parent
NAME = "lightning-qat"
TEXTS = [
    path
    for folder in ("lq", "docs", "recipes", "notebooks")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md", ".yaml", ".ipynb")
] + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml", "Makefile")]


def test_nobody_is_told_to_install_a_strangers_package() -> None:
    lines = [(path, line) for path in TEXTS for line in path.read_text(encoding="utf-8").splitlines()]
    commands = [(path, part.split("`")[0]) for path, line in lines for part in line.split("pip install")[1:]]
    assert len(commands) > 10
    assert [(str(path), part) for path, part in commands if re.search(r"(^|[\s\"'])lq(\[|[\s\"'.]|$)", part)] == []


def test_the_extras_name_their_own_distribution() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'name = "{NAME}"' in text
    assert '"lq[' not in text


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    if not all(importlib.util.find_spec(name) for name in ("build", "hatchling")):
        pytest.skip("needs the packages build and hatchling")
    place = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.suffix: path for path in place.iterdir()}


@pytest.fixture(scope="module")
def metadata(built: dict[str, Path]) -> Message:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(wheel.read(name))


def test_the_metadata_that_is_shown(metadata: Message) -> None:
    assert metadata["Name"] == NAME
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    classifiers = metadata.get_all("Classifier") or []
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.10"} <= set(classifiers)
    extras = set(metadata.get_all("Provides-Extra") or [])
    assert {
        "vision",
        "demo",
        "plots",
        "onnx",
        "openvino",
        "pt2",
        "pt2e",
        "executorch",
        "litert",
        "mcu",
        "qnn",
        "dev",
        "docs",
    } == extras
    for requirement in metadata.get_all("Requires-Dist") or []:
        assert not re.match(r"lq\b", requirement), requirement


@pytest.mark.parametrize(
    ("python", "system", "machine", "missing"),
    [
        ("3.11", "linux", "x86_64", set()),
        ("3.14", "linux", "x86_64", {"ethos-u-vela"}),
        ("3.10", "linux", "x86_64", {"onnxruntime-qnn"}),
        ("3.12", "darwin", "arm64", {"ethos-u-vela", "onnxruntime-qnn", "tflite-micro"}),
    ],
)
def test_the_tests_ask_for_wheels_that_exist(
    metadata: Message, python: str, system: str, machine: str, missing: set[str]
) -> None:
    place = {"python_version": python, "sys_platform": system, "platform_machine": machine, "extra": "dev"}
    wanted = set()
    for requirement in map(Requirement, metadata.get_all("Requires-Dist") or []):
        if requirement.marker is None or requirement.marker.evaluate(place):
            wanted.add(requirement.name)
            assert requirement.name != "onnxruntime" or python != "3.10" or not requirement.specifier
    assert {"ethos-u-vela", "onnxruntime-qnn", "tflite-micro"} - wanted == missing


def test_what_is_inside(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = set(wheel.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lq").rglob("*.py")}
    assert modules <= names
    assert {"lq/py.typed", "lq/core/native/kernels.c"} <= names
    assert {name.split("/")[0] for name in names} == {"lq", next(n.split("/")[0] for n in names if "dist-info" in n)}
    with tarfile.open(built[".gz"]) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md", "CITATION.cff", "pyproject.toml"} <= sources
    assert "tests/test_packaging.py" in sources


def test_the_index_will_take_it(built: dict[str, Path]) -> None:
    if not importlib.util.find_spec("twine"):
        pytest.skip("needs the package twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.values())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_is_imported_from_an_empty_place(built: dict[str, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        wheel.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import lq; print(lq.__file__, lq.QATCallback().schedule);"
        "from lq.core import native; print(native.library().reason)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
    assert done.stdout.splitlines()[-1] == native.library().reason
