"""A convolutional network starts training in PyTorch and finishes in Flax, with its optimizer's state.

Run it with `python examples/resume_from_torch.py` after `pip install "linkax[examples]" torch`: half a minute on two
CPU cores. The network learns scikit-learn's handwritten digits with AdamW. After half of the epochs, weights and
moments are moved through a PyTorch file to Flax, each kernel in Flax's layout; then both continue on the same batches.

It prints how far apart the two continuations are, and draws their losses, on top of each other.
"""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _looks import log_scale, look, save
from _options import Options
from _training import digits
from flax import linen as nn
from matplotlib.figure import Figure  # without pyplot, it draws to a file (Agg) and needs no display
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from linkax import apply_updates
from linkax.chains.torch_interop import from_torch, import_params, import_state

try:
    import torch
except ImportError:
    raise SystemExit("This example moves a run out of PyTorch, which is not installed: pip install torch") from None

BATCH = 50


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of images (batch, 8, 8, 1)."""
        for layer, channels in enumerate((16, 32), start=1):
            x = nn.relu(nn.Conv(channels, (3, 3), name=f"conv{layer}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10, name="fc")(x.mean(axis=(1, 2)))


class TorchNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(16, 32, 3, padding=1)
        self.fc = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of images (batch, 1, 8, 8)."""
        for conv in (self.conv1, self.conv2):
            x = torch.nn.functional.max_pool2d(torch.relu(conv(x)), 2)
        return self.fc(x.mean(dim=(2, 3)))


def main() -> None:
    options = Options("Moves a half-trained PyTorch run to Flax, and continues in both.", "resume_from_torch.png")
    options.add_count("epochs", "passes over the training set, half of them before the move", 20, quick=2, least=2)
    args = options.parse()
    half = args.epochs // 2
    images, labels = (np.asarray(part) for part in digits()[:2])
    images, labels = images.reshape(-1, 8, 8).astype(np.float32), labels.astype(np.int64)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(images)).reshape(-1, BATCH) for _ in range(args.epochs)]

    torch.manual_seed(0)
    model = TorchNet()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=3e-3, weight_decay=0.1)

    def torch_epoch(order: np.ndarray) -> float:
        losses = []
        for batch in order:
            optimizer.zero_grad()
            logits = model(torch.from_numpy(images[batch])[:, None])
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[batch]))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    theirs = [torch_epoch(order) for order in tqdm(orders[:half], desc="PyTorch", unit="epoch")]
    file = io.BytesIO()  # a file on disk would do as well
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    theirs += [torch_epoch(order) for order in tqdm(orders[half:], desc="PyTorch continues", unit="epoch")]

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    tx = from_torch(("AdamW", saved["optimizer"]["param_groups"]))
    print(f"\nPyTorch's AdamW is\n{tx}\n")
    net = Net()
    params = import_params(net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))), saved["model"])
    state = import_state(tx, params, saved["optimizer"])

    @jax.jit
    def step(params: dict, state: optax.OptState, x: jax.Array, y: jax.Array) -> tuple[dict, optax.OptState, jax.Array]:
        def loss(params: dict) -> jax.Array:
            logits = jnp.asarray(net.apply(params, x[..., None]))
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return apply_updates(params, updates), state, value

    ours = []
    for order in tqdm(orders[half:], desc="Flax continues", unit="epoch"):
        losses = []
        for batch in order:
            params, state, value = step(params, state, images[batch], labels[batch])
            losses.append(float(value))
        ours.append(float(np.mean(losses)))

    print(f"\n{'epoch':>5}  {'PyTorch':>9}  {'Flax':>9}")
    for epoch, (a, b) in enumerate(zip(theirs[half:], ours), start=half + 1):
        print(f"{epoch:5}  {a:9.6f}  {b:9.6f}")
    apart = max(abs(a - b) / a for a, b in zip(theirs[half:], ours))
    answer = f"The two continuations differ by {apart:.1e} of the loss at most: rounding in float32"
    print(answer)
    title = f"Does a PyTorch run continue in Flax as it would have in PyTorch?\n{answer}"

    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    epochs = np.arange(1, args.epochs + 1)
    axes.plot(epochs, theirs, "-", color=look("Adam")["color"], linewidth=5, alpha=0.5, label="PyTorch")
    axes.plot(epochs[half:], ours, "o-", color=look("AdamW")["color"], linewidth=1.5, label="Flax, from PyTorch's file")
    axes.axvline(half + 0.5, color="black", linestyle=":", label="moved")
    log_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="training loss (cross-entropy in nats)", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save(figure, args)


if __name__ == "__main__":
    main()
