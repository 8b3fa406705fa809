"""`ray up` accepts cluster/ray-cluster.yaml: Ray's own schema and checks, and what they cannot know."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
TEXT = (CLUSTER / "ray-cluster.yaml").read_text()


def accepted(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as `ray up` fills it in."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(TEXT)
    return content


def test_ray_accepts_it_and_changes_no_node_type(config: dict[str, Any]) -> None:
    prepared = accepted(config)
    assert {name: node["max_workers"] for name, node in prepared["available_node_types"].items()} == {
        "head": 0,
        "cpu": 32,
        "gpu": 8,
    }
    assert prepared["setup_commands"] == config["setup_commands"]
    assert prepared["head_setup_commands"] == config["setup_commands"]


def _more_minimum_than_maximum(config: dict[str, Any]) -> None:
    config["available_node_types"]["cpu"]["min_workers"] = 41


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown key": (lambda c: c.update(idle_timeout=5), "idle_timeout"),
    "unknown key of a node type": (lambda c: c["available_node_types"]["cpu"].update(spot=True), "spot"),
    "wrong type": (lambda c: c.update(max_workers="many"), "integer"),
    "head that is none": (lambda c: c.update(head_node_type="master"), "head_node_type"),
    "more minimum than maximum": (_more_minimum_than_maximum, "min_workers"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_the_check_finds_mistakes(config: dict[str, Any], case: str) -> None:
    spoil, expected = MISTAKES[case]
    spoilt = copy.deepcopy(config)
    spoil(spoilt)
    with pytest.raises((jsonschema.ValidationError, ValueError), match=expected):
        accepted(spoilt)


def test_workers_go_down_to_none_and_are_spot_and_the_head_is_neither(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert (types["cpu"]["min_workers"], types["gpu"]["min_workers"]) == (0, 0)
    spot = {name for name, node in types.items() if "InstanceMarketOptions" in node["node_config"]}
    assert spot == {"cpu", "gpu"}
    assert types["head"]["resources"] == {"CPU": 0}
    assert config["max_workers"] >= max(node.get("max_workers", 0) for node in types.values())


def test_the_dashboard_is_for_those_with_the_token_and_the_tunnel(config: dict[str, Any]) -> None:
    (start,) = [command for command in config["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_every_machine_has_a_named_role_and_it_is_said_what_the_head_must_be_allowed(config: dict[str, Any]) -> None:
    """Ray's own role for the head may pass no other role to the workers."""
    types = config["available_node_types"]
    profiles = {name: node["node_config"]["IamInstanceProfile"]["Name"] for name, node in types.items()}
    assert profiles == {"head": "vcinr-head", "cpu": "vcinr-worker", "gpu": "vcinr-worker"}
    readme = (CLUSTER / "README.md").read_text()
    assert all(word in readme for word in ("vcinr-head", "vcinr-worker", "iam:PassRole", "ec2:RunInstances"))
