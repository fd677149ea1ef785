"""WARC files → shards: what is in them, and the same bytes for any tasks, workers, executor and after any kill."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import pytest

from kosmos_data import Corpus, Image, Text
from kosmos_data.check import check_corpus
from kosmos_data.cli import main as cli
from kosmos_data.shards import ShardWriter
from kosmos_data.web import stages
from kosmos_data.web.draft import page_key
from kosmos_data.web.ledger import IMAGES, KINDS, PAGES, PARAGRAPHS, RECORDS, Ledger, read_ledger
from kosmos_data.web.options import Execution, Slurm, WebOptions
from kosmos_data.web.page import url_name
from kosmos_data.web.pipeline import run
from kosmos_data.web.report import write_report
from kosmos_data.web.rules import SOURCES, ImageRules
from kosmos_data.web.selection import is_drawn

pytest.importorskip("fastwarc")
pytest.importorskip("datatrove")

from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets

from kosmos_data.web import engine
from kosmos_data.web.warc import WarcWriter

WORDS = (  # noqa: SIM905 - easier to read
    "the river of history and light that have turned with wonder to be seen across mountain valley garden window "
    "scientist letter village market painter stone music bridge harbour winter summer evening morning people house "
    "street forest island teacher captain engine silver copper cloud thunder field orchard ladder tower"
).split()


def picture(seed: int, size: tuple[int, int] = (96, 80)) -> PIL.Image.Image:
    """Overlapping rectangles, so that different seeds look different."""
    rng = random.Random(seed)
    image = PIL.Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
    draw = PIL.ImageDraw.Draw(image)
    for _ in range(12):
        x, y = (sorted(rng.randrange(side) for _ in range(2)) for side in size)
        draw.rectangle((x[0], y[0], x[1], y[1]), fill=tuple(rng.randrange(256) for _ in range(3)))
    return image


def encoded(image: PIL.Image.Image, form: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def paragraphs(seed: int, count: int = 4) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(30)).capitalize() + "." for _ in range(count)]


def html(title: str, texts: list[str], images: list[str]) -> bytes:
    """Text, image, text, image …, then the texts or images that are left."""
    body = ""
    for number in range(max(len(texts), len(images))):
        body += f"<p>{texts[number]}</p>\n" if number < len(texts) else ""
        body += f'<img src="{images[number]}" alt="{number}">\n' if number < len(images) else ""
    return f"<html lang=en><head><title>{title}</title></head><body><main>{body}</main></body></html>".encode()


@dataclass
class Web:
    """Three WARC files, and what must become of what is in them."""

    warcs: list[Path]
    bare: Path  # the pages without the images
    bytes_of: dict[str, bytes] = field(default_factory=dict)  # the images by address
    pages: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    singles: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Web:
    folder = tmp_path_factory.mktemp("warcs")
    web = Web([folder / f"{number}.warc.gz" for number in range(3)], folder / "bare.warc.gz")
    writers = [WarcWriter(path) for path in (*web.warcs, web.bare)]

    def image(seed: int, warc: int = 0, data: bytes | None = None) -> str:
        """Put an image into a WARC file, once; its address."""
        url = f"http://images.example/{seed}.png"
        if url not in web.bytes_of:
            web.bytes_of[url] = data or encoded(picture(seed))
            writers[warc].write(url, "image/png", web.bytes_of[url])
        return url

    def write(name: str, content_type: str, body: bytes, warc: int) -> str:
        for writer in (writers[warc], writers[3]):
            writer.write(f"http://site.example/{name}", content_type, body)
        return f"http://site.example/{name}"

    def page(name: str, seed: int, images: list[str], warc: int = 0, texts: list[str] | None = None) -> str:
        return write(name, "text/html; charset=utf-8", html(f"Page {name}", texts or paragraphs(seed), images), warc)

    logo = image(9000, 1)
    for number in range(12):  # ordinary pages, all with the logo, each picture in another file than its page
        shown = [image(10 * number + at, (number + 1) % 3) for at in range(2)]
        web.kept.add(page(f"plain{number}", number, [logo, *shown], number % 3))
    web.images["on too many pages"] = 12

    web.kept.add(page("seven", 100, [image(1000 + at) for at in range(7)]))
    web.images["beyond the first few"] = 2
    web.kept.add(page("twice", 101, [image(1010), image(1011), image(1010)]))
    web.images["again on the same page"] = 1
    web.kept.add(page("original", 102, [image(1020), image(1021)]))
    small = encoded(picture(1020).resize((80, 67)), "JPEG", quality=80)
    web.kept.add(page("copier", 103, [image(1030, 2, small), image(1031), image(1032)], 2))
    web.images["copy of an image on another page"] = 1
    gap = "http://images.example/nowhere.png"
    dot = image(1040, 0, encoded(picture(1, (1, 1))))
    web.kept.add(page("gaps", 104, [gap, image(1041), dot, image(1042)], 1))
    web.images |= {"image missing": 1, "too small": 1}

    page("copy-of-plain3", 3, [image(1050)], 2, [*paragraphs(3)[:3], paragraphs(3)[3][:-20] + " and more."])
    page("plain4", 400, [image(1060)], 1)  # captured again, with fewer images
    page("empty", 105, [])
    french = "Le vieux pont fut construit par les habitants du village pour traverser la grande rivière au printemps."
    page("french", 0, [image(1070), image(1071)], texts=[french] * 2 + [french.replace("pont", "mur")] * 2)
    page("short", 0, [image(1080)], texts=["Too short to be a page of the corpus that we want."])
    page("nothing-to-see", 106, [gap], 2)
    write("binary", "text/html", bytes(range(256)) * 8, 1)
    write("style.css", "text/css", b"p {}", 1)
    web.pages = {
        "near-duplicate text": 1,
        "same address": 1,
        "no image": 1,
        "other language": 1,
        "too few words": 1,
        "no usable image": 1,
        "not HTML": 1,
    }
    web.images["image missing"] += 1
    for number in range(10):
        web.singles.append(page(f"single{number}", 200 + number, [image(2000 + number)], number % 3))
    for writer in writers:
        writer.__exit__()
    return web


def options(tasks: int = 0, **execution: Any) -> WebOptions:
    return WebOptions(tasks=tasks, documents_per_shard=6, execution=Execution(**execution))


def files(out: Path) -> dict[str, bytes]:
    """What a corpus consists of, without what comes and goes."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def made(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, made in one task by one process."""
    out = tmp_path_factory.mktemp("made") / "corpus"
    run(web.warcs, out, options(tasks=1, workers=1))
    return out


def test_every_page_and_image_ends_where_it_must(web: Web, made: Path) -> None:
    ledger = read_ledger(made)
    ledger.check()
    drawn = {url for url in web.singles if is_drawn(page_key(url).encode(), 0.5)}
    assert 0 < len(drawn) < len(web.singles)
    pages = web.pages | {"one image, not drawn": len(web.singles) - len(drawn)}
    assert {reason: rule.count for _, reason, rule in ledger.dropped(PAGES)} == pages
    images = {reason: rule.count for _, reason, rule in ledger.dropped(IMAGES)}
    for reason, count in web.images.items():
        assert images.pop(reason) == count, reason
    assert list(images) == ["its page was dropped"] * bool(images)
    assert all(reason in SOURCES for reason in web.pages | web.images if reason not in ("not HTML", "image missing"))

    corpus = Corpus(made)
    assert {document.meta["url"] for document in corpus} == web.kept | drawn
    assert (ledger.kept[PAGES], ledger.kept[IMAGES]) == (len(corpus), sum(len(d.images) for d in corpus))
    assert ledger.kept[PARAGRAPHS] == sum(len(document.text.split("\n")) for document in corpus)
    assert ledger.entered[RECORDS] == ledger.entered[PAGES] + 1  # the style sheet
    assert [shard.documents for shard in corpus.shards] == [6] * (len(corpus) // 6) + [len(corpus) % 6]
    assert [document.key for document in corpus] == sorted(document.key for document in corpus)
    assert all(report.good for report in check_corpus(made))
    assert not (made / "work" / "documents").exists()


def test_documents_are_the_pages_in_reading_order(made: Path) -> None:
    documents = {document.meta["url"].rsplit("/", 1)[-1]: document for document in Corpus(made)}
    expected = [text for number, text in enumerate(paragraphs(5))]
    plain = documents["plain5"]  # text logo text image text image text, without the logo
    assert [s.text for s in plain.segments if isinstance(s, Text)] == ["\n".join(expected[:2]), *expected[2:]]
    assert [s.data for s in plain.segments if isinstance(s, Image)] == [encoded(picture(50 + at)) for at in range(2)]
    assert [type(segment) for segment in plain.segments] == [Text, Image, Text, Image, Text]
    assert plain.meta == {
        "url": "http://site.example/plain5",
        "title": "Page plain5",
        "images": [{"url": f"http://images.example/{50 + at}.png", "alt": str(at + 1)} for at in range(2)],
    }
    assert [image.data for image in documents["seven"].images] == [encoded(picture(1000 + at)) for at in range(5)]
    assert documents["plain4"].images  # the capture with more images was kept
    assert len(documents["copier"].images) == 2  # the smaller copy went
    assert len(documents["original"].images) == 2


@pytest.mark.parametrize(("tasks", "workers"), [(2, 1), (3, 2)])
def test_tasks_and_workers_change_no_byte(web: Web, made: Path, tmp_path: Path, tasks: int, workers: int) -> None:
    run(list(reversed(web.warcs)), tmp_path / "out", options(tasks, workers=workers))
    assert files(tmp_path / "out") == files(made)


def test_a_finished_run_is_not_made_again_and_another_is_refused(web: Web, made: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    ledger = run(web.warcs, made, options(tasks=1, workers=2))  # what decides no byte may change
    assert ledger is not None
    assert ledger.to_json() == (made / "ledger.json").read_text()
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    with pytest.raises(ValueError, match="other options"):
        run(web.warcs, made, WebOptions(tasks=1, images=ImageRules(min_side=9)))
    with pytest.raises(ValueError, match="other tasks"):
        run(web.warcs, made, options(tasks=2))
    with pytest.raises(ValueError, match="other warcs"):
        run(web.warcs[:2], made, options(tasks=1))
    (tmp_path / "a file").touch()
    with pytest.raises(ValueError, match="not empty"):
        run(web.warcs, tmp_path)
    with pytest.raises(ValueError, match="given twice"):
        run([*web.warcs, web.warcs[0]], tmp_path / "out")
    with pytest.raises(ValueError, match="no WARC"):
        run([], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="missing"):
        run([tmp_path / "missing.warc"], tmp_path / "out")


def test_images_that_were_fetched_make_the_same_corpus(web: Web, made: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images were nowhere: kosmos data fetch .*missing_images.txt"):
        run([web.bare], tmp_path / "first", options(workers=1))
    missing = (tmp_path / "first" / "missing_images.txt").read_text().splitlines()
    assert missing == sorted(missing)
    nowhere = (made / "missing_images.txt").read_text().splitlines()
    assert nowhere == ["http://images.example/nowhere.png"]
    assert set(missing) < {*web.bytes_of, *nowhere}  # images of pages whose text is bad are not asked for
    (tmp_path / "pictures").mkdir()
    for url in set(missing) - set(nowhere):
        (tmp_path / "pictures" / url_name(url)).write_bytes(web.bytes_of[url])
    chosen = options(workers=1)
    chosen.image_folder = str(tmp_path / "pictures")
    run([web.bare], tmp_path / "out", chosen)
    assert files(tmp_path / "out") == files(made)
    chosen.image_folder = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="nothing"):
        run([web.bare], tmp_path / "third", chosen)


def test_many_lists_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_OPEN_FILES", 3)
    for number in range(10):
        lines = sorted({f"{(number * 7 + at * 3) % 11:02d}\n" for at in range(4)})
        (tmp_path / f"{number}.txt").write_text("".join(lines))
    stages._merge_lines(sorted(tmp_path.glob("*.txt")), tmp_path / "all")
    assert (tmp_path / "all").read_text().split() == [f"{number:02d}" for number in range(11)]
    assert len(list(tmp_path.iterdir())) == 11


def test_no_page_left_is_an_error_with_a_ledger(tmp_path: Path) -> None:
    with WarcWriter(tmp_path / "a.warc.gz") as writer:
        writer.write("http://x.example/", "text/html", html("T", paragraphs(1), []))
    with pytest.raises(ValueError, match="no page of 1 was left"):
        run([tmp_path / "a.warc.gz"], tmp_path / "out", options(workers=1))
    assert read_ledger(tmp_path / "out").count(PAGES, "no image") == 1
    assert "no image" in write_report(tmp_path / "out").read_text()


# Killed runs -------------------------------------------------------------------------------------------------------


@dataclass
class KillAt:
    """Kills the process, as by ``kill -9``, at a call of a function; before it does anything."""

    owner: Any
    name: str
    call: int = 1

    def run(self, warcs: list[Path], out: Path, chosen: WebOptions) -> None:
        original, left = getattr(self.owner, self.name), self.call

        def dying(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        setattr(self.owner, self.name, dying)
        run(warcs, out, chosen)


KILLS = [
    KillAt(ShardWriter, "write", 4),  # in the middle of a WARC file
    KillAt(stages._Manifest, "write"),  # documents written, manifest not
    KillAt(PipelineExecutor, "mark_rank_as_completed", 2),  # all written, the mark not
    KillAt(MinhashDedupBuckets, "get_worker_hash_range", 5),
    KillAt(stages, "select"),
    KillAt(Ledger, "write"),
    KillAt(ShardWriter, "write", 9),  # in the second shard
    KillAt(Path, "replace", 4),  # offsets moved, their tar not
    KillAt(stages, "write_index"),
    KillAt(stages.shutil, "rmtree"),  # everything written, not cleaned up
]


def test_killed_at_every_stage_and_started_again(web: Web, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for kill in KILLS:
        process = multiprocessing.get_context("fork").Process(
            target=kill.run, args=(web.warcs, out, options(3, workers=1))
        )
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"{kill} was not reached"
    run(web.warcs, out, options(3, workers=1))
    assert files(out) == files(made)
    assert not list(out.glob("*.partial"))


def _children(pid: int) -> set[int]:
    """All processes below ``pid``."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(what: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.005)
    raise AssertionError("it did not happen")


@pytest.fixture
def started(web: Web, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command with two workers, in a process of its own."""
    command = [sys.executable, "-m", "kosmos.cli", "data", "web", *map(str, web.warcs), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "documents_per_shard=6", "execution.workers=2"], stderr=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def test_a_killed_worker_is_replaced_and_workers_end_with_a_killed_run(
    web: Web, made: Path, tmp_path: Path, started: subprocess.Popen[bytes]
) -> None:
    work = tmp_path / "out" / "work"
    _wait(lambda: list((work / "documents").glob("*.partial/*.tar.partial")))  # a task is being extracted
    children = _children(started.pid)
    workers = children - {pid for pid in children if _children(pid)}  # not the fork server, which is their parent
    os.kill(max(workers), signal.SIGKILL)
    done = work / "logs" / "2-extract" / "completions"
    _wait(lambda: started.poll() is not None or len(list(done.glob("*"))) == 3)
    children |= _children(started.pid)
    started.kill()
    assert started.wait() == -signal.SIGKILL, "it ended before it was killed"
    _wait(lambda: not any(map(_alive, children)), 20)
    run(web.warcs, tmp_path / "out", options(workers=1))
    assert files(tmp_path / "out") == files(made)


def test_a_stage_does_not_start_on_half_an_input(tmp_path: Path) -> None:
    (tmp_path / "completions").mkdir()
    for task in (0, 2):
        (tmp_path / "completions" / f"{task:05d}").touch()
    with pytest.raises(RuntimeError, match=r"1 of 3 tasks .* not done: \[1\]"):
        engine.AllDone(str(tmp_path), 3)(None, 0, 1)
    engine.AllDone(str(tmp_path), 1)(None, 0, 1)


def _fail(data: None, rank: int, world_size: int) -> None:
    if rank == 1:
        raise OSError("the disk is full")


def _die(data: None, rank: int, world_size: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_task_stops_the_run_and_names_its_log(tmp_path: Path, workers: int) -> None:
    failing = [engine.Stage("first", [_fail], 3), engine.Stage("second", [_fail], 1)]
    with pytest.raises(OSError, match=r"stage first failed: the disk is full \(logs: .*first/logs\)"):
        engine.run_stages(failing, tmp_path, Execution(workers=workers), engine.Progress(disable=True))
    assert "the disk is full" in (tmp_path / "logs" / "first" / "logs" / "task_00001.log").read_text()
    assert not (tmp_path / "logs" / "second").exists()


def test_workers_that_always_die_are_not_started_for_ever(tmp_path: Path) -> None:
    stage = engine.Stage("deadly", [_die], 2)
    with pytest.raises(RuntimeError, match=r"workers died .* out of memory"):
        engine.run_stages([stage], tmp_path, Execution(workers=2), engine.Progress(disable=True))


# Slurm and Ray -----------------------------------------------------------------------------------------------------

SBATCH = """#!{python}
# Runs the job at once, as Slurm would later: every element of the array, unless a job it depends on has failed.
import json, os, re, subprocess, sys
from pathlib import Path
folder = Path(__file__).parent
script = Path(sys.argv[-1]).read_text()
jobs = json.loads((folder / "jobs.json").read_text())
name = re.search("--job-name=(.*)", script).group(1)
job = {{"name": name, "args": sys.argv[1:-1], "script": script, "failed": False, "output": ""}}
waits = re.findall("--dependency=after(ok|any):([0-9]+)", " ".join(sys.argv))
if "merge_stats" not in script:
    job["failed"] = name in os.environ.get("FAKE_LOST", "") or any(
        jobs[int(after)]["failed"] and how == "ok" and name != "kosmos-3-match" for how, after in waits)
    if not job["failed"]:
        last = int(re.search("--array=0-([0-9]+)", script).group(1))
        for element in range(last + 1):
            env = os.environ | {{"SLURM_ARRAY_TASK_ID": str(element), "SLURM_NODELIST": "here", "RUN_OFFSET": "0"}}
            ran = subprocess.run(["bash", sys.argv[-1]], env=env, capture_output=True, text=True)
            job["failed"] |= ran.returncode != 0
            job["output"] += ran.stdout + ran.stderr
jobs.append(job)
(folder / "jobs.json").write_text(json.dumps(jobs))
print("Submitted batch job", len(jobs) - 1)
"""
SRUN = '#!/bin/bash\nwhile [[ $1 != launch_pickled_pipeline ]]; do shift; done\nexec "$@"\n'


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Commands that look like Slurm's; calling the fixture gives the jobs so far."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {"sbatch": SBATCH.format(python=sys.executable), "srun": SRUN, "scontrol": "#!/bin/bash\necho here\n"}
    for name, program in programs.items():
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)
    (folder / "jobs.json").write_text("[]")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return lambda: [job for job in json.loads((folder / "jobs.json").read_text()) if "merge_stats" not in job["script"]]


@pytest.mark.slow
def test_slurm_runs_the_same_and_notices_a_lost_stage(
    web: Web, made: Path, tmp_path: Path, slurm: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Slurm(partition="cpu", time="01:00:00", memory_gb=3, sbatch={"account": "lab"})
    chosen = options(2, executor="slurm", tasks_per_job=14, slurm=settings)
    monkeypatch.setenv("FAKE_LOST", "kosmos-2-extract")
    assert run(web.warcs, tmp_path / "out", chosen) is None
    names = ["1-index", "2-extract", "3-match", "4-select", "5-shards", "6-finish"]
    assert [job["name"] for job in slurm()] == [f"kosmos-{name}" for name in names]
    assert "2 of 2 tasks" in slurm()[2]["output"]  # it was started although its input is lost, and saw that
    assert slurm()[2]["failed"]
    assert not (tmp_path / "out" / "index.json").exists()
    script = slurm()[0]["script"]
    for line in ("partition=cpu", "time=01:00:00", "mem-per-cpu=3G", "array=0-0", "account=lab"):
        assert f"#SBATCH --{line}\n" in script

    monkeypatch.setenv("FAKE_LOST", "")
    ledger = run(web.warcs, tmp_path / "out", chosen)
    assert ledger is not None
    assert [job["name"] for job in slurm()[6:]] == [f"kosmos-{name}" for name in names[1:]]
    assert files(tmp_path / "out") == files(made)


def test_slurm_wants_a_partition(web: Web, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="partition"):
        run(web.warcs, tmp_path / "out", options(executor="slurm"))
    with pytest.raises(ValueError, match="choose one of local, slurm, ray"):
        Execution(executor="dask")


@pytest.mark.slow
def test_ray_runs_the_same(web: Web, made: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        run(web.warcs, tmp_path / "out", options(2, executor="ray", tasks_per_job=5, ray_memory_gb=0.5))
        failing = engine.Stage("lost", [engine.AllDone(str(tmp_path / "nothing"), 1)], 2)
        with pytest.raises(RuntimeError, match="stage lost failed: 1 of 1 tasks"):
            engine.run_stages([failing], tmp_path, Execution(executor="ray"), engine.Progress(disable=True))
    finally:
        ray.shutdown()
    assert files(tmp_path / "out") == files(made)


# The commands ------------------------------------------------------------------------------------------------------


def test_commands_make_and_report(web: Web, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "web.yaml"
    config.write_text("tasks: 1\ndocuments_per_shard: 6\nimages: {min_side: 70}\n")
    out = tmp_path / "out"
    words = [
        *map(str, web.warcs),
        "images.min_side=64",
        "--out",
        str(out),
        "--config",
        str(config),
        "execution.workers=1",
    ]
    assert cli(["web", *words]) == 0
    assert files(out) == files(made)
    assert "on too many pages" in capsys.readouterr().out
    assert cli(["report", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "OBELICS" in printed
    assert "report.html" in printed.replace("\n", "")
    with pytest.raises(ValueError, match="did you mean 'min_side'"):
        cli(["web", *map(str, web.warcs), "--out", str(tmp_path / "b"), "images.min_sid=64"])


def test_the_page_of_the_report_shows_everything_and_loads_nothing(made: Path) -> None:
    page = write_report(made).read_text(encoding="utf-8")
    ledger = read_ledger(made)
    for kind in KINDS:
        for _, reason, rule in ledger.dropped(kind):
            assert f"{reason}</span>" in page
            for _, example in rule.examples:
                assert example.get("url", "") in page
    assert page.count('<img src="data:image/webp') == sum(len(Corpus(made)[n].images) for n in range(9))
    assert not re.findall(r"(?:src|href)=[\"'](?!data:image/)", page)
    assert "default-src 'none'" in page
    assert "<script" not in page
    (made / "report.html").unlink()


def test_what_a_page_says_is_escaped_in_the_report(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.enter(PAGES)
    ledger.enter(IMAGES)
    evil = "\"><script>alert('x')</script>"
    ledger.drop(PAGES, "text", f"<b>{evil}", evil, lambda: {"url": evil, "title": evil, "text": evil, "detail": evil})
    ledger.drop(
        IMAGES, "images", "too small", evil, lambda: {"url": evil, "page": evil, "size": [1, 1], "detail": evil}
    )
    ledger.write(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7
