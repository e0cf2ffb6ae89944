"""What acts on a running optimizer keeps its arrays in shards: on eight devices, and in two processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from linkax.chains.torch_interop import import_params

from .acting_on_shards import CHAINS, COLUMNS, FEW, IDS, LOW, NEW, SHAPES, TABLES

AXES = ["Auto", "Explicit"]


def start(module: str, *arguments: Any, devices: int) -> subprocess.Popen[str]:
    """Another process, because devices are counted once."""
    root = pathlib.Path(__file__).parents[2]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-W", "error", "-m", f"tests.chains.{module}", *map(str, arguments)]
    return subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True)


def printed(process: subprocess.Popen[str]) -> Any:
    try:
        output, _ = process.communicate(timeout=900)  # on a busy machine, the half minute may become many
    finally:
        process.kill()
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])  # gloo prints lines of its own before


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What eight devices gave, by the type of the mesh's axes."""
    return printed(start("acting_on_shards", devices=8))


def of_each(names: Any) -> Any:
    return pytest.mark.parametrize(
        ("kind", "name"), [("Auto", name) for name in names] + [("Explicit", name) for name in names if name in FEW]
    )


@pytest.mark.parametrize("kind", AXES)
def test_imported_parameters_lie_as_their_shapes_say(kind, found):
    assert found[kind]["imports"]["params"] == {"lie": True, "same": True, "whole": [], "exported": True}


def test_shapes_on_a_mesh_without_devices_are_refused():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    array = jax.device_put(np.ones((2, 3), np.float32), NamedSharding(mesh, PartitionSpec("x")))
    shapes = jax.eval_shape(lambda w: {"w": w}, array)
    with pytest.raises(ValueError, match="a shape's sharding must have a mesh of devices, .* one on the axes x alone"):
        import_params(shapes, {"w": array})
    with jax.set_mesh(mesh):
        assert import_params(shapes, {"w": array})["w"].sharding.is_equivalent_to(array.sharding, 2)


@of_each(CHAINS)
def test_an_imported_state_lies_like_the_parameters(kind, name, found):
    its = found[kind]["imports"][name]
    assert its["lie"] is its["same"] is its["same of shapes"] is its["exported"] is True
    assert its["whole"] == []  # no device had all of a parameter meanwhile
    assert its.get("compiled", 1) == 1
    assert its.get("exported averages", True) is its.get("read", True) is True


@of_each(NEW)
def test_a_migrated_state_lies_like_the_parameters(kind, name, found):
    its = found[kind]["migrations"][name]
    assert its["lie"] is its["same"] is True
    assert its["whole"] == []
    assert its.get("compiled", 1) == 1


@pytest.mark.parametrize("kind", AXES)
def test_what_migrate_keeps_stays_where_it_is_and_what_is_new_lies_like_its_parameter(kind, found):
    its = found[kind]["migrations"]
    assert its["converted"] == {"lie": True, "same": True}
    assert its["of another layout"] == {"stays": True, "new lies": True}
    assert its["from elsewhere"] == {"lie": True}


@pytest.mark.parametrize("kind", AXES)
def test_setting_a_live_value_compiles_nothing(kind, found):
    its = found[kind]["live"]
    assert its["compiled"] == 0
    assert its["compiled after a migration"] == its["compiled around MultiSteps"] == 1
    assert its["value"] == {"learning_rate": 0.5, "b1": 0.5}


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("by", LOW)
def test_full_weights_go_into_the_shards_of_the_parameters(kind, by, found):
    assert found[kind]["weights"][by] == {"lie": True, "same": True, "whole": []}


@pytest.mark.parametrize("kind", AXES)
def test_an_nnx_optimizer_keeps_its_shards(kind, found):
    assert found[kind]["nnx"] == {"lie": True, "rate": True}


@pytest.mark.parametrize("kind", AXES)
@pytest.mark.parametrize("name", TABLES)
def test_a_step_on_a_few_rows_does_not_send_the_table(kind, name, found):
    its = found[kind]["tables"][name]
    assert its["lie"]
    # The gradient of the touched rows, or these rows of a moment, are the most; the table has 32 times as many.
    assert its["sent"] <= IDS * COLUMNS
    # float32, of numbers up to 4; a compiled step may be rounded otherwise in the last bits.
    assert its["difference"] < 1e-6


def test_two_processes_share_what_they_import_and_both_export_all_of_it():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start("acting_on_hosts", port, host, devices=4) for host in range(2)]
    both = [printed(process) for process in processes]
    assert both[0] == both[1]
    its = both[0]
    assert [name for name, value in its.items() if value is False] == []
    rows, columns = SHAPES["fc"]["kernel"]
    assert its["read"] == rows * columns / 2  # each process converts its own half of a matrix
    assert its["compiled"] == 1
    # One step of 0.001 in float32, from weights up to 5; compiled otherwise, it may be rounded otherwise.
    assert its["difference"] < 1e-6
