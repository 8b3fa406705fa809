"""The xarray engine: `xarray.open_dataset(url, engine="vcinr")` opens an archive lazily, whatever its container.

An indexer decodes the samples that it touches, in batches, and no others. xarray finds the engine by the entry point
`xarray.backends` of this package.
"""

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import xarray
from numpy.typing import NDArray
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.coders import CFDatetimeCoder
from xarray.conventions import decode_cf_variable, encode_cf_variable
from xarray.core import indexing

from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import MANIFEST_NAME
from vcinr_batch.archive.sample_info import SAMPLE_FIGURES, SampleFigure, figure_axes, read_figure
from vcinr_batch.archive.selection import Selection, make_selection
from vcinr_batch.archive.xarray_chunks import preferred_chunks
from vcinr_batch.data.auxiliary import BOUNDS, RELATIONS
from vcinr_batch.errors import ConfigError
from vcinr_batch.storage import StorageOptions, join_url, locate, public_url

DecodeTimes = bool | CFDatetimeCoder | Mapping[str, bool | CFDatetimeCoder] | None

_GUESS_SECONDS = 5.0
_OTHER_FORMATS = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".grib", ".grib2", ".grb", ".grb2", ".tif", ".tiff", ".zip")

Read = Callable[[tuple[NDArray[np.int64], ...]], NDArray[Any]]
"""Positions along every dimension, as the dataset shows it -> the values there, of that many dimensions."""


class VcinrBackendEntrypoint(BackendEntrypoint):
    """Opens archives of this package."""

    description = "Open vcinr archives: decodes the samples that are asked for"

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        mask_and_scale: bool | None = None,  # noqa: ARG002 (values are decoded and in their unit either way)
        decode_times: DecodeTimes = None,
        concat_characters: bool | None = None,  # noqa: ARG002 (no character arrays)
        decode_coords: bool | str | None = None,
        use_cftime: bool | None = None,
        decode_timedelta: Any = None,
        storage_options: StorageOptions = None,
        sample_info: bool = False,
    ) -> xarray.Dataset:
        """The archive at a path or fsspec URL; reads its manifest only.

        Args:
            filename_or_obj: path or URL of the archive.
            drop_variables: names to leave out.
            mask_and_scale: without effect: the archive holds floats in the variable's unit, NaN where there is none.
            decode_times: False for the numbers that the source had, with their units as attributes; a coder, or one of
                these per coordinate.
            concat_characters: without effect.
            decode_coords: "all" makes bounds and grid mappings coordinates, too; else without effect.
            use_cftime: True for cftime objects whatever the calendar.
            decode_timedelta: True for coordinates in units of time, such as a forecast's step, as timedelta64.
            storage_options: of the file system.
            sample_info: adds the errors recorded for each sample and its quality level as coordinates, read when they
                are looked at.

        Raises:
            ConfigError: neither a path nor a URL.
            SourceError: no archive there, or it cannot be reached.
            BitstreamError, UnsupportedFormatError: a damaged manifest, or one of a later version.
        """
        url = _as_url(filename_or_obj)
        archive = Archive.open(url, storage_options)
        shown = make_selection(archive.layout, None)
        dataset = whole = archive.coordinates(shown)
        for name, variable in whole.variables.items():
            decoded = _as_asked(str(name), variable, _time_choice(decode_times, use_cftime, name), decode_timedelta)
            if decoded is not variable:
                dataset = dataset.drop_vars([name]).assign({name: _without_units(str(name), decoded, whole)})
        dataset = dataset.set_coords(list(whole.coords))
        chunks = preferred_chunks(archive.layout, archive.manifest.parts, shown)
        dataset[archive.layout.variable] = _decoded_variable(archive, shown, chunks)
        if sample_info:
            dataset = dataset.assign_coords(_figure_variables(archive, shown, chunks))
        dataset = _all_as_coordinates(dataset, archive.layout.variable) if decode_coords == "all" else dataset
        dataset.encoding["source"] = public_url(url)
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        return dataset.drop_vars(dropped, errors="ignore")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether there is an archive at a path or URL, asked once and for a few seconds at most; never raises."""
        try:
            url = _as_url(filename_or_obj)
        except ConfigError:
            return False
        if "://" not in url and "::" not in url:
            return bool(url.strip()) and os.path.isfile(os.path.join(url, MANIFEST_NAME))
        if url.startswith(("http://", "https://")) or url.rstrip("/").lower().endswith(_OTHER_FORMATS):
            return False
        return _is_there(join_url(url, MANIFEST_NAME))


class LazyArray(BackendArray):
    """Reads what an indexer touches."""

    def __init__(self, shape: tuple[int, ...], dtype: str, read: Read) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._read = read

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._outer)

    def _outer(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """One integer, slice or array of positions per dimension; an integer takes its dimension away."""
        chosen = [np.arange(n, dtype=np.int64)[along] for n, along in zip(self.shape, key, strict=True)]
        shape = tuple(along.size for along in chosen if along.ndim)
        if 0 in shape:
            return np.empty(shape, self.dtype)
        return self._read(tuple(np.atleast_1d(along) for along in chosen)).reshape(shape)


class DecodedValues:
    """Reads values of the archive's variable; picklable, and small but for the manifest."""

    def __init__(self, archive: Archive, shown: Selection) -> None:
        self._archive = archive
        self._shown = shown

    def __call__(self, chosen: tuple[NDArray[np.int64], ...]) -> NDArray[np.float32]:
        places = self._shown.places
        values = self._archive.values(
            [along[wanted] for along, wanted in zip(places, chosen, strict=False)], self._archive.decoder()
        )
        return values if len(chosen) == len(places) else np.take(values, chosen[-1], axis=-1)


class FigureValues:
    """Reads one figure of the samples; as `DecodedValues`."""

    def __init__(self, archive: Archive, shown: Selection, figure: SampleFigure) -> None:
        self._archive = archive
        self._places = [shown.places[k] for k in figure_axes(archive.layout)]
        self._figure = figure

    def __call__(self, chosen: tuple[NDArray[np.int64], ...]) -> NDArray[Any]:
        places = [along[wanted] for along, wanted in zip(self._places, chosen, strict=True)]
        return read_figure(self._archive, self._figure, places)


def _decoded_variable(archive: Archive, shown: Selection, chunks: Mapping[str, Any]) -> xarray.Variable:
    array = LazyArray(shown.shape, "float32", DecodedValues(archive, shown))
    data, attributes = indexing.LazilyIndexedArray(array), archive.variable_attributes
    return xarray.Variable(shown.dims, data, attributes, {"preferred_chunks": dict(chunks)})


def _figure_variables(archive: Archive, shown: Selection, chunks: Mapping[str, Any]) -> dict[str, xarray.Variable]:
    layout, found = archive.layout, {}
    axes = figure_axes(layout)
    dims, shape = [shown.dims[k] for k in axes], tuple(shown.shape[k] for k in axes)
    for figure in SAMPLE_FIGURES:
        array = LazyArray(shape, figure.dtype, FigureValues(archive, shown, figure))
        attributes = {"long_name": f"{figure.description} ({layout.variable})"}
        if figure.has_unit and archive.variable_attributes.get("units"):
            attributes["units"] = archive.variable_attributes["units"]
        encoding = {"preferred_chunks": {name: chunks[name] for name in dims}}
        data = indexing.LazilyIndexedArray(array)
        found[f"{layout.variable}_{figure.name}"] = xarray.Variable(dims, data, attributes, encoding)
    return found


def _time_choice(decode_times: DecodeTimes, use_cftime: bool | None, name: Any) -> bool | CFDatetimeCoder:
    chosen = decode_times.get(name, True) if isinstance(decode_times, Mapping) else decode_times
    if use_cftime is not None and chosen in (None, True):
        return CFDatetimeCoder(use_cftime=use_cftime)
    return True if chosen is None else chosen


def _as_asked(
    name: str, variable: xarray.Variable, decode_times: bool | CFDatetimeCoder, decode_timedelta: Any
) -> xarray.Variable:
    """A coordinate, times decoded or not as xarray's options say; the same object where nothing changes."""
    is_time = " since " in str(variable.encoding.get("units", ""))
    if is_time and decode_times is not True:
        raw = encode_cf_variable(variable, name=name)
        return raw if decode_times is False else decode_cf_variable(name, raw, decode_times=decode_times)
    if not is_time and decode_timedelta:
        return decode_cf_variable(name, variable, decode_times=False, decode_timedelta=decode_timedelta)
    return variable


def _all_as_coordinates(dataset: xarray.Dataset, name: str) -> xarray.Dataset:
    """All but the archive's variable; the attributes that name them go into the encoding, as xarray has it."""
    dataset = dataset.set_coords([str(other) for other in dataset.data_vars if other != name])
    for variable in dataset.variables.values():
        for key in (BOUNDS, *RELATIONS):
            if key in variable.attrs:
                variable.encoding[key] = variable.attrs.pop(key)
    return dataset


def _without_units(name: str, variable: xarray.Variable, whole: xarray.Dataset) -> xarray.Variable:
    """Bounds of times as files have them: they do not repeat the coordinate's units and calendar (CF 7.1)."""
    repeated = [
        (key, coordinate.encoding.get(key))
        for coordinate in whole.coords.values()
        if coordinate.attrs.get(BOUNDS) == name
        for key in ("units", "calendar")
    ]
    kept = {key: value for key, value in variable.attrs.items() if (key, value) not in repeated}
    return xarray.Variable(variable.dims, variable.data, kept, variable.encoding)


def _as_url(filename_or_obj: Any) -> str:
    """A URL as it is, a path absolute.

    Raises:
        ConfigError: neither.
    """
    if not isinstance(filename_or_obj, str | os.PathLike) or not isinstance(os.fspath(filename_or_obj), str):
        kind = type(filename_or_obj).__name__
        raise ConfigError(f"engine 'vcinr' opens a path or URL of an archive, got an object of type {kind}")
    url = os.fspath(filename_or_obj)
    is_path = "://" not in url and "::" not in url and url.strip()
    return os.path.abspath(os.path.expanduser(url)) if is_path else url


def _is_there(url: str) -> bool:
    """Whether a file is there, by one question; no where no answer comes in time."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            fs, path = locate(url)
            answers.append(bool(fs.isfile(path)))
        except Exception:  # whatever a store raises: somebody else may be able to open it
            answers.append(False)

    # In a thread of its own, since a store may well take minutes to say that it does not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_GUESS_SECONDS)
    return answers == [True]
