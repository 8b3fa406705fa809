"""From sample keys, or their canonical texts, back to the blocks of a layout."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.axes import Axis, axis_index, label_text
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.data.samples import SampleKey
from vcinr_batch.errors import ConfigError, SampleNotFoundError


def find_blocks(layout: Layout, keys: Iterable[SampleKey | str]) -> NDArray[np.int64]:
    """The blocks of sample keys, [N, axes], in their order; whether the archive holds them is another question.

    Args:
        layout: of the archive.
        keys: sample keys or their canonical texts, `t2m[time=2019-03-22T06:00:00]`.

    Raises:
        SampleNotFoundError: a key that no block of the layout has; names it.
        ConfigError: something else than a key or a text.
    """
    known: dict[tuple[int, str], int | None] = {}
    blocks = [_find_block(layout, _text(key), known) for key in keys]
    return np.array(blocks, np.int64).reshape(len(blocks), len(layout.axes))


def _find_block(layout: Layout, text: str, known: dict[tuple[int, str], int | None]) -> tuple[int, ...]:
    if "[" in text and not text.endswith("]"):
        raise _not_found(layout, text)
    variable, _, inner = text.removesuffix("]").partition("[")
    labels = [part.partition("=")[::2] for part in inner.split(",")] if inner else []
    named = [k for k, n in enumerate(layout.block_shape) if n == 1 or n < len(layout.axes[k])]
    if variable != layout.variable or [name for name, _ in labels] != [layout.axes[k].name for k in named]:
        raise _not_found(layout, text)
    block = [0] * len(layout.axes)
    for k, (_, label) in zip(named, labels, strict=True):
        if (k, label) not in known:
            known[k, label] = _find_along(layout.axes[k], layout.block_shape[k], label)
        place = known[k, label]
        if place is None:
            raise _not_found(layout, text)
        block[k] = place
    return tuple(block)


def _text(key: object) -> str:
    if not isinstance(key, str | SampleKey):
        raise ConfigError(f"expected a sample key or its text, got {key!r:.80} ({type(key).__name__})")
    return str(key)


def _find_along(axis: Axis, length: int, label: str) -> int | None:
    """The block along an axis whose key has this label: `850`, or `58+16` for a block of 16."""
    if length > 1:
        label, _, count = label.rpartition("+")
        if count != str(length):
            return None
    try:
        places = axis_index(axis, label)
    except (ConfigError, SampleNotFoundError):
        return None
    found = [int(i) for i in places if i % length == 0 and label_text(axis, int(i)) == label]
    return found[0] // length if found else None


def _not_found(layout: Layout, text: str) -> SampleNotFoundError:
    first = sample_key(layout, (0,) * len(layout.axes))
    last = sample_key(layout, tuple(n - 1 for n in layout.block_counts))
    return SampleNotFoundError(f"no sample {text!r} in the archive; its keys run from {first} to {last}")
