"""What a user of transformers, PEFT and TRL expects to work without reading our code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    pipeline,
)

from kosmos import Conversation, KosmosForConditionalGeneration

MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "what is the red thing?"}],
    }
]


@pytest.fixture
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40, 32), "red"), Image.new("RGB", (32, 50), "blue")]


@pytest.fixture
def model(build, processor) -> KosmosForConditionalGeneration:
    """A model that fits the processor: 4 places an image, its vocabulary, its placeholder."""
    base = build(text={"vocab_size": len(processor.tokenizer)}).config
    base.connector_config.num_queries = base.num_image_tokens = processor.num_image_tokens
    base.image_token_id = processor.image_slot_id
    torch.manual_seed(0)
    return KosmosForConditionalGeneration(base).eval()


@pytest.fixture
def folder(model, processor, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def chat(processor, pictures) -> dict[str, torch.Tensor]:
    prompt = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    return processor(images=pictures, text=prompt, return_tensors="pt", add_special_tokens=False)


def test_files_of_a_checkpoint(folder) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "processor_config.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    assert not any(name.endswith((".bin", ".pt")) for name in names)


@torch.no_grad()
def test_auto_classes_and_chat_with_two_images(folder, model, pictures) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    again = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(again) is KosmosForConditionalGeneration
    inputs = chat(processor, pictures)
    assert int((inputs["input_ids"] == again.config.image_token_id).sum()) == 2 * processor.num_image_tokens
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)
    assert model.generate(**inputs, max_new_tokens=4).shape[1] == inputs["input_ids"].shape[1] + 4


def test_pipeline(folder, model, processor, pictures) -> None:
    run = pipeline("image-text-to-text", model=str(folder), device="cpu")
    content = [{"type": "image", "image": picture} for picture in pictures]
    content.append({"type": "text", "text": "what is the red thing?"})
    out = run(text=[{"role": "user", "content": content}], max_new_tokens=5, do_sample=False, return_full_text=False)
    inputs = chat(processor, pictures)
    ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert out[0]["generated_text"].strip() == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_pipeline_and_chat_read_the_same_prompt(folder, pictures) -> None:
    """Pictures between words stand there, and what is typed is text."""
    content: list = ["is", pictures[0], "or", pictures[1], "the <image> in </s>?"]
    parts = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in content]
    run = pipeline("image-text-to-text", model=str(folder), device="cpu")
    out = run(text=[{"role": "user", "content": parts}], max_new_tokens=5, do_sample=False, return_full_text=False)
    said = Conversation(folder, max_new_tokens=5).ask(content)
    assert out[0]["generated_text"].replace("\n", "").strip() == said.strip()
    with pytest.raises(ValueError, match="'video'"):
        run(text=[{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}], max_new_tokens=1)


def test_the_model_without_output_matrix(build, tmp_path, ids) -> None:
    """AutoModel reads a language model's checkpoint, tied or not."""
    for tied in (True, False):
        model = build(images=False, text={"tie_word_embeddings": tied}, tie_word_embeddings=tied)
        model.save_pretrained(tmp_path / str(tied))
        inner = AutoModel.from_pretrained(tmp_path / str(tied))
        expected = model.model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(inner(input_ids=ids).last_hidden_state, expected)
        again = KosmosForConditionalGeneration.from_pretrained(tmp_path / str(tied))
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_trl_finds_the_class_of_a_checkpoint(folder) -> None:
    """TRL's create_model_from_path wants a map of code, which is empty here, and then a causal language model."""
    assert AutoConfig.from_pretrained(folder).auto_map == {}
    assert "auto_map" not in (folder / "config.json").read_text()
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is KosmosForConditionalGeneration


def test_bf16_is_kept(model, tmp_path) -> None:
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert torch.isfinite(again(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss)


def test_resize_embeddings(model, processor, pictures) -> None:
    inputs = chat(processor, pictures)
    before = model(**inputs).logits
    size = model.config.text_config.vocab_size
    model.resize_token_embeddings(size + 8)
    assert model.config.text_config.vocab_size == size + 8
    after = model(**inputs).logits
    assert after.shape[-1] == size + 8
    torch.testing.assert_close(after[..., :size], before, atol=1e-6, rtol=0)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def training_loss(model, inputs) -> torch.Tensor:
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    return model(**inputs, labels=labels).loss


def test_lora(model, processor, pictures, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    inputs = chat(processor, pictures)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["connector"])
    tuned = peft.get_peft_model(model, settings).train()
    optimiser = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(5):
        loss = training_loss(tuned, inputs)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    tuned.eval()
    expected = tuned(**inputs).logits
    tuned.save_pretrained(tmp_path / "adapter")
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig"])
def test_prefix_and_prompt_tuning(model, processor, pictures, kind: str) -> None:
    peft = pytest.importorskip("peft")
    inputs = chat(processor, pictures)
    plain = model(**inputs).logits[:, -1]
    tuned = peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)).train()
    loss = training_loss(tuned, inputs)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in tuned.prompt_encoder.parameters())
    tuned.eval()
    assert not torch.allclose(tuned(**inputs).logits[:, -1], plain)
    out = tuned.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 4


def test_gradient_checkpointing_trains(model, processor, pictures) -> None:
    inputs = chat(processor, pictures)
    model.train()
    expected = training_loss(model, inputs)
    model.gradient_checkpointing_enable()
    loss = training_loss(model, inputs)
    loss.backward()
    assert torch.equal(loss, expected)
    assert model.model.connector.latent_query.grad.any()


def test_dummy_image_touches_every_parameter(build, ids) -> None:
    """A text-only batch gives every trainable parameter a gradient, and the same loss."""
    model = build(spans=True, vision={"train_last_blocks": 1}).train()
    expected = model(input_ids=ids, labels=ids).loss
    loss = model(input_ids=ids, labels=ids, dummy_image=True).loss
    assert torch.equal(loss, expected)
    loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    touched = [
        p for name, p in model.named_parameters() if p.requires_grad and ("vision" in name or "connector" in name)
    ]
    assert touched
    assert not any(p.grad.any() for p in touched)


SAVE = """
import sys
from kosmos import KosmosConfig, KosmosForConditionalGeneration, KosmosImageProcessor, KosmosProcessor
for kind, auto in (
    (KosmosConfig, "AutoConfig"),
    (KosmosForConditionalGeneration, "AutoModelForImageTextToText"),
    (KosmosProcessor, "AutoProcessor"),
    (KosmosImageProcessor, "AutoImageProcessor"),
):
    kind.register_for_auto_class(auto)
for kind in (KosmosForConditionalGeneration, KosmosProcessor):
    kind.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""
REMOTE = """
import sys
sys.modules["kosmos"] = None  # our package is not there
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert all(type(part).__module__.startswith("transformers_modules") for part in (model, processor)), type(model)
inputs = processor(images=[Image.new("RGB", (40, 32), "red")], text="<image>what is red?", return_tensors="pt")
print(*model.generate(**inputs, max_new_tokens=5, do_sample=False)[0].tolist())
"""


def test_trust_remote_code_without_our_package(folder, model, processor, pictures, tmp_path, warm_python) -> None:
    """The folder carries the code: register_for_auto_class copies the model, the processor and what they import."""
    options = {"folder": tmp_path, "environment": {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}}
    target = str(tmp_path / "remote")
    for program, arguments in ((SAVE, [str(folder), target]), (REMOTE, [target])):
        done = warm_python.run(program, *arguments, **options)
        assert done.returncode == 0, done.stderr
    inputs = processor(images=pictures[:1], text="<image>what is red?", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0].tolist()
    assert done.stdout.split()[-len(expected) :] == [str(token) for token in expected]


def test_trl_sft_step(model, processor, pictures, tmp_path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a red circle"}]}
    question = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    rows = [{"images": pictures[:1], "messages": [{"role": "user", "content": question}, answer]}] * 2
    settings = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False,
        max_length=None, gradient_checkpointing=False,
    )  # fmt: skip
    before = model.model.decoder.layers[0].ffn.fc1.weight.detach().clone()
    trainer = trl.SFTTrainer(
        model=model, args=settings, train_dataset=datasets.Dataset.from_list(rows), processing_class=processor
    )
    assert trainer.train().training_loss > 0
    assert not torch.equal(model.model.decoder.layers[0].ffn.fc1.weight, before)
