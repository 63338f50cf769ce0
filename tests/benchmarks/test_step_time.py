"""The benchmark of the training step, at tiny size."""

import json
import shutil

import pytest
import torch

from benchmarks import step_time
from benchmarks._variants import VARIANTS, Step, build, cases
from lq.core import native

pytest.importorskip("torchvision")
# In images of 32 the last BatchNorms would see two values a channel, and the training of efficientnet_lite0 diverges.
TINY = ["--batch", "2", "--size", "64", "--rounds", "1"]


# What lq makes of this network is in the zoo; of 32x32 pixels its last BatchNorms would get one value an image, and
# their gradients explode.
LITE = ["--size", "64", "--variants", "stock eager", "lq, observers on"]


@pytest.mark.parametrize(
    ("model", "options", "absent"),
    [
        ("mobilenet_v2", [], set()),
        ("efficientnet_lite0", LITE, {"stock eager"}),
        ("vit_tiny", [], {"stock eager", "lq, BN frozen", "lq, BN frozen, bytes"}),
        ("mlp", [], {"lq, BN frozen", "lq, BN frozen, bytes"}),
    ],
)
def test_every_variant_that_exists_is_measured(model, options, absent, tmp_path, capsys):
    if model in ("efficientnet_lite0", "vit_tiny"):
        pytest.importorskip("timm")
    file = tmp_path / "step_time.json"
    step_time.main([*TINY, *options, "--models", model, "--json", str(file)])
    rows = {row["step"]: row for row in json.loads(file.read_text())["rows"]}
    assert set(rows) == ({"float", *options[3:]} if options else set(VARIANTS))
    assert {step for step, row in rows.items() if "ms" not in row} == absent
    assert all(rows[step]["note"] for step in absent)
    assert rows["float"]["ratio"] == 1.0
    assert all(row["ms"] > 0 and 0.1 < row["ratio"] < 100 for step, row in rows.items() if step not in absent)
    assert model in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_steps_are_compared_with_the_compiled_float_step():
    rows = step_time.main([*TINY, "--models", "mlp", "--variants", "lq, observers off", "--compile"])
    by_name = {row["step"]: row for row in rows}
    assert list(by_name) == ["float", "lq, observers off", "float, compiled", "lq, observers off, compiled"]
    assert by_name["float, compiled"]["ratio"] == 1.0
    compiled = by_name["lq, observers off, compiled"]
    assert compiled["ratio"] == pytest.approx(compiled["ms"] / by_name["float, compiled"]["ms"])


def test_steps_without_c_are_measured_beside_those_with_it():
    rows = step_time.main([*TINY, "--models", "mlp", "--variants", "lq, observers on", "--without-c"])
    assert [row["step"] for row in rows] == ["float", "lq, observers on", "lq, observers on, without C"]
    case = cases(8)["mlp"]
    x, y = case.batch(1, torch.device("cpu"))
    for c in (True, False):
        step = Step.of(build("lq, observers on", case, x), x, y, c=c)
        with torch.autograd.profiler.profile() as profile:
            step()
        rounds = "aten::round_" in {event.name for event in profile.function_events}
        assert rounds == (not c or native.library().functions is None)


def test_without_its_package_a_model_is_left_out(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)  # what an import finds where it is not installed
    rows = step_time.main([*TINY, "--models", "vit_tiny"])
    assert rows == [{"model": "vit_tiny", "precision": "32", "step": "float", "note": "timm is not installed"}]
    assert "timm is not installed" in capsys.readouterr().out


def test_an_unknown_model_is_refused(capsys):
    with pytest.raises(SystemExit):
        step_time.main(["--models", "resnet"])
    assert "resnet18" in capsys.readouterr().err
