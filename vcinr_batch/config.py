"""Every knob of a run, typed and documented. An unknown key or a value out of range is a `ConfigError`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from vcinr_batch.errors import ConfigError
from vcinr_batch.quality_request import QualityRequest, parse_max_error
from vcinr_batch.storage import read_bytes

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class SourceConfig(_Section):
    """What to read."""

    variable: str | None = None
    """Name of the variable; may be left out where the source has just one."""
    select: dict[str, str] = {}
    """Labels per dimension: `2019-03-22T06`, `850`, or an inclusive range `2019-03-01..2019-03-20`."""
    member_pattern: str | None = None
    """Regular expression with one group, searched in each URL: files are stacked along a new dimension `member`."""


class SampleConfig(_Section):
    """What one sample is."""

    block: dict[str, PositiveInt] = {"time": 1}
    """Block length per dimension; `{time: 1}` is one field. Dimensions not named here and not among
    `per_label` are spanned whole; a block at the edge is padded under the mask."""
    per_label: tuple[str, ...] = ("level", "isobaricInhPa", "number", "member", "realization")
    """Dimensions that count as length 1 where the source has them and `block` does not name them."""
    coordinates: Literal["auto", "sphere", "cartesian"] = "auto"
    """`sphere`: unit-sphere xyz from latitude and longitude. `cartesian`: [-1, 1] along every dimension of the block.
    `auto`: sphere where one block spans the whole latitude and longitude, cartesian otherwise."""
    shard_samples: PositiveInt = 512
    """About how many samples one shard holds; rounded to the source's chunks."""


class NormalizerConfig(_Section):
    """How physical values become the network's values."""

    background: Literal["none", "mean", "climatology"] = "mean"
    """Stored field that is subtracted, at no cost per sample: none, the training mean, or a mean by hour and season."""
    hours: PositiveInt = 8
    """Climatology: bins of the day (UTC)."""
    seasons: PositiveInt = 4
    """Climatology: bins of the year."""
    average_over: tuple[str, ...] = ("time", "number", "member", "realization")
    """Dimensions that the background and the range do not distinguish."""


class NetworkConfig(_Section):
    """value(x; phi) = background(x, time) + B(x) phi + siren(x; phi)."""

    latent_dim: PositiveInt = 64
    """L, length of the latent phi."""
    modulation: Literal["gate", "shift", "sparse_shift", "none"] = "gate"
    """What the latent does to the SIREN: VC-INR, Functa, MSCN, or no SIREN at all (linear term only)."""
    hidden_dim: PositiveInt = 64
    """H, width of the SIREN."""
    hidden_layers: PositiveInt = 3
    """Modulated sine layers after the first one."""
    rank: PositiveInt = 5
    """R, rank of a gate."""
    hyper_dim: PositiveInt = 128
    """Width of the network from phi to the gates."""
    w0: Annotated[float, Field(gt=0)] = 20.0
    """Frequency factor of the sine layers."""
    linear_term: Literal["none", "eof", "localized"] = "none"
    """B(x) phi: off, started as the plain EOF basis, or as eigenvectors of the tapered covariance."""
    taper_length: Annotated[float, Field(gt=0)] = 300.0
    """Localised basis: length scale of the Gaussian taper, in km on the sphere, in grid cells otherwise."""
    stationary_share: Share = 0.05
    """Localised basis: share of the stationary average mixed into the covariance."""
    coarse_tapers: tuple[tuple[PositiveFloat, PositiveFloat], ...] = ()
    """Localised basis: pairs of a smoothing length (ascending) and a taper length, in the unit of `taper_length`. What
    is left after smoothing takes that taper instead: correlations of large structures reach farther."""
    global_modes: Annotated[int, Field(ge=0)] = 0
    """Localised basis: leading EOFs that are kept as they are; only the rest is localised."""

    @model_validator(mode="after")
    def _some_term(self) -> "NetworkConfig":
        if self.modulation == "none" and self.linear_term == "none":
            raise ValueError("modulation and linear_term are both 'none': the network would have no latent")
        return self

    @model_validator(mode="after")
    def _scales_ascend(self) -> "NetworkConfig":
        if any(a[0] >= b[0] for a, b in pairwise(self.coarse_tapers)):
            raise ValueError("coarse_tapers must be pairs with ascending smoothing lengths")
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out newer keys that were not used, as `MetaLearningConfig` does."""
        content: dict[str, Any] = serialize(self)
        return {key: value for key, value in content.items() if key != "coarse_tapers" or value}


class FitConfig(_Section):
    """Sample -> latent."""

    method: Literal["closed_form", "gradient"] = "closed_form"
    """`closed_form`: Gauss-Newton at phi0 by a precomputed matrix, then chord steps. `gradient`: the published loop."""
    chord_steps: Annotated[int, Field(ge=0)] = 1
    """closed_form: further steps with the same Jacobian."""
    ridge: Annotated[float, Field(gt=0)] | None = None
    """closed_form: start of the learned ridge mu, in squared network units per point; by default by kind of network."""
    inner_steps: PositiveInt = 3
    """gradient: steps of gradient descent from phi0."""
    inner_rate: Annotated[float, Field(gt=0)] = 1.0
    """gradient: start of the learned step size per latent dimension (Meta-SGD)."""


class MetaLearningConfig(_Section):
    """Learning the shared network."""

    steps: Annotated[int, Field(ge=0)] = 2000
    """Outer steps; 0 keeps the start (a localised basis needs none)."""
    max_minutes: Annotated[float, Field(gt=0)] = 60.0
    """Stop after this wall time even if steps are left. A run that ends this way is not reproducible to the bit."""
    batch_size: PositiveInt = 32
    """Samples per step."""
    fit_points: PositiveInt = 1024
    """Points that the inner loop sees."""
    loss_points: PositiveInt = 512
    """Other points, on which the outer loss is taken."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak of Adam's learning rate (warm-up, then cosine)."""
    linear_rate_factor: Annotated[float, Field(ge=0)] = 0.1
    """Learning rate of the linear term as a multiple of the others'; 0 freezes it."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Linear warm-up of the learning rate."""
    clip_norm: Annotated[float, Field(gt=0)] = 0.1
    """Gradient norm limit."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's weight decay."""
    sparsity: Annotated[float, Field(ge=0)] = 1e-4
    """sparse_shift: weight of the L0 penalty."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the training samples, the last ones, kept for validation."""
    validate_every: PositiveInt = 100
    """Steps between validations and checkpoints."""
    seed: int = 0
    """Seed of every random number in training."""
    max_samples: PositiveInt | None = None
    """Train on at most this many samples, drawn at random; all of them by default. Bounds every worker's memory, which
    holds them as float32."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products in the hidden sine layers during training steps. Sines, sums, first and last layer, normal
    equations, losses, validation and decoding are float32 or better in any case."""

    @model_serializer(mode="wrap")
    def _without_unused(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out newer keys that were not used: bundles and checkpoints of older runs stay what they were."""
        content: dict[str, Any] = serialize(self)
        unused = {"max_samples": None, "precision": "float32"}
        return {key: value for key, value in content.items() if key not in unused or value != unused[key]}


class CodecConfig(_Section):
    """Latent <-> bytes."""

    transform: Literal["klt", "residual_mlp"] = "klt"
    """g_a, g_s: the KLT under the decoder's metric, or the KLT with a learned residual MLP."""
    hidden_dim: PositiveInt = 128
    """Width of the residual MLP."""
    distortion: Literal["latent", "reconstruction"] = "latent"
    """What codec training measures: error of the latent, or of the decoded values."""
    steps: Annotated[int, Field(ge=0)] = 600
    """Training steps of the entropy model and, with residual_mlp, of the transforms."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """Adam's learning rate of the entropy model; the transforms take a tenth."""
    distortion_weight: Annotated[float, Field(gt=0)] = 1.0
    """lambda: weight of the distortion, in units where 1 balances rate and distortion at high rate."""
    quality_psnr_db: tuple[float, ...] = tuple(float(q) for q in range(10, 65, 2))
    """One quality level for each nominal PSNR: the quantisation step is sqrt(12) * range * 10^(-PSNR/20)."""

    @model_validator(mode="after")
    def _levels_ascend(self) -> "CodecConfig":
        levels = self.quality_psnr_db
        if not 1 <= len(levels) <= 64 or any(a >= b for a, b in pairwise(levels)):
            raise ValueError("quality_psnr_db must hold 1 to 64 ascending levels")
        return self


class QualityConfig(_Section):
    """How good compressed samples shall be where the command does not say."""

    max_error: dict[str, float | str] = {}
    """Bound on the error of every value, by variable: in its unit (`0.1`), or a share of the range of the training
    values (`0.1%`)."""

    @model_validator(mode="after")
    def _bounds_parse(self) -> "QualityConfig":
        for bound in self.max_error.values():
            parse_max_error(str(bound))
        return self


class RunConfig(_Section):
    """One YAML file = one whole run."""

    source: SourceConfig = SourceConfig()
    sample: SampleConfig = SampleConfig()
    normalizer: NormalizerConfig = NormalizerConfig()
    network: NetworkConfig = NetworkConfig()
    fit: FitConfig = FitConfig()
    meta_learning: MetaLearningConfig = MetaLearningConfig()
    codec: CodecConfig = CodecConfig()
    quality: QualityConfig = QualityConfig()

    @model_serializer(mode="wrap")
    def _without_unused(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out a newer section that was not used, as `MetaLearningConfig` does."""
        content: dict[str, Any] = serialize(self)
        return {key: value for key, value in content.items() if key != "quality" or value != {"max_error": {}}}


def load_config(url: str, settings: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML from any fsspec URL.

    Args:
        url: of the file.
        settings: changes on top of it, each `section.key=value` with the value in YAML.

    Raises:
        SourceError: the file cannot be read.
        ConfigError: not YAML, an unknown key, or a value out of range; names the key and what is allowed.
    """
    try:
        content = yaml.safe_load(read_bytes(url))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{url}: not valid YAML: {' '.join(str(error).split())}") from error
    content = {} if content is None else content
    for setting in settings:
        content = _with_setting(content, setting)
    return parse_config(content, url, settings)


def configured_request(config: RunConfig, variable: str) -> QualityRequest:
    """How good samples of a variable shall be by a configuration.

    Raises:
        ConfigError: it says nothing of it.
    """
    bound = config.quality.max_error.get(variable)
    if bound is None:
        raise ConfigError(
            f"say how good {variable} shall be: a quality level, target PSNR, target RMSE or max error, "
            "or quality.max_error in the configuration that the bundle is trained with"
        )
    return parse_max_error(str(bound))


def parse_config(content: Any, name: str = "config", settings: Sequence[str] = ()) -> RunConfig:
    """Check a nested mapping and return it as a `RunConfig`.

    Args:
        content: sections and their keys.
        name: where it came from.
        settings: those that are in it already; a problem with one of them is not blamed on `name`.

    Raises:
        ConfigError: as `load_config`.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name}: expected a mapping of sections, got {type(content).__name__}")
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{_origin(error, name, settings)}: {_first_problem(error)}") from error


def _origin(error: ValidationError, name: str, settings: Sequence[str]) -> str:
    """Where the first problem came from: a setting, the file, or a section of the file that settings changed."""
    problem = ".".join(str(part) for part in error.errors()[0]["loc"])
    for setting in reversed(settings):
        key = ".".join(part.strip() for part in setting.partition("=")[0].split("."))
        if f"{problem}.".startswith(f"{key}."):
            return f"setting {setting!r}"
        if key.startswith(f"{problem}."):
            return f"{name} with setting {setting!r}"
    return name


def _with_setting(content: Any, setting: str) -> dict[str, Any]:
    path, separator, text = setting.partition("=")
    section, dot, key = (part.strip() for part in path.partition("."))
    if not (separator and dot and section and key):
        raise ConfigError(f"setting {setting!r}: expected section.key=value, e.g. network.modulation=shift")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"setting {setting!r}: the value is not valid YAML") from error
    known = content if isinstance(content, Mapping) else {}
    before = known.get(section)
    return {**known, section: {**(before if isinstance(before, Mapping) else {}), key: value}}


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"]) or "config"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; allowed beside it: {', '.join(_allowed_beside(problem['loc']))}"
    return f"{key} = {problem['input']!r}: {problem['msg']}"


def _allowed_beside(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        section = annotation
    return sorted(section.model_fields)
