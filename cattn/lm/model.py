"""The next-word model: forward, and every gradient by hand.

Shapes: B windows of L tokens, T = B·L tokens in all, width d, H heads of size d/H, hidden width m,
vocabulary V. Activations are kept as (T, d), because all but attention works token by token.

The forward, which the backward cites by number (dropout factors are 1 outside training)::

    (1)  x  = (embedding[tokens] + position[:L]) * drop              (T, d)
         for each block:
    (2)    a  = rms_norm(x, norm1)                                   (T, d)
    (3)    q, k, v = a @ qkv                                         (T, 3d) -> 3 × (B, L, H, d/H)
    (4)    o  = attention(q, k, v, causal)                           (B, L, H, d/H) -> (T, d)
    (5)    x  = x + (o @ proj) * drop                                (T, d)
    (6)    n  = rms_norm(x, norm2)                                   (T, d)
    (7)    u  = relu(n @ up)                                         (T, m)
    (8)    x  = x + (u @ down) * drop                                (T, d)
    (9)  y  = rms_norm(x, norm)                                      (T, d)
    (10) loss = mean over tokens of -log softmax(y @ output.T + bias)[target]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np

from cattn import attention, attention_backward
from cattn._types import Array
from cattn.lm.cache import KeyValueCache
from cattn.lm.errors import InputError
from cattn.lm.layers import (
    dropout_mask,
    linear_cross_entropy,
    rms_norm,
    rms_norm_backward,
    sum_rows_by_id,
    token_losses,
)

Params = dict[str, Array]


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a `NextWordModel`.

    Parameters
    ----------
    vocab_size : int
        Words, the unknown one included.
    context : int
        Tokens that the model sees at most.
    width, heads, blocks : int
        Width of the residual stream, attention heads (they divide the width), blocks.
    hidden : int, optional
        Width inside the MLP; default four times `width`.
    tied : bool
        The output layer uses the embedding table (Press and Wolf, 2017).
    dropout : float
        Rate on the embeddings and on what each branch adds to the residual stream.
    dtype : {"float32", "float64"}

    Raises
    ------
    InputError
        A size that is not positive, heads that do not divide the width, a rate outside [0, 1).

    Examples
    --------
    >>> from cattn.lm import ModelConfig
    >>> ModelConfig(vocab_size=100, width=64).hidden
    256
    >>> ModelConfig(vocab_size=100, width=64, heads=5)
    Traceback (most recent call last):
        ...
    cattn.lm.errors.InputError: heads: is 5, expected a divisor of the width 64
    """

    vocab_size: int
    context: int = 32
    width: int = 96
    heads: int = 4
    blocks: int = 1
    hidden: int = 0
    tied: bool = True
    dropout: float = 0.05
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.hidden:
            object.__setattr__(self, "hidden", 4 * self.width)
        for name in ("vocab_size", "context", "width", "heads", "blocks", "hidden"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: is {getattr(self, name)}, expected at least 1")
        if self.width % self.heads:
            raise InputError(
                f"heads: is {self.heads}, expected a divisor of the width {self.width}"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: is {self.dropout}, expected at least 0 and less than 1")
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype: is {self.dtype}, expected float32 or float64")


@dataclass
class _BlockTrace:
    """What the backward of one block needs of its forward; the names are the forward's."""

    x_in: Array
    a: Array
    r1: Array
    q: Array
    k: Array
    v: Array
    o: Array
    lse: Array
    drop1: Array | None
    x_mid: Array
    n: Array
    r2: Array
    u: Array
    drop2: Array | None


class NextWordModel:
    """A decoder-only transformer over words.

    Parameters
    ----------
    config : ModelConfig
    seed : int
        Of the initial parameters.

    Attributes
    ----------
    params : dict of str to ndarray
        All parameters by name; see `NextWordModel.shapes`.
    num_threads : int or None
        Of each call of attention; None is `cattn.get_num_threads`.

    References
    ----------
    Vaswani et al., "Attention Is All You Need" (2017); the norm before each branch as in Xiong et
    al., "On Layer Normalization in the Transformer Architecture" (2020).

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm import ModelConfig, NextWordModel
    >>> model = NextWordModel(ModelConfig(vocab_size=10, context=8, width=16))
    >>> windows = np.arange(9).reshape(1, 9)
    >>> loss, grads = model.loss_and_grads(windows)
    >>> bool(abs(loss - np.log(10)) < 0.5), grads["block0.qkv"].shape
    (True, (16, 48))
    >>> model.logits(windows[:, :8]).shape
    (1, 8, 10)
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self.config = config
        self.num_threads: int | None = None
        self.params = self._initial(np.random.default_rng(seed))

    @staticmethod
    def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by name."""
        V, L, d, m = config.vocab_size, config.context, config.width, config.hidden
        shapes: dict[str, tuple[int, ...]] = {"embedding": (V, d), "position": (L, d)}
        for i in range(config.blocks):
            shapes |= {
                f"block{i}.norm1": (d,),
                f"block{i}.qkv": (d, 3 * d),
                f"block{i}.proj": (d, d),
                f"block{i}.norm2": (d,),
                f"block{i}.up": (d, m),
                f"block{i}.down": (m, d),
            }
        shapes |= {"norm": (d,), "bias": (V,)}
        return shapes if config.tied else shapes | {"output": (V, d)}

    def _initial(self, rng: np.random.Generator) -> Params:
        """Norm gains 1, bias 0, tables and matrices normal: see `_initial_std`."""
        params = {}
        for name, shape in self.shapes(self.config).items():
            if len(shape) == 2:
                value = rng.standard_normal(shape) * self._initial_std(name, shape)
            else:
                value = np.zeros(shape) if name == "bias" else np.ones(shape)
            params[name] = value.astype(self.config.dtype)
        return params

    def _initial_std(self, name: str, shape: tuple[int, ...]) -> float:
        """Matrices keep the variance of their input, but for the two that close a branch.

        Those are smaller, so that the residual stream starts as little more than the embedding
        and the branches grow into it. A row of the output layer has a length of about 1/2, which
        keeps the first logits small; the embedding's too, because the two may be one table.
        """
        if name in ("embedding", "position", "output"):
            return 0.5 / math.sqrt(shape[1])
        if name.endswith(("proj", "down")):
            return 0.3 / math.sqrt(2 * self.config.blocks * shape[0])
        return 1 / math.sqrt(shape[0])

    def set_bias(self, counts: Array) -> None:
        """Start the output bias at the log frequencies of the words.

        The first loss is then about the unigram's, and training spends no steps on getting there.

        Parameters
        ----------
        counts : ndarray, shape (V,)
            How often each word occurs in the training text.
        """
        smoothed = np.asarray(counts, np.float64) + 1
        self.params["bias"][:] = np.log(smoothed / smoothed.sum())

    @property
    def output(self) -> Array:
        """The output layer's table, shape (V, d)."""
        return self.params["embedding" if self.config.tied else "output"]

    @classmethod
    def count(cls, config: ModelConfig) -> int:
        """Return the number of parameters."""
        return sum(math.prod(shape) for shape in cls.shapes(config).values())

    # Forward

    def _forward(
        self,
        tokens: Array,
        rng: np.random.Generator | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Array, Array | None, list[_BlockTrace]]:
        """Lines (1) to (8): tokens (B, L) to x (T, d); without `rng` there is no dropout."""
        first = 0 if cache is None else cache.length
        end = first + tokens.shape[1]
        if end > self.config.context:
            raise InputError(f"{end} tokens are more than the context of {self.config.context}")
        x = self.params["embedding"][tokens]  # (1)
        x += self.params["position"][first:end]
        x = x.reshape(-1, self.config.width)
        drop = self._drop(x, rng)
        traces = []
        for i in range(self.config.blocks):
            x, trace = self._block(i, x, tokens.shape, rng, cache)
            traces.append(trace)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return x, drop, traces

    def _drop(self, x: Array, rng: np.random.Generator | None) -> Array | None:
        """Multiply x by dropout factors in place and return them."""
        if rng is None or self.config.dropout == 0:
            return None
        factors = dropout_mask(x.shape, self.config.dropout, x.dtype, rng)
        x *= factors
        return factors

    def _block(
        self,
        i: int,
        x: Array,
        batch: tuple[int, ...],
        rng: np.random.Generator | None,
        cache: KeyValueCache | None,
    ) -> tuple[Array, _BlockTrace]:
        """Lines (2) to (8): x (T, d) to x (T, d)."""
        p = self._of_block(i)
        a, r1 = rms_norm(x, p["norm1"])  # (2)
        q, k, v = self._heads(a @ p["qkv"], batch)  # (3)
        if cache is not None:
            k, v = cache.extend(i, k, v)
        # The last query sees the last key, so this holds for a cache with earlier keys as well.
        o, lse, _ = attention(  # (4)
            q, k, v, causal=True, layout="blhd", return_lse=True, num_threads=self.num_threads
        )
        added = o.reshape(x.shape) @ p["proj"]  # (5)
        drop1 = self._drop(added, rng)
        x_mid = np.add(x, added, out=added)
        n, r2 = rms_norm(x_mid, p["norm2"])  # (6)
        u = n @ p["up"]  # (7)
        np.maximum(u, 0, out=u)
        added = u @ p["down"]  # (8)
        drop2 = self._drop(added, rng)
        x_out = np.add(x_mid, added, out=added)
        return x_out, _BlockTrace(x, a, r1, q, k, v, o, lse, drop1, x_mid, n, r2, u, drop2)

    def _of_block(self, i: int) -> Params:
        prefix = f"block{i}."
        return {
            name[len(prefix) :]: p for name, p in self.params.items() if name.startswith(prefix)
        }

    def _heads(self, qkv: Array, batch: tuple[int, ...]) -> tuple[Array, Array, Array]:
        """(T, 3d) to three views (B, L, H, d/H): no copy, the kernels take strides."""
        split = qkv.reshape(*batch, 3, self.config.heads, -1)
        return split[..., 0, :, :], split[..., 1, :, :], split[..., 2, :, :]

    # Gradients

    def loss_and_grads(
        self, windows: Array, rng: np.random.Generator | None = None, share: float = 1.0
    ) -> tuple[float, Params]:
        """Return the mean loss of predicting each next token, and every parameter's gradient.

        Parameters
        ----------
        windows : ndarray of int, shape (B, L + 1)
            Tokens; the first L predict the last L.
        rng : numpy.random.Generator, optional
            Draws the dropout; None means no dropout.
        share : float
            The windows' share of a batch: multiplies the loss and the gradients, so that those of
            all shares sum to the batch's.

        Returns
        -------
        (loss, grads) : float in nats, and a dict like `params`

        Raises
        ------
        InputError
            Windows longer than the context.
        """
        tokens, targets = windows[:, :-1], windows[:, 1:].reshape(-1)
        params = self.params
        grads = {name: np.zeros_like(p) for name, p in params.items()}
        x, drop, traces = self._forward(tokens, rng)
        y, r = rms_norm(x, params["norm"])  # (9)

        doutput = grads["embedding" if self.config.tied else "output"]
        loss, dy = linear_cross_entropy(  # through (10)
            y, self.output, params["bias"], targets, doutput, grads["bias"], share
        )
        dx, grads["norm"] = rms_norm_backward(dy, x, r, params["norm"])  # through (9)
        for i in reversed(range(self.config.blocks)):
            dx = self._block_backward(i, dx, traces[i], grads)
        _times(dx, drop)  # through (1)
        by_window = dx.reshape(*tokens.shape, -1)
        grads["position"][: tokens.shape[1]] = by_window.sum(axis=0)
        sum_rows_by_id(dx, tokens.reshape(-1), grads["embedding"])
        return loss, grads

    def _block_backward(self, i: int, dx: Array, t: _BlockTrace, grads: Params) -> Array:
        """Through (8) to (2): the gradient of a block's output (T, d) to that of its input."""
        p = self._of_block(i)
        g = {}
        dadded = _times(dx.copy(), t.drop2)  # through (8)
        g["down"] = t.u.T @ dadded
        du = dadded @ p["down"].T
        du *= t.u > 0  # through (7)
        g["up"] = t.n.T @ du
        dn = du @ p["up"].T
        dx_mid, g["norm2"] = rms_norm_backward(dn, t.x_mid, t.r2, p["norm2"])  # through (6)
        dx_mid += dx  # the residual path of (8)

        dadded = _times(dx_mid.copy(), t.drop1)  # through (5)
        g["proj"] = t.o.reshape(dx.shape).T @ dadded
        do = (dadded @ p["proj"].T).reshape(t.o.shape)
        dq_dk_dv = attention_backward(  # through (4)
            do, t.q, t.k, t.v, t.o, t.lse,
            causal=True, layout="blhd", num_threads=self.num_threads,
        )[:3]  # fmt: skip
        dqkv = np.stack(cast("list[Array]", dq_dk_dv), axis=-3).reshape(len(dx), -1)  # through (3)
        g["qkv"] = t.a.T @ dqkv
        da = dqkv @ p["qkv"].T
        dx_in, g["norm1"] = rms_norm_backward(da, t.x_in, t.r1, p["norm1"])  # through (2)
        dx_in += dx_mid  # the residual path of (5)
        grads.update({f"block{i}.{name}": value for name, value in g.items()})
        return dx_in

    # Use

    def losses(self, windows: Array) -> Array:
        """Return the loss of each next token, without dropout.

        Parameters
        ----------
        windows : ndarray of int, shape (B, L + 1)

        Returns
        -------
        ndarray, shape (B, L)
            In nats.
        """
        tokens, targets = windows[:, :-1], windows[:, 1:]
        x, _, _ = self._forward(tokens)
        y, _ = rms_norm(x, self.params["norm"])
        flat = token_losses(y, self.output, self.params["bias"], targets.reshape(-1))
        return flat.reshape(targets.shape)

    def logits(self, tokens: Array) -> Array:
        """Return the logits of the word after each token: (B, L) to (B, L, V)."""
        x, _, _ = self._forward(tokens)
        y, _ = rms_norm(x, self.params["norm"])
        logits: Array = y @ self.output.T + self.params["bias"]
        return logits.reshape(*tokens.shape, -1)

    def new_cache(self) -> KeyValueCache:
        """Return an empty cache for `next_logits`."""
        c = self.config
        return KeyValueCache(c.blocks, c.context, c.heads, c.width // c.heads, c.dtype)

    def next_logits(self, tokens: Array, cache: KeyValueCache) -> Array:
        """Return the logits of the word after the last of further tokens of one text.

        Parameters
        ----------
        tokens : ndarray of int, shape (n,)
            What follows the tokens that the cache has seen.
        cache : KeyValueCache
            From `new_cache`; the tokens are added to it.

        Returns
        -------
        ndarray, shape (V,)

        Raises
        ------
        InputError
            More tokens than the context, the cached ones included.
        """
        x, _, _ = self._forward(tokens[None], cache=cache)
        y, _ = rms_norm(x[-1:], self.params["norm"])
        logits: Array = y[0] @ self.output.T + self.params["bias"]
        return logits

    def attention_weights(self, tokens: Array) -> Array:
        """Return who attends to whom.

        Parameters
        ----------
        tokens : ndarray of int, shape (L,)

        Returns
        -------
        ndarray, shape (blocks, heads, L, L)
            Row i: how much the token i reads of each token up to itself; rows sum to 1.
        """
        _, _, traces = self._forward(tokens[None])
        return np.stack(
            [
                attention(t.q, t.k, t.v, causal=True, layout="blhd", return_weights=True).weights[0]
                for t in traces
            ]
        )


def _times(x: Array, factors: Array | None) -> Array:
    """Multiply in place by dropout factors, if there are any."""
    if factors is not None:
        x *= factors
    return x
