"""Report, compare and gallery take what a person types: run folders, names, files; and say what is not alike."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from kosmos.cli import main
from kosmos.tables import fitting
from kosmos_eval import results
from kosmos_eval.gallery import _figure
from kosmos_eval.report import report
from kosmos_eval.task_data import TaskData
from kosmos_eval.tasks import load
from kosmos_eval.where import Named, find_log, find_results


def write_run(run: Path, right: int, task: str = "t", shots: int = 0, context: str = "image+text") -> Path:
    """A run folder with a sample log of eight items, so many of which are right, and its results."""
    folder = run / "eval" / "samples" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    records = [
        {"id": str(key), "prediction": "a" if key < right else "b", "answers": ["a"], "images": [], "shots": shots,
         "metrics": {"accuracy": float(key < right)}} for key in range(8)
    ]  # fmt: skip
    log = folder / f"{task}-{shots}shot-{context}.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / f"{task}-{shots}shot-{context}.part-rest.jsonl").write_text("")
    row = {"task": task, "model": run.name, "shots": shots, "context": context, "metric": "accuracy"}
    row |= {"value": right / 8, "low": 0.0, "high": 1.0, "n": 8, "split": "test", "seed": 0}
    results.write([row], run / "eval" / "results.json")
    return log


def test_compare_prints_a_line_of_two_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "pretrain", 8)
    write_run(tmp_path / "t1", 4)
    runs = [str(tmp_path / "pretrain"), str(tmp_path / "t1")]
    assert main(["eval", "compare", *runs]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("t1 − pretrain = −0.500 [−0.")
    assert "8 items" in printed
    assert "not asked alike" not in printed
    assert main(["eval", "compare", f"before={runs[0]}", f"after={runs[1]}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["difference"] == -0.5
    assert main(["eval", "compare", f"before={runs[0]}", f"after={runs[1]}"]) == 0
    assert capsys.readouterr().out.startswith("after − before = −0.500")


def test_what_was_not_asked_alike_is_said_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_run(tmp_path / "a", 8), write_run(tmp_path / "b", 4, shots=2, context="text-only")
    assert main(["eval", "compare", str(first), str(second)]) == 0
    said = capsys.readouterr().out
    assert "shots 0 and 2" in said
    assert "context image+text and text-only" in said
    second.write_text(second.read_text().replace('"answers": ["a"]', '"answers": ["c"]'))
    assert main(["eval", "compare", str(first), str(second)]) == 2
    assert "of other data: item 0 has other answers (8 do)" in capsys.readouterr().err


def test_the_log_that_is_meant(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for find in (find_log, find_results):
        with pytest.raises(FileNotFoundError, match="run: no such file or folder"):
            find(run)
        with pytest.raises(ValueError, match=r"https://x\.org/run is an address"):
            find(Path("https://x.org/run"))
    run.mkdir()
    with pytest.raises(FileNotFoundError, match="no samples here"):
        find_log(run)
    zero = write_run(run, 8)
    for shots, context in ((4, "image+text"), (0, "shuffled")):
        write_run(run, 4, shots=shots, context=context)
    assert (
        find_log(run).path == find_log(run / "eval").path == find_log(zero.parent).path == find_log(zero).path == zero
    )
    assert find_log(run, shots=4).path.name == "t-4shot-image+text.jsonl"
    assert (find_log(run, context="shuffled").context, find_log(run).model) == ("shuffled", "run")
    with pytest.raises(FileNotFoundError, match="no samples of shots 9; there are run/t-0shot"):
        find_log(run, shots=9)
    write_run(run, 8, task="u")
    with pytest.raises(ValueError, match=r"several sample logs, say which \(--task"):
        find_log(run)
    assert find_log(run, "u").task == "u"


def test_results_of_a_run_and_of_its_last_evaluation_during_training(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no results here, nor in its eval/; write them with kosmos eval"):
        find_results(tmp_path)
    for step in ("step-000100", "step-000200"):
        (tmp_path / "eval" / step).mkdir(parents=True)
        (tmp_path / "eval" / step / "results.json").write_text("[]")
    assert find_results(tmp_path).parent.name == "step-000200"
    (tmp_path / "eval" / "results.json").write_text("[]")
    assert find_results(tmp_path) == tmp_path / "eval" / "results.json"


def test_a_name_before_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    assert Named.parse("lr=1") == Named(Path("lr=1"))
    assert Named.parse("new=lr=1") == Named(Path("lr=1"), "new")
    assert Named.parse("runs/a=b") == Named(Path("runs/a=b"))


def test_two_runs_of_one_name_in_a_report(tmp_path: Path) -> None:
    write_run(tmp_path / "x" / "tune", 8)
    write_run(tmp_path / "y" / "tune", 4)
    with pytest.raises(ValueError, match=f"give each file a name: NAME={tmp_path}/y/tune"):
        report([tmp_path / "x" / "tune", tmp_path / "y" / "tune"], tmp_path / "out")
    text = report([f"old={tmp_path}/x/tune", f"new={tmp_path}/y/tune"], tmp_path / "out").read_text()
    assert "| old | image+text | 1.000" in text
    assert "| new | image+text | 0.500" in text


def test_one_task_on_two_data_stands_apart(toy_data: Path, tmp_path: Path) -> None:
    """The fingerprint follows the items, wherever they lie; rows of other data are kept, of the same replaced."""
    data = TaskData(load("easy_vqa"), toy_data)
    again = TaskData(load("easy_vqa"), toy_data)
    again.folder = tmp_path
    assert data.identity["data"] == again.identity["data"]
    again.items = again.items[1:]
    again.__dict__.pop("identity")
    assert data.identity["data"] != again.identity["data"]
    row: dict[str, Any] = {"task": "vqa", "model": "m", "shots": 0, "context": "none", "metric": "vqa", "value": 0.5}
    row |= {"low": 0.0, "high": 1.0, "n": 4, "split": "test", "seed": 0}
    mine, other = {"data": "aaa", "folder": "data/mine"}, {"data": "bbb", "folder": "data/test"}
    path = tmp_path / "results.json"
    results.write([row], path)  # of an older version
    results.write([row | mine], path)
    results.write([row | other, row | mine | {"value": 0.6}], path)
    assert sorted((row["data"], row["value"]) for row in results.read(path)) == [("aaa", 0.6), ("bbb", 0.5)]
    text = report([path], tmp_path / "out").read_text()
    assert "## vqa [mine]: vqa" in text
    assert "## vqa [test]: vqa" in text


def test_cells_of_a_gallery_are_equal_and_hold_their_text(tmp_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    records, images = [], []
    for number, size in enumerate([(10, 90), (90, 10), (40, 40)]):
        images.append(tmp_path / f"{number}.png")
        Image.new("RGB", size, "red").save(images[-1])
        said = {"prediction": "a square of some length", "answers": ["a long triangle, seen from below"]}
        asked = {"prompt": "<image>" + "what is it? " * 30, "metrics": {"vqa": 0.0}}
        records.append({"id": str(number), **asked, **said})
    figure = _figure(records, images)
    FigureCanvasAgg(figure).draw()
    panels = figure.axes
    assert len({tuple(panel.get_window_extent().size.round()) for panel in panels}) == 1
    whole = figure.bbox
    for panel in panels:
        for text in (panel.xaxis.label, panel._left_title):
            box = text.get_window_extent()
            assert whole.x0 <= box.x0
            assert box.x1 <= whole.x1
            assert whole.y0 <= box.y0
            assert box.y1 <= whole.y1


def test_a_table_wider_than_the_terminal_becomes_lines() -> None:
    table = Table("run", box=None)
    for heading in ("held-out", "tokens", "tokens/s"):
        table.add_column(heading, no_wrap=True)
    table.add_row("runs/a", "1.2345", "[dim]6,789,012[/]", "–")

    def shown(width: int) -> str:
        console = Console(width=width, file=io.StringIO())
        console.print(fitting(console, table))
        return console.file.getvalue()  # type: ignore[attr-defined]

    assert "run" in shown(80).splitlines()[0]
    assert shown(20).split() == ["runs/a", "held-out", "1.2345", "tokens", "6,789,012", "tokens/s", "–"]
    assert max(map(len, shown(20).splitlines())) <= 20


def test_the_help_fits_eighty_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_records_of_a_training_are_no_sample_logs(tmp_path: Path) -> None:
    log = tmp_path / "run" / "eval" / "samples" / "run" / "vqa-0shot-image+text.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("{}\n")
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / "run" / name).write_text("{}\n")
    assert find_log(tmp_path / "run").path == log


def test_fewer_items_leave_no_rows_of_the_others_behind(tmp_path: Path) -> None:
    def row(metric: str, n: int, **more: object) -> dict[str, object]:
        names = {"task": "vqa", "model": "m", "shots": 0, "context": "none", "split": "test", "seed": 0, "data": "d"}
        return {**names, "metric": metric, "n": n, "value": 0.5, "low": 0.0, "high": 1.0, "question_type": None, **more}

    of_eight = [row("vqa", 8), row("bleu", 8), row("vqa:shape", 2, question_type="shape"), row("vqa", 8, shots=2)]
    results.write(of_eight, tmp_path / "results.json")
    assert len(results.write([row("vqa", 8)], tmp_path / "results.json")) == 4  # another metric of the same items stays
    found = results.write([row("vqa", 4)], tmp_path / "results.json")
    assert [(one["metric"], one["shots"], one["n"]) for one in found] == [("vqa", 2, 8), ("vqa", 0, 4)]


def test_a_setting_without_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    """``run=DIR`` is how ``kosmos train`` names its folder."""
    with pytest.raises(SystemExit):
        main(["eval", "runs/a", "--tasks", "vqa", "--data", "x", "run=out"])
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "unrecognized arguments: run=out; keys of the tasks are changed by --set run=out, the folder is --out" in said
    )
