"""The benchmark of several processes, at tiny size."""

import pytest

from benchmarks import distributed

TINY = ["--processes", "2", "--batch", "2", "--size", "32", "--rounds", "1", "--steps", "1"]


def test_every_phase_is_measured_and_all_processes_keep_the_same_ranges(capsys):
    rows = {row["step"]: row for row in distributed.main([*TINY, "--models", "mlp", "--precision", "bf16"])}
    assert list(rows) == [
        "float",
        "lq, before start",
        "lq, observers on",
        "lq, observers off",
        "lq, observers on, bytes",
    ]
    assert all(row["ms"] > 0 for row in rows.values())
    assert rows["float"]["ratio"] == 1.0
    assert [row["ranges"] for row in rows.values()] == ["", "", "equal", "equal", "equal"]
    assert "2 processes" in capsys.readouterr().out


def test_batch_statistics_over_processes_need_gpus():
    with pytest.raises(SystemExit, match="add --device cuda"):
        distributed.main([*TINY, "--sync-batchnorm"])
