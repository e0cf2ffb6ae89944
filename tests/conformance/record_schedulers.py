"""Records what real PyTorch's schedulers do, for machines without PyTorch.

Run `python -m tests.conformance.record_schedulers`.
"""

import json
import pathlib
from typing import Any

FILE = pathlib.Path(__file__).parent / "recorded_schedulers.json"
STEPS, START = 40, 6


def schedulers(optimizer: Any) -> dict[str, Any]:
    """One scheduler of each class, by the name that a saved one is given with; each is made when it is asked for."""
    from torch.optim import lr_scheduler as s
    from torch.optim.swa_utils import SWALR

    o = optimizer
    return {
        "StepLR": lambda: s.StepLR(o, 4, 0.5),
        "MultiStepLR": lambda: s.MultiStepLR(o, [3, 9, 9, 20], 0.3),
        "ConstantLR": lambda: s.ConstantLR(o, 0.3, 9),
        "LinearLR": lambda: s.LinearLR(o, 0.2, 0.9, 11),
        "ExponentialLR": lambda: s.ExponentialLR(o, 0.97),
        "PolynomialLR": lambda: s.PolynomialLR(o, 23, 1.7),
        "CosineAnnealingLR": lambda: s.CosineAnnealingLR(o, 11, 0.01),
        "CosineAnnealingWarmRestarts": lambda: s.CosineAnnealingWarmRestarts(o, 5, 2, 1e-3),
        "CyclicLR": lambda: s.CyclicLR(o, [0.01, 0.02], 0.1, 7, 5, mode="exp_range", gamma=0.99),
        "OneCycleLR": lambda: s.OneCycleLR(o, [0.3, 0.2], STEPS + START),
        "SWALR": lambda: SWALR(o, 0.01, 13),
        "SequentialLR(LinearLR, CosineAnnealingLR)": lambda: s.SequentialLR(
            o, [s.LinearLR(o, 0.1, 1.0, 9), s.CosineAnnealingLR(o, 30, 1e-3)], [9]
        ),
        "ChainedScheduler(ConstantLR, ExponentialLR)": lambda: s.ChainedScheduler(
            [s.ConstantLR(o, 0.1, 9), s.ExponentialLR(o, 0.9)]
        ),
    }


def record() -> None:
    """Writes each scheduler's state after some steps, the optimizer's groups, and the rates and momenta that follow."""
    import torch

    found: dict[str, Any] = {}
    for name in schedulers(None):
        weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        groups: Any = [{"params": [weight], "lr": lr} for weight, lr in zip(weights, (0.1, 0.03))]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        scheduler = schedulers(optimizer)[name]()
        now: list[Any] = []
        saved: Any = None
        for step in range(START + STEPS):
            optimizer.step()
            scheduler.step()
            if step + 1 == START:
                saved = json.loads(json.dumps([scheduler.state_dict(), optimizer.state_dict()["param_groups"]]))
            if step + 1 >= START:
                now.append([[group["lr"], group["momentum"]] for group in optimizer.param_groups])
        found[name] = {"state": saved[0], "groups": saved[1], "values": now}
    FILE.write_text(json.dumps(found, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    record()
