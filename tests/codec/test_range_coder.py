"""The compiled range coder against the one of `entropy_coder`, byte for byte."""

import numpy as np
import pytest

from tests.codec.made_up_residual import make_symbols, make_tables
from vcinr_batch.codec import range_coder
from vcinr_batch.codec.entropy_coder import encode_symbols
from vcinr_batch.codec.entropy_model import choose_levels
from vcinr_batch.codec.range_coder import (
    CORRUPT,
    compiled,
    decode_bits,
    decode_target,
    encode_interval,
    finish_encoder,
    start_decoder,
    start_encoder,
)
from vcinr_batch.codec.symbol_kernel import (
    decode_entry,
    decode_number,
    decode_symbols_from,
    encode_entry,
    encode_number,
    encode_symbols_into,
    offset_cumulative,
    offset_of,
    plan_arguments,
    symbol_plan,
)


@pytest.mark.parametrize("seed", range(12))
def test_base_symbols_have_the_bytes_of_the_entropy_coder(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dims, quality = int(rng.integers(1, 40)), seed % 3
    tables, symbols = make_tables(rng, dims=dims), make_symbols(rng, 10, dims)
    levels = choose_levels(tables, quality, symbols).tolist()
    for row, level, expected in zip(symbols, levels, encode_symbols(symbols, tables, quality), strict=True):
        state, words = np.empty(3, np.uint64), np.empty(6 * dims + 64, np.uint32)
        plan = plan_arguments(symbol_plan(tables, level))
        start_encoder(state)
        encode_entry(state, words, offset_cumulative(tables, quality), 0, offset_of(level, quality))
        encode_symbols_into(state, words, row, *plan, np.empty(dims, np.int64))
        length = finish_encoder(state, words)
        payload = words.astype(">u4").tobytes()[:length]
        assert payload == expected
        data, decoded = np.frombuffer(payload, np.uint8), np.empty(dims, np.int32)
        start_decoder(state, data)
        assert decode_entry(state, data, offset_cumulative(tables, quality), 0, 5) == offset_of(level, quality)
        assert decode_symbols_from(state, data, decoded, *plan, *np.empty((3, dims), np.int64))
        assert np.array_equal(decoded, row)


def test_numbers_of_every_length_come_back() -> None:
    cumulative = plan_arguments(symbol_plan(make_tables(np.random.default_rng(0)), 0))[-1]
    numbers = [0, 1, 2, 2**16 - 2, 2**16 - 1, 2**17, 2**33, 2**36 - 2]
    state, words = np.empty(3, np.uint64), np.empty(100, np.uint32)
    start_encoder(state)
    for number in numbers:
        encode_number(state, words, number, cumulative)
    length = finish_encoder(state, words)
    data = np.frombuffer(words.astype(">u4").tobytes()[:length], np.uint8)
    start_decoder(state, data)
    assert [decode_number(state, data, cumulative) for _ in numbers] == numbers


def test_a_carry_runs_through_words_of_ones() -> None:
    # The last 2^-24 of the range again and again makes words of ones; the last step of the interval then carries.
    state, words = np.empty(3, np.uint64), np.empty(50, np.uint32)
    start_encoder(state)
    for _ in range(20):
        encode_interval(state, words, 2**24 - 1, 1)
    encode_interval(state, words, 2**23, 2**23)
    length = finish_encoder(state, words)
    data = np.frombuffer(words.astype(">u4").tobytes()[:length], np.uint8)
    start_decoder(state, data)
    for _ in range(20):
        assert decode_target(state) == 2**24 - 1
        range_coder.consume(state, data, 2**24 - 1, 1)
    assert decode_target(state) >= 2**23


def test_bytes_that_no_message_leads_to_are_corrupt() -> None:
    state, data = np.empty(3, np.uint64), np.full(8, 255, np.uint8)
    start_decoder(state, data)
    assert decode_target(state) == CORRUPT
    assert decode_bits(state, data, 8) == CORRUPT


def test_compiling_works_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    real = range_coder.numba.njit

    def no_locator(*args: object, **kwargs: object) -> object:
        if kwargs.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **kwargs)

    monkeypatch.setattr(range_coder.numba, "njit", no_locator)
    assert compiled(lambda number: number + 1)(2) == 3
