import json

import pytest
import torch
from torch import nn

from lq.analysis.resume import ResultFile, fingerprint


def test_results_are_on_the_disk_at_once(tmp_path):
    path = tmp_path / "deep" / "rows.json"
    file = ResultFile(path, {"model": "a", "data": [None, 1.5]})
    file.add("conv", 1.25)
    assert json.loads(path.read_text())["results"] == {"conv": 1.25}
    again = ResultFile(path, {"model": "a", "data": [None, 1.5]})
    again.add("fc", float("inf"))
    assert ResultFile(path, again.key).results == {"conv": 1.25, "fc": float("inf")}
    assert [file.name for file in path.parent.iterdir()] == ["rows.json"]


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = ResultFile(None, {})
    file.add("conv", 1.0)
    assert file.results == {"conv": 1.0}
    assert not list(tmp_path.iterdir())


def test_what_differs_is_named(tmp_path):
    ResultFile(tmp_path / "rows.json", {"model": "a", "metric": "m"}).add("conv", 1.0)
    with pytest.raises(ValueError, match=r"belongs to something else: model differ. Delete it"):
        ResultFile(tmp_path / "rows.json", {"model": "b", "metric": "m"})


def test_or_replaced_if_that_is_wanted(tmp_path):
    path = tmp_path / "rows.json"
    ResultFile(path, {"model": "a"}).add("conv", 1.0)
    assert ResultFile(path, {"model": "a"}, replace_other=True).results == {"conv": 1.0}
    other = ResultFile(path, {"model": "b"}, replace_other=True)
    other.add("fc", 2.0)
    assert ResultFile(path, {"model": "b"}).results == {"fc": 2.0}


@pytest.mark.parametrize("content", ["", "[]", '{"key": {}}', '{"key": {}, "results": {"a": "b"}}'])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"rows.json' holds no results"):
        ResultFile(path, {})
    assert path.read_text() == content


def test_a_fingerprint_changes_with_any_value_and_nothing_else():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = fingerprint(model)
    assert fingerprint(model.eval()) == before
    with torch.no_grad():
        model[1].running_mean[0] += 1e-6
    assert fingerprint(model) != before
