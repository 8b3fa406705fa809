"""The Dockerfile, instruction by instruction: pinned, small, not root, nothing secret, and its files exist."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster" / "Dockerfile").read_text()
KNOWN = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments), comments dropped and continuation lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


INSTRUCTIONS = instructions(TEXT)


def of(name: str) -> list[str]:
    return [arguments for instruction, arguments in INSTRUCTIONS if instruction == name]


def test_only_known_instructions_and_no_add() -> None:
    assert {instruction for instruction, _ in INSTRUCTIONS} == KNOWN


def test_the_base_is_pinned_to_a_patch_version_of_a_supported_python() -> None:
    (image,) = [argument.partition("=")[2] for argument in of("ARG") if argument.startswith("PYTHON_IMAGE=")]
    assert all(base.split()[0] == "${PYTHON_IMAGE}" for base in of("FROM"))
    found = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+", image)
    assert found is not None
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    assert f"Programming Language :: Python :: {found[1]}" in classifiers


def test_it_does_not_run_as_root() -> None:
    assert of("USER") == ["1000"]
    assert max(index for index, (name, _) in enumerate(INSTRUCTIONS) if name == "RUN") < INSTRUCTIONS.index(
        ("USER", "1000")
    )


@pytest.mark.parametrize("arguments", of("COPY"))
def test_what_it_copies_exists(arguments: str) -> None:
    *sources, _ = arguments.split()
    if sources[0].startswith("--from="):
        assert f"AS {sources[0].removeprefix('--from=')}" in " ".join(of("FROM"))
        return
    assert sources != ["."]  # the whole folder would bring .git and data
    for source in sources:
        assert (ROOT / source).exists()


def test_it_installs_extras_that_exist_and_the_ones_a_cluster_needs() -> None:
    (extras,) = re.findall(r"\"\.\[([\w,]+)\]\"", TEXT)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"s3", "ray", "train", "netcdf", "grib"} == set(extras.split(","))
    assert set(extras.split(",")) <= set(declared)


def test_the_head_can_start_machines_with_the_boto3_that_is_tested() -> None:
    """Ray's AWS autoscaler imports it; the bound is the one of the development tools."""
    development = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    (boto3,) = [requirement for requirement in development if requirement.startswith("boto3")]
    assert f'"{boto3}"' in " ".join(of("RUN"))
    assert boto3 in (ROOT / "cluster" / "README.md").read_text()


def test_the_compiler_and_the_package_lists_stay_out_of_the_image() -> None:
    last_stage = INSTRUCTIONS[max(index for index, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :]
    assert "build-essential" not in " ".join(arguments for _, arguments in last_stage)
    for run in of("RUN"):
        if "apt-get install" in run:
            assert "--no-install-recommends" in run
            assert "rm -rf /var/lib/apt/lists/*" in run
        if "pip install" in run:
            assert "--no-cache-dir" in run


def test_the_device_is_a_choice_of_two_and_nothing_secret_is_an_argument() -> None:
    assert "DEVICE=cpu" in of("ARG")
    assert re.search(r"cpu\) .*gpu\) .*\*\) .*exit 2", " ".join(of("RUN")))
    assert not re.search(r"secret|token|password|access_key", " ".join([*of("ARG"), *of("ENV")]), re.IGNORECASE)
