"""Records what PyTorch does along the stream, so that the tests can check it where there is no PyTorch.

    pip install torch==2.13.0
    python -m tests.conformance.record

writes tests/conformance/recorded.npz: for every case its path, PyTorch's float32 errors, and the version.
"""

import json

import numpy as np
import torch
import tqdm

from .cases import RECORDED
from .float32 import CASES, FILE, relative_error, stream
from .stream import gradients_for, parameters, taken_by
from .torch_reference import torch_updates_from_zero, torch_walk


def main() -> None:
    """Writes the file."""
    arrays = {"torch_version": np.array(torch.__version__)}
    for index, (name, arguments) in enumerate(tqdm.tqdm(RECORDED, desc="paths")):
        arrays[f"{index}/case"] = np.array(json.dumps([name, arguments]))
        for key, path in torch_walk(
            name, arguments, taken_by(name, parameters()), taken_by(name, gradients_for(arguments))
        ).items():
            if key != "idle":
                arrays[f"{index}/{key}"] = path
    for name, arguments in tqdm.tqdm(CASES, desc="float32 errors"):
        single = torch_updates_from_zero(name, arguments, stream(name), torch.float32)
        double = torch_updates_from_zero(name, arguments, stream(name), torch.float64)
        arrays[f"float32/{name}/{json.dumps(arguments)}"] = np.array(relative_error(single, double))
    np.savez_compressed(FILE, allow_pickle=False, **arrays)
    print(f"{FILE.name}: {FILE.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
