from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from lq.config.presets import PRESETS
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.reading import as_qconfig
from lq.config.specs import ActivationSpec, WeightSpec


def test_everything_is_frozen_and_survives_pickling():
    qconfig = QConfig("portable", overrides={"fc": LayerQConfig(WeightSpec(-7, 7))}, exclude=["a.*"])
    assert pickle.loads(pickle.dumps(qconfig)) == qconfig
    for value in (qconfig, WeightSpec(), ActivationSpec(), LayerQConfig()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.anything = 1


def test_unknown_presets_engines_and_types_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"preset 'x68'. Choose one of .*'portable': 7-bit"):
        QConfig("x68")
    with pytest.raises(ValueError, match="'tpu' is not supported by this CPU's torch; supported:"):
        QConfig(engine="tpu")
    with pytest.raises(ValueError, match=r"write include=\['conv1'\]"):
        QConfig(include="conv1")
    with pytest.raises(ValueError, match="a preset's name or a QConfig, got int"):
        as_qconfig(8)  # type: ignore[arg-type]


def test_a_preset_gives_what_is_not_given():
    qconfig = QConfig("x86_vnni", weight=WeightSpec(-7, 7))
    assert qconfig.weight_spec("any", nn.Linear(1, 1)) == WeightSpec(-7, 7)
    assert qconfig.activation_spec("any", None) == PRESETS["x86_vnni"].activation
    assert as_qconfig("x86_vnni") == QConfig("x86_vnni")


def test_a_later_override_changes_what_it_gives_on_top_of_earlier_ones():
    four, two = LayerQConfig(WeightSpec(-7, 7)), LayerQConfig(WeightSpec(-1, 1), ActivationSpec(0, 15))
    qconfig = QConfig(overrides={"type:Conv2d": four, "body.*": two, "body.last": LayerQConfig()})
    conv = nn.Conv2d(1, 1, 1)
    assert qconfig.weight_spec("head", conv) == WeightSpec(-7, 7)
    assert qconfig.weight_spec("body.0", conv) == WeightSpec(-1, 1, observer="mse")
    assert qconfig.activation_spec("body.0", conv) == ActivationSpec(0, 15)
    assert qconfig.activation_spec("head", conv) == ActivationSpec()
    assert qconfig.weight_spec("body.last", conv) == WeightSpec(-1, 1, observer="mse")


GRIDS = [
    # what qconfig.weight says, what the override says, what comes out
    (WeightSpec(-7, 7, observer="mse"), WeightSpec(-31, 31), WeightSpec(-31, 31, observer="mse")),
    (WeightSpec(-7, 7, observer="mse"), {"observer": "minmax"}, WeightSpec(-7, 7)),
    (WeightSpec(-7, 7, per_channel=False), {"quant_min": -63, "quant_max": 63}, WeightSpec(-63, 63, per_channel=False)),
    ({"observer": "mse"}, {"per_channel": False}, WeightSpec(-127, 127, per_channel=False, observer="mse")),
    (None, WeightSpec(), WeightSpec(-127, 127)),
]


@pytest.mark.parametrize(("own", "override", "expected"), GRIDS)
def test_an_override_changes_what_it_gives_and_no_more(own, override, expected):
    for given in (override, WeightSpec(**override) if isinstance(override, dict) else override.as_given()):
        qconfig = QConfig("qnnpack", weight=own, overrides={"fc": {"weight": given}})
        for again in (qconfig, QConfig.from_dict(json.loads(json.dumps(qconfig.as_given()))), pickled(qconfig)):
            assert again.weight_spec("fc", nn.Linear(1, 1)) == expected
            assert again.weight_spec("other", nn.Linear(1, 1)) == qconfig.resolved_weight


def test_weights_of_two_bits_have_scales_of_least_squares_unless_something_else_is_given():
    conv, two = nn.Conv2d(1, 1, 1), WeightSpec(-1, 1)
    assert QConfig(weight=two).resolved_weight.observer == "mse"
    assert QConfig(weight=two).weight_spec("a", conv).observer == "mse"
    assert QConfig(weight=WeightSpec(-1, 1, observer="minmax")).weight_spec("a", conv).observer == "minmax"
    assert QConfig(weight=WeightSpec(-2, 2)).weight_spec("a", conv).observer == "minmax"
    mixed = QConfig(
        weight=two, overrides={"a": {"weight": WeightSpec(-127, 127)}, "b": {"weight": {"observer": "minmax"}}}
    )
    assert mixed.weight_spec("a", conv) == WeightSpec(-127, 127)
    assert mixed.weight_spec("b", conv).observer == "minmax"
    assert QConfig(overrides={"a": {"weight": two}}).weight_spec("a", conv).observer == "mse"
    again = QConfig.from_dict(mixed.as_given())
    assert again.weight_spec("a", conv) == WeightSpec(-127, 127)


def pickled(qconfig: QConfig) -> QConfig:
    return pickle.loads(pickle.dumps(copy.deepcopy(qconfig)))


def test_a_grid_lies_on_top_of_that_of_the_preset():
    qconfig = QConfig("tensorrt", activation=ActivationSpec(observer="histogram"))
    assert qconfig.activation_spec("x", None) == ActivationSpec(-128, 127, symmetric=True, observer="histogram")
    qconfig = QConfig("tensorrt", activation=ActivationSpec(0, 15))  # a range without negative integers is affine
    assert qconfig.activation_spec("x", None) == ActivationSpec(0, 15)
    four = {"activation": {"quant_min": -8, "quant_max": 7}}
    assert QConfig("tensorrt", overrides={"x": four}).activation_spec("x", None) == ActivationSpec(
        -8, 7, symmetric=True
    )
    with pytest.raises(ValueError, match="symmetric=True needs a signed range"):
        QConfig(activation={"symmetric": True}).activation_spec("x", None)


def test_a_vendor_yields_to_what_an_override_gives_and_to_no_more():
    vendor, override = ActivationSpec(-128, 127, symmetric=True), {"x": {"activation": {"observer": "mse"}}}
    found = QConfig(overrides=override).activation_spec("x", None, vendor)
    assert found == ActivationSpec(-128, 127, symmetric=True, observer="mse")


def test_differences_are_those_of_what_is_meant():
    spelled_out = WeightSpec(-63, 63, True, False, "minmax")
    assert QConfig(weight=spelled_out).differences(QConfig()) == []
    few = QConfig(weight=WeightSpec(-7, 7, observer="mse"), overrides={"fc": {"weight": {"per_channel": False}}})
    assert few.differences(few) == []
    assert "overrides" in " ".join(few.differences(replace_override(few, {"per_channel": True})))
    assert any(row.startswith("weight={'quant_min': -7") for row in few.differences(QConfig()))


def replace_override(qconfig: QConfig, given: dict[str, bool]) -> QConfig:
    return dataclasses.replace(qconfig, overrides={"fc": {"weight": given}})


YAML = """
qconfig:
  preset: x86_vnni
  weight: {observer: mse}
  overrides:
    fc: {weight: {quant_min: -7, quant_max: 7}}
    "*": {activation: {percentile: 99.0}}
"""


def test_yaml_gives_what_it_says_and_no_more(tmp_path: Path):
    jsonargparse = pytest.importorskip("jsonargparse")
    (tmp_path / "settings.yaml").write_text(YAML)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--qconfig", type=QConfig)
    given = ["--config", str(tmp_path / "settings.yaml"), "--qconfig.weight.per_channel=false"]
    parsed = parser.parse_args(given)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    qconfig = instantiate(parsed).qconfig
    assert qconfig.resolved_weight == WeightSpec(-127, 127, per_channel=False, observer="mse")
    assert qconfig.weight_spec("fc", nn.Linear(1, 1)) == WeightSpec(-7, 7, per_channel=False, observer="mse")
    assert qconfig.activation_spec("fc", None) == ActivationSpec(percentile=99.0)
    assert "per_channel" not in str(parser.dump(parsed)).partition("overrides")[2]


def test_include_and_exclude():
    qconfig = QConfig(include=("body.*", "type:Linear"), exclude=("body.0",))
    assert qconfig.excludes("body.0", nn.Conv2d(1, 1, 1)) == "exclude 'body.0'"
    assert qconfig.excludes("body.1", nn.Conv2d(1, 1, 1)) is None
    assert qconfig.excludes("head", nn.Linear(1, 1)) is None
    assert qconfig.excludes("stem", nn.Conv2d(1, 1, 1)) == "not in include"


@pytest.mark.parametrize("kind", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_an_error(kind: str):
    with pytest.raises(ValueError, match=rf"qconfig.{kind}: pattern 'fx' matches no module. Use a glob .*\(fc\)"):
        QConfig(**{kind: ("fx",)}).check_patterns({"fc": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match=r"qconfig\.overrides: pattern 'type:Conv2d'"):
        QConfig(overrides={"type:Conv2d": LayerQConfig()}).check_patterns({"fc": nn.Linear(1, 1)})


@pytest.mark.parametrize("preset", PRESETS)
def test_manifests_hold_everything_resolved(preset: str):
    if PRESETS[preset].engine not in torch.backends.quantized.supported_engines:
        pytest.skip("another CPU's engine")
    plain = QConfig(preset, overrides={"fc": LayerQConfig(WeightSpec(-7, 7))}).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["engine"] == PRESETS[preset].engine
    assert plain["weight"]["quant_max"] == PRESETS[preset].weight.quant_max
    assert plain["activation"]["quant_max"] == PRESETS[preset].activation.quant_max
    assert plain["overrides"]["fc"]["weight"]["quant_max"] == 7
