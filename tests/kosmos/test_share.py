"""``kosmos share``: what is given away loads again, with its code, and its card says what the run knows."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

import kosmos
from kosmos import load
from kosmos.licences import read_licence
from kosmos.loading import quiet_saving
from kosmos.model_card import model_card, run_of
from kosmos.share import main

from ..warm_python import WarmPython
from .hub_server import running


@pytest.fixture
def run(speaker_folder: Path, tmp_path: Path) -> Path:
    """A run directory with a checkpoint, settings, and scores."""
    folder = tmp_path / "run"
    checkpoint = folder / "checkpoints" / "step-000200"
    shutil.copytree(speaker_folder, checkpoint)
    (checkpoint.parent / "latest").write_text("step-000200\n")
    sources = [{"name": "q|a", "weight": 0.7, "objective": {"name": "causal"}}]
    values = {"steps": 200, "model": {"checkpoint": "runs/base"}, "data": {"sources": sources, "row_tokens": 512}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    known = {"documents": 17, "images": 16, "fingerprint": "ede783a2"}
    started = [{"commit": "abc", "packages": {"torch": "2.14.1"}, "data": {"q|a": known}}]
    (folder / "environment.json").write_text(json.dumps(started))
    row = {"task": "easy_vqa", "model": "tuned", "shots": 0, "context": "image+text", "metric": "vqa", "value": 0.8394}
    row |= {"low": 0.83, "high": 0.85, "baselines": {"shuffled": 0.67, "majority answer": 0.37}}
    (folder / "eval").mkdir()
    (folder / "eval" / "results.json").write_text(json.dumps([row, {**row, "baseline": True}]))
    return folder


def test_a_folder_to_give_away(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = tmp_path / "shared"
    assert main([str(run), str(shared), "--licence", "mit"]) == 0
    names = {path.name for path in shared.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "modeling_kosmos.py", "versions.py"} <= names
    said = capsys.readouterr().out
    assert "README.md" in said
    assert "modeling_kosmos.py" not in said
    assert f"and {sum(name.endswith('.py') for name in names)} files of code" in said
    card = (shared / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "mit"
    assert header["pipeline_tag"] == "image-text-to-text"
    for said in (
        "| q\\|a | 0.7 | causal | 17 | 16 | ede783a2 |", "200 steps, from `runs/base`", "commit abc; torch 2.14.1",
        "| easy_vqa | 0 | image+text | vqa | 0.839 | 0.830 to 0.850 | 0.670 |", "## Limits",
    ):  # fmt: skip
        assert said in card, said
    assert card.count("easy_vqa") == 1  # a baseline is no score of the model
    before, _ = load(run)
    after, _ = load(shared)
    assert all(torch.equal(after.state_dict()[name], value) for name, value in before.state_dict().items())
    with pytest.raises(ValueError, match="holds something already"):
        main([str(run), str(shared)])
    main([str(shared), str(tmp_path / "again"), "--licence", "mit"])  # of a folder that is no run its card knows
    errors = capsys.readouterr().err
    assert "Writing model" not in errors
    again = (tmp_path / "again" / "README.md").read_text()
    known = [text.partition("## Data")[2].partition("## Limits")[0] for text in (card, again)]
    assert known[0] == known[1]
    assert "license: mit" in again


@pytest.mark.parametrize(
    ("given", "header"),
    [
        ("mit", {"license": "mit"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("GPL-3.0-only", {"license": "gpl-3.0"}),
        ("llama3.1", {"license": "llama3.1"}),
        ("MIT-0", {"license": "other", "license_name": "MIT-0", "license_link": "https://spdx.org/licenses/"}),
        ("mit or apache-2.0", {"license": "other", "license_name": "MIT OR Apache-2.0",
                               "license_link": "https://spdx.org/licenses/"}),
    ],
)  # fmt: skip
def test_a_licence_is_one(given: str, header: dict[str, str]) -> None:
    """What the hub has a word for stands in a card by that, another of SPDX by its name."""
    assert yaml.safe_load("\n".join(read_licence(given).header)) == header


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("???", r"'\?\?\?' is no identifier of the hub or SPDX, and no file; such as mit, apache-2.0"),
        ("", "no identifier"),
        ("apache2", "did you mean apache-2.0"),
        ("mit\ntags: [evil]", "no identifier"),
        ("cc-by-nc", "did you mean .*cc-by-nc-4.0"),
        ("docs/", "and no file"),
        ("a" * 5000, "no identifier"),
    ],
)
def test_what_is_no_licence_is_said_before_anything_is_written(
    given: str, match: str, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=match) as said:
        main([str(run), str(tmp_path / "shared"), "--licence", given])
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 400
    assert not (tmp_path / "shared").exists()


def test_a_licence_of_ones_own_travels(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "My Terms: v1.txt"
    own.write_text("Use it kindly.\n")
    main([str(run), str(tmp_path / "shared"), "--licence", str(own)])
    card = (tmp_path / "shared" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert [header[f"license{end}"] for end in ("", "_name", "_link")] == ["other", "my-terms-v1", "LICENSE"]
    assert "its text is in the file LICENSE" in card
    assert (tmp_path / "shared" / "LICENSE").read_text() == "Use it kindly.\n"
    for name, content, match in (("empty.txt", b" \n", "2 bytes"), ("x.bin", b"\xff\xfe\x00", "no text in UTF-8")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=match):
            read_licence(str(tmp_path / name))


def test_a_repository_that_can_be_none_is_said_first(run: Path, tmp_path: Path) -> None:
    for name in ("???", "a/b/c", "me/..", "me/" + "a" * 100):
        with pytest.raises(ValueError, match="is no name of the hub"):
            main([str(run), str(tmp_path / "shared"), "--push", name])
    assert not (tmp_path / "shared").exists()


def test_what_could_not_be_pushed_is_still_there(run: Path, tmp_path: Path) -> None:
    """The hub is out of reach in tests, and minutes of work are not to be done again for that."""
    with pytest.raises(OSError, match=r"is written, but not pushed: .*hf upload me/shared") as said:
        main([str(run), str(tmp_path / "shared"), "--push", "me/shared"])
    assert "\n" not in str(said.value)
    assert (tmp_path / "shared" / "model.safetensors").is_file()


def test_what_files_say_stays_in_its_line(run: Path, tmp_path: Path) -> None:
    """Names of folders, sources and questions are anybody's; and a folder of this machine concerns nobody else."""
    checkpoint = run / "checkpoints" / "step-000200"
    described = json.loads((checkpoint / "processor_config.json").read_text())
    described["example_questions"] = ["what\n# is it?", 5]
    (checkpoint / "processor_config.json").write_text(json.dumps(described))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["sources"] = [{"name": "a\n\n# b`", "objective": "causal"}]
    settings["model"]["checkpoint"] = "/home/someone/secret/runs/base/checkpoints/step-000100"
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = json.loads((run / "eval" / "results.json").read_text())
    (run / "eval" / "results.json").write_text(json.dumps([{**rows[0], "model": "/home/someone/runs/tune"}]))
    card = model_card(checkpoint, 'a "b"\n## c')
    assert 'kosmos.load("a \\"b\\" ## c")' in card
    assert "kosmos chat 'a \"b\" ## c'" in card
    assert card.count("\n#") == 1 + len(("Use", "Data", "Training", "Scores", "Limits", "Licence"))
    assert "| a # b' | 1 | causal |" in card
    assert "from `step-000100` of the run `base`" in card
    assert "Rows of `kosmos eval` for `tune`." in card
    assert "questions such as: what # is it?" in card
    assert "someone" not in card


def test_saving_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed is told where it runs while a model is saved, and not afterwards; a user's own word stays."""
    monkeypatch.delenv("DS_ACCELERATOR")
    with quiet_saving():
        assert os.environ["DS_ACCELERATOR"] in ("cpu", "cuda")
    assert "DS_ACCELERATOR" not in os.environ
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    with quiet_saving():
        assert os.environ["DS_ACCELERATOR"] == "xpu"
    assert os.environ["DS_ACCELERATOR"] == "xpu"


def test_what_is_not_known_is_not_claimed(run: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "environment.json", "eval/results.json"):
        (run / name).unlink()
    main([str(run), str(tmp_path / "bare")])
    card = (tmp_path / "bare" / "README.md").read_text()
    assert card.count("Not known") == 2
    assert "None: it was not evaluated" in card
    assert "license:" not in card
    (tmp_path / "no.json").write_text('{"a": 1}')
    (run / "eval").mkdir(exist_ok=True)
    (run / "eval" / "results.json").write_text('{"a": 1}')
    assert "None that can be read" in model_card(run / "checkpoints" / "step-000200")
    for results in ("no.json", "missing.json"):
        with pytest.raises(ValueError, match="of kosmos eval"):
            main([str(run), str(tmp_path / "other"), "--results", str(tmp_path / results)])


def test_a_folder_that_only_lies_in_something_describes_no_run(run: Path, tmp_path: Path) -> None:
    """Two folders above may stand settings of another model."""
    away = tmp_path / "run" / "other" / "model"
    away.parent.mkdir()
    (run / "checkpoints" / "step-000200").rename(away)
    assert run_of(away) is None
    assert model_card(away).count("Not known") == 2
    assert model_card(away, source=tmp_path / "run" / "checkpoints" / "x").count("Not known") == 0


def test_a_card_says_what_its_folder_is(run: Path, tmp_path: Path) -> None:
    """How it is loaded: with its code, with this package, as an adapter, as Kosmos-2; and how many numbers it has."""
    checkpoint = run / "checkpoints" / "step-000200"
    card = model_card(checkpoint, "tune")
    count = sum(parameter.numel() for parameter in load(run)[0].parameters())
    assert f"A KOSMOS-1 / MetaLM model of {count:,} parameters" in card
    assert "Made from `step-000200` of the run `run`." in card
    assert 'kosmos.load("tune")' in card
    assert "trust_remote_code" not in card  # its code is not there
    rows = json.loads((run / "eval" / "results.json").read_text())
    (run / "eval" / "step-000200").mkdir()
    (run / "eval" / "step-000200" / "results.json").write_text(json.dumps([{**rows[0], "value": 0.25}]))
    assert "| 0.250 |" in model_card(checkpoint)  # of this very step
    main([str(run), str(tmp_path / "shared")])
    assert "trust_remote_code=True" in (tmp_path / "shared" / "README.md").read_text()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "runs/base"}')
    safetensors.torch.save_file({"a": torch.ones(2, 3)}, adapter / "adapter_model.safetensors")
    card = model_card(adapter)
    assert "An adapter (lora) of 6 parameters, for `runs/base`." in card
    assert "kosmos chat BASE --adapter adapter" in card
    (adapter / "adapter_config.json").rename(adapter / "config.json").write_text('{"model_type": "kosmos-2"}')
    assert "A KOSMOS-2 model of 6 parameters" in model_card(adapter)


def test_what_travels_with_the_code_is_whole() -> None:
    """transformers copies the files that are imported, and refuses where a package of a plain import is missing."""
    package = Path(kosmos.__file__).parent
    files = {package / f"{name}.py" for name in ("modeling_kosmos", "processing_kosmos", "image_processing_kosmos")}
    while new := {Path(name) for file in files for name in get_relative_import_files(file)} - files:
        files |= new  # a file that is not there is an OSError
    found = {name for file in files for name in get_imports(file)} - sys.stdlib_module_names
    assert found <= {
        "torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "numpy", "PIL", "packaging",
    }, found  # fmt: skip
    text = "".join(file.read_text() for file in files)
    assert "from . import" not in text, "transformers does not see such an import"


PUSH = """
import sys
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from kosmos import KosmosProcessor, load
from kosmos.cli import main

run, shared, back = sys.argv[1:]
assert main(["share", run, shared, "--push", "me/shared", "--licence", "mit"]) == 0
model, processor = load(run)
model.push_to_hub("me/pushed", token="secret")
processor.push_to_hub("me/pushed", token="secret")
KosmosProcessor.from_pretrained("me/pushed").save_pretrained(back)
for name in ("av", "open_clip", "sentencepiece", "google.protobuf"):
    sys.modules[name] = None  # not installed where the model arrives
model = get_class_from_dynamic_module("modeling_kosmos.KosmosForConditionalGeneration", "me/shared")
model.from_pretrained("me/shared").save_pretrained(back)
"""


def test_a_way_to_the_hub_and_back(run: Path, tmp_path: Path, warm_python: WarmPython) -> None:
    """``kosmos share --push`` and ``push_to_hub`` against a hub on this machine, with regular and large files."""
    with running() as hub:
        environment = os.environ | hub.environment(tmp_path / "home") | {"HF_TOKEN": "secret"}
        words = [str(run), str(tmp_path / "shared"), str(tmp_path / "back")]
        done = warm_python.run(PUSH, *words, folder=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{hub.url}/me/shared" in done.stdout
    assert hub.tokens == {"Bearer secret"}
    here = {str(path.relative_to(tmp_path / "shared")): path.read_bytes()
            for path in (tmp_path / "shared").rglob("*") if path.is_file()}  # fmt: skip
    there = {path: content for path, content in hub.files["me/shared"].items() if path != ".gitattributes"}
    assert there == here
    assert hub.blobs, "weights come as large files"
    assert {"model.safetensors", "config.json", "processor_config.json"} <= hub.files["me/pushed"].keys()
    before, after = load(run)[0].state_dict(), load(tmp_path / "back")[0].state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
