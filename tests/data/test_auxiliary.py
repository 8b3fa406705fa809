import base64
import json
import zlib
from typing import Any

import numpy as np
import pytest

from tests.archive.conftest import make_layout
from vcinr_batch.data.auxiliary import (
    Auxiliary,
    auxiliaries_from_json,
    auxiliaries_to_json,
    auxiliary_variable,
    coordinates_attribute,
    related_names,
    take_auxiliary,
)
from vcinr_batch.errors import CorruptBitstreamError

LAYOUT = make_layout(hours=6, latitudes=2, longitudes=3)
TIMES = {"units": "seconds since 1970-01-01", "calendar": "360_day", "source_units": "days since 2000-01-01"}


def variable(**changed: Any) -> Auxiliary:
    fields = {"name": "area", "dims": ("latitude", "longitude"), "values": np.arange(6.0).reshape(2, 3)}
    return Auxiliary(**{**fields, **changed})  # type: ignore[arg-type]


def packed(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw)).decode()


@pytest.mark.parametrize(
    "values",
    [
        *(np.array([[0, 1, 1], [1, 0, 1]], dtype) for dtype in ("?", "i1", "u1", "i2", "u4", "i8", "u8", "f4", "f8")),
        np.array([[np.iinfo("i8").min, np.iinfo("i8").max, 0], [-1, 1, 7]]),
        np.array([[np.nan, np.inf, -0.0], [-np.inf, 5e-324, 1e308]]),
        np.arange(6.0).reshape(2, 3).astype(">f4"),
        np.arange(6.0).reshape(3, 2).T,
        np.array([["0001", "", "grün"], ["%,=", "a\nb", "x" * 50]]),
        np.array([[b"0001", b"", "grün".encode()]] * 2),
    ],
    ids=lambda values: values.dtype.str,
)
def test_values_of_every_type_come_back_to_the_last_bit(values: np.ndarray) -> None:
    written = json.dumps(auxiliaries_to_json([variable(values=values, attributes={"scale": np.float32(0.5)})]))
    (found,) = auxiliaries_from_json(json.loads(written), LAYOUT)
    assert found.values.dtype.newbyteorder("=") == values.dtype.newbyteorder("=")
    assert found.values.tobytes() == np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    assert (found.name, found.dims, found.attributes) == ("area", ("latitude", "longitude"), {"scale": 0.5})
    assert json.dumps(auxiliaries_to_json([found])) == written


def test_a_scalar_comes_back() -> None:
    (found,) = auxiliaries_from_json(auxiliaries_to_json([variable(dims=(), values=np.array(2, "i1"))]), LAYOUT)
    assert (found.values.shape, found.values.dtype, int(found.values)) == ((), np.int8, 2)


def test_a_smooth_grid_is_packed_to_less_than_a_third() -> None:
    layout = make_layout(hours=1, latitudes=200, longitudes=300)
    y, x = np.mgrid[:200, :300]
    grid = (350 + 0.2 * x - 0.007 * y).astype(np.float32)
    (content,) = auxiliaries_to_json([variable(values=grid)])
    assert len(content["data"]) < grid.nbytes / 3  # measured: 0.22
    np.testing.assert_array_equal(auxiliaries_from_json([content], layout)[0].values, grid)


def test_a_dimension_of_its_own_comes_back_and_makes_it_no_coordinate() -> None:
    values = np.arange(24, dtype="i4").reshape(2, 4, 3)
    corners = variable(name="corners", dims=("latitude", "corner", "longitude"), values=values, own_dim="corner")
    content = json.loads(json.dumps(auxiliaries_to_json([corners])))
    assert content[0]["sizes"] == {"corner": 4}
    (found,) = auxiliaries_from_json(content, LAYOUT)
    assert (found.dims, found.own_dim, found.own_length) == (corners.dims, "corner", 4)
    np.testing.assert_array_equal(found.values, values)
    taken = take_auxiliary(found, "longitude", np.array([2]))
    assert (taken.values.shape, taken.own_dim) == ((2, 4, 1), "corner")
    assert coordinates_attribute([found, variable()], {}) == {"coordinates": "area"}


def test_without_one_nothing_is_said_of_it() -> None:
    assert "sizes" not in auxiliaries_to_json([variable()])[0]


def test_times_are_decoded_in_their_calendar_and_shape() -> None:
    times = variable(dims=("time", "latitude"), values=86400 * np.arange(12).reshape(6, 2), attributes=TIMES)
    (found,) = auxiliaries_from_json(auxiliaries_to_json([times]), LAYOUT)
    decoded = auxiliary_variable(take_auxiliary(found, "time", np.array([5])))
    assert [value.isoformat() for value in decoded.values[0]] == ["1970-01-11T00:00:00", "1970-01-12T00:00:00"]
    assert decoded.attrs == {}
    assert decoded.encoding == {"units": "days since 2000-01-01", "calendar": "360_day"}


def test_labels_are_taken_along_one_dimension() -> None:
    taken = take_auxiliary(variable(), "longitude", np.array([2, 0]))
    assert taken.values.tolist() == [[2.0, 0.0], [5.0, 3.0]]
    assert take_auxiliary(taken, "time", np.array([0])) is taken


@pytest.mark.parametrize(
    ("relation", "text", "expected"),
    [
        ("grid_mapping", "crs", ["crs"]),
        ("grid_mapping", "crs: y x wgs84 : lat lon", ["crs", "wgs84"]),
        ("cell_measures", "area: cell_area", ["cell_area"]),
        ("ancillary_variables", "flag error", ["flag", "error"]),
        ("grid_mapping", "", []),
    ],
)
def test_related_variables_are_found(relation: str, text: str, expected: list[str]) -> None:
    assert related_names(relation, text) == expected


def test_the_attribute_names_coordinates_but_no_grid_mapping() -> None:
    known = [variable(name=name) for name in ("lon", "crs", "lat", "a b")]
    assert coordinates_attribute(known, {"grid_mapping": "crs"}) == {"coordinates": "lat lon"}
    assert coordinates_attribute(known[1:2], {"grid_mapping": "crs"}) == {}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("name", "", "not the name of an auxiliary variable"),
        ("name", 7, "not the name"),
        ("name", "../evil", "not the name"),
        ("name", "..", "not the name"),
        ("name", "a\\b", "not the name"),
        ("name", "a\nb", "not the name"),
        ("name", "\ud800", "not the name"),
        ("name", "a" * 300, "not the name"),
        ("name", "time", "'time' is taken already"),
        ("name", "t2m", "'t2m' is taken already"),
        ("name", "channel", "'channel' is taken already"),
        ("dims", "latitude", "expected some of time, latitude, longitude, got latitude"),
        ("dims", ["latitude", "latitude"], "expected some of"),
        ("dims", ["level"], "expected some of"),
        ("dims", [["latitude"]], "expected some of"),
        ("dims", ["latitude"], "its packed numbers are not 2"),
        ("dims", ["time", "longitude"], "its packed numbers are not 18"),
        ("dtype", "object", "unknown type 'object'"),
        ("dtype", ">f8", "unknown type"),
        ("dtype", "<f2", "unknown type"),
        ("dtype", ["<f8"], "unknown type"),
        ("dtype", "<f4", "its packed numbers are not 6"),
        ("dtype", "text", "expected a list of 6 texts"),
        ("data", ["a"] * 6, "packed numbers"),
        ("data", "!", "do not unpack"),
        ("data", "ä", "do not unpack"),
        ("data", base64.b64encode(b"no zlib").decode(), "do not unpack"),
        ("data", packed(bytes(47)), "are not 6"),
        ("data", packed(bytes(49)), "are not 6"),
        ("data", packed(bytes(100 << 20)), "are not 6"),
        ("attributes", [], "not an object of plain JSON values"),
        ("attributes", {"scale": {"dtype": "<f4", "data": "x"}}, "not a row of numbers"),
        ("more", 1, "has an unknown key 'more'"),
    ],
)
def test_what_does_not_fit_is_refused(key: str, value: Any, expected: str) -> None:
    (content,) = auxiliaries_to_json([variable()])
    with pytest.raises(CorruptBitstreamError, match=expected):
        auxiliaries_from_json([{**content, key: value}], LAYOUT)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], "expected name and length of one dimension"),
        ({}, "expected name and length of one dimension"),
        ({"bnds": 2, "more": 2}, "expected name and length of one dimension"),
        ({"bnds": 0}, "length of 'bnds'"),
        ({"bnds": 2.0}, "length of 'bnds'"),
        ({"bnds": True}, "length of 'bnds'"),
        ({"bnds": 2**40}, "length of 'bnds'"),
        ({"bnds": 1 << 20}, "at most 1048576 bytes"),
        ({"bnds": 3}, "its packed numbers are not 18"),
        ({"../evil": 2}, "expected name and length of one dimension"),
        ({"other": 2}, "expected some of time, latitude, longitude, other"),
    ],
)
def test_a_dimension_of_its_own_that_does_not_fit_is_refused(sizes: Any, expected: str) -> None:
    bounds = variable(name="time_bnds", dims=("time", "bnds"), values=np.zeros((6, 2)), own_dim="bnds")
    (content,) = auxiliaries_to_json([bounds])
    with pytest.raises(CorruptBitstreamError, match=expected):
        auxiliaries_from_json([{**content, "sizes": sizes}], LAYOUT)


@pytest.mark.parametrize("taken", ["time", "t2m", "channel", "area", "bounds"])
def test_a_dimension_of_its_own_has_a_name_of_its_own(taken: str) -> None:
    bounds = variable(name="bounds", dims=("latitude", taken), values=np.zeros((2, 2)), own_dim=taken)
    content = auxiliaries_to_json([variable(), bounds])
    with pytest.raises(CorruptBitstreamError, match=f"dimension '{taken}' of 'bounds' is another one already"):
        auxiliaries_from_json(content, make_layout(hours=2, latitudes=2, longitudes=3))


def test_dimensions_of_the_same_name_have_the_same_length() -> None:
    pair = [variable(name=f"bounds{n}", dims=("time", "bnds"), values=np.zeros((6, n)), own_dim="bnds") for n in (2, 3)]
    with pytest.raises(CorruptBitstreamError, match="dimension 'bnds' of 'bounds3' is another one already"):
        auxiliaries_from_json(auxiliaries_to_json(pair), LAYOUT)


def test_a_dimension_of_its_own_that_it_does_not_lie_along_is_refused() -> None:
    (content,) = auxiliaries_to_json([variable()])
    with pytest.raises(CorruptBitstreamError, match="'bnds' is none of its dimensions"):
        auxiliaries_from_json([{**content, "sizes": {"bnds": 2}}], LAYOUT)


@pytest.mark.parametrize(
    ("values", "attributes", "expected"),
    [
        (np.full((2, 3), 2**62), {"units": "seconds since 1970-01-01"}, "its labels are no times"),
        (np.zeros((2, 3), int), {"units": "fortnights since 1970-01-01"}, "not CF time units"),
        (np.zeros((2, 3), int), {"units": "days since 1970-01-01", "calendar": "maya"}, "not CF time units"),
    ],
)
def test_times_that_are_none_are_refused(values: np.ndarray, attributes: dict[str, str], expected: str) -> None:
    with pytest.raises(CorruptBitstreamError, match=expected):
        auxiliaries_from_json(auxiliaries_to_json([variable(values=values, attributes=attributes)]), LAYOUT)


@pytest.mark.parametrize("texts", [["a"] * 5 + [1], ["a"] * 5 + ["\ud800"], ["a"] * 5 + ["x" * 180_000], ["a"] * 5])
@pytest.mark.parametrize("dtype", ["text", "bytes"])
def test_texts_that_are_none_or_too_long_are_refused(dtype: str, texts: list[Any]) -> None:
    (content,) = auxiliaries_to_json([variable()])
    with pytest.raises(CorruptBitstreamError, match=r"'area': .*texts"):
        auxiliaries_from_json([{**content, "dtype": dtype, "data": texts}], LAYOUT)


def test_truth_values_of_2_are_refused() -> None:
    (content,) = auxiliaries_to_json([variable(values=np.zeros((2, 3), bool))])
    with pytest.raises(CorruptBitstreamError, match="truth values"):
        auxiliaries_from_json([{**content, "data": packed(bytes([2] + 5 * [0]))}], LAYOUT)


def test_too_many_and_too_large_ones_are_refused_in_bounded_memory() -> None:
    (content,) = auxiliaries_to_json([variable()])
    for wrong in (None, {}, [None], [content] * 65, [content] * 2):
        with pytest.raises(CorruptBitstreamError):
            auxiliaries_from_json(wrong, LAYOUT)
    layout = make_layout(hours=400, latitudes=400, longitudes=2)
    (content,) = auxiliaries_to_json([variable(dims=("time", "latitude"), values=np.zeros((400, 400)))])
    with pytest.raises(CorruptBitstreamError, match="at most 1048576 bytes"):
        auxiliaries_from_json([content], layout)
