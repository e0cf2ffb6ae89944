"""`scale_by_plateau` reads the metric once an epoch, and checks what it is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linkax.transforms import Plateau, scale_by_plateau


def rates(metrics, steps=1, **options):
    """The learning rate of every update, which gets the latest metric."""
    link = scale_by_plateau(1.0, steps_per_epoch=steps, **options)
    state, update = link.init(jnp.float32(0)), jax.jit(link.update)
    found = []
    for metric in metrics:
        for _ in range(steps):
            u, state = update(jnp.float32(-1), state, value=metric)
            found.append(float(u))
    return found


@pytest.mark.parametrize("steps", [1, 3])
def test_the_rate_falls_after_too_many_bad_epochs(steps):
    found = rates([np.inf, 3, 2, 2, 2, 2, 2], steps, factor=0.5, patience=1)
    np.testing.assert_array_equal(found, np.repeat([1, 1, 1, 1, 0.5, 0.5, 0.25], steps))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cooldown": 2}, [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ({"min_lr": 0.4}, [1, 1, 0.5, 0.4, 0.4, 0.4, 0.4]),
        ({"min_lr": 0.4, "eps": 0.2}, [1, 1, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ({"start": Plateau(best=0.5, bad_epochs=0, epochs=0)}, [1, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]),
        ({"mode": "max"}, [1, 1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
    ],
)
def test_options(options, expected):
    assert rates([np.inf, 1, 1, 1, 1, 1, 1], factor=0.5, patience=0, **options) == pytest.approx(expected)


@pytest.mark.parametrize(("mode", "sign"), [("min", -1), ("max", 1)])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_a_metric_must_be_better_by_the_threshold(mode, sign, threshold_mode):
    enough, too_little = 1 + sign * 0.26, 1 + sign * 0.24
    options = {"mode": mode, "threshold_mode": threshold_mode, "threshold": 0.25, "factor": 0.5, "patience": 0}
    assert rates([0, 1, enough], **options)[-1] == 1
    assert rates([0, 1, too_little], **options)[-1] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, r"factor must be a number in \[0, 1\), got 1.0"),
        ({"patience": -1}, "patience must be an integer of at least 0, got -1"),
        ({"cooldown": 0.5}, "cooldown must be an integer of at least 0, got 0.5"),
        ({"mode": "low"}, "mode must be 'min' or 'max', got 'low'"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be an integer of at least 1, got 0"),
        ({"offset": 0.5}, "offset must be an integer or None, got 0.5"),
        ({"start": (1.0, 0, 0, 0)}, r"start must be a Plateau\(...\) or None"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=f"scale_by_plateau: {message}"):
        scale_by_plateau(0.1, **options)


def test_value_is_checked():
    link = scale_by_plateau(0.1)
    state = link.init(jnp.ones(2))
    with pytest.raises(TypeError, match="scale_by_plateau: value must be given to update"):
        link.update(jnp.ones(2), state)
    with pytest.raises(ValueError, match=r"value must be one number, got shape \(2,\)"):
        link.update(jnp.ones(2), state, value=jnp.ones(2))


def test_a_scheduled_rate_is_scaled():
    link = scale_by_plateau(lambda count: 1 / (1 + count), factor=0.5, patience=0)
    state, found = link.init(jnp.float32(0)), []
    for metric in (jnp.inf, 1.0, 1.0, 1.0):
        u, state = link.update(jnp.float32(-1), state, value=metric)
        found.append(float(u))
    assert found == pytest.approx([1, 1 / 2, 1 / 2 / 3, 1 / 4 / 4])
