"""Hugging Face transformers: text, vision and audio, tiny, from configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.entry import Entry, Inputs, Kind, default_loss, images, tokens

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VOCABULARY = {"vocab_size": 64, "max_position_embeddings": 32}
DECODER = {**SMALL, **VOCABULARY, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


def _entry(
    name: str,
    config: str,
    inputs: Callable[[], Inputs],
    options: dict[str, Any],
    kind: Kind = "transformer",
    notes: str = "",
    training_mode: Callable[[nn.Module], None] | None = None,
) -> Entry:
    """A model class and its configuration class, by their names in transformers."""

    def build() -> nn.Module:
        import transformers

        model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**options))
        if training_mode is not None:
            training_mode(model)
        return model

    title = f"transformers {name}" + (f" ({notes})" if notes else "")
    return Entry(title, "transformers", build, inputs, loss=_loss, kind=kind, notes=notes)


def _loss(output: Any) -> Tensor:
    """The model's own loss where it was given labels."""
    loss = output.get("loss") if isinstance(output, dict) else None
    return loss if isinstance(loss, Tensor) else default_loss(output)


def _ids() -> Inputs:
    return (), {"input_ids": tokens(), "attention_mask": _mask()}


def _mask() -> Tensor:
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return mask


def _unpadded() -> Inputs:
    return (), {"input_ids": tokens()}


def _with_labels() -> Inputs:
    return (), {"input_ids": tokens(), "attention_mask": _mask(), "labels": torch.tensor([0, 1])}


def _pair() -> Inputs:
    return (), {"input_ids": tokens(), "attention_mask": _mask(), "decoder_input_ids": tokens(length=5)}


def _pixels(size: int = 32) -> Callable[[], Inputs]:
    return lambda: ((), {"pixel_values": images(4, size)})


def _wave() -> Inputs:
    return (), {"input_values": torch.randn(2, 1600)}


def _reentrant(model: Any) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})


def _not_reentrant(model: Any) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def entries() -> Iterable[Entry]:
    """Text, then vision, then audio and both together."""
    yield from _encoders()
    yield from _decoders()
    yield from _vision()
    yield from _dense_vision()
    yield from _audio()
    yield _clip()


def _encoders() -> Iterable[Entry]:
    both = {**SMALL, **VOCABULARY}
    yield _entry("BertModel", "BertConfig", _ids, both)
    yield _entry("BertForSequenceClassification", "BertConfig", _with_labels, both, notes="labels")
    yield _entry("BertForMaskedLM", "BertConfig", _unpadded, both, notes="tied weights")
    yield _entry("BertModel", "BertConfig", _ids, both, notes="checkpointing", training_mode=_not_reentrant)
    yield _entry("BertModel", "BertConfig", _ids, both, notes="reentrant checkpointing", training_mode=_reentrant)
    eager = {**both, "attn_implementation": "eager"}
    yield _entry("BertModel", "BertConfig", _ids, eager, notes="eager attention")
    distil = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, **VOCABULARY}
    yield _entry("DistilBertForSequenceClassification", "DistilBertConfig", _ids, distil)
    yield _entry("RobertaForSequenceClassification", "RobertaConfig", _ids, {**both, "pad_token_id": 0})
    yield _entry("XLMRobertaForTokenClassification", "XLMRobertaConfig", _ids, {**both, "pad_token_id": 0})
    yield _entry("AlbertModel", "AlbertConfig", _ids, {**both, "embedding_size": 16}, notes="layers shared")
    yield _entry("ElectraForSequenceClassification", "ElectraConfig", _ids, {**both, "embedding_size": 16})
    relative = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
    yield _entry("DebertaV2ForSequenceClassification", "DebertaV2Config", _ids, {**both, **relative})
    yield _entry("MPNetModel", "MPNetConfig", _ids, both)
    bottlenecks = {**both, "intra_bottleneck_size": 32, "embedding_size": 16}
    yield _entry("MobileBertModel", "MobileBertConfig", _ids, bottlenecks)
    grouped = {"q_groups": 2, "k_groups": 2, "v_groups": 2, "post_attention_groups": 1, "embedding_size": 32}
    yield _entry("SqueezeBertModel", "SqueezeBertConfig", _ids, {**both, **grouped})
    yield _entry("FNetModel", "FNetConfig", _unpadded, both, notes="Fourier transforms")
    yield _entry("ModernBertModel", "ModernBertConfig", _ids, {**DECODER, "cls_token_id": 1, "sep_token_id": 1})


def _decoders() -> Iterable[Entry]:
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "use_cache": False}
    yield _entry("T5EncoderModel", "T5Config", _ids, t5)
    yield _entry("T5Model", "T5Config", _pair, t5)
    bart = {
        "d_model": 32,
        **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
        **VOCABULARY,
        "use_cache": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "forced_eos_token_id": 1,
    }
    yield _entry("BartModel", "BartConfig", _pair, bart)
    dropped = {**bart, "encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}
    yield _entry("BartModel", "BartConfig", _pair, dropped, notes="LayerDrop")
    yield _entry("MarianModel", "MarianConfig", _pair, {**bart, "decoder_start_token_id": 0})
    gpt = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 64, "use_cache": False}
    yield _entry("GPT2Model", "GPT2Config", _ids, gpt, notes="Conv1D")
    yield _entry("GPT2LMHeadModel", "GPT2Config", _ids, gpt, notes="Conv1D, tied weights")
    opt = {key: value for key, value in DECODER.items() if key != "intermediate_size"}
    yield _entry("OPTModel", "OPTConfig", _ids, {**opt, "ffn_dim": 64, "word_embed_proj_dim": 32})
    yield _entry("LlamaForCausalLM", "LlamaConfig", _ids, {**DECODER, "num_key_value_heads": 2})
    yield _entry("Qwen2Model", "Qwen2Config", _ids, {**DECODER, "num_key_value_heads": 2})
    yield _entry("GPTNeoXModel", "GPTNeoXConfig", _ids, DECODER)


def _vision() -> Iterable[Entry]:
    vit = {**SMALL, "image_size": 32, "patch_size": 8}
    yield _entry("ViTForImageClassification", "ViTConfig", _pixels(), vit)
    yield _entry("DeiTForImageClassificationWithTeacher", "DeiTConfig", _pixels(), vit)
    yield _entry("BeitForImageClassification", "BeitConfig", _pixels(), {**vit, "use_relative_position_bias": True})
    yield _entry("Dinov2Model", "Dinov2Config", _pixels(), vit)
    swin = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
    yield _entry("SwinForImageClassification", "SwinConfig", _pixels(), swin)
    yield _entry("Swinv2ForImageClassification", "Swinv2Config", _pixels(), swin)
    convnext = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}
    yield _entry("ConvNextForImageClassification", "ConvNextConfig", _pixels(64), convnext, "conv")
    yield _entry("ConvNextV2ForImageClassification", "ConvNextV2Config", _pixels(64), convnext, "conv")
    resnet = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    yield _entry("ResNetForImageClassification", "ResNetConfig", _pixels(), resnet, "conv")
    yield _entry(
        "MobileNetV1ForImageClassification", "MobileNetV1Config", _pixels(64), {"depth_multiplier": 0.25}, "conv"
    )
    yield _entry(
        "MobileNetV2ForImageClassification", "MobileNetV2Config", _pixels(64), {"depth_multiplier": 0.35}, "conv"
    )
    mobilevit = {"image_size": 64, "hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96]}
    yield _entry("MobileViTForImageClassification", "MobileViTConfig", _pixels(64), mobilevit)
    yield _entry("LevitForImageClassification", "LevitConfig", _pixels(64), {"image_size": 64, "depths": [1, 1, 1]})
    pooled = {"hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}
    yield _entry("PoolFormerForImageClassification", "PoolFormerConfig", _pixels(64), pooled, "conv")
    pvt = {
        "image_size": 64,
        "hidden_sizes": [16, 16, 32, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
    }
    yield _entry("PvtV2ForImageClassification", "PvtV2Config", _pixels(64), pvt)


def _dense_vision() -> Iterable[Entry]:
    segformer = {
        "hidden_sizes": [16, 16, 32, 32],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 32,
    }
    yield _entry("SegformerForSemanticSegmentation", "SegformerConfig", _pixels(64), segformer)
    vit = {**SMALL, "image_size": 32, "patch_size": 8}
    dpt = {
        **vit,
        "backbone_out_indices": [0, 1],
        "neck_hidden_sizes": [16, 16],
        "fusion_hidden_size": 16,
        "reassemble_factors": [2, 1],
    }
    yield _entry("DPTForSemanticSegmentation", "DPTConfig", _pixels(), dpt)
    yield Entry("transformers DetrForObjectDetection", "transformers", _detr, _pixels(64), kind="transformer")
    yolos = {**vit, "image_size": [32, 32], "num_detection_tokens": 5, "use_mid_position_embeddings": False}
    yield _entry("YolosForObjectDetection", "YolosConfig", _pixels(), yolos)


def _detr() -> nn.Module:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 32, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=5,
    )
    return DetrForObjectDetection(config)


def _audio() -> Iterable[Entry]:
    wave = {
        **SMALL,
        "conv_dim": (16, 16, 16),
        "conv_stride": (5, 4, 2),
        "conv_kernel": (10, 8, 4),
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "vocab_size": 32,
        "apply_spec_augment": False,
    }
    yield _entry("Wav2Vec2Model", "Wav2Vec2Config", _wave, {**wave, "layerdrop": 0.0}, notes="weight norm")
    yield _entry("Wav2Vec2ForCTC", "Wav2Vec2Config", _wave, {**wave, "layerdrop": 0.5}, notes="LayerDrop")
    yield _entry("HubertModel", "HubertConfig", _wave, {**wave, "layerdrop": 0.0}, notes="weight norm")
    whisper = {
        "d_model": 32,
        **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
        "vocab_size": 64,
        "num_mel_bins": 16,
        "max_source_positions": 20,
        "max_target_positions": 16,
        "use_cache": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "decoder_start_token_id": 1,
    }
    spoken: Callable[[], Inputs] = lambda: (  # noqa: E731
        (),
        {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": tokens(length=5)},
    )
    yield _entry("WhisperModel", "WhisperConfig", spoken, whisper)
    spectrogram: Callable[[], Inputs] = lambda: ((), {"input_values": torch.randn(2, 32, 16)})  # noqa: E731
    yield _entry("ASTModel", "ASTConfig", spectrogram, {**SMALL, "patch_size": 8, "max_length": 32, "num_mel_bins": 16})


def _clip() -> Entry:
    text = {**SMALL, **VOCABULARY, "projection_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    options = {"text_config": text, "vision_config": vision, "projection_dim": 16}
    inputs: Callable[[], Inputs] = lambda: ((), {"input_ids": tokens(), "pixel_values": images(2)})  # noqa: E731
    return _entry("CLIPModel", "CLIPConfig", inputs, options)
