"""Presets and what they cost."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.cli import main
from kosmos.configuration_kosmos import PRESETS
from kosmos.doctor import count_parts, describe_version, span_flops, tested_versions, training_flops, training_memory


def test_kosmos2_has_the_published_number_of_parameters() -> None:
    parts = {part.name: part.parameters for part in count_parts(KosmosConfig.preset("kosmos-2"))}
    assert parts == {
        "embeddings": 133_195_776,
        "decoder layers": 1_209_094_144,
        "vision tower": 303_179_776,
        "connector": 19_015_680,
    }
    assert sum(parts.values()) == 1_664_485_376


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


def test_flops_equal_the_convention() -> None:
    """PaLM's count for KOSMOS-2's decoder at 2,048 tokens: 9.255 GFLOP a token, 8.651 with causal attention."""
    full, causal = training_flops(KosmosConfig.preset("kosmos-2"), 2048)
    assert full == pytest.approx(9.255e9, rel=1e-3)
    assert causal == pytest.approx(8.651e9, rel=1e-3)


def test_spans_cost_what_their_matrices_do() -> None:
    """MetaLM's encoder: 24 blocks of 12 d² weights at d = 1024, of which two train, and a connector to 2,048."""
    block, connector = 12 * 1024**2, 1024 * 2048
    expected = 2 * 24 * block + 4 * 2 * block + 6 * connector
    assert span_flops(count_parts(KosmosConfig.preset("metalm"))) == pytest.approx(expected, rel=2e-3)


def test_zero_divides_memory() -> None:
    parts = count_parts(KosmosConfig.preset("tiny"))
    totals = [sum(training_memory(parts, stage, 4).values()) for stage in (0, 1, 2, 3)]
    assert totals == sorted(totals, reverse=True)
    total, trainable = sum(p.parameters for p in parts), sum(p.trainable for p in parts)
    assert totals[0] == 2 * total + 16 * trainable
    assert totals[3] == totals[0] / 4


def test_command(capsys) -> None:
    assert main(["doctor", "--preset", "tiny", "--zero-stage", "2", "--gpus", "2"]) == 0
    out = capsys.readouterr().out
    assert "decoder layers" in out
    assert "FLOPs/token" in out
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out


def test_a_version_that_was_not_tested_is_named(monkeypatch, capsys) -> None:
    tested = tested_versions()
    assert {"torch", "transformers", "peft"} <= tested.keys()  # peft is asked for by an extra
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "6.1.0" if name == "transformers" else installed(name))
    assert describe_version("transformers", tested).startswith("6.1.0, not tested with this version of Kosmos: it asks")
    assert describe_version("torch", tested) == installed("torch")
    assert describe_version("no-such-package", tested) == "not installed"
    assert main(["doctor"]) == 0
    assert "not tested" in capsys.readouterr().out
