"""Published models, unedited: a few of the zoo; ``python -m tests.zoo.trial`` tries them all."""

from __future__ import annotations

import pytest

from tests.tiny import quicken_deployment
from tests.zoo.catalogue import CATALOGUE
from tests.zoo.trial import PASSED, try_entry

QUICK = (
    "torch MultiheadAttention (cross)",
    "torch LSTM",
    "torch weight_norm (hook)",
    "torch spectral_norm (parametrization)",
    "torch prune",
    "torch Conv2dSame",
    "torch parameters and functions",
    "torch LayerDrop",
    "torch checkpoint",
    "torch reentrant checkpoint",
    "torch tied weights",
    "torch a layer registered twice",
    "torch dict to dataclass",
    "einops attention by rearrange",
    "timm lcnet_035",
    "timm tf_efficientnet_lite0",
    "transformers BertForSequenceClassification (labels)",
    "transformers DistilBertForSequenceClassification",
    "transformers GPT2LMHeadModel (Conv1D, tied weights)",
    "transformers ViTForImageClassification",
    "transformers SegformerForSemanticSegmentation",
    "transformers Wav2Vec2ForCTC (LayerDrop)",
    "transformers DetrForObjectDetection",
    "smp FPN mobilenet_v2",
    "smp DeepLabV3Plus mobilenet_v2",
)


@pytest.mark.parametrize("name", QUICK)
def test_it_runs_unedited(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = CATALOGUE[name]
    pytest.importorskip(entry.package)
    quicken_deployment(monkeypatch)
    outcome = try_entry(entry)
    assert not outcome.step, f"{outcome.step}: {outcome.error}"
    assert outcome.prepared
    assert outcome.trained
    assert outcome.equal_to_float
    assert outcome.converted
    assert outcome.exported == {"torch": PASSED}
    if entry.kind == "recurrent":  # work that is not counted
        assert outcome.share_int8 is None
    else:
        assert outcome.share_int8 is not None
        assert outcome.share_int8 >= entry.least_share
