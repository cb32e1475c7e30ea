"""Forward, gradients and tangents against PyTorch, over random sets of options.

`spelled_out` is attention as one would write it in PyTorch, differentiated by autograd. The name of
a test holds its seed: `pytest "...::test_forward_and_gradients[cattn.reference-float64-17]"`.

The tolerance comes from rounding. Scores reach some hundreds in size (ALiBi over 60 keys), and the
exponential turns a unit of roundoff of a score into as many units of a weight; dropout multiplies a
weight by up to 10; and a gradient sums such terms, which may cancel. So an element may be off by a
thousand units of roundoff of the largest element, or of 1. Most are within a tenth of that.
"""

import math

import numpy as np
import pytest
from option_sets import draw

from cattn import reference

torch = pytest.importorskip("torch")

# PyTorch warns of its own use of torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

SEEDS = range(300)
UNITS = 1000


def assert_close(actual, expected, dtype, name):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, name
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=name)
    size = max(1.0, abs(expected[finite]).max(initial=0))
    tolerance = UNITS * np.finfo(dtype).eps / 2 * size
    np.testing.assert_allclose(
        actual[finite], expected[finite], rtol=0, atol=tolerance, err_msg=name
    )


def spelled_out(
    q, k, v, bias=None, sinks=None, *, mask=None, causal=False, causal_offset=None, window=None,
    scale=None, softcap=None, alibi_slopes=None, kv_lengths=None, dropout=0.0, seed=None,
    layout="bhld",
):  # fmt: skip
    """(out, lse) in PyTorch."""
    if layout == "blhd":
        q, k, v = (a.transpose(-2, -3) for a in (q, k, v))
    group = q.shape[-3] // k.shape[-3]
    k, v = (a.repeat_interleave(group, dim=-3) for a in (k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    s = torch.einsum("...qd,...kd->...qk", q, k) * scale
    if softcap is not None:
        s = torch.tanh(s / softcap) * softcap
    if bias is not None:
        s = s + bias

    def column(a):
        return torch.as_tensor(a)[..., None, None, None]

    queries, keys = s.shape[-2:]
    end = column(keys if kv_lengths is None else kv_lengths)
    offset = end - queries if causal_offset is None else column(causal_offset)
    j = torch.arange(keys)
    ahead = j - torch.arange(queries)[:, None] - offset  # how far the key is past the query
    if alibi_slopes is not None:
        s = s - torch.as_tensor(alibi_slopes)[..., None, None] * ahead.abs()
    hidden = (j >= end) | torch.isneginf(s)
    if mask is not None:
        hidden = hidden | ~torch.as_tensor(mask)
    if causal:
        hidden = hidden | (ahead > 0)
    for side, distance in zip(window or (), (-ahead, ahead), strict=False):
        if side not in (None, -1):
            hidden = hidden | (distance > side)
    hidden = hidden.expand(s.shape)

    s = torch.where(hidden, -math.inf, s)
    if sinks is not None:
        s = torch.cat([s, sinks[:, None, None].expand(*s.shape[:-1], 1)], dim=-1)
    empty = torch.isneginf(s).all(dim=-1, keepdim=True)
    # A row of -inf has no softmax; it gets another one, which then counts for nothing.
    s = torch.where(empty, 0.0, s)
    p = torch.where(empty, 0.0, torch.softmax(s, dim=-1))[..., :keys]
    lse = torch.where(empty[..., 0], -math.inf, torch.logsumexp(s, dim=-1))
    if dropout:
        p = p * torch.as_tensor(reference.dropout_mask(p.shape, dropout, seed)) / (1 - dropout)
    out = torch.einsum("...qk,...kd->...qd", p, v)
    return (out.transpose(-2, -3) if layout == "blhd" else out), lse


def dense(arrays, grad=True):
    """Contiguous tensors of their own."""
    return {n: torch.tensor(np.ascontiguousarray(a), requires_grad=grad) for n, a in arrays.items()}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_forward_and_gradients(module, dtype, seed):
    case = draw(seed, dtype)
    tensors = dense(case.arrays)
    out, lse = spelled_out(**tensors, **case.options)
    finite = ~torch.isneginf(lse)
    dlse = np.where(finite.numpy(), case.dlse, 0)
    loss = (out * torch.tensor(np.ascontiguousarray(case.dout))).sum()
    loss = loss + (lse[finite] * torch.tensor(dlse)[finite]).sum()
    loss.backward()

    result = case.attention(module, return_lse=True)
    assert_close(result.out, out.detach(), dtype, "out")
    assert_close(result.lse, lse.detach(), dtype, "lse")
    gradients = module.attention_backward(
        case.dout, out=result.out, lse=result.lse, dlse=dlse, grads=list(case.arrays),
        **case.arrays, **case.options,
    )  # fmt: skip
    for name, tensor in tensors.items():
        expected = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad
        assert_close(getattr(gradients, f"d{name}"), expected, dtype, f"d{name}")


@pytest.mark.parametrize("seed", SEEDS)
def test_tangents(module, seed):
    case = draw(seed, np.float64)
    rng = np.random.default_rng(seed)
    moves = [rng.standard_normal(case.arrays[name].shape) for name in "qkv"]
    tensors = dense(case.arrays, grad=False)
    rest = {name: tensor for name, tensor in tensors.items() if name not in "qkv"} | case.options
    expected = torch.func.jvp(
        lambda q, k, v: spelled_out(q, k, v, **rest)[0],
        tuple(tensors[name] for name in "qkv"),
        tuple(map(torch.tensor, moves)),
    )
    actual = module.attention_jvp(*(case.arrays[name] for name in "qkv"), *moves, **case.rest())
    for name, a, e in zip(("out", "dout"), actual, expected, strict=True):
        assert_close(a, e, np.float64, name)


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_scaled_dot_product_attention(module, dtype, seed):
    """PyTorch's own function, over the options that it has; its causal mask has offset 0."""
    rng = np.random.default_rng(seed)
    batch, kv_heads, group, lq, lk, d, dv = (int(n) for n in rng.integers(1, 7, 7))
    arrays = {
        "q": rng.standard_normal((batch, kv_heads * group, lq, d)).astype(dtype),
        "k": rng.standard_normal((batch, kv_heads, lk, d)).astype(dtype),
        "v": rng.standard_normal((batch, kv_heads, lk, dv)).astype(dtype),
    }
    tensors = dense(arrays)
    options = {"scale": [None, 0.3][rng.integers(2)]}
    theirs = dict(options)
    kind = ["none", "causal", "mask", "bias"][seed % 4]
    shape = (batch, kv_heads * group, lq, lk)[rng.integers(3) :]
    if kind == "causal":
        options |= {"causal": True, "causal_offset": 0}
        theirs["is_causal"] = True
    if kind == "mask":
        options["mask"] = rng.random(shape) < 0.7
        theirs["attn_mask"] = torch.tensor(options["mask"])
    if kind == "bias":
        arrays["bias"] = rng.standard_normal(shape).astype(dtype)
        tensors |= dense({"bias": arrays["bias"]})
        theirs["attn_mask"] = tensors["bias"]
    out = torch.nn.functional.scaled_dot_product_attention(
        *(tensors[name] for name in "qkv"), **theirs, enable_gqa=True
    )
    dout = rng.standard_normal(out.shape).astype(dtype)
    out.backward(torch.tensor(dout))
    result = module.attention(**arrays, **options, return_lse=True)
    assert_close(result.out, out.detach(), dtype, "out")
    gradients = module.attention_backward(
        dout, out=result.out, lse=result.lse, grads=list(arrays), **arrays, **options
    )
    for name, tensor in tensors.items():
        assert_close(getattr(gradients, f"d{name}"), tensor.grad, dtype, f"d{name}")


@pytest.mark.parametrize("seed", range(100))
def test_varlen(module, seed):
    """The sequences one by one in PyTorch; their dropout counts them as batch entries."""
    rng = np.random.default_rng(seed)
    case = draw(seed, np.float64)
    count, kv_heads, group, d, dv = (int(n) for n in rng.integers(1, 5, 5))
    heads = kv_heads * group
    cu_q, cu_k = (np.concatenate([[0], np.cumsum(rng.integers(0, 7, count))]) for _ in range(2))
    total_q, total_k = cu_q[-1], cu_k[-1]
    arrays = {
        "q": rng.standard_normal((total_q, heads, d)),
        "k": rng.standard_normal((total_k, kv_heads, d)),
        "v": rng.standard_normal((total_k, kv_heads, dv)),
    }
    kept = ("causal", "window", "scale", "softcap", "dropout", "seed")
    options = {name: case.options[name] for name in kept if name in case.options}
    if "bias" in case.arrays:
        arrays["bias"] = rng.standard_normal([(heads, total_q, total_k), (total_q, 1)][seed % 2])
    if "sinks" in case.arrays:
        arrays["sinks"] = rng.standard_normal(heads)
    if "mask" in case.options:
        options["mask"] = rng.random((total_q, total_k)) < 0.7
    if "alibi_slopes" in case.options:
        options["alibi_slopes"] = rng.standard_normal([(heads,), (count, heads)][seed % 2])
    if "causal_offset" in case.options:
        options["causal_offset"] = rng.integers(-1, 4, count) if seed % 3 else 1

    tensors = dense(arrays)
    out = torch.zeros((total_q, heads, dv), dtype=torch.float64)
    lse = torch.full((heads, total_q), -math.inf, dtype=torch.float64)
    bias = tensors.get("bias")
    bias = None if bias is None else bias.expand(heads, total_q, total_k)
    for n in range(count):
        rows, keys = slice(*cu_q[n : n + 2]), slice(*cu_k[n : n + 2])
        own = {name: options[name] for name in options if name not in ("dropout", "seed", "mask")}
        for name, shape in (("alibi_slopes", (count, heads)), ("causal_offset", (count,))):
            if name in own:
                own[name] = np.broadcast_to(own[name], shape)[n].copy()
        if "mask" in options:
            own["mask"] = options["mask"][rows, keys]
        v = tensors["v"][keys]
        if "dropout" in options:
            # Identity values give the weights, which dropout is then applied to.
            own_v = torch.eye(len(v), dtype=v.dtype)[:, None].expand(-1, kv_heads, -1)
        else:
            own_v = v
        part, part_lse = spelled_out(
            tensors["q"][rows], tensors["k"][keys], own_v,
            None if bias is None else bias[:, rows, keys], tensors.get("sinks"),
            **own, layout="blhd",
        )  # fmt: skip
        if "dropout" in options:
            shape = (count, heads, part.shape[0], len(v))
            mask = reference.dropout_mask(shape, options["dropout"], options["seed"])[n]
            p = part.transpose(0, 1) * torch.tensor(mask) / (1 - options["dropout"])
            part = torch.einsum("hqk,khd->qhd", p, v.repeat_interleave(group, dim=1))
        out[rows], lse[:, rows] = part, part_lse
    finite = ~torch.isneginf(lse)
    dout, dlse = rng.standard_normal(out.shape), rng.standard_normal(lse.shape)
    dlse = np.where(finite.numpy(), dlse, 0)
    loss = (out * torch.tensor(dout)).sum() + (lse[finite] * torch.tensor(dlse)[finite]).sum()
    if loss.requires_grad:
        loss.backward()

    lengths = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}
    result = module.attention_varlen(**arrays, **lengths, **options, return_lse=True)
    assert_close(result.out, out.detach(), np.float64, "out")
    assert_close(result.lse, lse.detach(), np.float64, "lse")
    gradients = module.attention_varlen_backward(
        dout, out=result.out, lse=result.lse, dlse=dlse, grads=list(arrays),
        **arrays, **lengths, **options,
    )  # fmt: skip
    for name, tensor in tensors.items():
        expected = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad
        assert_close(getattr(gradients, f"d{name}"), expected, np.float64, f"d{name}")
