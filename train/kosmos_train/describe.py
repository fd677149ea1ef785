"""What a run's settings say of its model: preset or checkpoint, published encoders, ``overrides``, and processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kosmos.configuration_kosmos import FURTHER, KosmosConfig
from kosmos.docking import find_language_model, read_config
from kosmos.encoder_configs import QUERYING
from kosmos.hub import is_name
from kosmos.limits import read_object
from kosmos.loading import encoder_folder, find_checkpoint
from kosmos.modalities import MODALITIES, Modality, text_encoder
from kosmos.suggest import suggest
from kosmos.tokenization_kosmos import ENTITY_SLOT

from .config import WEIGHTS, DecoderConfig, ModelConfig


def build_config(config: ModelConfig, processor: Any) -> Any:
    """The model's config: preset or checkpoint, ``overrides``, and what the processor decides (vocabulary, ids).

    Raises:
        ValueError: an unknown preset, an override that names no field, or a connector that does not make as many places
            as the processor.
    """
    values = described_by(config)
    if config.checkpoint is None:
        fit_processor(values, processor)
    made = KosmosConfig.from_dict(values)
    if made.vision_config is not None and config.checkpoint is None and config.vision_weights is None:
        raise ValueError(
            "the model has a vision tower, but model.vision_weights is not set: a frozen tower of random weights sees "
            "nothing; name the weights (kosmos vision makes some), or set model.vision_weights=random if that is meant"
        )
    for name in FURTHER:
        described = getattr(made, MODALITIES[name].config)
        if hasattr(described, "model_config") and config.checkpoint is None and name not in config.encoder_weights:
            raise ValueError(
                f"the model has an encoder of {name}, but model.encoder_weights.{name} is not set: frozen random "
                "weights make nothing of it; name the weights, or random if that is meant"
            )
        if described is not None and name in processor.readers:
            processor.readers[name].check(described)
    for size in [kind.size for kind in MODALITIES.values() if kind.size and kind.described(made) is not None]:
        if getattr(made, size) != getattr(processor, size):
            raise ValueError(
                f"{config.checkpoint}: {size} is {getattr(made, size)} in the model, but {getattr(processor, size)} in "
                "the processor; take the processor of that checkpoint"
            )
    entities: Any = made.entity_config
    if entities is not None and entities.kinds != processor.entity_kinds():
        raise ValueError(
            f"the model has tables for {entities.kinds}, but the processor knows {processor.entity_kinds()}; "
            "take the processor of the checkpoint, or a corpus with entities.json for kosmos tokenizer"
        )
    return made


def described_by(config: ModelConfig) -> dict[str, Any]:
    """What the settings alone say of the model, as the fields of a KosmosConfig."""
    if config.checkpoint is not None:
        values = KosmosConfig.from_pretrained(find_checkpoint(config.checkpoint)).to_dict()
    elif Path(str(config.preset)).suffix == ".json":
        values = KosmosConfig(**read_object(Path(str(config.preset)))).to_dict()
    else:
        values = (KosmosConfig() if config.preset is None else KosmosConfig.preset(config.preset)).to_dict()
    if config.decoder is not None:
        values["text_config"] = decoder_fields(config.decoder)
    for name, where in config.named_weights.items():
        described = MODALITIES[name].config if name in MODALITIES else None
        if described not in values:
            raise ValueError(f"model.encoder_weights.{name}: a model has no such encoder; choose {', '.join(FURTHER)}")
        if fields := _DESCRIPTIONS.get(name, _encoder_fields)(encoder_folder(where)):
            values[described] = (values[described] or KosmosConfig.sub_configs[described](**fields).to_dict()) | fields
    _override(values, config.overrides, "model.overrides.")
    return values


def decoder_fields(decoder: DecoderConfig) -> dict[str, Any]:
    """What a language model's own config says of it, without the type that its weights were saved in."""
    fields = read_config(find_language_model(decoder.pretrained, decoder.revision)).to_dict()
    return {name: value for name, value in fields.items() if name not in ("dtype", "torch_dtype", "_name_or_path")}


def origins(config: ModelConfig) -> dict[str, str]:
    """Return where the language model lies that the decoder begins as, and what else was named instead of given."""
    found: dict[str, Path] = {}
    if config.decoder is not None:
        found["decoder"] = find_language_model(config.decoder.pretrained, config.decoder.revision)
    for modality, weights in config.named_weights.items():
        if is_name(weights):
            found[WEIGHTS.get(modality, f"encoder_weights.{modality}")] = encoder_folder(weights)
    if config.checkpoint is not None and is_name(config.checkpoint):
        found["checkpoint"] = find_checkpoint(config.checkpoint)
    return {part: str(folder) for part, folder in found.items()}


def _vision_fields(folder: Path) -> dict[str, Any]:
    """What a folder in open_clip's layout says of its own tower; empty for other weights."""
    described = folder / "open_clip_config.json"
    if not described.is_file():
        return {}
    try:
        model = read_object(described)["model_cfg"]
        size = model["vision_cfg"]["image_size"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{described} is not open_clip's: it has no model_cfg with vision_cfg and image_size"
        ) from error
    return {"backend": "open_clip", "model_config": model, "image_size": size}


def _encoder_fields(folder: Path) -> dict[str, Any]:
    """What a transformers folder says of its own encoder; empty for a weight file."""
    described = folder / "config.json"
    return {"model_config": read_object(described)} if described.is_file() else {}


_DESCRIPTIONS = {"image": _vision_fields}
"""Modality → how its published folder is read, where that is not a transformers folder."""


def _override(values: dict[str, Any], changes: dict[str, Any], where: str) -> None:
    for key, value in changes.items():
        if key not in values:
            inside = [f"{group}.{key}" for group, part in values.items() if isinstance(part, dict) and key in part]
            near = f"did you mean {' or '.join(inside)}?" if inside else suggest(key, sorted(values), "fields")
            raise ValueError(f"{where}{key} is no field of the model's config; {near}")
        old = values[key]
        if isinstance(value, dict) and isinstance(old, dict) and key != "model_config":
            _override(old, value, f"{where}{key}.")
        else:
            values[key] = value


def fit_processor(values: dict[str, Any], processor: Any) -> None:
    """Vocabulary, placeholder ids and places must be those that the loader will write."""
    tokenizer = processor.tokenizer
    begin, *_, end = processor.image_token_ids() if processor.image_marks else (None, None)
    values["text_config"]["vocab_size"] = _vocabulary(values["text_config"], tokenizer)
    values.update(image_token_id=processor.image_slot_id, boi_token_id=begin, eoi_token_id=end)
    values["num_image_tokens"] = processor.num_image_tokens
    in_rows = values.get("coupling", "input") == "input"
    if in_rows and values.get("connector_config") and values["connector_config"].get("kind") in QUERYING:
        values["connector_config"]["num_queries"] = processor.num_image_tokens
    for name in FURTHER:
        modality = MODALITIES[name]
        if values.get(modality.config) is not None:
            values[modality.token] = processor.token_id(modality.marks[1])
            reader, connector = processor.reader(name), values.get(modality.connector_config) or {}
            shared = {there: getattr(reader, here) for here, there in reader.connector.items()}
            values[modality.connector_config] = connector | shared
            values[modality.config] |= {there: getattr(reader, here) for here, there in reader.encoder.items()}
    own = any(getattr(processor, kind.tokenizer) is not None for kind in MODALITIES.values() if kind.tokenizer)
    if values.get("fused_config") and not own:  # it reads the decoder's tokens
        described = values["fused_config"].get("model_config") or values["fused_config"]
        described.get("text_config", described)["vocab_size"] = len(tokenizer)
    if text := text_encoder(values):
        values[text.token] = processor.token_id(text.marks[1])
        _fit_connector(values, text, processor)
        if not own:
            values[text.config]["model_config"]["vocab_size"] = len(tokenizer)
    if values.get("entity_config") and processor.entities is not None:
        values["entity_config"]["kinds"] = processor.entity_kinds()
        values["entity_token_id"] = processor.token_id(ENTITY_SLOT)


def _vocabulary(text: dict[str, Any], tokenizer: Any) -> int:
    """Rows of the embeddings: the tokens, or what a language model has, whose own rows often go beyond its tokens."""
    ours = text.get("model_type", "kosmos_text") == "kosmos_text"
    return len(tokenizer) if ours else max(text["vocab_size"], len(tokenizer))


def _fit_connector(values: dict[str, Any], modality: Modality, processor: Any) -> None:
    """An input takes the processor's number of places, which the connector must make of it.

    Raises:
        ValueError: one of the two has a fixed number of places an input, the other one a token.
    """
    connector, size = values.get(modality.connector_config) or {"kind": "linear"}, str(modality.size)
    places = getattr(processor, size)
    if (connector["kind"] in QUERYING) != (places is not None):
        raise ValueError(
            f"model.overrides.{modality.connector_config}.kind is {connector['kind']!r}, but the processor's {size} "
            f"is {places}: {' and '.join(QUERYING)} need a number of places (`kosmos tokenizer … {size}=8`), "
            "the other kinds none"
        )
    if places is not None:
        connector["num_queries"] = places
    values[size] = places
