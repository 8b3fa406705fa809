"""A shard's way through attempts that fail: another one, or it is given up."""

from dataclasses import dataclass, replace

from pipelines.shard_work import ShardResult
from vcinr_batch.data.shards import Shard
from vcinr_batch.errors import FittingError, SourceError, VcinrError

ATTEMPTS = 3
"""Of a shard, before it is given up."""


@dataclass(frozen=True)
class Attempt:
    """A shard to be done, and what became of the attempts before."""

    shard: Shard
    number: int = 1
    errors: tuple[str, ...] = ()
    """One line for each attempt that failed."""
    lost: int = 0
    """Attempts that ended with their node or were preempted; they do not count."""
    alone: bool = False
    """A worker died with it: no other shard may be in the same worker, or nobody knows which of them does it."""


@dataclass(frozen=True)
class ShardFailure:
    """A shard that was given up."""

    shard: Shard
    attempts: int
    errors: tuple[str, ...]
    """One line for each attempt."""


Outcome = ShardResult | ShardFailure


def next_attempt(attempt: Attempt, error: BaseException | str) -> Attempt | ShardFailure:
    """What follows an attempt that failed: another one, or the shard is given up.

    Raises:
        VcinrError: the error itself, where it is not the shard's and every other one would end the same way.
    """
    if isinstance(error, VcinrError) and not isinstance(error, SourceError | FittingError):
        raise error
    errors = (*attempt.errors, _line(error))
    if attempt.number >= ATTEMPTS:
        return ShardFailure(attempt.shard, attempt.number, errors)
    return replace(attempt, number=attempt.number + 1, errors=errors)


def _line(error: BaseException | str) -> str:
    if isinstance(error, str):
        return error
    text = " ".join(str(error).split())
    return text if isinstance(error, VcinrError) else f"unexpected {type(error).__name__}: {text}"
