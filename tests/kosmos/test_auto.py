"""``import kosmos`` is enough for transformers' Auto classes, before or after transformers, and costs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..warm_python import WarmPython


@pytest.mark.parametrize("order", ["import kosmos; import transformers", "import transformers; import kosmos"])
def test_auto_classes_know_kosmos_in_either_order(
    order: str, processor, tmp_path: Path, warm_python: WarmPython
) -> None:
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "kosmos"}')
    program = f"""
{order}
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
print(type(AutoConfig.from_pretrained({str(tmp_path)!r})).__name__)
print(type(AutoProcessor.from_pretrained({str(tmp_path)!r})).__name__)
print(AutoModelForImageTextToText._model_mapping[type(AutoConfig.for_model("kosmos"))].__name__)
"""
    done = warm_python.run(program, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["KosmosConfig", "KosmosProcessor", "KosmosForConditionalGeneration"]


@pytest.mark.parametrize("first", ["import kosmos; from transformers import LlamaForCausalLM", "import kosmos.decoder"])
def test_any_first_import_leaves_the_auto_classes_complete(first: str, tmp_path: Path, warm_python: WarmPython) -> None:
    """transformers' models import the Auto classes half-way through modules that ours need as well."""
    program = f"""
{first}
from transformers import AutoModel, AutoModelForImageTextToText as Auto
from kosmos.configuration_kosmos import KosmosConfig
found = [Auto._model_mapping[KosmosConfig], AutoModel._model_mapping[KosmosConfig]]
print(*[kind.__name__ for kind in found], found[0] in Auto._model_mapping._extra_content.values())
"""
    done = warm_python.run(program, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["KosmosForConditionalGeneration", "KosmosModel", "True"]
