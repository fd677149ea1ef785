"""What a person types in the first hour: short forms, names instead of paths, slips; and what is not there yet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kosmos import settings
from kosmos.cli import main
from kosmos.processing_kosmos import load_processor
from kosmos_data import build_loader
from kosmos_data.index import read_index
from kosmos_train import TrainConfig
from kosmos_train.dry_run import dry_run, plan
from kosmos_train.inputs import check_inputs, missing_inputs
from kosmos_train.named_configs import find_config, known
from kosmos_train.runs import plot, read_all, run_folders, table

DATA = {"sources": [{"name": "a", "shards": "x"}, {"name": "b", "shards": "y"}]}


def load(*overrides: str, **values: Any) -> TrainConfig:
    path = Path("run.yaml")
    path.write_text(json.dumps({"data": DATA, **values}))
    return settings.load(TrainConfig, path, overrides)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_short_forms() -> None:
    config = load("data.sources.0.objective=ul2", "data.sources.b.objective=glm", "data.sources.b.weight=2")
    assert [source.objective for source in config.data.sources] == [{"name": "ul2"}, {"name": "glm"}]
    assert [source.weight for source in config.data.sources] == [1.0, 2.0]
    config = load(
        "steps=1e3", "tuning=lora", "log.tracking=wandb", "model.freeze=vision.*", "samples.prompts=An image of"
    )
    assert (config.steps, config.tuning.method, config.log.tracking) == (1000, "lora", ["wandb"])  # type: ignore[union-attr]
    assert (config.model.freeze, config.samples.prompts[0].text) == (["vision.*"], "An image of")
    assert load("model.decoder=some/model").model.decoder.pretrained == "some/model"  # type: ignore[union-attr]
    assert load("data.sources={name: a, shards: z}").data.sources[0].shards == "z"
    assert load(optim=None).optim.lr == 2e-4


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("objective=ul2", r"^objective=ul2: unknown key 'objective'; did you mean 'data.sources\[\].objective'"),
        ("lr=1", "^lr=1: unknown key 'lr'; did you mean .*'optim.lr'"),
        ("foo=1", "^foo=1: unknown key 'foo'; known: data"),
        ("steps=x", 'steps=x: key "steps": expected a whole number. Got value: x'),
        ("optim=1", r'optim=1: key "optim": a group of settings is expected, optim.name=…'),
        ("engine=fp32", 'key "engine": a group of settings'),
        ("data=1", 'key "data": a group of settings'),
        ("data.sources=1", "expected a list"),
        ("optim.betas=1", "expected a list"),
        ("data.sources.2.weight=1", "the list has no entry '2'; known: 0, 1, a, b"),
        ("data.sources.bb.weight=1", "did you mean 'b'"),
    ],
)
def test_the_word_that_is_wrong_is_named(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(word)


def test_a_mistake_of_the_file_names_the_file() -> None:
    with pytest.raises(ValueError, match=r"^run.yaml: unknown key 'foo'"):
        load("steps=5", foo=1)
    Path("empty.yaml").write_text("steps: 5")
    with pytest.raises(ValueError, match=r"^empty.yaml: data.sources is required"):
        settings.load(TrainConfig, "empty.yaml")


@pytest.mark.parametrize(
    "word",
    [
        *("data.workers=-1", "data.lanes=-1", "optim.lr=-1", "optim.betas=[1, 2]", "optim.clip=-1", "optim.eps=-1"),
        *("checkpoint.every=-1", "samples.every=-1", "guard.window=0", "guard.spike=-1", "engine.timeout_minutes=0"),
        *("eval.batches=0", "checkpoint.keep=0", "log.every=0", "steps=0", "optim.weight_decay=-1"),
    ],
)
def test_numbers_out_of_range(word: str) -> None:
    key = word.partition("=")[0]
    with pytest.raises(ValueError, match=re.escape(key)):
        load(word, "optim.warmup=0", model={"checkpoint": "x"}).check()


def test_so_many_gpus_and_processes(capsys: pytest.CaptureFixture[str]) -> None:
    load(model={"checkpoint": "x"})
    assert main(["train", "run.yaml", "--dry-run", "--gpus", "0"]) == 2
    assert main(["train", "run.yaml", "run=r", "--processes", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err.splitlines()[1]


@pytest.mark.parametrize("option", ["--steps-factor", "--limit", "--processes"])
def test_a_demo_of_nothing(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", option, "0", "--out", "nowhere"]) == 2
    assert f"{option} 0" in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_all_that_is_missing_is_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """On a fresh clone nothing is there; the size of the model is told all the same."""
    found = missing_inputs(settings.load(TrainConfig, find_config("small")))
    folders = {f"data/corpora/{name}" for name in ("text", "pairs", "interleaved")}
    assert found.keys() == {"data/processors/small", "data/weights/ViT-B-32", *folders}
    assert main(["train", "small", "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert "142,113,024" in out
    assert all(path in err for path in found)
    for command in ("kosmos tokenizer tokenizer run=data/processors/small", "kosmos data import", "kosmos vision"):
        assert command in err
    assert main(["train", "demo/tune", "run=r"]) == 2  # neither does a run begin
    assert "runs/demo/instruct" in capsys.readouterr().err
    assert not Path("r").exists()


def test_what_is_there_and_something_else_is_named_with_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """Tars without an index, photographs, a folder that is no processor and one that is no run: all in one answer."""
    for folder, file in (("tars", "0.tar"), ("photos", "1.jpg"), ("notes", "notes.txt")):
        Path(folder).mkdir()
        (Path(folder) / file).write_bytes(b"x")
    words = ["data.sources.pairs.shards=tars", "data.sources.interleaved.shards=photos", "processor=notes"]
    assert main(["train", "small", "--dry-run", *words, "data.sources.text.shards=gone"]) == 2
    out, err = capsys.readouterr()
    assert "parameters" in out
    assert err.count("\n") == 1
    wanted = ("gone – shards of text", "tars holds no index.json", "kosmos data index tars", "photos holds no index")
    for said in (
        *wanted,
        "notes: no processor here",
        "data/weights/ViT-B-32 – ",
        "5 inputs are not there or something",
    ):
        assert said in err


@pytest.mark.parametrize("words", [["--dry-run"], ["run=r"], ["run=r", "--processes", "2"], ["run=r", "--resume"]])
def test_tuning_too_names_all_that_is_missing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The marks of the answers are counted in corpora that may not be there."""
    assert main(["tune", "demo/tune", *words]) == 2
    err = capsys.readouterr().err
    assert all(
        said in err for said in ("runs/demo/corpus/qa – ", "runs/demo/instruct – model.checkpoint", "kosmos demo")
    )
    Path("notes").mkdir()
    assert main(["tune", "demo/tune", "--dry-run", "model.checkpoint=notes"]) == 2
    assert "notes is not a checkpoint" in capsys.readouterr().err


def test_what_lies_elsewhere_is_not_missing() -> None:
    Path("x").mkdir()
    values: dict[str, Any] = {"model": {"preset": "tiny", "vision_weights": "ViT-B-32/openai"}, "processor": "x"}
    config = load("data.sources.b.shards=s3://bucket/y", "model.span_weights=package:json", **values)
    assert missing_inputs(config) == {}
    check_inputs(config)


def test_configs_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"small", "kosmos1", "demo/tune", "tokenizer"} <= known().keys()
    assert find_config("demo/tune") == find_config("train/configs/demo/tune.yaml")
    with pytest.raises(FileNotFoundError, match="smal: no such settings file; did you mean 'small'"):
        find_config("smal")
    with pytest.raises(SystemExit):
        main(["train", "--configs"])
    assert "demo/tune" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "x"], "run=x"),
        (["--out=x"], "run=x"),
        (["--steps", "5"], "steps=5"),
        (["--a-b"], "a_b=…"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "tune", "tokenizer", "vision", "encoder", "simulate"])
def test_settings_have_no_dashes(verb: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "small", *words])
    assert f"settings are written key=value: {said}" in capsys.readouterr().err


def test_a_folder_that_is_there(values: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """``kosmos tokenizer`` does not write over what another run may use; a file is no run folder."""
    Path("t.yaml").write_text(json.dumps({"shards": values["data"]["sources"][0]["shards"], "vocab_size": 5000}))
    assert main(["tokenizer", "t.yaml", "run=p"]) == 0
    assert "pieces, not vocab_size=5,000" in capsys.readouterr().out
    assert main(["tokenizer", "t.yaml", "run=p"]) == 2
    assert "run=p is there already" in capsys.readouterr().err
    Path("r.yaml").write_text(json.dumps(values))
    assert main(["train", "r.yaml", "run=r.yaml"]) == 2
    assert "run=r.yaml is a file" in capsys.readouterr().err


def test_a_dry_run_says_how_often_and_what_binds(values: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    values["steps"], values["optim"] = 500, {"warmup": 0}
    values["data"]["sources"] = [values["data"]["sources"][2]]
    config = settings.from_dict(TrainConfig, values)
    found = plan(config, 1)
    (passes,) = found.passes.values()
    documents = sum(shard.documents for shard in read_index(config.data.sources[0].shards)[0])
    begun = next(build_loader(config.data, load_processor(values["processor"]))).stats["documents"]
    assert passes == pytest.approx(500 * begun / documents, rel=0.2)
    config.data.max_images_per_row = 1
    dry_run(config, None)
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "data.max_images_per_row=1 is reached in 100 % of the rows" in shown
    assert "this CPU" in shown
    assert "an image" in shown
    assert "0.00" not in shown


def test_what_sees_to_the_right_is_named(values: dict[str, Any]) -> None:
    values["data"]["sources"][0]["objective"] = "prefix_lm"
    name = values["data"]["sources"][0]["name"]
    with pytest.raises(ValueError, match=f"^data.sources {name}: block_ids ask"):
        plan(settings.from_dict(TrainConfig, values), 1)
    values["model"]["overrides"] = {"text_config": {"hidden_sise": 32}}
    with pytest.raises(ValueError, match="no field of the model's config; did you mean 'hidden_size'"):
        plan(settings.from_dict(TrainConfig, values), 1)
    values["model"]["overrides"] = {"hidden_size": 32}
    with pytest.raises(ValueError, match=r"did you mean text_config.hidden_size"):
        plan(settings.from_dict(TrainConfig, values), 1)


def test_folders_of_runs_and_short_ones(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"step": step, "loss": 5.0 - step / 10, "tokens": step, "seconds": 1.0, "tokens_per_second": 1.0,
             "data_wait": 0.0, "source_loss": {"a": 1.0}, "eval_tasks": {"vqa": {"acc": 0.0}}}
            for step in range(1, 31)]  # fmt: skip
    for name in ("a", "b"):
        (Path("runs") / name).mkdir(parents=True)
        (Path("runs") / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [path.name for path in run_folders(["runs", "runs/a"])] == ["a", "b", "a"]
    assert list(read_all(["runs"])) == ["a", "b"]
    assert main(["runs", "list", "runs"]) == 0
    assert plot(["runs"], "loss.png").is_file()
    assert main(["runs", "list", "nowhere"]) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"step": 1}', "loss is None"),
        ('{"loss": 1}', "step is None"),
        ('{"step": 1, "loss": 1, "seconds": "x"}', "seconds is 'x'"),
        ('{"step": 1, "loss": 1, "eval_loss": 3}', "eval_loss.loss is None"),
        ('{"step": 1, "loss": 1, "eval_loss": {"a": 1}}', "eval_loss.loss is None"),
        ('{"step": 1, "loss": 1, "eval_tasks": [1]}', r"eval_tasks is \[1\]"),
        ('{"step": 1, "loss": 1, "source_loss": {"a": {"b": null}}}', "source_loss.a.b is None"),
        ('{"step": 1, "loss": NaN}', None),
        ("[1]", "a list, not what a step writes"),
        ("[" * 10**5, "not valid JSON"),
    ],
)
def test_metrics_that_no_step_wrote(tmp_path: Path, row: str, message: str | None) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 0, "loss": 2.5}}\n{row}\n')
    if message is None:
        assert table([tmp_path]).row_count == 1
    else:
        with pytest.raises(ValueError, match=f"metrics.jsonl:2: {message}"):
            table([tmp_path])
