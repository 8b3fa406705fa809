"""Checkpoints: round trip, damage, and other runs."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from vcinr_batch.errors import ConfigError, CorruptBitstreamError, UnsupportedFormatError, VcinrError
from vcinr_batch.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    network_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)


def trained(seed: int = 0, steps: int = 3) -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(seed)
    network = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(steps):
        network(torch.randn(4, 2)).square().sum().backward()
        optimizer.step()
    return network, optimizer


def make_checkpoint(best_score: float = 41.123456789012345) -> Checkpoint:
    network, optimizer = trained()
    weights = network_tensors(network)
    generator = torch.Generator().manual_seed(7)
    # The best network is often the current one, the very same tensors.
    return Checkpoint(
        "run-1", 300, 200, best_score, weights, weights, optimizer_tensors(optimizer), generator.get_state()
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "state.safetensors")


@pytest.mark.parametrize("best_score", [41.123456789012345, -math.inf])
def test_a_checkpoint_comes_back_bit_for_bit(url: str, best_score: float) -> None:
    saved = make_checkpoint(best_score)
    save_checkpoint(saved, url)
    loaded = load_checkpoint(url, "run-1")
    assert loaded is not None
    assert (loaded.identity, loaded.step, loaded.best_step, loaded.best_score) == ("run-1", 300, 200, best_score)
    assert torch.equal(loaded.generator_state, saved.generator_state)
    for name in ("network", "best_network", "optimizer"):
        ours, theirs = getattr(saved, name), getattr(loaded, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_restored_optimizer_takes_the_same_next_step() -> None:
    network, optimizer = trained(steps=3)
    twin, fresh = trained(steps=0)
    twin.load_state_dict(network_tensors(network))
    restore_optimizer(fresh, {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()})
    for model, adam in ((network, optimizer), (twin, fresh)):
        adam.zero_grad()
        model(torch.ones(4, 2)).square().sum().backward()
        adam.step()
    assert torch.equal(network.weight, twin.weight)
    assert torch.equal(network.bias, twin.bias)


def test_network_tensors_do_not_change_with_the_network() -> None:
    network, _ = trained()
    copy = network_tensors(network)
    before = copy["weight"].clone()
    with torch.no_grad():
        network.weight.add_(1)
    assert torch.equal(copy["weight"], before)


def test_no_file_is_no_checkpoint(url: str) -> None:
    assert load_checkpoint(url, "run-1") is None


def test_a_checkpoint_of_another_run_is_refused(url: str) -> None:
    save_checkpoint(make_checkpoint(), url)
    with pytest.raises(ConfigError, match=r"state\.safetensors: checkpoint of another run .*; delete it or give"):
        load_checkpoint(url, "run-2")


def test_a_later_checkpoint_replaces_the_earlier_one_and_leaves_nothing_beside_it(url: str) -> None:
    save_checkpoint(make_checkpoint(1.0), url)
    save_checkpoint(make_checkpoint(2.0), url)
    loaded = load_checkpoint(url, "run-1")
    assert loaded is not None
    assert loaded.best_score == 2.0
    assert [path.name for path in Path(url).parent.iterdir()] == ["state.safetensors"]


def test_every_truncation_is_our_error(url: str) -> None:
    save_checkpoint(make_checkpoint(), url)
    data = Path(url).read_bytes()
    for length in range(0, len(data), 37):
        Path(url).write_bytes(data[:length])
        with pytest.raises(CorruptBitstreamError, match="delete it to start the training anew"):
            load_checkpoint(url, "run-1")


def test_every_edited_byte_is_our_error(url: str) -> None:
    """Those in the version make it another version, those in the weights are found by the digest."""
    save_checkpoint(make_checkpoint(), url)
    data = Path(url).read_bytes()
    for at in range(0, len(data), 29):
        Path(url).write_bytes(data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :])
        with pytest.raises(VcinrError, match=r"state\.safetensors: "):
            load_checkpoint(url, "run-1")


def test_another_format_version_is_named(url: str) -> None:
    save_checkpoint(make_checkpoint(), url)
    data = Path(url).read_bytes()
    header = {"version": 99, "identity": "run-1"}
    Path(url).write_bytes(save(load(data), {"vcinr-checkpoint": json.dumps(header)}))
    with pytest.raises(UnsupportedFormatError, match="version 99, this package reads 1"):
        load_checkpoint(url, "run-1")
