"""The Slurm script with stand-ins for Slurm, Ray and the command: what it calls, and how it ends."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

SBATCH = Path(__file__).parents[2] / "cluster" / "slurm" / "compress.sbatch"
STAND_INS = {
    "srun": 'echo "$@" > step; exec sleep 60',
    "ray": "exit 0",
    "scontrol": '[ "$1" = show ] && { printf "node-%d\\n" $(seq 7 9999); exit 0; }; echo "$@" >> requeued',
    "vcinr": (
        "until [ -s step ]; do sleep 0.02; done; "
        'echo "$@" > called; [ -z "$SLOW" ] || { touch started; exec sleep 60; }; exit 1'
    ),
}
SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NODELIST": "node-[7-8]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_PER_TASK": "16",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{script}\n")
        (programs / name).chmod(0o755)
    return {"PATH": os.pathsep.join([str(programs), os.environ["PATH"]]), "SLOW": "", **SLURM}


def _start(arguments: list[str], environment: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    command = ["bash", str(SBATCH), *arguments]
    return subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True)


def test_the_driver_gets_all_cpus_and_its_exit_code_is_the_job_s(environment: dict[str, str], tmp_path: Path) -> None:
    process = _start(["s3://b/a b.zarr", "s3://b/m", "s3://b/o", "--quality", "2"], environment, tmp_path)
    assert process.wait(60) == 1
    called = (tmp_path / "called").read_text().strip()
    assert called == (
        "compress s3://b/a b.zarr --bundle s3://b/m --output s3://b/o --workers 32 "
        f"--address node-7:{20000 + 1234567 % 20000} --json --quality 2"
    )
    assert not (tmp_path / "requeued").exists()
    # Slurm gives a step one CPU unless it is told.
    options = (tmp_path / "step").read_text().split(" bash ")[0].split()
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=16"} <= set(options)


def test_shortly_before_its_time_is_up_it_is_queued_again(environment: dict[str, str], tmp_path: Path) -> None:
    process = _start(["s3://b/a.zarr", "s3://b/m", "s3://b/o"], {**environment, "SLOW": "1"}, tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        process.wait(60)
        assert (tmp_path / "requeued").read_text() == "requeue 1234567\n"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_too_few_arguments_are_told(environment: dict[str, str], tmp_path: Path) -> None:
    assert _start(["s3://b/a.zarr"], environment, tmp_path).wait(60) == 2
    assert not (tmp_path / "called").exists()
