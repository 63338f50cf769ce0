"""What the parser refuses, in one line: what came, what is allowed, and the nearest name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger

from lq.cli.hyperparameters import argument_names
from lq.cli.import_paths import imported, suggestion, why_not
from lq.compat.parsers import actions_of

_BASES: dict[str, type] = {
    "model": LightningModule,
    "data": LightningDataModule,
    "callbacks": Callback,
    "logger": Logger,
    "optimizer": torch.optim.Optimizer,
    "lr_scheduler": torch.optim.lr_scheduler.LRScheduler,
    "metric": torch.nn.Module,
}
_EXAMPLES = {"model": "my_module.Net", "data": "my_module.Data"}
_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"class_path '([^']+)'")
_UNKNOWN_ARGUMENT = re.compile(r"Option '([^']+)' is not accepted|Key '([^']+)' is not expected")
_UNKNOWN_KEY = re.compile(r"""Key "([^"]+)" is not expected|does not accept option '([^']+)'""")
_LACKING = re.compile(r"the following arguments are required: (.+)")
_EXPECTED = re.compile(r"Expected an? (?:<class ')?(typing\.Literal\[[^\]]*\]|\w[\w.\[\], ]*)")
_GIVEN = re.compile(r"^ *Given value: (.+)$", re.MULTILINE)
_SETTINGS = re.compile(r"Subtypes: \[<class 'lq\.[\w.]*\.(\w+)'>")
_LIST = "collections.abc.Sequence"
_WORDS = {_LIST: "a list", "tuple": "a list"}
_ENOUGH = 300  # characters of a message that nothing better is known of


def in_one_line(message: str, command: str, options: Iterable[str]) -> str:
    """A message of the parser, as somebody would say it who knows what may have been meant.

    Args:
        message: of argparse or jsonargparse.
        command: such as "lq export".
        options: that it has.

    Returns:
        one line.

    Example:
        >>> in_one_line("unrecognized arguments: --ckpt_pth last.ckpt", "lq export", ["--ckpt_path", "--model"])
        "lq export has no option --ckpt_pth; did you mean '--ckpt_path'?"
        >>> in_one_line("the following arguments are required: export.model", "lq export", [])
        'lq export needs a model: --config runs/.../config.yaml, or --model my_module.Net'
    """
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown:
        return _unknown_option(unknown[1].partition("=")[0], command, options)
    key = (_KEY.search(message) or [""] * 2)[1]
    named = _CLASS.findall(message)
    if named:
        of_settings = named if _UNKNOWN_ARGUMENT.search(message) else []
        fitting = of_settings or [path for path in named if _is_a(path, _base_of(key))]
        return _about_class((fitting or named)[-1], key, message)
    lacking = _LACKING.search(message)
    if lacking:
        return _about_lacking(lacking[1], command)
    stranger = _UNKNOWN_ARGUMENT.search(message) or _UNKNOWN_KEY.search(message)
    if stranger:
        return _unknown_key(next(filter(None, stranger.groups())), command, options)
    given = _GIVEN.search(message)
    if given and _base_of(key) is not object and re.fullmatch(r"[A-Za-z_][\w.]*", given[1]):
        return f"--{key}: {why_not(given[1], _base_of(key))}"
    if given and _base_of(key) is not object and "(" not in given[1]:
        return f"--{key}: {given[1]!r} is no import path of a class, such as my_module.Name"
    if "Unexpected config" in message or "Unable to load config" in message:
        return "--config is no YAML file of settings, such as those that a fit leaves in its log_dir as config.yaml"
    absent = re.search(r"File does not exist: '?([^']+)'?", message)
    return f"--{key}: there is no file {absent[1]}" if absent else _about_value(key, message)


def _unknown_option(option: str, command: str, options: Iterable[str]) -> str:
    if not option.startswith("-"):
        return f"{command} takes only options, but got {option!r}; {command} --help lists them"
    near = suggestion(option, options)
    return f"{command} has no option {option}{near or f'; {command} --help lists them'}"


def _unknown_key(name: str, command: str, options: Iterable[str]) -> str:
    key = name.removeprefix(f"{command.removeprefix('lq ')}.")
    known = [option.lstrip("-") for option in options]
    near = suggestion(key, known) or suggestion(key.partition(".")[0], known)
    return f"there is no setting {key!r}{near or f'; {command} --help-all lists them'}"


def _about_class(path: str, key: str, message: str) -> str:
    kind, base = imported(path), _base_of(key)
    if not isinstance(kind, type):
        return f"--{key}: {why_not(path, base)}"
    stranger = _UNKNOWN_ARGUMENT.search(message)
    if stranger:
        name = next(filter(None, stranger.groups()))
        setting = key.rpartition(".")[2]
        if kind is base and setting in _EXAMPLES:  # what the parser takes where a file names no class
            return f"{setting!r} has settings, but names no class: add --{setting} {_EXAMPLES[setting]}"
        known = argument_names(kind)
        near = suggestion(name.partition(".")[0], known) or f"; it has {', '.join(known) or 'none'}"
        return f"{path} has no argument {name!r}{near}"
    lacking = _LACKING.search(message)
    if lacking:
        first = lacking[1].split(",")[0]
        return f"{path} needs {lacking[1]}: --{key}.{first} VALUE, or a --ckpt_path whose hyperparameters hold it"
    if not issubclass(kind, base):
        return f"--{key}: {why_not(path, base)}"
    inner = message.rpartition("Problem with given class_path")[2]
    given = None if "Got value" in inner else _GIVEN.search(inner)
    inner = inner[: given.end()] if given else inner.partition("- Expected a <class 'NoneType'>")[0]
    named = [name for name in dict.fromkeys(_KEY.findall(message)) if name != key]
    return _about_value(".".join([key, *named]), inner if named else message)


def _is_a(path: str, base: type) -> bool:
    """Whether a class is one of those that are wanted, and not of settings within one."""
    kind = imported(path)
    return isinstance(kind, type) and issubclass(kind, base)


def _about_lacking(names: str, command: str) -> str:
    if "model" in names.replace(",", " ").replace(".", " ").split():
        return f"{command} needs a model: --config runs/.../config.yaml, or --model my_module.Net"
    return f"{command} needs {names.replace(f'{command[3:]}.', '--')}"


def _about_value(key: str, message: str) -> str:
    """The kinds that a value may be of, or the message itself, shortened."""
    kinds = [kind.strip().replace("NoneType", "null") for kind in _EXPECTED.findall(message)]
    kinds = [kind for kind in dict.fromkeys(kinds) if not kind.startswith(("path", "dot"))]
    given = re.search(r"Got value: (.+)|val='([^']*)'", message) or _GIVEN.search(message)
    if key and kinds and given and kinds != ["null"]:
        value = next(filter(None, given.groups()))
        said = f"--{key} {value!r} must be {' or '.join(map(_in_words, kinds))}"
        return f"{said}: --{key} '[{value}]'" if _LIST in kinds and not value.startswith("{") else said
    settings = _SETTINGS.search(message)
    if key and settings and given:
        return f"--{key} {next(filter(None, given.groups()))!r} must be a mapping of the settings of {settings[1]}"
    text = " ".join(message.split())
    return text if len(text) <= _ENOUGH else f"{text[:_ENOUGH]} ... (--debug shows all of it)"


def _in_words(kind: str) -> str:
    """A type as somebody would say it; of a few fixed values, these."""
    values = kind.removeprefix("typing.Literal[").removesuffix("]").split(", ") if "Literal[" in kind else []
    return " or ".join(values) or _WORDS.get(kind, kind)


def _base_of(key: str) -> type:
    return _BASES.get(key.rpartition(".")[2], object)


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """All options that a parser has.

    Example:
        >>> options_of(argparse.ArgumentParser(add_help=False))
        []
    """
    return [option for action in actions_of(parser) for option in action.option_strings if not option.endswith("+")]
