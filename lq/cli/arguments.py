"""What a command line leaves out and a run or a checkpoint knows: its ``config.yaml``, required hyperparameters."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lq.cli.hyperparameters import SAVED_AS, argument_names, hyperparameters_of
from lq.cli.import_paths import imported
from lq.export.artifact.remote import local_path
from lq.messages import one_line

CONFIG = "config.yaml"
# What Lightning takes for a path.
_NAMES_OF_CHECKPOINTS = ("best", "last", "hpc", "registry")


def completed(subcommand: str, args: Sequence[str]) -> list[str]:
    """The arguments of a subcommand, with what can be known without asking for it.

    Without ``--config`` and ``--model``, the ``config.yaml`` of the run counts that a checkpoint or an artifact lies
    in. One that a LightningCLI of a fixed class has written names no class: then ``--model`` and ``--data`` go in front
    of it, as the parser wants a class before its arguments. Arguments that the module's class demands and nobody gave
    are taken from the checkpoint's hyperparameters.

    Args:
        subcommand: such as "export".
        args: what follows it.

    Returns:
        the arguments to parse.

    Raises:
        ValueError: if the ``config.yaml`` of the run names no class, and no ``--model`` does.
        FileNotFoundError: if there is no such checkpoint or artifact.

    Example:
        >>> completed("export", ["--ckpt_path", "no.ckpt", "--model", "my_module.Net"])
        ['--ckpt_path', 'no.ckpt', '--model', 'my_module.Net']
    """
    args = list(args)
    if subcommand != "fit" and not any(_values(args, "--config", "-c", "--model")):
        checkpoint, artifact = next(_values(args, "--ckpt_path"), None), next(_values(args, "--artifact"), None)
        config = config_of(checkpoint, artifact)
        if config is None:
            _check_there(checkpoint, artifact)
        elif "model" in _classless(config):
            if subcommand != "bench":  # which can do without
                raise ValueError(
                    f"{config} has the arguments of a module, but not its class, as a LightningCLI of one class writes "
                    "it: add --model my_module.Net, and --data my_module.Data."
                )
        else:
            print(f"lq: settings of {config} (--config or --model takes others)", file=sys.stderr)
            args = ["--config", str(config), *args]
    args = _classes_first(args)
    return [*_required(args), *_with_class_of_help(args)]


def subcommand_first(args: Sequence[str], subcommand: str) -> list[str]:
    """The arguments with options that stand before the subcommand behind it, where the parser wants them.

    A configuration of all subcommands, ``fit: {...}``, belongs before it.

    Args:
        args: of the command line.
        subcommand: one of them.

    Example:
        >>> subcommand_first(["--model", "my_module.Net", "fit", "--data", "my_module.Data"], "fit")
        ['fit', '--model', 'my_module.Net', '--data', 'my_module.Data']
    """
    at = list(args).index(subcommand)
    before, after = list(args[:at]), list(args[at + 1 :])
    if any(subcommand in _settings_in(file) for file in _values(before, "--config", "-c")):
        return list(args)
    return [subcommand, *before, *after]


def _check_there(*paths: str | None) -> None:
    """Say that a file is missing, rather than that nothing beside it says what the model is."""
    for given in filter(None, paths):
        path = None if given in _NAMES_OF_CHECKPOINTS else local_path(given)
        if path is not None and not path.exists():
            raise FileNotFoundError(f"there is no {given}")


def typed_arguments(args: Sequence[str], key: str = "model") -> set[str]:
    """The arguments of the module, or of the data, that are options of the command line.

    Example:
        >>> sorted(typed_arguments(["--model", "mine.Net", "--model.width", "8", "--model.init_args.lr=0.1"]))
        ['lr', 'width']
    """
    options = [arg.partition("=")[0] for arg in args if arg.startswith(f"--{key}.")]
    names = {option.removeprefix(f"--{key}.").removeprefix("init_args.").partition(".")[0] for option in options}
    return names - {"class_path", "help"}


def config_of(ckpt_path: str | None, artifact: str | None = None) -> Path | None:
    """The ``config.yaml`` of the run that a checkpoint or an artifact lies in, as Lightning's command line leaves it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run:
        ...     _ = Path(run, "config.yaml").write_text("model: my_module.Net")
        ...     print(config_of(f"{run}/checkpoints/last.ckpt").name, config_of(None, f"{run}/int8").name)
        config.yaml config.yaml
    """
    places = [place for given in (ckpt_path, artifact) if given and (place := local_path(given)) is not None]
    folders = [folder for place in places for folder in list(place.absolute().parents)[:2]]
    return next((folder / CONFIG for folder in folders if (folder / CONFIG).is_file()), None)


def _classless(config: str | Path) -> set[str]:
    """Of ``model`` and ``data``, those for which a file has arguments, but no class."""
    settings = _settings_in(config)
    return {key for key in SAVED_AS if isinstance(settings.get(key), dict) and "class_path" not in settings[key]}


def _classes_first(args: list[str]) -> list[str]:
    """``--model`` and ``--data`` in front of their arguments, also of those in files that name no class."""
    files = list(_values(args, "--config", "-c"))
    wanted = [key for key in SAVED_AS if _argument_first(key, args) or any(key in _classless(file) for file in files)]
    named = {key: next(_values(args, f"--{key}"), None) for key in wanted}
    return [*(f"--{key}={path}" for key, path in named.items() if path is not None), *args]


def _argument_first(key: str, args: list[str]) -> bool:
    """Whether an argument of a class stands before the class."""
    options = [arg.partition("=")[0] for arg in args]
    first = next((option for option in options if option == f"--{key}" or option.startswith(f"--{key}.")), None)
    return first is not None and first not in (f"--{key}", f"--{key}.class_path", f"--{key}.help")


def _required(args: list[str]) -> list[str]:
    """What the classes demand, nobody gives, and the checkpoint knows; as a configuration in the command line."""
    settings = _settings(args)
    wanted = {key: given for key in SAVED_AS if (given := _known_of(key, settings))}
    try:
        return ["--config", json.dumps(wanted)] if wanted else []
    except TypeError:  # a value that no configuration can hold
        return []


def _known_of(key: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The setting ``model`` or ``data``, with what its class demands and the checkpoints alone know."""
    paths, setting = settings["checkpoints"], settings[key]
    kind = imported(setting["class_path"])
    if not paths or not isinstance(kind, type):
        return {}
    lacking = [name for name in argument_names(kind, demanded=True) if name not in setting["init_args"]]
    if not lacking:
        return {}
    _check_there(*paths)
    known: dict[str, Any] = {}
    for path in paths:
        known = hyperparameters_of(path, settings["weights_only"] is not False, key) | known
    found = {name: known[name] for name in lacking if name in known}
    return {"class_path": setting["class_path"], "init_args": found} if found else {}


def _with_class_of_help(args: list[str]) -> list[str]:
    """``--model my_module.Net --model.help`` asks for the arguments of that class."""
    option = args[-1] if args and args[-1].endswith(".help") else ""
    kind = next(_values(args, option.removesuffix(".help")), None)
    return [*args, kind] if kind else args


def _settings(args: list[str]) -> dict[str, Any]:
    """What files and options say of the checkpoint and the classes, later ones over earlier ones."""
    found: dict[str, Any] = {}
    for text in _values(args, "--config", "-c"):
        found |= _settings_in(text)
    weights_only = next(_values(args, "--weights_only"), None)
    paths = [next(_values(args, f"--{key}"), found.get(key)) for key in ("ckpt_path", "float_ckpt_path")]
    return {
        **{key: _class_setting(key, found.get(key), args) for key in SAVED_AS},
        "checkpoints": [path for path in paths if isinstance(path, str)],
        "weights_only": found.get("weights_only") if weights_only is None else _yaml(weights_only),
    }


def _class_setting(key: str, configured: Any, args: list[str]) -> dict[str, Any]:
    given = {"class_path": configured} if isinstance(configured, str) else configured
    given = given if isinstance(given, dict) else {}
    typed = dict.fromkeys(typed_arguments(args, key))
    path = next(_values(args, f"--{key}", f"--{key}.class_path"), given.get("class_path"))
    return {"class_path": path, "init_args": {**(given.get("init_args") or {}), **typed}}


def _values(args: Sequence[str], *options: str) -> Iterator[str]:
    """The values of options, written ``--name value`` or ``--name=value``."""
    for index, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name in options and equals:
            yield value
        elif arg in options and index + 1 < len(args):
            yield args[index + 1]


def _settings_in(file: str | Path) -> dict[str, Any]:
    """What a file says; nothing if there is none, which the parser says.

    Raises:
        ValueError: if it is no YAML of settings.
    """
    if not Path(file).is_file():
        return {}
    wanted = "give a YAML file of settings, such as those that a fit leaves in its log_dir as config.yaml"
    try:
        with Path(file).open(encoding="utf-8") as stream:  # whose name is in the error
            content = yaml.safe_load(stream)
    except UnicodeDecodeError:
        raise ValueError(f"--config {file} is no text: {wanted}. A checkpoint is a --ckpt_path.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"--config {file} cannot be read: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"--config {file} holds no settings: {wanted}.")
    return content


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
