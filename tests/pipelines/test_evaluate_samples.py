"""What `vcinr evaluate` compares codecs on: some of many samples, and awkward ones."""

from pathlib import Path

import numpy as np
import xarray

from pipelines.evaluate import EvaluateJob, evaluate
from pipelines.evaluate_results import OURS
from pipelines.heldout_samples import load_held_out, open_matching, write_spread_samples
from pipelines.train import train
from tests.conftest import TINY_HEIGHT, TINY_WIDTH, make_fields
from vcinr_batch.bundle import load_bundle
from vcinr_batch.config import load_config
from vcinr_batch.data.layout import sample_key


def test_of_many_samples_evenly_spread_ones_are_compared(
    bundle_path: Path, source_path: Path, fields: xarray.Dataset, tmp_path: Path
) -> None:
    bundle = load_bundle(str(bundle_path))
    source, layout = open_matching([str(source_path)], bundle, {}, None, None, None)
    write_spread_samples(source, layout, bundle, 5, str(tmp_path / "some.zarr"))
    few, thin = open_matching([str(tmp_path / "some.zarr")], bundle, {}, None, None, None)
    held_out, rejected = load_held_out(few, thin, bundle)
    assert rejected == 0
    keys = [str(sample_key(thin, block)) for block in held_out.blocks]
    assert keys[0] == "t2m[time=2019-03-01T00:00:00]"
    assert keys[-1] == "t2m[time=2019-03-02T15:00:00]"
    assert len(keys) == 5
    assert np.array_equal(held_out.values, fields.t2m.values[[0, 10, 20, 29, 39]])


def test_members_and_blocks_of_hours_with_gaps_are_evaluated(tmp_path: Path) -> None:
    """Two runs of six hours each in blocks of four, the last one cut; a lake without values."""
    for member in ("r1", "r2"):
        fields = make_fields(46, seed=int(member[1]))
        fields.t2m[:, 2:4, 3:6] = np.nan
        fields.isel(time=slice(0, 40)).to_netcdf(tmp_path / f"train_{member}.nc")
        fields.isel(time=slice(40, 46)).to_netcdf(tmp_path / f"test_{member}.nc")
    config = tmp_path / "run.yaml"
    config.write_text(
        "source: {variable: t2m, member_pattern: '_(r\\d)'}\nsample: {block: {time: 4}}\n"
        "normalizer: {background: mean}\nmeta_learning: {steps: 0}\ncodec: {steps: 20, quality_psnr_db: [20, 30, 40]}\n"
        "network: {modulation: none, linear_term: eof, latent_dim: 5}\n"
    )
    bundle = train(load_config(str(config)), [str(tmp_path / "train_*.nc")], str(tmp_path / "bundle")).bundle_url
    job = EvaluateJob(
        (str(tmp_path / "test_*.nc"),),
        bundle,
        str(tmp_path / "out"),
        member_pattern=r"_(r\d)",
        train_sources=(str(tmp_path / "train_*.nc"),),
        targets_db=(40.0,),
        bound_shares=(0.01,),
    )
    results = evaluate(job).results
    assert not {name: reason for name, reason in results.left_out.items() if name != f"{OURS} at a bound"}
    assert results.field_shape == (4, TINY_HEIGHT, TINY_WIDTH)
    assert results.samples == 4
    assert results.values == 2 * 6 * (TINY_HEIGHT * TINY_WIDTH - 6)
    assert all(point.beyond_bound == 0 for codec in results.codecs for point in codec.bounded)
