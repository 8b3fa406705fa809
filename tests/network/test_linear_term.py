"""B(x) phi against an explicit sum."""

import numpy as np
import pytest
import torch

from vcinr_batch.network.linear_term import LinearTerm


@pytest.mark.parametrize("points", [None, [3, 0]])
def test_values_are_the_sum_over_latents_of_basis_times_latent(points: list[int] | None) -> None:
    rng = np.random.default_rng(0)
    basis, latents = rng.standard_normal((4, 2, 3)), rng.standard_normal((5, 3))
    term = LinearTerm(point_count=4, channels=2, latent_dim=3).double()
    with torch.no_grad():
        term.basis.copy_(torch.from_numpy(basis))

    values = term(torch.from_numpy(latents), None if points is None else torch.tensor(points))

    expected = np.einsum("pcl,bl->bpc", basis if points is None else basis[points], latents)
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=0, atol=1e-13)


def test_a_term_without_a_basis_is_zero() -> None:
    assert not LinearTerm(4, 1, 3)(torch.ones(2, 3)).any()
