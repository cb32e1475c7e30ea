"""Every hand-written gradient against finite differences, in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cattn.lm import ModelConfig, NextWordModel
from cattn.lm.layers import (
    dropout_mask,
    linear_cross_entropy,
    rms_norm,
    rms_norm_backward,
    sum_rows_by_id,
    token_losses,
)

STEP = 1e-5


def numerical_gradient(function, array):
    """Central differences of a scalar function with respect to every element of an array."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        before = array[index]
        array[index] = before + STEP
        above = function()
        array[index] = before - STEP
        below = function()
        array[index] = before
        gradient[index] = (above - below) / (2 * STEP)
    return gradient


def assert_close(computed, expected, name=""):
    scale = max(1e-3, np.abs(expected).max())
    error = np.abs(computed - expected).max() / scale
    assert error < 1e-7, f"{name}: relative error {error:.1e}"


PARAMETERS = sorted(NextWordModel.shapes(ModelConfig(2, blocks=2, tied=False)))


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_parameter_gradient(tiny_model, name, tied, dropout):
    """The loss as a function of one parameter, tables that are used twice included."""
    if tied and name == "output":
        assert name not in tiny_model.shapes(tiny_model.config)
        return
    config = dataclasses.replace(tiny_model.config, tied=tied, dropout=dropout)
    model = NextWordModel(config, seed=3)
    for key in model.params.keys() & tiny_model.params.keys():
        model.params[key][...] = tiny_model.params[key]
    rng = np.random.default_rng(1)
    # A word that occurs several times, one that never does, and a window below the context.
    windows = rng.integers(0, 9, (3, 6))
    windows[0, :3] = 4

    def loss():
        return model.loss_and_grads(windows, np.random.default_rng(7))[0]

    _, grads = model.loss_and_grads(windows, np.random.default_rng(7))
    assert grads[name].shape == model.params[name].shape
    assert_close(grads[name], numerical_gradient(loss, model.params[name]), name)


def test_rms_norm_gradient():
    rng = np.random.default_rng(0)
    x, gain, dy = rng.standard_normal((5, 7)), rng.standard_normal(7), rng.standard_normal((5, 7))
    _, r = rms_norm(x, gain)
    dx, dgain = rms_norm_backward(dy, x, r, gain)
    assert_close(dx, numerical_gradient(lambda: (rms_norm(x, gain)[0] * dy).sum(), x))
    assert_close(dgain, numerical_gradient(lambda: (rms_norm(x, gain)[0] * dy).sum(), gain))


@pytest.mark.parametrize("count", [1, 5, 600])  # within one chunk of logits, and over several
def test_cross_entropy_gradient(count):
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((count, 3)), rng.standard_normal((4, 3)), rng.random(4)
    targets = rng.integers(0, 4, count)
    dweight, dbias = np.zeros_like(weight), np.zeros_like(bias)
    loss, dx = linear_cross_entropy(x, weight, bias, targets, dweight, dbias)

    logits = x @ weight.T + bias
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -log_p[np.arange(count), targets]
    assert loss == pytest.approx(expected.mean(), rel=1e-12)
    np.testing.assert_allclose(token_losses(x, weight, bias, targets), expected, rtol=1e-12)

    def value():
        return token_losses(x, weight, bias, targets).mean()

    assert_close(dweight, numerical_gradient(value, weight))
    assert_close(dbias, numerical_gradient(value, bias))
    few = x[:5]  # a view: the others are alike
    assert_close(dx[:5] * count, numerical_gradient(value, few) * count)


def test_cross_entropy_of_large_logits_is_finite():
    x = np.array([[1e4], [-1e4]])
    weight, bias = np.array([[1.0], [0.0]]), np.zeros(2)
    losses = token_losses(x, weight, bias, np.array([0, 0]))
    np.testing.assert_allclose(losses, [0.0, 1e4])


def test_sum_rows_by_id_is_add_at():
    rng = np.random.default_rng(0)
    rows, ids = rng.standard_normal((50, 3)), rng.integers(0, 9, 50)
    table, expected = np.ones((10, 3)), np.ones((10, 3))
    sum_rows_by_id(rows, ids, table)
    np.add.at(expected, ids, rows)
    np.testing.assert_allclose(table, expected, rtol=1e-12)
    sum_rows_by_id(rows[:0], ids[:0], table)
    np.testing.assert_allclose(table, expected, rtol=1e-12)


def test_dropout_keeps_the_mean():
    mask = dropout_mask((400, 100), 0.25, np.dtype("float32"), np.random.default_rng(0))
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.75)}
    assert mask.mean() == pytest.approx(1, abs=0.01)


def test_float32_gradients_are_float32_and_near_those_of_float64(tiny_model):
    config = dataclasses.replace(tiny_model.config, dtype="float32")
    model = NextWordModel(config)
    for name, p in model.params.items():
        p[...] = tiny_model.params[name]
    windows = np.random.default_rng(0).integers(0, 11, (4, 7))
    loss, grads = model.loss_and_grads(windows)
    expected_loss, expected = tiny_model.loss_and_grads(windows)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in grads.items():
        assert gradient.dtype == np.float32, name
        scale = np.abs(expected[name]).max()
        assert np.abs(gradient - expected[name]).max() < 1e-5 * scale, name
