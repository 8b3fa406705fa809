"""A dry run writes nothing, and what it says comes true."""

import hashlib
import json
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray

from pipelines import dry_run, dry_run_text
from pipelines import probe as probe_module
from pipelines.compress import CompressJob, CompressProgress, compress
from pipelines.compress_plan import CompressPlan, plan_compression
from pipelines.dry_run import estimate
from pipelines.probe import Probe, ProbeTask, peak_bytes, run_probe
from pipelines.shard_work import ShardRows, ShardSamples, compress_read, read_shard
from pipelines.train import train
from tests.conftest import TINY_CONFIG
from tests.servers.object_store import ObjectStore
from vcinr_batch.bundle import load_bundle
from vcinr_batch.cli import run
from vcinr_batch.compression import QualityRequest
from vcinr_batch.config import load_config
from vcinr_batch.data.shards import Shard
from vcinr_batch.errors import BundleMismatchError, SourceError, VcinrError


@pytest.fixture
def job(source_path: Path, bundle_path: Path, tmp_path: Path) -> CompressJob:
    request = QualityRequest(level=2)
    return CompressJob((str(source_path),), str(bundle_path), str(tmp_path / "archive"), request, shard_samples=10)


@pytest.fixture(scope="module")
def wide_job(tmp_path_factory: pytest.TempPathFactory) -> CompressJob:
    """Four shards of 30 MB each, so that their values weigh something beside the libraries."""
    folder = tmp_path_factory.mktemp("wide")
    hours, height, width = 2000, 96, 160
    phase = np.arange(hours)[:, None, None] / 7
    latitude, longitude = 60 - 0.25 * np.arange(height), -5 + 0.25 * np.arange(width)
    values = (280 + 3 * np.sin(longitude / 2 + phase) + np.cos(latitude[:, None] + phase)).astype(np.float32)
    dims = ("time", "latitude", "longitude")
    time = np.datetime64("2019-01-01", "ns") + np.arange(hours) * np.timedelta64(1, "h")
    axes = {
        "time": time,
        "latitude": ("latitude", latitude, {"units": "degrees_north"}),
        "longitude": ("longitude", longitude, {"units": "degrees_east"}),
    }
    xarray.Dataset({"t2m": (dims, values, {"units": "K"})}, axes).to_netcdf(folder / "wide.nc")
    (folder / "tiny.yaml").write_text(TINY_CONFIG)
    config = load_config(str(folder / "tiny.yaml"), ["source.select={time: 2019-01-01..2019-01-03}"])
    report = train(config, [str(folder / "wide.nc")], str(folder / "bundle"))
    sources, output = (str(folder / "wide.nc"),), str(folder / "archive")
    return CompressJob(sources, report.bundle_url, output, QualityRequest(level=2), shard_samples=500)


def digests(folder: Path) -> dict[str, str]:
    """Of every file below a folder; folders have none."""
    found = sorted(folder.rglob("*"))
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in found}


def test_what_it_expects_is_what_comes(job: CompressJob, tmp_path: Path, fields: xarray.Dataset) -> None:
    expected = estimate(job)
    assert digests(tmp_path) == {}
    report = compress(job)
    assert (expected.shards, expected.samples, expected.source_bytes) == (4, 40, fields.t2m.nbytes)
    assert (expected.finished_shards, expected.archive_exists, expected.probe_samples) == (0, False, 30)
    # Shards have about the same content here; the manifest's digests are made up.
    assert expected.archive_bytes == pytest.approx(report.summary.rate.archive_bytes, rel=0.02)
    assert expected.bundle_bytes == report.summary.rate.bundle_bytes
    assert expected.seconds is not None
    assert 0 < expected.seconds < 60


def test_an_archive_that_is_there_and_shards_that_are_done_are_told_and_left_alone(
    job: CompressJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "run_probe", lambda _: PROBE)

    def stop(progress: CompressProgress) -> None:
        if progress.samples == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(job, stop)
    before = digests(tmp_path)
    half = estimate(job)
    assert (half.finished_shards, half.finished_samples, half.archive_exists) == (2, 20, False)
    assert digests(tmp_path) == before
    compress(job)
    before = digests(tmp_path)
    again = estimate(job)
    assert (again.finished_shards, again.archive_exists) == (0, True)
    assert digests(tmp_path) == before


def test_nothing_is_written_to_object_storage(job: CompressJob, s3: ObjectStore) -> None:
    source, bundle = Path(job.sources[0]), Path(job.bundle)
    client = s3.client()
    for path in (source, bundle):
        client.put_object(Bucket=s3.bucket, Key=f"in/{path.name}", Body=path.read_bytes())
    before = client.list_objects_v2(Bucket=s3.bucket)["Contents"]
    there = replace(
        job,
        sources=(f"{s3.url}/in/{source.name}",),
        bundle=f"{s3.url}/in/{bundle.name}",
        output=f"{s3.url}/archive",
        storage_options=s3.storage_options,
    )
    assert estimate(there).samples == 40
    assert client.list_objects_v2(Bucket=s3.bucket)["Contents"] == before


def test_a_ray_worker_s_peak_is_predicted_within_15_percent(wide_job: CompressJob) -> None:
    pytest.importorskip("ray")
    job, peaks = replace(wide_job, workers=1), dict[int, int]()

    def look(_: CompressProgress) -> None:
        for process in psutil.Process().children(recursive=True):
            if "ray::ShardWorker" in " ".join(process.cmdline()):
                peaks[process.pid] = max(peaks.get(process.pid, 0), peak_bytes(str(process.pid)))

    expected = estimate(job)
    compress(job, look)
    (peak,) = peaks.values()
    # Which stages of two shards meet is chance: runs of this job differ by a tenth. A prediction that is too large
    # would send people to machines that they do not need, so that it is bounded, too.
    assert 0.75 * expected.worker_bytes < peak < 1.15 * expected.worker_bytes


@pytest.mark.parametrize("on_ray", [False, True])
def test_as_many_shards_are_aboard_as_in_a_worker(
    job: CompressJob, monkeypatch: pytest.MonkeyPatch, on_ray: bool
) -> None:
    """Two of them on Ray, the next one read while one is compressed: that decides the peak."""
    if on_ray:
        pytest.importorskip("ray")
    stages, lock, is_next_read = list[str](), threading.Lock(), threading.Event()

    def read(plan: CompressPlan, shard: Shard) -> ShardSamples:
        samples = read_shard(plan, shard)
        if shard.sample_count > 1:  # not what warms up
            with lock:
                stages.append("read")
            if stages.count("read") == 2:
                is_next_read.set()
        return samples

    def compress_samples(plan: CompressPlan, samples: ShardSamples) -> ShardRows:
        if len(samples.samples) > 1:
            if on_ray:
                assert is_next_read.wait(60)
            with lock:
                stages.append("compress")
        return compress_read(plan, samples)

    monkeypatch.setattr(probe_module, "read_shard", read)
    monkeypatch.setattr(probe_module, "compress_read", compress_samples)
    plan, shards = plan_compression(job, load_bundle(job.bundle))
    probe_module.measure(ProbeTask(replace(plan, bundle_url=job.bundle), tuple(shards[:1]), 600.0, on_ray))
    passes = probe_module.PASSES
    assert stages == (["read"] * passes + ["compress"] * passes if on_ray else ["read", "compress"] * passes)


def test_a_shard_that_would_take_too_long_is_cut_and_scaled(wide_job: CompressJob) -> None:
    plan, shards = plan_compression(wide_job, load_bundle(wide_job.bundle))
    plan = replace(plan, bundle_url=wide_job.bundle)
    whole, cut = (run_probe(ProbeTask(plan, (shards[0],), seconds, on_ray=False)) for seconds in (60.0, 0.0))
    assert (whole.is_whole, whole.samples) == (True, 500)
    assert (cut.is_whole, cut.samples) == (False, 1)
    assert cut.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.25)


# Read in 0.1 s and compressed in 0.4 s for each of 40 samples; 5 s to start.
PROBE = Probe(
    samples=10,
    rejected=2,
    part_bytes=1000,
    empty_part_bytes=300,
    read_seconds=0.1,
    compress_seconds=0.4,
    start_seconds=5.0,
    peak_bytes=500_000_000,
    is_whole=True,
)


@pytest.mark.parametrize(
    ("workers", "worker_seconds", "seconds"),
    [
        (0, 20.0, 20.0),  # one thing after the other
        (1, 16.0, 21.0),  # reads while it compresses
        (4, 16.0, 9.0),
        (None, 16.0, None),  # a cluster of unknown size
    ],
)
def test_workers_read_ahead_and_share_the_time(
    job: CompressJob,
    monkeypatch: pytest.MonkeyPatch,
    workers: int | None,
    worker_seconds: float,
    seconds: float | None,
) -> None:
    monkeypatch.setattr(dry_run, "run_probe", lambda _: PROBE)
    report = estimate(replace(job, workers=workers))
    assert report.worker_seconds == pytest.approx(worker_seconds)
    assert report.seconds == (None if seconds is None else pytest.approx(seconds))


def test_the_command_line_prints_it_for_people_and_machines(
    job: CompressJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(dry_run, "run_probe", lambda _: PROBE)
    arguments = ["compress", *job.sources, "--bundle", job.bundle, "--output", job.output, "--quality", "2"]
    assert run([*arguments, "--dry-run", "--workers", "2", "--shard-samples", "10"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "samples 40 samples in 4 shards",
        "memory 525.2 MB for each worker",
        "time about 13 s with 2 workers on machines like this one (16 s of one worker)",
        "measured on 10 samples, of which 2 would be rejected; nothing was written",
    ):
        assert words in text
    assert run([*arguments, "--dry-run", "--workers", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["event"], result["samples"], result["worker_bytes"]) == ("done", 40, 500_000_000)
    assert digests(tmp_path) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7260, "2 h 1 min"), (900_000, "10 d 10 h")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert dry_run_text._duration_text(seconds) == text


def test_a_job_that_compress_would_refuse_is_refused(job: CompressJob, fields: xarray.Dataset, tmp_path: Path) -> None:
    fields.isel(longitude=slice(0, 11)).to_netcdf(tmp_path / "other.nc")
    with pytest.raises(BundleMismatchError, match="longitude"):
        estimate(replace(job, sources=(str(tmp_path / "other.nc"),)))


def test_an_error_in_the_process_that_tries_comes_out_as_itself(job: CompressJob) -> None:
    plan, shards = plan_compression(job, load_bundle(job.bundle))
    missing = replace(plan, bundle_url=f"/nowhere/{'0' * 64}.safetensors")
    with pytest.raises(SourceError, match="no such file"):
        run_probe(ProbeTask(missing, tuple(shards[:1]), 1.0, on_ray=False))


def test_a_process_that_runs_out_of_memory_says_what_to_do(job: CompressJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.CompletedProcess([], -9, b"", b"")

    monkeypatch.setattr(probe_module.subprocess, "run", killed)
    with pytest.raises(VcinrError, match=r"10 samples was killed by signal 9.*--shard-samples"):
        estimate(job)
