"""With a max error no decoded value is farther from the source's, whatever the source holds and however it is read."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from numpy.typing import NDArray

from pipelines.compress import CompressJob, compress
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.rows import row_checksum
from vcinr_batch.bundle import load_bundle
from vcinr_batch.compression import OpenBundle, compress_samples, decompress_rows, open_bundle
from vcinr_batch.config import SourceConfig, configured_request, parse_config
from vcinr_batch.data.coordinates import make_grid
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.samples import Sample, SampleKey
from vcinr_batch.data.sources import open_fields
from vcinr_batch.error_bound import pack_values, unpack_values
from vcinr_batch.errors import ConfigError, CorruptBitstreamError
from vcinr_batch.inspection import LOSSLESS_LEVEL, measure_rows
from vcinr_batch.quality_request import QualityRequest, bound_from_json, parse_max_error, request_to_json
from vcinr_batch.summary_text import quality_text
from vcinr_batch.verification import verify_archive

BOUND_K = 0.1


@pytest.fixture(scope="module")
def bounded_path(tmp_path_factory: pytest.TempPathFactory, source_path: Path, bundle_path: Path) -> Path:
    output = tmp_path_factory.mktemp("bounded") / "archive"
    request = QualityRequest(max_error=BOUND_K)
    compress(CompressJob((str(source_path),), str(bundle_path), str(output), request, shard_samples=10))
    return output


@pytest.fixture(scope="module")
def opened(bundle_path: Path) -> OpenBundle:
    return open_bundle(load_bundle(str(bundle_path)))


@pytest.fixture(scope="module")
def layout(bounded_path: Path) -> Layout:
    return Archive.open(str(bounded_path)).layout


def samples_of(values: NDArray[np.float32], layout: Layout) -> list[Sample]:
    """Fields [N, H, W] as the first samples of a layout, NaN as gaps."""
    made, coordinates = [], make_grid(layout, "auto").coordinates()
    for i, field in enumerate(values.reshape(len(values), -1, 1)):
        key = SampleKey("t2m", (("time", str(i)),))
        mask = ~np.isnan(field[:, 0])
        made.append(Sample(key, (i, 0, 0), coordinates, field, None if mask.all() else mask))
    return made


def fields_of(dataset: xarray.Dataset, count: int = 6) -> NDArray[np.float32]:
    return np.array(dataset["t2m"].values[:count], np.float32)


def farthest(decoded: NDArray[np.float32], values: NDArray[np.float32]) -> float:
    difference = np.abs(decoded.astype(np.float64).reshape(values.shape) - values)
    return float(np.nanmax(difference))


def test_no_value_of_an_archive_is_beyond_the_bound(bounded_path: Path, fields: xarray.Dataset) -> None:
    archive = Archive.open(str(bounded_path))
    restored = archive.to_xarray()["t2m"]
    assert farthest(restored.values, fields["t2m"].values) <= BOUND_K
    rows = archive.rows()
    assert {row.coding for row in rows} == {1}
    # As float32, in which rows record it.
    assert max(row.max_error for row in rows) <= np.float32(BOUND_K)


def test_a_bound_is_not_wasted(bounded_path: Path, fields: xarray.Dataset) -> None:
    restored = Archive.open(str(bounded_path)).to_xarray()["t2m"]
    assert farthest(restored.values, fields["t2m"].values) > BOUND_K / 2


def test_verification_holds_the_rows_to_their_errors(bounded_path: Path, source_path: Path) -> None:
    report = verify_archive(str(bounded_path), open_fields((str(source_path),), SourceConfig(variable="t2m")))
    assert report.problems == ()
    assert report.compared == 40


def test_a_zarr_archive_keeps_the_bound_through_zarr(
    tmp_path: Path, source_path: Path, bundle_path: Path, fields: xarray.Dataset
) -> None:
    request, output = QualityRequest(max_error=BOUND_K), str(tmp_path / "bounded.zarr")
    compress(CompressJob((str(source_path),), str(bundle_path), output, request, container="zarr"))
    with xarray.open_zarr(output, zarr_format=3) as opened:
        assert farthest(opened["t2m"].values, fields["t2m"].values) <= BOUND_K


def test_values_asked_for_at_the_grid_s_own_points_keep_the_bound(bounded_path: Path, fields: xarray.Dataset) -> None:
    at = Archive.open(str(bounded_path)).evaluate(
        {"time": "2019-03-01T05"}, latitude=fields["latitude"].values[2:4], longitude=fields["longitude"].values[3:6]
    )
    # Interpolation at a point of the grid differs in the last digits of float32.
    assert farthest(np.array(at.values).ravel(), fields["t2m"].values[5, 2:4, 3:6].ravel()) <= BOUND_K + 1e-4


@pytest.mark.parametrize("share", [0.2, 0.01, 0.001])
def test_a_share_of_the_range_is_the_same_as_its_value(
    share: float, opened: OpenBundle, layout: Layout, fields: xarray.Dataset
) -> None:
    value_range = float(opened.bundle.normalizer.value_range.reshape(-1)[0])
    samples = samples_of(fields_of(fields), layout)
    payloads = [
        [row.payload for row in compress_samples(samples, opened, layout, request)[0]]
        for request in (QualityRequest(max_error_share=share), QualityRequest(max_error=share * value_range))
    ]
    assert payloads[0] == payloads[1]


def test_a_smaller_bound_takes_more_bytes(opened: OpenBundle, layout: Layout, fields: xarray.Dataset) -> None:
    samples = samples_of(fields_of(fields), layout)
    sizes = [
        sum(len(row.payload) for row in compress_samples(samples, opened, layout, QualityRequest(max_error=bound))[0])
        for bound in (1.0, 0.1, 0.01)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


def strange(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    if name == "a spike":
        values[0, 3, 4] = 1e6
    if name == "far from the training data":
        values += 4e4
    if name == "noise":
        values += 30 * rng.standard_normal(values.shape).astype(np.float32)
    if name == "constant":
        values[:] = 0.0
    if name == "gaps":
        values[:, 2:5, :7] = np.nan
    if name == "one point":
        values.reshape(len(values), -1)[:, 1:] = np.nan
    if name == "the largest numbers":
        values[0, 0, 0], values[1, 1, 1] = np.finfo(np.float32).max, np.finfo(np.float32).min
    return values


@pytest.mark.parametrize("bound", [5.0, 0.1, 1e-3, 1e-7])
@pytest.mark.parametrize(
    "name",
    [
        "a spike",
        "far from the training data",
        "noise",
        "constant",
        "gaps",
        "one point",
        "the largest numbers",
    ],
)
def test_no_field_is_beyond_its_bound(
    name: str, bound: float, opened: OpenBundle, layout: Layout, fields: xarray.Dataset
) -> None:
    values = strange(name, fields_of(fields))
    request = QualityRequest(max_error=bound)
    rows, rejected = compress_samples(samples_of(values, layout), opened, layout, request)
    assert rejected == []
    decoded = decompress_rows(rows, opened, layout, request)
    assert np.array_equal(np.isnan(decoded).reshape(values.shape), np.isnan(values))
    assert farthest(decoded, values) <= bound
    errors = np.nanmax(np.abs(decoded.reshape(values.shape).astype(np.float64) - values), axis=(1, 2))
    assert (errors <= [row.max_error for row in rows]).all()


def test_a_bound_below_float32_is_kept_by_storing_losslessly(
    opened: OpenBundle, layout: Layout, fields: xarray.Dataset
) -> None:
    values, request = fields_of(fields), QualityRequest(max_error=1e-9)
    rows, _ = compress_samples(samples_of(values, layout), opened, layout, request)
    assert {(row.coding, row.max_error, row.rmse) for row in rows} == {(2, 0.0, 0.0)}
    assert np.array_equal(decompress_rows(rows, opened, layout, request).reshape(values.shape), values)


def test_a_lossless_sample_among_others_changes_none_of_them(
    opened: OpenBundle, layout: Layout, fields: xarray.Dataset
) -> None:
    values, request = fields_of(fields), QualityRequest(max_error=0.05)
    values[2] *= np.float32(1e9)
    rows, _ = compress_samples(samples_of(values, layout), opened, layout, request)
    assert [row.coding for row in rows] == [1, 1, 2, 1, 1, 1]
    together = decompress_rows(rows, opened, layout, request)
    for i, row in enumerate(rows):
        assert np.array_equal(decompress_rows([row], opened, layout, request)[0], together[i])


def test_a_target_rmse_is_reached_by_every_sample(opened: OpenBundle, layout: Layout, fields: xarray.Dataset) -> None:
    rows, _ = compress_samples(samples_of(fields_of(fields), layout), opened, layout, QualityRequest(target_rmse=0.5))
    assert max(row.rmse for row in rows) <= 0.5
    assert max(row.rmse for row in rows) > 0.05


def test_rows_under_a_bound_do_not_decode_without_it(
    opened: OpenBundle, layout: Layout, fields: xarray.Dataset
) -> None:
    rows, _ = compress_samples(samples_of(fields_of(fields), layout), opened, layout, QualityRequest(max_error=0.1))
    with pytest.raises(CorruptBitstreamError, match=r"t2m\[time=[0-9]\]: .*no error bound"):
        decompress_rows(rows, opened, layout)


def test_damaged_payloads_of_any_coding_raise_ours_or_decode(
    opened: OpenBundle, layout: Layout, fields: xarray.Dataset
) -> None:
    values, request = fields_of(fields, 3), QualityRequest(max_error=0.05)
    values[2] *= np.float32(1e9)
    rows, _ = compress_samples(samples_of(values, layout), opened, layout, request)
    rng, raised = np.random.default_rng(0), 0
    for row in rows:
        for _ in range(60):
            damaged = bytearray(row.payload)
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
            payload = bytes(damaged[: rng.integers(len(damaged) + 1)]) if rng.random() < 0.3 else bytes(damaged)
            checksum = row_checksum(row.key, row.quality, payload, row.mask, opened.bundle.sha256, row.coding)
            changed = dataclasses.replace(row, payload=payload, checksum=checksum)
            try:
                decompress_rows([changed], opened, layout, request)
            except CorruptBitstreamError as error:
                raised += str(row.key) in str(error)
    assert raised > 60  # every change of a lossless row is noticed by zlib


def test_a_bundle_without_a_residual_coder_says_so(opened: OpenBundle, layout: Layout, fields: xarray.Dataset) -> None:
    bundle = opened.bundle
    old = dataclasses.replace(
        bundle, codec={name: array for name, array in bundle.codec.items() if not name.startswith("residual.")}
    )
    with pytest.raises(ConfigError, match="without a residual coder"):
        compress_samples(samples_of(fields_of(fields), layout), open_bundle(old), layout, QualityRequest(max_error=0.1))


@pytest.mark.parametrize("mask", [np.array([True, True, False, True]), np.zeros(4, bool)])
def test_packed_values_come_back_bit_by_bit(mask: NDArray[np.bool_]) -> None:
    values = np.array([[1.5], [-0.0], [np.nan], [1e-45]], np.float32)
    unpacked = unpack_values(pack_values(values, mask), mask, 1)
    assert unpacked[mask].tobytes() == values[mask].tobytes()
    assert np.isnan(unpacked[~mask]).all()


@pytest.mark.parametrize("damage", [b"", b"x", b"x\x9c", None])
def test_packed_values_of_another_length_are_refused(damage: bytes | None) -> None:
    mask = np.ones(4, bool)
    payload = pack_values(np.zeros((5, 1), np.float32), np.ones(5, bool)) if damage is None else damage
    with pytest.raises(CorruptBitstreamError):
        unpack_values(payload, mask, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.1", QualityRequest(max_error=0.1)),
        (" 2 ", QualityRequest(max_error=2.0)),
        ("1e-3", QualityRequest(max_error=1e-3)),
        ("0.5%", QualityRequest(max_error_share=0.005)),
        ("5 %", QualityRequest(max_error_share=0.05)),
    ],
)
def test_a_bound_is_a_number_or_a_percentage(text: str, expected: QualityRequest) -> None:
    assert parse_max_error(text) == expected
    assert bound_from_json(request_to_json(expected)) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "0%", "nan", "inf", "1e999", "0.1K", "%", "0,1", "1 2", "--"])
def test_other_texts_are_no_bound(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a number above 0"):
        parse_max_error(text)


@pytest.mark.parametrize("content", [{"max_error": "x"}, {"max_error": 0}, {"max_error": 1, "quality": 2}])
def test_a_manifest_s_bound_that_is_none_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(CorruptBitstreamError, match="what the archive was asked for"):
        bound_from_json(content)


def test_a_configuration_can_hold_the_bound_of_a_variable() -> None:
    config = parse_config({"quality": {"max_error": {"t2m": 0.1, "z": "0.5%"}}})
    assert configured_request(config, "t2m") == QualityRequest(max_error=0.1)
    assert configured_request(config, "z") == QualityRequest(max_error_share=0.005)
    with pytest.raises(ConfigError, match="say how good u10 shall be"):
        configured_request(config, "u10")
    with pytest.raises(ConfigError, match=r"quality\.max_error|quality"):
        parse_config({"quality": {"max_error": {"t2m": "much"}}})


def test_inspection_counts_lossless_samples_apart(opened: OpenBundle, layout: Layout, fields: xarray.Dataset) -> None:
    values = fields_of(fields)
    values[2] *= np.float32(1e9)
    rows, _ = compress_samples(samples_of(values, layout), opened, layout, QualityRequest(max_error=0.05))
    counts = measure_rows(rows, opened.bundle.normalizer, layout).quality_counts
    assert counts[LOSSLESS_LEVEL] == 1
    assert sum(counts.values()) == 6
    assert quality_text(counts, opened.bundle.quality_psnr_db).endswith("lossless: 1 sample")
