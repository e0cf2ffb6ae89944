"""The number that says how far the best decay moves finds what was put in."""

import numpy as np
import pytest
from ablate_decay import DECAYS, LEARNING_RATES, movement


@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.5])
def test_movement_finds_a_known_slope(slope):
    # Accuracy is a parabola in log λ around a best λ between the cells that follows the learning rate's power `slope`.
    at = np.log10(DECAYS[1:])
    best = np.log10(0.02) + slope * np.log10(np.divide(LEARNING_RATES, 0.006))
    hills = 90 - (at - best[:, None]) ** 2
    accuracy = np.concatenate([np.full((len(best), 1), 50.0), hills], axis=1)[:, :, None]
    noise = np.random.default_rng(0).normal(0, 1e-3, (*accuracy.shape[:2], 6))
    estimate, low, high = movement(accuracy + noise, LEARNING_RATES, DECAYS)
    # Cells are 0.48 or 0.52 decades wide, and the parabola takes them as equal: at most 0.02 off in any place.
    assert np.log10(estimate) == pytest.approx(slope, abs=0.05)
    assert low <= estimate <= high


def test_movement_at_the_edge_of_the_grid():
    accuracy = np.broadcast_to(
        np.arange(len(DECAYS), dtype=float)[None, :, None], (len(LEARNING_RATES), len(DECAYS), 3)
    )
    np.testing.assert_allclose(movement(accuracy, LEARNING_RATES, DECAYS), 1, rtol=1e-12)  # always the last decay
