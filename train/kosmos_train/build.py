"""From settings to a model and its processor: fresh from a preset or a language model, or from a checkpoint folder."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from kosmos.configuration_kosmos import FURTHER, QUERYING
from kosmos.docking import TOKENIZERS, find_language_model, read_config, take_processor, take_weights
from kosmos.encoders import pixel_statistics
from kosmos.hub import is_name
from kosmos.image_processing_kosmos import KosmosImageProcessor
from kosmos.limits import check_checkpoint
from kosmos.loading import encoder_folder, find_checkpoint
from kosmos.modalities import MODALITIES
from kosmos.modeling_kosmos import image_tokens
from kosmos.processing_kosmos import make_reader, marks_of
from kosmos.tokenization_kosmos import ENTITY_SLOT, ENTITY_TOKENS, GROUNDING_TOKENS
from kosmos.transformers_decoder import awaiting_weights
from kosmos.tuning import attach
from kosmos_data.entity_names import read_kinds
from kosmos_data.objectives import special_tokens

from .config import DecoderConfig, ModelConfig, TrainConfig
from .engine import dtype_of
from .optim import freeze
from .parts.tokenizer import load_span_tokenizer


def build_processor(config: TrainConfig) -> Any:
    """The processor of the run: ``processor``, else made of ``model.decoder``, else that of ``model.checkpoint``."""
    from kosmos.processing_kosmos import load_processor

    if config.processor is not None:
        processor = load_processor(config.processor)
    elif config.model.decoder is not None:
        processor = _processor_of_decoder(config)
    else:
        assert config.model.checkpoint is not None, "TrainConfig.check() has refused this"
        processor = load_processor(find_checkpoint(config.model.checkpoint))
    if config.turn_end is not None:
        processor.end_turns(config.turn_end)
    asked = (re.fullmatch(r"Question: (.*\S) Answer:", prompt.text.strip()) for prompt in config.samples.prompts)
    if questions := [found[1] for found in asked if found]:  # a chat greets with them
        processor.example_questions = list(dict.fromkeys(questions))
    return processor


def build_config(config: ModelConfig, processor: Any) -> Any:
    """The model's config: preset or checkpoint, ``overrides``, and what the processor decides (vocabulary, ids).

    Raises:
        ValueError: an unknown preset, an override that names no field, or a span connector that does not make as many
            places as the processor.
    """
    from kosmos.configuration_kosmos import KosmosConfig

    values = described_by(config)
    if config.checkpoint is None:
        _fit_processor(values, processor)
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
    if made.span_encoder_config is not None and made.num_span_tokens != processor.num_span_tokens:
        raise ValueError(
            f"{config.checkpoint}: num_span_tokens is {made.num_span_tokens} in the model, but "
            f"{processor.num_span_tokens} in the processor; take the processor of that checkpoint"
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
    from kosmos.configuration_kosmos import KosmosConfig, KosmosSpanEncoderConfig, KosmosVisionConfig

    if config.checkpoint is not None:
        values = KosmosConfig.from_pretrained(find_checkpoint(config.checkpoint)).to_dict()
    elif Path(str(config.preset)).suffix == ".json":
        values = KosmosConfig(**json.loads(Path(str(config.preset)).read_text(encoding="utf-8"))).to_dict()
    else:
        values = (KosmosConfig() if config.preset is None else KosmosConfig.preset(config.preset)).to_dict()
    if config.decoder is not None:
        values["text_config"] = decoder_fields(config.decoder)
    if config.tower_weights is not None and (fields := _vision_fields(encoder_folder(config.tower_weights))):
        values["vision_config"] = (values["vision_config"] or KosmosVisionConfig(**fields).to_dict()) | fields
    if config.span_weights is not None and (fields := _span_fields(encoder_folder(config.span_weights))):
        values["span_encoder_config"] = (
            values["span_encoder_config"] or KosmosSpanEncoderConfig(**fields).to_dict()
        ) | fields
    for name, where in config.named_weights.items():
        described = MODALITIES[name].config if name in MODALITIES else None
        if described not in values:
            raise ValueError(f"model.encoder_weights.{name}: a model has no such encoder; choose {', '.join(FURTHER)}")
        if fields := _span_fields(encoder_folder(where)):
            values[described] = (values[described] or KosmosConfig.sub_configs[described](**fields).to_dict()) | fields
    _override(values, config.overrides, "model.overrides.")
    return values


def origins(config: ModelConfig) -> dict[str, str]:
    """Return where the language model lies that the decoder begins as, and what else was named instead of given."""
    found: dict[str, Path] = {}
    if config.decoder is not None:
        found["decoder"] = find_language_model(config.decoder.pretrained, config.decoder.revision)
    for part in ("vision_weights", "span_weights"):
        if (weights := getattr(config, part)) is not None and is_name(weights):
            found[part] = encoder_folder(weights)
    if config.checkpoint is not None and is_name(config.checkpoint):
        found["checkpoint"] = find_checkpoint(config.checkpoint)
    return {part: str(folder) for part, folder in found.items()}


def decoder_fields(decoder: DecoderConfig) -> dict[str, Any]:
    """What a language model's own config says of it, without the type that its weights were saved in."""
    fields = read_config(find_language_model(decoder.pretrained, decoder.revision)).to_dict()
    return {name: value for name, value in fields.items() if name not in ("dtype", "torch_dtype", "_name_or_path")}


def _processor_of_decoder(config: TrainConfig) -> Any:
    """Tokenizer and chat template of ``model.decoder``, pictures and their places as the model's config has them."""
    from kosmos.configuration_kosmos import KosmosConfig

    decoder = config.model.decoder
    assert decoder is not None
    values = described_by(config.model)
    tokens = ["span_token_id", *(MODALITIES[name].token for name in FURTHER)]  # of the tokenizer that is made here
    values |= {token: -number for number, token in enumerate(tokens, 1) if values.get(token) is None}
    described: Any = KosmosConfig.from_dict(values)
    sources = [*config.data.sources, *(config.eval.data.sources if config.eval.data else [])]
    objectives = [source.objective for source in sources]
    entities = (
        read_kinds(source.shards for source in config.data.sources) if described.entity_config is not None else None
    )
    readers = _readers(config.model, described)
    pictures: dict[str, Any] = {}
    if described.vision_config is not None:
        with torch.device("meta"):
            made = image_tokens(described)
        size = described.vision_config.image_size
        normalised: dict[str, Any] = pixel_statistics(described.vision_config)
        pictures = {"image_processor": KosmosImageProcessor(size, **normalised), "num_image_tokens": made}
    return take_processor(
        find_language_model(decoder.pretrained, decoder.revision),
        extra_tokens=[
            *special_tokens(objectives),
            *(GROUNDING_TOKENS if decoder.grounding else ()),
            *(ENTITY_TOKENS if entities else ()),
            *marks_of(readers),
        ],
        entities=entities,
        max_length=getattr(described.text_config, "max_position_embeddings", None),
        num_span_tokens=described.num_span_tokens if described.span_encoder_config is not None else None,
        personas="span" if entities is None and described.span_encoder_config is not None else "entities",
        readers=readers,
        span_tokenizer=_own_tokenizer(config.model, described),
        **pictures,
    )


def _own_tokenizer(config: ModelConfig, described: Any) -> Any:
    """The tokenizer that was published with an encoder of images with texts; None: it reads the decoder's tokens."""
    if "fused" not in config.named_weights or described.span_encoder_config is not None:
        return None
    folder = encoder_folder(config.named_weights["fused"])
    return load_span_tokenizer(str(folder)) if any((folder / name).is_file() for name in TOKENIZERS) else None


def _readers(config: ModelConfig, described: Any) -> dict[str, Any]:
    """How the further modalities of a model are read: places as its connectors have, the rest as was published."""
    readers = {}
    for name in FURTHER:
        connector, kind = getattr(described, MODALITIES[name].connector_config), MODALITIES[name].reader
        if connector is not None and kind is not None:
            folder = {"encoder": encoder_folder(config.named_weights[name])} if name in config.named_weights else {}
            shared = {here: getattr(connector, there) for here, there in kind.connector.items()}
            encoder = getattr(described, MODALITIES[name].config)
            shared |= {here: getattr(encoder, there) for here, there in kind.encoder.items()}
            readers[name] = make_reader(name, {**shared, **folder})
    return readers


def build_model(config: TrainConfig, processor: Any, resume_from: Path | None = None) -> Any:
    """The model in the run's dtype on the CPU, with the parts frozen that are not trained.

    A fresh model draws its weights from ``seed``; ``resume_from`` takes everything from a checkpoint of this run. A run
    of ``tuning`` starts from its base again: what it draws is the same, and the engine restores what was learnt.
    """
    from kosmos import KosmosForConditionalGeneration

    if config.tuning is not None:
        resume_from = None
    start = resume_from or (config.model.checkpoint and find_checkpoint(config.model.checkpoint))
    torch.manual_seed(config.seed)
    if start is not None:
        check_checkpoint(Path(start))
        settings = build_config(config.model, processor) if resume_from is None else None
        model = KosmosForConditionalGeneration.from_pretrained(start, config=settings, dtype=torch.float32)
    else:
        with awaiting_weights() if config.model.decoder is not None else nullcontext():
            model = KosmosForConditionalGeneration(build_config(config.model, processor))
        if config.model.decoder is not None:
            take_weights(model, find_language_model(config.model.decoder.pretrained, config.model.decoder.revision))
        if config.model.tower_weights is not None:
            model.load_vision_weights(encoder_folder(config.model.tower_weights))
        if config.model.span_weights is not None:
            model.load_span_weights(encoder_folder(config.model.span_weights))
        for name, where in config.model.named_weights.items():
            model.load_weights(name, encoder_folder(where))
    # they decide how the answers end that this run learns, whatever did before
    if config.processor is not None or config.turn_end is not None:
        model.generation_config.update(**processor.writing_rules())
    model.take_rules(processor)
    if config.tuning is not None:
        torch.manual_seed(config.seed)
        attach(model, config.tuning, Path(str(start)).resolve())
    freeze(model, config.model.freeze)
    if config.model.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.model.compile:
        _compile(model.model)
    return model.to(dtype_of(config.engine))


def _compile(model: Any) -> None:
    """Compile the blocks of decoder and vision tower one by one; of the tower's the number of pictures changes."""
    for layer in model.decoder.layers:
        layer.compile()
    for block in model.vision_tower.blocks() if model.vision_tower is not None else ():
        block.compile(dynamic=True)


def _vision_fields(folder: Path) -> dict[str, Any]:
    """What a folder in open_clip's layout says of its own tower; empty for other weights."""
    described = folder / "open_clip_config.json"
    if not described.is_file():
        return {}
    model = json.loads(described.read_text(encoding="utf-8"))["model_cfg"]
    return {"backend": "open_clip", "model_config": model, "image_size": model["vision_cfg"]["image_size"]}


def _span_fields(folder: Path) -> dict[str, Any]:
    """What a transformers folder says of its own text encoder; empty for a weight file."""
    described = folder / "config.json"
    return {"model_config": json.loads(described.read_text(encoding="utf-8"))} if described.is_file() else {}


def _override(values: dict[str, Any], changes: dict[str, Any], where: str) -> None:
    for key, value in changes.items():
        if key not in values:
            raise ValueError(f"{where}{key} is no field of the model's config; fields: {', '.join(sorted(values))}")
        old = values[key]
        if isinstance(value, dict) and isinstance(old, dict) and key != "model_config":
            _override(old, value, f"{where}{key}.")
        else:
            values[key] = value


def _fit_processor(values: dict[str, Any], processor: Any) -> None:
    """Vocabulary, placeholder ids, places of images and spans must be those that the loader will write."""
    tokenizer = processor.tokenizer
    begin, slot, *_, end = processor.image_token_ids()
    values["text_config"]["vocab_size"] = _vocabulary(values["text_config"], tokenizer)
    values.update(image_token_id=slot, boi_token_id=begin, eoi_token_id=end)
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
    if values.get("fused_config") and processor.span_tokenizer is None:  # it reads the decoder's tokens
        described = values["fused_config"].get("model_config") or values["fused_config"]
        described.get("text_config", described)["vocab_size"] = len(tokenizer)
    if values.get("span_encoder_config"):
        values["span_token_id"] = processor.span_slot_id
        _fit_span_connector(values, processor)
        if processor.span_tokenizer is None:  # the encoder reads the decoder's tokens
            values["span_encoder_config"]["model_config"]["vocab_size"] = len(tokenizer)
    if values.get("entity_config") and processor.entities is not None:
        values["entity_config"]["kinds"] = processor.entity_kinds()
        values["entity_token_id"] = processor.token_id(ENTITY_SLOT)


def _vocabulary(text: dict[str, Any], tokenizer: Any) -> int:
    """Rows of the embeddings: the tokens, or what a language model has, whose own rows often go beyond its tokens."""
    ours = text.get("model_type", "kosmos_text") == "kosmos_text"
    return len(tokenizer) if ours else max(text["vocab_size"], len(tokenizer))


def _fit_span_connector(values: dict[str, Any], processor: Any) -> None:
    """A span takes the processor's number of places, which its connector must make of it.

    Raises:
        ValueError: one of the two has a fixed number of places a span, the other one a token.
    """
    connector = values.get("span_connector_config") or {"kind": "linear"}
    places = processor.num_span_tokens
    if (connector["kind"] in QUERYING) != (places is not None):
        raise ValueError(
            f"model.overrides.span_connector_config.kind is {connector['kind']!r}, but the processor's num_span_tokens "
            f"is {places}: {' and '.join(QUERYING)} need a number of places (`kosmos tokenizer … num_span_tokens=8`), "
            "the other kinds none"
        )
    if places is not None:
        connector["num_queries"] = places
    values["num_span_tokens"] = places
