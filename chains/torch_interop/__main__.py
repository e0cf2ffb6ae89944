"""Checkpoints from a shell: `python -m linkax.chains.torch_interop inspect PATH` and `... convert PATH OUT`."""

import argparse
import contextlib
import ctypes
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._checkpoint import inspect_checkpoint
from ._convert import Target, is_orbax, to_orbax, to_torch
from ._names import torch_name


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; 0 if it succeeds, 2 if not, with one message that lists everything that is wrong."""
    args = _parser().parse_args(arguments)
    try:
        if args.command == "inspect":
            print(inspect_checkpoint(args.path, model=args.model, strip=args.strip))
            return 0
        _convert(args)
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _convert(args: argparse.Namespace) -> None:
    if args.out.exists():
        raise ValueError(f"OUT must not exist yet, got {args.out}")
    if not args.out.resolve().parent.is_dir():
        raise ValueError(f"OUT must be in a folder that exists, got {args.out}")
    _give_back()
    target = _target(args.params, args.optimizer)
    if is_orbax(args.path):
        notes = to_torch(args.path, args.out, target, args.template)
    else:
        if args.template is not None:
            raise ValueError(f"--template is for the way back, from an Orbax checkpoint, got {args.path}")
        notes = to_orbax(
            args.path,
            args.out,
            target,
            order=args.order,
            names=args.names,
            scheduler=args.scheduler,
            steps_per_epoch=args.steps_per_epoch,
            model=args.model,
            strip=args.strip,
        )
    for note in notes:
        print(f"note: {note}")
    print(f"made {args.out}")


def _give_back() -> None:
    """Makes glibc give freed arrays back to the system at once, instead of keeping those below 32 MB for later."""
    with contextlib.suppress(OSError, AttributeError):  # other C libraries do not have it
        ctypes.CDLL(None).mallopt(-3, 1_000_000)  # M_MMAP_THRESHOLD, in bytes


def _target(params: str | None, optimizer: str | None) -> Target:
    """What the user's own functions say."""
    tx = None if optimizer is None else _called("--optimizer", optimizer)[0]
    if params is None:
        return Target(tx=tx)
    tree, module = _called("--params", params)
    return Target(tree, getattr(module, "names", torch_name), getattr(module, "layouts", None), tx)


def _called(option: str, where: str) -> tuple[Any, Any]:
    """The result of a function that is named as `module:function`, and its module."""
    name, colon, function = where.partition(":")
    if not (name and colon and function):
        raise ValueError(f"{option} must be module:function, got {where!r}")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module = importlib.import_module(name)
    if not callable(getattr(module, function, None)):
        raise ValueError(f"{option} must name a function of {name}, got {function!r}")
    return getattr(module, function)(), module


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m linkax.chains.torch_interop", description=(__doc__ or "").strip())
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="say what is in a PyTorch checkpoint")
    convert = commands.add_parser(
        "convert",
        help="PyTorch checkpoint to Orbax checkpoint, or back",
        description="Makes an Orbax checkpoint of a PyTorch one (items params, opt_state, spec), or a PyTorch file of "
        "such an Orbax one. It ends with 2, and one message, if something has no counterpart.",
    )
    for one in (inspect, convert):
        one.add_argument("path", type=Path, help="a file or folder")
        one.add_argument("--model", help="where the model is, if there are several: keys with dots between them")
        one.add_argument("--strip", default="", help="a prefix to remove from names, such as Lightning's 'model.'")
    convert.add_argument("out", type=Path, help="what to make, which must not exist yet")
    convert.add_argument(
        "--params",
        metavar="MODULE:FUNCTION",
        help="a function that returns your model's parameters, or their shapes; the module may also have `names` and "
        "`layouts`, as import_params takes them (default: a tree of PyTorch's names and layouts)",
    )
    convert.add_argument(
        "--optimizer",
        metavar="MODULE:FUNCTION",
        help="a function that returns the chain, such as one with a schedule (default: PyTorch's optimizer)",
    )
    convert.add_argument(
        "--order", help="how an optimizer without names was made: 'model', 'trainer', or a file with one name a line"
    )
    convert.add_argument(
        "--names",
        type=Path,
        help="with such a rule: a file of the names in model.named_parameters(), if PATH sorts them",
    )
    convert.add_argument(
        "--scheduler",
        metavar="CLASS",
        help="the class of the scheduler, whose schedule the chain then has: 'CosineAnnealingLR', "
        "'SequentialLR(LinearLR, CosineAnnealingLR)' (default: the learning rate stays as it is)",
    )
    convert.add_argument(
        "--steps-per-epoch",
        type=int,
        default=1,
        metavar="N",
        help="how many steps of the optimizer come before each step of the scheduler (default: 1)",
    )
    convert.add_argument(
        "--template",
        type=Path,
        help="back: a PyTorch file, whose model and optimizer are replaced; the rest is kept",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
