import numpy as np
import pytest
import torch

from vcinr_batch.training.compressai_bridge import cumulative_logits, standard_bottleneck
from vcinr_batch.training.entropy_training import CodeDistribution, fit_distribution


def test_the_bottleneck_starts_as_a_standard_logistic() -> None:
    bottleneck = standard_bottleneck(3)
    x = torch.linspace(-4, 4, 9)[:, None].expand(9, 3)
    with torch.no_grad():
        logits = cumulative_logits(bottleneck, x)
    # A logistic of deviation 1 has the scale sqrt(3) / pi and the logit x / scale.
    np.testing.assert_allclose(logits.numpy(), (x * torch.pi / 3**0.5).numpy(), atol=1e-4)


def test_bits_are_the_information_of_the_interval() -> None:
    learned_from = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0])
    model = CodeDistribution(learned_from, 0)
    code, step = torch.tensor([[0.3, -20.0]]), torch.tensor([[0.5]])
    edges = model.cdf(np.array([[0.05, -20.25], [0.55, -19.75]]))
    with torch.no_grad():
        bits = model.bits(code, step)
    np.testing.assert_allclose(bits.numpy()[0], -np.log2(edges[1] - edges[0]), rtol=1e-3)


def test_the_cdf_rises_from_zero_to_one() -> None:
    model = CodeDistribution(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), 0)
    cumulative = model.cdf(np.linspace(-30, 30, 101)[:, None])
    assert cumulative.shape == (101, 2)
    assert (np.diff(cumulative, axis=0) >= 0).all()
    assert cumulative[0].max() < 1e-6
    assert cumulative[-1].min() > 1 - 1e-6


def test_learning_lowers_the_rate_of_a_source_that_is_not_logistic() -> None:
    generator = torch.Generator().manual_seed(0)

    def two_peaks(count: int) -> torch.Tensor:
        sign = torch.randint(0, 2, (count, 1), generator=generator) * 2 - 1
        return sign + 0.1 * torch.randn(count, 1, generator=generator)

    code, validation, test = two_peaks(1000), two_peaks(200), two_peaks(1000)
    steps = torch.tensor([0.4, 0.1])
    start = CodeDistribution(code, 0)
    model, best = fit_distribution(code, validation, steps, 300, 300, 2e-2, seed=0)
    with torch.no_grad():
        before, after = (m.bits(test, steps[1].expand(1000, 1)).mean() for m in (start, model))
    assert best > 0
    # A normal of deviation 0.1 costs log2(0.1 sqrt(2 pi e) / 0.1) = 2.05 bits and its sign one more; uniform noise of
    # the width of the step costs a little besides.
    assert after < before - 0.5
    assert 3.0 < after < 3.9


def test_without_validation_the_last_state_is_kept() -> None:
    code = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    model, step = fit_distribution(code, None, torch.tensor([0.5]), 20, 7, 1e-2, seed=0)
    assert step == 7
    moved = (
        CodeDistribution(code, 0).bottleneck.state_dict()["matrices.0"] - model.bottleneck.state_dict()["matrices.0"]
    )
    assert moved.abs().max() > 0


@pytest.mark.parametrize("stop_at", [0, 3])
def test_constant_dimensions_do_not_break_it(stop_at: int) -> None:
    code = torch.zeros(20, 2)
    code[:, 0] = torch.linspace(-1, 1, 20)
    model, _ = fit_distribution(code, None, torch.tensor([0.5]), 10, stop_at, 1e-2, seed=0)
    assert np.isfinite(model.cdf(np.zeros((1, 2)))).all()
