"""Stages on each executor: a half-finished one stops the run, Slurm and Ray make the same bytes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kosmos import settings
from kosmos_data.web.options import Execution, Slurm, WebOptions
from kosmos_data.web.pipeline import run

pytest.importorskip("fastwarc")
pytest.importorskip("datatrove")


from kosmos_data.web import executors

MakeOptions = Callable[..., WebOptions]
Files = Callable[[Path], dict[str, bytes]]


def test_a_stage_does_not_start_on_half_an_input(tmp_path: Path) -> None:
    (tmp_path / "completions").mkdir()
    for task in (0, 2):
        (tmp_path / "completions" / f"{task:05d}").touch()
    with pytest.raises(RuntimeError, match=r"1 of 3 tasks .* not done: \[1\]"):
        executors.AllDone(str(tmp_path), 3)(None, 0, 1)
    executors.AllDone(str(tmp_path), 1)(None, 0, 1)


def _fail(data: None, rank: int, world_size: int) -> None:
    if rank == 1:
        raise OSError("the disk is full")


def _die(data: None, rank: int, world_size: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_task_stops_the_run_and_names_its_log(tmp_path: Path, workers: int) -> None:
    failing = [executors.Stage("first", [_fail], 3), executors.Stage("second", [_fail], 1)]
    with pytest.raises(OSError, match=r"stage first failed: the disk is full \(logs: .*first/logs\)"):
        executors.run_stages(failing, tmp_path, Execution(workers=workers), executors.Progress(disable=True))
    assert "the disk is full" in (tmp_path / "logs" / "first" / "logs" / "task_00001.log").read_text()
    assert not (tmp_path / "logs" / "second").exists()


def test_workers_that_always_die_are_not_started_for_ever(tmp_path: Path) -> None:
    stage = executors.Stage("deadly", [_die], 2)
    with pytest.raises(RuntimeError, match=r"workers died .* out of memory"):
        executors.run_stages([stage], tmp_path, Execution(workers=2), executors.Progress(disable=True))


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
    web: Any,
    made: Path,
    tmp_path: Path,
    slurm: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    options: MakeOptions,
    files: Files,
) -> None:
    slurm_settings = Slurm(partition="cpu", time="01:00:00", memory_gb=3, sbatch={"account": "lab"})
    chosen = options(2, executor="slurm", tasks_per_job=14, slurm=slurm_settings)
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


def test_slurm_wants_a_partition(web: Any, tmp_path: Path, options: MakeOptions) -> None:
    with pytest.raises(ValueError, match="partition"):
        run(web.warcs, tmp_path / "out", options(executor="slurm"))
    with pytest.raises(ValueError, match=r"execution\.executor='dask': choose one of local, slurm, ray"):
        settings.load(WebOptions, None, ["execution.executor=dask"])


@pytest.mark.slow
def test_ray_runs_the_same(web: Any, made: Path, tmp_path: Path, options: MakeOptions, files: Files) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        run(web.warcs, tmp_path / "out", options(2, executor="ray", tasks_per_job=5, ray_memory_gb=0.5))
        failing = executors.Stage("lost", [executors.AllDone(str(tmp_path / "nothing"), 1)], 2)
        with pytest.raises(RuntimeError, match="stage lost failed: 1 of 1 tasks"):
            executors.run_stages([failing], tmp_path, Execution(executor="ray"), executors.Progress(disable=True))
    finally:
        ray.shutdown()
    assert files(tmp_path / "out") == files(made)
