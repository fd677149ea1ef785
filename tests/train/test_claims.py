"""The registry of claims: YAMLs are sound, one command tries a claim and resumes, the page is up to date."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from kosmos import settings
from kosmos.cli import call
from kosmos.loading import load
from kosmos.processing_kosmos import load_processor
from kosmos_eval.evaluate import evaluate
from kosmos_eval.tasks import load as load_task
from kosmos_train import TrainConfig
from kosmos_train.build import build_model
from kosmos_train.named_configs import find_config
from kosmos_train.study import by_study, claims, crossed, first_rows, page, trial
from kosmos_train.study.claims import Claim, merged
from kosmos_train.study.command import main
from kosmos_train.study.crossed import Cell
from kosmos_train.study.measures import Asked, Windows, read_task
from kosmos_train.study.run import StudyConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def claim(values: dict[str, Any], tmp_path: Path) -> Path:
    """A claim on the tiny world: two positions, two lengths, two seeds, four steps."""
    text = values["data"]["sources"][0] | {"weight": 1.0}
    shape = {"num_hidden_layers": 1, "max_position_embeddings": 16}
    model = values["model"] | {"overrides": {"text_config": shape, "vision_config": None}}
    base = values | {"model": model, "data": values["data"] | {"sources": [text], "row_tokens": 16}, "steps": 3}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base | {"optim": {"lr": 1e-3, "warmup": 1}}))
    rope = {"model": {"overrides": {"text_config": {"position_type": "rope"}}}}
    made = {
        "claim": "Far is near",
        "paper": "A paper, section 1",
        "says": "so",
        "control": "rope",
        "figure": "loss, nats",
        "base": str(tmp_path / "base.yaml"),
        "seeds": [0, 1],
        "train": {"steps": 4},
        "read": {"shards": text["shards"], "longest": 24, "targets": 4, "count": 6},
        "arms": {"xpos": {"read": {"blockwise": 16}}, "plain": {"what": "no blocks"}, "rope": {"train": rope}},
        "points": {"8": {"read": {"context": 8}}, "16": {"read": {"context": 16}}, "24": {"read": {"context": 24}}},
        "axis": "tokens",
        "comparisons": {"far": {"terms": {"xpos @ 24": 1, "rope @ 24": -1}, "expect": "below", "than": 100.0}},
    }
    path = tmp_path / "far.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


def test_every_claim_of_the_registry_is_sound() -> None:
    """It loads; each of its runs is a valid one, each reading has known keys; a command stands on its first lines."""
    assert len(claims.known()) >= 3
    for claim in claims.every():
        assert claim.checkpoint or Path(find_config(claim.base)).is_file()
        head = claims.known()[claim.name].read_text().split("row:")[0]
        assert f"python -m kosmos_train.study {claim.name} run=" in head
        if claim.measure == "study":
            study = settings.from_dict(StudyConfig, merged(settings.read_yaml(find_config(claim.base)), claim.train))
            claim.check_terms(by_study.measured(study))
            assert claim.arms.keys() <= {arm for arm, _ in by_study.measured(study)}
            continue
        for arm, point in claim.cells():
            if claim.checkpoint is None:
                assert isinstance(claim.run_of(arm, point, 0), TrainConfig)
            kind: Any = Windows if claim.measure == "windows" else Asked
            read = settings.from_dict(kind, claim.reading(arm, point))
            if isinstance(read, Windows):
                read.check()
            else:
                changes = [f"{key}={json.dumps(value)}" for key, value in read.set.items()]
                assert load_task(read.task, changes).metrics


def test_an_arm_may_have_a_processor_of_its_own() -> None:
    """With the settings that it and its point change; one folder cannot be two processors."""
    claim = claims.load("coupling")
    folders = {"runs/coupling/input_processor": 16, "runs/coupling/cross_processor": 1}
    assert claim.processors() == {folder: {"num_image_tokens": count} for folder, count in folders.items()}
    claim.points["2"].tokenizer["max_length"] = 512
    with pytest.raises(ValueError, match=r"input_processor is to be made with .*; give input @ 2 another train\.proc"):
        claim.processors()


def test_the_page_is_drawn_from_what_was_measured() -> None:
    """docs/evidence.md is what its JSON files say, to the letter; each curve is there."""
    target = ROOT / "docs" / "evidence.md"
    found = page.read(target)
    assert target.read_text() == page.markdown(found, "evidence"), "python -m kosmos_train.study page=docs/evidence.md"
    readme = (ROOT / "README.md").read_text()
    assert f"{first_rows.BEGIN}{first_rows.rows(found, 'docs/evidence.md')}\n{first_rows.END}" in readme
    for one in found:
        assert one["name"] in claims.known()
        assert (target.with_suffix("") / f"{one['name']}.png").is_file() == page.is_curve(one)
        assert not re.search(r"/(work|tmp|root)/", json.dumps(one))


def test_one_command_tries_a_claim(claim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that arms share are trained once, a second call does nothing again, a lost reading alone is read anew."""
    run = tmp_path / "out"
    assert call("kosmos_train.study.command:main", [str(claim), f"run={run}"]) == 0
    assert "far: " in capsys.readouterr().out
    found = json.loads((run / "evidence" / "far.json").read_text())
    assert (found["runs"], found["seeds"], found["items"], len(found["cells"])) == (4, [0, 1], 6, 9)
    assert len(list((run / "runs").iterdir())) == 4
    cells = {f"{cell['arm']} @ {cell['point']}": cell for cell in found["cells"]}
    assert cells["xpos @ 16"] == cells["plain @ 16"] | {"arm": "xpos"}  # blocks change nothing there
    assert cells["xpos @ 24"]["seeds"] != cells["plain @ 24"]["seeds"]
    (far,) = found["comparisons"]
    assert far["value"] == pytest.approx(cells["xpos @ 24"]["value"] - cells["rope @ 24"]["value"], abs=2e-4)
    assert far["low"] <= far["value"] <= far["high"]
    assert far["verdict"] == "holds"
    text = (run / "evidence.md").read_text()
    assert "**holds**" in text
    assert "![Far is near](evidence/far.png)" in text
    assert (run / "evidence" / "far.png").stat().st_size > 5000
    before = {path: path.stat().st_mtime_ns for path in run.rglob("arm.json")}
    lost = next(path for path in before if path.parents[1].name == "readings")
    lost.unlink()  # as if a kill had come before it
    main([str(claim), f"run={run}"])
    after = {path: path.stat().st_mtime_ns for path in run.rglob("arm.json")}
    assert {path for path in after if after[path] != before[path]} == {lost}
    assert json.loads((run / "evidence" / "far.json").read_text())["cells"] == found["cells"]
    text = (run / "evidence.md").read_text()  # the machine's load may be another than at first
    (run / "evidence.md").unlink()
    readme = run / "README.md"
    readme.write_text(f"# Ours\n\n{first_rows.BEGIN}| old |\n{first_rows.END}\n\nMore\n")
    main([f"page={run / 'evidence.md'}", f"readme={readme}"])
    assert (run / "evidence.md").read_text() == text
    drawn = readme.read_text()
    assert "| [Far is near](evidence.md#far) | **holds** | far: " in drawn
    assert drawn.startswith("# Ours\n\n<!-- ")
    assert drawn.endswith(" -->\n\nMore\n")
    assert "| old |" not in drawn
    readme.write_text("# Ours\n")
    with pytest.raises(ValueError, match=r"README\.md has no place for the rows: write <!-- first rows"):
        main([f"page={run / 'evidence.md'}", f"readme={readme}"])


def test_mistakes_are_named(claim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load(claim.read_text())
    for changed, message in (
        ({"comparison": {}}, "did you mean 'comparisons'"),
        ({"arms": values["arms"] | {"rope": {"trian": {}}}}, "unknown key 'arms.rope.trian'; did you mean 'train'"),
        ({"comparisons": {"x": {"terms": {"xpso @ 24": 1}}}}, "names 'xpso @ 24'; did you mean 'xpos @ 24'"),
        ({"control": ""}, "control is empty"),
        ({"comparisons": {"x": {"terms": {}, "expect": "abvoe"}}}, "choose one of above, below"),
    ):
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values | changed))
        with pytest.raises(ValueError, match=re.escape(message)):
            claims.load(tmp_path / "wrong.yaml")
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(values | {"train": {"optim": {"rate": 1}}}))
    with pytest.raises(ValueError, match=r"claim wrong, xpos @ 8: unknown key 'optim.rate'"):
        claims.load(tmp_path / "wrong.yaml").run_of("xpos", "8", 0)
    for words, message in (
        (["xpos_lenght", "run=x"], "did you mean 'xpos_length'"),
        (["xpos_length"], "add run=DIR"),
        ([], "name a claim"),
        ([f"page={tmp_path / 'none.md'}"], "has no CLAIM.json"),
        ([str(claim), f"run={tmp_path}", "read.contxt=8"], "unknown key 'contxt'"),
    ):
        assert call("kosmos_train.study.command:main", words) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert call("kosmos_train.study.command:main", ["--list"]) == 0
    assert "xpos_length" in capsys.readouterr().out


def test_a_claim_about_demonstrations(values: dict[str, Any], tmp_path: Path) -> None:
    """Cells are what ``kosmos eval`` says of the checkpoint; without demonstrations one reading serves all."""
    values["model"]["overrides"] = {"vision_config": None}
    processor = load_processor(values["processor"])
    model = build_model(settings.from_dict(TrainConfig, values), processor)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "made")
    for split, count in (("train", 30), ("test", 8)):
        rows = [
            {"text": f"{'fish' if n % 2 else 'rain'} {n}", "label": "sea" if n % 2 else "far"} for n in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(
        "description: words\ndataset: {format: labelled, annotations: '{split}.jsonl'}\nprompt: {template: '{text}'}\n"
        "demonstrations: {split: train}\ndecoding: {method: rank}\nmetrics: [accuracy]\n"
    )
    overrides = [f"checkpoint={tmp_path / 'made'}", "seeds=[0, 1]", f"read.task={tmp_path / 'task.yaml'}"]
    overrides += [f"read.data={tmp_path}", "read.metric=accuracy", "points.4.read.shots=3"]
    claim = claims.load("demonstration_labels", overrides)
    found = trial.try_claim(claim, tmp_path / "out")
    assert len(list((tmp_path / "out" / "readings").iterdir())) == 1 + 3 * 2
    cells = {f"{cell['arm']} @ {cell['point']}": cell for cell in found["cells"]}
    rows = evaluate(*load(tmp_path / "made", "cpu"), str(tmp_path / "task.yaml"), tmp_path, shots=(0, 3))
    assert cells["random labels @ 0"]["value"] == cells["true labels @ 0"]["value"] == pytest.approx(rows[0]["value"])
    assert cells["true labels @ 4"]["seeds"][0] == pytest.approx(rows[1]["value"])
    assert {one["verdict"] for one in found["comparisons"]} <= {"holds", "open", "not"}
    _other_keys_and_a_guess(tmp_path)
    _a_checkpoint_for_each_seed(claim, values, tmp_path)
    _runs_that_a_task_reads(claim, values, tmp_path)
    model.save_pretrained(tmp_path / "made")  # as if it had been trained anew
    jobs, _ = trial.jobs_of(claim, tmp_path / "out")
    assert all(job.finished() is None for job in jobs)


def _a_checkpoint_for_each_seed(claim: Claim, values: dict[str, Any], tmp_path: Path) -> None:
    """Seed 1 reads the second model and nothing else does; a seed without its model is named."""
    processor = load_processor(values["processor"])
    torch.manual_seed(5)
    for part in (build_model(settings.from_dict(TrainConfig, values), processor), processor):
        part.save_pretrained(tmp_path / "made-1")
    shutil.copytree(tmp_path / "made", tmp_path / "made-0")
    each = dataclasses.replace(claim, checkpoint=str(tmp_path / "made-{seed}"))
    found = trial.try_claim(each, tmp_path / "each")
    cells = {f"{cell['arm']} @ {cell['point']}": cell for cell in found["cells"]}
    for seed in (0, 1):
        task = load_task(str(tmp_path / "task.yaml"), [f"demonstrations.seed={seed}"])
        row = evaluate(*load(tmp_path / f"made-{seed}", "cpu"), task, tmp_path, shots=(3,))[0]
        assert cells["true labels @ 4"]["seeds"][seed] == pytest.approx(row["value"])
    row = evaluate(*load(tmp_path / "made-1", "cpu"), str(tmp_path / "task.yaml"), tmp_path)[0]
    assert cells["true labels @ 0"]["seeds"][1] == pytest.approx(row["value"])
    with pytest.raises(FileNotFoundError, match="made-2"):
        trial.try_claim(dataclasses.replace(each, seeds=[0, 1, 2]), tmp_path / "each")


def _other_keys_and_a_guess(tmp_path: Path) -> None:
    """Keys of the task's YAML are changed; a guess asks nothing, and is right one time in as many as there are."""
    texts = [{"text": f"rain {n}", "label": "far" if n % 3 else "sea"} for n in range(7)]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    task = str(tmp_path / "task.yaml")
    asked = {"task": task, "data": str(tmp_path), "set": {"split": "other", "decoding.normalisation": "mean"}}
    found = read_task(str(tmp_path / "made"), asked, 0, tmp_path / "keys")
    rows = evaluate(*load(tmp_path / "made", "cpu"), load_task(task, ["split=other"]), tmp_path)
    assert len(found["values"]) == 7
    assert np.mean(found["values"]) == pytest.approx(rows[0]["value"])
    guess = read_task("nowhere", asked | {"guess": True, "limit": 5}, 0, tmp_path / "guess")
    assert guess == {"values": [0.5] * 5, "weights": [1] * 5}
    with pytest.raises(ValueError, match="split"):
        read_task("nowhere", asked | {"set": {"splitt": "other"}}, 0, tmp_path / "wrong")


def _runs_that_a_task_reads(claim: Claim, values: dict[str, Any], tmp_path: Path) -> None:
    """Runs begin with a checkpoint, each is trained once and answers the task; another model there makes them anew."""
    text = values["data"]["sources"][0] | {"weight": 1.0}
    base = values | {"model": {"checkpoint": str(tmp_path / "made")}, "data": values["data"] | {"sources": [text]}}
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(base | {"steps": 1, "optim": {"lr": 1e-3, "warmup": 1}}))
    far = claims.Change(train={"optim": {"lr": 0.5}})
    wanted = {"far": claims.Comparison({"far @ 4": 1, "near @ 4": -1})}
    tuned = dataclasses.replace(
        claim, checkpoint=None, base=str(tmp_path / "tuned.yaml"), arms={"near": claims.Change(), "far": far},
        comparisons=wanted,
    )  # fmt: skip
    tuned.check()
    found = trial.try_claim(tuned, tmp_path / "out")
    assert found["runs"] == 2 * 2
    run = next(job.folder for job in trial.jobs_of(tuned, tmp_path / "out")[0] if job.name == "near @ 0, seed 1")
    rows = evaluate(*load(run, "cpu"), load_task(str(tmp_path / "task.yaml"), ["demonstrations.seed=1"]), tmp_path,
                    shots=(3,))  # fmt: skip
    cells = {f"{cell['arm']} @ {cell['point']}": cell for cell in found["cells"]}
    assert cells["near @ 4"]["seeds"][1] == pytest.approx(rows[0]["value"])
    gone = dataclasses.replace(tuned, train={"model": {"checkpoint": str(tmp_path / "none")}})
    with pytest.raises(FileNotFoundError, match="kosmos demo --out runs/demo makes it"):
        trial.try_claim(gone, tmp_path / "out")


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    claim = claims.load("demonstration_labels", [f"checkpoint={tmp_path}/none"])
    with pytest.raises(FileNotFoundError, match="kosmos demo --out runs/demo makes it"):
        trial.try_claim(claim, tmp_path / "out")


def test_intervals_hold_seeds_and_items() -> None:
    """Values that differ between seeds alone, or items alone, or not at all; a difference is paired."""
    draws = np.random.default_rng(0)
    seeds, items = draws.normal(size=(3, 1)), draws.normal(size=(1, 200))
    widths = {}
    for name, values in {"seeds": seeds + 0 * items, "items": items + 0 * seeds, "both": seeds + items}.items():
        value, low, high = crossed.interval(Cell(values, np.ones(200)))
        assert low < value < high
        assert value == pytest.approx(values.mean())
        widths[name] = high - low
    assert widths["both"] > 0.9 * max(widths["seeds"], widths["items"])
    assert widths["items"] == pytest.approx(2 * 1.96 * items.std() / 200**0.5, rel=0.1)
    one, two = Cell(seeds + items, np.ones(200)), Cell(seeds + items + 0.5, np.ones(200))
    assert crossed.interval(crossed.combined([(1, two), (-1, one)])) == pytest.approx((0.5, 0.5, 0.5))
    heavy = Cell(np.array([[0.0, 1.0]]), np.array([1.0, 3.0]))
    assert crossed.interval(heavy)[0] == 0.75
    with pytest.raises(ValueError, match="not paired"):
        crossed.combined([(1, one), (-1, heavy)])


def test_verdicts() -> None:
    """The whole interval decides."""
    below, above = claims.Comparison(than=0.1), claims.Comparison(expect="above", than=0.1)
    for low, high, first, second in ((-1, 0, "holds", "not"), (0.2, 1, "not", "holds"), (0, 1, "open", "open")):
        assert trial.verdict({"low": low, "high": high}, below) == first
        assert trial.verdict({"low": low, "high": high}, above) == second


def test_configs_are_found_in_a_checkout_and_by_their_old_names() -> None:
    assert Path(find_config("evidence/base.yaml")) == Path(find_config("train/configs/evidence/base.yaml")).absolute()
    with pytest.raises(FileNotFoundError, match="no such settings file"):
        find_config("evidence/none.yaml")
    assert Claim(name="x", arms={"a": claims.Change()}).cells
