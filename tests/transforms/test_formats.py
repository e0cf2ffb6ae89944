"""State in fewer bits: what encoding keeps, how far off it is, and what it must never do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from linkax.transforms._formats import Blocks, axis_of, block_scales, decode, encode, fits
from linkax.transforms._rounding import seed_of

CODED = ("float8", "int8", "int4")
FORMATS = ("bfloat16", *CODED)
SHAPE = (80, 96)
MANY = 1 << 14
SIGMAS = 4.9  # an ideal source of noise breaks such a bound once in a million times; the seeds are fixed

# The levels lie at most so far apart, relative to the upper one, as long as a number is at least this share of its
# scale: for powers of codes p/c at code c, for floats with b bits of mantissa 2⁻ᵇ.
APART = {
    ("bfloat16", False): (2**-7, 0.0),
    ("bfloat16", True): (2**-7, 0.0),
    ("float8", False): (2**-3, 2**-14),
    ("float8", True): (2**-3, 2**-31),
    ("int8", False): (4 / 50, (50 / 127) ** 4),
    ("int8", True): (4 / 50, (50 / 256) ** 4),
    ("int4", False): (1 / 2, 2**-6),
    ("int4", True): (1 / 2, 2**-15),
}
CASES = pytest.mark.parametrize(("format", "positive"), APART)


def moments(positive: bool, seed: int = 0, shape=SHAPE, decades: float = 3.0) -> np.ndarray:
    """Numbers of several orders of magnitude, none of them zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 10 ** rng.uniform(-decades, 0, shape)
    return (x * x if positive else x).astype(np.float32)


def round_trip(format, x, positive, **kwargs) -> np.ndarray:
    return np.asarray(decode(format, encode(format, x, positive=positive, **kwargs), positive=positive), np.float64)


def scales_of(kept, shape) -> np.ndarray:
    return np.broadcast_to(np.asarray(kept.scales, np.float64), shape)


@CASES
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_error_is_less_than_the_distance_of_the_levels(format, positive, rounding):
    x = moments(positive)
    kept = encode(format, x, positive=positive, rounding=rounding, seed=seed_of(0, 1))
    apart, least = APART[format, positive]
    scale = 0.0 if format == "bfloat16" else scales_of(kept, SHAPE)
    error = np.abs(decode(format, kept, positive=positive) - x.astype(np.float64))
    allowed = apart / (1 - apart) if rounding == "stochastic" else apart / (1 - apart) / 2
    counts = np.abs(x) >= least * scale
    assert np.mean(counts) > 0.1
    assert np.max((error / np.abs(x))[counts]) <= allowed * (1 + 1e-6)  # the levels themselves are rounded in float32


@CASES
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_what_does_not_change_keeps_its_codes(format, positive, rounding):
    kept = encode(format, moments(positive, decades=8.0), positive=positive, rounding=rounding, seed=seed_of(0, 0))
    for step in range(1, 20):
        x = decode(format, kept, positive=positive)
        again = encode(format, x, positive=positive, rounding=rounding, seed=seed_of(0, step), before=kept)
        for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(kept)):
            np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))


@CASES
def test_stochastic_rounding_has_the_number_as_mean(format, positive):
    x = moments(positive, shape=(2, 80), decades=1.0)
    if positive:
        x = np.maximum(x, 1e-3 * x.max())  # above int4's lowest level, under which nothing goes

    def one(step):
        kept = encode(format, x, positive=positive, seed=seed_of(3, step))
        return decode(format, kept, positive=positive)

    made = np.asarray(jax.jit(jax.vmap(one))(jnp.arange(MANY)), np.float64)
    low, high = made.min(axis=0), made.max(axis=0)
    assert np.all((low <= x * (1 + 1e-6 * np.sign(x))) & (x * (1 - 1e-6 * np.sign(x)) <= high))  # float32's rounding
    bound = SIGMAS * np.std(made, axis=0) / np.sqrt(MANY) + 1e-6 * np.abs(x)  # the levels are rounded in float32
    np.testing.assert_array_less(np.abs(made.mean(axis=0) - x), bound)
    assert np.all((made == low) | (made == high))  # none but the two neighbours


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_an_average_follows_a_changed_input_if_rounded_stochastically(format, decay):
    # Averages of squares around 1, whose inputs fall to 1/4: after 4 time constants they should have come down by 98 %.
    steps = round(4 / (1 - decay))
    # Equal numbers are rounded alike. So that the mean of many says something, they differ.
    start = np.random.default_rng(0).uniform(0.9, 1.1, (8, 128)).astype(np.float32)
    inputs = 0.25 * start
    inputs[:, 0] = start[:, 0] = 1.1  # keeps the scale

    def last(rounding):
        def step(kept, count):
            old = decode(format, kept, positive=True)
            new = decay * old + (1 - decay) * inputs
            return encode(format, new, positive=True, rounding=rounding, seed=seed_of(0, count), before=kept), None

        kept = encode(format, start, positive=True, rounding="nearest")
        kept, _ = jax.lax.scan(step, kept, jnp.arange(steps))
        return float(np.mean(decode(format, kept, positive=True)[:, 1:]))

    expected = 0.25 + 0.75 * decay**steps  # starts and inputs have a mean of 1 and of 1/4
    # Each of 1,016 averages scatters by less than half around its mean: the mean of all by 2 %, times SIGMAS.
    assert abs(last("stochastic") - expected) <= 0.1 * expected
    if decay == 0.999 or format == "int4":
        assert last("nearest") > 0.9  # has hardly moved


@pytest.mark.parametrize("format", CODED)
@given(
    npst.arrays(
        np.float32, SHAPE, elements=st.floats(0, 2.0**60, width=32, allow_subnormal=False), fill=st.just(np.float32(0))
    ),
    st.sampled_from(["nearest", "stochastic"]),
)
def test_nothing_positive_becomes_zero_or_negative(format, x, rounding):
    kept = encode(format, x, positive=True, rounding=rounding, seed=seed_of(0, 0))
    made = np.asarray(decode(format, kept, positive=True))
    # Below 2⁻⁹⁰ the lowest level itself may be a subnormal number, which devices round to zero.
    assert np.all(made >= 0)
    assert np.all(made[x > 2.0**-90] > 0)
    assert np.all(made <= scales_of(kept, SHAPE))


@pytest.mark.parametrize("format", CODED)
def test_an_element_that_never_had_a_gradient_does_no_harm(format):
    m, v = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    m[1:, 1:], v[1:, 1:] = 0.1, 0.01
    made_m = round_trip(format, m, False, seed=seed_of(0, 0))
    made_v = round_trip(format, v, True, seed=seed_of(0, 0))
    np.testing.assert_array_equal(made_m[m == 0], 0)  # zero has a code of its own where there is a sign
    np.testing.assert_array_equal((made_m / (np.sqrt(made_v) + 1e-8))[m == 0], 0)
    np.testing.assert_array_equal(round_trip(format, np.zeros(SHAPE, np.float32), True, rounding="nearest"), 0)
    np.testing.assert_array_equal(round_trip(format, np.zeros(SHAPE, np.float32), False, rounding="nearest"), 0)


@pytest.mark.parametrize("format", CODED)
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_an_overflow_makes_its_block_nan_and_no_other(format, positive, bad):
    x = np.abs(moments(positive))
    x[5, 7] = bad
    made = round_trip(format, x, positive, seed=seed_of(0, 0))
    shows = np.zeros(SHAPE, bool)
    shows[:, 7] = True  # 80 rows are shorter than 96 columns, so a block is a column
    np.testing.assert_array_equal(np.isnan(made), shows)


@pytest.mark.parametrize("format", CODED)
@pytest.mark.parametrize("size", [2.0**126, 2.0**-100, 3.7e-30, 1e30])
def test_large_and_small_blocks(format, size):
    x = np.float32(size) * np.linspace(0.75, 1, 96, dtype=np.float32) * np.ones((80, 1), np.float32)
    for positive in (False, True):
        made = round_trip(format, x, positive, rounding="nearest")
        np.testing.assert_allclose(
            made, x, rtol=0.2
        )  # int8's and float8's levels are closer, and int4's limit is below


@pytest.mark.parametrize(
    ("format", "most"),
    [("bfloat16", 4.05), ("float8", 2.1), ("int8", 2.1), ("int4", 1.15)],
)
@pytest.mark.parametrize("shape", [(1024, 1024), (1000, 80), (50257, 768), (12, 64, 768), (3, 3, 64, 128)])
def test_bytes_of_both_moments_a_parameter(format, most, shape):
    def bits(x):
        return x.size * (4 if x.dtype == jnp.int4 else 8 * x.dtype.itemsize)

    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    kept = jax.eval_shape(
        lambda x: [encode(format, x, positive=positive, rounding="nearest") for positive in (False, True)], leaf
    )
    assert sum(map(bits, jax.tree.leaves(kept))) / 8 / leaf.size <= most


@pytest.mark.parametrize("shape", [(), (5,), (1000,), (79, 79), (0, 96), (96, 0)])
def test_shapes_that_do_not_fit(shape):
    assert fits("bfloat16", shape)
    for format in CODED:
        assert not fits(format, shape)
        with pytest.raises(ValueError, match="encode: x must have two axes or more, one of them of at least 80"):
            encode(format, jnp.zeros(shape), positive=False, rounding="nearest")


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((50257, 768), (50257, 1)),  # one word's embedding
        ((768, 50257), (1, 50257)),
        ((768, 768), (1, 768)),
        ((768, 12, 64), (1, 12, 64)),
        ((768, 12, 128), (768, 12, 1)),
        ((12, 768, 3072), (12, 1, 3072)),  # twelve layers
        ((96, 5, 5), (1, 5, 5)),
    ],
)
@pytest.mark.parametrize("format", CODED)
def test_the_axis_of_the_blocks(format, shape, scales):
    assert fits(format, shape)
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    kept = jax.eval_shape(lambda x: encode(format, x, positive=False, rounding="nearest"), leaf)
    assert isinstance(kept, Blocks)
    assert (kept.codes.shape, kept.scales.shape, kept.scales.dtype) == (shape, scales, jnp.float32)
    assert jax.eval_shape(lambda kept: decode(format, kept, positive=False), kept) == leaf


def test_blocks_stay_along_the_axis_that_they_had():
    x = moments(False)
    rows = Blocks(jnp.zeros(SHAPE, jnp.int8), jnp.zeros((80, 1)))
    kept = encode("int8", x, positive=False, rounding="nearest", before=rows)
    assert isinstance(kept, Blocks)
    assert kept.scales.shape == (80, 1)
    np.testing.assert_array_equal(kept.scales[:, 0], np.abs(x).max(axis=1))


@CASES
def test_scales_may_come_from_elsewhere(format, positive):
    x = moments(positive)
    given_scales = {}
    if format != "bfloat16":
        axis = axis_of(encode(format, x, positive=positive, rounding="nearest"))
        others = block_scales([x, 2 * x], axis)  # found together, they are what each is alone
        given_scales["scales"] = others[0]
        np.testing.assert_array_equal(others[1], 2 * others[0])
    one, other = (round_trip(format, x, positive, seed=seed_of(0, 0), **kwargs) for kwargs in (given_scales, {}))
    np.testing.assert_array_equal(one, other)


@CASES
def test_jitted_mapped_and_of_wider_dtype(format, positive):
    x = moments(positive)

    def trip(x):
        return decode(format, encode(format, x, positive=positive, seed=seed_of(0, 0)), positive=positive)

    expected = np.asarray(trip(x))
    np.testing.assert_array_equal(jax.jit(trip)(x), expected)
    np.testing.assert_array_equal(jax.vmap(trip)(np.stack([x, x]))[1], expected)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(trip(jnp.asarray(x, jnp.float64)), expected)


@pytest.mark.parametrize(("argument", "given_value"), [("format", "float16"), ("rounding", "up")])
def test_refused(argument, given_value):
    arguments = {"format": "int8", "rounding": "nearest", argument: given_value}
    with pytest.raises(ValueError, match=f"encode: {argument} must be one of .*, got '{given_value}'"):
        encode(arguments["format"], jnp.ones(SHAPE), positive=False, rounding=arguments["rounding"])
