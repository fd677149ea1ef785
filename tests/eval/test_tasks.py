"""Task files, prompts, demonstrations: strict keys, nested shots, no leak from the evaluated split."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from kosmos_eval import prompts, tasks
from kosmos_eval.demonstrations import DemonstrationPool
from kosmos_eval.items import Item
from kosmos_eval.readers import load_items
from kosmos_eval.tasks import Demonstrations, Task


@pytest.mark.parametrize("name", sorted(tasks.known()))
def test_every_task_loads_and_says_how_to_run_it(name: str) -> None:
    task = tasks.load(name)
    assert task.name == name
    assert task.description
    head = [line for line in tasks.known()[name].read_text().splitlines() if line.startswith("#")]
    assert any("command" in line and "kosmos eval" in line for line in head), name


def test_the_readme_s_example_is_a_task(repository: Path, tmp_path: Path) -> None:
    text = (repository / "eval/README.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "my_task.yaml").write_text(text)
    assert tasks.load(tmp_path / "my_task.yaml").name == "my_task"


def test_unknown_task_and_key_get_suggestions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'easy_vqa'"):
        tasks.load("easy_vqas")
    with pytest.raises(ValueError, match="did you mean 'metrics'"):
        tasks.load("easy_vqa", ["metric=[vqa]"])
    with pytest.raises(ValueError, match="did you mean 'vqa'"):
        tasks.load("easy_vqa", ["metrics=[vqaa]"])


def test_overrides_of_texts_and_lists_are_taken_as_they_are() -> None:
    task = tasks.load(
        "easy_vqa",
        ["dataset.images={split}/{image_id}.jpg", "prompt.template=<image>Q: {question} A:", "metrics=vqa,f1",
         "decoding.method=rank", "decoding.candidates=yes,no", 'prompt.separator="\\n\\n"', "demonstrations.split="],
    )  # fmt: skip
    assert task.dataset.images == "{split}/{image_id}.jpg"
    assert task.prompt.template == "<image>Q: {question} A:"
    assert task.prompt.separator == "\n\n"
    assert (task.metrics, task.decoding.candidates) == (["vqa", "f1"], ["yes", "no"])
    assert task.demonstrations.split == ""


def test_a_blank_at_the_end_of_the_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="ends in white space"):
        tasks.load("easy_vqa", ["prompt.template='Question: {question} Answer: '"])


def test_demonstrations_of_the_evaluated_split_are_refused() -> None:
    with pytest.raises(ValueError, match="the evaluated split"):
        tasks.load("easy_vqa", ["demonstrations.split=test"])


def test_template_fields_and_images_must_match(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names \{question\}, but item 1 has text"):
        prompts.build(task, Item("1", {"text": "x"}, (tmp_path / "a.png",), ("a",)))
    with pytest.raises(ValueError, match="1 <image> marks, item 1 has 0 images"):
        prompts.build(task, Item("1", {"question": "x"}, (), ("a",)))


def test_few_shot_prompt_has_the_layout_of_the_paper(task: Task) -> None:
    shot = Item("d", {"question": "one?"}, (Path("d.png"),), ("yes",))
    prompt = prompts.build(task, Item("q", {"question": "two?"}, (Path("q.png"),), ("no",)), [shot])
    assert prompt.text == "<image>Question: one? Answer: yes\n<image>Question: two? Answer:"
    assert prompt.segments[3] == Path("q.png")
    assert prompt.cuts == (3, 4)


def test_candidates_and_rationales_are_put_into_spans_too() -> None:
    span = prompts.Prompt((prompts.Span("is it {candidate}? {rationale}"), "{candidate} {rationale}"))
    filled = prompts.with_rationale(prompts.with_candidate(span, "red"), "{braces}")
    assert filled.segments == (prompts.Span("is it red? {braces}"), "red {braces}")


def test_draws_are_nested_and_depend_on_the_item_alone(task: Task, toy_data: Path) -> None:
    train, test = (load_items(task, toy_data, split) for split in ("train", "test"))
    pool = DemonstrationPool(task, train, test)
    for item in test:
        eight = pool.draw(item, 8)
        assert [shot.id for shot in pool.draw(item, 4)] == [shot.id for shot in eight[:4]]
        assert len({shot.images for shot in eight}) == 8
    again = DemonstrationPool(task, train, test)
    assert again.draw(test[-1], 8) == pool.draw(test[-1], 8)
    assert pool.draw(test[0], 8) != pool.draw(test[1], 8)
    other = dataclasses.replace(task, demonstrations=Demonstrations("train", seed=1))
    assert DemonstrationPool(other, train, test).draw(test[0], 8) != pool.draw(test[0], 8)


def test_shared_demonstrations_are_the_same_for_all_items(task: Task, toy_data: Path) -> None:
    shared = dataclasses.replace(task, demonstrations=Demonstrations("train", "shared"))
    train, test = (load_items(task, toy_data, split) for split in ("train", "test"))
    pool = DemonstrationPool(shared, train, test)
    assert len({tuple(shot.id for shot in pool.draw(item, 3)) for item in test}) == 1


def test_content_of_the_evaluated_split_never_demonstrates(task: Task, toy_data: Path, tmp_path: Path) -> None:
    """The leak that file names hide: a training image that is a byte-for-byte copy of a test image."""
    train, test = (load_items(task, toy_data, split) for split in ("train", "test"))
    copy = tmp_path / "innocent.png"
    copy.write_bytes(test[0].images[0].read_bytes())
    leak = Item("leak", {"question": "?"}, (copy,), ("red",))
    pool = DemonstrationPool(task, [*train[:6], leak], test)
    for item in test:
        assert "leak" not in [shot.id for shot in pool.draw(item, 3)]
    assert pool.leaking == {"leak"}


def test_rices_takes_the_nearest_images_nearest_last(task: Task, tmp_path: Path) -> None:
    values = {"a": 0.0, "b": 0.2, "c": 1.5, "q": 0.05}
    items = {}
    for name, value in values.items():
        path = tmp_path / f"{name}.png"
        Image.new("RGB", (2, 2), (int(100 * value), 0, 0)).save(path)
        items[name] = Item(name, {"question": "?"}, (path,), ("yes",))

    def embed(paths: list[Path]) -> torch.Tensor:
        angles = torch.tensor([values[path.stem] for path in paths])
        return torch.stack([angles.cos(), angles.sin()], dim=-1)

    rices = dataclasses.replace(task, demonstrations=Demonstrations("train", "rices"))
    pool = DemonstrationPool(rices, [items["c"], items["a"], items["b"]], [items["q"]], embed)
    assert [shot.id for shot in pool.draw(items["q"], 3)] == ["c", "b", "a"]
    with pytest.raises(ValueError, match="needs images"):
        DemonstrationPool(rices, [Item("t", {}, (), ("a",))], [items["q"]], embed)


def test_shuffling_skips_equal_images(task: Task, tmp_path: Path) -> None:
    paths = []
    for i, color in enumerate(["red", "red", "blue", "blue", "green"]):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (2, 2), color).save(paths[-1])
    items = [Item(str(i), {}, (path,), ("x",)) for i, path in enumerate(paths)]
    swapped = prompts.shuffled_images(task, items, seed=0)
    for item in items:
        assert swapped[item.images][0].read_bytes() != item.images[0].read_bytes()
    with pytest.raises(ValueError, match="all are alike"):
        prompts.shuffled_images(task, items[:2], seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("decoding.max_new_tokens=0", "decoding.max_new_tokens 0 must be at least 1"),
        ("decoding.num_beams=-1", "decoding.num_beams -1 must be at least 1"),
        ("decoding.temperature=0", "decoding.temperature 0.0"),
        ("decoding.temperature=nan", "decoding.temperature nan"),
        ("decoding.length_penalty=inf", "length_penalty inf: finite numbers"),
        ("decoding.top_p=1.5", "decoding.top_p 1.5 must lie above 0 and up to 1"),
    ],
)
def test_decoding_that_cannot_be(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.load("vqa", [change])
