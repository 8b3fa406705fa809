"""Resumable training state in one safetensors file: no pickle, replaced atomically, on any fsspec URL."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from vcinr_batch.errors import ConfigError, CorruptBitstreamError, UnsupportedFormatError
from vcinr_batch.storage import StorageOptions, exists, public_url, read_bytes, sha256_hex, write_bytes

CHECKPOINT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a training run needs to go on as if it had not stopped."""

    identity: str
    """Digest of what the run depends on (config and data); another identity is refused."""
    step: int
    best_step: int
    best_score: float
    network: Mapping[str, Tensor]
    best_network: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    generator_state: Tensor


def save_checkpoint(checkpoint: Checkpoint, url: str, storage_options: StorageOptions = None) -> None:
    """Write atomically: a kill at any moment leaves the old file or the new one."""
    tensors = {"generator_state": checkpoint.generator_state}
    for name in ("network", "best_network", "optimizer"):
        tensors |= {
            f"{name}/{key}": value.detach().cpu().contiguous() for key, value in getattr(checkpoint, name).items()
        }
    header = {
        "version": CHECKPOINT_VERSION,
        "identity": checkpoint.identity,
        "step": checkpoint.step,
        "best_step": checkpoint.best_step,
        "best_score": checkpoint.best_score,
    }
    header["digest"] = _digest(header, tensors)
    # safetensors refuses tensors that share memory, as the best network may with the current one.
    data = save({key: value.clone() for key, value in tensors.items()}, {"vcinr-checkpoint": json.dumps(header)})
    write_bytes(url, data, storage_options=storage_options)


def load_checkpoint(url: str, identity: str, storage_options: StorageOptions = None) -> Checkpoint | None:
    """The checkpoint at a URL, or None where there is none.

    Raises:
        ConfigError: it belongs to another run, whose work shall not be lost.
        CorruptBitstreamError: the file is damaged; delete it to start anew.
        UnsupportedFormatError: written by another version.
    """
    if not exists(url, storage_options=storage_options):
        return None
    data = read_bytes(url, storage_options=storage_options)
    try:
        tensors = load(data)
        header = _header(data)
        if header["version"] != CHECKPOINT_VERSION:
            raise UnsupportedFormatError(
                f"{url}: checkpoint version {header['version']}, this package reads {CHECKPOINT_VERSION}"
            )
        if header.pop("digest") != _digest(header, tensors):
            raise ValueError("its digest is wrong")
        if header["identity"] != identity:
            raise ConfigError(
                f"{public_url(url)}: checkpoint of another run (other data or configuration); "
                f"delete it or give --checkpoint another place"
            )
        groups: dict[str, dict[str, Tensor]] = {"network": {}, "best_network": {}, "optimizer": {}}
        for key, value in tensors.items():
            group, _, name = key.partition("/")
            if name:
                groups[group][name] = value
        return Checkpoint(
            identity=identity,
            step=int(header["step"]),
            best_step=int(header["best_step"]),
            best_score=float(header["best_score"]),
            generator_state=tensors["generator_state"],
            **groups,
        )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError | UnsupportedFormatError):
            raise
        raise CorruptBitstreamError(
            f"{url}: damaged checkpoint ({error}); delete it to start the training anew"
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts as a flat mapping `<parameter index>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, entry in state.items() for name, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def network_tensors(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's parameters that later steps do not change."""
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def _header(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    header: dict[str, Any] = json.loads(metadata["vcinr-checkpoint"])
    return header


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """safetensors has no checksum of its own: an edited weight would train on unnoticed."""
    parts = [json.dumps(header, sort_keys=True).encode()]
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), tensor.numpy().tobytes()]
    return sha256_hex(b"\0".join(parts))
