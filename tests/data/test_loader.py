"""The promise of the loader: the same global batches for any ranks and workers, through any resume."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import (
    Corpus,
    DataConfig,
    Document,
    Image,
    SourceConfig,
    Text,
    build_loader,
    merge_states,
    write_shards,
)
from kosmos_data.replay import digest, global_batches, rows_of

MakeConfig = Callable[..., DataConfig]


def hashes(config: DataConfig, processor: KosmosProcessor, ranks: int, steps: int, state: Any = None) -> tuple:
    """Hashes of ``steps`` global batches and the merged state after them."""
    found, batches = [], []
    stream = global_batches(config, processor, ranks, state)
    for rows, batches in islice(stream, steps):  # noqa: B007 - the last one is used below
        found.append(digest(rows))
    stream.close()
    return found, json.loads(json.dumps(merge_states([batch.state for batch in batches])))


@pytest.mark.parametrize("packing", ["cut", "best_fit", "sentences"])
@pytest.mark.parametrize("lanes", [2, 8, 24])
@pytest.mark.parametrize("mask", [True, False])
def test_ranks_do_not_change_what_is_read(
    make_config: MakeConfig, processor: KosmosProcessor, packing: str, lanes: int, mask: bool
) -> None:
    config = make_config(packing=packing, lanes=lanes, document_mask=mask)
    whole, _ = hashes(config, processor, 1, 7)
    first, state = hashes(config, processor, 2, 4)
    second, _ = hashes(config, processor, 1, 3, state)
    assert len(set(whole)) == 7
    assert whole == first + second


@pytest.mark.parametrize("packing", ["best_fit", "sentences"])
def test_elastic_over_workers_and_ranks_mid_epoch(
    make_config: MakeConfig, processor: KosmosProcessor, packing: str
) -> None:
    """4 workers × 1 rank, resumed as 1×2, 0×1 and 2×4, against one uninterrupted run."""
    whole, end = hashes(make_config(workers=0, packing=packing), processor, 1, 24)
    found: list[str] = []
    state = None
    for workers, ranks in ((4, 1), (1, 2), (0, 1), (2, 4)):
        part, state = hashes(make_config(workers=workers, packing=packing), processor, ranks, 6, state)
        found += part
    assert found == whole
    assert state == end


@settings(max_examples=12)
@given(
    rows=st.sampled_from([4, 6, 12]),
    lanes=st.sampled_from([None, 1, 2]),
    tokens=st.integers(24, 120),
    packing=st.sampled_from(["cut", "best_fit", "sentences"]),
    cut=st.integers(1, 5),
    temperature=st.sampled_from([1.0, 2.0]),
    seed=st.integers(0, 5),
)
def test_resuming_anywhere_changes_nothing(
    make_config: MakeConfig,
    processor: KosmosProcessor,
    cut: int,
    rows: int,
    lanes: int | None,
    tokens: int,
    **more: Any,
) -> None:
    config = make_config(rows_per_step=rows, lanes=lanes, row_tokens=tokens, **more)
    whole, end = hashes(config, processor, 1, 6)
    first, state = hashes(config, processor, 1, cut)
    second, resumed_end = hashes(config, processor, 1, 6 - cut, state)
    assert (first + second, resumed_end) == (whole, end)


def test_an_epoch_reads_every_document_once(tmp_path: Path, processor: KosmosProcessor) -> None:
    """Counted on the token level: rows of one lane, documents recognised by their text."""
    write_shards(tmp_path / "c", (Document(str(n), [Text(f"{n}")]) for n in range(40)), 7)
    config = DataConfig([SourceConfig("c", str(tmp_path / "c"))], row_tokens=8, rows_per_step=1, rows_per_micro_batch=1)
    loader, seen = build_loader(config, processor), Counter()
    while seen.total() < 80:
        batch = next(loader).micro_batches[0]
        for document in range(int(batch["document_ids"].max()) + 1):
            ids = batch["input_ids"][batch["document_ids"] == document].tolist()
            seen[processor.tokenizer.decode(ids[1:]).strip()] += 1
    read_twice = [count for count in seen.values() if count == 2]
    assert len(seen) == 40
    assert len(read_twice) >= 36, "the second epoch begins only when the first is read (but for the pool)"


@pytest.mark.parametrize("packing", ["cut", "best_fit", "sentences"])
def test_batches_are_what_the_model_takes(make_config: MakeConfig, processor: KosmosProcessor, packing: str) -> None:
    batch = next(build_loader(make_config(packing=packing), processor))
    assert len(batch.micro_batches) == 4
    for micro in batch.micro_batches:
        assert micro["input_ids"].shape == (2, 96)
        slots = int((micro["input_ids"] == processor.image_slot_id).sum())
        images = len(micro["pixel_values"]) if "pixel_values" in micro else 0
        assert slots == images * processor.num_image_tokens
        assert {name: tensor.dtype for name, tensor in micro.items() if name != "pixel_values"} == {
            "input_ids": torch.int64,
            "shift_labels": torch.int64,
            "loss_weight": torch.float32,
            "document_ids": torch.int64,
            "position_ids": torch.int64,
            "source_ids": torch.int64,
        }
        assert ((micro["loss_weight"] > 0) == (micro["shift_labels"] != -100)).all()
        padding = micro["document_ids"] == -1
        assert (padding == (micro["source_ids"] == -1)).all()
        assert (micro["input_ids"][padding] == processor.tokenizer.pad_token_id).all()
        inside = (micro["document_ids"][:, 1:] == micro["document_ids"][:, :-1]) & ~padding[:, 1:]
        assert (micro["position_ids"].diff(dim=1)[inside] == 1).all()
        labels, following = micro["shift_labels"][:, :-1], micro["input_ids"][:, 1:]
        trained = inside & (labels != -100)
        assert (labels[trained] == following[trained]).all()
    assert batch.stats["tokens"] == sum(int((m["document_ids"] >= 0).sum()) for m in batch.micro_batches)
    assert batch.stats["images"] == sum(row["image"] for row in batch.inputs)
    assert sum(batch.stats["source_tokens"].values()) == batch.stats["tokens"]


@pytest.mark.parametrize("packing", ["cut", "best_fit", "sentences"])
def test_pixels_lie_in_the_row_of_their_slots(
    packing: str, tmp_path: Path, processor: KosmosProcessor, make_png: Callable
) -> None:
    """Each picture's caption names it, so a picture on the wrong slots is caught."""
    documents = [Document(str(n), [Image(make_png(n)), Text(str(n))]) for n in range(30)]
    write_shards(tmp_path / "c", documents)
    config = DataConfig(
        [SourceConfig("c", str(tmp_path / "c"))],
        row_tokens=40,
        rows_per_step=4,
        rows_per_micro_batch=2,
        packing=packing,
    )
    from kosmos_data.images import decode

    for batch in islice(build_loader(config, processor), 5):
        for row in rows_of(batch):
            numbers = []
            for document in range(row["document_ids"].max() + 1):
                ids = row["input_ids"][row["document_ids"] == document].tolist()
                text = processor.tokenizer.decode([i for i in ids if i != processor.image_slot_id])
                numbers.append(int(text.split()[-1].split(">")[-1]))
            expected = [decode(make_png(number), processor.image_processor) for number in numbers]
            assert np.array_equal(row["pixel_values"], np.stack(expected))


def test_state_is_small_json(make_config: MakeConfig, processor: KosmosProcessor) -> None:
    for packing in ("cut", "best_fit", "sentences"):
        _, state = hashes(make_config(packing=packing), processor, 1, 30)
        assert all(len(json.dumps(lane)) < 1000 for lane in state["lanes"].values())


def test_skipped_steps_are_left_out_and_counted_on(make_config: MakeConfig, processor: KosmosProcessor) -> None:
    whole = [batch.stats["order"] for batch in islice(build_loader(make_config(), processor), 6)]
    skipping = list(islice(build_loader(make_config(skip_steps=[0, 2, 3]), processor), 3))
    assert [batch.step for batch in skipping] == [1, 4, 5]
    assert [batch.stats["order"] for batch in skipping] == [whole[1], whole[4], whole[5]]


def test_order_hash_is_the_same_for_any_number_of_ranks(make_config: MakeConfig, processor: KosmosProcessor) -> None:
    joint = []
    for ranks in (1, 2, 4):
        loaders = [build_loader(make_config(rows_per_micro_batch=1), processor, r, ranks) for r in range(ranks)]
        total = 0
        for loader in loaders:
            total ^= int(next(loader).stats["order"], 16)
        joint.append(total)
    assert len(set(joint)) == 1


def test_token_shares_follow_the_weights(make_config: MakeConfig, processor: KosmosProcessor) -> None:
    """Also where a row cannot hold as many pictures as it is planned for."""
    used: Counter[str] = Counter()
    for batch in islice(build_loader(make_config(rows_per_step=16), processor), 30):
        used.update(batch.stats["source_tokens"])
    for name, share in (("pairs", 0.5), ("prose", 0.3), ("pages", 0.2)):
        assert used[name] / used.total() == pytest.approx(share, abs=0.01)


def test_corrupt_samples_are_skipped_counted_and_survive_a_resume(tmp_path: Path, processor: KosmosProcessor) -> None:
    documents = [Document(str(n), [Image(b"broken")] if n % 10 == 3 else [Text("red")]) for n in range(40)]
    write_shards(tmp_path / "c", documents)
    sources = [SourceConfig("c", str(tmp_path / "c"))]
    config = DataConfig(sources, row_tokens=16, rows_per_step=2, rows_per_micro_batch=2, max_bad_rate=0.5)
    loader = build_loader(config, processor)
    batches = list(islice(loader, 20))
    counts = [batch.stats["skipped"].get("image broken", 0) for batch in batches]
    documents_read = sum(batch.stats["documents"] for batch in batches)
    assert sum(counts) == pytest.approx(documents_read / 9, abs=6)
    resumed = list(islice(build_loader(config, processor, state=batches[9].state), 10))
    assert [b.stats for b in resumed] == [b.stats for b in batches[10:]]


def test_too_many_bad_samples_stop_the_run_and_name_the_shard(tmp_path: Path, processor: KosmosProcessor) -> None:
    write_shards(tmp_path / "c", (Document(str(n), [Image(b"broken")]) for n in range(9)), 4)
    for workers in (0, 1):
        config = DataConfig([SourceConfig("c", str(tmp_path / "c"))], 16, 2, 2, workers=workers)
        with pytest.raises(
            ValueError, match=r"17 of 17 samples .* data.max_bad_rate=0.01; .*/c/00000\d.tar: image broken"
        ):
            next(build_loader(config, processor))


def test_a_single_document_feeds_any_number_of_lanes(tmp_path: Path, processor: KosmosProcessor) -> None:
    write_shards(tmp_path / "c", [Document("only", [Text("red circle")])])
    config = DataConfig([SourceConfig("c", str(tmp_path / "c"))], 12, 16, 16)
    assert next(build_loader(config, processor)).stats["documents"] >= 16


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        ({"sources": []}, 1, "sources is empty"),
        ({"row_tokens": 0}, 1, "row_tokens must be at least 1"),
        ({"lanes": 3}, 1, "lanes=3 must divide data.rows_per_step=8"),
        ({"rows_per_micro_batch": 3}, 1, "not a multiple of data.rows_per_micro_batch=3"),
        ({}, 3, "3 ranks cannot share"),
        ({"temperature": 0.0}, 1, "temperature must be above 0"),
        ({"max_bad_rate": 1.0}, 1, "max_bad_rate must be"),
    ],
)
def test_settings_that_do_not_fit(
    make_config: MakeConfig, processor: KosmosProcessor, changes: dict, ranks: int, message: str
) -> None:
    config = make_config()
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        build_loader(config, processor, 0, ranks)


def test_a_state_of_other_settings_is_refused(
    make_config: MakeConfig, processor: KosmosProcessor, tmp_path: Path
) -> None:
    _, state = hashes(make_config(), processor, 1, 2)
    with pytest.raises(ValueError, match=r"other settings: row_tokens \(96 → 97\), seed \(0 → 4\)"):
        build_loader(make_config(row_tokens=97, seed=4), processor, state=state)
    build_loader(make_config(workers=2, rows_per_micro_batch=4, skip_steps=[9]), processor, state=state)
    other = make_config()
    write_shards(tmp_path / "c", list(Corpus(other.sources[0].shards))[1:])
    other.sources[0].shards = str(tmp_path / "c")
    with pytest.raises(ValueError, match="other settings: corpora"):
        build_loader(other, processor, state=state)


def test_a_state_knows_its_tokenizers_and_its_version(make_config: MakeConfig, processor: KosmosProcessor) -> None:
    state = next(build_loader(make_config(), processor)).state
    other = KosmosProcessor(processor.image_processor, processor.tokenizer, 4, span_tokenizer=processor.tokenizer)
    with pytest.raises(ValueError, match=r"other settings: span_tokenizer \(None → "):
        build_loader(make_config(), other, state=state)
    with pytest.raises(ValueError, match="state is of version 1, this program reads version 3"):
        build_loader(make_config(), processor, state=state | {"version": 1})


def test_a_rank_may_have_no_supervised_token(tmp_path: Path, processor: KosmosProcessor) -> None:
    """That *all* have none is the trainer's error: only it knows the others."""
    write_shards(
        tmp_path / "c", (Document(str(n), [Text("red " * (5 + 9 * (n % 4)), False), Text("circle")]) for n in range(20))
    )
    source = SourceConfig("c", str(tmp_path / "c"), objective={"name": "causal", "loss": "supervised"})
    config = DataConfig([source], 8, 2, 1, packing="cut")
    loaders = [build_loader(config, processor, rank, 2) for rank in range(2)]
    steps = [[next(loader) for loader in loaders] for _ in range(20)]
    found = {tuple(batch.stats["supervised"] > 0 for batch in batches) for batches in steps}
    assert found >= {(False, False), (True, False), (False, True)}
    for batch in (batch for batches in steps for batch in batches):
        assert batch.stats["supervised"] == sum(int((micro["loss_weight"] > 0).sum()) for micro in batch.micro_batches)


def test_a_state_of_one_rank_is_not_enough_for_another(make_config: MakeConfig, processor: KosmosProcessor) -> None:
    loader = build_loader(make_config(), processor, 1, 2)
    state = next(loader).state
    with pytest.raises(ValueError, match=r"lacks lanes \[0, 2, 4, 6\]: merge_states"):
        build_loader(make_config(), processor, 0, 1, state)
    with pytest.raises(ValueError, match="different runs or steps"):
        merge_states([state, next(loader).state])
