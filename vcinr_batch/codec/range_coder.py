"""The range coder of FORMAT.md, compiled: primitives for other compiled kernels.

64-bit lower end and width, frequencies that sum to 2^24, the shortest bytes. A coder is a small array of uint64 and a
buffer, so that kernels hand it on without copies. All arithmetic is on integers.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])

Scalar = Any
"""An integer inside compiled code."""

FREQUENCY_BITS = 24
CORRUPT = -1
"""What decoding returns for bytes that no message leads to."""

_TOTAL = 1 << FREQUENCY_BITS
# Places in a coder's state; the decoder's lower end is kept subtracted from its point.
_LOW, _WIDTH, _POSITION = 0, 1, 2
_BITS = np.uint64(FREQUENCY_BITS)
_WORD = np.uint64(32)
_WORD_MASK = np.uint64(0xFFFF_FFFF)
_FULL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_ONE = np.uint64(1)
_ZERO = np.uint64(0)
_CHUNK = 16


def compiled(function: Function) -> Function:
    """`numba.njit`, its machine code kept on disk where there is a folder that can be written."""
    try:
        return cast(Function, numba.njit(cache=True)(function))
    except RuntimeError:  # "no locator available": neither the package's folder nor the user's cache can be written
        return cast(Function, numba.njit(function))


@compiled
def start_encoder(state: NDArray[np.uint64]) -> None:
    """Begin a message. `state`: uint64 [3]; the words go to a uint32 buffer that the caller keeps."""
    state[_LOW], state[_WIDTH], state[_POSITION] = _ZERO, _FULL, _ZERO


@compiled
def encode_interval(state: NDArray[np.uint64], words: NDArray[np.uint32], start: Scalar, frequency: Scalar) -> None:
    """Code an integer with this frequency, `start` being the sum of those before it. Writes at most one word."""
    scale = state[_WIDTH] >> _BITS
    low = state[_LOW] + scale * np.uint64(start)
    width = scale * np.uint64(frequency)
    if low < state[_LOW]:
        _carry(state, words)
    if width <= _WORD_MASK:
        words[state[_POSITION]] = np.uint32(low >> _WORD)
        state[_POSITION] += _ONE
        low <<= _WORD
        width <<= _WORD
    state[_LOW], state[_WIDTH] = low, width


@compiled
def encode_bits(state: NDArray[np.uint64], words: NDArray[np.uint32], value: Scalar, bits: Scalar) -> None:
    """Code the lowest `bits` (0..16) of a value uniformly."""
    share = 1 << (FREQUENCY_BITS - bits)
    encode_interval(state, words, (value & ((1 << bits) - 1)) * share, share)


@compiled
def finish_encoder(state: NDArray[np.uint64], words: NDArray[np.uint32]) -> Scalar:
    """Close the message: the last words go to the buffer; returns how many bytes of it, big-endian, are the payload."""
    low, width = state[_LOW], state[_WIDTH]
    end = low + width
    passes = end < low and end > _ZERO  # the interval holds the multiple of 2^64 above its start
    point = low
    if low == _ZERO or passes:
        if low != _ZERO:
            _carry(state, words)
        point = _ZERO
    else:
        for zero_bits in (56, 48, 40, 32):
            ones = (_ONE << np.uint64(zero_bits)) - _ONE
            point = (low + ones) & ~ones
            # Rounding up may itself pass 2^64, but then the multiple of 2^64 would have been inside.
            if point >= low and point - low < width:
                break
    position = np.int64(state[_POSITION])
    words[position] = np.uint32(point >> _WORD)
    words[position + 1] = np.uint32(point & _WORD_MASK)
    count = 4 * (position + 2)
    while count > 0 and (words[(count - 1) >> 2] >> np.uint32(8 * (3 - ((count - 1) & 3)))) & np.uint32(0xFF) == 0:
        count -= 1
    return int(count)


@compiled
def start_decoder(state: NDArray[np.uint64], payload: NDArray[np.uint8]) -> None:
    """Begin to read a payload, which continues with zeros. `state`: uint64 [3]."""
    state[_LOW], state[_WIDTH], state[_POSITION] = _ZERO, _FULL, _ZERO
    for _ in range(2):
        state[_LOW] = (state[_LOW] << _WORD) | _next_word(state, payload)


@compiled
def decode_target(state: NDArray[np.uint64]) -> Scalar:
    """The number 0..2^24 - 1 whose integer comes next, that with start <= number < start + frequency; or `CORRUPT`."""
    target = state[_LOW] // (state[_WIDTH] >> _BITS)
    return CORRUPT if target >= np.uint64(_TOTAL) else np.int64(target)


@compiled
def consume(state: NDArray[np.uint64], payload: NDArray[np.uint8], start: Scalar, frequency: Scalar) -> None:
    """Step over the integer that was found."""
    scale = state[_WIDTH] >> _BITS
    state[_LOW] -= scale * np.uint64(start)
    state[_WIDTH] = scale * np.uint64(frequency)
    if state[_WIDTH] <= _WORD_MASK:
        state[_WIDTH] <<= _WORD
        state[_LOW] = (state[_LOW] << _WORD) | _next_word(state, payload)


@compiled
def decode_bits(state: NDArray[np.uint64], payload: NDArray[np.uint8], bits: Scalar) -> Scalar:
    """Inverse of `encode_bits`; or `CORRUPT`."""
    target = decode_target(state)
    if target == CORRUPT:
        return CORRUPT
    value = target >> (FREQUENCY_BITS - bits)
    consume(state, payload, value << (FREQUENCY_BITS - bits), 1 << (FREQUENCY_BITS - bits))
    return value


@compiled
def find_entry(cumulative: NDArray[np.int64], start: Scalar, size: Scalar, target: Scalar) -> Scalar:
    """The entry e of a table with cumulative[start + e] <= target < cumulative[start + e + 1], by bisection."""
    low, high = 0, size
    while high - low > 1:
        middle = (low + high) >> 1
        if cumulative[start + middle] <= target:
            low = middle
        else:
            high = middle
    return low


@compiled
def bit_length(number: Scalar) -> Scalar:
    """floor(log2(number)) for number >= 1."""
    length = 0
    while number > 1:
        number >>= 1
        length += 1
    return length


@compiled
def _carry(state: NDArray[np.uint64], words: NDArray[np.uint32]) -> None:
    place = np.int64(state[_POSITION]) - 1
    while words[place] == np.uint32(0xFFFF_FFFF):
        words[place] = np.uint32(0)
        place -= 1
    words[place] += np.uint32(1)


@compiled
def _next_word(state: NDArray[np.uint64], payload: NDArray[np.uint8]) -> np.uint64:
    place = np.int64(state[_POSITION])
    state[_POSITION] += np.uint64(4)
    word = _ZERO
    for i in range(place, place + 4):
        word = (word << np.uint64(8)) | (np.uint64(payload[i]) if i < len(payload) else _ZERO)
    return word
