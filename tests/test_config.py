"""Configs: defaults, bounds, and one clear line for whatever is wrong."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from vcinr_batch.config import RunConfig, load_config, parse_config
from vcinr_batch.errors import ConfigError, SourceError

CONFIGS = Path(__file__).parents[1] / "configs"


def test_nothing_given_is_all_defaults() -> None:
    assert parse_config({}) == RunConfig()


def test_a_yaml_file_sets_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("network: {latent_dim: 32, modulation: shift}\nsample: {block: {time: 4, latitude: 16}}\n")
    config = load_config(str(path))
    assert (config.network.latent_dim, config.network.modulation) == (32, "shift")
    assert config.sample.block == {"time": 4, "latitude": 16}
    assert config.network.hidden_dim == RunConfig().network.hidden_dim
    assert config.fit == RunConfig().fit


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("# nothing yet\n")
    assert load_config(str(path)) == RunConfig()


def test_a_config_survives_json() -> None:
    config = parse_config({"network": {"modulation": "none", "linear_term": "eof"}, "fit": {"ridge": 1e-6}})
    assert parse_config(config.model_dump(mode="json")) == config


def test_tapers_by_scale_are_serialised_only_where_they_are_used() -> None:
    """Bundles that were made before there were any keep their digest."""
    assert "coarse_tapers" not in RunConfig().model_dump(mode="json")["network"]
    config = parse_config({"network": {"coarse_tapers": [[60, 400], [150, 700]]}})
    assert config.model_dump(mode="json")["network"]["coarse_tapers"] == [[60.0, 400.0], [150.0, 700.0]]
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_configs_are_valid(path: Path) -> None:
    load_config(str(path))


def test_there_are_shipped_configs() -> None:
    assert list(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"netwrk": {}},
            "run: unknown key 'netwrk'; allowed beside it: codec, fit, meta_learning, network, normalizer",
        ),
        ({"fit": {"metod": "gradient"}}, "unknown key 'fit.metod'; allowed beside it: chord_steps, inner_rate"),
        ({"fit": {"method": "newton"}}, "fit.method = 'newton': Input should be 'closed_form' or 'gradient'"),
        ({"network": {"latent_dim": 0}}, "network.latent_dim = 0: Input should be greater than or equal to 1"),
        ({"network": {"latent_dim": "many"}}, "network.latent_dim = 'many': Input should be a valid integer"),
        ({"network": {"w0": 0}}, "network.w0 = 0: Input should be greater than 0"),
        ({"network": {"taper_length": float("inf")}}, "network.taper_length = inf: Input should be a finite number"),
        ({"fit": {"ridge": float("nan")}}, "fit.ridge = nan: Input should be a finite number"),
        ({"fit": {"ridge": 0}}, "fit.ridge = 0: Input should be greater than 0"),
        (
            {"network": {"stationary_share": 1.5}},
            "network.stationary_share = 1.5: Input should be less than or equal to 1",
        ),
        ({"network": {"coarse_tapers": [[60, 0]]}}, "network.coarse_tapers.0.1 = 0: Input should be greater than 0"),
        ({"network": {"coarse_tapers": [[90, 400], [60, 700]]}}, "pairs with ascending smoothing lengths"),
        ({"sample": {"block": {"time": 0}}}, "sample.block.time = 0: Input should be greater than or equal to 1"),
        ({"meta_learning": {"validation_share": 1}}, "meta_learning.validation_share = 1: Input should be less than 1"),
        ({"network": {"modulation": "none"}}, "modulation and linear_term are both 'none'"),
        ({"codec": {"quality_psnr_db": []}}, "quality_psnr_db must hold 1 to 64 ascending levels"),
        ({"codec": {"quality_psnr_db": [30, 30]}}, "quality_psnr_db must hold 1 to 64 ascending levels"),
        ({"codec": {"quality_psnr_db": list(range(65))}}, "quality_psnr_db must hold 1 to 64 ascending levels"),
        (
            {"codec": {"quality_psnr_db": [float("nan")]}},
            "codec.quality_psnr_db.0 = nan: Input should be a finite number",
        ),
        ({"codec": 7}, "codec = 7: Input should be a valid dictionary"),
        ({7: {}}, "7"),
        ([1, 2], "run: expected a mapping of sections, got list"),
        ("fast", "run: expected a mapping of sections, got str"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(content: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(content, "run")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["network: {latent_dim: 3", "a: b: c", "\tx: 1", "x: !!python/object:os.system 1", "x: \x00", "x: \xff"]
)
def test_text_that_is_no_yaml_is_named_with_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"run\.yaml: not valid YAML: ") as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no\.yaml"):
        load_config(str(tmp_path / "no.yaml"))


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().network.latent_dim = 3  # type: ignore[misc]


SECTIONS: list[type[BaseModel]] = [type(getattr(RunConfig(), name)) for name in RunConfig.model_fields]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_knob_is_documented(section: type[BaseModel]) -> None:
    undocumented = [name for name, field in section.model_fields.items() if not field.description]
    assert undocumented == []


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("network.modulation", "expected section.key=value"),
        ("modulation=shift", "expected section.key=value"),
        ("network.modulation=[", "not valid YAML"),
        ("network.width=3", "unknown key 'network.width'"),
        ("network.rank=0", r"network\.rank = 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(tmp_path: Path, setting: str, problem: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("network: {latent_dim: 8}\n")
    with pytest.raises(ConfigError, match=problem):
        load_config(str(path), [setting])


@pytest.mark.parametrize(
    ("text", "settings", "origin"),
    [
        ("", ["network.rank=3", "network.width=3"], r"setting 'network\.width=3': unknown"),
        ("", [" network . rank = 0", "fit.inner_steps=4"], r"setting ' network \. rank = 0': network\.rank"),
        ("", ["layers.depth=3"], r".*run\.yaml with setting 'layers\.depth=3': unknown"),
        ("", ["network.modulation=none"], r".*run\.yaml with setting 'network\.modulation=none': network"),
        ("network: {rank: 0}", ["network.hidden_dim=4"], r".*run\.yaml: network\.rank"),
        ("sample: {block: {time: 0}}", ["network.rank=4"], r".*run\.yaml: sample\.block\.time"),
        ("", ["sample.block={time: 0}"], r"setting 'sample\.block={time: 0}': sample\.block\.time"),
    ],
)
def test_a_problem_is_blamed_on_the_setting_or_the_file_that_it_stands_in(
    tmp_path: Path, text: str, settings: list[str], origin: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^{origin}"):
        load_config(str(path), settings)


def test_settings_change_the_file_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("network: {latent_dim: 8}\n")
    config = load_config(str(path), ["network.modulation=shift", "meta_learning.learning_rate=2.0e-4"])
    assert (config.network.latent_dim, config.network.modulation) == (8, "shift")
    assert config.meta_learning.learning_rate == 2e-4
