"""What is no field to audit is refused in one sentence, before any work."""

import math
import re

import pytest
import torch
from fields import linear, matrix, points
from torch import nn

import qcsbm
from qcsbm.auditing.checks import scale_warnings
from qcsbm.runtime.errors import BadInput


class Needy(nn.Module):
    def forward(self, x, t, labels):
        return x + labels


def changes_in_place(x):
    x += 1
    return x


@pytest.mark.parametrize(
    "field, sentence",
    [
        (lambda x: x[:, :2], "found a value of shape (2, 2) at x of shape (2, 6)"),
        (lambda x: x.sum(), "found a value of shape ()"),
        (lambda x: x.double(), "found a value of torch.float64 on cpu at x of torch.float32"),
        (lambda x: x.to("meta"), "on meta at x of torch.float32 on cpu"),
        (lambda x: (x,), "found a tuple for a value, expected a tensor like x"),
        (lambda x: x.detach().numpy(), "a function of NumPy arrays is audited at samples that"),
        (lambda x: x / 0, "found a value that is not finite at t = 0"),
        (changes_in_place, "found that x is changed in place"),
        (nn.Sequential(nn.Linear(6, 6), nn.Dropout()), "dropout is off after .eval()"),
        (lambda x: x + 1e-3 * torch.randn_like(x), "found two values at one x"),
        (nn.BatchNorm1d(6), "batch normalisation is fixed after .eval()"),
        (lambda x: x - x.mean(0), "a sample's value changes with the others of its batch"),
        (lambda x, t: x, "found TypeError: "),
        (Needy(), "a model that needs labels is given them first"),
        (lambda x: x @ torch.ones(3, 3), "found RuntimeError: "),
        (3, "field: found an object of type int, expected a function or Field"),
    ],
)
def test_a_field_that_cannot_be_audited_is_refused(field, sentence):
    with pytest.raises(BadInput, match=re.escape(sentence)) as refusal:
        qcsbm.audit(field, points(4, 6))
    assert "\n" not in str(refusal.value)


def test_a_field_that_is_not_finite_at_a_later_sample_is_refused():
    x = points(8, 3)
    x[5] = 100.0
    with pytest.raises(ArithmeticError, match="not finite"):
        qcsbm.asymmetry(lambda x: x.where(x.abs() < 50, x / 0), x)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"x": points(4)}, "x: found torch.float32 of shape (4,), expected samples (n, ...)"),
        ({"x": points(4, 2).int()}, "x: found torch.int32"),
        ({"x": points(4, 2).half()}, "x: found torch.float16, expected float32 or float64"),
        ({"x": points(4, 2) / 0}, "x: found values that are not finite"),
        ({"dtype": "half"}, "dtype: found 'half', expected one of float32, float64"),
        ({"products": "forwards"}, "products: found 'forwards', expected one of autograd"),
        ({"probes": 0}, "probes: found 0, expected a positive number or 'exact'"),
        ({"kinds": ["x0"]}, "kinds: found x0 for a field of kind 'score' with schedule None"),
        ({"kinds": ["noise"]}, "kind: found 'noise', expected one of score, epsilon, x0,"),
        ({"kind": "noise"}, "kind: found 'noise', expected one of score, epsilon, x0,"),
        ({"t": []}, "t: found [], expected one finite time or more"),
        ({"t": [math.nan]}, "t: found [nan], expected one finite time or more"),
        ({"t": "soon"}, "t: found 'soon', expected one time or several"),
        ({"schedule": "ve"}, "schedule: found 've', expected a schedule such as qcsbm.VE()"),
        ({"schedule": qcsbm.VE}, "expected a schedule such as qcsbm.VE()"),
        # Noise levels in the place of times.
        (
            {"schedule": qcsbm.VE(), "t": [0.1, 10.0]},
            "t: found 10, a noise level of 9.77e+34 relative to the data, expected a time at which "
            "it is 0.01 to 50, as of VE(",
        ),
        ({"schedule": qcsbm.RectifiedFlow(), "t": -0.1}, "t: found -0.1, a noise level of -0.0909"),
        ({"schedule": qcsbm.EDM(), "t": 81.0}, "t: found 81, a noise level of 81 relative"),
        ({"relative_error": 0.0}, "relative_error: found 0, expected a positive number"),
        ({"step": -1.0}, "step: found -1, expected a positive number"),
        ({"spectrum": -1}, "spectrum: found -1, expected at least 0"),
        ({"planes": 0}, "planes: found 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size: found 0, expected at least 1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, sentence):
    arguments = {"x": points(4, 2)} | changes
    with pytest.raises(BadInput, match=re.escape(sentence)):
        qcsbm.audit(lambda x, t=None: x, **arguments)


def test_what_is_not_finite_away_from_samples_leaves_the_rest():
    x = points(9, 3).sign() * 2
    report = qcsbm.audit(lambda x: (-x).where(x.abs() > 1, torch.nan), x)
    (warning,) = report.warnings
    assert warning.startswith("no circulation: the field is not finite on an edge of triangle ")
    assert report.levels[0].circulation is None and len(report.levels[0].spectrum) == 1
    assert report.mean.zero_within is not None
    assert "circulation" not in report.cost.parts


def test_a_field_of_large_values_has_a_circulation():
    turn = torch.tensor([[0.0, -1e30], [1e30, 0.0]])
    report = qcsbm.audit(lambda x: x @ turn, points(9, 2))
    assert report.mean.nasym.value == pytest.approx(1) and report.levels[0].circulation.seen


def test_rounding_that_differs_from_call_to_call_is_no_randomness():
    report = qcsbm.asymmetry(lambda x: x + 1e-7 * torch.randn_like(x), points(4, 6))
    assert report.mean.zero_within is not None


def test_samples_of_another_shape_than_the_fields_are_refused():
    field = qcsbm.Field(lambda x, t: x, shape=(3, 2), name="mine")
    with pytest.raises(BadInput, match=r"samples of shape \(6,\), expected \(3, 2\), that of mine"):
        qcsbm.audit(field, points(4, 6))


def test_rounding_that_depends_on_the_batch_is_no_mixing():
    # A sum over many entries in float32, whose order depends on the shape.
    x = points(2, 1024)
    field = linear(matrix(1024).float())
    assert qcsbm.asymmetry(field, x, probes=2).mean.nasym.value > 0


# The scale of the data.


class Mixture:
    """The score of a mixture of the images in a data set, with the noise of a schedule."""

    def __init__(self, data, schedule):
        self.data, self.schedule = data.flatten(1), schedule

    def __call__(self, x, t):
        sigma = self.schedule.std(t)[:, None]
        y = x.flatten(1)
        weights = (-torch.cdist(y, self.data).square() / (2 * sigma**2)).softmax(1)
        return ((weights @ self.data - y) / sigma**2).view_as(x)


@pytest.fixture(scope="module")
def images():
    """Grey images in [0, 1], of smooth blobs."""
    draws = torch.Generator().manual_seed(0)
    coarse = torch.rand(300, 1, 4, 4, generator=draws).round()
    return nn.functional.interpolate(coarse, size=8, mode="bilinear").clamp(0, 1)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_data_on_another_scale_than_the_models_are_warned_of(images, low):
    own = low + (1 - low) * images
    other = 2 * images - 1 if low == 0 else images
    field = qcsbm.Field(Mixture(own[:250], qcsbm.EDM()), schedule=qcsbm.EDM(), name="mixture")
    assert list(scale_warnings(field, own[250:])) == []
    (warning,) = scale_warnings(field, other[250:])
    assert "mixture denoises them better when they are mapped to " in warning
    assert warning.count("[0, 1]") == warning.count("[-1, 1]") == 1


@pytest.mark.parametrize(
    "scale, shift, expected",
    [
        (2, -1, None),
        (1, 0, "the data lie in [0, 1], mine expects [-1, 1]: they fill one half of it alone"),
        (255, 0, "the data lie in [0, 255], mine expects [-1, 1]"),
    ],
)
def test_data_outside_of_the_known_range_are_warned_of(images, scale, shift, expected):
    field = qcsbm.Field(lambda x, t: -x, data_range=(-1.0, 1.0), name="mine")
    images = (images - images.min()) / (images.max() - images.min())
    found = list(scale_warnings(field, scale * images + shift))
    assert found == ([] if expected is None else [expected])
