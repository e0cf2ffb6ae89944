"""Three ways to tune AdamW on the digits, all with `sweep(points=...)`: random search, successive halving, Optuna.

Run it with `python examples/tune_adamw.py` after `pip install "linkax[examples]"`: some minutes on two CPU cores.

A small network learns scikit-learn's handwritten digits, a fifth of whose training labels is drawn at random. Learning
rate, weight decay and β1 are to be found; the score is the accuracy on the held-out images, averaged over seeds.

    random search        all points are trained to the end
    successive halving   all points are trained briefly, the best third of them three times as long, and so on; a rung
                         starts again from the beginning, which costs less than half as much again as going on would,
                         and needs nothing saved
    Optuna               its sampler (TPE) asks for a batch of points, `sweep` trains them side by side, and Optuna is
                         told their scores before it asks for the next batch

It prints for each way how many epochs were trained, and what its best point reaches on seeds that it has not seen, with
the standard error over repeated searches.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import optuna
import xarray
from _training import digits, train

from linkax import Chain, adamw, sweep
from linkax.transforms import matrices_only

Points = dict[str, np.ndarray]
KEEP = 3  # one of so many goes on to the next rung
LOW = {"learning_rate": 1e-4, "weight_decay": 1e-3, "one_minus_b1": 1e-2}
HIGH = {"learning_rate": 1e-1, "weight_decay": 1e1, "one_minus_b1": 1.0}
DATA = digits(noise=0.2)


def optimizer(learning_rate: jax.Array, weight_decay: jax.Array, one_minus_b1: jax.Array) -> Chain:
    return adamw(learning_rate, b1=1 - one_minus_b1, weight_decay=weight_decay, weight_decay_mask=matrices_only)


def accuracies(points: Points, epochs: int, seeds: range) -> np.ndarray:
    """The mean accuracy of every point; −∞ for those that diverge."""

    def run(tx: Chain, seed: jax.Array) -> dict[str, jax.Array]:
        trained = train(tx, seed, DATA, epochs)
        return {"accuracy": trained["accuracy"], "loss": trained["loss"][-1]}  # the loss shows divergence

    table: xarray.Dataset = sweep(run, {"seed": seeds}, {"AdamW": optimizer}, points=points, progress=False)
    accuracy = table["accuracy"].where(~(table["diverged"] | table["failed"]), -np.inf)
    return accuracy.sel(variant="AdamW").mean("seed").values


def draw(count: int, rng: np.random.Generator) -> Points:
    """Points that are uniform on logarithmic axes."""
    return {name: np.exp(rng.uniform(np.log(LOW[name]), np.log(HIGH[name]), count)) for name in LOW}


def at(points: Points, which: np.ndarray | int) -> Points:
    return {name: np.atleast_1d(column[which]) for name, column in points.items()}


def random_search(rungs: list[int], seeds: range, rng: np.random.Generator, fewer: int = 1) -> tuple[Points, int]:
    points = draw(rungs[-1] * KEEP // fewer, rng)
    return at(points, int(accuracies(points, rungs[-1], seeds).argmax())), rungs[-1] * rungs[-1] * KEEP // fewer


def successive_halving(rungs: list[int], seeds: range, rng: np.random.Generator, first: int = 0) -> tuple[Points, int]:
    points, trained = draw(rungs[-1] * KEEP, rng), 0
    rungs = rungs[first:]
    for epochs in rungs:
        found = accuracies(points, epochs, seeds)
        trained += epochs * len(found)
        best = found.argsort()[::-1]
        points = at(points, best[: len(best) // KEEP])
    return at(points, 0), trained


def optuna_search(rungs: list[int], seeds: range, rng: np.random.Generator) -> tuple[Points, int]:
    sampler = optuna.samplers.TPESampler(seed=int(rng.integers(2**31)), n_startup_trials=rungs[-1])
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(2 * KEEP):
        trials = [study.ask() for _ in range(rungs[-1] // 2)]
        points = {
            name: np.array([trial.suggest_float(name, LOW[name], HIGH[name], log=True) for trial in trials])
            for name in LOW
        }
        for trial, score in zip(trials, accuracies(points, rungs[-1], seeds)):
            if np.isfinite(score):
                study.tell(trial, score)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return {name: np.array([value]) for name, value in study.best_params.items()}, rungs[-1] * len(study.trials)


WAYS: dict[str, Callable[[list[int], range, np.random.Generator], tuple[Points, int]]] = {
    "random search": random_search,
    "random, a third": partial(random_search, fewer=KEEP),  # of the points: as costly as the next
    "halving, from rung 2": partial(successive_halving, first=1),
    "halving": successive_halving,
    "Optuna": optuna_search,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Tunes AdamW on the digits in three ways.")
    parser.add_argument("--quick", action="store_true", help="a short run that shows only that everything works")
    args = parser.parse_args()
    rungs, repeats, seeds = ([1, 3], 1, range(1)) if args.quick else ([1, 3, 9, 27], 8, range(2))
    unseen = range(100, 101 if args.quick else 110)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Every batch and every repeated rung is a sweep of its own, but the same program: JAX compiles it once.
    cache = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", cache.name)

    print(f"{rungs[-1] * KEEP} points, {len(seeds)} seeds each, rungs of {rungs} epochs; {repeats} searches each")
    print(f"{'':<20}  epochs of each seed  test accuracy in %")
    for name, search in WAYS.items():
        found = [search(rungs, seeds, np.random.default_rng(repeat)) for repeat in range(repeats)]
        best = {axis: np.concatenate([points[axis] for points, _ in found]) for axis in LOW}
        scores = accuracies(best, rungs[-1], unseen)
        error = f" ± {scores.std(ddof=1) / repeats**0.5:.2f}" if repeats > 1 else ""
        print(f"{name:<20}  {found[0][1]:19}  {scores.mean():.2f}{error}")
    cache.cleanup()
    if args.quick:
        print("quick run: not a result")


if __name__ == "__main__":
    main()
