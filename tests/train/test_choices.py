"""Answers among their choices under DeepSpeed: gradients against plain torch, several ranks, resumption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jobs
import pytest
import torch
from forks import launch
from test_gradients import STAGES, largest_error

from kosmos import KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos_data import Document, Text, objectives, write_shards
from kosmos_train.fragments import create_state
from kosmos_train.runs import read_metrics

CHOICES = {"single": ("fish", "boat", "rain"), "several": ("cold rain", "seven birds", "sea")}


def question(number: int, kind: str) -> Document:
    """A text whose last word but one says the answer's place among the choices."""
    choices = CHOICES[kind]
    told = ("red", "green", "blue")[number % 3]
    before = Text(f"the {' '.join(['calm'] * (1 + number % 4))} sea", supervised=False)
    answer = Text(choices[number % 3], choices=choices)
    return Document(f"{kind}{number}", [before, answer, Text(f"of {told} hills", supervised=False)])


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a run of a small GLM on both kinds of questions and on text."""
    root = tmp_path_factory.mktemp("asked")
    documents = {kind: [question(number, kind) for number in range(60)] for kind in CHOICES}
    documents["text"] = [Document(f"t{n}", [Text("birds sing of far hills and cold rain")]) for n in range(30)]
    texts = [one.text for part in documents.values() for one in part] + [" ".join(sum(CHOICES.values(), ()))] * 20
    tokenizer = train_tokenizer(texts, 160, extra_tokens=objectives.special_tokens(["glm"]))
    KosmosProcessor(KosmosImageProcessor(image_size=16), tokenizer, num_image_tokens=2).save_pretrained(root / "p")
    for name, part in documents.items():
        write_shards(root / name, part)
    text = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "dropout": 0.0}
    text |= {"num_attention_heads": 2, "position_type": "learned_2d", "max_position_embeddings": 96}
    (root / "model.json").write_text(json.dumps({"text_config": text, "vision_config": None}))
    kinds = {"single": {"name": "cloze"}, "several": {"name": "cloze"}, "text": {"name": "causal"}}
    sources = [{"name": name, "shards": str(root / name), "objective": each} for name, each in kinds.items()]
    return {
        "model": {"preset": str(root / "model.json")},
        "processor": str(root / "p"),
        "steps": 6,
        "data": {"sources": sources, "row_tokens": 96, "rows_per_step": 4, "rows_per_micro_batch": 2},
        "optim": {"lr": 3e-3, "warmup": 2},
        "checkpoint": {"every": 3},
        "log": {"every": 1},
    }


def micro_of(documents: list[Document], processor: Any) -> dict[str, torch.Tensor]:
    """A micro-batch of one row a document kind's objective has packed."""
    from kosmos_data.batch import collate
    from kosmos_data.packing import Piece, empty_row, fill_row

    cloze, causal = objectives.get("cloze", processor), objectives.get("causal", processor)
    examples = [(causal if one.key[0] == "t" else cloze)(one, 0) for one in documents]
    row = empty_row(0, 400, processor.tokenizer.pad_token_id)
    fill_row(row, [Piece(one, 0, 0, len(one), 0) for one in examples], processor.tokenizer.bos_token_id, True)
    return collate([row])


def plain_gradient(model: Any, processor: Any, documents: list[Document]) -> dict[str, torch.Tensor]:
    """Each document alone, unpacked, over the whole vocabulary; the mean over questions and tokens by autograd."""
    from kosmos_data.cloze import Cloze

    total, weight = torch.zeros(()), 0
    for one in documents:
        asked = next((segment for segment in one.segments if segment.choices), None)
        if asked is None:
            example = objectives.get("causal", processor)(one, 0)
            ids = torch.from_numpy(example.token)[None].long()
            scores = model(input_ids=ids).logits[0].log_softmax(-1)
            total = total - scores[range(len(example)), example.label].sum()
            weight += len(example)
            continue
        pattern = "".join("<mask>" if segment.choices else segment.text for segment in one.segments)
        cloze = Cloze(processor, {choice: choice for choice in asked.choices})
        total, weight = total + cloze.loss(model, [pattern], [asked.text]), weight + 1
    model.zero_grad()
    (total / weight).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def choice_errors(values: dict[str, Any]) -> dict[str, float]:
    """The largest error of a gradient by ZeRO stage and by what the ranks hold."""
    from kosmos_train.build import build_model

    text = Document("t", [Text("birds sing of far hills")])
    single, several = ([question(number, kind) for number in range(4)] for kind in CHOICES)
    held = {"mixed": [[*single, text], [*several, text]], "questions on one": [[*several, *single], [text, text]]}
    errors = {}
    for stage in STAGES:
        engine = jobs.make_engine(values | {"optim": {"clip": 0.0}, "engine": {"zero_stage": stage}})
        rank, size, processor = engine.world.rank, engine.world.size, jobs.build_processor_of(engine)
        model = build_model(engine.config, processor)
        for name, parts in held.items():
            expected = plain_gradient(model, processor, [one for part in parts for one in part])
            mine = parts if size == 1 else [parts[rank]]
            create_state(engine.deepspeed)
            batch = SimpleNamespace(micro_batches=[micro_of(part, processor) for part in mine])
            result = engine.step(batch, 1, 0.0, {})
            assert result.skipped is None, result.skipped
            errors[f"ZeRO-{stage}, {name}"] = largest_error(engine, expected)
        engine.close()
    return errors


@pytest.mark.parametrize("size", [1, 2])
def test_gradients_of_choices_equal_plain_torch(asked: dict[str, Any], tmp_path: Path, size: int) -> None:
    """One and several tokens, beside text, on one rank or both, ZeRO 0-3: every gradient to 1e-5."""
    for errors in launch(tmp_path / "j", size, choice_errors, asked).results():
        assert len(errors) == 2 * len(STAGES)
        assert {case: error for case, error in errors.items() if not error < 1e-5} == {}


def test_two_ranks_and_a_resumed_run_learn_the_same(asked: dict[str, Any], tmp_path: Path) -> None:
    """The same losses from one and two ranks, and after a return to the middle; the answers are learnt."""
    two = asked | {"data": asked["data"] | {"rows_per_micro_batch": 1}, "engine": {"zero_stage": 2}}
    launch(tmp_path / "a", 1, jobs.run, asked, str(tmp_path / "one")).results()
    launch(tmp_path / "b", 2, jobs.run, two, str(tmp_path / "two")).results()
    one = [row["loss"] for row in read_metrics(tmp_path / "one")]
    straight = read_metrics(tmp_path / "two")
    assert [row["loss"] for row in straight] == pytest.approx(one, rel=1e-5)
    assert one[-1] < one[0]
    shutil.rmtree(tmp_path / "two/checkpoints/step-000006")
    launch(tmp_path / "c", 2, jobs.run, two, str(tmp_path / "two"), True).results()
    resumed = read_metrics(tmp_path / "two")
    assert [row["loss"] for row in resumed] == [row["loss"] for row in straight]
    assert [row["order"] for row in resumed] == [row["order"] for row in straight]


def test_a_head_reads_the_blank_and_learns_on_the_same_batches(asked: dict[str, Any], tmp_path: Path) -> None:
    """Its loss is that of a linear layer over each document's own output; two runs with a seed are the same."""
    from kosmos import settings
    from kosmos_data import build_loader
    from kosmos_train.build import build_model, build_processor
    from kosmos_train.config import TrainConfig
    from kosmos_train.study import head

    values = asked | {"data": asked["data"] | {"sources": asked["data"]["sources"][:1]}, "steps": 30}
    config = settings.from_dict(TrainConfig, values)
    processor = build_processor(config)
    class_of = {processor.encode_text(word)[0]: number for number, word in enumerate(CHOICES["single"])}
    assert len(class_of) == 3
    classifier = head.Classifier(build_model(config, processor), 3).eval()
    loader = build_loader(config.data, processor)
    micro = next(loader).micro_batches[0]
    loader.close()
    hidden = classifier.model(
        **{name: micro[name] for name in ("input_ids", "document_ids", "position_ids", "block_ids", "position_in_span")}
    ).last_hidden_state
    places = (micro["loss_weight"] > 0).nonzero()
    sop = processor.tokenizer.convert_tokens_to_ids("<sop>")
    assert all(int(micro["input_ids"][row, at]) == sop for row, at in places)
    colours = {processor.encode_text(word)[0]: number for number, word in enumerate(("red", "green", "blue"))}
    expected = torch.zeros(())
    for row, at in places.tolist():
        own = micro["document_ids"][row] == micro["document_ids"][row, at]
        (told,) = (colours[token] for token in micro["input_ids"][row][own].tolist() if token in colours)
        expected = expected - classifier.head(hidden[row, at]).log_softmax(-1)[told]
    found = head.micro_loss(classifier, class_of, micro)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    logs = []
    for number in range(2):
        torch.manual_seed(0)
        model = head.Classifier(build_model(config, processor), 3)
        head.learn(model, class_of, config, processor, tmp_path / f"{number}.jsonl")
        logs.append([json.loads(line)["loss"] for line in (tmp_path / f"{number}.jsonl").read_text().splitlines()])
    assert logs[0] == logs[1]
    assert logs[0][-1] < 0.5 < logs[0][0]


def test_a_study_compares_the_cloze_with_a_head(asked: dict[str, Any], tmp_path: Path) -> None:
    """Both are tuned from one GLM at the rate that its validation items choose, and judged on the same test items."""
    import yaml

    from kosmos import settings
    from kosmos_train.study import run, tuning
    from kosmos_train.study.run import StudyConfig

    text = [asked["data"]["sources"][2] | {"objective": {"name": "causal"}}]
    data = asked["data"] | {"sources": text}
    base = asked | {"data": data, "eval": {"every": 1, "batches": 1, "data": data}, "steps": 3}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    for split, count in (("train", 40), ("test", 12)):
        rows = [{"text": f"calm {('red', 'blue')[n % 2]} hills", "label": f"kind.{n % 3}"} for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = {"kind.0": "fish", "kind.1": "boat"}
    labels = {"data": str(tmp_path), "train_items": 12, "validation_items": 8, "test_items": 6, "verbalizers": words}
    arms = {"cloze": {"from": "glm", "input": "cloze"}, "head": {"from": "glm", "input": "bare", "head": True}}
    values = {
        "base": str(tmp_path / "base.yaml"), "points": 1, "jobs": 1, "objectives": {"glm": {"name": "glm"}},
        "tuning": {"sets": {"kinds": labels | {"pattern": "{text} of <mask>"}}, "arms": arms, "seeds": [0, 1],
                   "steps": 2, "rates": [0.001, 0.01], "rows_per_step": 2},
    }  # fmt: skip
    study = settings.from_dict(StudyConfig, values)
    found = run.run(study, tmp_path / "study")
    assert found["tuning"]["kinds"]["guess"]["classes"] == 2
    data = tmp_path / "study/tuning/kinds"
    lines = [[json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
             for name in ("train", "validation", "test")]  # fmt: skip
    assert [len(part) for part in lines] == [12, 8, 6]
    assert {row["answers"][0] for part in lines for row in part} == {"kind 0", "kind 1"}
    for arm in arms:
        tried = json.loads((data / f"{arm}-rates/arm.json").read_text())["figures"]
        best = max(tried["validation"], key=lambda one: one[1])[0]
        each = [json.loads((data / f"{arm}-{seed}/arm.json").read_text())["figures"] for seed in (0, 1)]
        assert {tried["rate"], *(one["rate"] for one in each)} == {best}
        assert all(len(one["right"]) == 6 for one in each)
    task = tuning.task_of("kinds", study.tuning.sets["kinds"], data, "cloze")
    first = tuning.documents(task, data)[0].segments
    assert set(first[1].choices) == {"fish", "boat"}
    with pytest.raises(ValueError, match="needs a pattern with"):
        tuning.task_of("kinds", tuning.LabelSet(str(tmp_path)), data, "cloze")
