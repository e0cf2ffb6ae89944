"""The numbers that say where the best decay is and how far it moves are those that were put in."""

import numpy as np
import pytest
from ablate_decay import DECAYS, LEARNING_RATES, ridge

RATES, L2 = np.array(LEARNING_RATES), DECAYS["L2"]
NONE = np.full((len(RATES), 6), 50.0)


@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.5])
def test_ridge_finds_a_known_slope(slope):
    # Accuracy is a parabola in log λ around a best λ between the cells that follows the learning rate's power `slope`.
    best = -2.52 + slope * np.log10(RATES / 0.003)
    hills = 90 - (np.log10(L2) - best[:, None]) ** 2
    noise = np.random.default_rng(0).normal(0, 1e-3, (*hills.shape, 6))
    found = ridge(NONE, hills[:, :, None] + noise, RATES, L2)
    # The parabola's bend is 0.06 from cell to cell: noise of 1e-3 / √6 moves its top by some hundredths of a cell, a
    # quarter of a decade wide each.
    np.testing.assert_allclose(np.log10(found.best), best, atol=0.02)
    assert found.helps.all()
    estimate, low, high = found.factor
    assert np.log10(estimate) == pytest.approx(slope, abs=0.02)
    assert low <= estimate <= high


def test_ridge_at_the_edge_of_the_grid():
    accuracy = np.broadcast_to(60 + np.arange(len(L2), dtype=float)[None, :, None], (len(RATES), len(L2), 6))
    found = ridge(NONE, accuracy, RATES, L2)
    np.testing.assert_allclose(found.best, L2[-1], rtol=1e-12)
    np.testing.assert_allclose(found.factor, 1, rtol=1e-12)


def test_where_decay_does_not_help_there_is_nothing_to_fit():
    found = ridge(NONE, np.full((len(RATES), len(L2), 6), 50.4), RATES, L2)
    assert not found.helps.any()
    assert "nothing to fit" in found.moves
