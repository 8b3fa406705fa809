"""Writes the answer to a query: a CSV, NetCDF or Zarr output, piece by piece, that nobody sees half of."""

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.output_place import check_space, is_zarr, netcdf_place, writing
from pipelines.restore_netcdf import netcdf_engine, netcdf_file
from pipelines.restore_regions import ZARR_REGION_VALUES, chunk_shape, plan_regions
from pipelines.restore_zarr import ROOT_METADATA, chunk_path, encode_chunks, variable_files
from pipelines.zarr_place import finish, zarr_place
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.query import Query, answer_coordinates, answer_dims
from vcinr_batch.data.axes import Axis, label_text
from vcinr_batch.evaluation import evaluate_pieces, evaluate_region
from vcinr_batch.storage import StorageOptions, join_url, sha256_hex, write_bytes

CSV_SUFFIX = ".csv"

Progress = Callable[[int, int], None]
"""Gets the values done, and all."""


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer and where it goes."""

    archive: Archive
    query: Query
    output: str
    overwrite: bool
    progress: Progress
    columns: dict[str, list[str]] = field(default_factory=dict)
    """Of the points: what a CSV file has beside each value."""
    storage_options: StorageOptions = field(default=None, repr=False)

    @property
    def sizes(self) -> dict[str, int]:
        """Length by dimension, the channels included where there are several."""
        channels = self.archive.layout.channels
        shape = self.query.shape if channels == 1 else (*self.query.shape, channels)
        return dict(zip(answer_dims(self.query, channels), shape, strict=True))

    @property
    def digest(self) -> str:
        """Of what is written."""
        positions = [sha256_hex(axis.positions.tobytes()) for axis in self.query.axes]
        parts = [part.sha256 for part in self.archive.manifest.parts]
        return sha256_hex(json.dumps([self.archive.manifest.bundle_sha256, parts, positions, self.columns]).encode())

    def shaped(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values with the channels last, as they are written."""
        return values if self.archive.layout.channels > 1 else values[..., 0]


def write_answer(answer: Answer) -> int:
    """Evaluate a query and write the answer; returns its bytes.

    Raises:
        ArchiveExistsError: another process is writing the same output, or it appeared meanwhile.
        SampleNotFoundError, SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: the archive
            cannot be read, or the output cannot be written.
    """
    if answer.output.endswith(CSV_SUFFIX):
        return _write_csv(answer)
    return _write_zarr(answer) if is_zarr(answer.output) else _write_netcdf(answer)


def _pieces(answer: Answer) -> Iterator[tuple[tuple[slice, ...], NDArray[np.float32]]]:
    done, total = 0, math.prod(answer.query.shape)
    answer.progress(0, total)
    for region, values in evaluate_pieces(answer.archive, answer.query):
        yield region, values
        done += math.prod(values.shape[:-1])
        answer.progress(done, total)


def _write_netcdf(answer: Answer) -> int:
    """Returns the bytes of the file."""
    coordinates, attributes = _described(answer)
    with netcdf_place(answer.output, answer.digest, answer.overwrite, answer.storage_options) as path:
        check_space(path.parent, 4 * math.prod(answer.sizes.values()), answer.output)
        name, engine = answer.archive.layout.variable, netcdf_engine()
        with writing(answer.output), netcdf_file(path, engine, name, answer.sizes, attributes, coordinates) as write:
            for region, values in _pieces(answer):
                write(region, answer.shaped(values))
        return path.stat().st_size


def _write_zarr(answer: Answer) -> int:
    """Returns the bytes of the store."""
    coordinates, attributes = _described(answer)
    name, shape = answer.archive.layout.variable, tuple(answer.sizes.values())
    chunk = chunk_shape(shape, (1,) * len(shape))
    files = variable_files(name, answer.sizes, chunk, attributes, coordinates)
    metadata = files[f"{name}/{ROOT_METADATA}"].decode()
    paths, written, done = [], 0, 0
    with zarr_place(answer.output, answer.digest, answer.overwrite, answer.storage_options) as place:
        for region in plan_regions(shape, chunk, ZARR_REGION_VALUES):
            slices = region.slices[: len(answer.query.shape)]
            channels = region.slices[len(answer.query.shape) :] or (0,)
            values = evaluate_region(answer.archive, answer.query, slices)[..., channels[0]]
            for index, data in encode_chunks(metadata, chunk, region, values):
                paths.append(chunk_path(name, index))
                write_bytes(join_url(place.store, *paths[-1]), data, storage_options=answer.storage_options)
                written += len(data)
            done += math.prod(region.shape)
            answer.progress(done, math.prod(shape))
        return written + finish(place, files, lambda: paths, written)


def _described(answer: Answer) -> tuple[Any, dict[str, Any]]:
    """The answer's coordinates and the variable's attributes, which name those that are no dimension (CF)."""
    manifest = answer.archive.manifest
    coordinates = answer_coordinates(answer.query, answer.archive.layout, manifest.auxiliaries)
    coordinates.attrs = dict(manifest.dataset_attributes)
    beside = [name for name in coordinates.coords if name not in answer.sizes and " " not in str(name)]
    named = {"coordinates": " ".join(map(str, beside))} if beside else {}
    return coordinates, {**answer.archive.variable_attributes, **named}


def _write_csv(answer: Answer) -> int:
    """Returns the bytes of the file."""
    layout, columns = answer.archive.layout, answer.columns
    outer = [layout.axes[k] for k in answer.query.outer]
    channels = layout.channels
    names = [layout.variable] if channels == 1 else [f"{layout.variable}_{c}" for c in range(channels)]
    cells = list(zip(*columns.values(), strict=True))
    with netcdf_place(answer.output, answer.digest, answer.overwrite, answer.storage_options) as path:
        with writing(answer.output), open(path, "x", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow([*(axis.name for axis in outer), *columns, *names])
            for region, values in _pieces(answer):
                labels = [
                    [_label(axis, int(i)) for i in answer.query.axes[k].positions[along]]
                    for axis, k, along in zip(outer, answer.query.outer, region, strict=False)
                ]
                _write_rows(table, labels, cells[region[-1]], values)
        return path.stat().st_size


def _write_rows(table: Any, labels: list[list[str]], cells: list[tuple[str, ...]], values: NDArray[np.float32]) -> None:
    """Lines of a piece of values [labels..., points, C]."""
    # Shortest texts that are the same float32; a place without a value has an empty cell.
    texts = np.where(np.isnan(values), "", values.astype(np.str_)).reshape(-1, values.shape[-1])
    for at, text in zip(np.ndindex(*values.shape[:-1]), texts.tolist(), strict=True):
        table.writerow([*(along[i] for along, i in zip(labels, at, strict=False)), *cells[at[-1]], *text])


def _label(axis: Axis, i: int) -> str:
    return str(axis.values[i]) if axis.values.dtype.kind in "US" else label_text(axis, i)
