"""Workers that train one network together: who takes which part, and what all of them must agree on.

Built on torch.distributed's default process group, which the caller (Ray Train) has set up. A worker that is alone
needs none and runs the same code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from vcinr_batch.errors import VcinrError

Result = TypeVar("Result")

_PIECE_VALUES = 1 << 26
"""Values sent at once when samples are exchanged: 256 MiB of float32."""


@dataclass(frozen=True)
class WorkerGroup:
    """This worker's place among those that train together."""

    rank: int = 0
    """0 is the first worker: it validates, and it alone writes."""
    size: int = 1
    """How many workers there are."""


ALONE = WorkerGroup()


def current_group() -> WorkerGroup:
    """The process group that this process belongs to."""
    return WorkerGroup(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


def own_slice(group: WorkerGroup, count: int) -> slice:
    """This worker's part of `count` things in order; parts differ in length by one at most."""
    return slice(count * group.rank // group.size, count * (group.rank + 1) // group.size)


def on_first(group: WorkerGroup, work: Callable[[], Result]) -> Result:
    """Do it on the first worker and give its result to all.

    Raises:
        VcinrError: what the work raised, on every worker: none is left waiting for another.
    """
    if group.size == 1:
        return work()
    message: list[Any] = [_outcome(work) if group.rank == 0 else None]
    dist.broadcast_object_list(message, src=0)
    return _unpack(message[0])  # type: ignore[no-any-return]


def on_every(group: WorkerGroup, work: Callable[[], Result]) -> Result:
    """Do it on each worker and return each one's own result.

    Raises:
        VcinrError: where any of them failed, the first one's error, on every worker.
    """
    if group.size == 1:
        return work()
    outcome = _outcome(work)
    errors: list[VcinrError | None] = [None] * group.size
    dist.all_gather_object(errors, outcome[1])
    for error in errors:
        if error is not None:
            raise error
    return _unpack(outcome)  # type: ignore[no-any-return]


def gather(group: WorkerGroup, value: Result) -> list[Result]:
    """Every worker's value, in the order of ranks, on every worker. For small things."""
    values: list[Any] = [value] * group.size
    if group.size > 1:
        dist.all_gather_object(values, value)
    return values


def gather_rows(group: WorkerGroup, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every worker's rows [n, ...], one after the other in the order of ranks, on every worker."""
    if group.size == 1:
        return rows
    counts = gather(group, len(rows))
    every = np.empty((sum(counts), *rows.shape[1:]), np.float32)
    stops = np.cumsum(counts)
    every[stops[group.rank] - len(rows) : stops[group.rank]] = rows
    flat = torch.from_numpy(every).reshape(-1)
    row_values = math.prod(rows.shape[1:])
    for rank, (stop, count) in enumerate(zip(stops, counts, strict=True)):
        for piece in torch.split(flat[(stop - count) * row_values : stop * row_values], _PIECE_VALUES):
            dist.broadcast(piece, src=rank)
    return every


def sum_over(group: WorkerGroup, *numbers: float) -> tuple[float, ...]:
    """Each number summed over the workers, in float64."""
    if group.size == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total)
    return tuple(total.tolist())


def share_gradients(group: WorkerGroup, module: nn.Module) -> nn.Module:
    """The module so that a backward pass leaves the mean of all workers' gradients on each of them.

    Every worker starts from the first one's weights. Parameters that a loss does not use (the ridge of the closed form
    under the gradient fit, say) keep no gradient, as with one worker.
    """
    if group.size == 1:
        return module
    return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True, broadcast_buffers=False)


def _outcome(work: Callable[[], Result]) -> tuple[Result | None, VcinrError | None]:
    # Only errors of ours: any other one is a defect or a dying machine, and the whole group is started again.
    try:
        return work(), None
    except VcinrError as error:
        return None, error


def _unpack(outcome: tuple[Any, VcinrError | None]) -> Any:
    result, error = outcome
    if error is not None:
        raise error
    return result
