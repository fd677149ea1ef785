"""The KOSMOS tokenizer: SentencePiece pieces in the KOSMOS id layout, as an ordinary fast tokenizer.

Ids (KOSMOS-2 ``unilm/data/utils.py``, ``tasks/gpt_base.py``): ``<s>``=0 ``<pad>``=1 ``</s>``=2 ``<unk>``=3, then the
ordinary SentencePiece pieces in their order (id = SentencePiece id + 1), then ``<mask> </doc> <image> </image> </chunk>
</line>``, with ``grounding`` also the phrase, object and 1,024 location tokens of KOSMOS-2, and last our own additions,
so that rows of a published checkpoint stay aligned.

A newline of the text is the token ``</line>``; other runs of white space count as one space, and none at the ends of a
segment. So tokenising the segments of a document one by one equals tokenising the joined text.

Differs from the release: ``<image_slot>`` stands where an image's features go (the release repeats ``<image>``), and
``<span_slot>`` where a text span's go; ``<span>text</span>`` is how a prompt writes a span.
"""

from __future__ import annotations

import io
import re
import string
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .grounding import TOKENS as GROUNDING_TOKENS
from .optional import needed
from .segments import Span
from .surrogates import whole

BOS, PAD, EOS, UNK = "<s>", "<pad>", "</s>", "<unk>"
MASK, DOCUMENT_END, IMAGE_BEGIN, IMAGE_END = "<mask>", "</doc>", "<image>", "</image>"
CHUNK_END, LINE_END = "</chunk>", "</line>"
IMAGE_SLOT, SPAN_BEGIN, SPAN_END, SPAN_SLOT = "<image_slot>", *Span.marks, "<span_slot>"
KOSMOS1_TOKENS = (MASK, DOCUMENT_END, IMAGE_BEGIN, IMAGE_END, CHUNK_END, LINE_END)
ENTITY_BEGIN, ENTITY_END, ENTITY_SLOT = "<entity>", "</entity>", "<entity_slot>"
ENTITY_TOKENS = (ENTITY_BEGIN, ENTITY_END, ENTITY_SLOT)
"""Appended only where a processor has entities, so that the ids of others stay what they are."""
OWN_TOKENS = (IMAGE_SLOT, SPAN_BEGIN, SPAN_END, SPAN_SLOT)

# A noncharacter, which Unicode keeps out of texts. Behind each letter of a spelled token it makes text of it.
ESCAPE = "\ufdd0"

# Low enough that the lattice never prefers a special token's spelling over its letters: text cannot forge one.
LONGEST_SEED, MOST_SEEDS = 16, 1_000_000
"""Characters of a candidate piece, and how many candidates training starts from."""
_FORBIDDEN_SCORE = -1e9


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 64000,
    extra_tokens: Sequence[str] = (),
    grounding: bool = False,
) -> PreTrainedTokenizerFast:
    """Train a SentencePiece unigram model on ``texts`` and lay it out as KOSMOS does.

    Args:
        texts: the corpus, one string per document or segment.
        vocab_size: SentencePiece pieces, ``<unk> <s> </s>`` among them (64,000 in KOSMOS-1). A corpus too small for
            that many gets fewer.
        extra_tokens: special tokens appended last, for example an objective's sentinels.
        grounding: add KOSMOS-2's phrase, object and location tokens.

    Raises:
        ValueError: there is no text.
    """
    sentencepiece = needed("sentencepiece", "sentencepiece")
    words = _count_words(texts)
    model = io.BytesIO()
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as seeds:
            _write_seeds(words, seeds)
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(f"{word}\t{count}" for word, count in words.items()),
                input_format="tsv",
                seed_sentencepieces_file=seeds.name,
                model_writer=model,
                model_type="unigram",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                character_coverage=0.9999,
                # Every printable ASCII sign is a piece, so that no English text is ever unknown.
                required_chars="".join(sorted(set(string.printable) - set(string.whitespace))),
                normalization_rule_name="identity",
                num_threads=1,
                minloglevel=2,
            )
    except RuntimeError as error:
        raise ValueError(f"SentencePiece could not train a vocabulary of {vocab_size}: {error}") from error
    return tokenizer_from_sentencepiece(model.getvalue(), extra_tokens, grounding)


def tokenizer_from_sentencepiece(
    model: bytes | str | Path, extra_tokens: Sequence[str] = (), grounding: bool = False
) -> PreTrainedTokenizerFast:
    """Lay out a SentencePiece unigram model (a file or its bytes), for instance KOSMOS's own, as KOSMOS does.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not a SentencePiece model, not a unigram model, or a special token twice.
    """
    charsmap, pieces = _read_sentencepiece(model)
    specials = [*KOSMOS1_TOKENS, *(GROUNDING_TOKENS if grounding else ()), *OWN_TOKENS, *extra_tokens]
    if len(set(specials)) != len(specials):
        raise ValueError(f"special token given twice: {sorted({t for t in specials if specials.count(t) > 1})}")
    heads = [(token, _FORBIDDEN_SCORE) for token in (BOS, PAD, EOS, UNK)]
    ordinary = [(piece, score) for piece, score in pieces if piece not in specials]
    vocabulary = heads + ordinary + [(token, _FORBIDDEN_SCORE) for token in specials]

    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = _normalizer(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(LINE_END, "\n"),
            decoders.Metaspace(replacement="▁", prepend_scheme="always"),
            decoders.Fuse(),
            decoders.Replace(Regex("\n "), "\n"),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in (BOS, PAD, EOS, UNK, *specials) if token != LINE_END]
    )
    tokenizer.add_tokens([AddedToken(LINE_END, normalized=True, special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        mask_token=MASK,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": IMAGE_BEGIN,
            "image_slot_token": IMAGE_SLOT,
            "eoi_token": IMAGE_END,
            "span_begin_token": SPAN_BEGIN,
            "span_end_token": SPAN_END,
            "span_slot_token": SPAN_SLOT,
        },
    )


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of plain text: newlines become ``</line>``, nothing is added, and no special token can be spelled out.

    The same as ``tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]`` in half the time;
    there alone a text that spells ``</line>`` (also ``＜/line＞``, which NFKC makes of it) gets the token of a newline.
    """
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # each call of the tokenizer sets this and what follows as it needs them
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    try:
        ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    except TypeError:  # half of a pair of surrogates, as JSON can spell it and no file can hold it
        text = whole(text)
        ids = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    line_end = backend.token_to_id(LINE_END)
    if line_end is None or ids.count(line_end) <= text.count("\n"):
        return ids
    # Rare: the spelling is cut in two before it is read. Normalising twice is normalising once.
    lines = [
        backend.normalizer.normalize_str(line).replace(LINE_END, f"{LINE_END[0]} {LINE_END[1:]}")
        for line in text.split("\n")
    ]
    return backend.encode_batch_fast(["\n".join(lines)], add_special_tokens=False)[0].ids


def escape(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """Make plain text of the special tokens that ``text`` spells out, for a prompt that is tokenised as one string.

    The tokenizer looks for its tokens before it normalises, and ``ignore_escapes`` made it drop ``ESCAPE`` there, so
    that the ids are those of ``encode_text(tokenizer, text)``.
    """
    text = text.replace(ESCAPE, "")
    spelled = re.compile("|".join(re.escape(token) for token in sorted(tokenizer.get_added_vocab(), key=len)[::-1]))
    return spelled.sub(lambda found: "".join(letter + ESCAPE for letter in found[0]), text)


def ignore_escapes(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the tokenizer drop ``ESCAPE`` from what it normalises, if it does not yet."""
    backend = tokenizer.backend_tokenizer
    given = backend.normalizer
    if given is None or given.normalize_str(ESCAPE):
        drop = normalizers.Replace(ESCAPE, "")
        backend.normalizer = drop if given is None else normalizers.Sequence([drop, given])


def _normalizer(charsmap: bytes = b"") -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(charsmap)] if charsmap else [normalizers.NFKC()]
    # A precompiled SentencePiece map turns newlines into spaces, so they are put aside before it.
    return normalizers.Sequence(
        [
            # ``[^\S\n]*\r?\n[^\S\n]*``, but begun at the first of some spaces only: to go from each of 100,000 to their
            # end takes a minute
            normalizers.Replace(Regex(r"(?:(?<![^\S\n])[^\S\n]+)?\r?\n[^\S\n]*"), LINE_END),
            *steps,
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )


def _read_sentencepiece(model: bytes | str | Path) -> tuple[bytes, list[tuple[str, float]]]:
    """The character map and the (piece, score) list, without ``<unk> <s> </s>``, of a SentencePiece model."""
    broken = needed("google.protobuf.message", "protobuf").DecodeError
    layout = needed("sentencepiece.sentencepiece_model_pb2", "sentencepiece")
    name = "the SentencePiece model"
    if not isinstance(model, bytes):
        name = str(model)
        if not Path(model).is_file():
            raise FileNotFoundError(f"{model}: no such SentencePiece model")
        model = Path(model).read_bytes()
    proto = layout.ModelProto()
    try:
        proto.ParseFromString(model)
    except broken as error:
        raise ValueError(f"{name}: not a SentencePiece model") from error
    if proto.trainer_spec.model_type != 1:
        raise ValueError(f"{name}: only unigram SentencePiece models are supported, as KOSMOS uses")
    return proto.normalizer_spec.precompiled_charsmap, [(piece.piece, piece.score) for piece in proto.pieces[3:]]


def _count_words(texts: Iterable[str]) -> Counter[str]:
    normalise = _normalizer().normalize_str
    lines = Counter(line for text in texts for line in text.split("\n"))  # of which most corpora repeat many
    words: defaultdict[str, int] = defaultdict(int)
    for line, count in lines.items():
        for word in normalise(line).split(" "):
            words[word] += count
    words.pop("", None)
    if not words:
        raise ValueError("no text to train a tokenizer on")
    return Counter(dict(sorted(words.items())))


def _write_seeds(words: Counter[str], file: IO[str]) -> None:
    """Write the candidate pieces: substrings by how often they occur in the running text.

    SentencePiece's own candidates count each *distinct* word once, so a word that a small corpus repeats ten thousand
    times ("Question:") would be spelled letter by letter.
    """
    counts: defaultdict[str, int] = defaultdict(int)
    for word, count in words.items():
        marked = f"▁{word}"
        for begin in range(len(marked)):
            for end in range(begin + 2, min(begin + LONGEST_SEED, len(marked)) + 1):
                counts[marked[begin:end]] += count
    ranked = sorted(
        ((n * len(piece), piece) for piece, n in counts.items() if n > 1), key=lambda row: (-row[0], row[1])
    )
    file.writelines(f"{piece}\t{score}\n" for score, piece in ranked[:MOST_SEEDS])
    file.flush()
