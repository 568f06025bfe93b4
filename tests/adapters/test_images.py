"""Any image → image callable as a vector field."""

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import qcsbm.adapters.images
from qcsbm.adapters.images import from_denoiser
from qcsbm.runtime.errors import BadInput

T = torch.zeros(3)


def smooth(image):
    image[:] = gaussian_filter(image, 1.0)
    return image


def images():
    return torch.rand(3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batched", [False, True])
def test_every_image_is_denoised_by_itself(batched):
    function = (lambda batch: np.stack([smooth(image) for image in batch])) if batched else smooth
    field = from_denoiser(function, (6, 5), batched=batched)
    x = images()
    before = x.clone()
    expected = [gaussian_filter(image, 1.0) for image in x.numpy()]
    np.testing.assert_array_equal(field(x, T).numpy(), np.stack(expected))
    # The function wrote into its argument, which is a copy.
    assert torch.equal(x, before)
    assert field(x.float(), T).dtype == torch.float32
    assert (field.kind, field.schedule, field.differentiable) == ("denoiser", None, False)


def test_fields_are_called_what_functions_are():
    assert from_denoiser(smooth, (6, 5)).name == "smooth"
    assert from_denoiser(smooth, (6, 5), name="Gaussian").name == "Gaussian"


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda image: image[1:], "an array of shape \\(5, 5\\), expected an image of shape"),
        (lambda image: None, "found NoneType, expected an image of shape \\(6, 5\\)"),
        (lambda image: image.astype(np.float32), "float32 from an image of float64"),
    ],
)
def test_function_that_gives_something_else_is_refused(function, sentence):
    with pytest.raises(BadInput, match=sentence):
        from_denoiser(function, (6, 5), name="denoiser")(images(), T)


def test_examples_run():
    assert doctest.testmod(qcsbm.adapters.images).failed == 0


def test_tutorial_runs():
    text = (Path(__file__).parents[2] / "docs/denoisers.md").read_text()
    names = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["gradient"].mean.zero_within.lambda_ < 1e-6
    assert names["other"].mean.lambda_.value > 0.5
