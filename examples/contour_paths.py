"""The path of every optimizer over three surfaces from the same start: a narrow valley, a saddle, Beale's function.

Run it with `python examples/contour_paths.py` after `pip install "linkax[examples]"`: half a minute on two CPU cores.

Each optimizer gets the calmest learning rate that does the job: the lowest of 61 from 1e-4 to 100 with which it ends
closer than 0.2 to a minimum, or the one that brings it closest. All of these runs are one `sweep`. The other
hyperparameters are the defaults.

It prints a table and draws all paths, as a picture and as an animation (a GIF next to the picture). Where paths lie on
top of each other, the lower ones are wider and show as borders. The valley is 40
times as steep across as along it; the saddle is flat where the paths come in, and falls to a minimum on either side;
Beale's function is a plateau with a bent valley and steep walls.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _looks import look, save
from _optimizers import OPTIMIZERS
from _options import Options
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display
from matplotlib.lines import Line2D
from PIL import Image  # comes with matplotlib
from tqdm import tqdm

from linkax import Chain, sweep

LEARNING_RATES = np.logspace(-4, 2, 61)
CLOSE = 0.2
FRAMES_PER_SECOND = 12


class Surface(NamedTuple):
    name: str
    f: Callable[[jax.Array, jax.Array], jax.Array]
    start: tuple[float, float]
    minima: list[tuple[float, float]]  # two, which may be the same
    x: tuple[float, float]
    y: tuple[float, float]


SURFACES = [
    Surface(
        "narrow valley: x²/40 + y²",
        lambda x, y: x**2 / 40 + y**2,
        (-4.0, 1.5),
        [(0.0, 0.0)] * 2,
        (-4.6, 1.0),
        (-1.3, 1.9),
    ),
    Surface(
        "saddle: x²/2 − y² + y⁴/4",
        lambda x, y: x**2 / 2 - y**2 + y**4 / 4,
        (-1.5, 0.01),
        [(0.0, 2**0.5), (0.0, -(2**0.5))],
        (-1.8, 0.8),
        (-0.6, 2.0),
    ),
    Surface(
        "Beale",
        lambda x, y: (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2,
        (1.0, 1.5),
        [(3.0, 0.5)] * 2,
        (-0.8, 4.2),
        (-1.7, 2.1),
    ),
]


def paths(steps: int) -> dict[str, list[tuple[float, np.ndarray]]]:
    """For each optimizer and surface, the best learning rate and the points (steps + 1, 2) that it leads through."""

    minima = jnp.asarray([s.minima for s in SURFACES])

    def run(tx: Chain, surface: jax.Array) -> dict[str, jax.Array]:
        def f(w: jax.Array) -> jax.Array:
            return jax.lax.switch(surface, [lambda w, f=s.f: f(w[0], w[1]) for s in SURFACES], w)

        def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
            w, state = carry
            updates, state = tx.update(jax.grad(f)(w), state, w)
            return (optax.apply_updates(w, updates), state), w

        start = jnp.asarray([s.start for s in SURFACES])[surface]
        _, path = jax.lax.scan(step, (start, tx.init(start)), length=steps + 1)
        distance = jnp.linalg.norm(path[-1] - minima[surface], axis=-1).min()
        return {"path": path, "distance": distance}

    grid = {"surface": range(len(SURFACES)), "learning_rate": LEARNING_RATES}
    table = sweep(run, grid, OPTIMIZERS, metric_dims={"path": ["step", "coordinate"]})
    distance = table["distance"].fillna(np.inf)  # where it diverged
    found = table.isel(learning_rate=distance.where(distance > CLOSE, -1).argmin("learning_rate"))
    return {
        name: [
            (float(at["learning_rate"]), at["path"].values)
            for at in (found.sel(variant=name, surface=i) for i in range(len(SURFACES)))
        ]
        for name in OPTIMIZERS
    }


def report(found: dict[str, list[tuple[float, np.ndarray]]], steps: int) -> None:
    print(f"\nafter {steps} steps: learning rate and distance to the nearest minimum")
    print(f"{'optimizer':<13}" + "".join(f"  {surface.name:>26}" for surface in SURFACES))
    for name, runs in found.items():
        print(f"{name:<13}", end="")
        for surface, (rate, path) in zip(SURFACES, runs):
            distance = np.linalg.norm(path[-1] - surface.minima, axis=-1).min()
            print(f"  {rate:15.2g}  {distance:9.1e}", end="")
        print()


def background(figure: Figure) -> list[Axes]:
    """The surfaces, as contours."""
    panels = figure.subplots(1, len(SURFACES))
    for axes, surface in zip(panels, SURFACES):
        x, y = np.meshgrid(np.linspace(*surface.x, 300), np.linspace(*surface.y, 300))
        values = np.asarray(surface.f(jnp.asarray(x), jnp.asarray(y)))
        heights = values - values.min()
        # Lines at equal ratios of the height over the minimum: a valley's floor and its walls both show.
        levels = np.geomspace(max(heights.max() * 1e-5, 1e-3), heights.max(), 24)
        axes.contour(x, y, heights, levels, colors="#BBBBBB", linewidths=0.6)
        axes.plot(*surface.start, "o", color="white", markeredgecolor="black", markersize=9, zorder=5)
        axes.plot(*zip(*surface.minima), "*", color="gold", markeredgecolor="black", markersize=16, zorder=5)
        axes.set(title=surface.name, xlabel="x", ylabel="y", xlim=surface.x, ylim=surface.y)
    return list(panels)


def animate(figure: Figure, lines: list[tuple[Line2D, np.ndarray]], steps: int, out: Path) -> None:
    """A GIF in which every other step is a frame; the last one stays for two seconds."""
    figure.set_dpi(100)
    frames = []
    for step in tqdm([*range(0, steps, 2), steps], desc="animation", unit="frame"):
        for line, path in lines:
            line.set_data(*path[: step + 1].T)
            line.set_markevery([step])  # one marker, where the optimizer is
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    # One palette and no dithering: what does not move stays the same from frame to frame, and the file small.
    palette = frames[-1].quantize(256, Image.Quantize.MAXCOVERAGE)
    first, *rest = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first.save(
        out, save_all=True, append_images=rest, duration=[1000 // FRAMES_PER_SECOND] * len(rest) + [2000], loop=0
    )


def main() -> None:
    options = Options("The paths of all optimizers over three surfaces.", "contour_paths.png")
    options.add_count("steps", "steps from the start", 100, quick=10)
    args = options.parse()
    found = paths(args.steps)
    report(found, args.steps)

    figure = Figure(figsize=(15, 6.9), dpi=130, layout="constrained")
    figure.suptitle(
        f"Which way does each optimizer take in {args.steps} steps, at the lowest learning rate that gets it there?",
        fontsize=14,
    )
    lines = []
    for at, axes in enumerate(background(figure)):
        for i, name in enumerate(OPTIMIZERS):
            rate, path = found[name][at]
            looks = look(name) | {"markersize": 5, "markevery": (i % 5, 10)}
            lines.append((axes.plot(*path.T, **looks, label=f"{name}, {rate:.2g}")[0], path))
        axes.legend(
            **{
                "loc": "upper center",
                "bbox_to_anchor": (0.5, -0.12),
                "ncols": 2,
                "handlelength": 3.5,
                "frameon": False,
            },
            title="optimizer, its learning rate",
        )
    save(figure, args)

    animation = args.out.with_suffix(".gif")
    animate(figure, lines, args.steps, animation)
    print(f"The animation is {animation}")


if __name__ == "__main__":
    main()
