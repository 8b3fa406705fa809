"""One sample of an archive as a picture: the decoded field, and with the source the error beside it."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.field_slices import FieldSlice, Values, slice_field
from pipelines.map_figures import draw_slice, drawing, error_colours, plain_text, value_colours
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.rows import ArchiveRow
from vcinr_batch.archive.selection import selected_positions
from vcinr_batch.data.layout import Axis, Layout, block_extent, label_text, sample_key
from vcinr_batch.data.sources import FieldSource, read_extent
from vcinr_batch.errors import ArchiveExistsError, ConfigError, SampleNotFoundError, SourceError
from vcinr_batch.storage import StorageOptions, exists, public_url, write_bytes
from vcinr_batch.verification import axis_differences, open_original

Block = tuple[int, ...]

_DPI = 130
_MAX_NAME = 120


@dataclass(frozen=True)
class PictureReport:
    """What was drawn."""

    output: str
    key: str
    quality: int
    payload_bytes: int
    bits_per_value: float
    """Of the payload alone."""
    rmse: float
    """As recorded when the sample was compressed, in the variable's unit."""
    max_error: float
    measured_rmse: float | None
    """Against the source; None without one."""
    measured_max_error: float | None


@dataclass(frozen=True, eq=False)
class DecodedSample:
    """One sample as it comes out of an archive, cut at the ends of the axes."""

    row: ArchiveRow
    axes: tuple[Axis, ...]
    values: Values
    """[one dimension per axis], NaN where there is no value; of several channels the first."""
    error: Values | None
    """Decoded minus source, of the same shape; None without a source."""

    @property
    def bits_per_value(self) -> float:
        return 8 * len(self.row.payload) / max(int(np.isfinite(self.values).sum()), 1)


def plot_sample(
    url: str,
    key: str,
    sources: Sequence[str] = (),
    output: str | None = None,
    overwrite: bool = False,
    member_pattern: str | None = None,
    storage_options: StorageOptions = None,
) -> PictureReport:
    """Draw one sample into a PNG file.

    Args:
        url: of the archive.
        key: the sample's key (`t2m[time=2019-03-22T06:00:00]`), or labels that select it alone (`time=2019-03-22T06`).
        sources: what the archive was made of; adds the error.
        output: where to; by default a name made of the key, in the working directory.
        overwrite: replace the file that is there.
        member_pattern: as for `compress`.
        storage_options: of the archive's file system.

    Raises:
        ConfigError: matplotlib is missing, the key does not say which sample, or the source is another one.
        SampleNotFoundError: there is no such sample, or it was rejected when the archive was made: says why.
        ArchiveExistsError: the output is there already.
        SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: a file is missing or damaged.
    """
    archive = Archive.open(url, storage_options)
    block = find_block(archive.layout, key)
    target = output or _file_name(archive.layout, block)
    check_output(target, overwrite, ".png", storage_options if output else None)
    with drawing() as figure_class:
        source = open_matching_source(archive, sources, member_pattern) if sources else None
        sample = decode_sample(archive, block, source)
        picture = _draw(figure_class, archive, sample)
    write_bytes(target, picture, storage_options=storage_options if output else None)
    row, error = sample.row, sample.error
    return PictureReport(
        output=public_url(target),
        key=str(row.key),
        quality=row.quality,
        payload_bytes=len(row.payload),
        bits_per_value=sample.bits_per_value,
        rmse=row.rmse,
        max_error=row.max_error,
        measured_rmse=None if error is None else float(np.sqrt(np.nanmean(np.square(error)))),
        measured_max_error=None if error is None else float(np.nanmax(np.abs(error))),
    )


def find_block(layout: Layout, text: str) -> Block:
    """The block that a sample key or labels like `time=2019-03-22T06,level=850` mean.

    Raises:
        ConfigError: not such a text, or it selects several samples.
        SampleNotFoundError: nothing of the kind is in the archive; names its extent.
    """
    variable, bracket, inner = text.strip().removesuffix("]").partition("[")
    if not bracket:
        variable, inner = (layout.variable, variable) if "=" in variable else (variable, "")
    if variable != layout.variable:
        raise SampleNotFoundError(f"{text}: the archive holds {_extent_text(layout)}")
    positions = selected_positions(layout, _labels(text, inner))
    along = [np.unique(p // length) for p, length in zip(positions, layout.block_shape, strict=True)]
    block = tuple(int(blocks[0]) for blocks in along)
    count = int(np.prod([len(blocks) for blocks in along], dtype=np.float64))
    if count > 1 and str(sample_key(layout, block)) != text.strip():
        raise ConfigError(f"{text} selects {count:,} samples; name one, such as {sample_key(layout, block)}")
    return block


def decode_sample(archive: Archive, block: Block, source: FieldSource | None = None) -> DecodedSample:
    """Decode one sample of an archive and compare it with the source, if there is one.

    Raises:
        SampleNotFoundError: it was rejected when the archive was made: says why.
        SourceError, BitstreamError, UnsupportedFormatError, BundleMismatchError: a file is missing or damaged.
    """
    layout = archive.layout
    labels = {
        axis.name: label_text(axis, i * length)
        for axis, length, i in zip(layout.axes, layout.block_shape, block, strict=True)
        if axis.name in layout.blocked_dims
    }
    row = next((row for row in archive.rows(labels) if row.block == block), None)
    if row is None:
        key = sample_key(layout, block)
        reason = next((item.reason for item in archive.rejected() if item.block == block), "no reason is recorded")
        raise SampleNotFoundError(f"{key} was rejected when the archive was made: {plain_text(reason)}")
    extent = block_extent(layout, block)
    places = [np.arange(part.start, part.stop) for part in extent]
    values = archive.values(places, archive.decoder())[..., 0].astype(np.float64)
    error = None if source is None else values - read_extent(source, extent)
    if error is not None and not np.isfinite(error).any():
        raise SourceError(f"{row.key}: the source has no value where the archive has one")
    axes = tuple(Axis(a.name, a.values[part], a.attributes) for a, part in zip(layout.axes, extent, strict=True))
    return DecodedSample(row, axes, values, error)


def open_matching_source(archive: Archive, urls: Sequence[str], member_pattern: str | None = None) -> FieldSource:
    """The source of an archive, with its very labels and unit.

    Raises:
        ConfigError: it is another source: says in what it differs.
        SourceError, SampleNotFoundError: it cannot be read, or holds nothing of the archive.
    """
    source = open_original(archive.url, urls, member_pattern, archive.storage_options)
    differences = axis_differences(archive.layout, source.axes)
    if source.unit != archive.manifest.unit:
        differences.append(f"the archive is in {archive.manifest.unit!r}, the source in {source.unit!r}")
    if differences:
        raise ConfigError(f"{public_url(urls[0])} is not the source of {public_url(archive.url)}: {differences[0]}")
    return source


def check_output(output: str, overwrite: bool, suffix: str, storage_options: StorageOptions) -> None:
    """Make sure, before long work, that the output may be written.

    Raises:
        ConfigError: its name does not end as it should.
        ArchiveExistsError: it is there already.
    """
    if not output.endswith(suffix):
        raise ConfigError(f"{public_url(output)}: expected a name that ends with {suffix}")
    if not overwrite and exists(output, storage_options=storage_options):
        raise ArchiveExistsError(f"{public_url(output)} is there already; pass --overwrite, or another --output")


def sample_lines(sample: DecodedSample, unit: str) -> tuple[str, str]:
    """What is recorded of a sample, and what was measured against the source (empty without one)."""
    row = sample.row
    recorded = (
        f"RMSE {row.rmse:.3g} {unit}, max error {row.max_error:.3g} {unit}, quality level {row.quality}, "
        f"{sample.bits_per_value:.3g} bits per value"
    )
    if sample.error is None:
        return recorded, ""
    rmse, largest = float(np.sqrt(np.nanmean(np.square(sample.error)))), float(np.nanmax(np.abs(sample.error)))
    return recorded, f"RMSE {rmse:.3g} {unit}, max {largest:.3g} {unit}"


def _draw(figure_class: Any, archive: Archive, sample: DecodedSample) -> bytes:
    unit = plain_text(archive.manifest.unit)
    recorded, measured = sample_lines(sample, unit)
    field = slice_field(sample.values, sample.axes)
    panels: list[tuple[FieldSlice, str, Any]] = [(field, "decoded", value_colours(field.values))]
    if sample.error is not None:
        error = slice_field(sample.error, sample.axes)
        panels.append((error, f"decoded - source: {measured}", error_colours(error.values)))
    figure = figure_class(figsize=(6.8 * len(panels) + 0.4, 5.6), layout="compressed")
    for axes, (part, title, colours) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw_slice(figure, axes, part, title, unit, colours)
    name = archive.manifest.attributes.get("long_name", "")
    lines = [plain_text(line) for line in (sample.row.key, name) if str(line)]
    lines[0] += f" ({field.remark})" if field.remark else ""
    figure.suptitle("\n".join([" - ".join(lines), f"as recorded: {recorded}"]), fontsize="medium")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
    return data.getvalue()


def _labels(text: str, inner: str) -> Mapping[str, str]:
    labels: dict[str, str] = {}
    for part in inner.split(",") if inner else ():
        dim, separator, label = (piece.strip() for piece in part.partition("="))
        if not separator or not dim or not label:
            raise ConfigError(f"{text!r}: expected a sample key like t2m[time=2019-03-22T06:00:00], or DIM=LABEL")
        labels[dim] = label.partition("+")[0] or label  # `latitude=58+16` is the block that starts at 58
    return labels


def _extent_text(layout: Layout) -> str:
    axes = (f"{axis.name} {label_text(axis, 0)}..{label_text(axis, len(axis) - 1)}" for axis in layout.axes)
    return f"{layout.variable}, {', '.join(axes)}"


def _file_name(layout: Layout, block: Block) -> str:
    key = sample_key(layout, block)
    name = "-".join([key.variable, *(label for _, label in key.labels)])
    return re.sub(r"[^A-Za-z0-9._+-]", "-", name).lstrip(".-")[:_MAX_NAME] + ".png"
