"""``lq bench``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lq.callback import QATCallback
from tests.cli.runs import quiet_trainer
from tests.tiny import Tiny


def test_bench_prints_and_writes(
    tmp_path: Path, trained: tuple[Path, QATCallback], capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = trained[1].deployment
    assert deployment is not None
    out = tmp_path / "new" / "bench.json"
    quiet_trainer(tmp_path).bench(
        Tiny(), artifact=str(deployment.directory), batch_sizes=[1, 2], min_time=0.01, compile=False, json_file=str(out)
    )
    rows = json.loads(out.read_text())["rows"]
    assert {row["model"] for row in rows} == {"fp32 eager", "fp32 frozen", "fp32 fused", "int8 torch"}
    assert {row["batch_size"] for row in rows} == {1, 2}
    assert "int8 torch" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--artifact"):
        quiet_trainer(tmp_path).bench(Tiny())


def test_without_a_model_the_float_rows_are_left_out(tmp_path: Path, trained: tuple[Path, QATCallback]) -> None:
    assert trained[1].deployment is not None
    out = tmp_path / "bench.json"
    quiet_trainer(tmp_path).bench(
        artifact=str(trained[1].deployment.directory), batch_sizes=[1], min_time=0.01, compile=False, json_file=str(out)
    )
    assert [row["model"] for row in json.loads(out.read_text())["rows"]] == ["int8 torch"]
