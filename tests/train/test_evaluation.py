"""Task scores during training: the evaluator's own, on all ranks, and without a trace in the training."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import jobs
import pytest
import tiny
import yaml
from forks import launch

from kosmos import cli, settings
from kosmos_eval.evaluate import evaluate_checkpoint
from kosmos_train import TrainConfig, train
from kosmos_train.dry_run import plan
from kosmos_train.runs import plot, read_metrics

TASK = {
    "description": "colours",
    "dataset": {
        "format": "vqa",
        "questions": "{split}_questions.json",
        "annotations": "{split}_annotations.json",
        "images": "{image_id}.png",
    },
    "prompt": {"template": "<image>An image of a", "separator": "\n"},
    "demonstrations": {"split": "train"},
    "decoding": {"method": "rank", "candidates": list(tiny.COLOURS)},
    "metrics": ["vqa"],
}


@pytest.fixture
def tasks(tmp_path: Path) -> list[dict[str, Any]]:
    """Eight pictures with the question of their colour, and four as demonstrations."""
    folder = tmp_path / "task"
    folder.mkdir()
    for split, count in (("test", 8), ("train", 4)):
        questions, annotations = [], []
        for index in range(count):
            colour, name = tiny.COLOURS[index % 4], f"{split}{index}"
            (folder / f"{name}.png").write_bytes(
                tiny.picture(colour, 16 + index + 8 * (split == "train"))
            )  # no two are the same
            questions.append({"question_id": index, "image_id": name, "question": "colour?"})
            annotations.append(questions[-1] | {"answers": [{"answer": colour}] * 10, "answer_type": "other"})
        (folder / f"{split}_questions.json").write_text(json.dumps({"questions": questions}))
        (folder / f"{split}_annotations.json").write_text(json.dumps({"annotations": annotations}))
    (folder / "colours.yaml").write_text(yaml.safe_dump(TASK))
    return [{"task": str(folder / "colours.yaml"), "data": str(folder), "shots": [0, 2]}]


def with_tasks(values: dict[str, Any], tasks: list[dict[str, Any]], every: int) -> dict[str, Any]:
    return values | {"eval": {"tasks_every": every, "tasks": tasks}}


@pytest.mark.parametrize(("stage", "size"), [(1, 2), (3, 2)])
def test_scores_are_those_of_kosmos_eval(
    values: dict[str, Any], tasks: list[dict[str, Any]], tmp_path: Path, stage: int, size: int
) -> None:
    """The same rows as ``kosmos eval`` on the checkpoint of the step; losses to the last bit as without evaluation."""
    values |= {
        "engine": {"zero_stage": stage, "timeout_minutes": 1},
        "checkpoint": {"every": 2},
        "steps": 4,
        "optim": {"lr": 1e-2, "warmup": 0},
    }
    run = tmp_path / "run"
    measured = launch(tmp_path / "a", size, jobs.run, with_tasks(values, tasks, 2), str(run))
    plain = launch(tmp_path / "b", size, jobs.run, values, str(tmp_path / "plain"))
    measured.results()
    plain.results()
    rows = read_metrics(run)
    assert [row["loss"] for row in rows] == [row["loss"] for row in read_metrics(tmp_path / "plain")]
    assert [row["step"] for row in rows if "eval_tasks" in row] == [2, 4]
    for step in (2, 4):
        expected = evaluate_checkpoint(
            run / "checkpoints" / f"step-{step:06d}",
            [tasks[0]["task"]],
            Path(tasks[0]["data"]),
            out=tmp_path / f"alone{step}",
            shots=tasks[0]["shots"],
        )
        values_of = {
            (row["shots"], row["metric"]): (row["value"], row["low"], row["n"])
            for row in expected
            if row["model"] == f"step-{step:06d}"
        }
        found = json.loads((run / "eval" / f"step-{step:06d}" / "results.json").read_text())
        assert {(row["shots"], row["metric"]): (row["value"], row["low"], row["n"]) for row in found} == values_of
        scores = rows[step - 1]["eval_tasks"]
        assert scores == {f"colours {shots}-shot": {"vqa": values_of[shots, "vqa"][0]} for shots in (0, 2)}


def interrupted_between_tasks(values: dict[str, Any], run_dir: str) -> dict[str, Any]:
    """Rank 1 alone gets the signal while the first task is evaluated."""
    from kosmos_train import evaluation

    original = evaluation.evaluate

    def evaluate(*arguments: Any, **options: Any) -> Any:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(*arguments, **options)

    evaluation.evaluate = evaluate
    return jobs.run(values, run_dir)


def test_a_signal_cuts_the_evaluation_short(
    values: dict[str, Any], tasks: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The task under way is finished and shown by ``kosmos runs``, the other is left out on all ranks; the next step
    saves and leaves."""
    values = with_tasks(values, [tasks[0] | {"limit": 4}, tasks[0] | {"shots": [1]}], 2)
    job = launch(tmp_path / "j", 2, interrupted_between_tasks, values, str(tmp_path / "run"))
    assert job.results() == [{"step": 3, "finished": False}] * 2
    assert set(read_metrics(tmp_path / "run")[1]["eval_tasks"]) == {"colours 0-shot", "colours 2-shot"}
    assert "the rest of the evaluation is left out" in job.output()
    assert cli.main(["runs", "scores", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "colours 2-shot vqa" in shown
    assert "0." in shown
    assert plot([tmp_path / "run"], tmp_path / "scores.png").stat().st_size > 20_000  # three panels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "easy_vqaa"}, "did you mean 'easy_vqa'"),
        ({"data": "/nowhere"}, "/nowhere.*: no such"),
        ({"contexts": ["picture"]}, "unknown context 'picture'"),
        ({"shots": [-1]}, "cannot be negative"),
    ],
)
def test_mistakes_show_before_the_first_step(
    values: dict[str, Any], tasks: list[dict[str, Any]], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """In the dry run, and at the start of the run."""
    config = settings.from_dict(TrainConfig, with_tasks(values, [tasks[0] | change], 4))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        plan(config, 1)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_tasks_every_needs_tasks(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"eval.tasks_every is set without eval.tasks"):
        settings.from_dict(TrainConfig, with_tasks(values, [], 4)).check()
