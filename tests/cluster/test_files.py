"""The files in cluster/ agree with the command line and with each other, and hold no secrets."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.cluster.vcinr_commands import commands_in, parse

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
SBATCH = CLUSTER / "slurm" / "compress.sbatch"
SECRET = re.compile(
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|-----BEGIN|aws_secret_access_key\s*[:=]\s*\S|:\d{12}:|\bami-[0-9a-f]{8,}"
)


def _commands(path: Path) -> list[list[str]]:
    if "kuberay" in path.parts:
        return commands_in(yaml.safe_load(path.read_text())["spec"]["entrypoint"])
    if path.name == "ray-cluster.yaml":
        return commands_in("\n".join(yaml.safe_load(path.read_text())["setup_commands"]))
    if path.name == "Dockerfile":
        return []
    return commands_in(path.read_text())


COMMANDS = {f"{path.name} {number}": command for path in FILES for number, command in enumerate(_commands(path))}


@pytest.mark.parametrize("case", [case for case, command in COMMANDS.items() if command != ["--version"]])
def test_every_command_is_one_of_the_command_line_s(case: str) -> None:
    assert parse(COMMANDS[case]) in (*COMMANDS[case][:1], *COMMANDS[case][1:2])


def test_there_are_commands_in_every_file_that_runs_any() -> None:
    found = {case.split()[0] for case in COMMANDS}
    assert found == {"README.md", "compress-rayjob.yaml", "train-rayjob.yaml", "compress.sbatch", "ray-cluster.yaml"}


def test_an_option_that_is_none_is_found() -> None:
    (command,) = commands_in(
        "  vcinr compress a.nc --bundle b \\\n  --output c --fast || test $? -eq 1\n# vcinr not me"
    )
    assert command == ["compress", "a.nc", "--bundle", "b", "--output", "c", "--fast"]
    with pytest.raises(Exception, match="--fast"):
        parse(command)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_holds_credentials_account_numbers_or_machine_images(path: Path) -> None:
    assert not SECRET.search(path.read_text())


def test_readme_names_every_file_and_three_commands_for_each_place() -> None:
    text = (CLUSTER / "README.md").read_text()
    for path in FILES:
        assert path.name == "README.md" or str(path.relative_to(CLUSTER)) in text
    blocks = re.findall(r"^## (.+?)\n+```sh\n(.+?)\n```", text, re.MULTILINE | re.DOTALL)
    assert {title: len(block.splitlines()) for title, block in blocks} == {
        "Cloud machines: `ray up`": 3,
        "Kubernetes: KubeRay": 3,
        "Slurm": 3,
        "Jobs on a cluster that is there": 3,
    }


def test_one_version_of_ray_and_of_the_package_in_all_files() -> None:
    texts = {path.name: path.read_text() for path in FILES}
    ray_versions = set(re.findall(r"RAY_VERSION=([\d.]+)", texts["Dockerfile"]))
    for name in ("compress-rayjob.yaml", "train-rayjob.yaml"):
        ray_versions.add(yaml.safe_load(texts[name])["spec"]["rayClusterSpec"]["rayVersion"])
    assert len(ray_versions) == 1
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    tags = {tag for text in texts.values() for tag in re.findall(r"vcinr-batch:([\w.]+)-(?:cpu|gpu)", text)}
    assert tags == {version}


def test_the_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(SBATCH)], check=True, capture_output=True)


def test_the_slurm_script_passes_shellcheck() -> None:
    # The dev extra brings it, into a folder that need not be on the PATH.
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
    assert shellcheck is not None
    finished = subprocess.run([shellcheck, str(SBATCH)], check=False, capture_output=True, text=True)
    assert finished.stdout == ""


def test_the_slurm_job_is_queued_again_before_its_time_is_up_and_on_node_failure() -> None:
    text = SBATCH.read_text()
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert {"requeue", "time", "nodes", "ntasks-per-node", "cpus-per-task"} <= set(directives)
    assert directives["signal"].startswith("B:USR1@")
    assert directives["open-mode"] == "append"
    assert re.search(r"^trap '.*scontrol requeue \"\$SLURM_JOB_ID\"' USR1$", text, re.MULTILINE)
    # Directives after the first command are ignored by sbatch.
    assert text.rindex("#SBATCH") < text.index("set -euo pipefail")
