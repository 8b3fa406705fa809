"""Values at any coordinates: equal to the grid's at its points, careful between them, refused outside."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from numpy.typing import NDArray

from vcinr_batch import evaluation
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.query import make_query
from vcinr_batch.archive.rows import ArchiveRow, pack_mask, row_checksum
from vcinr_batch.compression import decode_rows
from vcinr_batch.errors import ConfigError, SampleNotFoundError

NETWORKS = {
    "gate": "modulation: gate, linear_term: none",
    "gate and linear": "modulation: gate, linear_term: eof",
}
EARLY = {"time": "2019-03-01T00..2019-03-01T03"}


def make_archive(folder: Path, fields: xarray.Dataset, network: str, more: str = "") -> Archive:
    """Fields compressed with a bundle that was hardly trained."""
    from pipelines.compress import CompressJob, compress
    from pipelines.train import train
    from vcinr_batch.compression import QualityRequest
    from vcinr_batch.config import load_config

    fields.to_netcdf(folder / "fields.nc")
    (folder / "run.yaml").write_text(
        f"""
source: {{variable: t2m}}
network: {{{network}, latent_dim: 4, hidden_dim: 12, hidden_layers: 2, rank: 2, hyper_dim: 8, w0: 5}}
normalizer: {{background: mean}}
meta_learning: {{steps: 0}}
codec: {{steps: 2, quality_psnr_db: [20, 40]}}
{more}
"""
    )
    torch.manual_seed(0)
    report = train(load_config(str(folder / "run.yaml")), [str(folder / "fields.nc")], str(folder / "bundle"))
    output = str(folder / "archive")
    compress(CompressJob((str(folder / "fields.nc"),), report.bundle_url, output, QualityRequest(level=1), workers=0))
    return Archive.open(output)


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, fields: xarray.Dataset, archive_path: Path
) -> Callable[[str], Archive]:
    archives = {"linear": Archive.open(str(archive_path))}

    def make(name: str) -> Archive:
        if name not in archives:
            archives[name] = make_archive(tmp_path_factory.mktemp("run"), fields, NETWORKS[name])
        return archives[name]

    return make


@pytest.fixture(params=["linear", *NETWORKS])
def archive(request: pytest.FixtureRequest, made: Callable[[str], Archive]) -> Archive:
    return made(request.param)


@pytest.fixture
def linear(made: Callable[[str], Archive]) -> Archive:
    return made("linear")


def points(latitude: Any, longitude: Any, **columns: Any) -> dict[str, xarray.DataArray]:
    carried = {name: ("points", values) for name, values in columns.items()}
    return {
        "latitude": xarray.DataArray(np.asarray(latitude, np.float64), carried, ("points",)),
        "longitude": xarray.DataArray(np.asarray(longitude, np.float64), carried, ("points",)),
    }


def test_on_the_grid_it_is_the_decoded_grid(archive: Archive) -> None:
    expected = archive.to_xarray(EARLY)["t2m"]
    found = archive.evaluate(EARLY, latitude=expected.latitude.values, longitude=expected.longitude.values)
    # Sums in another order: 280 K in float32 has steps of 3e-5.
    xarray.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
    assert found.attrs == expected.attrs
    assert found.dtype == np.float32
    assert [found[dim].attrs for dim in found.dims] == [expected[dim].attrs for dim in expected.dims]


def test_tables_alone_are_equal_on_the_grid_to_the_last_bit(linear: Archive) -> None:
    expected = linear.to_xarray(EARLY)["t2m"]
    xarray.testing.assert_identical(
        linear.evaluate(EARLY, latitude=expected.latitude.values, longitude=expected.longitude.values), expected
    )


def test_points_are_the_diagonal_of_the_region_of_the_same_coordinates(archive: Archive) -> None:
    latitude, longitude = [57.13, 60.0, 59.75, 58.0], [-4.9, 0.5, -2.75, -3.0]
    region = archive.evaluate(EARLY, latitude=latitude, longitude=longitude)
    found = archive.evaluate(EARLY, **points(latitude, longitude, station=["a", "b", "c", "d"]))
    assert found.dims == ("time", "points")
    assert found.station.values.tolist() == ["a", "b", "c", "d"]
    assert found.latitude.values.tolist() == latitude
    np.testing.assert_allclose(found.values, np.diagonal(region.values, axis1=1, axis2=2), atol=1e-4)


def test_between_the_points_tables_are_on_a_cubic_through_four_of_them(linear: Archive) -> None:
    # What a bundle of the tiny fields has as tables is smooth: the mean over 40 hours and five EOFs of waves.
    grid = linear.to_xarray(EARLY)["t2m"]
    middle = linear.evaluate(EARLY, latitude=[58.25], longitude=grid.longitude.values).values[:, 0]
    around = grid.sel(latitude=[59.0, 58.5, 58.0, 57.5]).values
    np.testing.assert_allclose(middle, (-around[:, 0] + 9 * around[:, 1] + 9 * around[:, 2] - around[:, 3]) / 16, 1e-6)


def test_the_siren_is_evaluated_at_the_very_coordinates(made: Callable[[str], Archive]) -> None:
    archive = made("gate")
    opened = archive.opened_bundle()
    grid, normalizer = opened.bundle.grid, opened.bundle.normalizer
    assert grid.latitude_deg is not None
    assert grid.longitude_deg is not None
    fine = dataclasses.replace(
        grid,
        shape=(1, 15, 23),
        latitude_deg=np.linspace(grid.latitude_deg[0], grid.latitude_deg[-1], 15),
        longitude_deg=np.linspace(grid.longitude_deg[0], grid.longitude_deg[-1], 23),
    )
    latents = torch.from_numpy(decode_rows(list(archive.rows(EARLY)), opened, archive.layout).latents)
    siren = opened.network.at_coordinates(latents, torch.from_numpy(fine.coordinates())).numpy().reshape(4, 15, 23)
    found = archive.evaluate(EARLY, latitude=fine.latitude_deg, longitude=fine.longitude_deg).values
    assert normalizer.background is not None
    table = found - normalizer.scale.item() * siren
    np.testing.assert_allclose(table[:, ::2, ::2], np.broadcast_to(normalizer.background, (4, 8, 12)), atol=2e-4)
    # The background is the same at all times, and so is what is left between the points of the grid.
    np.testing.assert_allclose(table, np.broadcast_to(table[:1], table.shape), atol=2e-4)
    assert np.ptp(siren, axis=(1, 2)).min() > 1e-3


def test_the_order_and_convention_asked_for_come_back(archive: Archive) -> None:
    plain = archive.evaluate(EARLY, latitude=[57.2, 58.1, 59.9], longitude=[-4.3, -1.2, 0.3])
    turned = archive.evaluate(EARLY, longitude=[360.3, 358.8, -4.3], latitude=[59.9, 57.2, 58.1])
    assert turned.dims == ("time", "latitude", "longitude")
    assert turned.longitude.values.tolist() == [360.3, 358.8, -4.3]
    np.testing.assert_allclose(turned.values, plain.values[:, [2, 0, 1]][..., [2, 1, 0]], atol=2e-4)


def test_a_number_takes_its_dimension_away_and_what_is_left_out_is_on_the_grid(linear: Archive) -> None:
    found = linear.evaluate(EARLY, latitude=58.5)
    xarray.testing.assert_identical(found, linear.to_xarray(EARLY)["t2m"].sel(latitude=58.5))
    assert linear.evaluate(EARLY, latitude=58.3, longitude=-1.1).dims == ("time",)
    xarray.testing.assert_identical(linear.evaluate(EARLY), linear.to_xarray(EARLY)["t2m"])


def test_keys_come_back_in_their_order(linear: Archive) -> None:
    keys = list(linear.keys())
    found = linear.evaluate([keys[7], str(keys[2])], latitude=58.5, longitude=[-3.0])
    assert found.time.values.tolist() == linear.to_xarray()["t2m"].time.values[[7, 2]].tolist()
    np.testing.assert_array_equal(found, linear.to_xarray()["t2m"].sel(latitude=58.5, longitude=[-3.0])[[7, 2]])
    assert linear.evaluate(keys[3], latitude=58.5, longitude=-3.0).shape == (1,)


@pytest.mark.parametrize(
    "key", ["t2m[time=2018-01-01T00:00:00]", "z[time=2019-03-01T00:00:00]", "t2m", "t2m[time=2019-03-01]", "", "t2m[]"]
)
def test_an_unknown_key_is_named(linear: Archive, key: str) -> None:
    with pytest.raises(SampleNotFoundError, match="no sample '" + key.replace("[", r"\[")):
        linear.evaluate([str(next(linear.keys())), key], latitude=58)


def test_a_rejected_sample_is_nan_in_a_selection_and_an_error_by_its_key(
    linear: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    select_at = Archive.select_at

    def without_the_third(self: Archive, places: Any) -> Any:
        for chosen in select_at(self, places):
            blocks = self.index(chosen.part).blocks[chosen.positions]
            yield dataclasses.replace(chosen, positions=chosen.positions[blocks[:, 0] != 2])

    monkeypatch.setattr(Archive, "select_at", without_the_third)
    found = linear.evaluate(EARLY, latitude=58.3, longitude=[-3.1, -2.2])
    assert np.isnan(found.values).all(axis=1).tolist() == [False, False, True, False]
    with pytest.raises(SampleNotFoundError, match=r"t2m\[time=2019-03-01T02:00:00\]: rejected"):
        linear.evaluate(["t2m[time=2019-03-01T02:00:00]"], latitude=58.3)


@pytest.mark.parametrize(
    ("keys", "coordinates", "message"),
    [
        (None, {"latitude": 61}, "latitude 61 is outside of the archive's grid, latitude 60 to 56.5"),
        (None, {"longitude": [-5, 0.6]}, r"longitude 0.6 \(index 1\) is outside of the archive's grid"),
        (None, {"latitude": [58, np.nan]}, "latitude: expected finite numbers, got nan at index 1"),
        (None, {"latitude": -np.inf}, "got -inf at index 0"),
        (None, {"latitude": "58"}, "latitude: expected a number or a list of numbers, got '58'"),
        (None, {"latitude": True}, "expected a number"),
        (None, {"latitude": [[58.0]]}, "2-D"),
        (None, {"latitude": [[58.0], [57, 58]]}, "expected a number or a list of numbers"),
        (None, {"latitude": []}, "no coordinates given"),
        (None, {"x": 1}, "'x' is no dimension of the archive's grid: it can be evaluated along latitude, longitude"),
        (None, {"time": 1}, "'time' is no dimension"),
        ({"latitude": "58"}, {"latitude": 58}, "latitude is given as coordinates and selected as well"),
        ({"y": "58"}, {"latitude": 58}, "no dimension 'y'"),
        ([], {"latitude": 58}, "no sample keys"),
        (5, {"latitude": 58}, "expected a selection or sample keys, got 5"),
        (None, {"latitude": np.ma.masked_array([58.0, 57.0], [0, 1])}, "latitude: some coordinates are masked"),
    ],
)
def test_coordinates_that_make_no_sense_are_refused(
    linear: Archive, keys: Any, coordinates: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        linear.evaluate(keys, **coordinates)


def test_points_share_one_dimension_of_one_length(linear: Archive) -> None:
    latitude, longitude = xarray.DataArray([58.0, 59], dims="a"), xarray.DataArray([-1.0, -2], dims="b")
    with pytest.raises(ConfigError, match="all their coordinates share; got a, b"):
        linear.evaluate(latitude=latitude, longitude=longitude)
    with pytest.raises(ConfigError, match=r"differ in length: \[2, 3\]"):
        linear.evaluate(latitude=latitude, longitude=xarray.DataArray([-1.0, -2, -3], dims="a"))
    with pytest.raises(ConfigError, match="points along 'time'"):
        linear.evaluate(latitude=latitude.rename(a="time"))
    with pytest.raises(SampleNotFoundError, match="selects nothing"):
        linear.evaluate({"time": "2020"}, latitude=latitude)


@pytest.mark.parametrize("piece", [1, 7, 60])
def test_pieces_make_no_difference(archive: Archive, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    coordinates = {"latitude": np.linspace(56.5, 60, 9), "longitude": np.linspace(-5, 0.5, 5)}
    at_points = points(coordinates["latitude"][:5], coordinates["longitude"])
    whole = [archive.evaluate(EARLY, **coordinates), archive.evaluate(EARLY, **at_points)]
    monkeypatch.setattr(evaluation, "PIECE_VALUES", piece)
    monkeypatch.setattr(evaluation, "_LEAST_COST", 1)
    for expected, asked in zip(whole, (coordinates, at_points), strict=True):
        xarray.testing.assert_allclose(archive.evaluate(EARLY, **asked), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("piece", [1, 7, 60, 1000])
def test_pieces_are_bounded_and_one_after_the_other_the_answer(
    linear: Archive, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    coordinates = {"latitude": np.linspace(56.5, 60, 9), "longitude": np.linspace(-5, 0.5, 5)}
    expected = linear.evaluate(EARLY, **coordinates).values
    monkeypatch.setattr(evaluation, "PIECE_VALUES", piece)
    pieces = [values for _, values in evaluation.evaluate_pieces(linear, make_query(linear.layout, EARLY, coordinates))]
    assert max(values.size for values in pieces) <= piece
    np.testing.assert_allclose(np.concatenate([values.ravel() for values in pieces]), expected.ravel(), rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "gate"])
def test_there_is_no_value_where_a_point_around_has_none(
    made: Callable[[str], Archive], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = made(name)
    mask = np.ones((8, 12), bool)
    mask[3, 5] = False  # latitude 58.5, longitude -2.5
    masked_rows(monkeypatch, archive, mask)
    assert np.isnan(archive.to_xarray(EARLY)["t2m"].sel(latitude=58.5, longitude=-2.5)).all()
    latitude = [58.5, 58.5, 58.5, 58.7, 58.0, 59.0, 58.9, 59.1]
    longitude = [-2.5, -2.7, -3.0, -2.3, -2.0, -3.0, -2.9, -2.5]
    found = archive.evaluate(EARLY, **points(latitude, longitude))
    gaps = [True, True, False, True, False, False, True, False]
    assert np.isnan(found.values).tolist() == [gaps] * 4
    region = archive.evaluate(EARLY, latitude=latitude, longitude=longitude)
    np.testing.assert_allclose(np.diagonal(region.values, axis1=1, axis2=2), found.values, atol=2e-4)


def masked_rows(monkeypatch: pytest.MonkeyPatch, archive: Archive, mask: NDArray[np.bool_]) -> None:
    read = Archive._read

    def masked(self: Archive, part: Any, positions: Any) -> list[ArchiveRow]:
        packed, sha256 = pack_mask(mask.ravel()), archive.manifest.bundle_sha256
        return [
            dataclasses.replace(
                row, mask=packed, checksum=row_checksum(row.key, row.quality, row.payload, packed, sha256)
            )
            for row in read(self, part, positions)
        ]

    monkeypatch.setattr(Archive, "_read", masked)
