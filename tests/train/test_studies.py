"""The studies of the project: their configs fit each other, and every arm of them builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kosmos import settings
from kosmos.processing_kosmos import load_processor
from kosmos_data.objectives import get, special_tokens
from kosmos_train.parts.encoder import EncoderConfig
from kosmos_train.study import tuning as study_tuning
from kosmos_train.study.run import (
    StudyConfig,
    configs,
    load_base,
    with_steps,
)

CONFIGS = Path(__file__).parents[2] / "train" / "configs" / "objectives"


def test_the_projects_studies_are_sound(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its YAML loads over its base, every objective can be built, and tokenizer.yaml names all tokens they need."""
    monkeypatch.chdir(CONFIGS.parents[2])
    other = settings.load(StudyConfig, CONFIGS / "study_minilm.yaml")
    assert set(other.pretrained) == {"semi_causal"}
    causal = settings.load(StudyConfig, CONFIGS.parent / "evidence" / "denoising.yaml")
    _check_arms(causal, values)
    xpos = configs(causal, load_base(causal), Path("x")).values()
    assert {run.model.overrides["text_config"]["position_type"] for run in xpos} == {"xpos"}
    study = settings.load(StudyConfig, CONFIGS / "study.yaml")
    assert (other.base, other.tuning.sets, other.tuning.steps) == (study.base, study.tuning.sets, study.tuning.steps)
    assert set(study.objectives) >= {
        "causal",
        "prefix_lm",
        "span_corruption",
        "ul2",
        "glm",
        "fim",
        "cm3",
        "semi_causal",
    }
    base = load_base(study)
    runs = configs(study, base, Path("runs/objectives/study"))
    assert len(runs) == len(study.objectives)
    assert runs["semi_causal-0"].model.span_weights is not None
    own = settings.load(EncoderConfig, study.encoder)
    assert (own.processor, own.shards) == (base.processor, [base.data.sources[0].shards])
    _check_arms(study, values)
    stages = with_steps(runs["flan_t5-0"], 200, 4).data.sources[0].objective["stages"]
    assert stages[0]["until"] == 160
    assert study_tuning.tuning_jobs(
        study.tuning, base, Path("x"), {"causal": ("causal-0", 1.0), "semi_causal": ("s", 1.0)}
    )


def _check_arms(study: StudyConfig, values: dict[str, Any]) -> None:
    """Every objective of a study of the project can be built with the tokens that tokenizer.yaml names."""
    have = special_tokens(yaml.safe_load((CONFIGS / "tokenizer.yaml").read_text())["objectives"])
    assert set(special_tokens(list(study.objectives.values()))) <= set(have)
    processor = load_processor(values["processor"])
    processor.tokenizer.add_tokens(have, special_tokens=True)
    base = load_base(study)
    for config in configs(study, base, Path("runs/objectives/study")).values():
        config = with_steps(config, base.steps, study.points)
        config.check()
        options = dict(config.data.sources[0].objective)
        get(options.pop("name"), processor, **options)
