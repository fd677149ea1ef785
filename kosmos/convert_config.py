"""Configurations of Hugging Face's Kosmos-2 and of torchscale decoders, translated to ours and back."""

from __future__ import annotations

from typing import Any

from .configuration_kosmos import KosmosConfig
from .modalities import IMAGE, MODALITIES


def kosmos2_config(fields: dict[str, Any]) -> KosmosConfig:
    """Translate the fields of a ``Kosmos2Config``."""
    from transformers import Kosmos2Config

    theirs = Kosmos2Config(**fields)
    text, vision = theirs.text_config, theirs.vision_config
    if text.layerdrop or text.add_cross_attention:
        raise ValueError("Kosmos-2 with layerdrop or cross-attention is not supported")
    known = text.vocab_size > 64004
    return KosmosConfig(
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.embed_dim,
            "intermediate_size": text.ffn_dim,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.attention_heads,
            "hidden_act": text.activation_function,
            "dropout": text.dropout,
            "attention_dropout": text.attention_dropout,
            "activation_dropout": text.activation_dropout,
            "layer_norm_eps": text.layer_norm_eps,
            "scale_embedding": text.scale_embedding,
            "position_type": "sinusoidal",
            "max_position_embeddings": text.max_position_embeddings,
            "initialization": "normal",
            "initializer_range": text.init_std,
            **{name: getattr(text, name) for name in SAME_TEXT_FIELDS},
        },
        vision_config={"backend": "clip", "model_config": {name: getattr(vision, name) for name in VISION_FIELDS}},
        connector_config={"kind": "xconnector", "num_queries": theirs.latent_query_num},
        image_token_id=text.vocab_size,
        boi_token_id=64003 if known else None,
        eoi_token_id=64004 if known else None,
        tie_word_embeddings=theirs.tie_word_embeddings or text.tie_word_embeddings,  # there one of them is enough
    )


SAME_TEXT_FIELDS = ("use_cache", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
VISION_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size"),
    *("patch_size", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range", "initializer_factor"),
)


def hf_kosmos2_fields(config: KosmosConfig) -> dict[str, Any]:
    """Translate our configuration into the fields of a ``Kosmos2Config``.

    Raises:
        ValueError: Kosmos-2 has no such architecture.
    """
    text, vision = config.text_config, config.vision_config
    others = {name: kind for name, kind in MODALITIES.items() if kind is not IMAGE}
    has = {
        "position_type": (text.position_type, "sinusoidal"),
        "sub_layer_norm": (text.sub_layer_norm, True),
        "routing_layers": (text.routing_layers, None),
        "vision backend": (vision.backend if vision else None, "clip"),
        "l2_normalize": (vision.l2_normalize if vision else None, True),
        "connector": (config.connector_config.kind, "xconnector"),
        "connector heads": (config.connector_config.num_heads or text.num_attention_heads, text.num_attention_heads),
        "coupling": (config.coupling, "input"),
        **{f"{name} encoder": (kind.described(config) is not None, False) for name, kind in others.items()},
    }
    wrong = [f"{name} is {ours!r}, Kosmos-2 has {theirs!r}" for name, (ours, theirs) in has.items() if ours != theirs]
    if wrong:
        raise ValueError(f"cannot be written as Kosmos-2: {'; '.join(wrong)}")
    return {
        "text_config": {
            "vocab_size": text.vocab_size,
            "embed_dim": text.hidden_size,
            "ffn_dim": text.intermediate_size,
            "layers": text.num_hidden_layers,
            "attention_heads": text.num_attention_heads,
            "activation_function": text.hidden_act,
            "dropout": text.dropout,
            "attention_dropout": text.attention_dropout,
            "activation_dropout": text.activation_dropout,
            "layer_norm_eps": text.layer_norm_eps,
            "scale_embedding": text.scale_embedding,
            "max_position_embeddings": text.max_position_embeddings,
            "init_std": text.initializer_range,
            **{name: getattr(text, name) for name in SAME_TEXT_FIELDS},
        },
        "vision_config": dict(vision.model_config),
        "latent_query_num": config.connector_config.num_queries,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


# What a torchscale DecoderConfig must not ask for, because no Kosmos decoder does it.
TORCHSCALE_REFUSED = (
    *("deepnorm", "moe_freq", "rel_pos_buckets", "multiway", "layernorm_embedding", "drop_path_rate"),
    *("no_output_layer", "segment_length", "dilated_ratio"),
)
TORCHSCALE_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "swish": "silu"}


def torchscale_config(fields: dict[str, Any], embedding: tuple[int, ...]) -> KosmosConfig:
    """Translate the fields of a torchscale ``DecoderConfig``; ``embedding`` is the shape of its embeddings.

    Raises:
        ValueError: an architecture that is not sub-LN with xPos, or a vocabulary that contradicts the weights.
    """
    for name in TORCHSCALE_REFUSED:
        if fields.get(name):
            raise ValueError(f"torchscale config: {name}={fields[name]!r} is not supported; only sub-LN with xPos is")
    if not fields.get("subln", True) or not fields.get("xpos_rel_pos", False):
        found = {name: fields.get(name, default) for name, default in (("subln", True), ("xpos_rel_pos", False))}
        raise ValueError(f"torchscale config: {found}; only sub-LN decoders with xPos are supported")
    activation = fields.get("activation_fn", "gelu")
    if activation not in TORCHSCALE_ACTIVATIONS:
        raise ValueError(f"torchscale config: activation_fn {activation!r}, known: {list(TORCHSCALE_ACTIVATIONS)}")
    vocabulary, width = fields.get("vocab_size", -1), fields.get("decoder_embed_dim", 768)
    if embedding != (vocabulary if vocabulary > 0 else embedding[0], width):
        raise ValueError(f"config.json says {vocabulary} tokens of width {width}, embed_tokens.weight is {embedding}")
    tied = bool(fields.get("share_decoder_input_output_embed", False))
    return KosmosConfig(
        text_config={
            "vocab_size": embedding[0],
            "hidden_size": width,
            "intermediate_size": fields.get("decoder_ffn_embed_dim", 3072),
            "num_hidden_layers": fields.get("decoder_layers", 12),
            "num_attention_heads": fields.get("decoder_attention_heads", 12),
            "hidden_act": TORCHSCALE_ACTIVATIONS[activation],
            "dropout": fields.get("dropout", 0.0),
            "attention_dropout": fields.get("attention_dropout", 0.0),
            "activation_dropout": fields.get("activation_dropout", 0.0),
            "layer_norm_eps": fields.get("layernorm_eps", 1e-5),
            "scale_embedding": not fields.get("no_scale_embedding", True),
            "position_type": "xpos",
            "xpos_scale_base": fields.get("xpos_scale_base", 512),
            "max_position_embeddings": fields.get("max_target_positions", 1024),
            "initialization": "magneto_torchscale",
            "tie_word_embeddings": tied,
        },
        image_token_id=None,
        boi_token_id=None,
        eoi_token_id=None,
        tie_word_embeddings=tied,
    )
