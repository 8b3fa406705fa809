from pathlib import Path

import pytest
import xarray

from vcinr_batch.config import SourceConfig
from vcinr_batch.data.source_urls import expand_urls, group_by_member
from vcinr_batch.data.sources import open_fields
from vcinr_batch.errors import ConfigError, SourceError


def test_patterns_become_the_files_they_match(tmp_path: Path) -> None:
    for name in ("b.nc", "a.nc", "c.grib"):
        (tmp_path / name).touch()
    found = expand_urls([str(tmp_path / "*.nc"), str(tmp_path / "c.grib"), str(tmp_path / "a.nc")], {})
    assert [Path(url).name for url in found] == ["a.nc", "b.nc", "c.grib"]


@pytest.mark.parametrize("name", ["a[1].nc", "a?.nc", "a*.nc"])
def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path, name: str) -> None:
    for other in (name, "a1.nc", "ab.nc"):
        xarray.Dataset({"t": ("x", [1.0, 2.0])}).to_netcdf(tmp_path / "plain.nc")
        (tmp_path / "plain.nc").rename(tmp_path / other)
    url = str(tmp_path / name)
    assert expand_urls(url, {}) == (url,)
    assert open_fields(url, SourceConfig()).urls == (url,)


@pytest.mark.parametrize(("urls", "problem"), [([], "no source given"), (["nothing*.nc"], "no file matches nothing")])
def test_no_file_is_an_error(urls: list[str], problem: str) -> None:
    with pytest.raises(SourceError, match=problem):
        expand_urls(urls, {})


def test_members_are_sorted_as_numbers_where_they_are_numbers() -> None:
    urls = ["m10_a.nc", "m9_a.nc", "m9_b.nc"]
    assert group_by_member(urls, r"m(\d+)_") == {"9": ["m9_a.nc", "m9_b.nc"], "10": ["m10_a.nc"]}
    assert list(group_by_member(["r2", "r10"], "(r[0-9]+)")) == ["r10", "r2"]
    assert group_by_member(urls, None) == {"": urls}


@pytest.mark.parametrize(
    ("pattern", "error", "problem"),
    [
        ("(", ConfigError, "is not a regular expression"),
        ("m", ConfigError, "needs exactly one group, it has 0"),
        ("(m)(1)", ConfigError, "needs exactly one group, it has 2"),
        ("(x)", SourceError, "is not found in m1.nc"),
        ("(x)?m", SourceError, "is not found in m1.nc"),
    ],
)
def test_a_member_pattern_must_name_each_file(pattern: str, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        group_by_member(["m1.nc"], pattern)
