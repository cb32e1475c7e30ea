r"""How far the computed attention may be from the exact one: a bound for every element.

Notation: ``u`` is the unit roundoff (2⁻²⁴ for float32, 2⁻⁵³ for float64) and
``γ(n) = n u / (1 - n u)``, which bounds the relative error that n roundings leave
(Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1). Sums may be taken in any order:
n terms pass through at most n - 1 additions. ``η`` is the smallest normal number: what underflows
is off by at most that. |X| is taken element by element. A product ``|a|·|b|`` below is a sum of
magnitudes, never the magnitude of a sum, so cancellation is paid for.

**Half types** are exact in float32, in which everything is computed: u and η are float32's. The
result x is rounded once, which adds ``u' (|x| + bound) + σ / 2`` with the unit roundoff u' and the
smallest subnormal number σ of the half type.

**Precision.** Matrix products are of two kinds: of two operands (q k, dO v), and of what is
computed in float32, the weights P and the gradients dS of the scores, with an operand (P v, Pᵀ dO,
dS k, dSᵀ q). Either may be computed from bfloat16 numbers, whose unit roundoff is w = 2⁻⁸: for
1 <= |x| < 2, x = h + m + e with x - h exact in float32, |x - h| <= w, hence |m| <= w and
|e| <= w² / 2. An x next to 1 has smaller ones: |x - h| = w only from 1 + w on, |e| = w² / 2 only
from 1 + w / 2. So |x - h| <= w |x| / (1 + w), |m| <= w |x| and |e| <= w² |x| / (2 + w) for any x.
Products of two bfloat16 numbers are exact in float32, so what is left out is all that they add to
the roundings of the sums: δ for two operands, δ_w for weights in the output, δ_g for weights and
dS in gradients. For float32 operands all are

- medium, ``h h'``: ``2 w / (1 + w) + (w / (1 + w))² < δ = 2 w = 2⁻⁷``. In the output, for v alone,
  ``w / (1 + w) < δ_w = w``; the weight's is ω.
- high, ``h h' + h m' + m h'``: ``m m'``, ``e x'`` and ``(h + m) e'`` are missing, together
  ``w² + w² (2 + w²) / (2 + w) < δ = 2 w² = 2⁻¹⁵``. A sum of n products now has 3 n terms.

Instruction sets that multiply pairs of bfloat16 (`PAIRS`) also do so with half types, whose numbers
are h' or h' + m' exactly. Of two operands nothing is missing, δ = 0; a weight has more digits:

- bfloat16, x' = h', ``h h'``: δ_w = 0 in the output, where the weight's rounding is ω, and in
  gradients ``w / (1 + w) < δ_g = w``.
- float16, ``h h' + h m' + m h'`` with x' = h' + m', hence |m'| <= w |x'| / (1 + w): ``m m'`` and
  ``e x'`` are missing, ``w² / (1 + w) + w² / (2 + w) < δ_w = δ_g = 3 w² / 2``. Two operands are
  multiplied with ``m m'`` as well: 4 n terms.

ω: where weights that are multiplied with v are rounded to bfloat16 (medium, and bfloat16 on pairs),
the denominator is the sum of these rounded weights. So a weight gets a factor ``1 + ε_j`` in
numerator and denominator, ``|ε_j| <= w / (1 + w)``. On AMX it may come as the bits of a bfloat16,
from a fixed-point exponent with 9 binary digits behind the point: that is half of ``log 2 / 512``,
0.17 w, the correction by a table is rounded and serves for four such numbers, and two digits are
rounded away. Over all of them ``|ε_j| < 1.27 w`` (the native tests try each). Two
roundings of a number below 2¹⁶ to float32, 2⁻⁹ of 1 / 512 each, are 6e-6 of the weight. So
ω = 1.28 w there and with medium, w on other instruction sets; elsewhere ω = 0.

Instruction sets that multiply pairs of float16 (amx_fp16) round the weights and dS of float16
arrays to float16, ω = δ_g = 2⁻¹¹, after scaling them by a power of 2: in the output the largest
weight of a row is 2¹⁵, in gradients the largest number of a row of the left operand is at least
2¹⁴. Below 2⁻¹⁴ a float16 is off by 2⁻²⁵ absolutely, which is φ = 2⁻³⁹ of the largest. The lse
then is that of ``m - 15 log 2``: 22 u more in E.

All are relative to |a| |b|, and more than is needed by a factor of 1 + w / 8, which pays for the
roundings of what is split. The terms are larger than the products by at most ``μ - 1 = 5 w``, as
``(1 + w)² + 2 w (1 + w)`` and ``(1 + 2 w)²`` are below 1 + 5 w. So a sum of n products that passes
through c roundings besides its own, ``n_c = n + c`` or as many n more, is off by
``π(n_c) = δ + μ γ(n_c)``, or π_w with δ_w, π_g with δ_g, times the sum of |a| |b|. A part below η
may count as 0, which costs η |b| and η |a|: magnitudes are taken as ``|x| + 2 η / δ``, which
includes that. Numbers that round to an infinite bfloat16 are left aside.

For everything else δ = 0, μ = 1, π = γ and magnitudes are |x|. That includes the highest precision
from three parts (`PAIRS`): of nine products the six largest are taken, the others are about
2⁻²⁴ = u. The small ones are summed first, so that their roundings are not of the size of the sum,
and this starts anew every few blocks and passes through fewer additions than are counted.

**Scores.** ``s = scale q·k + b`` passes through D roundings in the dot product and at most 8 more:
scale is rounded (3), multiplied, the bias is added, the change to base 2 multiplies by a rounded
log2 e (2), one to spare. With ``A_p = |scale| |q|·|k|``, ``A = A_p + |b|``, ``M = max_j A_ij`` the
error is ``S = δ A_p + μ γ(n_s) A``, ``n_s = D + 8``, 3 D + 8 or 4 D + 8. What else makes a score
adds to n_s and A:

- softcap: n_s + 18. The slope of ``c tanh(s / c)`` is at most 1, so the error of s is not
  magnified; c is rounded and divides (2). The hyperbolic tangent is off by 16 u relatively
  (argument 2, ``e^x - 1`` 8 as its terms cancel to a factor of 2, sum and quotient 2, the
  polynomial's first coefficient 4), and ``|c tanh(s / c)| <= |s|``.
- ALiBi: n_s + 4 and ``A + |slope| |distance|``: the slope and the position are rounded (positions
  beyond 2²⁴ are not float32 numbers), the difference of the positions, and the sum.

The exponent ``s - m``, with m some score of the row, an integer near it or none at all, is rounded
once, and again when m moves: at most ``4 u μ M`` together, as ``|s - m| <= 2 μ M``. So a weight
``e^(s - m)`` is computed up to a factor within ``exp(±E)``,

    E = S + 4 u μ M + 4 u,

the last term being the exponential function itself (its polynomial and Horner's rule: 4 u).

**Output.** Numerator ``N = Σ w_j v_j`` and denominator ``Z = Σ w_j`` take n_k roundings: Lk, and 5
per block of keys if m moves there (the factor's exponential and one product). N is a sum of
products, Z one of float32 weights whatever the precision. Dividing both by the exact denominator,

    τ = exp(E + γ(n_k)) - 1,    τ_N = exp(E + π_w(n_k)) - 1,
    δN = Σ P_j τ_N,j |v_j| + η (Σ |v_j| + Lk),    δZ = Σ P_j τ_j + η Lk,
    |out error| <= (1 + r u) (V + (1 + ω) (δN + |out| δZ)) / (1 - ω - (1 + ω) δZ) + r u |out|,

from ``(N + δN) / (Z + δZ) - N / Z`` and r = 3 roundings for the quotient. V is what rounding of
weights does, ``Σ P_j ε_j (v_j - out)``, at most

    V = ω sqrt(Σ P_j) sqrt(Σ P_j (v_j - out)²) + φ Σ (|v_j| + |out|):

next to nothing where one key has all the weight.

- A sink is one more term of Z: ``n_k + 6`` (m may move to it), M is at least |sink|,
  ``δZ + P_sink τ_sink`` with ``γ(4) |sink|`` in place of S, and r + 2.
- Dropout multiplies every term of N by ``R = kept / (1 - p)``, which is rounded: r + 2. In V,
  v_j is then R v_j.
- A window, lengths and masks leave terms out; nothing is added.

**Log-sum-exp.** ``lse = m + log Z``: ``-log(1 - δZ)``, and 4 roundings of terms no larger than
``M + |lse|``.

**Weights recomputed from the lse**, ``P = e^(s - lse)``: the same E without the running m, and the
lse is multiplied by log2 e (3 u |lse| with the subtraction):

    ρ = exp(S + μ u A + 3 u |lse| + |lse error| + 4 u) - 1.

Where ω = 1.28 w, gradients take them from a polynomial of degree 3, which is off by 8.6e-5 at most:
``ρ + 8.7e-5 (1 + ρ)`` in place of ρ.

**Gradients.** ``dP = R dO·v`` and ``Δ = dO·out - dlse`` are sums of Dv and Dv + 1 products; R costs
two roundings,

    g = π(Dv + 3) R |dO|·|v| + γ(Dv + 2) (|dO|·|out| + |dlse|) + |dO|·|out error|,
    |dS error| = ε <= P ((1 + ρ)(1 + 3 u)(|dP - Δ| + g) - |dP - Δ|) + η (1 + |dP - Δ|)

and the sums of n terms that follow are each
``Σ error·|x| + π_g(n + 5) Σ (value + error)·|x| + n η``, times |scale|, plus
``η (1 + Σ (value + error)·|x|)`` for a scale or a product that underflows: for dV over P R and dO,
for dK over dS and q, for dQ over dS and k (n counts all that is summed, broadcast axes and grouped
heads included; 5 for the scale), for dbias over dS alone, with γ, then rounded to bias's dtype.

- A softcap multiplies dS by ``c' = 1 - tanh²`` on its way to dQ and dK. As ``|tanh''| <= 1``, c' is
  off by ``σ_c = π(n_s) A_p / c + 34 u`` (twice 16 u tanh², and two roundings), absolutely: there is
  cancellation where it saturates. The error grows to ``(c' + σ_c)(1 + u)(|dS| + ε) - c' |dS|``.
- ``dsinks = -Σ P_sink Δ`` with ``ρ_sink = exp(3 u (|sink| + |lse|) + |lse error| + 4 u) - 1`` and
  the error of Δ above, summed likewise and rounded to the sinks' dtype.

**Forward mode.** All is computed by multiply-adds of float32, whatever the instruction set and the
precision: δ = 0.
``dS = scale c' (dQ·k + q·dK)`` has the magnitude ``T = |scale| (|dQ|·|k| + |q|·|dK|)`` and is off
by ``ε_s = γ(n_s + D) (c' + σ_c) T + σ_c T``, as it is a sum of 2 D products. Its sums
``U = Σ P R (dS v + dv)`` and ``ν = Σ P dS`` are off by
``δU = Σ P R ((τ' + 1) (|dS| + ε_s) - |dS|) |v| + Σ P R τ' |dv|``, τ' having three roundings more
than τ_N, and δν alike with neither R nor v; each is divided by Z as the output is. Then

    |dO error| <= δU + |ν| |out error| + δν (|out| + |out error|) + 8 u (|U| + |ν| |out|).

**Rotary embedding.** ``x1 cos - x2 sin`` with rounded tables: ``γ(4) (|x1 cos| + |x2 sin|) + η``.

The bounds hold for any order of summation, any block of at least 32 keys, with or without fused
multiply-add, and assume nothing else about the kernels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cattn import AttentionGrads, AttentionResult, _core, reference
from cattn.reference import _inputs, _one_head_axis, _sum_to, _swap, _transposed

KEYS_PER_BLOCK = 32  # at least
EXP = 4.0  # units of u, as are the following
TANH = 16.0
# float16 and bfloat16, whose names NumPy may not know: digits and least exponent.
HALVES = {"float16": (11, -24), "bfloat16": (8, -133)}


def computed_in(dtype: Any) -> np.dtype:
    """What the kernels compute in, and return a log-sum-exp in."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def unit_roundoff(dtype: Any) -> float:
    if np.dtype(dtype).name in HALVES:
        return 2.0 ** -HALVES[np.dtype(dtype).name][0]
    return float(np.finfo(dtype).eps) / 2


def gamma(n: float, u: float) -> float:
    return n * u / (1 - n * u)


def rounded(bound: Any, exact: Any, dtype: Any) -> Any:
    """The bound on a result that is rounded to `dtype` at the end, if that is a half type."""
    if bound is None or np.dtype(dtype).name not in HALVES:
        return bound
    smallest = 2.0 ** HALVES[np.dtype(dtype).name][1]
    with np.errstate(invalid="ignore"):
        return bound + unit_roundoff(dtype) * (np.abs(exact) + bound) + smallest / 2


class Products(NamedTuple):
    """How matrix products of one kind are computed: the section on precision."""

    u: float
    terms: int = 1  # of a sum, for each product
    delta: float = 0.0  # δ
    mu: float = 1.0
    least: float = 0.0  # what is added to the magnitude of an operand
    floor: float = 0.0  # φ

    def count(self, n, more=0):
        return self.terms * n + more

    def pi(self, n_c):
        return self.delta + self.mu * gamma(n_c, self.u)

    def size(self, x):
        return np.abs(x) + self.least

    def left_size(self, x):
        """Of what is rounded."""
        size = self.size(x)
        if self.floor == 0:
            return size
        return size + self.floor / self.delta * size.max(axis=-1, keepdims=True, initial=0)


class Arithmetic(NamedTuple):
    operands: Products  # of two operands
    weights: Products  # of P with v
    gradients: Products  # of P or dS with an operand
    rounded_weights: float  # ω


# (terms, δ) of products of operands, of weights and of gradients, and ω: the section on precision.
W = 2.0**-8
EXACT = *(((1, 0.0),) * 3), 0.0
HIGH = *(((3, 2 * W**2),) * 3), 0.0
AT_ONCE = 1.28 * W
POLYNOMIAL = 8.7e-5  # of degree 3, for gradients where weights may come at once
MEDIUM = (1, 2 * W), (1, W), (1, 2 * W), AT_ONCE
FLOAT32 = {"highest": EXACT, "high": HIGH, "medium": MEDIUM}
BFLOAT16 = (1, 0.0), (1, 0.0), (1, W), W
BFLOAT16_AT_ONCE = *BFLOAT16[:3], AT_ONCE
FLOAT16 = (4, 0.0), (3, 1.5 * W**2), (3, 1.5 * W**2), 0.0
WHOLE_FLOAT16 = (1, 0.0), (1, 0.0), (1, 2.0**-11), 2.0**-11
FLOOR = 2.0**-39  # φ of the last one
# What instruction sets multiply on pairs of bfloat16 or float16 numbers unasked.
TILES = {"float32": EXACT, "float16": FLOAT16, "bfloat16": BFLOAT16_AT_ONCE}
FP16_TILES = {**TILES, "float16": WHOLE_FLOAT16}
PAIRS = {
    "avx512bf16": {"bfloat16": BFLOAT16},
    "amx": TILES,
    "amx_emulated": TILES,
    "amx_fp16": FP16_TILES,
    "amx_fp16_emulated": FP16_TILES,
}


def multiplies_pairs(dtype: Any) -> bool:
    """Whether the current instruction set does so with the highest precision."""
    return np.dtype(dtype).name in PAIRS.get(_core.isa(), {})


def arithmetic(dtype: Any, precision: str, *, forward_mode: bool = False) -> Arithmetic:
    """Of the current instruction set."""
    wide, name = computed_in(dtype), np.dtype(dtype).name
    u, tiny = unit_roundoff(wide), float(np.finfo(wide).tiny)
    if forward_mode:
        kinds = EXACT
    elif name == "float32":
        kinds = FLOAT32[precision]
    else:
        kinds = PAIRS.get(_core.isa(), {}).get(name, EXACT)

    floor = FLOOR if kinds is WHOLE_FLOAT16 else 0.0

    def products(terms, delta):
        mu = 1 + 5 * W if delta or terms > 1 else 1.0
        return Products(u, terms, delta, mu, 2 * tiny / delta if delta else 0.0, floor)

    *by_kind, rounded_weights = kinds
    return Arithmetic(*(products(*kind) for kind in by_kind), rounded_weights)


class Terms(NamedTuple):
    """What all bounds begin with; arrays are ``(..., Hq, Lq, Lk)``."""

    x: Any  # q, k, v
    pairs: Any  # s, seen and kept
    a: Any  # A, 0 where masked
    a_p: Any  # A_p likewise
    n_s: float
    slope: Any  # c', 1 without a softcap
    slope_error: Any  # σ_c
    sink: Any  # (..., Hq, Lq, 1), -inf without one
    u: float
    tiny: float
    operands: Products
    weights: Products
    gradients: Products
    rounded_weights: float

    def kept(self, p):
        return self.pairs.dropped(p)

    def score_error(self, more_roundings=0):
        """S, or with more roundings."""
        of_float32 = gamma(self.n_s + more_roundings, self.u) * self.a
        return self.operands.delta * self.a_p + self.operands.mu * of_float32


def terms(
    q, k, v, *, layout="bhld", bias=None, scale=None, softcap=None, alibi_slopes=None, sinks=None,
    precision="highest", forward_mode=False, _batch=0, **options,
):  # fmt: skip
    wide = computed_in(q.dtype)
    u, tiny = unit_roundoff(wide), float(np.finfo(wide).tiny)
    x = _inputs(q, k, v, layout, np.float64)
    kinds = arithmetic(q.dtype, precision, forward_mode=forward_mode)
    by = kinds.operands
    with np.errstate(all="ignore"):
        pairs = reference._pairs(
            x, bias=bias, scale=scale, softcap=softcap, alibi_slopes=alibi_slopes, batch=_batch,
            **options,
        )  # fmt: skip
        a = a_p = abs(reference._scale(x, scale)) * (by.size(x.q) @ _transposed(by.size(x.k)))
        n_s = by.count(x.q.shape[-1], 8)
        slope = np.broadcast_to(reference._softcap_slope(x, scale, softcap), a.shape)
        slope_error = 0.0
        if softcap is not None:
            n_s += TANH + 2
            slope_error = by.pi(n_s) * a_p / softcap + (2 * TANH + 2) * u
        if bias is not None:
            a = a + np.abs(np.asarray(bias, np.float64))
        if alibi_slopes is not None:
            n_s += 4
            i, j = reference._positions(x, options.get("causal_offset"), options.get("kv_lengths"))
            slopes = np.abs(np.asarray(alibi_slopes, np.float64))[..., None, None]
            a = a + slopes * np.abs(i - j)
    sink = reference._sink_column(
        -np.inf * np.ones(x.q.shape[-3]) if sinks is None else sinks, pairs.s
    )
    a, a_p = (np.where(pairs.seen, size, 0) for size in (a, a_p))
    return Terms(x, pairs, a, a_p, n_s, slope, slope_error, sink, u, tiny, *kinds)


class Sums(NamedTuple):
    """The errors of sums over the keys, divided by the denominator."""

    tau_n: Any  # τ_N
    d_z: Any  # δZ
    m: Any  # M, (..., Hq, Lq, 1)
    r: float
    omega: float  # ω

    def quotient(self, error, value, u, by_rounding=0.0):
        """Of a sum with this error, divided by the computed denominator; by_rounding is V."""
        more = 1 + self.omega
        room = np.maximum(1 - self.omega - more * self.d_z, 0)[..., None]
        with np.errstate(divide="ignore", invalid="ignore"):
            off = by_rounding + more * (error + value * self.d_z[..., None])
            off = (1 + self.r * u) * off / room
        return off + self.r * u * value


def sums(t: Terms, p, lse, more_roundings=0) -> Sums:
    keys = t.x.k.shape[-2]
    has_sink = ~np.isneginf(t.sink)
    sink = np.where(has_sink, np.abs(t.sink), 0)
    m = np.maximum(t.a.max(axis=-1, initial=0, keepdims=True), sink)
    more = 5 * np.ceil(keys / KEYS_PER_BLOCK) + 6 * bool(has_sink.any()) + more_roundings
    shifted = 22 if t.weights.floor else 0
    weight = 4 * t.u * t.operands.mu * m + (EXP + shifted) * t.u  # E without S
    in_z = weight + gamma(keys + more, t.u)
    in_n = weight + t.weights.pi(t.weights.count(keys, more))
    tau, tau_n = (np.expm1(np.minimum(t.score_error() + rest, 700)) for rest in (in_z, in_n))
    d_z = (p * tau).sum(axis=-1) + t.tiny * (keys + 1)
    p_sink = np.exp(t.sink - np.where(np.isneginf(lse), 0, lse)[..., None])[..., 0]
    d_z = d_z + p_sink * np.expm1(np.minimum(gamma(4, t.u) * sink + in_z, 700))[..., 0]
    r = 3 + 2 * bool(has_sink.any()) + 2 * (t.pairs.dropout > 0)
    return Sums(tau_n, d_z, m, r, t.rounded_weights)


def attention_bound(q, k, v, *, layout="bhld", **options):
    """Bounds on the errors of out, lse and weights of `attention(q, k, v, ...)`."""
    t = terms(q, k, v, layout=layout, **options)
    exact = reference.attention(
        q, k, v, layout=layout, **options, return_lse=True, return_weights=True
    )
    one_head = t.x.one_head
    out = _one_head_axis(_swap(exact.out, layout))
    lse = exact.lse[None] if one_head else exact.lse
    p = _one_head_axis(exact.weights)

    s = sums(t, p, lse)
    out_bound = s.quotient(_error_of_mean(t, p, s.tau_n), np.abs(out), t.u, _rounding(t, p, out))
    with np.errstate(divide="ignore", invalid="ignore"):
        lse_bound = -np.log(np.maximum(1 - s.d_z, 0))
        lse_bound = lse_bound + 4 * t.u * (s.m[..., 0] + np.abs(lse)) + t.tiny
    empty = np.isneginf(lse)
    out_bound, lse_bound = np.where(empty[..., None], 0, out_bound), np.where(empty, 0, lse_bound)
    rho = _recomputed(t, lse, lse_bound)
    weights_bound = np.where(t.pairs.seen, p * rho + t.tiny, 0)
    weights_bound = np.where(t.pairs.seen, rounded(weights_bound, p, q.dtype), 0)
    out_bound = np.where(empty[..., None], 0, rounded(out_bound, out, q.dtype))
    if one_head:
        out_bound, lse_bound, weights_bound = out_bound[0], lse_bound[0], weights_bound[0]
    return AttentionResult(_swap(out_bound, layout), lse_bound, weights_bound)


def _error_of_mean(t, p, tau_n):
    """δN of the output."""
    magnitude, terms = t.weights.size(t.x.v), t.weights.count(t.x.k.shape[-2])
    least = t.tiny * (magnitude.sum(axis=-2, keepdims=True) + terms) / (1 - t.pairs.dropout)
    return t.kept(t.weights.size(p) * tau_n) @ magnitude + least


def _rounding(t, p, out):
    """V of the output."""
    if t.rounded_weights == 0:
        return 0.0
    total = p.sum(axis=-1, keepdims=True)
    squares = t.kept(p) @ t.x.v**2 / (1 - t.pairs.dropout) - out**2 * (2 - total)
    seen = t.pairs.seen.astype(np.float64)
    small = t.kept(seen) @ np.abs(t.x.v) + seen.sum(axis=-1, keepdims=True) * np.abs(out)
    return t.rounded_weights * np.sqrt(np.maximum(squares, 0) * total) + t.weights.floor * small


def attention_backward_bound(
    dout, q, k, v, out, lse, *, dlse=None, grads=("q", "k", "v"), layout="bhld", bias=None,
    scale=None, softcap=None, sinks=None, out_error=0.0, lse_error=0.0, **options,
):  # fmt: skip
    """Bounds on the errors of `attention_backward(dout, q, k, v, out, lse, ...)`.

    `out_error` and `lse_error` say how far `out` and `lse` may themselves be from the exact ones.
    """
    options |= {"layout": layout, "bias": bias, "scale": scale, "softcap": softcap, "sinks": sinks}
    t = terms(q, k, v, **options)
    x, u, tiny, seen, by, of_gradients = t.x, t.u, t.tiny, t.pairs.seen, t.operands, t.gradients
    value_dim = x.v.shape[-1]

    def to_heads(array):
        return _one_head_axis(_swap(np.asarray(array, np.float64), layout))

    d_out, own_out = to_heads(dout), to_heads(out)
    out_error = to_heads(np.broadcast_to(out_error, dout.shape))
    own_lse = np.asarray(lse, np.float64).reshape(own_out.shape[:-1])
    lse_error = np.broadcast_to(lse_error, np.shape(lse)).reshape(own_lse.shape)
    d_lse = np.zeros_like(own_lse)
    if dlse is not None:
        d_lse = np.asarray(dlse, np.float64).reshape(own_lse.shape)

    finite_lse = np.where(np.isneginf(own_lse), 0, own_lse)
    p = np.exp(t.pairs.s - finite_lse[..., None])
    rho = _recomputed(t, own_lse, lse_error)
    if t.rounded_weights == AT_ONCE:
        rho = rho + POLYNOMIAL * (1 + rho)

    magnitude = by.size(d_out)
    from_row = gamma(value_dim + 2, u) * ((magnitude * np.abs(own_out)).sum(axis=-1) + abs(d_lse))
    from_row = from_row + (magnitude * out_error).sum(axis=-1)
    delta = (d_out * own_out).sum(axis=-1) - d_lse
    d_p = t.kept(magnitude @ _transposed(by.size(x.v)))
    g = by.pi(by.count(value_dim, 3)) * d_p + from_row[..., None]
    exact = np.abs(t.kept(d_out @ _transposed(x.v)) - delta[..., None])
    eps = p * ((1 + rho) * (1 + 3 * u) * (exact + g) - exact) + tiny * (1 + exact)
    eps = np.where(seen, eps, 0)
    value = p * exact
    eps_s, value_s = eps, value
    if softcap is not None:  # what goes to dq and dk
        value_s = t.slope * value
        eps_s = (t.slope + t.slope_error) * (1 + u) * (value + eps) - value_s + tiny * seen

    factor = abs(reference._scale(x, scale))
    group = x.q.shape[-3] // max(np.shape(_swap(k, layout))[-3] if k.ndim >= 3 else 1, 1)
    batch = int(np.prod(seen.shape[:-3]))

    def summed(error, total, other, terms, factor=1.0):
        other = of_gradients.size(other)
        sums = of_gradients.left_size(total) @ other
        terms = of_gradients.count(terms)
        bound = factor * (error @ other + of_gradients.pi(terms + 5) * sums + terms * tiny)
        return bound + tiny * (1 + sums)  # the factor, or the product with it, may underflow

    queries, keys = seen.shape[-2:]
    d_q = summed(eps_s, value_s + eps_s, x.k, batch * keys, factor)
    n = batch * group * queries
    d_k = summed(_transposed(eps_s), _transposed(value_s + eps_s), x.q, n, factor)
    p_eps = np.where(seen, p * rho + tiny, 0)
    d_v = summed(_transposed(t.kept(p_eps)), _transposed(t.kept(p + p_eps)), d_out, n)

    def own(bound, of):
        shape = _swap(of, layout).shape
        return _swap(_sum_to(reference._sum_group(bound, shape), shape), layout)

    bounds = {"q": own(d_q, q), "k": own(d_k, k), "v": own(d_v, v)}
    if "bias" in grads:
        every = gamma(seen.size / max(bias.size, 1) + 5, u)
        bounds["bias"] = _sum_to(eps + every * (value + eps), bias.shape)
    if "sinks" in grads:
        has_sink = ~np.isneginf(t.sink[..., 0])
        size = np.where(has_sink, np.abs(t.sink[..., 0]), 0) + np.abs(finite_lse)
        rho = np.expm1(np.minimum(3 * u * size + lse_error + EXP * u, 700))
        p_sink = np.where(np.isneginf(own_lse), 0, np.exp(t.sink[..., 0] - finite_lse))
        error = p_sink * ((1 + rho) * (np.abs(delta) + from_row) - np.abs(delta)) + tiny
        total = p_sink * np.abs(delta) + error
        error = error + gamma(batch * queries + 5, u) * total
        bounds["sinks"] = _sum_to(np.where(has_sink, error, 0)[..., None], (seen.shape[-3], 1, 1))
        bounds["sinks"] = bounds["sinks"].reshape(-1)

    # The last rounding, to the input's own dtype.
    owners = {"q": q, "k": k, "v": v, "bias": bias, "sinks": sinks}
    last = [name for name in grads if name in ("bias", "sinks") or q.dtype.name in HALVES]
    if last:
        exact = reference.attention_backward(
            dout, q, k, v, out, lse, dlse=dlse, grads=last, **options
        )
        for name in last:
            value, dtype = getattr(exact, f"d{name}"), owners[name].dtype
            if dtype.name in HALVES:
                bounds[name] = rounded(bounds[name], value, dtype)
            else:
                last = unit_roundoff(dtype) * (abs(value) + bounds[name])
                bounds[name] = bounds[name] + last + np.finfo(dtype).smallest_subnormal / 2
    return AttentionGrads(*(bounds[n] if n in grads else None for n in owners))


def attention_jvp_bound(q, k, v, dq, dk, dv, *, layout="bhld", scale=None, **options):
    """Bounds on the errors of out and of its tangent."""
    options |= {"layout": layout, "scale": scale}
    t = terms(q, k, v, **options, forward_mode=True)
    d = _inputs(dq, dk, dv, layout, np.float64)
    exact = reference.attention(q, k, v, **options, return_lse=True, return_weights=True)
    p, lse = _one_head_axis(exact.weights), exact.lse[None] if t.x.one_head else exact.lse
    out = np.abs(_one_head_axis(_swap(exact.out, layout)))
    s, u = sums(t, p, lse, more_roundings=3), t.u
    out_bound = s.quotient(_error_of_mean(t, p, s.tau_n), out, u)

    size = np.abs(d.q) @ _transposed(np.abs(t.x.k)) + np.abs(t.x.q) @ _transposed(np.abs(d.k))
    size = abs(reference._scale(t.x, scale)) * np.where(t.pairs.seen, size, 0)
    n_t = t.n_s + t.x.q.shape[-1]  # sums of 2 D products
    error = (gamma(n_t, u) * (t.slope + t.slope_error) + t.slope_error) * size
    ds = t.slope * size
    moved = p * ((1 + s.tau_n) * (ds + error) - ds) + t.tiny * (1 + ds) * t.pairs.seen
    abs_v, abs_dv = np.abs(t.x.v), np.abs(d.v)
    least = t.tiny * ((abs_v + abs_dv).sum(axis=-2, keepdims=True) + t.x.k.shape[-2])
    d_u = t.kept(moved) @ abs_v + t.kept(p * s.tau_n) @ abs_dv
    d_u = d_u + least / (1 - t.pairs.dropout)
    size_u = t.kept(p * ds) @ abs_v + t.kept(p) @ abs_dv
    d_mean, mean = moved.sum(axis=-1)[..., None], (p * ds).sum(axis=-1)[..., None]
    d_mean = s.quotient(d_mean, mean, u)
    bound = s.quotient(d_u, size_u, u) + mean * out_bound + d_mean * (out + out_bound)
    bound = bound + 8 * u * (size_u + mean * out) + t.tiny
    exact_tangent = reference.attention_jvp(q, k, v, dq, dk, dv, **options)[1]
    empty = np.isneginf(lse)[..., None]
    results = []
    for b, x in ((out_bound, exact.out), (bound, exact_tangent)):
        b = np.where(empty, 0, rounded(b, _one_head_axis(_swap(x, layout)), q.dtype))
        results.append(_swap(b[0] if t.x.one_head else b, layout))
    return tuple(results)


def rope_bound(x, cos, sin, *, of=reference.rope, **options):
    """Bound on the error of `rope(x, None, cos=cos, sin=sin, ...)`, or `of` its backward pass."""
    wide = computed_in(x.dtype)
    u, tiny = unit_roundoff(wide), float(np.finfo(wide).tiny)
    magnitude = np.abs(np.asarray(x, np.float64))
    tables = {"cos": np.abs(cos), "sin": np.abs(sin)}
    # One half of a pair is a sum of magnitudes when it turns forwards, the other backwards.
    forward, backward = (
        f(magnitude, None, **tables, **options) for f in (reference.rope, reference.rope_backward)
    )
    bound = gamma(4, u) * np.maximum(forward, backward) + tiny
    return rounded(bound, of(x, None, cos=cos, sin=sin, **options), x.dtype)


def _recomputed(t, lse, lse_error):
    """ρ: the relative error of a weight that is computed from the lse."""
    finite = np.where(np.isneginf(lse), 0, np.abs(lse))
    e = t.score_error(1) + (3 * t.u * finite + lse_error)[..., None] + EXP * t.u
    return np.expm1(np.minimum(e, 700))  # no overflow: inf times a weight of 0 is NaN


def worst(actual, exact, bound, where="") -> float:
    """The largest error / bound. Where the bound is 0 or the exact value infinite: equality."""
    if actual is None or exact is None:
        assert actual is exact, f"{where}: {actual} instead of {exact}"
        return 0.0
    actual, exact, bound = np.asarray(actual), np.asarray(exact), np.asarray(bound)
    assert actual.shape == exact.shape, f"{where}: shape {actual.shape} instead of {exact.shape}"
    if actual.size == 0:
        return 0.0
    same = actual == exact
    wide = np.result_type(exact, np.float64)
    with np.errstate(all="ignore"):
        error = np.where(same, 0, np.abs(actual.astype(wide) - exact.astype(wide)))
        ratio = np.where(same, 0, error / bound).astype(np.float64)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    largest = float(ratio.max())
    if largest > 1:
        at = tuple(int(i) for i in np.unravel_index(ratio.argmax(), ratio.shape))
        raise AssertionError(
            f"{where}: error / bound = {largest:.4g} at {at}: {actual[at]} instead of "
            f"{exact[at]}, bound {bound[at] if bound.ndim else bound:.3g}; "
            f"{int((ratio > 1).sum())} of {ratio.size} elements are over"
        )
    return largest
