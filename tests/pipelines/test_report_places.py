"""`vcinr report` and `vcinr inspect --plot` wherever an archive lies, and what they cost however large it is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from pipelines.compress import CompressJob, compress
from pipelines.convert import convert
from pipelines.counted_files import count, counted_url
from pipelines.report import write_report
from pipelines.report_statistics import MAX_REJECTED, count_reasons, measure_archive
from pipelines.sample_picture import plot_sample
from vcinr_batch import cli
from vcinr_batch.archive.archive import Archive
from vcinr_batch.archive.manifest import commit_manifest
from vcinr_batch.archive.parquet_container import write_part
from vcinr_batch.archive.rows import ArchiveRow
from vcinr_batch.compression import QualityRequest
from vcinr_batch.data.layout import Layout, sample_key
from vcinr_batch.data.samples import RejectedSample
from vcinr_batch.data.shards import Shard, plan_shards, shard_blocks, shard_name
from vcinr_batch.errors import SampleNotFoundError
from vcinr_batch.inspection import inspect_archive
from vcinr_batch.storage import join_url, write_bytes

KEY = "t2m[time=2019-03-01T05:00:00]"
PAYLOAD_BYTES = 600


@pytest.fixture(scope="module")
def spoilt(fields: xarray.Dataset, bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an archive as Parquet and as Zarr, and of its source; hours 3 and 12 are rejected."""
    folder = tmp_path_factory.mktemp("spoilt")
    source = fields.isel(time=slice(0, 20)).copy(deep=True)
    source.t2m[3, 2, 5] = np.inf
    source.t2m[12] = np.nan
    source.to_netcdf(folder / "source.nc")
    request = QualityRequest(level=2)
    sources = (str(folder / "source.nc"),)
    compress(CompressJob(sources, str(bundle_path), str(folder / "parquet"), request, shard_samples=5))
    convert(str(folder / "parquet"), str(folder / "zarr"), "zarr")
    return folder


def large_archive(template: Path, folder: Path, hours: int, shard_samples: int) -> Archive:
    """Rows of other payloads, which nobody decodes; every tenth sample is rejected, each for a reason of its own."""
    like = Archive.open(str(template))
    time = like.layout.axes[0]
    longer = replace(time, values=time.values[0] + 3600 * np.arange(hours))
    layout = replace(like.layout, axes=(longer, *like.layout.axes[1:]))
    shards = plan_shards(layout, shard_samples, (1, *layout.shape[1:]))
    parts = tuple(_write(str(folder), layout, shard, like.rows()) for shard in shards)
    manifest = replace(like.manifest, layout=layout, parts=parts)
    write_bytes(join_url(str(folder), manifest.bundle_path), like.bundle_bytes())
    commit_manifest(manifest, str(folder))
    return Archive.open(str(folder))


def _write(url: str, layout: Layout, shard: Shard, like: list[ArchiveRow]) -> Any:
    random = np.random.default_rng(shard.index)
    rows, rejected = [], []
    for block in shard_blocks(shard):
        key, hour = sample_key(layout, block), block[0]
        if hour % 10 == 9:
            rejected.append(RejectedSample(key, block, f"{hour // 10 % 15} infinite values"))
        else:
            row = like[hour % len(like)]
            rows.append(replace(row, key=key, block=block, payload=random.bytes(PAYLOAD_BYTES)))
    name = shard_name(layout, shard)
    return write_part(rows, layout, url, name, start=shard.start, stop=shard.stop, rejected=rejected)


def test_the_page_of_a_zarr_archive_says_the_same_of_the_same_rows(spoilt: Path, tmp_path: Path) -> None:
    pages = {
        name: write_report(str(spoilt / name), str(tmp_path / f"{name}.html"), [str(spoilt / "source.nc")])
        for name in ("parquet", "zarr")
    }
    sizes = {"archive_bytes", "bits_per_value", "bits_per_value_with_bundle"}
    sizes |= {name for name in pages["zarr"].figures if name.startswith("ratio")}
    rest = [{k: v for k, v in page.figures.items() if k not in sizes} for page in pages.values()]
    assert rest[0] == rest[1]
    assert pages["zarr"].rejected == 2
    text = (tmp_path / "zarr.html").read_text()
    for said in ("container zarr", "1 infinite value", "no value at all", "t2m[time=2019-03-01T03:00:00]"):
        assert said in text


@pytest.mark.parametrize("container", ["parquet", "zarr"])
def test_the_rate_counts_every_byte_that_lies_there(spoilt: Path, container: str) -> None:
    rate = inspect_archive(str(spoilt / container)).rate
    there = sum(path.stat().st_size for path in (spoilt / container).rglob("*") if path.is_file())
    assert rate.archive_bytes + rate.bundle_bytes == there


def test_a_picture_is_the_same_out_of_both_containers(spoilt: Path, tmp_path: Path) -> None:
    source = [str(spoilt / "source.nc")]
    reports = [plot_sample(str(spoilt / n), KEY, source, str(tmp_path / f"{n}.png")) for n in ("parquet", "zarr")]
    assert reports[0] == replace(reports[1], output=reports[0].output)
    assert (tmp_path / "parquet.png").read_bytes() == (tmp_path / "zarr.png").read_bytes()
    with pytest.raises(SampleNotFoundError, match=r"was rejected when .*: no value at all"):
        plot_sample(str(spoilt / "zarr"), "time=2019-03-01T12", output=str(tmp_path / "none.png"))


def test_archive_source_and_page_may_lie_in_an_object_store(
    spoilt: Path, s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(str(spoilt / "parquet"), f"{s3.url}/archive", "zarr", storage_options=s3.storage_options)
    write_bytes(f"{s3.url}/source.nc", (spoilt / "source.nc").read_bytes(), storage_options=s3.storage_options)
    options = ["--storage-options", json.dumps(s3.storage_options)]
    report = ["report", f"{s3.url}/archive", "--against", f"{s3.url}/source.nc", "--json", *options]
    picture = ["inspect", f"{s3.url}/archive", "--plot", KEY, "--json", *options]
    local = write_report(str(spoilt / "zarr"), str(tmp_path / "here.html"), [str(spoilt / "source.nc")])
    for command, name in ((report, "page.html"), (picture, "sample.png")):
        for output in (f"{s3.url}/{name}", str(tmp_path / name)):
            assert cli.run([*command, "--output", output]) == 0, capsys.readouterr().err
            result = json.loads(capsys.readouterr().out.splitlines()[-1])
            assert result["output"].endswith(name)
            if command is report:
                assert {k: result[k] for k in local.figures} == local.figures
        assert cli.run([*command, "--output", f"{s3.url}/{name}"]) == 2
        assert "--overwrite" in capsys.readouterr().err
    assert {"page.html", "sample.png"} <= set(s3.keys())


def test_a_large_archive_is_measured_without_its_payloads(archive_path: Path, tmp_path: Path) -> None:
    archive = large_archive(archive_path, tmp_path / "large", 6000, 2000)
    bundle = inspect_archive(archive.url).bundle
    counted = Archive.open(counted_url(archive.url))
    asked, found = count(lambda normalizer: measure_archive(counted, normalizer), bundle.normalizer)
    assert found.stored_payload_bytes == 5400 * PAYLOAD_BYTES
    assert found.course is not None
    assert found.course.samples.sum() == 5400
    assert not found.course.has_gaps  # 25 hours a bin
    read = sum(request.bytes for request in asked if "/parts/" in request.path)
    assert 0 < read < 0.1 * found.stored_payload_bytes


def test_rejected_samples_are_counted_table_by_table_and_the_first_are_spelt_out(
    archive_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = large_archive(archive_path, tmp_path / "large", 2000, 100)
    monkeypatch.setattr(Archive, "rejected", lambda _: pytest.fail("all of them at once"))
    first, reasons = count_reasons(archive)
    assert len(first) == MAX_REJECTED < reasons.total() == 200
    assert first[0] == ("t2m[time=2019-03-01T09:00:00]", "0 infinite values")
    assert (first[MAX_REJECTED - 1][1], len(reasons)) == ("9 infinite values", 15)


def test_reasons_that_have_no_room_on_the_page_are_counted(
    archive_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large_archive(archive_path, tmp_path / "large", 400, 100)
    monkeypatch.setattr("pipelines.report._worst", lambda *_: [])  # made-up payloads do not decode
    write_report(str(tmp_path / "large"), str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    assert "40 samples of the source; all of them below" in text
    assert "; 5 more reasons: 10." in text
