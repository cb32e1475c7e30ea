"""The optimisers against their formulas, written out anew for one number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cattn.lm import SGD, Adam, InputError, clip_by_global_norm, learning_rate, make_optimizer

GRADIENTS = [0.5, -2.0, 1.0, 0.25, -0.125]


def run(optimizer_type, shape, **settings):
    """Five steps from 3.0 with the gradients above; returns the values of the first element."""
    params = {"p": np.full(shape, 3.0)}
    optimizer = optimizer_type(params, **settings)
    values = []
    for step, gradient in enumerate(GRADIENTS):
        optimizer.update({"p": np.full(shape, gradient)}, lr=0.1, step=step)
        assert np.ptp(params["p"]) == 0
        values.append(params["p"].flat[0])
    return values


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_sgd(momentum, decay):
    p, v, expected = 3.0, 0.0, []
    for g in GRADIENTS:
        v = momentum * v + (g + decay * p)
        p = p - 0.1 * v
        expected.append(p)
    values = run(SGD, (2, 2), momentum=momentum, weight_decay=decay)
    np.testing.assert_allclose(values, expected, rtol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_adam(decay):
    p, m, s, expected = 3.0, 0.0, 0.0, []
    for t, g in enumerate(GRADIENTS, start=1):
        m = 0.8 * m + 0.2 * g
        s = 0.95 * s + 0.05 * g**2
        m_hat, s_hat = m / (1 - 0.8**t), s / (1 - 0.95**t)
        p = p - 0.1 * (m_hat / (math.sqrt(s_hat) + 1e-8) + decay * p)
        expected.append(p)
    values = run(Adam, (2, 2), beta1=0.8, beta2=0.95, weight_decay=decay)
    np.testing.assert_allclose(values, expected, rtol=1e-12)


@pytest.mark.parametrize("optimizer_type", [SGD, Adam])
def test_vectors_do_not_decay(optimizer_type):
    assert run(optimizer_type, (3,), weight_decay=0.5) == run(optimizer_type, (3,))
    assert run(optimizer_type, (3, 1), weight_decay=0.5) != run(optimizer_type, (3, 1))


def test_schedule():
    rates = [learning_rate(step, 20, 0.5, 5) for step in range(20)]
    np.testing.assert_allclose(rates[:5], [0.1, 0.2, 0.3, 0.4, 0.5])
    expected = [0.25 * (1 + math.cos(math.pi * i / 15)) for i in range(15)]
    np.testing.assert_allclose(rates[5:], expected)
    assert learning_rate(20, 20, 0.5, 5) == pytest.approx(0, abs=1e-16)
    assert learning_rate(0, 10, 0.5, 0) == 0.5


def test_clipping():
    grads = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    assert clip_by_global_norm(grads, 10.0) == 5.0
    assert grads["a"][0] == 3.0
    assert clip_by_global_norm(grads, 2.5) == 5.0
    assert grads["a"][0] == 1.5
    assert grads["b"][0, 0] == 2.0


def test_unknown_optimizer():
    with pytest.raises(InputError, match="optimizer: is lion, expected sgd or adam"):
        make_optimizer("lion", {})
