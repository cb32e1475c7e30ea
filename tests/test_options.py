"""Every option alone and in random company: within the error bound of the exact results."""

import pytest
from cases import Case, check_backward, check_forward, check_tangent
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("isa")


def check(case, dtype, record):
    for one in (check_forward, check_backward, check_tangent):
        one(case, dtype, record)


# Around vectors, register tiles, blocks of 64, 128 and 256 keys and of 48 and 96 queries.
LENGTHS = [(5, 17), (47, 65), (49, 63), (97, 129), (3, 260), (200, 9)]
OPTIONS = {
    "nothing": {},
    "window": {"window": (20, 11)},
    "window to the left": {"window": (9, None)},
    "window to the right": {"window": (-1, 0), "causal_offset": None},
    "window and causal": {"causal": True, "window": (33, 5)},
    "softcap": {"softcap": 1.5},
    "loose softcap": {"softcap": 50.0, "spread": 4.0},
    "saturated softcap": {"softcap": 0.1, "spread": 4.0},
    "alibi": {"alibi": "head"},
    "alibi of entries": {"alibi": "entry", "causal": True},
    "sinks": {"sinks": True},
    "lengths": {"lengths": True},
    "lengths and causal": {"lengths": True, "causal": True},
    "dropout": {"dropout": 0.3},
    "most dropped": {"dropout": 0.95},
    "offsets": {"offsets": True, "causal": True},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_alone(any_dtype, record, name):
    for i, (lq, lk) in enumerate(LENGTHS):
        options = {"batch": (2,), "hq": 2, "hkv": 1, **OPTIONS[name]}
        check(Case(lq, lk, 7 + 4 * i, 17 - 2 * i, seed=i, **options), any_dtype, record)


@st.composite
def random_cases(draw):
    """Any options together, planes in any broadcast shape."""
    hkv = draw(st.integers(1, 3))
    hq = hkv * draw(st.integers(1, 3))
    lq, lk = draw(st.integers(0, 50)), draw(st.integers(0, 70))
    batch = tuple(draw(st.lists(st.integers(1, 2), max_size=2)))
    full = (*batch, hq, lq, lk)

    def sometimes(strategy):
        return draw(strategy) if draw(st.integers(0, 2)) == 0 else None

    def plane():
        if draw(st.booleans()):
            return None
        shape = full[draw(st.integers(0, len(full))) :]
        return tuple(draw(st.sampled_from([1, n])) for n in shape)

    side = st.sampled_from([None, -1, 0, 1, 5, 40])
    causal, window = draw(st.booleans()), sometimes(st.tuples(side, side))
    alibi = sometimes(st.sampled_from(["head", "entry"]))
    return Case(
        lq, lk, draw(st.integers(1, 40)), draw(st.integers(1, 40)), hq, hkv, batch,
        causal=causal,
        causal_offset=draw(st.none() | st.integers(-60, 60)) if causal else None,
        mask=plane(), bias=plane(),
        scale=draw(st.none() | st.floats(-2, 2, width=32)),
        layout=draw(st.sampled_from(["bhld", "blhd"])),
        spread=draw(st.sampled_from([0.1, 1.0, 5.0])),
        seed=draw(st.integers(0, 100)),
        window=window,
        softcap=sometimes(st.sampled_from([0.3, 2.0, 30.0])),
        alibi=alibi,
        sinks=draw(st.booleans()),
        lengths=draw(st.booleans()),
        offsets=draw(st.booleans()) and bool(causal or alibi or (window and max(
            -1 if side is None else side for side in window) >= 0)),
        dropout=draw(st.sampled_from([0.0, 0.0, 0.2, 0.7])),
        parameters=draw(st.sampled_from([None, "float32"])),
        precision=draw(st.sampled_from(["highest", "high", "medium"])),
    )  # fmt: skip


def test_random_company(any_dtype, isa):
    @settings(max_examples=80)
    @given(random_cases())
    def run(case):
        check(case, any_dtype, lambda *_: None)

    run()
