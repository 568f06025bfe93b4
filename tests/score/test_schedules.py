"""Schedules beside the SDEs, which tests/score/test_sde.py has."""

import math

import pytest
import torch

from qcsbm.runtime.errors import BadInput
from qcsbm.score.schedules import EDM, Discrete, RectifiedFlow, levels, parse
from qcsbm.score.sde import VE, VP

# Those of Ho et al. (2020), a thousand steps.
KEPT = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
DDPM = Discrete(KEPT.sqrt(), (1 - KEPT).sqrt())
TIMES = {
    EDM(): [0.002, 1.0, 80.0],
    RectifiedFlow(): [1e-4, 0.3, 0.999],
    DDPM: [0.0, 0.5, 1.0, 417.0, 998.9, 999.0],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("schedule", TIMES, ids=str)
def test_time_is_the_inverse_of_the_ratio_of_noise_and_data(schedule, dtype):
    t = torch.tensor(TIMES[schedule], dtype=dtype)
    sigma = schedule.sigma(t)
    torch.testing.assert_close(sigma, schedule.std(t) / schedule.mean(t))
    assert {value.dtype for value in (sigma, schedule.mean(t), schedule.time(sigma))} == {dtype}
    exact = dtype == torch.float64
    torch.testing.assert_close(
        schedule.time(sigma), t, rtol=1e-9 if exact else 1e-4, atol=1e-9 if exact else 1e-3
    )


def test_schedules_by_hand():
    t = torch.tensor([0.25, 0.5])
    assert EDM().mean(t).tolist() == [1, 1] and EDM().std(t).tolist() == [0.25, 0.5]
    assert RectifiedFlow().mean(t).tolist() == [0.75, 0.5]
    assert RectifiedFlow().std(t).tolist() == [0.25, 0.5]


def test_steps_have_what_the_tables_say_and_lie_on_a_line_in_squares_between():
    t = torch.tensor([0, 3, 999], dtype=torch.float64)
    torch.testing.assert_close(DDPM.mean(t), KEPT[t.long()].sqrt())
    torch.testing.assert_close(DDPM.std(t), (1 - KEPT[t.long()]).sqrt())
    between = torch.tensor([3.25, 998.5], dtype=torch.float64)
    expected = torch.stack([0.75 * KEPT[3] + 0.25 * KEPT[4], (KEPT[998] + KEPT[999]) / 2])
    torch.testing.assert_close(DDPM.mean(between), expected.sqrt())
    torch.testing.assert_close(DDPM.std(between), (1 - expected).sqrt())


def test_a_last_step_without_data_has_its_neighbours_below():
    kept = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)
    schedule = Discrete(kept.sqrt(), (1 - kept).sqrt())
    t = torch.tensor([0.0, 1.0, 1.9], dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.sigma(t)), t)
    assert schedule.mean(torch.tensor([2.0])) == 0


@pytest.mark.parametrize("schedule", [VE(0.3, 2.0), VP(), *TIMES], ids=str)
def test_levels_are_those_of_the_paper_as_far_as_the_schedule_goes(schedule):
    times = levels(schedule, 10)
    sigma = schedule.sigma(times)
    low, high = (0.3, 2.0) if isinstance(schedule, VE) else (0.01, 50.0)
    ratios = sigma[1:] / sigma[:-1]
    if schedule is DDPM:
        assert torch.equal(times, times.round())
        assert 0.01 <= sigma[0] < 0.011 and sigma[-1] == pytest.approx(50, rel=0.01)
        assert (ratios / (5000 ** (1 / 9)) - 1).abs().max() < 0.1
        return
    expected = torch.tensor([low, high], dtype=torch.float64)
    torch.testing.assert_close(sigma[[0, -1]], expected)
    torch.testing.assert_close(ratios, torch.full_like(ratios, (high / low) ** (1 / 9)))


@pytest.mark.parametrize("t", [-1.0, 999.1, math.nan])
def test_times_beyond_the_steps_are_refused(t):
    for function in (DDPM.mean, DDPM.std, DDPM.sigma):
        with pytest.raises(BadInput, match=f"time: found 5, {t:.4g}, expected 0 to 999"):
            function(torch.tensor([5.0, t]))


@pytest.mark.parametrize("sigma", [0.009, 160.0, math.nan])
def test_noise_that_no_step_has_is_refused(sigma):
    with pytest.raises(BadInput, match=r"noise level: found .*, expected 0.01 to 157.4, as the"):
        DDPM.time(torch.tensor([sigma]))


def test_tables_that_are_none_are_refused():
    with pytest.raises(BadInput, match=r"found α of shape \(3,\) and σ of shape \(2,\)"):
        Discrete(torch.ones(3), torch.ones(2))
    with pytest.raises(BadInput, match="expected two rows"):
        Discrete(torch.ones(1), torch.ones(1))
    with pytest.raises(BadInput, match="found σ / α that does not grow"):
        Discrete(torch.ones(3), torch.tensor([0.1, 0.3, 0.2]))


def test_schedules_are_named_with_their_settings():
    assert parse("ve") == VE() and parse("edm") == EDM() and parse("vp:beta_max=3") == VP(0.1, 3.0)
    assert parse("ve:sigma_min=0.02,sigma_max=1e2") == VE(0.02, 100.0)
    assert parse("rectified_flow") == RectifiedFlow()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cosine", "schedule: found 'cosine', expected one of ve, vp, edm, rectified_flow"),
        (
            "ve:sigma=1",
            "schedule: found 'sigma=1' for ve, expected a positive number for sigma_min",
        ),
        ("edm:sigma_max=-1", "schedule: found 'sigma_max=-1' for edm, expected a positive number"),
        (
            "edm:sigma_max=inf",
            "schedule: found 'sigma_max=inf' for edm, expected a positive number",
        ),
        ("vp:beta_max", "schedule: found 'beta_max' for vp, expected a positive number for beta"),
        (
            "rectified_flow:a=1",
            "schedule: found 'a=1' for rectified_flow, expected a positive numb",
        ),
    ],
)
def test_names_of_no_schedule_are_refused(text, sentence):
    with pytest.raises(BadInput) as refusal:
        parse(text)
    assert str(refusal.value).startswith(sentence)
