"""The weights that a subcommand was given: a checkpoint, or the directory of an artifact."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lq.callback.preparation import choose_target
from lq.checkpoints.checkpoint import Checkpoint
from lq.checkpoints.entry import FORMAT_VERSION, KEY
from lq.checkpoints.sharded import is_sharded_checkpoint
from lq.export.artifact.int8_model import load_prepared_state
from lq.export.artifact.manifest import MANIFEST_NAME, read_manifest
from lq.export.artifact.remote import local_path
from lq.fields import Field
from lq.messages import some_of


def read_checkpoint(ckpt_path: str | None, weights_only: bool | None, option: str = "ckpt_path") -> Checkpoint | None:
    """The checkpoint of the float model that a subcommand was given, if any; a line says what no checkpoint means.

    Args:
        ckpt_path: of the file.
        weights_only: ``False`` reads files that hold more than plain data.
        option: that names it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is an artifact, or cannot be read.

    Example:
        >>> read_checkpoint(None, None)
    """
    if ckpt_path is None:
        rank_zero_info(f"lq: no --{option}: the weights of the float model are those that its class begins with")
        return None
    if is_artifact(ckpt_path):
        raise ValueError(f"{ckpt_path} is an artifact of a QAT run or of lq ptq; give a checkpoint of the float model.")
    return Checkpoint.read(ckpt_path, weights_only is not False)


def is_artifact(path: str) -> bool:
    """Whether a path is the local directory of an artifact.

    Example:
        >>> is_artifact("runs/x/version_0/checkpoints/last.ckpt")
        False
    """
    place = local_path(path)
    return place is not None and (place / MANIFEST_NAME).is_file()


def read_qat(path: str, weights_only: bool | None, model: LightningModule) -> Checkpoint:
    """What a QAT run has left: its checkpoint, or its artifact.

    Args:
        path: of the file or the directory; a sharded checkpoint is one, too.
        weights_only: ``False`` reads files that hold more than plain data.
        model: gives the weights that an artifact does not hold: those outside of the quantized part.

    Returns:
        the checkpoint, or the artifact as one.

    Raises:
        FileNotFoundError: if there is no such file or directory.
        ValueError: if it is neither, or cannot be read.

    Example:
        >>> import tempfile, torch
        >>> from lq.deployment.deploy import export_artifact
        >>> from lq.models.image_classifier import ImageClassifier
        >>> from lq.ptq.static import prepare_static
        >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.eye(4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = export_artifact(prepare_static(net, [x]), [x], folder)
        ...     checkpoint = read_qat(folder, None, ImageClassifier(net, 2))
        >>> checkpoint.is_qat, checkpoint.entry.target
        (True, 'model')
    """
    place = local_path(path)
    if place is None or not place.is_dir() or is_sharded_checkpoint(place):
        return Checkpoint.read(path, weights_only is not False)
    manifest = Field(read_manifest(place), str(place / "lq.json"))
    given = manifest.get("target", None)  # export_artifact does not know it
    target = choose_target(model, None if given.value is None else given.text())  # configure_model has run then
    entry = {
        "format_version": FORMAT_VERSION,
        "target": target,
        "qconfig": manifest["qconfig"].value,
        "started": True,
        "fp32": manifest.get("results", {}).mapping().get("fp32", {}),
        "plan": manifest["plan"].value,
    }
    return Checkpoint(place, {"state_dict": _whole_state(place, target, model), KEY: entry})


def _whole_state(place: Any, target: str, model: LightningModule) -> dict[str, Any]:
    """The state of the quantized part, and of the rest of the module as it is."""
    prefix = f"{target}." if target else ""
    held = {prefix + key: value for key, value in load_prepared_state(place).items()}
    rest = {key: value for key, value in model.state_dict().items() if key not in held}
    if rest:
        rank_zero_warn(f"lq: {place} holds no {some_of(rest, 3)}; they stay as {type(model).__name__} has them.")
    return {**rest, **held}
