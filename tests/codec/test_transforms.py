import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vcinr_batch.codec.transforms import LatentTransform, klt_transform
from vcinr_batch.errors import ConfigError, FittingError


@pytest.fixture(scope="module")
def latents() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)) + 3).astype(np.float32)


@pytest.fixture(scope="module")
def jacobian() -> NDArray[np.float64]:
    return np.random.default_rng(1).normal(size=(50, 6))


def analyse(transform: LatentTransform, latents: NDArray[np.float32]) -> NDArray[np.float64]:
    with torch.no_grad():
        return transform.analysis(torch.from_numpy(latents)).double().numpy()


def synthesise(transform: LatentTransform, code: NDArray[np.float64]) -> NDArray[np.float64]:
    with torch.no_grad():
        return transform.synthesis(torch.from_numpy(code).float()).double().numpy()


def test_code_errors_are_output_errors(latents: NDArray[np.float32], jacobian: NDArray[np.float64]) -> None:
    transform = klt_transform(latents, jacobian.T @ jacobian)
    code = analyse(transform, latents)
    noisy = code + np.random.default_rng(2).normal(size=code.shape)
    output_error = (synthesise(transform, noisy) - latents) @ jacobian.T
    np.testing.assert_allclose((output_error**2).sum(1), ((noisy - code) ** 2).sum(1), rtol=1e-3)


@pytest.mark.parametrize("hidden_dim", [0, 8])
def test_analysis_and_synthesis_are_inverses_at_the_start(
    latents: NDArray[np.float32], jacobian: NDArray[np.float64], hidden_dim: int
) -> None:
    transform = klt_transform(latents, jacobian.T @ jacobian, hidden_dim=hidden_dim)
    assert (transform.latent_dim, transform.code_dim) == (6, 6)
    np.testing.assert_allclose(synthesise(transform, analyse(transform, latents)), latents, atol=1e-4)


def test_code_is_uncorrelated_and_sorted_by_variance(
    latents: NDArray[np.float32], jacobian: NDArray[np.float64]
) -> None:
    transform = klt_transform(latents, jacobian.T @ jacobian)
    covariance = np.cov(analyse(transform, latents), rowvar=False, bias=True)
    std = np.sqrt(np.diag(covariance))
    assert np.abs(covariance / np.outer(std, std) - np.eye(6)).max() < 1e-4
    assert (np.diff(std) < 0).all()
    np.testing.assert_allclose(transform.scale.numpy(), std, rtol=1e-4)


def test_it_is_pca_of_the_outputs(latents: NDArray[np.float32], jacobian: NDArray[np.float64]) -> None:
    transform = klt_transform(latents, jacobian.T @ jacobian)
    outputs = latents.astype(np.float64) @ jacobian.T
    singular = np.linalg.svd(outputs - outputs.mean(0), compute_uv=False)[:6]
    np.testing.assert_allclose(transform.scale.numpy(), singular / np.sqrt(len(outputs)), rtol=1e-4)


def test_full_shrinkage_trusts_the_given_axes(latents: NDArray[np.float32]) -> None:
    metric = np.diag([4.0, 1, 9, 1, 1, 25])
    transform = klt_transform(latents, metric, shrinkage=1.0)
    # Each code dimension is one latent times the root of its metric.
    magnitude = np.sort(np.abs(transform.W_analysis.numpy()), axis=0)
    assert (magnitude[:-1] < 1e-6).all()
    np.testing.assert_allclose(np.sort(magnitude[-1]), [1, 1, 1, 2, 3, 5], rtol=1e-6)


def test_only_the_leading_latents_are_decorrelated() -> None:
    # Latents 1 and 3 matter most in the output; 0 and 2 are as correlated, but theirs are left alone.
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(500, 2))
    latents = (shared[:, [0, 1, 0, 1]] + 0.3 * rng.normal(size=(500, 4))).astype(np.float32)
    transform = klt_transform(latents, np.diag([1.0, 100, 1, 100]), leading=2)
    correlation = np.corrcoef(analyse(transform, latents), rowvar=False)
    np.testing.assert_allclose(correlation[0, 1], 0, atol=1e-4)
    assert abs(correlation[2, 3]) > 0.9


def test_directions_without_metric_or_variance_are_dropped(latents: NDArray[np.float32]) -> None:
    flat = latents.copy()
    flat[:, 0] = 2.5
    metric = np.eye(6)
    metric[1, 1] = 0
    transform = klt_transform(flat, metric)
    assert transform.code_dim == 4
    restored = synthesise(transform, analyse(transform, flat))
    np.testing.assert_allclose(restored[:, 2:], flat[:, 2:], atol=1e-4)
    np.testing.assert_allclose(restored[:, 0], 2.5, atol=1e-5)
    np.testing.assert_allclose(restored[:, 1], flat[:, 1].mean(), atol=1e-4)


def test_a_single_latent_dimension_works() -> None:
    transform = klt_transform(np.array([[1.0], [3.0]], np.float32), np.array([[4.0]]))
    assert analyse(transform, np.array([[3.0]], np.float32)).tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("latents", "metric", "error", "message"),
    [
        (np.zeros((5, 3), np.float32), np.eye(2), ConfigError, "metric"),
        (np.zeros(5, np.float32), np.eye(1), ConfigError, "latents"),
        (np.full((5, 2), np.nan, np.float32), np.eye(2), FittingError, "not finite"),
        (np.ones((5, 2), np.float32), np.eye(2), FittingError, "do not vary"),
        (np.eye(2, dtype=np.float32), np.zeros((2, 2)), FittingError, "metric is zero"),
    ],
)
def test_unusable_input_is_named(
    latents: NDArray[np.float32], metric: NDArray[np.float64], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        klt_transform(latents, metric)
