"""Every document stays as it is or is counted, whatever runs it and whatever kills it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kosmos.cli import main
from kosmos_data import Corpus, Document, Image, Text, write_shards
from kosmos_data.check import check_corpus
from kosmos_data.document import Entity
from kosmos_data.shards import ShardWriter

pytest.importorskip("datatrove")
pytest.importorskip("py3langid")

from kosmos_data.clean import stages
from kosmos_data.clean.manifest import Manifest
from kosmos_data.clean.options import CleanOptions
from kosmos_data.clean.pipeline import clean, look
from kosmos_data.web.ledger import DOCUMENTS, Ledger, read_ledger
from kosmos_data.web.ledger_report import write_report
from kosmos_data.web.options import Execution
from kosmos_data.web.rules import HeldOut

from ..killing import KillAt

TEST = {"items": [{"question": "Which of the seven lamps stood in the northern window when the frost came down"}]}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> CleanOptions:
    """The source's faults by name, the rest as it is by default."""
    path = tmp_path_factory.mktemp("test") / "test.json"
    path.write_text(json.dumps(TEST))
    leave_out = ["GitHub", "arXiv", "PubMed Central"]
    chosen = CleanOptions(leave_out=leave_out, held_out=HeldOut([str(path)]), documents_per_shard=6)
    return replace(chosen, execution=Execution(workers=1))


@pytest.fixture(scope="module")
def made(soiled_corpus: Path, options: CleanOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, cleaned in one task by one process."""
    out = tmp_path_factory.mktemp("made") / "out"
    clean(soiled_corpus, out, replace(options, tasks=1))
    return out


def files(out: Path) -> dict[str, bytes]:
    """What a corpus consists of, without the work folder."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]


def test_every_document_stays_as_it_is_or_goes_for_its_reason(soiled: Any, made: Path) -> None:
    written = lines(made)
    assert {(row["key"], row["reason"], row.get("instead", "")) for row in written} == set(soiled.gone)
    numbers = {document.key: number for number, document in enumerate(soiled.documents)}
    assert [row["number"] for row in written] == sorted(numbers[key] for key, _, _ in soiled.gone)
    gone = {key for key, _, _ in soiled.gone}
    assert list(Corpus(made)) == [document for document in soiled.documents if document.key not in gone]
    assert all(report.good for report in check_corpus(made, decode_images=False))
    ledger = read_ledger(made)
    ledger.check()
    assert (ledger.entered[DOCUMENTS], ledger.kept[DOCUMENTS]) == (len(soiled.documents), len(Corpus(made)))
    counts = {reason: rule.count for _, reason, rule in ledger.dropped(DOCUMENTS)}
    assert counts == Counter(reason for _, reason, _ in soiled.gone)
    assert [shard.documents for shard in Corpus(made).shards][:-1] == [6] * (len(Corpus(made).shards) - 1)
    assert not (made / "work" / "documents").exists()


@pytest.mark.parametrize(("tasks", "workers"), [(4, 1), (3, 2)])
def test_tasks_and_workers_change_no_byte(
    soiled_corpus: Path, made: Path, options: CleanOptions, tmp_path: Path, tasks: int, workers: int
) -> None:
    clean(soiled_corpus, tmp_path / "out", replace(options, tasks=tasks, execution=Execution(workers=workers)))
    assert files(tmp_path / "out") == files(made)


KILLS = [
    KillAt(Manifest, "add", 4),  # in the middle of a task
    KillAt(Manifest, "write", 2),  # verdicts written, numbers not
    KillAt(stages, "select"),
    KillAt(Ledger, "write"),  # of the selection
    KillAt(ShardWriter, "write", 9),  # in the second shard
    KillAt(stages, "index_shards"),
    KillAt(stages.shutil, "rmtree", 1),  # everything written, not cleaned up
]


def test_killed_at_every_stage_and_started_again(
    soiled_corpus: Path, made: Path, options: CleanOptions, tmp_path: Path
) -> None:
    chosen, out = replace(options, tasks=3), tmp_path / "out"
    for kill in KILLS:
        kill.during(clean, soiled_corpus, out, chosen)
    clean(soiled_corpus, out, chosen)
    assert files(out) == files(made)
    assert not list(out.glob("*.partial"))
    with pytest.raises(ValueError, match="holds a run with other options"):
        clean(soiled_corpus, out, replace(chosen, language="any"))


WORDS = st.sampled_from("the dog of a red house and the old river stone is not far from it by night".split())  # noqa: SIM905
TEXT = st.lists(WORDS, min_size=1, max_size=12).map(" ".join) | st.sampled_from(["", "...", "👍", "<PERSON> smiles"])
RECORD = st.fixed_dictionaries({"text": TEXT, "source": st.sampled_from(["a", "b", "c"])})
BROKEN = st.sampled_from(["{", "[1]", '{"no": "text"}', '{"text": 3}', '{"text": "\\ud800 lone"}'])


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(RECORD.map(json.dumps) | BROKEN, min_size=1, max_size=25), st.integers(1, 4))
def test_documents_and_counted_records_are_all_records(tmp_path: Path, records: list[str], tasks: int) -> None:
    import tempfile

    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    good = '{"text": "this one stays, since the river of the old house is long", "source": "a"}'
    (folder / "a.jsonl").write_text("\n".join([*records, good]) + "\n")
    chosen = CleanOptions(leave_out=["c"], tasks=tasks, execution=Execution(workers=1))
    done = clean(folder / "a.jsonl", folder / "out", chosen)
    assert done is not None
    counts = Counter({reason: rule.count for _, reason, rule in done.ledger.dropped(DOCUMENTS)})
    kept = list(Corpus(folder / "out"))
    assert len(kept) + counts.total() == len(records) + 1 == done.ledger.entered[DOCUMENTS]
    written = Counter(row["reason"] for row in lines(folder / "out"))
    assert all(written[reason] in (0, count) for reason, count in counts.items())
    texts = [document.text for document in kept]
    assert len(set(texts)) == len(texts)
    assert set(texts) <= {json.loads(record).get("text") for record in [*records, good] if record not in ("{", "[1]")}
    assert all(document.meta["source"] != "c" for document in kept)


def test_the_pile_without_its_programs(tmp_path: Path, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    names = ["Github", "ArXiv", "PubMed Central", "Pile-CC"]
    rows = [{"text": parts[n], "meta": {"pile_set_name": names[n % 4]}} for n in range(12)]
    (tmp_path / "pile.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    given = [str(tmp_path / "pile.jsonl"), "--leave-out", "github, arxiv,PubMed Central,StackExchange"]
    assert main(["data", "clean", *given, "--dry-run", "execution.workers=1"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no document is of StackExchange; the sources are: Github, ArXiv, PubMed Central, Pile-CC" in printed
    assert "source left out" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["pile.jsonl"]

    out = tmp_path / "out"
    assert main(["data", "clean", *given, "--out", str(out), "execution.workers=1"]) == 0
    assert [document.text for document in Corpus(out)] == parts[3:12:4]
    assert json.loads((out / "sources.json").read_text()) == dict.fromkeys(names, 3)
    ledger = read_ledger(out)
    assert ledger.entered[DOCUMENTS] == 13
    assert {reason: rule.count for _, reason, rule in ledger.dropped(DOCUMENTS)} == {
        "broken json": 1,
        "source left out": 9,
    }
    capsys.readouterr()
    assert main(["data", "report", str(out)]) == 0
    assert "source left out" in capsys.readouterr().out


def test_the_report_shows_what_went(soiled: Any, made: Path) -> None:
    page = write_report(made).read_text(encoding="utf-8")
    assert f"<b>{len(soiled.documents)}</b><span>documents read" in page
    for _, reason, rule in read_ledger(made).dropped(DOCUMENTS):
        assert all(example["url"] in page for _, example in rule.examples), reason
    assert "kept instead: longer" in page
    (made / "report.html").unlink()


def test_ids_of_entities_stay_with_their_documents(tmp_path: Path) -> None:
    documents = [Document(f"{n}", [Entity({"user": f"u{n % 3}"}), Text(f"the dog is {n}")]) for n in range(6)]
    documents[5] = Document("5", documents[2].segments)
    write_shards(tmp_path / "in", documents, 2)
    clean(tmp_path / "in", tmp_path / "out", CleanOptions(documents_per_shard=2, execution=Execution(workers=1)))
    assert list(Corpus(tmp_path / "out")) == documents[:5]
    assert (tmp_path / "out/entities.json").read_bytes() == (tmp_path / "in/entities.json").read_bytes()


def test_what_a_user_can_mend_is_named(tmp_path: Path, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "in", [Document("a", [Text(parts[0])])])
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "0.tar").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    source, out = str(tmp_path / "in"), ["--out", str(tmp_path / "out")]
    wrong = [
        ([source], "give --out FOLDER"),
        (["nowhere", *out], "nowhere: no such file or folder"),
        ([str(tmp_path / "tars"), *out], "first run: kosmos data index"),
        ([str(tmp_path), *out], "clean one at a time"),
        ([source, "--out", str(tmp_path / "full")], "is not empty and holds no run"),
        ([source, "--format", "txet", *out], "no format 'txet'"),
        ([source, "--held-out", "gone.json", *out], "gone.json: no such file"),
        ([source, *out, "language_confidence=3"], "it is a probability"),
        ([source, *out, "--language", "english"], "no language 'english'"),
        ([source, *out, "execution.workers=1", "--leave-out", "Github"], "no document names its source"),
        ([source, "--out", str(tmp_path / "empty"), "--language", "fr", "execution.workers=1"], "no document of 1 was"),
    ]
    for typed, message in wrong:
        assert main(["data", "clean", *typed]) == 2, typed
        assert message in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., list[str]]:
    """Keys that stay of documents cleaned with some options."""

    def keys(documents: list[Document], **chosen: Any) -> list[str]:
        root = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        write_shards(root, documents)
        options = CleanOptions(execution=Execution(workers=1), **chosen)
        dropped = look(root, options).ledger.dropped(DOCUMENTS)
        gone = {example["url"] for _, _, rule in dropped for _, example in rule.examples}
        return [document.key for document in documents if document.key not in gone]

    return keys


def test_persons_are_kept_where_asked_for(told: Callable[..., list[str]], drawing: Callable[..., bytes]) -> None:
    documents = [
        Document("a", [Image(drawing(1)), Text("<PERSON> smiles")]),
        Document("b", [Image(drawing(2)), Text("<person> is no such tag, and 1 < 2 > 0")]),
    ]
    assert told(documents) == ["b"]
    assert told(documents, person="keep") == ["a", "b"]
