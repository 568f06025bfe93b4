"""Properties that hold for any input, on inputs that Hypothesis makes up."""

import itertools
import math
import re
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from qcsbm.conservativeness.asymmetry import (
    ESTIMATORS,
    antisymmetric_estimate,
    exact_asymmetry,
    qc_loss,
    trace_estimate,
)
from qcsbm.conservativeness.products import vjp_jvp
from qcsbm.data.quantisation import dequantise, quantise, to_unit
from qcsbm.experiment.config import load
from qcsbm.report.tables import format_value
from qcsbm.runtime.seeding import derive, generator
from qcsbm.training.loop import BatchOrder

modestly = settings(max_examples=60, deadline=None, derandomize=True)

CONFIG = Path(__file__).parents[2] / "config/ci.yaml"


# --- configuration ---

fractions = st.floats(0, 1, exclude_max=True)
counts = st.integers(1, 10**6)
networks = st.fixed_dictionaries(
    {
        "type": st.just("ncsnpp"),
        "nf": counts,
        # Images of 8 × 8 pixels can be halved three times, and have 8 pixels at the first level.
        "ch_mult": st.lists(counts, min_size=1, max_size=4),
        "num_res_blocks": counts,
        "attn_resolutions": st.lists(st.just(8), max_size=3),
        "dropout": fractions,
        "fir": st.booleans(),
        "resblock": st.sampled_from(["biggan", "ddpm"]),
        "progressive": st.sampled_from(["none", "output_skip"]),
        "fourier_scale": st.floats(0, exclude_min=True, allow_infinity=False),
        "init_scale": st.floats(0, allow_infinity=False),
    }
)
ends = st.lists(
    st.floats(0, exclude_min=True, allow_infinity=False), min_size=2, max_size=2, unique=True
).map(sorted)
sdes = st.builds(
    lambda names, values: {
        "type": names[0],
        f"{names[1]}_min": values[0],
        f"{names[1]}_max": values[1],
    },
    st.sampled_from([("ve", "sigma"), ("vp", "beta")]),
    ends,
)
labels = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="|"), min_size=1)
regularisers = st.fixed_dictionaries(
    {
        "weight": st.floats(0, allow_infinity=False),
        "probes": counts,
        "estimator": st.sampled_from(["trace", "antisymmetric"]),
        "batch_size": st.none() | st.integers(1, 16),
    }
) | st.fixed_dictionaries(
    {
        "weight": st.floats(0, allow_infinity=False),
        "estimator": st.just("antisymmetric"),
        "derivatives": st.just("finite_differences"),
    },
    optional={"difference_step": st.floats(0, exclude_min=True, allow_infinity=False)},
)


def document(experiment):
    """An experiment file that says of every cell all that the experiment does."""
    datasets = {
        name: dataset.model_dump()
        | {"methods": {m: experiment.cells[name, m].model_dump() for m in experiment.methods}}
        for name, dataset in experiment.datasets.items()
    }
    return {
        "tier": experiment.tier,
        "seeds": experiment.seeds["digits"],
        "datasets": datasets,
        "methods": {method: {} for method in experiment.methods},
        "tables": {name: table.model_dump() for name, table in experiment.tables.items()},
        "toy": experiment.toy.model_dump(),
    }


@settings(modestly, max_examples=30)
@given(networks, sdes, regularisers, labels, st.lists(st.integers(0), min_size=1, unique=True))
def test_experiment_comes_back_from_the_file_that_it_is_written_to(network, sde, row, label, seeds):
    config = yaml.safe_load(CONFIG.read_text())
    config["seeds"] = seeds
    config["datasets"]["digits"] |= {"network": network, "sde": sde}
    config["methods"]["qc"] |= {"regulariser": row, "label": label}
    experiment = load(config, "x")
    assert experiment.cells["digits", "qc"].regulariser.weight == row["weight"]
    assert experiment.cells["digits", "u"].network.nf == network["nf"]
    assert experiment.cells["digits", "u"].sde.model_dump() == sde
    text = yaml.safe_dump(document(experiment), sort_keys=False)
    assert load(yaml.safe_load(text), "y") == experiment


# --- random streams ---

words = st.integers() | st.text()
addresses = st.tuples(st.integers(), st.lists(words, max_size=4)).map(lambda a: (a[0], *a[1]))
TRICKY = [
    (0, "a", 1),
    (0, "a1"),
    (0, "a", "1"),
    (0, 1),
    (0, "1"),
    (0, 1, 1),
    (0, 11),
    (0,),
    (0, ""),
    (0, "", ""),
    (0, 'a", "1'),
    (0, "a, 1"),
    (0, "[0]"),
    (0, -1),
    (0, "é"),
    (0, "e\u0301"),
]


@modestly
@given(st.lists(addresses, unique=True, max_size=20))
@example(TRICKY)
def test_different_addresses_have_different_streams(different):
    # Among 20 addresses, Pr[two 63-bit seeds coincide by chance] < 2⁸ / 2⁶³.
    assert len({derive(*address) for address in different}) == len(set(different))


# --- numbers in tables ---

NUMBER = r"-?\d+(?:\.\d+)?"
TABLE_TEXT = rf"\(?({NUMBER})(?: ± ({NUMBER}))?\)?(?:e(-?\d+))?"
# Errors are more often of the order of the number, and numbers just below a power of ten.
anything = st.floats(allow_nan=False, allow_infinity=False)
below_powers = st.builds(
    lambda sign, nines, power: float(f"{sign}9.{'9' * nines}6e{power}"),
    st.sampled_from(["", "-"]),
    st.integers(0, 6),
    st.integers(-12, 12),
)
means = anything | st.floats(-1e5, 1e5) | below_powers
relative_errors = st.floats(1e-9, 1e3) | st.just(0.996) | st.just(0.0996)
errors = st.none() | st.just(0.0) | st.floats(0, 1e308)


def read_back(text):
    """Value, error (None without one), their unit in the last place, and the power of ten."""
    match = re.fullmatch(TABLE_TEXT, text)
    assert match, text
    value, error, exponent = match.groups()
    assert text.startswith("(") == text.partition("e")[0].endswith(")") == bool(error and exponent)
    value, error = Decimal(value), error and Decimal(error)
    assert error is None or error.as_tuple().exponent == value.as_tuple().exponent
    power = Decimal(f"1e{exponent or 0}")
    unit = Decimal((0, (1,), value.as_tuple().exponent))
    return value, error, unit, power, exponent


def assert_rounded(shown, number, unit):
    """``shown`` is the multiple of ``unit`` that is nearest to ``number``, exactly."""
    assert shown % unit == 0
    assert abs(shown - Decimal(number)) <= unit / 2


@modestly
@given(means, errors | st.tuples(relative_errors))
@example(9.996e-4, None)
@example(9.996e-4, 1e-5)
@example(-9999.6, None)
@example(99.96, 0.0)
@example(9999.7, (0.996e-4,))
@example(9.9996e7, 0.95e4)
@example(0.996, 0.0996)
@example(-1e-5, 0.5)
@example(-0.0, None)
@example(5e-324, 1.7e308)
@example(1.7e308, 5e-324)
def test_number_in_a_table_reads_back_as_the_value_rounded_to_what_is_printed(mean, stderr):
    if isinstance(stderr, tuple):
        stderr = abs(mean) * stderr[0]
    assume(stderr is None or stderr < 1e308)
    text = format_value(mean, stderr)
    with localcontext(prec=2000):
        value, error, unit, power, exponent = read_back(text)
        assert_rounded(value * power, mean, unit * power)
        assert not (value == 0 and value.is_signed())
        # Of an error that leaves no digit of the number, the power of ten is that of the error.
        leading = value or error or value
        if exponent:
            assert 1 <= abs(leading) < 10
            assert not -3 <= int(exponent) < 4
        else:
            assert leading == 0 or Decimal("1e-3") <= abs(leading) < 10_000
        if not stderr:
            assert error is None
            digits = value.as_tuple().digits
            assert len(digits) == 3 or mean == value or (len(digits) == 4 and unit == 1)
        else:
            assert_rounded(error * power, stderr, unit * power)
            # One or two digits, two if the first is a 1; all digits of units and more.
            digits = error.as_tuple().digits
            assert len(digits) == 1 + (digits[0] == 1) or (unit == 1 and not exponent)


# --- levels ---


@modestly
@given(st.integers(2, 256), st.integers(0, 2**32))
def test_every_level_of_any_number_of_levels_round_trips(levels, seed):
    k = torch.arange(levels, dtype=torch.uint8).expand(64, levels)
    x = dequantise(k, levels, generator(seed))
    assert torch.equal(quantise(x, levels, dequantised=True), k)
    assert ((x > 0) & (x < 1)).all()
    assert torch.equal(quantise(to_unit(k, levels), levels, dequantised=False), k)


# --- estimators of L_QC ---

DTYPES = {torch.float32: 1e-4, torch.float64: 1e-12}  # ≥ 100 roundings of numbers of order 10
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(lambda s: math.prod(s) <= 6)


class LinearField:
    """s = Mx on samples of any ``shape``; J is M everywhere."""

    def __init__(self, shape, batch, dtype, seed):
        draws = generator(seed)
        d = math.prod(shape)
        self.m = torch.randn(d, d, generator=draws, dtype=torch.float64).to(dtype)
        self.x = torch.randn(batch, *shape, generator=draws, dtype=torch.float64).to(dtype)
        self.x.requires_grad_()
        self.v = torch.randint(0, 2, self.x.shape, generator=draws).mul(2).sub(1).to(dtype)

    def __call__(self, x, t=None):
        return (x.flatten(1) @ self.m.T).reshape(x.shape)


fields = st.builds(
    LinearField, shapes, st.integers(1, 3), st.sampled_from(list(DTYPES)), st.integers(0, 2**32)
)


@modestly
@given(fields)
def test_estimates_of_one_probe_differ_by_a_product_with_the_symmetric_part(field):
    jt_v, j_v = vjp_jvp(field(field.x), field.x, field.v)
    antisymmetric, trace = antisymmetric_estimate(jt_v, j_v), trace_estimate(jt_v, j_v)
    assert (antisymmetric >= 0).all() and antisymmetric.shape == (len(field.x),)
    v, m = field.v.flatten(1), field.m
    difference = ((v @ (m + m.T) / 2) * (v @ (m - m.T).T)).sum(1)
    tolerance = DTYPES[field.m.dtype]
    torch.testing.assert_close(
        trace, antisymmetric - difference, rtol=tolerance, atol=10 * tolerance
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
@modestly
@given(fields)
def test_mean_over_all_sign_vectors_is_the_exact_asymmetry(estimator, field):
    d = len(field.m)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=d)), dtype=field.m.dtype)
    probes = signs[:, None].expand(-1, len(field.x), -1).reshape(-1, *field.x.shape)
    mean = qc_loss(field(field.x), field.x, probes, estimator)
    exact, _ = exact_asymmetry(field, field.x, torch.ones(len(field.x)))
    tolerance = DTYPES[field.m.dtype]
    torch.testing.assert_close(mean, exact, rtol=tolerance, atol=10 * tolerance)
    a = field.m - field.m.T
    expected = (a.square().sum() / 2).expand(len(field.x))
    torch.testing.assert_close(exact, expected, rtol=tolerance, atol=10 * tolerance)


# --- the order of batches ---


@modestly
@given(st.integers(1, 40), st.integers(1, 90), st.integers(0), st.randoms())
def test_every_epoch_has_every_image_once_in_whatever_order_batches_are_asked_for(
    n, batch_size, seed, random
):
    steps = list(range(1, math.ceil(3 * n / batch_size) + 1))
    random.shuffle(steps)
    order = BatchOrder(n, batch_size, seed)
    batches = {step: order(step) for step in steps}
    assert all(len(batch) == batch_size for batch in batches.values())
    positions = np.concatenate([batches[step] for step in sorted(batches)])
    for epoch in range(3):
        assert sorted(positions[epoch * n : (epoch + 1) * n]) == list(range(n))
