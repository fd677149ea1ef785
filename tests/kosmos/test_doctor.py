"""Presets, and what the command says of them."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration, doctor
from kosmos.cli import main
from kosmos.configuration_kosmos import PRESETS
from kosmos.doctor import describe_version


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.json")))
def test_every_preset_builds(name: str) -> None:
    with torch.device("meta"):
        model = KosmosForConditionalGeneration(KosmosConfig.preset(name))
    assert model.config.text_config.hidden_size % model.config.text_config.num_attention_heads == 0
    if name == "kosmos-1":  # KOSMOS-1 trains the last of CLIP's blocks: 12.6 M of 303 M parameters
        assert sum(p.numel() for p in model.model.vision_tower.parameters() if p.requires_grad) == 12_596_224
    if name == "metalm":
        assert {n.split(".")[3] for n, p in model.model.span_encoder.named_parameters() if p.requires_grad} == {
            "22",
            "23",
        }


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="unknown preset 'huge'; there are: kosmos-1, kosmos-2, metalm, small, tiny"):
        KosmosConfig.preset("huge")


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--preset", "tiny", "--zero-stage", "2", "--gpus", "2"]) == 0
    out = capsys.readouterr().out
    assert "decoder" in out
    assert "FLOPs/token" in out
    assert "FLOPs/image, encoder and connector: 1.116e+08" in out
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out


def test_a_source_tree_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", none)
    assert main(["doctor"]) == 0


def test_a_version_that_was_not_tested_is_named(monkeypatch, capsys) -> None:
    tested = doctor.tested_versions()  # by its own name it would be taken for a test
    assert {"torch", "transformers", "peft"} <= tested.keys()  # peft is asked for by an extra
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "6.1.0" if name == "transformers" else installed(name))
    assert describe_version("transformers", tested).startswith("6.1.0, not tested with this version of Kosmos: it asks")
    assert describe_version("torch", tested) == installed("torch")
    assert describe_version("no-such-package", tested) == "not installed"
    assert main(["doctor"]) == 0
    assert "not tested" in capsys.readouterr().out
