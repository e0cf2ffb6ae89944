"""What acts on a running optimizer keeps its arrays in shards: on eight devices, and in two processes."""

import functools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from .acting_on_shards import CHAINS, COLUMNS, FEW, IDS, LOW, NEW, TABLES

AXES = ["Auto", "Explicit"]


@functools.cache
def found(kind: str) -> dict[str, Any]:
    """What eight devices gave: found out in another process, because devices are counted once."""
    root = pathlib.Path(__file__).parents[2]
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-W", "error", "-m", "tests.chains.acting_on_shards"]
    return json.loads(subprocess.run(command, cwd=root, env=env, check=True, stdout=subprocess.PIPE).stdout)[kind]


def of_each(names: Any) -> Any:
    return pytest.mark.parametrize(
        ("kind", "name"), [("Auto", name) for name in names] + [("Explicit", name) for name in names if name in FEW]
    )


@pytest.mark.parametrize("kind", AXES)
def test_imported_parameters_lie_as_their_shapes_say(kind):
    assert found(kind)["imports"]["params"] == {"lie": True, "same": True, "whole": [], "exported": True}


@of_each(CHAINS)
def test_an_imported_state_lies_like_the_parameters(kind, name):
    its = found(kind)["imports"][name]
    assert its["lie"] is its["same"] is its["same of shapes"] is its["exported"] is True
    assert its["whole"] == []  # no device had all of a parameter meanwhile
    assert its.get("compiled", 1) == 1
    assert its.get("exported averages", True) is its.get("read", True) is True


@of_each(NEW)
def test_a_migrated_state_lies_like_the_parameters(kind, name):
    its = found(kind)["migrations"][name]
    assert its["lie"] is its["same"] is True
    assert its["whole"] == []
    assert its.get("compiled", 1) == 1


@pytest.mark.parametrize("kind", AXES)
def test_what_migrate_keeps_stays_where_it_is_and_what_is_new_lies_like_its_parameter(kind):
    its = found(kind)["migrations"]
    assert its["converted"] == {"lie": True, "same": True}
    assert its["of another layout"] == {"stays": True, "new lies": True}
    assert its["from elsewhere"] == {"lie": True}


@pytest.mark.parametrize("kind", AXES)
def test_setting_a_live_value_compiles_nothing(kind):
    its = found(kind)["live"]
    assert its["compiled"] == 0
    assert its["compiled after a migration"] == its["compiled around MultiSteps"] == 1
    assert its["value"] == {"learning_rate": 0.5, "b1": 0.5}


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("by", LOW)
def test_full_weights_go_into_the_shards_of_the_parameters(kind, by):
    assert found(kind)["weights"][by] == {"lie": True, "same": True, "whole": []}


@pytest.mark.parametrize("kind", AXES)
def test_an_nnx_optimizer_keeps_its_shards(kind):
    assert found(kind)["nnx"] == {"lie": True, "rate": True}


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("name", TABLES)
def test_a_step_on_a_few_rows_does_not_send_the_table(kind, name):
    its = found(kind)["tables"][name]
    assert its["lie"]
    # The gradient of the touched rows, or these rows of a moment, are the most; the table has 32 times as many.
    assert its["sent"] <= IDS * COLUMNS
    # float32, of numbers up to 4; a compiled step may be rounded otherwise in the last bits.
    assert its["difference"] < 1e-6
