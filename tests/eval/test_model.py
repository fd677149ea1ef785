"""Batched, cached answering against a plain loop over single prompts with ``model.generate`` and ``model.forward``."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from PIL import Image

from kosmos import KosmosForConditionalGeneration, KosmosProcessor
from kosmos.tuning import Tuning, attach
from kosmos_eval import methods, tasks
from kosmos_eval.items import Item
from kosmos_eval.model import EvaluatedModel, in_order
from kosmos_eval.prompts import Pair, Prompt
from kosmos_eval.runner import Runner, State
from kosmos_eval.stages import Stage
from kosmos_eval.tasks import Decoding, Task
from kosmos_eval.trie import Trie


@pytest.fixture
def prompts(toy_data: Path) -> list[Prompt]:
    """Zero-shot and few-shot prompts of different lengths, some with shared beginnings, one without an image."""
    images = sorted((toy_data / "test/images").glob("*.png"))[:5]
    demo = [images[4], "Question: what color is it? Answer: red\n"]
    questions = ["Question: what color is it? Answer:", "Question: is it a red square? Answer:", "An image of"]
    zero = [Prompt((image, question), (1,)) for image in images[:3] for question in questions]
    few = [Prompt((*demo, image, question), (2, 3)) for image in images[:3] for question in questions[:2]]
    return [*zero, *few, Prompt(("Question: is it a circle? Answer:",))]


def inputs(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompt: Prompt
) -> dict[str, torch.Tensor]:
    pictures = [Image.open(path) for path in prompt.images]
    return processor(images=pictures or None, text=prompt.text, return_tensors="pt")


def one_by_one(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt], **options: object
) -> list[str]:
    stop = [processor.tokenizer.eos_token_id, *processor.encode_text("\n")]
    options |= {"suppress_tokens": [model.config.image_token_id]}
    texts = []
    for prompt in prompts:
        encoded = inputs(model, processor, prompt)
        ids = model.generate(**encoded, do_sample=False, eos_token_id=stop, pad_token_id=1, **options)
        texts.append(
            processor.tokenizer.decode(ids[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        )
    return texts


def test_a_model_that_looks_by_cross_attention_answers_the_same(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt]
) -> None:
    """Shared beginnings, rows that leave and rows without an image: each row keeps its own last image."""
    config = copy.deepcopy(model.config)
    config.coupling, config.num_image_tokens, config.cross_attention_every = "cross_attention", 1, 2
    config.cross_attention_heads, config.cross_attention_head_dim = 2, 8
    torch.manual_seed(0)
    crossed = KosmosForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in crossed.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    mine = copy.deepcopy(processor)
    mine.num_image_tokens = 1
    plain = one_by_one(crossed, mine, prompts, max_new_tokens=8)
    assert len(set(plain)) > 3
    for rows in (4, 128):
        asked = EvaluatedModel(Runner(crossed, mine), batch_rows=rows)
        assert in_order(asked.generate(prompts, Decoding(max_new_tokens=8), [0] * len(prompts))) == plain
    beams = EvaluatedModel(Runner(crossed, mine)).generate(
        prompts, Decoding(method="beam", num_beams=2, max_new_tokens=6), [0] * len(prompts)
    )
    assert in_order(beams) == one_by_one(crossed, mine, prompts, max_new_tokens=6, num_beams=2)


@pytest.mark.parametrize(
    "tuning",
    [Tuning("prefix", tokens=3), Tuning("prompt", tokens=3), Tuning("lora", rank=4), Tuning("adapter", reduction=4)],
    ids=lambda tuning: tuning.method,
)
def test_a_tuned_model_answers_the_same(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt], tuning: Tuning
) -> None:
    """Batches, padding and shared beginnings change no answer of a model with virtual tokens or adapters."""
    tuned = copy.deepcopy(model)
    plain = one_by_one(model, processor, prompts, max_new_tokens=8)
    attach(tuned, tuning)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    tuned.eval()
    asked = EvaluatedModel(Runner(tuned, processor), batch_rows=4)
    texts = in_order(asked.generate(prompts, Decoding(max_new_tokens=8), [0] * len(prompts)))
    assert texts == one_by_one(tuned, processor, prompts, max_new_tokens=8)
    assert texts != plain


@pytest.mark.parametrize(("rows", "share"), [(128, True), (4, True), (3, False), (1, False)])
def test_greedy_equals_generate_one_by_one(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt], rows: int, share: bool
) -> None:
    asked = EvaluatedModel(Runner(model, processor), batch_rows=rows, share=share)
    texts = in_order(asked.generate(prompts, Decoding(max_new_tokens=8), [0] * len(prompts)))
    assert texts == one_by_one(model, processor, prompts, max_new_tokens=8)
    assert len(set(texts)) > 3, "the toy model answers everything alike, so the comparison says nothing"


def test_what_prompts_begin_with_is_read_once_and_nothing_is_padded(
    model: KosmosForConditionalGeneration,
    processor: KosmosProcessor,
    prompts: list[Prompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each image with "Question:" is read once, whatever the batches; questions of one length stand together."""
    runner, extend = Runner(model, processor), Runner.extend
    read: list[list[int]] = []

    def counted(self: Runner, state: State | None, stages: list[Stage], keep: int = 1) -> tuple[State, torch.Tensor]:
        read.append([len(stage.ids) for stage in stages])
        return extend(self, state, stages, keep)

    monkeypatch.setattr(Runner, "extend", counted)
    chosen = [prompt for prompt in prompts if prompt.cuts == (1,) and "Question" in prompt.text]
    asked = in_order(EvaluatedModel(runner, batch_rows=3).generate(chosen, Decoding(max_new_tokens=2), [0] * 6))
    assert asked == one_by_one(model, processor, chosen, max_new_tokens=2)
    image = len(runner.stages(Prompt((chosen[0].segments[0],)))[0].ids)
    beginnings, *ends = read
    assert len(beginnings) == 3
    assert min(beginnings) > image
    assert [len(set(lengths)) for lengths in ends] == [1, 1]


def test_a_watched_model_answers_the_same(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt]
) -> None:
    """A hook must see every token: the lean step stands back, the loop stays."""
    asked, decoding = EvaluatedModel(Runner(model, processor), batch_rows=4), Decoding(max_new_tokens=8)
    expected = in_order(asked.generate(prompts, decoding, [0] * len(prompts)))
    seen: list[int] = []
    hook = model.model.decoder.layers[1].ffn.fc1.register_forward_hook(
        lambda module, inputs, out: seen.append(out.shape[1])
    )
    try:
        assert in_order(asked.generate(prompts, decoding, [0] * len(prompts))) == expected
    finally:
        hook.remove()
    assert 1 in seen


def test_beam_equals_generate_one_by_one(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt]
) -> None:
    decoding = Decoding(method="beam", num_beams=3, length_penalty=0.6, max_new_tokens=5)
    texts = in_order(
        EvaluatedModel(Runner(model, processor), batch_rows=5).generate(prompts, decoding, [0] * len(prompts))
    )
    assert texts == one_by_one(model, processor, prompts, max_new_tokens=5, num_beams=3, length_penalty=0.6)


def test_constrained_beam_writes_only_candidates(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt]
) -> None:
    names = ["red circle", "red square", "blue"]
    decoding = Decoding(method="beam", num_beams=2, max_new_tokens=8, candidates=names, constrained=True)
    texts = in_order(EvaluatedModel(Runner(model, processor)).generate(prompts, decoding, [0] * len(prompts)))
    assert set(texts) <= set(names)


def test_every_decoding_method_asks_in_its_own_way() -> None:
    assert set(get_args(get_type_hints(Decoding)["method"])) == set(methods.METHODS)


def test_trie_of_nested_answers() -> None:
    trie = Trie([(5,), (5, 6), (7,)], end=2)
    assert trie.allowed([]) == [5, 7]
    assert trie.allowed([5]) == [2, 6]
    assert trie.allowed([5, 6]) == [2]
    assert trie.allowed([5, 2]) == [2]


@pytest.mark.parametrize(
    ("normalisation", "bare_prompt"),
    [("sum", ""), ("mean", ""), ("byte", ""), ("unconditional", "Answer:"), ("unconditional", "An image of")],
)
def test_ranking_equals_forward_one_by_one(
    model: KosmosForConditionalGeneration,
    processor: KosmosProcessor,
    prompts: list[Prompt],
    normalisation: str,
    bare_prompt: str,
) -> None:
    candidates = ["yes", "no", "a blue square", "red triangle circle"]
    asked = EvaluatedModel(Runner(model, processor), batch_rows=4)
    decoding = Decoding("rank", normalisation=normalisation, bare_prompt=bare_prompt, candidates=candidates)
    task = Task("", tasks.DatasetFiles("jsonl", ""), tasks.Prompt(""), decoding=decoding, metrics=["accuracy"])
    items = [Item(str(place)) for place in range(len(prompts))]
    answers = in_order(methods.answers(asked, task, items, prompts, 0))
    candidates = [f" {text}" for text in candidates]
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = []
        for text in candidates:
            score, tokens = log_likelihood(model, processor, prompt, text)
            bare, _ = log_likelihood(model, processor, Prompt((bare_prompt or "Answer:",)), text)
            by = {
                "sum": score,
                "mean": score / tokens,
                "byte": score / len(text.strip()),
                "unconditional": score - bare,
            }
            expected.append(by[normalisation])
        assert answer.scores == pytest.approx(expected, abs=1e-4)
        assert answer.text == candidates[expected.index(max(expected))].strip()


def test_marginal_ranking_compares_with_other_images(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, toy_data: Path
) -> None:
    images = sorted((toy_data / "test/images").glob("*.png"))
    names = ["a blue square", "red triangle circle"]
    decoding = Decoding("rank", normalisation="marginal", candidates=names)
    task = Task("", tasks.DatasetFiles("jsonl", ""), tasks.Prompt("<image>A"), decoding=decoding, metrics=["accuracy"])
    items = [Item(str(place), images=(image,)) for place, image in enumerate(images[:2])]
    others = images[2:5]
    shot = (images[5], "A dog\n")  # the second item has a demonstration, which stays
    built = [Prompt((images[0], "A"), (1,)), Prompt((*shot, images[1], "A"), (2, 3))]
    answers = in_order(methods.answers(EvaluatedModel(Runner(model, processor)), task, items, built, 0, others))
    for prompt, before, answer in zip(built, ((), shot), answers, strict=True):
        expected = []
        for name in names:
            own, _ = log_likelihood(model, processor, prompt, f" {name}")
            rest = [log_likelihood(model, processor, Prompt((*before, other, "A")), f" {name}")[0] for other in others]
            expected.append(own - torch.tensor(rest, dtype=torch.float64).exp().mean().log().item())
        assert answer.scores == pytest.approx(expected, abs=1e-4)
        assert answer.text == names[expected.index(max(expected))]


@torch.no_grad()
def log_likelihood(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompt: Prompt, text: str
) -> tuple[float, int]:
    """The plain way: the whole sequence in one forward pass, alone."""
    encoded = inputs(model, processor, prompt)
    target = torch.tensor([processor.encode_text(text)])
    ids = torch.cat([encoded["input_ids"], target], dim=1)
    logits = model(input_ids=ids, pixel_values=encoded.get("pixel_values")).logits.log_softmax(-1)
    start = encoded["input_ids"].shape[1]
    return float(logits[0, start - 1 : -1].gather(1, target.T).sum()), target.shape[1]


def test_sampling_does_not_depend_on_the_batch(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt]
) -> None:
    decoding = Decoding(method="sample", temperature=2.0, top_p=0.95, max_new_tokens=6)
    seeds = list(range(len(prompts)))
    together = in_order(EvaluatedModel(Runner(model, processor)).generate(prompts, decoding, seeds))
    alone = in_order(EvaluatedModel(Runner(model, processor), batch_rows=1).generate(prompts, decoding, seeds))
    other = in_order(EvaluatedModel(Runner(model, processor)).generate(prompts, decoding, [seed + 1 for seed in seeds]))
    assert together == alone
    assert together != other


def test_each_image_is_encoded_once(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt]
) -> None:
    runner = Runner(model, processor)
    asked = EvaluatedModel(runner, batch_rows=2)
    for _ in range(2):
        list(asked.generate(prompts, Decoding(max_new_tokens=1), [0] * len(prompts)))
    assert runner.features.encoded["image"] == 4


def test_the_feature_store_forgets_but_stays_right(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt]
) -> None:
    runner = Runner(model, processor, feature_bytes=1)
    texts = in_order(
        EvaluatedModel(runner, batch_rows=4).generate(prompts, Decoding(max_new_tokens=4), [0] * len(prompts))
    )
    assert texts == one_by_one(model, processor, prompts, max_new_tokens=4)
    assert runner.features.encoded["image"] > 4


def test_unreadable_image_is_named(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, tmp_path: Path
) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG not really")
    with pytest.raises(ValueError, match=r"broken\.png: not a readable image"):
        list(EvaluatedModel(Runner(model, processor)).generate([Prompt((path, "An image of"))], Decoding(), [0]))


def test_nothing_is_cut_silently(
    model: KosmosForConditionalGeneration, processor: KosmosProcessor, prompts: list[Prompt]
) -> None:
    asked = EvaluatedModel(Runner(model, processor))
    long = Prompt(("is it a red circle " * 80,))
    for answers in (asked.generate([long], Decoding(), [0]), asked.log_likelihoods([Pair(long, "yes")])):
        with pytest.raises(ValueError, match=r"takes \d+ tokens, the model 256"):
            next(answers)
