"""The `lq` command: LightningCLI with readable progress and readable errors."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lq.console import LineProgress, is_terminal
from lq.hyperparameters import hyperparameters_of, model_settings
from lq.trainer import QATTrainer

DESCRIPTION = """Quantization-aware training for PyTorch Lightning.

Train, validate, test or predict with the model, the data and the callbacks
that a YAML file names; export and measure what came out; or quantize without
training, and see in a report whether training is worth it:

  lq fit --config recipes/digits/qat.yaml
  lq fit --config recipes/digits/qat.yaml --trainer.max_epochs 30
  lq export --config runs/digits/version_0/config.yaml --ckpt_path last.ckpt --exporters [onnx]
  lq bench --config runs/digits/version_0/config.yaml --artifact runs/digits/version_0/int8
  lq ptq --config recipes/digits/qat.yaml --ckpt_path float.ckpt
  lq analyze --config recipes/digits/qat.yaml --ckpt_path float.ckpt
  lq report --config runs/digits/version_0/config.yaml --ckpt_path last.ckpt
  lq fit --help

Set LQ_DEBUG=1 to see the whole traceback of an error."""


# Messages about the machinery under a run, which nobody who reads its output can act upon.
_NOISE = (
    # The small data sets of the recipes are in memory: worker processes would slow them down.
    ".*does not have many workers.*",
    # Lightning 2.6 uses a private class of torch 2.15.
    ".*isinstance\\(treespec, LeafSpec\\).*",
)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keep the line breaks of the description."""


class _Parser(LightningArgumentParser):
    def print_usage(self, file: Any = None) -> None:
        # The sixty lines of a subcommand's usage would hide the error printed below them.
        if file is not sys.stderr:
            super().print_usage(file)


class LQCLI(LightningCLI):
    """LightningCLI that writes one line an epoch where its output is not a terminal."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's parser, as one of lq's own class, for which LightningCLI before 2.6 has no argument."""
        parser = super().init_parser(**kwargs)
        parser.__class__ = _Parser
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, and those of :class:`lq.trainer.QATTrainer`."""
        own = ("export", "bench", "ptq", "analyze", "report")
        return {**LightningCLI.subcommands(), **{name: {"model", "datamodule"} for name in own}}

    def _parse_ckpt_path(self) -> None:
        """Take the hyperparameters of ``ckpt_path`` as those of the configured class.

        Lightning's takes all of them for settings of the parser, which refuses those that a script has saved.
        """
        settings = self.config.get(self.config.get("subcommand") or "") or {}
        path, model = settings.get("ckpt_path"), settings.get("model")
        if not path or not model or not model.get("class_path"):
            return
        base = model.as_dict()
        new = model_settings(base, hyperparameters_of(path))
        if new is None:
            return
        exits, self.parser.exit_on_error = self.parser.exit_on_error, False
        try:
            self.config = self.parser.parse_object({self.config.subcommand: {"model": new}}, self.config)
        except argparse.ArgumentError as error:
            reason = " ".join(str(error).split())[:300]
            kept = "those of the configuration count"
            _say(f"{path}: its hyperparameters do not fit {new['class_path']}; {kept}: {reason}")
        else:
            _say_changes(path, base, new)
        finally:
            self.parser.exit_on_error = exits

    def before_instantiate_classes(self) -> None:
        """Choose the progress callback, unless the configuration has one or wants none."""
        trainer = self.config[self.subcommand]["trainer"]
        if not is_terminal() and trainer["enable_progress_bar"] is not False and not _has_bar(trainer["callbacks"]):
            self.trainer_defaults["callbacks"] = [LineProgress()]


def main() -> None:
    """Run the `lq` command with the arguments of this process.

    An error that lq raises about its configuration is printed as one line, with exit status 2; any other
    keeps its traceback.
    """
    # An installed script has its own folder in the search path, not the one that it is started in.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advert)
    try:
        LQCLI(
            trainer_class=QATTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "prog": "lq",
                "description": DESCRIPTION,
                "version": _version(),
                "formatter_class": _HelpFormatter,
            },
        )
    except (ValueError, TypeError, OSError, ImportError) as error:
        _report(error)


def find_own_error(error: BaseException) -> BaseException | None:
    """Find, in a chain of exceptions, the one that an lq module raised itself.

    The configuration parser wraps what a constructor raises into an error of its own.

    Args:
        error: the exception that was caught.

    Returns:
        The exception whose innermost frame is code of lq, or None when there is none.

    >>> from lq.models import OptimizerConfig
    >>> try:
    ...     OptimizerConfig(lr=-1)
    ... except ValueError as error:
    ...     find_own_error(error) is error
    True
    >>> find_own_error(ValueError("from elsewhere")) is None
    True
    """
    return next((link for link in _chain(error) if _raised_by_lq(link)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _raised_by_lq(error: BaseException) -> bool:
    module, frame = "", error.__traceback__
    while frame is not None:
        module = frame.tb_frame.f_globals.get("__name__", "")
        frame = frame.tb_next
    return module == "lq" or module.startswith("lq.")


def _is_no_advert(record: logging.LogRecord) -> bool:
    return "Tip: For seamless cloud" not in record.getMessage()


def _report(error: Exception) -> NoReturn:
    own = find_own_error(error)
    if own is None or os.environ.get("LQ_DEBUG", "0") not in ("", "0"):
        raise error
    print(f"lq: error: {own}\n(LQ_DEBUG=1 shows where it was raised)", file=sys.stderr)
    sys.exit(2)


def _say(text: str) -> None:
    print(f"lq: {text}", file=sys.stderr)


def _say_changes(path: str, base: dict[str, Any], new: dict[str, Any]) -> None:
    own, given = base.get("init_args") or {}, new.get("init_args", {})  # none if LightningCLI has saved them
    changes = [f"{name}={given[name]!r} (not {own[name]!r})" for name in given if given[name] is not own[name]]
    if changes:
        _say(f"{path}: its hyperparameters count: {', '.join(changes)}")


def _has_bar(callbacks: object) -> bool:
    given = callbacks if isinstance(callbacks, list) else [callbacks]
    for callback in given:
        path = callback.get("class_path") if hasattr(callback, "get") else None
        if path is None:
            continue
        module, _, name = path.rpartition(".")
        if issubclass(getattr(importlib.import_module(module), name), ProgressBar):
            return True
    return False


def _version() -> str:
    try:
        return importlib.metadata.version("lightning-qat")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (lq is not installed)"
