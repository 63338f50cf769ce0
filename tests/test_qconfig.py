from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
import torch
from torch import nn

from lq.qconfig import PRESETS, LayerQConfig, QConfig, as_qconfig, matches
from lq.specs import ActivationSpec, WeightSpec


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


def test_the_last_matching_override_wins():
    four, two = LayerQConfig(WeightSpec(-7, 7)), LayerQConfig(WeightSpec(-1, 1), ActivationSpec(0, 15))
    qconfig = QConfig(overrides={"type:Conv2d": four, "body.*": two, "body.last": LayerQConfig()})
    conv = nn.Conv2d(1, 1, 1)
    assert qconfig.weight_spec("head", conv) == WeightSpec(-7, 7)
    assert qconfig.weight_spec("body.0", conv) == WeightSpec(-1, 1)
    assert qconfig.activation_spec("body.0", conv) == ActivationSpec(0, 15)
    assert qconfig.weight_spec("body.last", conv) == WeightSpec()


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


class MyLinear(nn.Linear):
    pass


def test_patterns_name_modules_or_types():
    assert matches("layer?.*", "layer1.0", None)
    assert not matches("Layer?.*", "layer1.0", None)
    assert matches("type:Linear", "x", MyLinear(1, 1))
    assert not matches("type:Linear", "x", None)


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
