"""``kosmos eval rate``: what is read and refused, what is written down, and who won."""

from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kosmos.cli import main
from kosmos_eval.rating import judgements, report
from kosmos_eval.rating.agreement import krippendorff_alpha, same_share, win_rate
from kosmos_eval.rating.judgements import Judgement
from kosmos_eval.rating.session import Session
from kosmos_eval.rating.texts import Pairs, read_pairs

INPUTS = {"one": "aaaa", "two": "bbbb"}


def lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def texts(path: Path, keys: range, word: str) -> Path:
    return lines(path, [{"key": key, "prompt": f"tale {key}", "text": f"{word} {key}"} for key in keys])


def judgement(item: int, rater: str, winner: str | None, **changed: Any) -> Judgement:
    """A judgement whose left text is of system ``one``."""
    word = {"one": "left", "two": "right", None: "tie"}[winner]
    given: dict[str, Any] = {"judgement": word, "winner": winner, "left": "one", "right": "two", "seed": 0}
    given |= {"time": "2026-01-01T00:00:00+00:00", "question": "Which?", "inputs": INPUTS} | changed
    return Judgement(str(item), rater, **given)


def kept(path: Path, made: list[Judgement]) -> Path:
    for one in made:
        judgements.append(path, one)
    return path


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_without_ties_is_wilsons(wins: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, 857–872, table I, method 3."""
    rate, *interval = win_rate([1.0] * wins + [0.0] * (n - wins))
    assert rate == pytest.approx(wins / n)
    assert interval == pytest.approx([low, high], abs=5e-5)


def test_a_tie_counts_half_and_narrows_the_interval() -> None:
    """By hand: n = 8, mean 0.625; squares 3·0.375² + 4·0.125² + 0.625² = 0.875, and (0.875 + 0.5) / 10 = 0.1375; over
    0.625 · 0.375 that is 44/75, so 8 items are as good as 13.636. Then z² / n = 0.28171, the middle is
    (0.625 + 0.14086) / 1.28171 = 0.59753, the half 1.95996 · √(0.017188 + 0.005165) / 1.28171 = 0.22862."""
    rate, low, high = win_rate([1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0])
    assert (rate, low, high) == pytest.approx((0.625, 0.59753 - 0.22862, 0.59753 + 0.22862), abs=2e-5)


@pytest.mark.parametrize(("wins", "ties", "n"), [(0.5, 0.0, 30), (0.3, 0.5, 40), (0.55, 0.3, 60), (0.05, 0.9, 100)])
def test_interval_holds_what_it_promises(wins: float, ties: float, n: int) -> None:
    """Of 2,000 drawn studies about 95 % have the truth in their interval, and no interval is far too wide."""
    draw, truth = random.Random(0), wins + ties / 2
    found = [win_rate(draw.choices([1, 0.5, 0], [wins, ties, 1 - wins - ties], k=n)) for _ in range(2000)]
    assert 0.935 <= sum(low <= truth <= high for _, low, high in found) / len(found) <= 0.995


def test_alpha_of_the_published_example() -> None:
    """Krippendorff 2011, section C: four observers, twelve units, missing values; nominal alpha 0.743."""
    table = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[row[place] for row in table if row[place] != "."] for place in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None
    assert krippendorff_alpha([["a"], ["b"]]) is None
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1


def test_same_share_by_hand() -> None:
    assert same_share([["a", "a", "b"], ["a", "b"], ["c"]]) == pytest.approx(1 / 4)
    assert same_share([["a"]]) is None


def test_a_report_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two raters, four items; ann changed her mind about item 1 and skipped item 4; item 5 is the same in both."""
    first = kept(tmp_path / "a.jsonl", [
        judgement(1, "ann", "two"), judgement(1, "ann", "one"), judgement(2, "ann", "one"), judgement(3, "ann", None),
        judgement(4, "ann", None, judgement="skip"), judgement(5, "ann", None, same=True),
    ])  # fmt: skip
    second = kept(tmp_path / "b.jsonl", [
        judgement(1, "bob", "one"), judgement(2, "bob", "two"), judgement(3, "bob", None), judgement(4, "bob", "two"),
    ])  # fmt: skip
    found = report.summary([first, second])
    assert found["raters"]["ann"] | {"low": 0, "high": 0} == {
        "one": 2, "two": 0, "ties": 2, "skips": 1, "same": 1, "items": 4, "win_rate": 0.75, "low": 0, "high": 0
    }  # fmt: skip
    assert found["raters"]["bob"]["win_rate"] == 1.5 / 4
    assert found["all"]["win_rate"] == pytest.approx((1 + 0.5 + 0.5 + 0 + 0.5) / 5)
    assert (found["shared"], found["same"]) == (3, pytest.approx(2 / 3))
    # values: one 3, two 1, tie 2; n = 6; disagreeing 2: alpha = 1 − 5 · 2 / (36 − 9 − 1 − 4)
    assert found["alpha"] == pytest.approx(1 - 10 / 22)
    assert (found["decided"], found["left"]) == (5, 3 / 5)
    assert main(["eval", "rate", "--report", str(first), str(second)]) == 0
    shown = capsys.readouterr().out
    assert "one against two, blind: Which?" in shown
    assert "alpha (nominal) 0.545; 67% of the pairs" in shown
    assert "A tie counts half" in shown
    assert "1 tie nobody was asked about" in shown
    assert [line.split()[:7] for line in shown.splitlines() if line.startswith("bob")] == [
        ["bob", "1", "2", "1", "0", "4", "0.375"]
    ]
    assert main(["eval", "rate", "--report", str(first), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"] == found["raters"]["ann"]


def test_what_is_cut_short_was_never_judged(tmp_path: Path) -> None:
    path = kept(tmp_path / "deep" / "r.jsonl", [judgement(1, "ann", "one")])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"item": "2", "ra')
    assert [one.item for one in judgements.read(path)] == ["1"]
    judgements.append(path, judgement(3, "ann", "two"))
    assert [one.item for one in judgements.read(path)] == ["1", "3"]
    path.write_bytes(whole.rstrip())  # an editor took the end of the line away
    judgements.append(path, judgement(3, "ann", "two"))
    assert [one.item for one in judgements.read(path)] == ["1", "3"]


def _append_many(path: Path, rater: str) -> None:
    for item in range(40):
        judgements.append(path, judgement(item, rater * 3000, "one"))


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    """Lines longer than a page of memory, from four processes at once, and each is there whole."""
    path, context = tmp_path / "r.jsonl", multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(path, rater)) for rater in "abcd"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(judgements.latest(judgements.read(path))) == 160


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """The limit of a file's size is what a full disk is to a write: it takes a part, then no more."""
    path = kept(tmp_path / "r.jsonl", [judgement(1, "ann", "one")])
    before = path.read_bytes()
    worker = multiprocessing.get_context("fork").Process(target=_append_to_limit, args=(path, len(before) + 40))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert path.read_bytes() == before


def _append_to_limit(path: Path, limit: int) -> None:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(OSError, match="no space"):
        judgements.append(path, judgement(2, "ann", "one"))


def pairs_of(tmp_path: Path, count: int) -> Pairs:
    one, two = (texts(tmp_path / f"{name}.jsonl", range(count), name) for name in INPUTS)
    return read_pairs(one, two)


def test_order_and_sides_are_drawn(tmp_path: Path) -> None:
    """For each rater others, the same again from the same seed, and each side about as often."""
    pairs, out = pairs_of(tmp_path, 400), tmp_path / "r.jsonl"
    ann, again, bob, other = (Session(pairs, *given, "?") for given in (  # type: ignore[arg-type]
        ("ann", out, 0), ("ann", out, 0), ("bob", out, 0), ("ann", out, 1),
    ))  # fmt: skip

    def drawn(session: Session) -> list[tuple[str, int]]:
        return [(pair.key, session.sides(pair)[0]) for pair in session.pairs]

    assert drawn(ann) == drawn(again)
    assert len({tuple(drawn(session)) for session in (ann, bob, other)}) == 3
    assert len({tuple(sorted(drawn(session))) for session in (ann, bob, other)}) == 3
    assert 160 < sum(side for _, side in drawn(ann)) < 240
    assert [pair.key for pair in ann.pairs] != [str(key) for key in range(400)]


def test_a_limit_leaves_everybody_the_same_items(tmp_path: Path) -> None:
    pairs_of(tmp_path, 50)
    drawn = [read_pairs(tmp_path / "one.jsonl", tmp_path / "two.jsonl", limit=5, seed=seed).pairs for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert {pair.key for pair in drawn[0]} != {pair.key for pair in drawn[2]}


def test_back_and_resumed(tmp_path: Path) -> None:
    """The later judgement counts, also for who comes again; with another seed a mark goes with its text."""
    pairs, out = pairs_of(tmp_path, 6), tmp_path / "r.jsonl"
    session = Session(pairs, "ann", out, 0, "?")
    session.judge(0, "left")
    session.judge(1, "skip")
    session.judge(0, "right")
    won = {pair.key: session.names[session.sides(pair)[1]] for pair in session.pairs[:1]}
    again = Session(pairs, "ann", out, 5, "?")
    place = next(place for place, pair in enumerate(again.pairs) if pair.key in won)
    side = {"left": 0, "right": 1}[str(again.judged(place))]
    assert again.names[again.sides(again.pairs[place])[side]] == won[again.pairs[place].key]
    assert again.counts() == {"right": 1, "skip": 1}
    assert Session(pairs, "bob", out, 0, "?").counts() == {}
    resumed = Session(pairs, "ann", out, 0, "?")
    assert (resumed.after(), resumed.skipped(), resumed.after(4)) == (2, 1, 5)


def test_the_same_text_is_a_tie_nobody_is_asked_about(tmp_path: Path) -> None:
    one = lines(tmp_path / "one.jsonl", [{"id": "a", "text": "red  \n"}, {"id": "b", "text": "red"}])
    two = lines(tmp_path / "two.jsonl", [{"id": "a", "text": "red"}, {"id": "b", "text": "blue"}])
    for _ in range(2):
        session = Session(read_pairs(one, two), "ann", tmp_path / "r.jsonl", 0, "?")
        session.add_ties()
        assert [pair.key for pair in session.pairs] == ["b"]
    (tie,) = judgements.read(tmp_path / "r.jsonl")
    assert (tie.item, tie.judgement, tie.same) == ("a", "tie", True)


def picture(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    return path.name


def test_plain_lines_with_pictures_and_turns(tmp_path: Path) -> None:
    """Pictures below the file's folder, a conversation as context; what one file lacks the other gives."""
    picture(tmp_path / "photos" / "1.png")
    turns = [{"role": "user", "content": "Hi"}, "Hello", {"speaker": "B", "text": "Well?"}]
    record = {"key": 1, "prompt": "Say", "context": turns, "image": "photos/1.png", "text": "a"}
    one = lines(tmp_path / "one.jsonl", [record])
    two = lines(tmp_path / "two.jsonl", [{"key": "1", "text": "ignored", "prediction": "b"}])
    for found in (read_pairs(one, two), read_pairs(two, one)):
        (pair,) = found.pairs
        assert sorted(pair.texts) == ["a", "b"]
        assert (pair.prompt, pair.context) == ("Say", "user: Hi\nHello\nB: Well?")
        assert pair.images == (tmp_path / "photos/1.png",)
        assert found.remarks == []


def test_the_shorter_prompt_is_shown_where_one_ends_as_the_other(tmp_path: Path) -> None:
    one = lines(tmp_path / "one.jsonl", [{"key": 1, "prompt": "Q: 1 A: 2\nQ: 3 A:", "text": "a"}])
    two = lines(tmp_path / "two.jsonl", [{"key": 1, "prompt": "Q: 3 A:", "text": "b"}])
    assert read_pairs(one, two).pairs[0].prompt == "Q: 3 A:"
    other = lines(tmp_path / "other.jsonl", [{"key": 1, "prompt": "Question: 3", "text": "b"}])
    found = read_pairs(one, other)
    assert found.pairs[0].prompt == "Q: 1 A: 2\nQ: 3 A:"
    assert found.remarks == ["1 were put to the two models in other words or pictures; shown are those of the first"]


def test_items_of_one_file_only_are_named(tmp_path: Path) -> None:
    one, two = texts(tmp_path / "one.jsonl", range(20), "x"), texts(tmp_path / "two.jsonl", range(15, 22), "y")
    found = read_pairs(one, two)
    assert sorted(int(pair.key) for pair in found.pairs) == list(range(15, 20))
    assert found.remarks == [f"15 in {one} only: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …", f"2 in {two} only: 20, 21"]


def test_unreadable_pictures_are_counted(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:45])
    names = ["good.png", "bad.png", "missing.png", "../outside.png"]
    picture(tmp_path.parent / "outside.png")
    records = [{"key": name, "image": name} for name in names]
    one = lines(tmp_path / "one.jsonl", [record | {"text": "a"} for record in records])
    two = lines(tmp_path / "two.jsonl", [record | {"text": "b"} for record in records])
    found = read_pairs(one, two)
    assert [pair.key for pair in found.pairs] == ["good.png"]
    (remark,) = found.remarks
    assert remark.startswith("3 left out, whose image cannot be read: ")
    assert all(name in remark for name in names[1:])


def bad(tmp_path: Path, what: str) -> tuple[list[str], str]:
    """A command that is a user's mistake, and what its one line must say."""
    one, two = texts(tmp_path / "one.jsonl", range(3), "x"), texts(tmp_path / "two.jsonl", range(3), "y")
    out = tmp_path / "ratings.jsonl"
    if what == "same file":
        return [str(one), str(one)], "byte for byte"
    if what == "same bytes":
        (tmp_path / "copy.jsonl").write_bytes(one.read_bytes())
        return [str(one), str(tmp_path / "copy.jsonl")], "byte for byte"
    if what == "no common key":
        return [str(one), str(texts(two, range(5, 7), "y"))], "no key in common; their first keys are '0' and '5'"
    if what == "no text":
        return [str(one), str(lines(two, [{"key": 1, "text": " "}]))], "holds no text"
    if what == "key twice":
        return [str(one), str(lines(two, [{"key": 1, "text": "a"}] * 2))], "two.jsonl:2: key '1' occurs twice"
    if what == "no key":
        return [str(one), str(lines(two, [{"text": "a"}]))], 'two.jsonl:1: no "key"'
    if what == "not JSON":
        two.write_text("{")
        return [str(one), str(two)], "two.jsonl:1: not valid JSON"
    if what == "no pictures":
        for path, word in ((one, "a"), (two, "b")):
            lines(path, [{"key": 1, "image": "none.png", "text": word}])
        return [str(one), str(two)], "no item is left: 1 left out, whose image cannot be read: 1 (first:"
    if what == "other inputs":
        kept(out, [judgement(1, "ann", "one")])
        return [str(one), str(two), "--out", str(out)], "is a rating of one (aaaa) and two (bbbb), not of one ("
    if what == "not ratings":
        return ["--report", str(one)], "one.jsonl:1: not a judgement of kosmos eval rate"
    if what == "no ratings":
        return ["--report", str(lines(out, []))], "no ratings; kosmos eval rate A B writes them"
    if what == "mixed ratings":
        made = [judgement(1, "ann", "one"), judgement(2, "ann", "one", inputs={"one": "aaaa", "two": "cccc"})]
        return ["--report", str(kept(out, made))], "two (cccc), not of one (aaaa) and two (bbbb)"
    if what == "a winner that did not win":
        out.write_text(json.dumps(vars(judgement(1, "ann", "one")) | {"winner": "two"}) + "\n")
        return ["--report", str(out)], "winner 'two' does not go with judgement 'left'"
    if what == "a limit of none":
        return [str(one), str(two), "--limit", "0"], "limit 0 must be at least 1"
    if what == "nobody":
        return [str(one), str(two), "--rater", " "], "the rater's name is empty"
    assert what == "a port that is none"
    return [str(one), str(two), "--out", str(out), "--port", "99999"], "port 99999 cannot be listened on"


MISTAKES = (
    "same file", "same bytes", "no common key", "no text", "key twice", "no key", "not JSON", "no pictures",
    "other inputs", "not ratings", "no ratings", "mixed ratings", "a winner that did not win", "a limit of none",
    "nobody", "a port that is none",
)  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_line(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, expected = bad(tmp_path, what)
    assert main(["eval", "rate", *command]) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize("command", [["a.jsonl"], ["--report", "r.jsonl", "--", "a"], ["a", "b", "--json"]])
def test_options_that_do_not_go_together(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "rate", *command])
    assert "usage: kosmos eval rate" in capsys.readouterr().err


def test_two_evaluations_are_compared(checkpoint: Path, toy_data: Path, tmp_path: Path) -> None:
    """Run folders as they are, few-shot prompts too: each item with its own picture, found where the run found it."""
    for name, tokens in (("short", 2), ("long", 6)):
        common = [
            "--tasks",
            "easy_vqa_caption",
            "--data",
            str(toy_data),
            "--out",
            str(tmp_path / name),
            "--shots",
            "0,2",
        ]
        assert (
            main(["eval", str(checkpoint), *common, "--name", name, "--set", f"decoding.max_new_tokens={tokens}"]) == 0
        )
    found = read_pairs(tmp_path / "short", f"b={tmp_path / 'long'}", shots=2)
    assert [system.name for system in found.systems] == ["short", "b"]
    assert (len(found.pairs), found.remarks) == (12, [])
    for pair in found.pairs:
        assert pair.images == (toy_data / "test" / "images" / f"{pair.key}.png",)
        assert pair.prompt == "An image of"
        assert pair.texts[1].startswith(pair.texts[0])
    mixed = read_pairs(
        tmp_path / "short/samples/short/easy_vqa_caption-0shot-image+text.jsonl", tmp_path / "long", shots=2
    )
    assert [pair.images for pair in mixed.pairs] == [pair.images for pair in found.pairs]
    assert mixed.remarks == []
