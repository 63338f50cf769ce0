from __future__ import annotations

from pathlib import Path

import pytest

from lq.checkpoints.checkpoint import Checkpoint
from lq.cli.common import beside, history_of, run_of
from lq.report.plots import plot_metric, plot_scale_drift
from tests.tiny import Tiny, keeper, make_trainer, qat, train_loader, val_loader


def test_history_is_the_log_with_the_scales_of_the_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    kept = keeper(tmp_path / "kept")
    trainer = make_trainer(tmp_path, qat(), kept, max_epochs=2)
    trainer.fit(Tiny(), train_loader(), val_loader())
    entry = Checkpoint.read(kept.last_model_path).entry
    both = history_of(Path(trainer.log_dir or ""), entry)
    assert any("val_loss" in row for row in both)
    assert plot_metric(both).axes
    assert len(plot_scale_drift(both).axes[0].lines) == 4
    assert sum("qat/fake/accuracy" in row for row in both) == 2, "nothing comes twice"
    alone = history_of(tmp_path / "nowhere", entry)
    assert alone == list(entry.history)
    assert history_of(None) == []


def test_an_artifact_in_the_place_of_a_checkpoint_leads_to_the_same_run(tmp_path: Path) -> None:
    kept = keeper(tmp_path / "kept")
    trainer = make_trainer(tmp_path, qat(), kept, max_epochs=1)
    trainer.fit(Tiny(), train_loader(), val_loader())
    artifact = Path(trainer.log_dir or "", "int8")
    assert (artifact / "lq.json").is_file()
    assert run_of(None, str(artifact)) == artifact.parent
    assert any("val_loss" in row for row in history_of(run_of(None, str(artifact))))


def test_small_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_of(None, "last.ckpt") == tmp_path.parent, "a checkpoint may lie right here"
    assert run_of("int8", "elsewhere/last.ckpt") == tmp_path
    assert run_of(None, None) is None
    assert beside("a/last.ckpt") == Path("a/last-int8")
