"""The command and the run directory: what it leaves, and how it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny
import torch
import yaml
from forks import launch
from safetensors.torch import load_file

from kosmos import cli, settings
from kosmos_train import TrainConfig, train
from kosmos_train.guards import Interrupt
from kosmos_train.pretrain import main
from kosmos_train.runs import plot, read_metrics


def config_of(values: dict[str, Any]) -> TrainConfig:
    return settings.from_dict(TrainConfig, values)


def test_a_run_leaves_what_it_promises(values: dict[str, Any], tmp_path: Path) -> None:
    """Loss falls; config, environment, metrics, samples, checkpoints are there, and nothing beside the run folder."""
    image = tmp_path / "red.png"
    image.write_bytes(tiny.picture("red"))
    prompts = [{"text": "An image of", "images": [str(image)]}, {"text": "the fish"}]
    text, *pictures = values["data"]["sources"]
    held_out = values["data"] | {"sources": [*pictures, text, text | {"name": "other text"}]}  # not those of training
    values |= {
        "steps": 40,
        "samples": {"every": 20, "prompts": prompts, "max_new_tokens": 4},
        "eval": {"every": 20, "batches": 2, "data": held_out},
        "checkpoint": {"every": 20, "keep": 1},
    }
    run = tmp_path / "run"
    outcome = train(config_of(values), run)
    assert outcome.finished
    assert outcome.step == 40
    assert outcome.checkpoint == run / "checkpoints" / "step-000040"
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert all({"step", "loss", "tokens"} <= row.keys() for row in rows)
    assert sum(row["loss"] for row in rows[-5:]) < sum(row["loss"] for row in rows[:5]) - 2
    assert rows[-1]["tokens"] == sum(sum(row["source_tokens"].values()) for row in rows)
    assert set(rows[19]["eval_loss"]) == {"loss", "text", "other text", "pairs", "interleaved"}
    assert rows[19]["eval_loss"]["text"] == pytest.approx(rows[19]["eval_loss"]["other text"], rel=0.2)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [(sample["step"], sample["prompt"]) for sample in samples] == [
        (step, prompt["text"]) for step in (20, 40) for prompt in prompts
    ]
    assert settings.load(TrainConfig, run / "config.yaml") == config_of(values)
    launch = json.loads((run / "environment.json").read_text())[-1]
    assert launch["data"]["pairs"]["documents"] == 160
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "checkpoints")
    }
    assert plot([run], tmp_path / "loss.png").stat().st_size > 10_000


def test_runs_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line a run, in full on a terminal of 80 columns; two folders of the same name are told apart."""
    row = {"loss": 2.0, "seconds": 2.0, "tokens_per_second": 500.0, "data_wait": 0.25, "source_loss": {"text": 2.0}}
    for folder, steps in (("a", 3), ("b", 30)):
        (tmp_path / folder / "run").mkdir(parents=True)
        lines = [row | {"step": step, "tokens": 1000 * step, "loss": step / 10} for step in range(1, steps + 1)]
        (tmp_path / folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["runs", "list", "a/run", "b/run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a/run", "3", "3,000", "0.2000", "–", "500", "25.0", "%", "0"] in lines
    assert ["b/run", "30", "30,000", "2.0500", "–", "500", "25.0", "%", "0"] in lines
    one, two = (plot(runs, tmp_path / "loss.png").stat().st_size for runs in (["a/run"], ["a/run", "b/run"]))
    assert two > one


def test_trackers_write_under_the_run(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard, trackio and W&B get the numbers of every step, nested ones by path; a missing package has a name.

    A resumed run goes on in TensorBoard without the steps that are made again.
    """
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for package in ("trackio", "wandb"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    values |= {"steps": 4, "checkpoint": {"every": 2}, "log": {"tracking": ["tensorboard", "trackio", "wandb"]}}
    launch(tmp_path / "j", 1, jobs.run, values, str(tmp_path / "run")).results()  # trackio asks where once a process
    rows = read_metrics(tmp_path / "run")
    expected = [row["source_loss"]["pairs"] for row in rows]
    assert list((tmp_path / "run" / "trackio").glob("*.db"))
    (logged,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    history = wandb_history(logged)
    assert [row["source_loss/pairs"] for row in history] == pytest.approx(expected)
    assert [row["_step"] for row in history] == [1, 2, 3, 4]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000004")
    train(config_of(values | {"log": {"tracking": ["tensorboard"]}}), tmp_path / "run", resume=True)
    events = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("source_loss/pairs")] == pytest.approx(expected)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"log.tracking: wandb needs a package that is missing; pip install"):
        train(config_of(values | {"log": {"tracking": ["wandb"]}}), tmp_path / "other")


def wandb_history(path: Path) -> list[dict[str, float]]:
    """The rows of W&B's offline file: after a header of 7 bytes, LevelDB's log of protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, place, rows, whole = path.read_bytes(), 7, [], b""
    while place + 7 <= len(raw):
        if 32768 - place % 32768 < 7:  # the rest of a block has no room for a chunk's head
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        whole += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last chunk of several
            record, whole = Record.FromString(whole), b""
            if record.WhichOneof("record_type") == "history":
                rows.append({"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
    return rows


def test_tuning_starts_from_a_checkpoint(values: dict[str, Any], tmp_path: Path) -> None:
    """The same function, from a folder: its weights, config and processor; the first loss is the trained one's."""
    trained = train(config_of(values | {"steps": 30, "optim": {"lr": 3e-3, "warmup": 0}}), tmp_path / "a")
    values.pop("processor")
    values |= {"model": {"checkpoint": str(trained.checkpoint)}, "steps": 2, "optim": {"lr": 1e-4, "warmup": 0}}
    train(config_of(values), tmp_path / "b")
    first, last = read_metrics(tmp_path / "a")[0]["loss"], read_metrics(tmp_path / "a")[-1]["loss"]
    assert abs(read_metrics(tmp_path / "b")[0]["loss"] - last) < abs(first - last) / 4


def test_a_resumed_run_needs_what_it_began_from_no_more(values: dict[str, Any], tmp_path: Path) -> None:
    """Its own checkpoint holds the whole model; a new run of these settings is refused."""
    values |= {"steps": 2, "optim": {"schedule": "constant", "warmup": 0}}
    began = train(config_of(values), tmp_path / "a")
    values |= {"model": {"checkpoint": str(began.checkpoint)}}
    train(config_of(values), tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    assert train(config_of(values | {"steps": 3}), tmp_path / "b", resume=True).step == 3
    with pytest.raises(FileNotFoundError, match=r"not there: .*model\.checkpoint"):
        train(config_of(values), tmp_path / "c")


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_checkpoint_is_no_place_for_a_run(values: dict[str, Any], tmp_path: Path, name: str, resume: bool) -> None:
    """Who names the folder of a checkpoint would chat with that checkpoint afterwards, not with what was trained."""
    folder = tmp_path / "step-000100"
    folder.mkdir()
    (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"run=.*step-000100 is a checkpoint \({name}\); name a folder of its own"):
        train(config_of(values), folder, resume=resume)
    assert [file.name for file in folder.iterdir()] == [name]


def test_resume_needs_the_same_run(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing run is not overwritten; resuming with other numbers is refused, with other logging it is fine.

    Of several processes none is started to say so.
    """
    run, path = tmp_path / "run", tmp_path / "run.yaml"
    settings.write_yaml(values, path)
    monkeypatch.setattr("kosmos_train.launcher.launch_here", lambda *_: 0)
    ranks = [str(path), f"run={run}", "--processes", "2"]
    assert main(ranks) == 0
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        train(config_of(values | {"processor": "/nowhere"}), run)  # never began, so the folder is free
    train(config_of(values), run, resume=True)  # nothing there yet: it starts
    with pytest.raises(ValueError, match=r"already holds a run; add --resume"):
        train(config_of(values), run)
    with pytest.raises(ValueError, match=r"already holds a run; add --resume"):
        main(ranks)
    with pytest.raises(ValueError, match=r"started with optim.lr=0.001, now it is 0.01"):
        train(config_of(values | {"optim": {"lr": 1e-2, "warmup": 4}}), run, resume=True)
    with pytest.raises(ValueError, match=r"started with optim.lr=0.001, now it is 0.01"):
        main([*ranks, "optim.lr=0.01", "--resume"])
    assert main([*ranks, "--resume"]) == 0
    with pytest.raises(ValueError, match=r'started with engine.precision="fp32", now it is "bf16"'):
        train(config_of(values | {"engine": {"precision": "bf16"}}), run, resume=True)
    assert train(config_of(values | {"log": {"every": 5}}), run, resume=True).step == 12
    assert len(read_metrics(run)) == 12


def test_a_finished_run_says_so_and_may_become_longer(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``kosmos train run=DIR --resume`` finds the run's own YAML; its corpora may have moved; its files can be read."""
    values |= {"steps": 2, "optim": {"lr": 1e-3, "warmup": 0, "schedule": "constant"}}
    run, moved = tmp_path / "a run", tmp_path / "moved"
    latest = train(config_of(values), run).checkpoint
    umask = os.umask(0)
    os.umask(umask)
    assert latest is not None
    assert {path.stat().st_mode & 0o777 for path in latest.rglob("*") if path.is_file()} == {0o666 & ~umask}
    capsys.readouterr()
    assert cli.main(["train", f"run={run}", "--resume"]) == 0
    said = capsys.readouterr().out
    assert "complete: 2 of 2 steps" in said
    assert f"kosmos chat '{run}'" in said  # can be pasted
    for source in values["data"]["sources"]:
        shutil.copytree(source["shards"], moved / source["name"])
        source["shards"] = str(moved / source["name"])
    assert train(config_of(values | {"steps": 3}), run, resume=True).step == 3
    with pytest.raises(ValueError, match=r"started with steps=3, now it is 2.*only with optim.schedule=constant"):
        train(config_of(values | {"steps": 2}), run, resume=True)
    for arguments, message in (
        (["run=/nowhere"], "which YAML? /nowhere/config.yaml is not there"),
        ([str(run / "config.yaml"), "run="], "where to"),
        (["optim.lr=0.5", "run=/nowhere", str(run / "config.yaml"), "steps=0"], "steps=0"),  # the YAML last but one
        ([f"run={run}", "--resume", "--dry-run", "optim.lr=0.5"], "started with optim.lr=0.001, now it is 0.5"),
        ([f"run={run}", "--dry-run", "model.vision_weights=null"], "a frozen tower of random weights sees nothing"),
    ):
        assert cli.main(["train", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_ctrl_c_saves_and_twice_ends_at_once(values: dict[str, Any], tmp_path: Path) -> None:
    """The signal that a terminal sends; a second one is KeyboardInterrupt."""
    timer = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    outcome = train(config_of(values | {"steps": 100_000, "checkpoint": {"every": 100_000}}), tmp_path / "run")
    timer.join()
    assert not outcome.finished
    assert outcome.checkpoint == tmp_path / "run" / "checkpoints" / f"step-{outcome.step:06d}"
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("rank", "times"), [("0", 1), ("1", 0)])
def test_one_rank_speaks_of_ctrl_c(
    rank: str, times: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.received == "SIGINT"
    assert capsys.readouterr().err.count("saving after this step; Ctrl-C again ends at once") == times


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'lr'"),
        ("data.rows_per_micro_batch=3", "not a multiple of data.rows_per_micro_batch=3"),
        ("engine.zero_stage=5", "zero_stage"),
        ("optim.warmup=99", "optim.warmup=99 must lie between 0 and steps=12, for instance optim.warmup=1"),
        ("model.overrides.text_config.layers=3", "model.overrides.text_config.layers is no field"),
        ("model.preset=nope", "unknown preset 'nope'"),
        ("processor=/nowhere", "not there: /nowhere – processor: kosmos tokenizer"),
        ("data.sources.0=1", "data"),
        ("samples.every=2", "samples.every is set without samples.prompts"),
        ("eval.every=2", "eval.every is set without eval.data"),
    ],
)
def test_mistakes_are_one_line(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    """The command ends with exit code 2 and a line that names the value."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    assert cli.main(["train", str(path), f"run={tmp_path / 'run'}", change]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_run_folder_that_cannot_be_made(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        train(config_of(values), tmp_path / "file" / "run")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match="where to"):
        main([str(tmp_path / "config.yaml")])


def test_text_spans_train(values: dict[str, Any], tmp_path: Path) -> None:
    """MetaLM's objective: spans go through a bidirectional encoder, whose last block and connector learn."""
    encoder = {"model_type": "bert", "vocab_size": 1, "hidden_size": 16, "intermediate_size": 32}
    encoder |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    sizes = {"model_config": encoder, "train_last_blocks": 1}
    values["model"]["overrides"] = {"span_encoder_config": sizes, "text_config": {"position_type": "sinusoidal"}}
    objective = {"name": "semi_causal", "min_length": 2, "max_length": 8}
    values["data"]["sources"][0] |= {"objective": objective}
    values |= {"steps": 4, "checkpoint": {"every": 2}, "engine": {"zero_stage": 2}}
    train(config_of(values), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    before, after = (load_file(folder / f"step-00000{step}" / "model.safetensors") for step in (2, 4))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("span_connector" in name for name in changed)
    assert any("span_encoder" in name and "layer.1." in name for name in changed)
    assert not any("span_encoder" in name and "layer.0." in name for name in changed)
    assert not any("vision_tower" in name for name in changed)


@pytest.mark.parametrize("kind", ["xconnector", "resampler"])
def test_text_spans_of_few_places_train(values: dict[str, Any], tmp_path: Path, kind: str) -> None:
    """The tokenizer's setting decides the places, the connector's queries learn, the checkpoint reads a span; where the
    processor has a number and the connector no queries, or the other way round, both are named."""
    from kosmos import load
    from kosmos_train.parts.tokenizer import TokenizerConfig, make_processor

    encoder = {"model_type": "bert", "vocab_size": 1, "hidden_size": 16, "intermediate_size": 32}
    encoder |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    connector = {"kind": kind, "num_heads": 2, "depth": 1, "head_dim": 8}
    overrides = {"span_encoder_config": {"model_config": encoder}, "span_connector_config": connector}
    values["model"]["overrides"] = overrides
    with pytest.raises(ValueError, match=f"kind is '{kind}', but the processor's num_span_tokens is None"):
        train(config_of(values), tmp_path / "refused")
    shards = [source["shards"] for source in values["data"]["sources"]]
    settings = TokenizerConfig(shards, vocab_size=120, image_size=16, num_image_tokens=2, num_span_tokens=2)
    make_processor(settings, tmp_path / "processor")
    values["processor"] = str(tmp_path / "processor")
    values["data"]["sources"][0]["objective"] = {"name": "semi_causal", "min_length": 4, "max_length": 16}
    values |= {"steps": 2, "optim": {"warmup": 0}, "checkpoint": {"every": 1}, "engine": {"zero_stage": 2}}
    train(config_of(values), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    before, after = (load_file(folder / f"step-00000{step}" / "model.safetensors") for step in (1, 2))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if "span_connector" in name and name.endswith("weight")} <= changed
    model, processor = load(folder / "step-000002")
    inputs = processor(text="the <span>fish sails over a calm sea</span>", return_tensors="pt")
    assert (inputs["input_ids"] == processor.span_slot_id).sum() == model.config.num_span_tokens == 2
    assert model.generate(**inputs, max_new_tokens=2, eos_token_id=None).shape[1] == inputs["input_ids"].shape[1] + 2
    connector["kind"] = "linear"
    with pytest.raises(ValueError, match="kind is 'linear', but the processor's num_span_tokens is 2"):
        train(config_of(values), tmp_path / "refused")


@pytest.mark.parametrize("stage", [2, 3])
def test_bf16_on_two_ranks(values: dict[str, Any], tmp_path: Path, stage: int) -> None:
    """The whole loop with samples and held-out loss when weights are spread over two ranks; resumed bit for bit."""
    prompts = [{"text": "the fish"}, {"text": "a calm sea while seven birds"}]
    values |= {
        "engine": {"zero_stage": stage, "precision": "bf16", "timeout_minutes": 1},
        "steps": 4,
        "samples": {"every": 2, "prompts": prompts, "max_new_tokens": 4},
        "eval": {"every": 2, "batches": 1, "data": values["data"]},
        "checkpoint": {"every": 2},
    }
    job = launch(tmp_path / "j", 2, jobs.run, values, str(tmp_path / "run"))
    assert job.results() == [{"step": 4, "finished": True}] * 2
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 4]
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 4
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000004")
    launch(tmp_path / "again", 2, jobs.run, values, str(tmp_path / "run"), True).results()
    assert [row["loss"] for row in read_metrics(tmp_path / "run")] == [row["loss"] for row in rows]
