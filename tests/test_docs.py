"""What the documentation shows is executed, or at least exists."""

import ast
import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import lightning as L
import pytest
import torch
import yaml

import lq
import lq.analysis
import lq.metrics
from lq import QATCallback
from lq.cli.subcommands import DOCTOR, OF_LIGHTNING
from lq.cli.trainer import QATTrainer
from lq.data import DigitsDataModule
from lq.models import DigitsClassifier
from tests.tiny import quicken_deployment

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("recipes/**/*.md")),
]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SETTINGS = set(inspect.signature(QATCallback).parameters)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text()) if language in languages]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/how_to/segmentation.md"])
def test_the_pages_that_start_people_off_have_python_to_run(page):
    assert blocks(ROOT / page, "python")


# Lightning says so whenever a run is resumed in a new version directory.
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@each_page
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other; `L`, `module` and `datamodule` are the reader's own.

    The README's have the gate and the stopwatch in processes of their own, as its reader has.
    """
    if page.name != "README.md":
        quicken_deployment(monkeypatch)
    monkeypatch.chdir(tmp_path)
    names = {"L": L, "module": DigitsClassifier(width=4), "datamodule": DigitsDataModule(batch_size=16)}
    for block in blocks(page, "python"):
        try:
            exec(compile(block, str(page), "exec"), names)
        except ImportError as error:
            if "lightning-qat[" not in str(error):  # an extra that this machine has no packages for
                raise
            pytest.skip(str(error))


def test_the_script_for_several_processes_runs_in_two(tmp_path):
    (script,) = [block for block in blocks(ROOT / "docs/how_to/functions.md", "py") if "init_process_group" in block]
    (tmp_path / "train_ddp.py").write_text(script)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train_ddp.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(start, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert lq.load(tmp_path / "int8")(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@each_page
def test_yaml_blocks_are_settings(page):
    """What a block gives to the callback is taken by it."""
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(block)
        assert isinstance(content, dict)
        given = [content] if content.keys() <= SETTINGS else []
        callbacks = content.get("callbacks", []) + content.get("trainer", {}).get("callbacks", [])
        given += [entry.get("init_args", {}) for entry in callbacks]
        assert given, f"neither settings of QATCallback nor a trainer: {sorted(content)}"
        for settings in given:
            QATCallback(**{key: value for key, value in settings.items() if key != "metric"})


@each_page
def test_recipes_and_targets_that_are_named_exist(page):
    text = page.read_text()
    for recipe in re.findall(r"recipes/[\w/]+\.yaml", text):
        assert (ROOT / recipe).is_file(), recipe
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE):
        assert target in targets, target


@each_page
def test_commands_that_are_named_exist(page):
    commands = [line for block in blocks(page, "") for line in re.findall(r"^lq (.+)$", block, re.MULTILINE)]
    for command in commands + re.findall(r"`lq ([^`]+)`", page.read_text()):
        verb, *words = command.split()
        if verb in (*OF_LIGHTNING, *DOCTOR, "...", "COMMAND"):
            continue
        options = set(inspect.signature(getattr(QATTrainer, verb)).parameters) | {"config", "data", "debug", "help"}
        assert {word[2:] for word in words if re.fullmatch(r"--\w+", word)} <= options
    for module in re.findall(r"python -m ((?:benchmarks|tests)[\w.]*)", page.read_text()):
        assert importlib.util.find_spec(module), module


@each_page
def test_functions_and_classes_that_are_named_exist(page):
    called = set(re.findall(r"(?<![\w.])lq\.(\w+)\(", page.read_text()))
    assert called <= set(lq.__all__)


def test_the_table_for_users_of_torch_ao_names_what_there_is():
    import torch.ao.nn.intrinsic.qat
    import torch.ao.quantization.quantize_fx

    pt2e = pytest.importorskip("torchao.quantization.pt2e")
    quantize_pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    stock = torch.ao.quantization
    homes = (stock, stock.quantize_fx, stock.MinMaxObserver, torch.ao.nn.intrinsic.qat, pt2e, quantize_pt2e)
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/how_to/torch_ao.md").read_text(), re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`(\w+)[`(]", row)}
    names -= {"qint8", "quant_min", "quant_max", "per_channel_symmetric", "_LearnableFakeQuantize", "FloatFunctional"}
    assert len(names) > 25
    assert [name for name in sorted(names) if not any(hasattr(home, name) for home in homes)] == []


@each_page
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if ":" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> list[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    lost = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert [page for page in lost if f" {page}\n" not in text] == [], "give each a line in nav of mkdocs.yml"


def test_every_public_name_is_in_the_reference():
    shown = "\n".join(tool("reference").reference_pages().values())
    for module in (lq, lq.analysis, lq.metrics):
        for name in module.__all__:
            if not name.startswith("_"):
                found = getattr(module, name)
                assert f"::: {found.__module__}.{found.__qualname__}\n" in shown, name


def test_every_name_in_the_reference_has_an_example():
    """Those of the command line are run by docs/command_line.md."""
    names = [
        line.removeprefix("::: ")
        for page in tool("reference").reference_pages().values()
        for line in page.split("\n")
        if line.startswith("::: ") and "lq.cli." not in line
    ]
    lacking = [name for name in names if ">>>" not in (inspect.getdoc(pkgutil.resolve_name(_entry_point(name))) or "")]
    assert names
    assert lacking == []


def test_every_public_function_and_class_has_an_example():
    """Also those that only lq's own code uses; pytest runs the examples."""
    lacking = []
    for path in sorted((ROOT / "lq").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and ">>>" not in (ast.get_docstring(node) or ""):
                lacking.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert lacking == []


def _entry_point(name: str) -> str:
    """``module:name`` of a dotted name, since a function may have the name of its module."""
    module, _, attribute = name.rpartition(".")
    return f"{module}:{attribute}"


def test_docstrings_become_markdown(monkeypatch):
    pytest.importorskip("griffe")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    markdown_of = tool("docstrings").markdown_of
    assert markdown_of("See :class:`~lq.config.qconfig.QConfig` and ``None``.") == (
        "See [`QConfig`][lq.config.qconfig.QConfig] and `None`."
    )
    assert markdown_of("See :func:`~lq.ptq.batches.run_batch`.") == "See `run_batch`."


def test_the_picture_of_the_phases_is_that_of_the_schedule():
    phases = tool("draw_phases")
    assert phases.PICTURE.read_text() == phases.picture(), "run python docs/tools/draw_phases.py"


def texts_of_the_code() -> str:
    """All literal text in lq, with "*" where something is filled in."""
    found = []
    for file in (ROOT / "lq").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_messages_that_are_explained_are_those_of_the_code():
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs/how_to/errors.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    known = texts_of_the_code()
    missing = [row for row in rows if not all(piece.strip() in known for piece in row.split("..."))]
    assert not missing
