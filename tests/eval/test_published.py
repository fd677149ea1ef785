"""Classification sets in their published files: a hand-made sample of each, the prompt it becomes, and a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor, train_tokenizer
from kosmos_eval import prompts, tasks, training
from kosmos_eval.evaluate import evaluate
from kosmos_eval.items import Item
from kosmos_eval.readers import load_items
from kosmos_eval.results import make_rows

NLI = {"premise": "It is a cat.", "hypothesis": "It is an animal.", "idx": 0}
COPA = {"premise": "The man got wet.", "choice1": "It rained.", "choice2": "He slept.", "question": "cause", "idx": 0}
WIC = {"word": "bank", "sentence1": "The bank is shut.", "sentence2": "A bank of sand.", "idx": 0}
WSC = {
    "text": "Mark told Pete many lies, which he should have told the truth.",
    "target": {"span1_text": "Mark", "span1_index": 0, "span2_text": "he", "span2_index": 6},
}
HELLA = {
    "ind": 4, "activity_label": "Removing ice", "ctx_a": "A man stands.", "ctx_b": "then he", "ctx": "",
    "endings": ["sits. [title] Well", "[step] runs.", "eats.", "sings."], "split_type": "indomain",
}  # fmt: skip
PIQA = {"goal": "Cool the soup.", "sol1": "Blow on it.", "sol2": "Heat it."}
GRANDE = {"qID": "3", "sentence": "Sarah was better than Maria so _ got the hard cases.", "option1": "Sarah",
          "option2": "Maria", "answer": "1"}  # fmt: skip
STORY = {"InputStoryid": "a1", "InputSentence1": "One.", "InputSentence2": "Two.", "InputSentence3": "Three.",
         "InputSentence4": "Four.", "RandomFifthSentenceQuiz1": "Bad end.", "RandomFifthSentenceQuiz2": "Good end.",
         "AnswerRightEnding": "2"}  # fmt: skip
SCHEMA = """<?xml version="1.0"?><collection><schema><text><txt1>The trophy does not fit because</txt1>
<pron>it</pron><txt2>is too\n large.</txt2></text><answers><answer>The trophy</answer><answer>Ann</answer></answers>
<correctAnswer> A. </correctAnswer></schema></collection>"""

MULTIRC = {"idx": 0, "passage": {"text": "It rained. Ann slept.", "questions": [{"question": "Who slept?", "idx": 0,
           "answers": [{"text": "Ann", "idx": 0, "label": 1}]}]}}  # fmt: skip
RECORD = {"source": "CNN", "idx": 0, "passage": {"text": "Ann met Bob in Rome.\n@highlight\nBob is glad",
          "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 34, "end": 36}]},
          "qas": [{"query": "In Rome @placeholder smiled, he said", "idx": 0,
                   "answers": [{"start": 8, "end": 10, "text": "Bob"}, {"start": 34, "end": 36, "text": "Bob"}]},
          ]}  # fmt: skip

# task → file, content, prompt of the right candidate with its continuation
SAMPLES: dict[str, tuple[str, Any, str]] = {
    "boolq": ("BoolQ/val.jsonl", [{"question": "is it a cat", "passage": "It is.", "idx": 0, "label": True}],
              "It is.\nQuestion: is it a cat?\nAnswer:| yes"),
    "cb": ("CB/val.jsonl", [NLI | {"label": "neutral"}],
           "It is a cat.\nQuestion: It is an animal. True, False, or Neither?\nAnswer:| Neither"),
    "rte": ("RTE/val.jsonl", [NLI | {"label": "not_entailment"}],
            "It is a cat.\nQuestion: It is an animal. True or False?\nAnswer:| False"),
    "copa": ("COPA/val.jsonl", [COPA | {"label": 0}], "The man got wet because| it rained."),
    "wic": ("WiC/val.jsonl", [WIC | {"label": False}],
            "The bank is shut.\nA bank of sand.\nQuestion: Is the word 'bank' used in the same way in the two "
            "sentences above?\nAnswer:| no"),
    "wsc": ("WSC/val.jsonl", [WSC | {"label": True}],
            "Passage: Mark told Pete many lies, which *he* should have told the truth.\nQuestion: In the passage "
            "above, does the pronoun '*he*' refer to 'Mark'?\nAnswer:| yes"),
    "multirc": ("MultiRC/val.jsonl", [MULTIRC],
                "It rained. Ann slept.\nQuestion: Who slept?\nAnswer: Ann\nIs the answer right?| yes"),
    "record": ("ReCoRD/val.jsonl", [RECORD],
               "Ann met Bob in Rome.\n- Bob is glad\n- In Rome| Bob smiled, he said"),
    "glm_wsc": ("WSC/val.jsonl", [WSC | {"label": False}],
                'Mark told Pete many lies, which *he* should have told the truth. Does "*he*" mean "Mark"? <mask>.|No'),
    "glm_multirc": ("MultiRC/val.jsonl", [MULTIRC],
                    "It rained. Ann slept. Question: Who slept? Is it Ann? <mask>.|Yes"),
    "glm_record": ("ReCoRD/val.jsonl", [RECORD],
                   "Ann met Bob in Rome.\n- Bob is glad In Rome <mask> smiled, he said|Bob"),
    "piqa": ("valid.jsonl", [PIQA], "Question: Cool the soup.\nAnswer:| Blow on it."),
    "hellaswag": ("hellaswag_val.jsonl", [HELLA | {"label": 1}], "Removing ice: A man stands. Then he| runs."),
    "winogrande": ("dev.jsonl", [GRANDE], "Sarah was better than Maria so Sarah| got the hard cases."),
    "winograd": ("WSCollection.xml", SCHEMA, "The trophy does not fit because the trophy| is too large."),
    "storycloze": ("cloze_test_test__spring2016.csv", [STORY], "One. Two. Three. Four.| Good end."),
    "hateful_memes": ("dev_seen.jsonl", [{"id": 42, "img": "img/42.png", "label": 0, "text": "words"}],
                      "<image>Question: does this picture contain real hate speech? Answer:| no"),
    "glm_boolq": ("BoolQ/val.jsonl", [{"question": "is it?", "passage": "It is.", "label": False}],
                  "It is. Question: is it? Answer: <mask>.|No"),
    "glm_cb": ("CB/val.jsonl", [NLI | {"label": "neutral"}], '"It is an animal." ? <mask>, "It is a cat."|Maybe'),
    "glm_rte": ("RTE/val.jsonl", [NLI | {"label": "entailment"}], '"It is an animal." ? <mask>, "It is a cat."|Yes'),
    "glm_copa": ("COPA/val.jsonl", [COPA | {"label": 1, "question": "effect"}],
                 '"it rained" or "he slept"? The man got wet, so <mask>.|he slept'),
    "glm_wic": ("WiC/val.jsonl", [WIC | {"label": True}],
                '"The bank is shut." / "A bank of sand." Similar sense of "bank"? <mask>.|Yes'),
}  # fmt: skip


def write(folder: Path, name: str, repeat: int = 1) -> tasks.Task:
    file, content, _ = SAMPLES[name]
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if file.endswith(".xml"):
        path.write_text(content)
    elif file.endswith(".csv"):
        with path.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, content[0])
            writer.writeheader()
            writer.writerows(content)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content * repeat))
    if name == "piqa":
        (folder / "valid-labels.lst").write_text("0\n" * repeat)
    if name == "hateful_memes":
        (folder / "img").mkdir()
        Image.new("RGB", (16, 16), "red").save(folder / "img/42.png")
    return tasks.load(name)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_prompt_of_each_published_file(name: str, tmp_path: Path) -> None:
    task = write(tmp_path, name)
    (item,) = load_items(task, tmp_path, task.split)
    (answer,) = item.answers
    assert answer in prompts.candidates(task, item)
    if not name.endswith("record"):  # each of its passages has another number of entities
        assert task.chance == pytest.approx(1 / len(prompts.candidates(task, item)), abs=1e-3)
    prompt = prompts.with_candidate(prompts.build(task, item), prompts.wording(task, item, answer))
    assert prompt.text + "|" + prompts.continuation(task, item, answer) == SAMPLES[name][2]


@pytest.mark.parametrize("name", sorted(name for name in SAMPLES if not name.startswith("glm_")))
def test_each_runs_and_prints_its_chance(
    name: str, model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(processor, "max_length", 1024)
    task = write(tmp_path, name)
    if name == "hateful_memes":  # both classes
        more = {"id": 43, "img": "img/42.png", "label": 1, "text": "other"}
        (tmp_path / "dev_seen.jsonl").write_text(
            "".join(map("{}\n".format, map(json.dumps, [*SAMPLES[name][1], more])))
        )
    rows = evaluate(model, processor, task, tmp_path)
    assert rows[0]["metric"] == task.metrics[0]
    assert rows[0]["baselines"] == ({} if task.chance is None else {"chance": task.chance})


def test_candidates_inside_the_prompt_are_compared_by_what_follows(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    """Winogrande's partial evaluation against the model called on each whole sentence."""
    from kosmos_eval.model import EvaluatedModel
    from kosmos_eval.prompts import Pair, Prompt
    from kosmos_eval.runner import Runner

    rows = [{"sentence": "is it a _ red circle", "option1": "blue", "option2": "green square", "answer": "2"}]
    (tmp_path / "dev.jsonl").write_text(json.dumps(rows[0]))
    (tmp_path / "train_xl.jsonl").write_text(json.dumps(rows[0] | {"sentence": "no it is _ yes it is"}))
    evaluate(model, processor, "winogrande", tmp_path, shots=(1,), out=tmp_path / "out")
    (line,) = (tmp_path / "out/samples/model/winogrande-1shot-image+text.jsonl").read_text().splitlines()
    record, asked = json.loads(line), EvaluatedModel(Runner(model, processor))
    assert record["prompt"] == "no it is green square yes it is\nis it a {candidate}"
    for score, words in zip(record["scores"], ("blue", "green square"), strict=True):
        text = f"no it is green square yes it is\nis it a {words}"
        (reply,) = asked.log_likelihoods([Pair(Prompt((text,)), " red circle")])
        assert score == pytest.approx(reply[0].nats, abs=1e-4)
    assert record["prediction"] == ("blue", "green square")[record["scores"].index(max(record["scores"]))]


@pytest.mark.parametrize(
    ("file", "content", "name", "message"),
    [
        ("BoolQ/val.jsonl", '{"question": "q", "passage": "p"}', "boolq", "labels of the test split are not public"),
        ("BoolQ/val.jsonl", '{"question": "q", "passage": "p", "label": 2}', "boolq", "neither true nor false"),
        ("BoolQ/val.jsonl", '{"question": "q", "label": true}', "boolq", "no 'passage' here"),
        ("BoolQ/val.jsonl", "{", "boolq", "val.jsonl:1: not valid JSON"),
        ("dev.jsonl", json.dumps(GRANDE | {"sentence": "no blank"}), "winogrande", "not an entry of format winogrande"),
        ("dev.jsonl", json.dumps(GRANDE | {"answer": ""}), "winogrande", "not public"),
        ("WSCollection.xml", "<collection>", "winograd", "not valid XML"),
        ("hellaswag_val.jsonl", json.dumps(HELLA | {"label": 4}), "hellaswag", "names candidate 5 of 4"),
    ],
)
def test_bad_entries_are_named(file: str, content: str, name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_items(tasks.load(name), tmp_path, tasks.load(name).split)


def test_label_file_must_fit_and_files_must_exist(tmp_path: Path) -> None:
    write(tmp_path, "piqa", repeat=2)
    (tmp_path / "valid-labels.lst").write_text("0\n")
    with pytest.raises(ValueError, match="1 labels for 2 entries"):
        load_items(tasks.load("piqa"), tmp_path, "valid")
    with pytest.raises(FileNotFoundError, match=r"val\.jsonl: no such file"):
        load_items(tasks.load("boolq"), tmp_path, "val")


@pytest.fixture(scope="module")
def blank_filler() -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    from kosmos_data import objectives

    words = [line for _, _, line in SAMPLES.values()] + ["Yes No Maybe it rained he slept"] * 3
    tokenizer = train_tokenizer(words, 200, extra_tokens=objectives.special_tokens(["glm"]))
    processor = KosmosProcessor(KosmosImageProcessor(image_size=16), tokenizer, num_image_tokens=4, max_length=128)
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 128, "position_type": "learned_2d"}  # fmt: skip
    torch.manual_seed(0)
    config = KosmosConfig(text_config=text, vision_config=None, image_token_id=None)
    return KosmosForConditionalGeneration(config).eval(), processor


@pytest.mark.parametrize("name", sorted(name for name in SAMPLES if name.startswith("glm_")))
def test_cloze_tasks_run_on_a_blank_filling_model(
    name: str, blank_filler: tuple[KosmosForConditionalGeneration, KosmosProcessor], tmp_path: Path
) -> None:
    """Scores are those of the cloze that fine-tuning trains, for one-token and longer wordings."""
    from kosmos_data.cloze import Cloze

    model, processor = blank_filler
    task = write(tmp_path, name)
    rows = evaluate(model, processor, task, tmp_path, out=tmp_path / "out")
    assert rows[0]["baselines"] == ({} if task.chance is None else {"chance": task.chance})
    (line,) = (tmp_path / f"out/samples/model/{name}-0shot-image+text.jsonl").read_text().splitlines()
    record = json.loads(line)
    (item,) = load_items(task, tmp_path, task.split)
    words = {one: prompts.wording(task, item, one) for one in prompts.candidates(task, item)}
    expected = Cloze(processor, words).scores(model, [record["prompt"]])[0].tolist()
    assert record["scores"] == pytest.approx(expected, abs=1e-5)
    assert record["prediction"] == list(words)[expected.index(max(expected))]


def test_cloze_refuses_other_models_and_demonstrations(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    task = write(tmp_path, "glm_boolq")
    with pytest.raises(ValueError, match="special tokens that the tokenizer lacks"):
        evaluate(model, processor, task, tmp_path)
    with pytest.raises(ValueError, match="takes no demonstrations"):
        evaluate(model, processor, task, tmp_path, shots=(1,))
    with pytest.raises(ValueError, match="exactly one <mask>"):
        tasks.load("glm_boolq", ["prompt.template=no blank here"])
    with pytest.raises(ValueError, match="needs method rank"):
        tasks.load("winogrande", ["decoding.method=greedy", "metrics=[exact_match]"])
    with pytest.raises(ValueError, match="none of the candidates"):
        tasks.load("cb", ["decoding.candidates=[neutral]"])


def test_items_keep_their_own_class_names() -> None:
    task = tasks.load("cb")
    assert task.decoding.candidates == ["entailment", "contradiction", "neutral"]
    assert prompts.continuation(task, Item("1", {}, (), ("entailment",)), "entailment") == " True"


def test_multirc_counts_options_and_whole_questions(tmp_path: Path) -> None:
    """F1a of all options, EM of questions, as SuperGLUE defines them: two of three options, one of two questions."""
    questions = [
        {"question": "Who?", "answers": [{"text": "Ann", "label": 1}, {"text": "Bob", "label": 0}]},
        {"question": "Where?", "answers": [{"text": "Rome", "label": 1}]},
    ]
    rows = [{"idx": 0, "passage": {"text": "Ann slept.", "questions": questions}}]
    (tmp_path / "MultiRC").mkdir()
    (tmp_path / "MultiRC/val.jsonl").write_text(json.dumps(rows[0]) + "\n")
    task = tasks.load("multirc")
    items = load_items(task, tmp_path, "val")
    assert [item.id for item in items] == ["1-0-0", "1-0-1", "1-1-0"]
    assert [item.cluster for item in items] == ["1-0", "1-0", "1-1"]
    made, each = make_rows(task, items, ["yes", "yes", "yes"], {"model": "m", "shots": 0, "context": "none"}, 0)
    found = {row["metric"]: row["value"] for row in made}
    precision, recall = 2 / 3, 1.0
    assert found["f1_a"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert (found["em_questions"], found["accuracy"]) == (0.5, pytest.approx(2 / 3))
    assert each["em_questions"] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("file", "content", "name", "message"),
    [
        ("MultiRC/val.jsonl", {"passage": {"text": "x"}}, "multirc", "no 'questions' here"),
        ("MultiRC/test.jsonl", {"passage": {"text": "x", "questions": [{"question": "q", "answers": [{"text": "a"}]}]}},
         "multirc", "labels of the test split are not public"),
        ("ReCoRD/val.jsonl", RECORD | {"qas": [{"query": "@placeholder is", "answers": [{"text": "Cy"}]}]}, "record",
         "not all entities of the passage"),
        ("ReCoRD/val.jsonl", RECORD | {"qas": [{"query": "Ann is", "answers": [{"text": "Ann"}]}]}, "record",
         "not an entry of format record"),
        ("ReCoRD/val.jsonl", RECORD | {"qas": [{"query": "@placeholder is"}]}, "record", "no 'answers' here"),
    ],
)  # fmt: skip
def test_bad_nested_entries_are_named(file: str, content: Any, name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_items(tasks.load(name), tmp_path, Path(file).stem)


@pytest.mark.parametrize("name", sorted(name for name in SAMPLES if name.startswith("glm_")))
def test_items_to_learn_from_are_what_is_asked(
    name: str, blank_filler: tuple[KosmosForConditionalGeneration, KosmosProcessor], tmp_path: Path
) -> None:
    """A document of a cloze task, as the objective reads it, has the loss that the task's scores say."""
    from kosmos_data import objectives
    from kosmos_data.batch import collate
    from kosmos_data.packing import Piece, empty_row, fill_row

    model, processor = blank_filler
    task = write(tmp_path, name)
    evaluate(model, processor, task, tmp_path, out=tmp_path / "out")
    (line,) = (tmp_path / f"out/samples/model/{name}-0shot-image+text.jsonl").read_text().splitlines()
    items = load_items(task, tmp_path, task.split)
    (document,) = training.documents(task, items)
    example = objectives.get("cloze", processor)(document, 0)
    row = empty_row(0, 600, processor.tokenizer.pad_token_id)
    fill_row(row, [Piece(example, 0, 0, len(example), 0)], processor.tokenizer.bos_token_id, True)
    micro = {key: value for key, value in collate([row]).items() if key != "source_ids"}
    scores = torch.tensor(json.loads(line)["scores"])
    right = list(prompts.candidates(task, items[0])).index(items[0].answers[0])
    assert float(model(**micro).loss.detach()) == pytest.approx(float(-scores.log_softmax(0)[right]), abs=1e-4)


def test_the_command_writes_documents_with_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Entailment's three words of the training split; what kosmos tune says of such a corpus, and of another."""
    from kosmos_data import DataConfig, Document, SourceConfig, Text, write_shards
    from kosmos_data.reader import Corpus
    from kosmos_eval.cli import main
    from kosmos_train.answers import answers_learnt
    from kosmos_train.config import TrainConfig

    write(tmp_path, "glm_cb", repeat=3)
    (tmp_path / "CB/val.jsonl").rename(tmp_path / "CB/train.jsonl")
    assert main(["documents", "glm_cb", "--data", str(tmp_path), "--out", str(tmp_path / "cb")]) == 0
    assert "3 documents" in capsys.readouterr().out
    corpus = Corpus(tmp_path / "cb")
    assert len(corpus) == 3
    assert corpus[0].segments == [
        Text('"It is an animal." ? ', supervised=False),
        Text("Maybe", choices=("Maybe", "Yes", "No")),
        Text(', "It is a cat."', supervised=False),
    ]
    config = TrainConfig(data=DataConfig([SourceConfig("cb", str(tmp_path / "cb"), 1.0, {"name": "cloze"})]))
    assert list(answers_learnt(config)) == ["cb: answers among their choices (3 of its first 3 documents)"]
    write_shards(tmp_path / "plain", [Document("a", [Text("x")])])
    config.data.sources[0].shards = str(tmp_path / "plain")
    with pytest.raises(ValueError, match='none of its first 1 documents has a text with "choices"'):
        list(answers_learnt(config))
