"""LightningCLI with the subcommands of lq, and with settings from checkpoints."""

from __future__ import annotations

import argparse
import sys
from pydoc import locate
from typing import Any

from jsonargparse.typing import register_type
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lq.callback import QATCallback
from lq.checkpoints.checkpoint import Checkpoint
from lq.checkpoints.sharded import is_sharded_checkpoint, read_meta
from lq.cli.arguments import typed_arguments
from lq.cli.help import Formatter
from lq.cli.hyperparameters import hyperparameters_of, model_settings, same, with_attributes
from lq.cli.parser import Parser
from lq.cli.subcommands import OF_LIGHTNING, OWN_SUBCOMMANDS
from lq.cli.trainer import QATTrainer
from lq.cli.weights import is_artifact
from lq.compat.parsers import Instantiator, move_last_group_first, options_of_subcommand
from lq.console import LineProgress, is_terminal
from lq.export.artifact.remote import local_path
from lq.messages import one_line

# What a class may ask for, and a file holds as a mapping.
register_type(
    argparse.Namespace,
    serializer=vars,
    deserializer=lambda given: argparse.Namespace(**given),
    fail_already_registered=False,
)


class LQCLI(LightningCLI):
    """LightningCLI that knows more subcommands, and writes one line an epoch where its output is not a terminal.

    Args:
        subcommand: the only one to make a parser for, which takes its time; ``None`` makes those of all.
        help_of_everything: whether ``--help`` shows all options.

    Example:
        >>> before, sys.argv = sys.argv, ["lq", "bits", "--help"]
        >>> try:
        ...     LQCLI("bits")
        ... except SystemExit:
        ...     sys.argv = before
        usage: lq bits [options]
        <BLANKLINE>
        Choose the bits of weights, ...
    """

    def __init__(self, subcommand: str | None = None, help_of_everything: bool = False) -> None:
        self._only, self._help_of_everything = subcommand, help_of_everything
        super().__init__(
            trainer_class=QATTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "lq", "formatter_class": Formatter, "allow_abbrev": False},
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's parser, as one of lq's own class, for which LightningCLI before 2.6 has no argument."""
        parser = super().init_parser(**kwargs)
        parser.__class__ = Parser
        return parser

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As Lightning does; without a float model, ``bench`` measures the others."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        needs_model = self._only != "bench"
        parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True, required=needs_model)
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Tell each parser which options are those of its subcommand."""
        super().setup_parser(*args, **kwargs)
        for subcommand in self.subcommands():
            parser, parser_options = options_of_subcommand(self, subcommand)
            assert isinstance(parser, Parser)
            parser.name, parser.own = subcommand, parser_options
            parser.help_of_everything = self._help_of_everything
            parser.usage = f"lq {subcommand} [options]"
            move_last_group_first(parser, f"options of {subcommand}")

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Lightning's, and those of :class:`lq.cli.trainer.QATTrainer`."""
        own = {name: {"model", "datamodule"} for name in OWN_SUBCOMMANDS}
        subcommands = {**LightningCLI.subcommands(), **own}
        return subcommands if self._only is None else {self._only: subcommands[self._only]}

    def _parse_ckpt_path(self) -> None:
        """Take the hyperparameters of ``ckpt_path`` as those of the configured class.

        Lightning's takes all of them for settings of the parser, which refuses those that a script has saved. What
        stands in the command line comes before both.
        """
        settings = self.config.get(self.config.get("subcommand") or "") or {}
        path, model = settings.get("ckpt_path") or settings.get("float_ckpt_path"), settings.get("model")
        if not path or not model or not model.get("class_path"):
            return
        base = model.as_dict()
        saved, typed = hyperparameters_of(path, settings.get("weights_only") is not False), typed_arguments(sys.argv)
        new = model_settings(base, {name: value for name, value in saved.items() if name not in typed})
        if new is None:
            return
        exits, self.parser.exit_on_error = self.parser.exit_on_error, False
        try:
            self.config = self.parser.parse_object({self.config.subcommand: {"model": new}}, self.config)
        except argparse.ArgumentError as error:
            reason = one_line(error)
            kept = "those of the configuration are used"
            _say(f"{path}: its hyperparameters do not fit {new['class_path']}; {kept}: {reason}")
        else:
            _say_changes(path, base, new)
        finally:
            self.parser.exit_on_error = exits

    def _add_instantiators(self) -> None:
        """Add Lightning's, and before them one that gives mappings as ``load_from_checkpoint`` does."""
        super()._add_instantiators()
        theirs = Instantiator(cli=self, key="model")

        def instantiate(kind: type, /, *args: Any, applied_instantiation_links: Any, **given: Any) -> Any:
            links = {"applied_instantiation_links": applied_instantiation_links}
            return theirs(kind, *args, **links, **with_attributes(kind, given))

        self.parser.add_instantiator(instantiate, LightningModule, subclasses=True, prepend=True)

    def before_instantiate_classes(self) -> None:
        """Add the callbacks that the configuration leaves out: for the progress, and for a checkpoint of a QAT run."""
        settings = self.config[self.subcommand]
        trainer, path = settings["trainer"], settings.get("ckpt_path")
        if self.subcommand in OF_LIGHTNING and path is not None and is_artifact(path):
            raise ValueError(
                f"{path} is an artifact, which lq {self.subcommand} cannot load: give a checkpoint of the run, such as "
                "checkpoints/last.ckpt. lq report --artifact evaluates the files of an artifact."
            )
        added: list[Callback] = []
        if not is_terminal() and trainer["enable_progress_bar"] is not False:
            added += [] if _has(trainer["callbacks"], ProgressBar) else [LineProgress()]
        if self.subcommand in ("validate", "test", "predict") and not _has(trainer["callbacks"], QATCallback):
            added += _callback_of(path, settings.get("weights_only"))
        if added:
            self.trainer_defaults["callbacks"] = added


def _callback_of(path: str | None, weights_only: bool | None) -> list[QATCallback]:
    """The callback that prepares a module as the checkpoint of a QAT run wants it; none for others."""
    place = None if path is None else local_path(path)
    if place is None:
        return []
    if is_sharded_checkpoint(place):  # its weights are for the strategy to load
        checkpoint = Checkpoint(place, {"state_dict": {}, **read_meta(place, weights_only is not False)})
    elif place.is_file():
        checkpoint = Checkpoint.read(place, weights_only is not False)
    else:
        return []
    if not checkpoint.is_qat:
        return []
    entry = checkpoint.entry
    return [QATCallback(target=entry.target, qconfig=entry.qconfig)]


def _say(text: str) -> None:
    print(f"lq: {text}", file=sys.stderr)


def _say_changes(path: str, base: dict[str, Any], new: dict[str, Any]) -> None:
    own, given = base.get("init_args") or {}, new.get("init_args", {})  # none if LightningCLI has saved them
    changes = [f"{name}={given[name]!r} (not {own[name]!r})" for name in given if not same(own[name], given[name])]
    if changes:
        _say(f"{path}: its hyperparameters replace those of the configuration: {', '.join(changes)}")


def _has(callbacks: object, kind: type) -> bool:
    given = callbacks if isinstance(callbacks, list) else [callbacks]
    for callback in given:
        path = callback.get("class_path") if hasattr(callback, "get") else None
        if path is None:
            continue
        found = locate(path)
        if isinstance(found, type) and issubclass(found, kind):
            return True
    return False
