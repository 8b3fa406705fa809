"""Bundles: round trip, determinism, and bytes that nobody should trust."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from vcinr_batch.bundle import (
    Bundle,
    find_bundle,
    load_bundle,
    make_bundle,
    parse_bundle,
    save_bundle,
)
from vcinr_batch.compression import open_bundle
from vcinr_batch.config import RunConfig, parse_config
from vcinr_batch.data.axes import Axis
from vcinr_batch.data.coordinates import Grid
from vcinr_batch.data.layout import MAX_POINTS
from vcinr_batch.data.normalization import Normalizer
from vcinr_batch.errors import (
    CorruptBitstreamError,
    SourceError,
    UnsupportedFormatError,
    VcinrError,
)
from vcinr_batch.storage import sha256_hex

SETTINGS = {
    "source": {"variable": "t2m", "select": {"time": "2019-03"}, "member_pattern": "r([0-9]+)"},
    "network": {"modulation": "none", "linear_term": "eof", "latent_dim": 2},
}
REPORT = {"samples": 3, "codec": {"levels": [{"psnr_db": 31.5}]}}


def make(settings: dict[str, Any] | None = None, report: dict[str, Any] | None = None) -> tuple[Bundle, bytes]:
    config = parse_config(SETTINGS | (settings or {}))
    axes = (Axis("y", np.arange(3)), Axis("x", np.arange(4) * 0.5))
    normalizer = Normalizer(
        variable="t2m",
        unit="K",
        axes=axes,
        background=np.linspace(270, 290, 12, dtype=np.float32).reshape(1, 3, 4),
        hours=1,
        seasons=1,
        offset=280.0,
        scale=np.full((1, 1), 2.5, np.float32),
        value_range=np.full((1, 1), 30.0, np.float32),
        mask=np.arange(12).reshape(3, 4) > 0,
    )
    network = {
        "phi0": np.zeros(2, np.float32),
        "log_ridge": np.float32(-18.0) * np.ones((), np.float32),
        "inner_rate": np.ones(2, np.float32),
        "linear.basis": np.arange(24, dtype=np.float32).reshape(12, 1, 2),
    }
    codec = {"tables.steps": np.array([2.0, 1.0]), "transform.mean": np.zeros(2, np.float32)}
    grid = Grid(("time", "y", "x"), (1, 3, 4), "cartesian")
    return make_bundle(config, grid, normalizer, network, codec, REPORT if report is None else report)


def edited(data: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """The bytes with a changed header, as someone would write who knows the format."""
    length = int.from_bytes(data[:8], "little")
    outer = json.loads(data[8 : 8 + length])
    header = json.loads(outer["__metadata__"]["vcinr-bundle"])
    edit(header)
    return safetensors.numpy.save(safetensors.numpy.load(data), {"vcinr-bundle": json.dumps(header)})


def parse(data: bytes) -> Bundle:
    return parse_bundle(data, sha256_hex(data))


def test_a_saved_bundle_loads_with_everything_in_it(tmp_path: Path) -> None:
    made, data = make()
    url = save_bundle(data, str(tmp_path))
    assert url == str(tmp_path / f"{sha256_hex(data)}.safetensors")
    loaded = load_bundle(url)

    assert loaded.sha256 == made.sha256 == sha256_hex(data)
    assert loaded.file_name == f"{loaded.sha256}.safetensors"
    assert loaded.variable == "t2m"
    assert loaded.config == made.config
    assert loaded.report == REPORT
    assert (loaded.grid.dims, loaded.grid.shape, loaded.grid.system) == (("time", "y", "x"), (1, 3, 4), "cartesian")
    for ours, theirs in ((made.network, loaded.network), (made.codec, loaded.codec)):
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            assert (array.shape, array.dtype) == (theirs[name].shape, theirs[name].dtype)
            np.testing.assert_array_equal(array, theirs[name])
    assert loaded.network["log_ridge"].shape == ()
    assert loaded.normalizer.unit == "K"
    assert made.normalizer.background is not None
    assert loaded.normalizer.background is not None
    assert loaded.normalizer.mask is not None
    np.testing.assert_array_equal(loaded.normalizer.background, made.normalizer.background)
    np.testing.assert_array_equal(loaded.normalizer.mask.ravel(), np.arange(12) > 0)


def test_where_the_source_was_is_not_part_of_a_bundle() -> None:
    bundle, data = make()
    assert bundle.config.source.variable == "t2m"
    assert bundle.config.source.select == {}
    assert b"r([0-9]+)" not in data
    _, elsewhere = make({"source": {"variable": "t2m", "select": {"time": "2020"}}})
    assert elsewhere == data


def test_equal_content_is_equal_bytes_and_other_content_is_not() -> None:
    assert make()[1] == make()[1]
    assert make()[1] != make(report={})[1]


def test_the_only_bundle_of_a_directory_is_found(tmp_path: Path) -> None:
    _, data = make()
    url = save_bundle(data, str(tmp_path))
    (tmp_path / "training.log").write_text("done")
    assert find_bundle(str(tmp_path)) == url
    assert load_bundle(str(tmp_path)).sha256 == sha256_hex(data)


@pytest.mark.parametrize("count", [0, 2])
def test_a_directory_with_no_or_several_bundles_is_an_error(tmp_path: Path, count: int) -> None:
    for i in range(count):
        save_bundle(make(report={"number": i})[1], str(tmp_path))
    with pytest.raises(SourceError, match=f"expected one bundle .*found {count}"):
        load_bundle(str(tmp_path))


def test_a_missing_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no\.safetensors"):
        load_bundle(str(tmp_path / "no.safetensors"))


@pytest.mark.parametrize("name", ["model.safetensors", "ABC.safetensors", "0" * 64 + ".safetensors"])
def test_a_renamed_bundle_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(make()[1])
    with pytest.raises(CorruptBitstreamError, match="renamed"):
        load_bundle(str(path))


def test_every_truncation_and_every_edited_byte_is_noticed() -> None:
    bundle, data = make()
    for length in range(len(data)):
        with pytest.raises(CorruptBitstreamError, match="truncated, edited or renamed"):
            parse_bundle(data[:length], bundle.sha256)
    for at in range(len(data)):
        with pytest.raises(CorruptBitstreamError):
            parse_bundle(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], bundle.sha256)


def test_damage_under_a_matching_digest_raises_only_our_errors() -> None:
    """The digest holds nobody off who writes it too: cut and flip, and let the parser and the opener cope."""
    _, data = make()
    random = np.random.default_rng(0)
    outcomes = set()
    for trial in range(600):
        if trial % 2:
            broken = data[: random.integers(len(data))]
        else:
            at = int(random.integers(len(data)))
            broken = data[:at] + bytes([data[at] ^ int(random.integers(1, 256))]) + data[at + 1 :]
        try:
            open_bundle(parse(broken))
            outcomes.add("opened")
        except VcinrError as error:
            outcomes.add(type(error).__name__)
    assert outcomes <= {"CorruptBitstreamError", "UnsupportedFormatError"}
    assert "CorruptBitstreamError" in outcomes


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        (2**63).to_bytes(8, "little") + b"{}",
        b"\x02\0\0\0\0\0\0\0{}",
        b"\x03\0\0\0\0\0\0\0[1]",
        b"PK\x03\x04 a zip file" * 10,
        len(b"[" * 5000).to_bytes(8, "little") + b"[" * 5000,
    ],
)
def test_bytes_that_are_no_bundle_are_our_error(data: bytes) -> None:
    with pytest.raises(CorruptBitstreamError, match="not a vcinr bundle"):
        parse(data)


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header.pop("grid"),
        lambda header: header.pop("normalizer"),
        lambda header: header.update(config=[1]),
        lambda header: header["config"].update(colour="red"),
        lambda header: header["config"]["network"].update(latent_dim=-1),
        lambda header: header["grid"].update(shape=[1, 3, 1e400]),
        lambda header: header["grid"].update(system="torus"),
        lambda header: header["normalizer"].update(hours=10**30),
        lambda header: header.update(report=7),
    ],
)
def test_headers_that_make_no_sense_are_our_error(edit: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(CorruptBitstreamError):
        parse(edited(make()[1], edit))


@pytest.mark.parametrize("version", [2, "1", None])
def test_another_version_is_named(version: Any) -> None:
    with pytest.raises(UnsupportedFormatError, match=f"bundle version {version}, this package reads 1"):
        parse(edited(make()[1], lambda header: header.update(version=version)))


def test_arrays_of_an_unknown_group_are_our_error() -> None:
    _, data = make()
    tensors = safetensors.numpy.load(data) | {"optimizer/step": np.ones(1)}
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    with pytest.raises(CorruptBitstreamError, match="optimizer"):
        parse(safetensors.numpy.save(tensors, metadata))


@pytest.mark.parametrize("points", [MAX_POINTS + 1, 10**8, 10**9])
def test_more_points_than_the_limit_are_refused(points: int) -> None:
    data = edited(make()[1], lambda header: header["grid"].update(shape=[1, 1, points]))
    with pytest.raises(CorruptBitstreamError, match="points"):
        parse(data)


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header["config"]["network"].update(modulation="gate", hidden_dim=2**20),
        lambda header: header["config"]["network"].update(modulation="gate", hidden_dim=10**15),
        lambda header: header["config"]["network"].update(modulation="shift", hidden_layers=10**30),
        lambda header: header["config"]["network"].update(latent_dim=10**12),
        lambda header: header["config"]["network"].update(latent_dim=10**300),
        lambda header: header["config"]["network"].update(modulation="gate", hyper_dim=10**9, rank=10**9),
        lambda header: header["grid"].update(shape=[1, 2**12, 2**12]),
    ],
)
def test_sizes_that_a_header_claims_are_not_allocated(edit: Callable[[dict[str, Any]], None]) -> None:
    data = edited(make()[1], edit)
    before_kib, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CorruptBitstreamError, match="weights do not fit its config"):
        open_bundle(parse(data))
    # The least that any of these would allocate is 134 MB (2^24 points x 2 floats).
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({"codec": {"levels": [{"psnr_db": 31.5}]}}, (31.5,)),
        ({}, (30.0,)),
        ({"codec": {"levels": [{"psnr_db": "high"}]}}, (30.0,)),
        ({"codec": {"levels": []}}, (30.0,)),
        ({"codec": 1}, (30.0,)),
    ],
)
def test_quality_levels_are_known_by_their_measured_or_nominal_psnr(
    report: dict[str, Any], expected: tuple[float, ...]
) -> None:
    bundle, _ = make({"codec": {"quality_psnr_db": [30.0]}}, report)
    assert bundle.quality_psnr_db == expected


def test_the_default_config_survives_the_header() -> None:
    bundle, _ = make_bundle(RunConfig(), *_rest(make()[0]))
    assert bundle.config == RunConfig()


def _rest(bundle: Bundle) -> tuple[Any, ...]:
    return bundle.grid, bundle.normalizer, bundle.network, bundle.codec, bundle.report
