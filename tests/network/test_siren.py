"""The shared sine layers against numpy loops, and the ranges their weights are drawn from."""

import math

import numpy as np
import pytest
import torch

from vcinr_batch.network.siren import SirenWeights, evaluate_siren


@pytest.fixture
def siren() -> SirenWeights:
    torch.manual_seed(0)
    return SirenWeights(coordinate_dim=2, hidden_dim=5, hidden_layers=2, channels=3, w0=7.0).double()


@pytest.mark.parametrize(("weight_samples", "bias_samples"), [(1, 1), (4, 1), (1, 4), (4, 4)])
def test_per_sample_weights_and_biases_equal_a_loop_over_samples_points_and_layers(
    siren: SirenWeights, weight_samples: int, bias_samples: int
) -> None:
    rng = np.random.default_rng(1)
    coordinates = rng.standard_normal((6, 2))
    weight = rng.standard_normal((weight_samples, 2, 5, 5))
    bias = rng.standard_normal((bias_samples, 3, 5))

    values = evaluate_siren(siren, *(torch.from_numpy(a) for a in (coordinates, weight, bias)))

    first, output, output_bias = (
        p.detach().numpy() for p in (siren.first_weight, siren.output_weight, siren.output_bias)
    )
    expected = np.empty((max(weight_samples, bias_samples), 6, 3))
    for b in range(len(expected)):
        w, c = weight[b % weight_samples], bias[b % bias_samples]
        for p in range(6):
            h = np.sin(7.0 * (first @ coordinates[p] + c[0]))
            for layer in range(2):
                h = np.sin(7.0 * (w[layer] @ h + c[layer + 1]))
            expected[b, p] = output @ h + output_bias
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("first_weight", 1 / 3),
        ("weight", 2 * math.sqrt(6 / 64) / 20),  # twice the SIREN range, for a gate that starts at one half
        ("bias", 1 / 8),
        ("output_weight", 0.1 * math.sqrt(6 / 64)),
    ],
)
def test_weights_fill_their_documented_range(name: str, bound: float) -> None:
    torch.manual_seed(0)
    siren = SirenWeights(coordinate_dim=3, hidden_dim=64, hidden_layers=2, channels=1, w0=20.0, weight_scale=2.0)
    magnitude = getattr(siren, name).detach().abs()
    # The largest of n uniform draws misses the bound by 1/n on average; the smallest set here has 64.
    assert 0.9 * bound < magnitude.max() <= bound
    assert float(magnitude.mean()) == pytest.approx(bound / 2, rel=0.3)
