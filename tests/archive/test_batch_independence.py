"""A sample is decoded to the same bits whichever way it is reached, and whatever is read along with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

from pipelines.convert import convert
from vcinr_batch.archive.archive import Archive

NETWORKS = {
    "linear": "modulation: none, linear_term: eof",
    "gate": "modulation: gate, linear_term: none",
    "gate and linear": "modulation: gate, linear_term: eof",
}
CODEC = {"linear": "", "gate": ", transform: residual_mlp, hidden_dim: 8", "gate and linear": ""}
INDEXERS: dict[str, dict[str, Any]] = {
    "one sample": {"time": [17]},
    "two": {"time": [3, 30]},
    "three, backwards": {"time": [39, 20, 1]},
    "a slice over a part's end": {"time": slice(7, 14)},
    "every third": {"time": slice(None, None, 3)},
    "a region of one": {"time": [11], "latitude": slice(2, 5), "longitude": [0, 7]},
    "half of them turned": {"time": slice(25, 4, -1), "latitude": slice(None, None, -1)},
}


@pytest.fixture(scope="module", params=NETWORKS.keys())
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, source_path: Path) -> str:
    """The 40 hours in 4 parts, by a bundle that was hardly trained."""
    from pipelines.compress import CompressJob, compress
    from pipelines.train import train
    from vcinr_batch.compression import QualityRequest
    from vcinr_batch.config import load_config

    folder = tmp_path_factory.mktemp("run")
    (folder / "run.yaml").write_text(
        f"""
source: {{variable: t2m}}
network: {{{NETWORKS[request.param]}, latent_dim: 7, hidden_dim: 12, hidden_layers: 2, rank: 2, hyper_dim: 8, w0: 5}}
normalizer: {{background: mean}}
meta_learning: {{steps: 0}}
codec: {{steps: 2, quality_psnr_db: [20, 40]{CODEC[request.param]}}}
"""
    )
    torch.manual_seed(0)
    report = train(load_config(str(folder / "run.yaml")), [str(source_path)], str(folder / "bundle"))
    output = str(folder / "archive")
    job = CompressJob(
        (str(source_path),), report.bundle_url, output, QualityRequest(level=1), workers=0, shard_samples=10
    )
    compress(job)
    convert(output, str(folder / "zarr"), "zarr")
    return output


def zarr_url(url: str) -> str:
    return str(Path(url).parent / "zarr")


@pytest.mark.parametrize("indexer", INDEXERS.values(), ids=INDEXERS.keys())
def test_a_part_of_it_has_the_bits_of_the_whole(url: str, indexer: dict[str, Any]) -> None:
    whole = Archive.open(url).to_xarray()
    expected = whole.isel(indexer)
    assert len(np.unique(whole["t2m"].values.reshape(40, -1), axis=0)) > 1
    for opened in (
        xarray.open_dataset(url, engine="vcinr"),
        xarray.open_dataset(zarr_url(url), engine="vcinr"),
        xarray.open_zarr(zarr_url(url), chunks=None),
    ):
        xarray.testing.assert_identical(opened.isel(indexer).load(), expected)


@pytest.mark.parametrize(("text", "count"), [("2019-03-01T06", 1), ("2019-03-01T08..2019-03-01T19", 12)])
def test_a_selection_has_the_bits_of_the_whole(url: str, text: str, count: int) -> None:
    whole = Archive.open(url).to_xarray()
    for place in (url, zarr_url(url)):
        found = Archive.open(place).to_xarray({"time": text})
        assert found.sizes["time"] == count
        xarray.testing.assert_identical(found, whole.sel(time=found.time))


def test_samples_by_key_have_the_bits_of_the_whole(url: str) -> None:
    archive = Archive.open(url)
    whole, keys = archive.to_xarray()["t2m"].values, list(archive.keys())
    for chosen in ([4], [39, 0], [9, 10, 11], list(np.random.default_rng(0).permutation(40))):
        np.testing.assert_array_equal(archive.read([keys[i] for i in chosen])[:, 0], whole[chosen])


def test_a_sample_evaluated_alone_has_the_bits_that_it_has_among_others(url: str) -> None:
    archive = Archive.open(url)
    where = {"latitude": [58.1, 57.3], "longitude": [-4.4, -2.0, 0.1]}
    together = archive.evaluate({"time": "2019-03-01T00..2019-03-01T20"}, **where)
    for hour in (0, 7, 20):
        alone = archive.evaluate([str(list(archive.keys())[hour])], **where)
        np.testing.assert_array_equal(alone.values[0], together.values[hour])
