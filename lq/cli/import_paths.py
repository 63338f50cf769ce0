"""Import paths of classes: what they lead to, why they lead nowhere, and what may have been meant."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def imported(path: Any) -> Any:
    """What an import path leads to; ``None`` if it leads nowhere.

    Example:
        >>> imported("lq.models.DigitsClassifier").__name__, imported("lq.models.Digit")
        ('DigitsClassifier', None)
    """
    if not isinstance(path, str):
        return None
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except Exception:  # a user's module may raise anything
        return None


def suggestion(word: str, known: Iterable[str]) -> str:
    """The nearest of some names, as the end of a message; empty if none is near.

    Example:
        >>> suggestion("exprot", ["fit", "export"]), suggestion("x", ["export"])
        ("; did you mean 'export'?", '')
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def why_not(path: str, base: type = object) -> str:
    """Why an import path is no subclass of ``base``, in one line with the nearest name.

    Args:
        path: such as "my_module.Net".
        base: what it has to be; its subclasses that are known may be named without their module.

    Example:
        >>> why_not("lq.QATCalback")
        "module lq has no 'QATCalback'; did you mean 'lq.QATCallback'?"
        >>> why_not("lq.modles.DigitsClassifier")
        "there is no module lq.modles; did you mean 'lq.models.DigitsClassifier'?"
        >>> why_not("lq.QConfig", Exception)
        'lq.QConfig is no Exception'
    """
    module, dot, name = path.rpartition(".")
    if not dot:
        return _unqualified(name, base)
    try:
        found = importlib.import_module(module)
    except Exception as error:
        return _not_importable(module, name, error)
    value = getattr(found, name, None)
    if value is None:
        return f"module {module} has no {name!r}{suggestion(path, (f'{module}.{n}' for n in dir(found)))}"
    return f"{path} is no {base.__name__}"


def _unqualified(name: str, base: type) -> str:
    known = {kind.__name__: kind.__name__ for kind in _subclasses(base)}
    here = {path.rpartition(".")[2]: path for path in _classes_here()}
    near = difflib.get_close_matches(name, [*here, *known], n=1, cutoff=0.6)
    start = f"{name!r} is no import path of a class, such as my_module.Net"
    return f"{start}; did you mean {(known | here)[near[0]]!r}?" if near else start


def _not_importable(module: str, name: str, error: Exception) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and f"{module}.".startswith(f"{missing}."):
        parent, _, last = missing.rpartition(".")
        siblings = _modules_in(parent)
        near = difflib.get_close_matches(last, siblings, n=1, cutoff=0.6)
        rest = module[len(missing) :]
        right = ".".join(part for part in (parent, near[0] + rest if near else "", name) if part)
        hint = f"; did you mean {right!r}?" if near else f" in {Path.cwd()} or among what is installed"
        return f"there is no module {missing}{hint}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames[1:] else ""
    return f"{module} cannot be imported: {type(error).__name__}: {error}{where}"


def _modules_in(package: str) -> list[str]:
    if not package:
        here = [m.name for m in pkgutil.iter_modules([str(Path.cwd())])]
        return [*here, *(name for name in sys.modules if "." not in name and not name.startswith("_"))]
    return [m.name for m in pkgutil.iter_modules(getattr(sys.modules.get(package), "__path__", None) or [])]


def _classes_here() -> list[str]:
    """Import paths of the classes in the modules of the working directory."""
    pattern = re.compile(r"^class (\w+)", re.MULTILINE)
    files = sorted(Path.cwd().glob("*.py"))[:100]
    texts = {file.stem: file.read_text(encoding="utf-8", errors="replace") for file in files}
    return [f"{module}.{name}" for module, text in texts.items() for name in pattern.findall(text)]


def _subclasses(base: type) -> list[type]:
    if base is object:
        return []
    children: list[type] = base.__subclasses__()
    return [kind for child in children for kind in (child, *_subclasses(child))]
