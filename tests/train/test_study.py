"""The study of objectives: runs made once, a table of figures; misfits found before a run; configs of objectives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kosmos import settings
from kosmos_data.objectives import get, special_tokens
from kosmos_train import TrainConfig
from kosmos_train.dry_run import plan
from kosmos_train.study import StudyConfig, configs, main

CONFIGS = Path(__file__).parents[2] / "train" / "configs" / "objectives"


@pytest.fixture
def base(values: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny world as a base config: text only, GLM's positions, two steps."""
    text = values["data"]["sources"][0] | {"weight": 1.0}
    model = values["model"] | {"overrides": {"text_config": {"position_type": "learned_2d"}}}
    data = values["data"] | {"sources": [text]}
    held_out = {"every": 1, "batches": 1, "data": data}
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(values | {"model": model, "data": data, "steps": 2, "eval": held_out}))
    return path


def test_a_study_makes_each_run_once(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Objectives by seed, held-out causal loss for each, and nothing is trained twice."""
    study = {"base": str(base), "objectives": {"causal": {"name": "causal"}, "prefix": {"name": "prefix_lm"}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    words = [str(tmp_path / "study.yaml"), f"run={tmp_path / 'out'}"]
    main(words)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["run"] for row in rows] == ["causal-0", "prefix-0"]
    causal, prefix = rows
    assert causal["held_out_loss"] != prefix["held_out_loss"]
    assert causal["loss_exposure"] == pytest.approx(1.0)
    assert 0.2 < prefix["loss_exposure"] < 0.8
    before = (tmp_path / "out" / "causal-0" / "metrics.jsonl").stat().st_mtime_ns
    main(words)
    assert (tmp_path / "out" / "causal-0" / "metrics.jsonl").stat().st_mtime_ns == before
    assert "prefix-0" in capsys.readouterr().out


def test_the_projects_study_is_sound(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its YAML loads over its base, every objective can be built, and tokenizer.yaml names all tokens they need."""
    monkeypatch.chdir(CONFIGS.parents[2])
    study = settings.load(StudyConfig, CONFIGS / "study.yaml")
    runs = configs(study)
    assert len(runs) == len(study.objectives)
    named = yaml.safe_load((CONFIGS / "tokenizer.yaml").read_text())["objectives"]
    have = special_tokens(named)
    assert set(special_tokens(list(study.objectives.values()))) <= set(have)
    processor.tokenizer.add_tokens(have, special_tokens=True)
    for config in runs.values():
        config.check()
        options = dict(config.data.sources[0].objective)
        get(options.pop("name"), processor, **options)


@pytest.fixture
def processor(values: dict[str, Any]) -> Any:
    """A copy of the tiny world's processor that a test may change."""
    from kosmos.processing_kosmos import load_processor

    return load_processor(values["processor"])


@pytest.mark.parametrize(
    ("objective", "position", "message"),
    [
        ({"name": "prefix_lm"}, "xpos", "text_config.position_type to 'rope' or 'learned_2d'"),
        ({"name": "glm"}, "rope", "the objective's two_positions to false"),
        ({"name": "semi_causal", "sampler": "prefix"}, "xpos", "no span_encoder_config"),
    ],
)
def test_a_dry_run_finds_what_the_model_cannot_do(
    objective: dict[str, Any], position: str, message: str, values: dict[str, Any], processor: Any, tmp_path: Path
) -> None:
    processor.tokenizer.add_tokens(special_tokens([objective]), special_tokens=True)
    processor.save_pretrained(tmp_path / "processor")
    values["processor"] = str(tmp_path / "processor")
    values["model"] = values["model"] | {"overrides": {"text_config": {"position_type": position}}}
    values["data"]["sources"] = [values["data"]["sources"][0] | {"objective": objective}]
    with pytest.raises(ValueError, match=message):
        plan(settings.from_dict(TrainConfig, values), 1)


def test_a_study_that_cannot_be_compared(base: Path) -> None:
    with pytest.raises(ValueError, match="objectives is empty"):
        configs(StudyConfig(base=str(base)))
    one = {"causal": {"name": "causal"}}
    with pytest.raises(ValueError, match=r"models\.glm belongs to no objective"):
        configs(StudyConfig(base=str(base), objectives=one, models={"glm": {}}))
