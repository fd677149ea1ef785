"""From settings to a model and its processor: fresh from a preset or a language model, or from a checkpoint folder."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from kosmos.configuration_kosmos import FURTHER, KosmosConfig
from kosmos.docking import TOKENIZERS, find_language_model, take_processor, take_weights
from kosmos.encoders import pixel_statistics
from kosmos.image_processing_kosmos import KosmosImageProcessor
from kosmos.limits import check_checkpoint
from kosmos.loading import encoder_folder, find_checkpoint
from kosmos.modalities import MODALITIES, text_encoder
from kosmos.modeling_kosmos import KosmosForConditionalGeneration, image_tokens
from kosmos.processing_kosmos import load_processor, make_reader, marks_of
from kosmos.tokenization_kosmos import ENTITY_TOKENS, GROUNDING_TOKENS
from kosmos.transformers_decoder import awaiting_weights
from kosmos.tuning import attach
from kosmos_data.entity_names import read_kinds
from kosmos_data.objectives import special_tokens

from .config import ModelConfig, TrainConfig
from .describe import build_config as build_config
from .describe import described_by as described_by
from .describe import origins as origins
from .engine import dtype_of
from .optim import freeze
from .parts.tokenizer import load_encoder_tokenizer


def build_processor(config: TrainConfig) -> Any:
    """The processor of the run: ``processor``, else made of ``model.decoder``, else that of ``model.checkpoint``."""
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


def build_model(config: TrainConfig, processor: Any, resume_from: Path | None = None) -> Any:
    """The model in the run's dtype on the CPU, with the parts frozen that are not trained.

    A fresh model draws its weights from ``seed``; ``resume_from`` takes everything from a checkpoint of this run. A run
    of ``tuning`` starts from its base again: what it draws is the same, and the engine restores what was learnt.
    """
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
        compile_blocks(model.model)
    return model.to(dtype_of(config.engine))


def compile_blocks(model: Any) -> None:
    """Compile the blocks of decoder and vision tower one by one, and the connector; the number of pictures changes."""
    for layer in model.decoder.layers:
        layer.compile(options=block_options())
    if model.vision_tower is not None:
        for block in [*model.vision_tower.blocks(), model.connector]:
            block.compile(dynamic=True)


def block_options() -> dict[str, Any]:
    """Return what Inductor is told of the decoder's blocks.

    It joins the sums over rows and over columns of a norm's backward pass into one kernel unless that reads many
    tensors. The norm before queries, keys and values is just above its limit, and gains a tenth of the backward pass's
    traffic without spilling a register (tests/simulated/test_lowering.py). torch 2.11 has no such limit to lift.
    """
    import torch._inductor.config

    limit = "mix_order_reduction_max_reads"
    return {f"triton.{limit}": 0} if hasattr(torch._inductor.config.triton, limit) else {}


def _processor_of_decoder(config: TrainConfig) -> Any:
    """Tokenizer and chat template of ``model.decoder``, pictures and their places as the model's config has them."""
    decoder = config.model.decoder
    assert decoder is not None
    values = described_by(config.model)
    tokens = [modality.token for modality in MODALITIES.values()]  # of the tokenizer that is made here
    values |= {token: -number for number, token in enumerate(tokens, 1) if values.get(token) is None}
    described: Any = KosmosConfig.from_dict(values)
    sources = [*config.data.sources, *(config.eval.data.sources if config.eval.data else [])]
    objectives = [source.objective for source in sources]
    entities = (
        read_kinds(source.shards for source in config.data.sources) if described.entity_config is not None else None
    )
    readers, reads_text = _readers(config.model, described), text_encoder(described)
    if reads_text is not None:
        given: dict[str, Any] = {str(reads_text.size): getattr(described, str(reads_text.size))}
        given |= {"personas": reads_text.name} if entities is None else {}
    else:
        given = _own_tokenizer(config.model)
    if described.vision_config is not None:
        with torch.device("meta"):
            made = image_tokens(described)
        size = described.vision_config.image_size
        normalised: dict[str, Any] = pixel_statistics(described.vision_config)
        given |= {"image_processor": KosmosImageProcessor(size, **normalised), "num_image_tokens": made}
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
        readers=readers,
        **given,
    )


def _own_tokenizer(config: ModelConfig) -> dict[str, Any]:
    """The tokenizer that was published with an encoder of images with texts; none: it reads the decoder's tokens."""
    folder = encoder_folder(config.named_weights["fused"]) if "fused" in config.named_weights else None
    if folder is None or not any((folder / name).is_file() for name in TOKENIZERS):
        return {}
    own = load_encoder_tokenizer(str(folder))
    return {kind.tokenizer: own for kind in MODALITIES.values() if kind.tokenizer}


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
