"""Wrong input raises, and the message names the argument, what it is and what was expected."""

import re

import numpy as np
import pytest

import cattn

F = np.float32


def ones(*shape, dtype=F):
    return np.ones(shape, dtype)


def call(**changes):
    """attention with Hq = 2, Lq = 3, D = 4, Hkv = 2, Lk = 5, Dv = 6, some arguments replaced."""
    arguments = {"q": ones(2, 3, 4), "k": ones(2, 5, 4), "v": ones(2, 5, 6), **changes}
    return cattn.attention(**arguments)


def call_backward(**changes):
    shapes = {"dout": (2, 3, 6), "q": (2, 3, 4), "k": (2, 5, 4), "v": (2, 5, 6),
              "out": (2, 3, 6), "lse": (2, 3)}  # fmt: skip
    arguments = {**{name: ones(*shape) for name, shape in shapes.items()}, **changes}
    return cattn.attention_backward(**arguments)


def parts(*texts):
    """A pattern: all of these texts, the first at the start, the others in order."""
    return "^" + ".*".join(re.escape(text) for text in texts)


@pytest.mark.parametrize(("changes", "message"), [
    ({"k": ones(2, 5, 3)}, ("k", "(2, 5, 3)", "(2, 3, 4)", "4")),
    ({"v": ones(2, 4, 6)}, ("v", "(2, 4, 6)", "(2, 5, 4)", "5")),
    ({"v": ones(1, 5, 6)}, ("v", "(1, 5, 6)", "(2, 5, 4)", "2")),
    ({"k": ones(3, 5, 4), "v": ones(3, 5, 6)}, ("k", "(3, 5, 4)", "(2, 3, 4)", "3")),
    ({"k": ones(0, 5, 4), "v": ones(0, 5, 6)}, ("k", "(0, 5, 4)", "(2, 3, 4)")),
    ({"q": ones(4)}, ("q", "(4,)", "2")),
    ({"k": ones(4)}, ("k", "(4,)", "2")),
    ({"v": ones(6)}, ("v", "(6,)", "2")),
    ({"q": F(3)}, ("q", "()", "2")),
    ({"q": ones(2, 3, 0), "k": ones(2, 5, 0)}, ("q", "(2, 3, 0)", "1")),
    ({"v": ones(2, 5, 0)}, ("v", "(2, 5, 0)", "1")),
    ({"q": ones(2, 2, 3, 4), "k": ones(3, 2, 5, 4)}, ("k", "(3, 2, 5, 4)", "(2,)")),
    ({"k": ones(2, 2, 5, 4), "v": ones(3, 2, 5, 6)}, ("v", "(3, 2, 5, 6)", "(2,)")),
    ({"mask": ones(3, 4, dtype=bool)}, ("mask", "(3, 4)", "(..., 2, 3, 5)")),
    ({"mask": ones(2, 5, dtype=bool)}, ("mask", "(2, 5)", "(..., 2, 3, 5)")),
    ({"mask": ones(4, 3, 5, dtype=bool)}, ("mask", "(4, 3, 5)", "(..., 2, 3, 5)")),
    ({"mask": ones(7, 2, 3, 5, dtype=bool)}, ("mask", "(7, 2, 3, 5)")),
    ({"bias": ones(3, 4)}, ("bias", "(3, 4)", "(..., 2, 3, 5)")),
    ({"bias": ones(7, 2, 3, 5)}, ("bias", "(7, 2, 3, 5)")),
    ({"causal": True, "causal_offset": [1, 2]}, ("causal_offset", "(2,)")),
    ({"causal": True, "causal_offset": [1, 2, 3], "q": ones(2, 2, 3, 4)},
     ("causal_offset", "(3,)", "(2,)")),
    ({"out": ones(2, 3, 5)}, ("out", "(2, 3, 5)", "(2, 3, 6)")),
    ({"out": ones(1, 2, 3, 6)}, ("out", "(1, 2, 3, 6)", "(2, 3, 6)")),
    ({"out": ones(2, 3, 6), "layout": "blhd", "q": ones(2, 2, 4), "k": ones(2, 2, 4)},
     ("v", "(2, 5, 6)", "(2, 2, 4)")),
])  # fmt: skip
def test_wrong_shapes(changes, message):
    with pytest.raises(ValueError, match=parts(*message)):
        call(**changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"dout": ones(2, 3, 5)}, ("dout", "(2, 3, 5)", "6")),
    ({"dout": ones(2, 4, 6)}, ("dout", "(2, 4, 6)", "3")),
    ({"dout": ones(3, 3, 6)}, ("dout", "(3, 3, 6)", "2")),
    ({"dout": ones(1, 2, 3, 6)}, ("dout", "(1, 2, 3, 6)")),
    ({"dout": ones(3, 6)}, ("dout", "(3, 6)", "2")),
    ({"out": ones(2, 3, 5)}, ("out", "(2, 3, 5)", "6")),
    ({"lse": ones(2, 2)}, ("lse", "(2, 2)", "3")),
    ({"lse": ones(3)}, ("lse", "(3,)", "2")),
    ({"lse": ones(2, 3, 1)}, ("lse", "(2, 3, 1)")),
    ({"dlse": ones(2, 2)}, ("dlse", "(2, 2)", "3")),
    ({"dlse": ones(3)}, ("dlse", "(3,)", "2")),
    ({"dlse": F(1)}, ("dlse", "()")),
    ({"k": ones(2, 5, 3)}, ("k", "(2, 5, 3)", "(2, 3, 4)", "4")),
    ({"q": ones(7, 2, 3, 4)}, ("", "(2, 3, 6)", "(7,)")),
])  # fmt: skip
def test_wrong_shapes_in_the_backward_pass(changes, message):
    with pytest.raises(ValueError, match=parts(*message)):
        call_backward(**changes)


def test_messages_show_shapes_as_they_were_given():
    """Layouts are exchanged inside, not in what a caller reads."""
    q, k, lse = ones(1, 5, 2, 4), ones(1, 6, 2, 4), ones(1, 2, 5)
    for dout, says in ((ones(1, 2, 5, 4), "2 rows, expected 5"), (ones(1, 5, 4, 4), "4 heads")):
        message = parts("dout", str(dout.shape), says)
        with pytest.raises(ValueError, match=message):
            cattn.attention_backward(dout, q, k, k, q, lse, layout="blhd")
    with pytest.raises(ValueError, match=parts("k", "(2, 6, 2, 4)", "(3,)")):
        cattn.attention(ones(3, 5, 2, 4), *[ones(2, 6, 2, 4)] * 2, layout="blhd")
    with pytest.raises(ValueError, match=parts("dout", "(3, 2, 4)", "3 rows, expected 5")):
        cattn.attention_varlen_backward(
            ones(3, 2, 4), q[0], k[0], k[0], q[0], lse[0], [0, 5], [0, 6]
        )


class Raises:
    """An object whose every conversion raises."""

    def __init__(self, error):
        self.error = error

    def convert(self, *arguments, **options):
        raise self.error

    __array__ = __float__ = __index__ = convert


class RaisesAsTensor(Raises):
    __dlpack__ = Raises.convert

    def __dlpack_device__(self):
        return (1, 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), MemoryError()], ids=repr)
def test_what_inputs_raise_is_not_hidden(error):
    values = {"q": RaisesAsTensor(error), "k": Raises(error), "scale": Raises(error)}
    for name, value in values.items():
        with pytest.raises(type(error)):
            call(**{name: value})


@pytest.mark.parametrize(
    "given", [[[1.0], [1.0, 2.0]], Raises(ValueError("no"))], ids=["ragged", "raises"]
)
def test_why_something_is_no_array(given):
    with pytest.raises(TypeError, match=r"^q: ") as caught:
        call(q=given)
    assert isinstance(caught.value.__cause__, ValueError)


UNSUPPORTED = ["int32", "int64", "uint8", "bool", "complex64", "complex128", "longdouble", "object"]


@pytest.mark.parametrize("name", UNSUPPORTED)
@pytest.mark.parametrize("argument", ["q", "k", "v"])
def test_unsupported_dtypes(argument, name):
    dtype = np.dtype(name)
    shape = {"q": (2, 3, 4), "k": (2, 5, 4), "v": (2, 5, 6)}[argument]
    with pytest.raises(TypeError, match=parts(argument, str(dtype), "float32")):
        call(**{argument: ones(*shape, dtype=dtype)})


@pytest.mark.parametrize("argument", ["dout", "out", "lse", "dlse"])
@pytest.mark.parametrize("name", ["int64", "complex64", "object"])
def test_unsupported_dtypes_in_the_backward_pass(argument, name):
    shape = (2, 3) if "lse" in argument else (2, 3, 6)
    with pytest.raises(TypeError, match=parts(argument, name, "float32")):
        call_backward(**{argument: ones(*shape, dtype=name)})


@pytest.mark.parametrize("argument", ["k", "v"])
@pytest.mark.parametrize("q_dtype", ["float32", "float64"])
def test_mixed_dtypes(argument, q_dtype):
    other = "float64" if q_dtype == "float32" else "float32"
    arrays = {"q": ones(2, 3, 4), "k": ones(2, 5, 4), "v": ones(2, 5, 6)}
    arrays = {name: a.astype(other if name == argument else q_dtype) for name, a in arrays.items()}
    with pytest.raises(TypeError, match=parts(argument, other, q_dtype)):
        call(**arrays)


@pytest.mark.parametrize("argument", ["dout", "out", "lse", "dlse"])
def test_mixed_dtypes_in_the_backward_pass(argument):
    shape = (2, 3) if "lse" in argument else (2, 3, 6)
    with pytest.raises(TypeError, match=parts(argument, "float64", "float32")):
        call_backward(**{argument: ones(*shape, dtype=np.float64)})


@pytest.mark.parametrize(("changes", "message"), [
    ({"mask": ones(3, 5)}, ("mask", "float32", "bool")),
    ({"mask": ones(3, 5, dtype=np.int8)}, ("mask", "int8", "bool")),
    ({"mask": [[1, 0, 1, 1, 1]]}, ("mask", "int64", "bool")),
    ({"bias": ones(3, 5, dtype=bool)}, ("bias", "bool", "float32")),
    ({"bias": ones(3, 5, dtype=np.int64)}, ("bias", "int64", "float32")),
    ({"bias": ones(3, 5, dtype=np.float64)}, ("bias", "float64", "float32")),
    ({"bias": ones(3, 5, dtype=complex)}, ("bias", "complex128", "float32")),
    ({"causal": True, "causal_offset": 1.5}, ("causal_offset", "float64", "integer")),
    ({"causal": True, "causal_offset": np.ones(2)}, ("causal_offset", "float64", "integer")),
    ({"causal": True, "causal_offset": np.nan}, ("causal_offset", "float64", "integer")),
    ({"causal": True, "causal_offset": True}, ("causal_offset", "bool", "integer")),
    ({"causal": True, "causal_offset": "1"}, ("causal_offset", "integer")),
    ({"out": ones(2, 3, 6, dtype=np.float64)}, ("out", "float64", "float32")),
    ({"out": [[1.0]]}, ("out", "ndarray")),
    ({"q": None}, ("q", "None")),
    ({"k": None}, ("k", "None")),
    ({"v": None}, ("v", "None")),
    ({"q": "text"}, ("q",)),
    ({"q": object()}, ("q", "object")),
    ({"k": [[1.0, 2.0], [3.0]]}, ("k", "array")),
    ({"scale": "one"}, ("scale", "'one'", "number")),
    ({"scale": 1j}, ("scale", "1j", "number")),
    ({"scale": [1.0, 2.0]}, ("scale", "[1.0, 2.0]", "number")),
    ({"num_threads": 1.5}, ("num_threads", "1.5", "integer")),
    ({"num_threads": "2"}, ("num_threads", "'2'", "integer")),
    ({"num_threads": True}, ("num_threads", "True", "integer")),
])  # fmt: skip
def test_wrong_types(changes, message):
    with pytest.raises(TypeError, match=parts(*message)):
        call(**changes)


@pytest.mark.parametrize("name", ["out", "dout", "lse"])
def test_missing_arrays_in_the_backward_pass(name):
    with pytest.raises((TypeError, ValueError), match=parts(name)):
        call_backward(**{name: None})


@pytest.mark.parametrize(("changes", "message"), [
    ({"scale": np.nan}, ("scale", "nan")),
    ({"scale": np.inf}, ("scale", "inf")),
    ({"scale": -np.inf}, ("scale", "-inf")),
    ({"layout": "lbhd"}, ("layout", "'lbhd'", "'bhld'", "'blhd'")),
    ({"layout": "BHLD"}, ("layout", "'BHLD'", "'bhld'")),
    ({"layout": ""}, ("layout", "''", "'bhld'")),
    ({"causal_offset": 1}, ("causal_offset", "causal")),
    ({"causal_offset": 0}, ("causal_offset", "causal")),
    ({"num_threads": 0}, ("num_threads", "0", "1")),
    ({"num_threads": -3}, ("num_threads", "-3", "1")),
    ({"num_threads": 2**40}, ("num_threads", str(2**40))),
    ({"num_threads": 2**70}, ("num_threads", str(2**70))),
])  # fmt: skip
def test_wrong_values(changes, message):
    for function in (call, call_backward):
        with pytest.raises(ValueError, match=parts(*message)):
            function(**changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"causal": "yes"}, ("causal", "'yes'")),
    ({"causal": 2}, ("causal", "2")),
    ({"layout": 3}, ("layout", "3")),
    ({"layout": None}, ("layout", "None")),
    ({"return_lse": "yes"}, ("return_lse", "'yes'")),
    ({"return_weights": "yes"}, ("return_weights", "'yes'")),
])  # fmt: skip
def test_options_of_another_type(changes, message):
    """The message is about the option, and does not print the arrays."""
    with pytest.raises((TypeError, ValueError), match=parts(*message)) as caught:
        call(**changes)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("grads", "message"), [
    (("w",), ("grads", "'w'", "'q'")),
    (("q", "sinks"), ("grads", "'sinks'")),
    ("qk", ("grads", "'qk'")),
    ((1,), ("grads", "1")),
    (("bias",), ("grads", "bias")),
    (("q", "bias"), ("grads", "bias")),
])  # fmt: skip
def test_unknown_gradients(grads, message):
    with pytest.raises(ValueError, match=parts(*message)):
        call_backward(grads=grads)


@pytest.mark.parametrize("grads", [None, [["q"]]])
def test_gradients_that_are_not_words(grads):
    with pytest.raises((TypeError, ValueError), match="grads"):
        call_backward(grads=grads)


def test_read_only_output():
    out = ones(2, 3, 6)
    out.flags.writeable = False
    with pytest.raises(ValueError, match=parts("out", "read-only")):
        call(out=out)
    with pytest.raises(ValueError, match=parts("out", "read-only")):
        call(out=np.broadcast_to(ones(3, 6), (2, 3, 6)))
    assert (out == 1).all()


def test_output_whose_last_axis_is_not_contiguous():
    with pytest.raises(ValueError, match=parts("out", "contiguous")):
        call(out=ones(2, 6, 3).swapaxes(1, 2))


def test_too_many_axes():
    most = (1,) * 13
    assert call(q=ones(*most, 2, 3, 4)).ndim == 16
    for name, shape in {"q": (2, 3, 4), "k": (2, 5, 4), "v": (2, 5, 6)}.items():
        with pytest.raises(ValueError, match=parts(name, "17", "16")):
            call(**{name: ones(1, *most, *shape)})
    with pytest.raises(ValueError, match=parts("mask", "17", "16")):
        call(mask=ones(*(1,) * 17, dtype=bool))
    with pytest.raises(ValueError, match=parts("bias", "17", "16")):
        call(bias=ones(*(1,) * 17))
    with pytest.raises(ValueError, match=parts("causal_offset", "17", "16")):
        call(causal=True, causal_offset=ones(*(1,) * 17, dtype=int))


@pytest.mark.parametrize("offset", [2**63 - 1, 2**63, 2**64 - 1])
def test_huge_offsets_do_not_wrap(offset):
    """Every key is seen. An unsigned number past int64 must not come out negative."""
    np.testing.assert_array_equal(call(causal=True, causal_offset=offset), call())


@pytest.mark.parametrize("offset", [-(2**63), -(2**62), -1000])
def test_huge_negative_offsets_do_not_wrap(offset):
    assert (call(causal=True, causal_offset=offset) == 0).all()


def test_sizes_that_overflow():
    """Views of a few bytes with more elements than can be addressed."""
    one = ones(1, 1, 1)
    rows = np.lib.stride_tricks.as_strided(one, (1, 2**45, 1), (0, 0, 0))
    with pytest.raises((ValueError, MemoryError)):
        cattn.attention(one, rows, rows, return_weights=True)
    with pytest.raises((ValueError, MemoryError)):
        cattn.attention(rows, one, one)


def test_nothing_is_written_before_an_error():
    out = ones(2, 3, 6)
    with pytest.raises(ValueError, match="mask"):
        call(out=out, mask=ones(9, 9, dtype=bool))
    assert (out == 1).all()


def test_after_an_error_all_is_well():
    expected = call()
    for _ in range(3):
        with pytest.raises(ValueError, match="layout"):
            call(layout="?")
        np.testing.assert_array_equal(call(), expected)
