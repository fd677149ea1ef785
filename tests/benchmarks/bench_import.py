"""Does an import stay small: memory of each adapter beyond what Python holds at its start, over the number of records.

    python tests/benchmarks/bench_import.py [FORMAT …] [--records 100000 1000000]

Each is read in a process of its own, without writing shards. Pictures are of 8 × 8, texts of a few hundred letters; a
record of img2dataset is a member of its one tar, of the others a caption, a dialogue, a question, or a file.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from kosmos_data import adapters
from kosmos_data.errors import Tally

WORDS = "word " * 60


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def as_list(path: Path, records: Iterable[Any], before: str = "[", after: str = "]", key: str | None = None) -> Path:
    """A JSON list, or one under a key of an object."""
    with path.open("w") as file:
        file.write(before if key is None else f'{{"{key}": [')
        for number, record in enumerate(records):
            file.write(("," if number else "") + json.dumps(record))
        file.write(after if key is None else "]}")
    return path


def as_tar(path: Path, members: int) -> Path:
    png = picture()
    with path.open("wb") as file:
        for number in range(members // 2):
            for ending, data in (("png", png), ("txt", b"a cat")):
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(data)
                file.write(member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512))
        file.write(bytes(1024))
    return path


def as_coco(path: Path, captions: int) -> Path:
    images = [{"id": number, "file_name": "1.png", "height": 427, "width": 640} for number in range(captions // 5)]
    said = ({"id": n, "image_id": n // 5, "caption": f"Cat {n} sits on a mat"} for n in range(captions))
    return as_list(path, said, f'{{"images": {json.dumps(images)}, "annotations": [', "]}")


def as_vqa(path: Path, questions: int) -> Path:
    folder = path.with_name("vqa")
    folder.mkdir()
    asked = ({"image_id": n // 5, "question": f"What is {n}?", "question_id": n} for n in range(questions))
    as_list(folder / "questions.json", asked, key="questions")
    ten = [{"answer": "red", "answer_confidence": "yes", "answer_id": number} for number in range(10)]
    said = ({"question_id": n, "multiple_choice_answer": "red", "answers": ten} for n in range(questions))
    as_list(folder / "annotations.json", said, key="annotations")
    return folder


def as_folder(path: Path, files: int) -> Path:
    folder, png = path.with_name("folder"), picture()
    for number in range(files // 2):
        place = folder / str(number // 1000)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png)
        (place / f"{number}.txt").write_text("a cat")
    return folder


def said(number: int) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"What is {number}?"}, {"from": "gpt", "value": WORDS}]


def as_table(path: Path, rows: int) -> Path:
    path.write_text("filepath,title\n" + "".join(f"1.png,cat {number}\n" for number in range(rows)))
    return path


def as_parquet(path: Path, rows: int) -> Path:
    import pyarrow
    import pyarrow.parquet

    step = 10_000
    with pyarrow.parquet.ParquetWriter(path, pyarrow.schema([("text", pyarrow.string())])) as file:
        for start in range(0, rows, step):
            texts = [f"{number} {WORDS}" for number in range(start, min(start + step, rows))]
            file.write_table(pyarrow.table({"text": texts}))
    return path


SOURCES: dict[str, Callable[[Path, int], Path]] = {
    "img2dataset": as_tar,
    "coco-captions": as_coco,
    "vqav2": as_vqa,
    "llava": lambda path, count: as_list(path, ({"id": str(n), "conversations": said(n)} for n in range(count))),
    "alpaca": lambda path, count: as_list(path, ({"instruction": f"Say {n}", "output": WORDS} for n in range(count))),
    "reviews": lambda path, count: as_list(
        path, ({"user": f"u{n}", "item": f"i{n}", "explanation": WORDS} for n in range(count))
    ),
    "csv": as_table,
    "text": as_parquet,
    "folder": as_folder,
}


def measure(name: str, source: Path, images: Path, results: Any) -> None:
    adapter, tally, documents = adapters.get(name), Tally(), 0
    before, begun = peak(), time.process_time()
    for _ in adapter(source, images, tally):
        documents += 1
    results.put((documents, tally.total(), (peak() - before) / 1024, time.process_time() - begun))


def peak() -> int:
    """KiB that this process held at most; ``ru_maxrss`` would also know what the one that started it held."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", default=[], help=", ".join(SOURCES))
    parser.add_argument("--records", nargs="+", type=int, default=[100_000, 1_000_000])
    arguments = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    for name in arguments.formats or SOURCES:
        for count in arguments.records:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "1.png").write_bytes(picture())
                ending = {"csv": "csv", "text": "parquet"}.get(name, "json")
                source = SOURCES[name](Path(folder) / f"in.{ending}", count)
                results = fresh.Queue()
                process = fresh.Process(target=measure, args=(name, source, Path(folder), results))
                process.start()
                documents, counted, grown, seconds = results.get()
                process.join()
                print(
                    f"{name:14} {count:9,} records: {documents:9,} documents, {counted:,} counted, +{grown:4.0f} MB, "
                    f"{seconds:.0f} s of processor",
                    flush=True,
                )


if __name__ == "__main__":
    main()
