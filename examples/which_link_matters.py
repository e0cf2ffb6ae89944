"""Which link of AdamW matters on this task? Every chain one link away from it trains, and the differences are ranked.

Run it with `python examples/which_link_matters.py` after `pip install "linkax[examples]"`: under a minute on two
CPU cores.

A small network learns scikit-learn's handwritten digits, a fifth of whose training labels is drawn at random so that
there is something to overfit to. `ablations` gives the chains, `sweep` trains all of them from the same seeds, and
since a seed means the same weights and batches for every chain, differences are taken seed by seed. The learning rate
and the decay are those that suit AdamW; an ablated chain might do better with others.

One sees a table and a picture: the change in test accuracy against AdamW with its 95 % confidence interval. Each
interval is for one comparison: among twenty that make no difference, one is expected to look as if it did.
"""

from functools import partial

from _effects import draw, effects, show
from _options import Options
from _training import digits, train

from linkax.chains import ablations, adamw, sweep
from linkax.transforms import matrices_only


def main() -> None:
    options = Options("Ranks the links of AdamW by what the digits lose without them.", "which_link_matters.png")
    options.add_count("seeds", "runs per chain", 20, quick=3, least=2)
    options.add_count("epochs", "passes over the training set", 50, quick=3)
    args = options.parse()

    tx = adamw(3e-3, weight_decay=0.5, weight_decay_mask=matrices_only)
    print(f"{tx}\n")
    variants = {"AdamW": tx, **ablations(tx)}
    data = digits(noise=0.2)
    table = sweep(partial(train, data=data, epochs=args.epochs), {"seed": range(args.seeds)}, variants)

    found = {name: table["accuracy"].sel(variant=name).values for name in variants}
    rows = effects(found, "AdamW")
    show(rows, "AdamW", found["AdamW"].mean(), "accuracy in %")
    certain = sum(row.is_certain for row in rows)
    title = f"{certain} of {len(rows)} one-link changes to AdamW matter on the digits (95 % each, {args.seeds} seeds)"
    label = "change in test accuracy against AdamW, in percentage points"
    draw(rows, title, label, more_is_better=True, linear_to=1, out=args.out)
    print(f"\n{title}.\nThe picture is {args.out}")


if __name__ == "__main__":
    main()
