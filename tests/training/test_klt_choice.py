import numpy as np
from numpy.typing import NDArray

from vcinr_batch.training.klt_choice import choose_correlations

STEPS = np.array([1.4, 0.7, 0.35])


def test_few_samples_of_uncorrelated_latents_are_not_rotated() -> None:
    rng = np.random.default_rng(0)
    scale = np.geomspace(3, 0.5, 40)
    train, validation = (rng.normal(0, scale, (n, 40)).astype(np.float32) for n in (50, 2000))
    assert choose_correlations(train, validation, np.eye(40), STEPS) == (1.0, None)


def test_only_correlations_that_hold_on_validation_are_used() -> None:
    # Ten latents of large scale share one cause; the others are noise. Forty samples do not tell the noise apart, and
    # span 39 directions only: a plain KLT would look cheap if what it drops were not counted.
    def draw(count: int, seed: int) -> NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=(count, 1)) * 5 + rng.normal(size=(count, 10)) * 0.5
        noise = rng.normal(0, np.geomspace(2, 0.2, 60), (count, 60))
        return np.concatenate([shared, noise], 1).astype(np.float32)

    _, leading = choose_correlations(draw(40, 0), draw(500, 1), np.eye(70), STEPS)
    assert leading in (8, 16)


def test_correlations_of_many_samples_are_all_trusted() -> None:
    mixing = np.random.default_rng(1).normal(size=(6, 6)) * np.geomspace(3, 0.1, 6)[:, None]
    train, validation = (
        (np.random.default_rng(seed).normal(size=(1000, 6)) @ mixing).astype(np.float32) for seed in (2, 3)
    )
    assert choose_correlations(train, validation, np.eye(6), STEPS) == (0.0, None)
