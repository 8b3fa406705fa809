"""Small gridded data sets that the tests write in every format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import xarray


@pytest.fixture
def make_fields() -> Callable[..., xarray.Dataset]:
    """A factory of `t2m` [time, latitude, longitude] in K."""

    def make(
        hours: int = 6,
        latitude: Any = (58.0, 57.75, 57.5),
        longitude: Any = (-1.0, -0.5, 0.0, 0.5),
        start: str = "2019-03-01",
        seed: int = 0,
    ) -> xarray.Dataset:
        shape = (hours, len(latitude), len(longitude))
        values = np.random.default_rng(seed).normal(280.0, 5.0, shape).astype(np.float32)
        return xarray.Dataset(
            {"t2m": (("time", "latitude", "longitude"), values, {"units": "K", "long_name": "2 metre temperature"})},
            {
                "time": np.datetime64(start, "ns") + np.arange(hours) * np.timedelta64(1, "h"),
                "latitude": ("latitude", np.asarray(latitude), {"units": "degrees_north"}),
                "longitude": ("longitude", np.asarray(longitude), {"units": "degrees_east"}),
            },
            {"title": "made for a test"},
        )

    return make


@pytest.fixture
def write_grib() -> Callable[..., None]:
    """A writer of GRIB 1 from values [members, times, levels, latitudes, longitudes] of 16 bits."""
    eccodes = pytest.importorskip("eccodes")
    pytest.importorskip("cfgrib")

    def write(
        path: Path,
        values: Any,
        times: Any,
        latitude: Any,
        longitude: Any,
        levels: Any = (None,),
        members: Any = (None,),
        short_name: str = "2t",
        append: bool = False,
    ) -> None:
        with path.open("ab" if append else "wb") as file:
            for (m, t, k), _ in np.ndenumerate(values[..., 0, 0]):
                sample = "regular_ll_sfc_grib1" if levels[k] is None else "regular_ll_pl_grib1"
                message = eccodes.codes_grib_new_from_samples(sample)
                keys = {
                    "Ni": len(longitude),
                    "Nj": len(latitude),
                    "latitudeOfFirstGridPointInDegrees": float(latitude[0]),
                    "latitudeOfLastGridPointInDegrees": float(latitude[-1]),
                    "longitudeOfFirstGridPointInDegrees": float(longitude[0]),
                    "longitudeOfLastGridPointInDegrees": float(longitude[-1]),
                    "iDirectionIncrementInDegrees": float(longitude[1] - longitude[0]),
                    "jDirectionIncrementInDegrees": float(abs(latitude[0] - latitude[1])),
                    "jScansPositively": int(latitude[0] < latitude[1]),
                    "shortName": short_name,
                    "dataDate": int(str(times[t])[:10].replace("-", "")),
                    "dataTime": int(str(times[t].astype("datetime64[m]"))[11:].replace(":", "")),
                }
                if levels[k] is not None:
                    keys["level"] = levels[k]
                if members[m] is not None:
                    keys |= {"setLocalDefinition": 1, "localDefinitionNumber": 1, "type": "an", "number": members[m]}
                for key, value in (keys | {"bitsPerValue": 16}).items():
                    eccodes.codes_set(message, key, value)
                eccodes.codes_set_values(message, np.asarray(values[m, t, k], np.float64).ravel())
                eccodes.codes_write(message, file)
                eccodes.codes_release(message)

    return write


@pytest.fixture
def in_memory() -> Callable[[Path], str]:
    """Copies a file or folder to fsspec's memory file system, the stand-in for an object store; gives its URL."""
    memory = fsspec.filesystem("memory")

    def put(path: Path) -> str:
        target = f"/{path.parent.name}/{path.name}"
        memory.put(str(path), target, recursive=path.is_dir())
        return f"memory:/{target}"

    return put
