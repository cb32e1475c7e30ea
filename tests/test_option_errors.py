"""Options that are wrong, or that do not go together, raise and are named."""

import inspect
from typing import get_type_hints

import numpy as np
import pytest
from support import normal

import cattn
from cattn._options import Options

ONES = np.ones((2, 3, 4), np.float32)  # heads, rows, size: q, k and v alike
ROWS = np.ones((5, 2, 4), np.float32)  # packed rows, heads, size


def starts(*numbers):
    return np.array(numbers)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"window": 5}, TypeError, r"window: is 5"),
    ({"window": (1,)}, ValueError, r"window: is \(1,\)"),
    ({"window": (1, 2, 3)}, ValueError, r"window: is \(1, 2, 3\)"),
    ({"window": (-2, 0)}, ValueError, r"window: contains -2"),
    ({"window": (0, -5)}, ValueError, r"window: contains -5"),
    ({"window": (1.5, 0)}, TypeError, r"window: is 1.5"),
    ({"window": (True, 0)}, TypeError, r"window: is True"),
    ({"scale": 1e39}, ValueError, r"scale: is 9\d+\.0+, .* within"),
    ({"seed": np.array([1, 2])}, TypeError, r"seed: is array"),
    ({"num_threads": np.array([1, 2])}, TypeError, r"num_threads: is array"),
    ({"window": (np.array([1, 2]), 0)}, TypeError, r"window: is array"),
    ({"softcap": 0}, ValueError, r"softcap: is 0"),
    ({"softcap": -1.0}, ValueError, r"softcap: is -1"),
    ({"softcap": np.nan}, ValueError, r"softcap: is -?nan"),
    ({"softcap": np.inf}, ValueError, r"softcap: is inf"),
    ({"softcap": "1"}, TypeError, r"softcap: is '1'"),
    ({"softcap": True}, TypeError, r"softcap: is True"),
    ({"alibi_slopes": np.ones(3, np.float32)}, ValueError, r"alibi_slopes: shape \(3,\).*2"),
    ({"alibi_slopes": np.ones((2, 2), np.float32)}, ValueError, r"alibi_slopes: shape \(2, 2\)"),
    ({"alibi_slopes": np.array([1, 2])}, TypeError, r"alibi_slopes: dtype int64"),
    ({"alibi_slopes": np.ones(2)}, TypeError, r"alibi_slopes: dtype float64"),
    ({"alibi_slopes": np.array([0, np.nan], np.float32)}, ValueError, r"alibi_slopes: .*nan"),
    ({"alibi_slopes": np.array([np.inf, 0], np.float32)}, ValueError, r"alibi_slopes: .*inf"),
    ({"sinks": np.ones(1, np.float32)}, ValueError, r"sinks: shape \(1,\).*2"),
    ({"sinks": np.ones((1, 2), np.float32)}, ValueError, r"sinks: shape \(1, 2\)"),
    ({"sinks": np.ones(2)}, TypeError, r"sinks: dtype float64"),
    ({"kv_lengths": -1}, ValueError, r"kv_lengths: contains -1.*0 to 3"),
    ({"kv_lengths": 4}, ValueError, r"kv_lengths: contains 4.*0 to 3"),
    ({"kv_lengths": [1, 2]}, ValueError, r"kv_lengths: shape \(2,\)"),
    ({"kv_lengths": 1.0}, TypeError, r"kv_lengths: dtype float64"),
    ({"causal_offset": 1}, ValueError, r"causal_offset: has a meaning only with"),
    ({"dropout": -0.1, "seed": 1}, ValueError, r"dropout: is -0.1"),
    ({"dropout": 1.0, "seed": 1}, ValueError, r"dropout: is 1"),
    ({"dropout": np.nan, "seed": 1}, ValueError, r"dropout: is -?nan"),
    ({"dropout": None}, TypeError, r"dropout: is None"),
    ({"dropout": 0.1}, ValueError, r"seed: is None"),
    ({"dropout": 0.1, "seed": -1}, ValueError, r"seed: is -1"),
    ({"dropout": 0.1, "seed": 2**64}, ValueError, r"seed: is 18446744073709551616"),
    ({"dropout": 0.1, "seed": 1.5}, TypeError, r"seed: is 1.5"),
    ({"dropout": 0.1, "seed": True}, TypeError, r"seed: is True"),
    ({"precision": "low"}, ValueError, r"precision: is 'low', expected 'highest', 'high' or 'med"),
    ({"precision": None}, ValueError, r"precision: is None"),
    ({"precision": 1}, ValueError, r"precision: is 1"),
    ({"mask": np.ones((3, 3), np.float32)}, TypeError, r"mask: dtype float32.*bool"),
    ({"bias": np.ones((3, 3), bool)}, TypeError, r"bias: dtype bool"),
])  # fmt: skip
def test_wrong_options(options, error, message):
    with pytest.raises(error, match="^" + message):
        cattn.attention(ONES, ONES, ONES, **options)
    lse = np.ones((2, 3), np.float32)
    with pytest.raises(error, match="^" + message):
        cattn.attention_backward(ONES, ONES, ONES, ONES, ONES, lse, **options)
    with pytest.raises(error, match="^" + message):
        cattn.attention_jvp(*[ONES] * 6, **options)


@pytest.mark.parametrize(("q", "k", "error", "message"), [
    (starts(1, 5), starts(0, 5), ValueError, r"cu_seqlens_q: element 0 is 1, expected 0"),
    (starts(0, 3, 2, 5), starts(0, 1, 2, 5), ValueError, r"cu_seqlens_q: element 2 is 2"),
    (starts(0, 4), starts(0, 5), ValueError, r"cu_seqlens_q: element 1 is 4, expected 5"),
    (starts(0, 5), starts(0, 6), ValueError, r"cu_seqlens_k: element 1 is 6, expected 5"),
    (starts(0, 2, 5), starts(0, 5), ValueError, r"cu_seqlens_k: shape \(2,\), expected.*\(3,\)"),
    (starts(), starts(0, 5), (ValueError, TypeError), r"cu_seqlens_q: "),
    (np.array([[0, 5]]), starts(0, 5), ValueError, r"cu_seqlens_q: shape \(1, 2\)"),
    (np.array([0.0, 5.0]), starts(0, 5), TypeError, r"cu_seqlens_q: dtype float64"),
    (None, starts(0, 5), TypeError, r"cu_seqlens_q: is None"),
    (starts(0, 5), None, TypeError, r"cu_seqlens_k: is None"),
])  # fmt: skip
def test_wrong_starts(q, k, error, message):
    with pytest.raises(error, match="^" + message):
        cattn.attention_varlen(ROWS, ROWS, ROWS, q, k)
    lse = np.ones((2, 5), np.float32)
    with pytest.raises(error, match="^" + message):
        cattn.attention_varlen_backward(ROWS, ROWS, ROWS, ROWS, ROWS, lse, q, k)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"kv_lengths": [5]}, ValueError, "kv_lengths: cannot go together"),
    ({"layout": "bhld"}, TypeError, "unknown option 'layout'"),
    ({"causal": True, "causal_offset": [1, 2]}, ValueError, r"causal_offset: shape \(2,\)"),
])  # fmt: skip
def test_options_that_packed_sequences_do_not_have(options, error, message):
    with pytest.raises(error, match=message):
        cattn.attention_varlen(ROWS, ROWS, ROWS, [0, 5], [0, 5], **options)


def test_packed_arrays_have_three_axes():
    with pytest.raises(ValueError, match=r"^q: shape \(5, 4\), expected three axes"):
        cattn.attention_varlen(ROWS[:, 0], ROWS, ROWS, [0, 5], [0, 5])


def test_unknown_options():
    with pytest.raises(TypeError, match="unknown option 'causel'"):
        cattn.attention(*[ONES] * 3, causel=True)
    with pytest.raises(TypeError, match="unknown option 'causel'"):
        cattn.attention_backward(*[ONES] * 5, np.ones((2, 3), np.float32), causel=True)
    with pytest.raises(TypeError, match="unknown option 'causel'"):
        cattn.attention_jvp(*[ONES] * 6, causel=True)


@pytest.mark.parametrize("word", ["bias", "sinks"])
def test_gradients_of_what_is_not_given(word):
    with pytest.raises(ValueError, match=f"grads: contains '{word}', but there"):
        cattn.attention_backward(*[ONES] * 5, np.ones((2, 3), np.float32), grads=[word])


@pytest.mark.parametrize("which", ["dq", "dk", "dv"])
def test_tangents_are_like_their_inputs(which):
    tangents, of = {"dq": ONES, "dk": ONES, "dv": ONES}, f"{which}, the tangent of {which[1]}"
    with pytest.raises(ValueError, match=rf"^{of}: shape \(2, 2, 4\), expected .*\(2, 3, 4\)"):
        cattn.attention_jvp(ONES, ONES, ONES, **{**tangents, which: ONES[:, :2]})
    with pytest.raises(TypeError, match=f"^{of}: dtype float64"):
        cattn.attention_jvp(ONES, ONES, ONES, **{**tangents, which: ONES.astype(float)})
    with pytest.raises(TypeError, match=f"^{which}: is None"):
        cattn.attention_jvp(ONES, ONES, ONES, **{**tangents, which: None})


@pytest.mark.parametrize(("arguments", "error", "message"), [
    (((3,), 0.1, 1), ValueError, "shape: has 1 axes"),
    (((2, -3), 0.1, 1), ValueError, r"shape: is \(2, -3\), expected"),
    (((2, 2**63), 0.1, 1), ValueError, "shape: is .2, 9223372036854775808., expected"),
    (((2, 3.0), 0.1, 1), TypeError, "shape: is 3.0, expected an integer"),
    (((2, True), 0.1, 1), TypeError, "shape: is True, expected an integer"),
    (((2, 3), 1.0, 1), ValueError, "dropout: is 1"),
    (((2, 3), 0.1, None), ValueError, "seed: is None"),
    (((2, 3), 0.1, 2**64), ValueError, "seed: is"),
])  # fmt: skip
def test_wrong_dropout_masks(arguments, error, message):
    with pytest.raises(error, match=message):
        cattn.dropout_mask(*arguments)


@pytest.mark.parametrize("name", ["", "_backward", "_varlen", "_varlen_backward", "_jvp"])
def test_signatures_show_every_option_and_its_default(name):
    function, packed = getattr(cattn, f"attention{name}"), "varlen" in name
    shown = inspect.signature(function).parameters
    defaults = {n: p.default for n, p in shown.items() if p.kind is p.KEYWORD_ONLY}
    options = set(Options.__annotations__) - ({"layout", "kv_lengths"} if packed else set())
    assert set(defaults) - {"return_lse", "return_weights", "out", "dlse", "grads"} == options
    assert all(p.kind is not p.VAR_KEYWORD for p in shown.values())
    assert options <= set(get_type_hints(function))
    # A default is what leaving the option out means.
    q, k, v, dout, out = normal(*((5, 2, 4) if packed else (2, 5, 4)), count=5)
    given = {"q": q, "k": k, "v": v, "dout": dout, "out": out, "lse": normal(2, 5, seed=1)}
    given |= {"dq": v, "dk": q, "dv": k, "cu_seqlens_q": [0, 5], "cu_seqlens_k": [0, 5]}
    arguments = [given[n] for n, p in shown.items() if p.default is p.empty]
    explicit, left_out = function(*arguments, **defaults), function(*arguments)
    for one, other in zip(explicit, left_out, strict=True):
        np.testing.assert_array_equal(one, other)


def test_names_of_options_that_are_no_text():
    with pytest.raises(TypeError, match="unknown option"):
        cattn.attention(ONES, ONES, ONES, **{"\ud800": 1})
