"""The training loops go on from a checkpoint as if nothing had happened."""

import chex
import flax_linen_loop
import flax_nnx_loop
import jax
import pytest
from _training import Data, digits
from flax import nnx


@pytest.fixture(scope="module")
def data() -> Data:
    x, y, x_test, y_test = digits()
    return Data(x[:200], y[:200], x_test, y_test)


def leaves(trained) -> list[jax.Array]:
    return jax.tree.leaves(nnx.state(trained) if isinstance(trained, nnx.Module) else trained)


@pytest.mark.parametrize("loop", [flax_linen_loop, flax_nnx_loop])
def test_resumed_run_is_the_uninterrupted_one_to_the_last_bit(loop, data, tmp_path, capsys):
    whole = loop.train(data, 3, tmp_path / "whole")
    begun = loop.train(data, 3, tmp_path / "parts", stop_after=2)
    resumed = loop.train(data, 3, tmp_path / "parts")

    assert "resumes after epoch 2" in capsys.readouterr().out
    chex.assert_trees_all_equal(leaves(resumed), leaves(whole))
    # The comparison can fail: the last epoch changed something.
    assert any((a != b).any() for a, b in zip(leaves(begun), leaves(whole)))


@pytest.mark.parametrize("loop", [flax_linen_loop, flax_nnx_loop])
def test_finished_run_is_read_again(loop, data, tmp_path):
    first = loop.train(data, 1, tmp_path)
    chex.assert_trees_all_equal(leaves(loop.train(data, 1, tmp_path)), leaves(first))
