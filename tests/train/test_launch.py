"""The launchers: torchrun and DeepSpeed's own really start ranks, the Slurm script requeues, Kubernetes would take the
manifest, and two hosts whose link is cut fail in bounded time and go on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
import yaml
from forks import context, free_port, launch_each

from kosmos import settings
from kosmos_train import TrainConfig, train
from kosmos_train.launcher import PRELOAD, launch_here
from kosmos_train.runs import read_metrics

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "train" / "launch"


@pytest.fixture
def config(values: dict[str, Any], tmp_path: Path) -> Path:
    """A YAML of the tiny run."""
    values["log"] = {"every": 100}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment of a launcher: this Python, one thread a process, and a folder for stand-ins at the front of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return clean | {"PATH": path, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def stand_in(environment: dict[str, str], name: str, script: str) -> None:
    """A program of that name for the launcher to find."""
    path = Path(environment["PATH"].split(os.pathsep)[0]) / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def wait_for(path: Path, lines: int, alive: Callable[[], bool], seconds: float = 240.0) -> None:
    """Until a file has so many lines."""
    deadline = time.monotonic() + seconds
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert alive(), "ended too early"
        assert time.monotonic() < deadline, f"{path} never had {lines} lines"
        time.sleep(0.02)


def test_torchrun_script_says_what_slurm_says(environment: dict[str, str]) -> None:
    """The plain script starts what the Slurm script (really started below) does."""
    plain = subprocess.run(
        [str(LAUNCH / "torchrun.sh"), "CONFIG", "run=DIR"],
        env=environment | {"PYTHON": "echo", "NODES": "2", "HEAD": "h", "PROCESSES": "8"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    script = (LAUNCH / "slurm.sbatch").read_text().replace("\\\n", " ")
    slurm = next(line for line in script.splitlines() if line.startswith("srun")).split()
    fixed = [word for word in slurm if "$" not in word and word not in ("srun", "--resume", "&")]
    assert set(fixed) <= set(plain)
    assert plain[-2:] == ["CONFIG", "run=DIR"]


@pytest.mark.slow
def test_deepspeed_launcher(config: Path, environment: dict[str, str], python: str, tmp_path: Path) -> None:
    """The line in the hostfile's comment, for one rank of this host."""
    program = shutil.which("deepspeed", path=environment["PATH"])
    assert program is not None
    command = [python, program, "--num_accelerators", "1", "--master_port", str(free_port()), "--no_local_rank"]
    command += ["--module", "kosmos_train.pretrain", str(config), f"run={tmp_path / 'run'}", "--resume"]
    done = subprocess.run(command, env=environment, check=False, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(read_metrics(tmp_path / "run")) == 12


# What srun does with a step of one task a node: starts them all, hands signals on, and fails if one of them fails.
SRUN = """
for node in $(seq 0 $((SLURM_NNODES - 1))); do
    SLURM_PROCID=$node SLURM_NODEID=$node SLURM_STEP_ID=0 "$@" &
    tasks+=($!)
done
trap 'kill -s USR1 "${tasks[@]}"' USR1
trap 'kill -s TERM "${tasks[@]}"' TERM
worst=0
for task in "${tasks[@]}"; do
    while true; do
        wait "$task" && code=0 || code=$?
        kill -0 "$task" 2>/dev/null || break
    done
    ((code > worst)) && worst=$code
done
exit $worst
"""


def test_launcher_hands_on_the_exit_code(config: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """A mistake in the settings is 2, as for ``kosmos train`` alone (of torchrun it would be 1): the Kubernetes Job and
    the Slurm script go by it."""
    command = [sys.executable, "-m", "kosmos_train.launcher", "--master-port", str(free_port())]
    command += ["-m", "kosmos_train.pretrain", str(config), f"run={tmp_path / 'run'}", "optim.lrr=1"]
    done = subprocess.run(command, env=environment, check=False, timeout=300, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown key 'optim.lrr'" in done.stderr
    assert "FAILED" not in done.stderr  # torchrun's table, which says less


def test_ranks_of_one_command(config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """``--processes 2``: a rank's mistake is 2 and no traceback; Ctrl-C saves and is 75; resumed, it ends well; the
    caller's variables reach the ranks, and its handlers of signals are its own again."""
    context()  # the fork server of the tests, if it does not run
    handler, run = signal.getsignal(signal.SIGINT), tmp_path / "run"
    words = ["train", str(config), f"run={run}", "--resume", "checkpoint.every=1000", "steps=40"]
    assert launch_here(2, ["train", str(config), f"run={tmp_path / 'wrong'}", "model.vision_weights=/nowhere"]) == 2
    said = "".join(capfd.readouterr())  # of the agent: the ranks of a whole test run have no terminal
    assert "Traceback" not in said
    assert "FAILED" not in said

    def press() -> None:
        wait_for(run / "metrics.jsonl", 3, lambda: True)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    assert launch_here(2, words) == 75
    thread.join()
    said = capfd.readouterr().err
    assert "kosmos: ended by SIGINT; --resume goes on" in said
    assert "death" not in said
    assert "got signal" not in said
    stopped = len(read_metrics(run))
    assert (run / "checkpoints" / "latest").read_text() == f"step-{stopped:06d}\n"
    assert signal.getsignal(signal.SIGINT) is handler
    assert launch_here(2, words) == 0
    launches = json.loads((run / "environment.json").read_text())
    assert [(launch["from_step"], launch["processes"]) for launch in launches] == [(0, 2), (stopped, 2)]


def test_what_is_forked_has_opened_no_gpu(environment: dict[str, str]) -> None:
    """CUDA cannot be used in a process that was forked from one that has asked for its devices."""
    asked = "import torch\ndef boom(*_): raise SystemExit('a GPU was opened')\n"
    asked += "torch._C._cuda_init = torch._C._cuda_getDeviceCount = torch.cuda._lazy_init = boom\n"
    done = subprocess.run(
        [sys.executable, "-c", asked + "\n".join(f"import {name}" for name in PRELOAD)],
        env=environment, check=False, timeout=300, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("state", "code", "comes_back"), [("COMPLETING", 75, False), ("RUNNING", 75, True),
                                                           ("RUNNING", 1, False)])  # fmt: skip
def test_slurm_script_requeues_what_was_interrupted(
    environment: dict[str, str], tmp_path: Path, state: str, code: int, comes_back: bool
) -> None:
    """Preempted ranks end with 75 and the job comes back; one that was cancelled or failed does not."""
    given = '"$SRUN_CPUS_PER_TASK $*" in "96 "*"--nproc-per-node 4 "*'  # loader workers need the CPUs
    stand_in(environment, "srun", f"case {given}) exit {code};; esac; exit 99")
    stand_in(environment, "squeue", f"echo {state}")
    stand_in(environment, "scontrol", f'[ "$1" = show ] && echo localhost || touch {tmp_path / "requeued"}')
    environment |= {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "x", "SLURM_CPUS_PER_TASK": "96"}
    environment |= {"SLURM_GPUS_PER_NODE": "a100:4"}
    done = subprocess.run(["bash", str(LAUNCH / "slurm.sbatch")], env=environment, check=False, timeout=60)
    assert done.returncode == (0 if comes_back else code)
    assert (tmp_path / "requeued").exists() == comes_back


@pytest.mark.slow
def test_slurm_job_saves_is_requeued_and_resumes(
    config: Path, values: dict[str, Any], environment: dict[str, str], python: str, tmp_path: Path
) -> None:
    """The script on two "nodes": USR1 to the batch shell alone, as Slurm sends it before the limit; a checkpoint of the
    step, ``scontrol requeue``; the requeued job goes on to the losses of a run that was never stopped."""
    values |= {"steps": 24, "checkpoint": {"every": 1000}, "log": {"every": 100}}
    values["model"]["overrides"] = {"text_config": {"dropout": 0.0}}
    config.write_text(yaml.safe_dump(values))
    run, requeued = tmp_path / "run", tmp_path / "requeued"
    stand_in(environment, "srun", SRUN)
    stand_in(environment, "squeue", "echo RUNNING")
    stand_in(environment, "scontrol", f'[ "$1" = show ] && printf "localhost\\nother\\n" || echo "$@" >> {requeued}')
    environment |= {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "local[1-2]", "GPUS_PER_NODE": "1"}
    environment["PYTHON_EXEC"] = python  # torchrun starts its ranks with it

    def start(restarts: int) -> subprocess.Popen[bytes]:
        """What slurmd does with a job, the first time and after a requeue."""
        script = (LAUNCH / "slurm.sbatch").read_text().replace(":29500", f":{free_port()}")
        (tmp_path / "slurm_script").write_text(script)
        command = ["bash", str(tmp_path / "slurm_script"), str(config), f"run={run}"]
        return subprocess.Popen(command, env=environment | {"SLURM_RESTART_COUNT": str(restarts)})

    job = start(0)
    wait_for(run / "metrics.jsonl", 5, lambda: job.poll() is None)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(240) == 0
    assert requeued.read_text() == "requeue 7\n"
    stopped = len(read_metrics(run))
    assert stopped < 24
    assert (run / "checkpoints" / "latest").read_text() == f"step-{stopped:06d}\n"
    assert start(1).wait(240) == 0
    assert requeued.read_text() == "requeue 7\n", "a job that has finished does not come back"
    launches = json.loads((run / "environment.json").read_text())
    assert [(launch["from_step"], launch["processes"]) for launch in launches] == [(0, 2), (stopped, 2)]
    train(settings.load(TrainConfig, config), tmp_path / "straight")
    expected = [row["loss"] for row in read_metrics(tmp_path / "straight")]
    assert [row["loss"] for row in read_metrics(run)] == pytest.approx(expected, abs=1e-4)


def train_without_compiler(values: dict[str, Any], run_dir: str, extensions: str) -> dict[str, Any]:
    os.environ.update(PATH="/nowhere", CXX="/nowhere/c++", TORCH_EXTENSIONS_DIR=extensions)
    return jobs.run(values, run_dir)


def test_no_compiler_is_called(values: dict[str, Any], tmp_path: Path) -> None:
    """A machine without a C compiler trains; DeepSpeed builds nothing."""
    job = launch_each(tmp_path, [(train_without_compiler, values, str(tmp_path / "run"), str(tmp_path / "extensions"))])
    assert job.results() == [{"step": 12, "finished": True}]
    assert not (tmp_path / "extensions").exists()
    assert "built" not in job.output()


def test_kubernetes_manifest_fits_the_schema() -> None:
    """Service and Job against Kubernetes' own JSON schema, unknown fields refused; and the two fit each other."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "tests" / "fixtures" / "train" / "kubernetes.json").read_text())
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    for manifest, kind in ((service, "io.k8s.api.core.v1.Service"), (job, "io.k8s.api.batch.v1.Job")):
        jsonschema.validate(manifest, {"$defs": schema["$defs"], "$ref": f"#/$defs/{kind}"})
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    text = pod["containers"][0]["args"][0]
    assert f"--nnodes {job['spec']['completions']}" in text
    assert f"{job['metadata']['name']}-0.{service['metadata']['name']}:29500" in text


def test_compose_file_fits_the_schema() -> None:
    """Against the Compose Specification's own schema; what it builds from and mounts is there."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "tests" / "fixtures" / "train" / "compose.json").read_text())
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    jsonschema.validate(compose, schema)
    for service in compose["services"].values():
        context = (ROOT / "docker" / service["build"]["context"]).resolve()
        assert (context / service["build"]["dockerfile"]).is_file()
        arguments = re.findall(r"^ARG (\w+)", (ROOT / "docker" / "Dockerfile").read_text(), flags=re.MULTILINE)
        assert service["build"]["args"].keys() <= set(arguments)
    notebook = compose["services"]["notebook"]
    assert (ROOT / notebook["entrypoint"][-1]).is_file()
    assert "notebook" in notebook["build"]["args"]["EXTRAS"]


@pytest.fixture
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces with addresses 10.99.0.1 and 10.99.0.2, joined by a cable."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"kosmos-a{os.getpid()}", f"kosmos-b{os.getpid()}"]
    if subprocess.run(["ip", "netns", "add", names[0]], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no network namespaces")
    run_all(
        f"ip netns add {names[1]}",
        f"ip link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}",
        *(f"ip -n {name} addr add 10.99.0.{index + 1}/24 dev eth0" for index, name in enumerate(names)),
        *(f"ip -n {name} link set {device} up" for name in names for device in ("eth0", "lo")),
    )
    yield names
    run_all(*(f"ip netns del {name}" for name in names))


def run_all(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["cut", "gone"])
def test_two_hosts_lose_each_other(
    failure: str,
    two_hosts: list[str],
    values: dict[str, Any],
    tmp_path: Path,
) -> None:
    """The cable is cut, or one host dies: the rest ends by itself in bounded time, and the resumed run is the same."""
    values |= {"steps": 36, "checkpoint": {"every": 5}, "engine": {"timeout_minutes": 0.25}, "log": {"every": 100}}
    run = tmp_path / "run"
    calls = [(jobs.run_on_host, host, values, str(run), True) for host in two_hosts]
    job = launch_each(tmp_path / "first", calls)
    wait_for(run / "metrics.jsonl", 12, job.alive)
    if failure == "cut":
        run_all(f"ip -n {two_hosts[1]} link set eth0 down")
    else:
        job.kill(1)
    began = time.monotonic()
    codes = job.wait(120)
    assert all(codes), f"hosts ended with {codes}"
    assert time.monotonic() - began < 100
    if failure == "cut":
        run_all(f"ip -n {two_hosts[1]} link set eth0 up")
    launch_each(tmp_path / "second", calls).results()
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 37))
    assert json.loads((run / "environment.json").read_text())[1]["from_step"] >= 10
