"""``import kosmos`` is enough for transformers' Auto classes, before or after transformers, and costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("order", ["import kosmos; import transformers", "import transformers; import kosmos"])
def test_auto_classes_know_kosmos_in_either_order(order: str, processor, tmp_path) -> None:
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "kosmos"}')
    program = f"""
{order}
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
print(type(AutoConfig.from_pretrained({str(tmp_path)!r})).__name__)
print(type(AutoProcessor.from_pretrained({str(tmp_path)!r})).__name__)
print(AutoModelForImageTextToText._model_mapping[type(AutoConfig.for_model("kosmos"))].__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["KosmosConfig", "KosmosProcessor", "KosmosForConditionalGeneration"]
