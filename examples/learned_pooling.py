"""The simplest attention of the textbooks, learnt: pooling with a learned query.

For inputs x_1 … x_L of width d, the textbook form is::

    weights = softmax(X · W + b)        one number per input
    pooled  = Σ_j weights_j x_j

That is attention with one query, which is the parameter W itself; the inputs are both the keys and
the values, and the scale is 1. The bias b adds the same number to every score. The softmax does
not notice: e^(s_j + b) / Σ e^(s_i + b) = e^(s_j) / Σ e^(s_i). So b has no effect and its gradient
is zero. A bias that differs between positions does have one, and is learnt here: a preference
for places, `bias` of shape (L,).

The task: of six inputs one is marked in its first number, and the marks of the first and the last
place are false. The payload of the marked input, its other numbers, is the answer. So the pooling
has to learn what to look for (W) and where not to look (b).

Run with ``python examples/learned_pooling.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cattn import AttentionResult, attention, attention_backward

Array = NDArray[Any]

LENGTH, WIDTH = 6, 5
BATCH = 64


def make_batch(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return inputs (BATCH, LENGTH, WIDTH) and the payloads to find, (BATCH, WIDTH - 1)."""
    x = rng.standard_normal((BATCH, LENGTH, WIDTH))
    x[:, :, 0] = 0
    x[:, [0, -1], 0] = 1  # false marks, always
    place = rng.integers(1, LENGTH - 1, BATCH)
    x[np.arange(BATCH), place, 0] = 1
    return x, x[np.arange(BATCH), place, 1:]


def pool(x: Array, w: Array, b: Array) -> AttentionResult:
    """Return out (BATCH, 1, 1, WIDTH), lse (BATCH, 1, 1) and weights (BATCH, 1, 1, LENGTH).

    One call: one head, whose only query w is broadcast over the batch; the inputs are both the
    keys and the values.
    """
    inputs = x[:, None]
    return attention(
        w[None, None], inputs, inputs, bias=b, scale=1.0, return_lse=True, return_weights=True
    )


def loss_and_gradients(x: Array, target: Array, w: Array, b: Array) -> tuple[float, Array, Array]:
    """Return the mean squared error of the pooled payload and its gradients for w and b."""
    pooled, lse, _ = pool(x, w, b)
    error = pooled[:, 0, 0, 1:] - target
    dpooled = np.zeros_like(pooled)
    dpooled[:, 0, 0, 1:] = 2 * error / error.size
    inputs = x[:, None]
    dw, _, _, db, _ = attention_backward(
        dpooled, w[None, None], inputs, inputs, pooled, lse,
        bias=b, scale=1.0, grads=("q", "bias"),
    )  # fmt: skip
    return float((error**2).mean()), dw[0, 0], db


def train(steps: int = 400, lr: float = 2.0, seed: int = 0) -> tuple[list[float], Array, Array]:
    """Return the losses, the query and the bias that gradient descent finds."""
    rng = np.random.default_rng(seed)
    w = 0.1 * rng.standard_normal(WIDTH)
    b = np.zeros(LENGTH)
    losses = []
    for _ in range(steps):
        loss, dw, db = loss_and_gradients(*make_batch(rng), w, b)
        w -= lr * dw
        b -= lr * db
        losses.append(loss)
    return losses, w, b


def main() -> None:
    """Train, and print what was learnt."""
    losses, w, b = train()
    for step in range(0, len(losses), len(losses) // 8):
        print(f"step {step:4}  loss {losses[step]:.4f}")
    print(f"step {len(losses) - 1:4}  loss {losses[-1]:.4f}")
    x, _ = make_batch(np.random.default_rng(1))
    weights = pool(x, w, b).weights
    print("query W:          ", w.round(2))
    print("bias b by place:  ", (b - b[1:-1].mean()).round(2))
    print("marks of one batch entry:", x[0, :, 0].astype(int))
    print("where the pooling looks: ", weights[0, 0, 0].round(2))


if __name__ == "__main__":
    main()
