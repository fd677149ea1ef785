"""``kosmos tokenizer CONFIG run=DIR``: train the vocabulary on a corpus and write the processor a run needs.

The folder holds tokenizer, image size, places per image and chat template; every checkpoint carries a copy of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from kosmos.image_processing_kosmos import KosmosImageProcessor
from kosmos.limits import SIZES
from kosmos.loading import encoder_folder
from kosmos.processing_kosmos import KosmosProcessor, make_reader, marks_of
from kosmos.tokenization_kosmos import ENTITY_TOKENS, encode_text, train_tokenizer
from kosmos_data.document import Fused, Persona, Span, Text
from kosmos_data.entity_names import read_kinds
from kosmos_data.errors import BadSample
from kosmos_data.objectives import special_tokens
from kosmos_data.reader import Corpus

from ..arguments import parse_run
from .training import warn_left_out

_SIZES = {name: SIZES[name] for name in ("vocab_size", "image_size", "num_image_tokens", "num_span_tokens")}
_SIZES |= {"max_length": (1, SIZES["max_position_embeddings"][1]), "documents_per_corpus": (1, 1 << 40)}


@dataclass
class TokenizerConfig:
    """What the processor is made from."""

    shards: list[str] = field(default_factory=list)
    """Corpora whose text trains the vocabulary, and whose entities (``entities.json``) the processor knows."""
    vocab_size: int = 64_000
    """SentencePiece pieces; KOSMOS-1 has 64,000. A small corpus gets fewer."""
    documents_per_corpus: int = 20_000
    """At most so many documents of each corpus are read, evenly spread."""
    image_size: int = 224
    """Pixels a side that the vision tower reads."""
    crop: str = "center"
    """``center`` or ``none``, see KosmosImageProcessor."""
    num_image_tokens: int = 64
    """Q, the places that one image takes in the decoder."""
    image_marks: bool = True
    """Write ``<image>`` and ``</image>`` around these places; without them the features stand bare in the text."""
    num_span_tokens: int | None = None
    """Places that one text span takes, for a span connector with queries; None: one for each of its tokens."""
    max_length: int | None = 2048
    """Longest prompt in tokens; None: no limit."""
    extra_tokens: list[str] = field(default_factory=list)
    """Special tokens appended last."""
    objectives: list[str] = field(default_factory=list)
    """Objectives of the runs to come (``ul2``, ``glm`` …): their special tokens are appended as well."""
    personas: str = "entities"
    """How personas are read: as ``entities``, each text an id of the kind that its key names; or as one ``span`` of the
    text encoder, which also reads what training has not seen. Then no ids are taken from the corpora."""
    grounding: bool = False
    """Add KOSMOS-2's tokens for phrases and boxes, which documents with ``boxes`` need."""
    span_tokenizer: str | None = None
    """Folder (or ``package:NAME/FOLDER``) with the tokenizer of the text encoder (BERT …); None: it shares this one."""
    readers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How further modalities are read, ``audio: {encoder: FOLDER, num_tokens: 32}``: the fields of its reader, and the
    published folder of its encoder, whose feature extractor is taken. Their marks are appended as special tokens."""


def make_processor(config: TokenizerConfig, folder: str | Path, progress: Progress | None = None) -> KosmosProcessor:
    """Train the tokenizer and write the processor to ``folder``.

    Raises:
        FileNotFoundError: a corpus is missing.
        ValueError: the corpora hold no text, an unknown objective, no tokenizer in ``span_tokenizer``, or a size that
            no model has.
    """
    for name, (least, most) in _SIZES.items():
        if (given := getattr(config, name)) is not None and not least <= given <= most:
            raise ValueError(f"{name}={given}: it may be {least} to {most:,}")
    readers = {name: make_reader(name, _found(given)) for name, given in config.readers.items()}
    entities = read_kinds(config.shards) if config.personas == "entities" else None
    extra = [*special_tokens(config.objectives), *(ENTITY_TOKENS if entities else ()), *marks_of(readers)]
    extra = [token for token in extra if token not in config.extra_tokens]
    span_tokenizer = load_encoder_tokenizer(config.span_tokenizer) if config.span_tokenizer else None
    tokenizer = train_tokenizer(
        texts(config, progress), config.vocab_size, config.extra_tokens + extra, config.grounding
    )
    image_processor = KosmosImageProcessor(image_size=config.image_size, crop=config.crop)
    processor = KosmosProcessor(
        image_processor,
        tokenizer,
        config.num_image_tokens,
        config.max_length,
        span_tokenizer=span_tokenizer,
        num_span_tokens=config.num_span_tokens,
        entities=entities,
        personas=config.personas,
        readers=readers,
        image_marks=config.image_marks,
    )
    processor.save_pretrained(folder)
    return processor


def _found(reader: dict[str, Any]) -> dict[str, Any]:
    """A reader's fields, with the folder of its encoder where that was given by a name or in a package."""
    return {**reader, "encoder": encoder_folder(reader["encoder"])} if reader.get("encoder") else reader


def take_encoder_tokenizer(processor: KosmosProcessor, folder: str) -> None:
    """Let a processor write for a text encoder with its own tokenizer; errors are those of loading one."""
    processor.span_tokenizer = load_encoder_tokenizer(folder)


def load_encoder_tokenizer(folder: str) -> Any:
    """The text encoder's own tokenizer from a local folder, also of an installed package.

    Raises:
        ValueError: there is none.
    """
    from transformers import AutoTokenizer

    found = encoder_folder(folder)
    try:
        return AutoTokenizer.from_pretrained(found, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"span_tokenizer={folder}: no tokenizer here (tokenizer.json or vocab.txt)") from error


def texts(config: TokenizerConfig, progress: Progress | None = None) -> Iterator[str]:
    """The text of the sampled documents, one string a segment; unreadable documents are counted in a warning."""
    if not config.shards:
        raise ValueError("no shards given: name at least one corpus folder to train the tokenizer on")
    for root in config.shards:
        corpus = Corpus(root)
        step = max(1, -(-len(corpus) // config.documents_per_corpus))
        indices: Sequence[int] = range(0, len(corpus), step)
        tracked = progress.track(indices, description=f"text of {Path(root).name}") if progress else indices
        left_out: Counter[str] = Counter()
        for index in tracked:
            try:
                segments = corpus[index].segments
            except BadSample as error:
                left_out[error.reason] += 1
                continue
            yield from (segment.text for segment in segments if isinstance(segment, (Text, Span, Fused)))
            if config.personas == "span":
                yield from (segment.as_text() for segment in segments if isinstance(segment, Persona))
        warn_left_out(root, left_out)


def main(argv: Sequence[str]) -> None:
    """``kosmos tokenizer CONFIG run=DIR [key=value …]``."""
    config, run = parse_run("kosmos tokenizer", "Train a vocabulary; write the processor.", TokenizerConfig, argv)
    with Progress(console=Console(stderr=True)) as progress:
        processor = make_processor(config, run, progress)
    example = "Question: what is in the image? Answer:"
    made = processor.tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if made < config.vocab_size:
        print(f"{made:,} pieces, not vocab_size={config.vocab_size:,}: the corpora have no more to offer")
    pieces = " ".join(processor.tokenizer.convert_ids_to_tokens(encode_text(processor.tokenizer, example)))
    print(f"{run}: {len(processor.tokenizer)} tokens; {example!r} → {pieces}")
