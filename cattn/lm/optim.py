"""Optimisers by hand: SGD with momentum, Adam, the learning-rate schedule, clipping."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from cattn._types import Array
from cattn.lm.errors import InputError

Params = dict[str, Array]


class Optimizer(ABC):
    """Changes parameters in place.

    Parameters
    ----------
    params : dict of str to ndarray
    weight_decay : float
        Shrinks the matrices and tables; vectors (gains, the bias) are left alone.

    Attributes
    ----------
    state : dict of str to ndarray
        What a resumed run needs besides the parameters and the step.
    """

    state: Params

    def __init__(self, params: Params, *, weight_decay: float = 0.0) -> None:
        self.params = params
        self.weight_decay = weight_decay

    @abstractmethod
    def update(self, grads: Params, lr: float, step: int) -> None:
        """Make step number `step`, counted from 0, with learning rate `lr`."""

    def _decay(self, name: str) -> float:
        return self.weight_decay if self.params[name].ndim > 1 else 0.0


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: ``v = μv + g + λp``, ``p = p - lr·v``.

    References
    ----------
    Sutskever et al., "On the importance of initialization and momentum in deep learning" (2013),
    equations 1 and 2, with the learning rate outside the velocity.

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm import SGD
    >>> params = {"p": np.array([1.0])}
    >>> sgd = SGD(params, momentum=0.5)
    >>> for step in range(2):
    ...     sgd.update({"p": np.array([1.0])}, lr=0.1, step=step)
    >>> params["p"].round(3)  # 1 - 0.1·1 - 0.1·1.5
    array([0.75])
    """

    def __init__(self, params: Params, *, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, weight_decay=weight_decay)
        self.momentum = momentum
        self.state = {f"velocity.{name}": np.zeros_like(p) for name, p in params.items()}

    def update(self, grads: Params, lr: float, step: int) -> None:
        """Make one step; see the class."""
        for name, p in self.params.items():
            v = self.state[f"velocity.{name}"]
            v *= self.momentum
            v += grads[name]
            if decay := self._decay(name):
                v += decay * p
            p -= lr * v


class Adam(Optimizer):
    """Adam with decoupled weight decay.

    ``m = β₁m + (1-β₁)g``, ``s = β₂s + (1-β₂)g²``, both divided by ``1 - βᵗ``, then
    ``p = p - lr·(m / (√s + ε) + λp)``.

    References
    ----------
    Kingma and Ba, "Adam" (2015), algorithm 1; Loshchilov and Hutter, "Decoupled Weight Decay
    Regularization" (2019), algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm import Adam
    >>> params = {"p": np.array([1.0])}
    >>> Adam(params).update({"p": np.array([5.0])}, lr=0.1, step=0)
    >>> params["p"].round(3)  # the first step has length lr
    array([0.9])
    """

    def __init__(
        self,
        params: Params,
        *,
        beta1: float = 0.9,
        beta2: float = 0.99,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, weight_decay=weight_decay)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.state = {
            f"{kind}.{name}": np.zeros_like(p)
            for kind in ("mean", "square")
            for name, p in params.items()
        }

    def update(self, grads: Params, lr: float, step: int) -> None:
        """Make one step; see the class."""
        correction1 = 1 - self.beta1 ** (step + 1)
        correction2 = 1 - self.beta2 ** (step + 1)
        for name, p in self.params.items():
            g, m, s = grads[name], self.state[f"mean.{name}"], self.state[f"square.{name}"]
            m += (1 - self.beta1) * (g - m)
            s += (1 - self.beta2) * (g * g - s)
            change = np.sqrt(s / correction2)
            change += self.epsilon
            np.divide(m, change, out=change)
            change /= correction1
            if decay := self._decay(name):
                change += decay * p
            p -= lr * change


def clip_by_global_norm(grads: Params, limit: float) -> float:
    """Scale all gradients, in place, so that their joint length is at most `limit`.

    Returns
    -------
    float
        The length before clipping.

    References
    ----------
    Pascanu et al., "On the difficulty of training recurrent neural networks" (2013), algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm import clip_by_global_norm
    >>> grads = {"a": np.array([3.0]), "b": np.array([4.0])}
    >>> clip_by_global_norm(grads, 1.0), grads["b"].round(3)
    (5.0, array([0.8]))
    """
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
    if norm > limit:
        for g in grads.values():
            g *= limit / norm
    return norm


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Rise in a line to `peak` over `warmup` steps, then fall along half a cosine to 0.

    References
    ----------
    Loshchilov and Hutter, "SGDR" (2017), equation 5, for one period.

    Examples
    --------
    >>> from cattn.lm import learning_rate
    >>> [round(learning_rate(step, 6, 1.0, 2), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    fraction = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))


def make_optimizer(
    name: str, params: Params, *, momentum: float = 0.9, weight_decay: float = 0.0
) -> Optimizer:
    """Return the optimiser called ``"sgd"`` or ``"adam"``.

    Raises
    ------
    InputError
        Any other name.

    Examples
    --------
    >>> from cattn.lm import make_optimizer
    >>> type(make_optimizer("sgd", {})).__name__
    'SGD'
    """
    if name == "sgd":
        return SGD(params, momentum=momentum, weight_decay=weight_decay)
    if name == "adam":
        return Adam(params, weight_decay=weight_decay)
    raise InputError(f"optimizer: is {name}, expected sgd or adam")
