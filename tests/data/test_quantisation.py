import pytest
import torch

from qcsbm.data.quantisation import (
    bits_per_dim_offset,
    dequantise,
    quantise,
    require_dequantised,
    to_unit,
)
from qcsbm.runtime.errors import Diverged
from qcsbm.runtime.seeding import generator


@pytest.mark.parametrize("levels", [17, 256])
def test_grid_points_round_trip_at_every_level(levels):
    k = torch.arange(levels, dtype=torch.uint8)
    x = to_unit(k, levels)
    assert x.dtype == torch.float32
    assert x[0] == 0 and x[-1] == 1
    assert torch.equal(quantise(x, levels, dequantised=False), k)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantised_data_round_trip_at_every_level(levels):
    k = torch.arange(levels, dtype=torch.uint8).expand(20_000, levels)
    x = dequantise(k, levels, generator(0))
    assert x.dtype == torch.float32
    assert torch.equal(quantise(x, levels, dequantised=True), k)


@pytest.mark.parametrize("levels", [17, 256])
def test_largest_dequantised_value_stays_below_one(levels):
    # 2**15 values of u: of 2**19 draws all but a share e**-16 of them are seen, the last included.
    x = dequantise(torch.full((2**19,), levels - 1), levels, generator(0))
    largest = torch.tensor((levels - 2**-16) / levels)
    assert x.max() == largest < 1
    assert (quantise(x, levels, dequantised=True) == levels - 1).all()


def test_dequantisation_noise_is_uniform():
    n = 100_000
    u = dequantise(torch.zeros(n, dtype=torch.long), 1, generator(0)).double()
    # Moments of U(0, 1): E u^m = 1 / (m + 1), Var u^m = 1 / (2m + 1) - 1 / (m + 1)^2.
    for m in (1, 2, 3):
        standard_error = ((1 / (2 * m + 1) - 1 / (m + 1) ** 2) / n) ** 0.5
        assert abs(u.pow(m).mean() - 1 / (m + 1)) < 4 * standard_error


def test_same_seed_dequantises_to_the_same_bytes():
    k = torch.arange(256)
    assert torch.equal(dequantise(k, 256, generator(3)), dequantise(k, 256, generator(3)))
    assert not torch.equal(dequantise(k, 256, generator(3)), dequantise(k, 256, generator(4)))


def test_quantise_clips_and_follows_the_model_s_data():
    x = torch.tensor([-0.3, 0.49, 0.51, 0.99, 1.0, 1.7])
    assert quantise(x, 3, dequantised=False).tolist() == [0, 1, 1, 2, 2, 2]
    assert quantise(x, 3, dequantised=True).tolist() == [0, 1, 1, 2, 2, 2]
    assert quantise(torch.tensor([0.3, 0.7]), 3, dequantised=False).tolist() == [1, 1]
    assert quantise(torch.tensor([0.3, 0.7]), 3, dequantised=True).tolist() == [0, 2]
    assert quantise(x, 256, dequantised=True).dtype == torch.uint8


def test_quantise_refuses_a_value_that_is_not_finite():
    with pytest.raises(Diverged, match="not finite"):
        quantise(torch.tensor([0.5, float("nan")]), 256, dequantised=False)


def test_offset_is_log2_of_the_number_of_levels():
    assert bits_per_dim_offset(256) == 8
    assert 2 ** bits_per_dim_offset(17) == pytest.approx(17, rel=1e-14)


@pytest.mark.parametrize("levels", [17, 256])
def test_data_on_a_grid_are_refused(levels):
    k = torch.randint(0, levels - 1, (4, 64), generator=generator(0))
    x = dequantise(k, levels, generator(1))
    require_dequantised(x, levels)
    for on_grid in (to_unit(k, levels), to_unit(k, levels).double(), k / levels):
        one_of_the_batch = torch.cat([x[:2].to(on_grid), on_grid[2:3]])
        with pytest.raises(ValueError, match="sample 2 on the grid"):
            require_dequantised(one_of_the_batch, levels)


@pytest.mark.parametrize("value", [-1e-3, 1.0, float("nan")])
def test_data_outside_the_unit_interval_are_refused(value):
    x = torch.full((2, 4), 0.3)
    x[1, 2] = value
    with pytest.raises(ValueError, match=r"expected dequantised data in \[0, 1\)"):
        require_dequantised(x, 256)
