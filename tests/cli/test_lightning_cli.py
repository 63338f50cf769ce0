from __future__ import annotations

from pathlib import Path

import torch

from lq.callback import QATCallback
from lq.checkpoints.entry import KEY, CheckpointEntry
from lq.cli.lightning_cli import _callback_of, _has
from lq.config.qconfig import QConfig


class Holder:
    class Inner:
        pass


def test_a_callback_may_be_made_by_a_function_or_be_a_nested_class() -> None:
    others = [{"class_path": f"{__name__}.Holder.Inner"}, {"class_path": "builtins.print"}]
    assert not _has(others, QATCallback)
    assert _has([*others, {"class_path": "lq.QATCallback"}], QATCallback)


def test_the_folder_of_a_sharded_qat_checkpoint_brings_its_callback(tmp_path: Path) -> None:
    (tmp_path / ".metadata").touch()
    torch.save({}, tmp_path / "meta.pt")
    assert _callback_of(str(tmp_path), None) == []
    torch.save({KEY: CheckpointEntry("net", QConfig("x86_vnni"), started=True).to_dict()}, tmp_path / "meta.pt")
    (callback,) = _callback_of(str(tmp_path), None)
    assert (callback.target, callback.qconfig) == ("net", QConfig("x86_vnni"))
    assert _callback_of("s3://bucket/last.ckpt", None) == _callback_of("best", None) == []
