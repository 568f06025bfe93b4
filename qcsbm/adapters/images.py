"""Image denoisers as vector fields: any function from an image to an image.

A denoiser D is the gradient of a function if and only if its Jacobian is symmetric. Then x − D(x)
is the gradient of the regulariser that plug-and-play methods and regularisation by denoising take
it for, and of a denoiser whose Jacobian is not symmetric there is no such regulariser.

Proximal maps have symmetric Jacobians, as they are gradients (Moreau), and so has the posterior
mean under Gaussian noise, which is a proximal map too (Gribonval).

References:
    Proximité et dualité dans un espace hilbertien (Moreau, 1965), Corollary 10.c
    Should Penalized Least Squares Regression be Interpreted as Maximum A Posteriori Estimation?
    (Gribonval, 2011)
    Regularization by Denoising: Clarifications and New Interpretations (Reehorst & Schniter, 2018),
    Section III; https://arxiv.org/abs/1806.02296
    A Characterization of Proximity Operators (Gribonval & Nikolova, 2020);
    https://arxiv.org/abs/1807.04014
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcsbm.adapters.field import Field
from qcsbm.runtime.errors import BadInput

Image = NDArray[np.floating]


def from_denoiser(
    function: Callable[[Image], Image],
    shape: tuple[int, ...],
    *,
    batched: bool = False,
    name: str | None = None,
    data_range: tuple[float, float] | None = None,
) -> Field:
    """A denoiser of images of one ``shape`` as a field of kind ``denoiser``, without a schedule.

    ``function`` maps a NumPy image of that shape to another one, of its dtype, or a batch (B, …)
    of such images where it is ``batched``. It gets a copy. The field ignores t, and is not
    differentiated. ``name`` is by default that of the function.

    >>> from scipy.ndimage import median_filter
    >>> field = from_denoiser(lambda image: median_filter(image, 3), (8, 8), name="median")
    >>> field(torch.zeros(2, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 8, 8])

    Raises:
        BadInput: ``function`` gives something else, once the field is called.
    """
    called = name or str(getattr(function, "__name__", type(function).__name__))

    def denoised(x: Tensor, t: Tensor) -> Tensor:
        images = x.detach().cpu().numpy().copy()
        if batched:
            values = _checked(function(images), images, called)
        else:
            values = np.stack([_checked(function(image), image, called) for image in images])
        return torch.from_numpy(np.ascontiguousarray(values)).to(x.device)

    return Field(
        denoised,
        "denoiser",
        name=called,
        shape=shape,
        data_range=data_range,
        differentiable=False,
    )


def _checked(value: Image, image: Image, name: str) -> Image:
    if not isinstance(value, np.ndarray) or value.shape != image.shape:
        shape = getattr(value, "shape", None)
        found = type(value).__name__ if shape is None else f"an array of shape {tuple(shape)}"
        raise BadInput(f"{name}: found {found}, expected an image of shape {image.shape}")
    if value.dtype != image.dtype:
        raise BadInput(
            f"{name}: found {value.dtype} from an image of {image.dtype}, expected the same dtype, "
            "as the step of difference quotients goes by its precision"
        )
    return value
