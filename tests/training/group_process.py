"""One training worker in a process of its own, without Ray: `group_process.py SOURCE RENDEZVOUS RANK SIZE`.

Runs every kind of training in `KINDS` and prints what this worker saw as one JSON object.
"""

import hashlib
import json
import sys
from typing import Any

import torch
import torch.distributed as dist

from vcinr_batch.config import parse_config
from vcinr_batch.data.sources import open_fields
from vcinr_batch.errors import SourceError, VcinrError
from vcinr_batch.training.bundle_training import train_network
from vcinr_batch.training.worker_group import WorkerGroup, current_group, on_every, on_first

STEPS = 20
SMALL: dict[str, Any] = {"latent_dim": 4, "hidden_dim": 8, "hidden_layers": 1, "rank": 2, "hyper_dim": 8}
# With the shifts the closed form is badly conditioned: at the default ridge float32 leaves 1 % of noise in the gradient
# (two halves of a batch against the whole in one process; 8e-6 at 0.1), and no two ways to sum agree after some steps.
SHIFTS: dict[str, Any] = {"modulation": "sparse_shift", "w0": 3.0, "hidden_dim": 16}
KINDS: dict[str, dict[str, Any]] = {
    "gate and localised basis": {"network": {"linear_term": "localized", "taper_length": 200.0}},
    "gate, gradient": {"fit": {"method": "gradient", "inner_steps": 2}},
    "sparse shift": {"network": SHIFTS, "fit": {"ridge": 0.1}},
    "sparse shift, gradient": {"network": SHIFTS, "fit": {"method": "gradient", "inner_rate": 0.01}},
    "some of the samples": {"meta_learning": {"max_samples": 20}},
}


def train_kind(url: str, change: dict[str, Any], group: WorkerGroup) -> dict[str, Any]:
    # 7 samples do not share out evenly.
    outer = {"steps": STEPS, "validate_every": 1, "batch_size": 7, "fit_points": 24, "loss_points": 12}
    content = {name: {**SMALL} if name == "network" else {} for name in ("network", "fit")} | {"meta_learning": outer}
    content = {name: section | change.get(name, {}) for name, section in content.items()}
    config = parse_config({**content, "sample": {"shard_samples": 9}})
    seen: list[dict[str, float]] = []
    trained = train_network(
        open_fields(url, config.source), config, progress=lambda *event: seen.append(event[3]), group=group
    )
    weights = trained.network.state_dict()
    return {
        "losses": [figures["loss"] for figures in seen],
        "samples": hashlib.sha256(trained.samples.normalized.tobytes()).hexdigest(),
        "weights": hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest(),
        "best_psnr_db": trained.figures["best_psnr_db"],
    }


def fail_on(rank: int, group: WorkerGroup) -> str:
    """The message that this worker gets when one of them cannot read."""

    def work() -> None:
        if group.rank == rank:
            raise SourceError(f"worker {rank} cannot read")

    try:
        on_every(group, work)
    except VcinrError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(url: str, rendezvous: str, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    group = current_group()
    report = {
        "kinds": {name: train_kind(url, change, group) for name, change in KINDS.items()},
        "first": on_first(group, lambda: f"from {group.rank}"),
        "error": fail_on(size - 1, group),
    }
    print(json.dumps(report))
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
