"""Which words may be drawn, and what a continuation is."""

from __future__ import annotations

import numpy as np
import pytest

from cattn.lm import (
    InputError,
    ModelConfig,
    NextWordModel,
    WordTokenizer,
    generate,
    next_word_probabilities,
)

P = np.array([0.1, 0.4, 0.2, 0.3])
LOGITS = np.log(P)


@pytest.fixture
def tokenizer():
    return WordTokenizer.from_text("a b c d e f g h", min_count=1)


@pytest.fixture
def model(tokenizer):
    return NextWordModel(ModelConfig(len(tokenizer), context=6, width=8, heads=2, blocks=2), seed=1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, P),
        ({"temperature": 0.5}, P**2 / (P**2).sum()),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 9}, P),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 0.41}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 1.0}, P),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1e-3}, [0, 1, 0, 0]),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 800.0])
def test_probabilities(options, expected, shift):
    p = next_word_probabilities(LOGITS + shift, **options)
    np.testing.assert_allclose(p, expected, atol=1e-12)


def test_a_forbidden_word_has_no_probability():
    p = next_word_probabilities(np.array([-np.inf, 0.0, 0.0]))
    np.testing.assert_array_equal(p, [0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature: is -1, expected 0 or a positive number"),
        ({"temperature": float("nan")}, "temperature: is nan"),
        ({"top_k": 0}, "top_k: is 0, expected at least 1"),
        ({"top_p": 0.0}, "top_p: is 0.0, expected more than 0 and at most 1"),
        ({"top_p": 1.5}, "top_p: is 1.5, expected more than 0 and at most 1"),
        ({"words": -1}, "words: is -1, expected at least 0"),
    ],
)
def test_bad_options(model, tokenizer, options, message):
    with pytest.raises(InputError, match=message):
        generate(model, tokenizer, "a", **options)


def test_greedy_follows_the_logits_without_a_cache(model, tokenizer):
    ids = list(tokenizer.encode("a b"))
    for _ in range(4):
        logits = model.logits(np.array([ids]))[0, -1]
        ids.append(int(np.argmax(logits[1:])) + 1)
    text = generate(model, tokenizer, "a b", words=4, temperature=0)
    assert text == tokenizer.decode(ids)


def test_longer_than_the_context(model, tokenizer):
    prompt = "a b c d e f g h a b"
    text = generate(model, tokenizer, prompt, words=20)
    assert text.startswith(prompt)
    assert len(text.split()) == 30
    # The first word after a long prompt comes from its last `context` words.
    logits = model.logits(tokenizer.encode(prompt)[None, -6:])[0, -1]
    first = generate(model, tokenizer, prompt, words=1, temperature=0).split()[-1]
    assert first == tokenizer.words[int(np.argmax(logits[1:])) + 1]


def test_seed(model, tokenizer):
    texts = [generate(model, tokenizer, "a", words=12, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_empty_prompt_and_no_words(model, tokenizer):
    assert generate(model, tokenizer, "a b", words=0) == "a b"
    assert generate(model, tokenizer, "", words=0) == ""
    assert len(generate(model, tokenizer, "", words=5).split()) == 5


def test_the_unknown_word_is_never_drawn(model, tokenizer):
    model.params["bias"][0] = 100
    assert "<unk>" not in generate(model, tokenizer, "a", words=30)
    assert generate(model, tokenizer, "zzz", words=1, temperature=0).startswith("<unk> ")
