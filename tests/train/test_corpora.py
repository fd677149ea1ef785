"""Opening the corpora of many ranks: each shard is looked at once, and every rank hears of a fault."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from forks import launch

from kosmos import settings
from kosmos_train.config import TrainConfig


def open_each(runs: list[list[dict[str, Any]]]) -> list[tuple[list[str], str]]:
    """Open the corpora of several settings, rank r those of ``run[r]``; the folders looked at, and the error."""
    from kosmos_data.reader import Corpus
    from kosmos_train.build import build_processor
    from kosmos_train.corpora import open_loader
    from kosmos_train.distributed import start

    world, original = start(2.0), Corpus._check_sizes
    looked: list[str] = []

    def note(corpus: Corpus) -> None:
        looked.append(corpus.root)
        original(corpus)

    Corpus._check_sizes = note
    found = []
    for run in runs:
        config, said = settings.from_dict(TrainConfig, run[world.rank]), "no error"
        looked.clear()
        try:
            open_loader(config.data, build_processor(config), world, None).close()
        except (OSError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
        found.append((list(looked), said))
    return found


def moved(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same settings with a copy of the first corpus."""
    first, *others = values["data"]["sources"]
    shutil.copytree(first["shards"], folder)
    return values | {"data": values["data"] | {"sources": [first | {"shards": str(folder)}, *others]}}


def test_one_rank_looks_at_the_shards(values: dict[str, Any], tmp_path: Path) -> None:
    """Rank 0 where both see the same folder, each its own where they do not; a cut shard is an error on both."""
    local, broken = moved(values, tmp_path / "local"), moved(values, tmp_path / "broken")
    shard = next((tmp_path / "broken").glob("*.tar"))
    os.truncate(shard, shard.stat().st_size - 1)
    runs = [[values, values], [values, local], [broken, broken], [values, broken]]
    first, second = launch(tmp_path / "j", 2, open_each, runs).results()
    everywhere = [source["shards"] for source in values["data"]["sources"]]
    assert first[0] == first[1] == [everywhere, "no error"]
    assert second[0] == [[], "no error"]
    assert second[1] == [[str(tmp_path / "local")], "no error"]
    fault = f"{shard} has {shard.stat().st_size} bytes, index.json says"
    for heard, teller in ((second[2], first[2]), (first[3], second[3])):
        assert teller[1].startswith(f"ValueError: {fault}")
        assert heard[1].startswith("ValueError: rank ")
        assert f"failed opening the corpora: {fault}" in heard[1]
