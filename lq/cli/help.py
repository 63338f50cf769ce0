"""What ``--help`` prints: first the options of the subcommand itself, all on one screen; ``--help-all`` the rest."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from jsonargparse import DefaultHelpFormatter

from lq.cli.markup import first_sentence, without_markup
from lq.cli.subcommands import OWN_SUBCOMMANDS, SUBCOMMANDS
from lq.compat.parsers import actions_of
from lq.messages import some_of

_COLUMN = 24  # where the explanations begin
_MOST_SUBCLASSES = 12

# Of the Trainer's forty options, those that a subcommand makes use of.
_OF_A_RUN = ("max_epochs", "accelerator", "devices", "precision", "callbacks", "logger", "fast_dev_run")
_OF_AN_EVALUATION = ("accelerator", "devices", "precision", "logger")
_OF_A_SUBCOMMAND = ("callbacks", "limit_val_batches", "default_root_dir")
_TRAINER = {"fit": _OF_A_RUN, **dict.fromkeys(("validate", "test", "predict"), _OF_AN_EVALUATION)}

_MODEL_AND_DATA = (
    ("-c, --config FILE", "YAML with the settings of model, data and trainer"),
    ("--model CLASS", "import path of the LightningModule, such as my_module.Net; its arguments: --model.width 8"),
    ("--data CLASS", "import path of the LightningDataModule, if the module does not have its own data loaders"),
)
_MORE = (
    ("--help-all", "every option, including those of the Trainer, optimizer and lr_scheduler"),
    ("--model.help CLASS", "the arguments of a class; also --data.help, --trainer.callbacks.help and so on"),
    ("--print_config", "print the whole configuration as YAML and exit"),
    ("--debug", "the traceback of an error (or LQ_DEBUG=1)"),
)
_EXAMPLES = {
    "fit": "lq fit --model my_module.Net --data my_module.Data --trainer.callbacks lq.QATCallback",
    "validate": "lq validate --ckpt_path runs/x/version_0/checkpoints/last.ckpt",
    "test": "lq test --ckpt_path runs/x/version_0/checkpoints/last.ckpt",
    "predict": "lq predict --ckpt_path runs/x/version_0/checkpoints/last.ckpt",
    "export": "lq export --ckpt_path last.ckpt --model my_module.Net --exporters '[onnx, openvino]'",
    "ptq": "lq ptq --ckpt_path float.ckpt --model my_module.Net --data my_module.Data",
    "analyze": "lq analyze --ckpt_path last.ckpt --model my_module.Net --data my_module.Data",
    "bits": "lq bits --budget size=2.5MB --ckpt_path float.ckpt --model my_module.Net --data my_module.Data",
    "report": "lq report --ckpt_path last.ckpt --model my_module.Net --data my_module.Data",
    "bench": "lq bench --artifact runs/x/version_0/int8 --model my_module.Net",
}

Rows = Iterable[tuple[str, str]]


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's help of all options, without markup and without lists of a hundred classes.

    Example:
        >>> from jsonargparse import ArgumentParser
        >>> parser = ArgumentParser("lq", formatter_class=Formatter)
        >>> _ = parser.add_argument("--width", type=int, help="of :class:`DigitsNet`")
        >>> "of DigitsNet" in parser.format_help()
        True
    """

    def _expand_help(self, action: argparse.Action) -> str:
        return _shortened(without_markup(super()._expand_help(action)))

    def start_section(self, heading: str | None) -> None:
        """Begin a group of options."""
        super().start_section(heading and _title(without_markup(heading)))

    def add_text(self, text: str | None) -> None:
        """Add a paragraph."""
        super().add_text(text and without_markup(text))


def subcommand_help(subcommand: str, parser: argparse.ArgumentParser, own: Sequence[str]) -> str:
    """One screen for a subcommand.

    Args:
        subcommand: such as "export".
        parser: of its arguments.
        own: names of the options that are the subcommand's, in order.

    Returns:
        the text.

    Example:
        >>> parser = argparse.ArgumentParser(description="Measure an artifact.")
        >>> _ = parser.add_argument("--threads", default=1, help="for every runtime.")
        >>> print(subcommand_help("bench", parser, ["threads"]).partition("model and data")[0])
        usage: lq bench [options]
        <BLANKLINE>
        Measure an artifact.
        <BLANKLINE>
        options:
          --threads VALUE       for every runtime (default: 1)
    """
    actions = {action.dest: action for action in actions_of(parser)}
    in_full = subcommand in OWN_SUBCOMMANDS
    trainer = [f"trainer.{name}" for name in _TRAINER.get(subcommand, _OF_A_SUBCOMMAND)]
    sections = [
        ("options:", _rows((actions[name] for name in own if name in actions), in_full)),
        ("model and data:", _MODEL_AND_DATA),
        ("of the Trainer, among others:", _rows(actions[name] for name in trainer if name in actions)),
        ("more:", _MORE),
    ]
    parts = [
        f"usage: lq {subcommand} [options]",
        _wrapped(parser.description or "" if in_full else f"{_capitalized(SUBCOMMANDS[subcommand])}.", ""),
    ]
    parts += ["\n".join([title, *(_row(*row) for row in rows)]) for title, rows in sections]
    parts.append(f"example:\n  {_EXAMPLES[subcommand]}" if subcommand in _EXAMPLES else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]  # str.capitalize makes small letters of the others


def _rows(actions: Iterable[argparse.Action], in_full: bool = False) -> list[tuple[str, str]]:
    return [(_invocation(action), _explanation(action, in_full)) for action in actions]


def _invocation(action: argparse.Action) -> str:
    return f"{action.option_strings[0]} {_placeholder(action)}"


def _placeholder(action: argparse.Action) -> str:
    if action.choices:
        return "|".join(map(str, action.choices))
    kind = str(getattr(action, "_typehint", ""))
    literal = re.fullmatch(r"typing\.Literal\[(.+)\]", kind)
    if literal:
        return literal[1].replace("'", "").replace(", ", "|")
    return next((shown for name, shown in _PLACEHOLDERS if name in kind), "VALUE")


_PLACEHOLDERS = (
    ("bool", "true|false"), ("Sequence", "LIST"), ("list", "LIST"), ("int", "N"), ("float", "X"), ("str", "TEXT")
)  # fmt: skip


def _explanation(action: argparse.Action, in_full: bool) -> str:
    """Lightning explains its options at length; a sentence of that fits on the screen."""
    text = " ".join(without_markup(action.help or "").split()) if in_full else first_sentence(action.help or "")
    default = action.default
    shown = in_full and default is not None and default is not argparse.SUPPRESS
    return f"{text.rstrip('.')} (default: {_plain(default)})" if shown else text.rstrip(".")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _row(name: str, text: str) -> str:
    lines = _wrapped(text, " " * _COLUMN)
    return f"  {name:<{_COLUMN - 2}}{lines.lstrip()}" if len(name) < _COLUMN - 2 else f"  {name}\n{lines}"


def _wrapped(text: str, indent: str) -> str:
    width = min(shutil.get_terminal_size().columns, 110)
    return textwrap.fill(text, max(width, 50), initial_indent=indent, subsequent_indent=indent)


def _title(heading: str) -> str:
    """Headings that are the ``repr`` of classes, or docstrings, become what the options are of."""
    for part, title in (
        ("A Trainer that also", "Trainer"), ("LightningModule'>", "model"), ("A DataModule standardizes", "data"),
        ("Base class for all optimizers", "optimizer"), ("lr_scheduler.", "learning rate"),
    ):  # fmt: skip
        if part in heading:
            return title
    return re.sub(r"<class '(.+)'>", r"\1", heading)


def _shortened(text: str) -> str:
    """A list of known subclasses, cut where it gets long."""
    start, marker, rest = text.partition("known subclasses: ")
    names = [name.strip(" )") for name in rest.split(",")]
    if not marker or len(names) <= _MOST_SUBCLASSES:
        return text
    return f"{start}{marker}{some_of(names, 3)})"
