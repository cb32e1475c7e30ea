"""The model's forward: causality, the cache, the weights that are drawn, and its settings."""

from __future__ import annotations

import numpy as np
import pytest

from cattn.lm import InputError, ModelConfig, NextWordModel


def test_logits_do_not_see_the_future(tiny_model):
    tokens = np.random.default_rng(0).integers(0, 11, (2, 6))
    changed = tokens.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    before, after = tiny_model.logits(tokens), tiny_model.logits(changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


def test_losses_are_those_of_the_logits(tiny_model):
    windows = np.random.default_rng(0).integers(0, 11, (3, 7))
    logits = tiny_model.logits(windows[:, :-1])
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(log_p, windows[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(tiny_model.losses(windows), expected, rtol=1e-10)
    assert tiny_model.loss_and_grads(windows)[0] == pytest.approx(expected.mean(), rel=1e-10)


@pytest.mark.parametrize("pieces", [[1] * 6, [4, 1, 1], [2, 3, 1], [6]])
def test_cached_logits_are_those_of_the_whole(tiny_model, pieces):
    tokens = np.random.default_rng(0).integers(0, 11, 6)
    whole = tiny_model.logits(tokens[None])[0]
    cache = tiny_model.new_cache()
    start = 0
    for piece in pieces:
        logits = tiny_model.next_logits(tokens[start : start + piece], cache)
        start += piece
        assert cache.length == start
        np.testing.assert_allclose(logits, whole[start - 1], rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match="7 tokens are more than the context of 6"):
        tiny_model.next_logits(tokens[:1], cache)
    cache.clear()
    np.testing.assert_allclose(tiny_model.next_logits(tokens[:1], cache), whole[0], rtol=1e-9)


def test_attention_weights_are_causal_distributions(tiny_model):
    weights = tiny_model.attention_weights(np.arange(5))
    assert weights.shape == (2, 2, 5, 5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-12)
    assert (weights[..., np.triu(np.ones((5, 5), bool), 1)] == 0).all()


def test_set_bias_starts_at_the_unigram():
    model = NextWordModel(ModelConfig(vocab_size=3, context=4, width=8, dtype="float64"))
    model.params["embedding"][:] = 0
    model.set_bias(np.array([9, 3, 0]))
    logits = model.logits(np.array([[0]]))[0, 0]
    np.testing.assert_allclose(np.exp(logits), np.array([10, 4, 1]) / 15)


def test_seed_decides_the_parameters():
    config = ModelConfig(vocab_size=5, width=8)
    a, b, c = NextWordModel(config, 1), NextWordModel(config, 1), NextWordModel(config, 2)
    assert all((a.params[name] == b.params[name]).all() for name in a.params)
    assert (a.params["block0.qkv"] != c.params["block0.qkv"]).any()
    assert NextWordModel.count(config) == sum(p.size for p in a.params.values())


def test_tied_and_untied_output():
    tied = NextWordModel(ModelConfig(vocab_size=5, width=8))
    untied = NextWordModel(ModelConfig(vocab_size=5, width=8, tied=False))
    assert tied.output is tied.params["embedding"]
    assert untied.output is untied.params["output"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 10, "heads": 4}, "heads: is 4, expected a divisor of the width 10"),
        ({"context": 0}, "context: is 0, expected at least 1"),
        ({"blocks": -1}, "blocks: is -1, expected at least 1"),
        ({"dropout": 1.0}, "dropout: is 1.0, expected at least 0 and less than 1"),
        ({"dtype": "float16"}, "dtype: is float16, expected float32 or float64"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        ModelConfig(vocab_size=5, **settings)


def test_too_many_tokens(tiny_model):
    with pytest.raises(InputError, match="9 tokens are more than the context of 6"):
        tiny_model.logits(np.zeros((1, 9), int))
