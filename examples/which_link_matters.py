"""Which link of AdamW matters on this task? Every chain one link away from it is trained, and the effects are ranked.

Run it with `python examples/which_link_matters.py` after `pip install "linkax[examples]"`: two minutes on two CPU
cores.

A small network learns scikit-learn's handwritten digits, a fifth of whose training labels is drawn at random so that
there is something to overfit to. `ablations` gives the chains and `sweep` trains them. Each chain is compared with its
own best learning rate and decay strength, chosen on other seeds; decay strengths of L2 and of decoupled decay, for
example, are two orders of magnitude apart. It is compared with AdamW's as well, to show how far that misleads.

It prints a table and draws a picture: the gain in test accuracy over AdamW with its 95 % confidence interval. Each
interval is for one comparison: of twenty changes without effect, one is expected to look as if it had one.
"""

import jax
from _effects import effects, present
from _options import Options
from _training import digits, train

from linkax import Chain, adamw
from linkax.transforms import Rate, matrices_only

LEARNING_RATES = [5e-4, 1e-3, 2e-3, 4e-3, 0.03, 0.1, 0.3]  # the last three suit the chain without a second moment
WEIGHT_DECAYS = [3e-4, 1e-3, 3e-3, 0.1, 0.3, 0.6, 1.2]


def optimizer(learning_rate: Rate, weight_decay: Rate) -> Chain:
    return adamw(learning_rate, weight_decay=weight_decay, weight_decay_mask=matrices_only)


def main() -> None:
    options = Options("Ranks the links of AdamW by their effect on the digits.", "which_link_matters.png")
    options.add_count("seeds", "runs per chain", 20, quick=2, least=2)
    options.add_count("tuning-seeds", "runs per chain, learning rate and decay, to find the best", 4, quick=1)
    options.add_count("epochs", "passes over the training set", 50, quick=3)
    args = options.parse()
    rates, decays = (LEARNING_RATES[::2], WEIGHT_DECAYS[::3]) if args.quick else (LEARNING_RATES, WEIGHT_DECAYS)
    print(f"{optimizer(1e-3, 0.3)}\n")

    data = digits(noise=0.2)

    def run(tx: Chain, seed: jax.Array) -> dict[str, jax.Array]:
        return {"score": train(tx, seed, data, args.epochs)["accuracy"]}

    accuracy, rows = effects(run, optimizer, rates, decays, args.tuning_seeds, args.seeds)
    question, label = "Which link of AdamW matters on the digits?", "gain in test accuracy, percentage points"
    present(rows, question, f"{accuracy:.1f} % test accuracy", label, limit=1.5, args=args)


if __name__ == "__main__":
    main()
