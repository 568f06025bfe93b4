r"""λ of image denoisers: which of them are gradients, and by how much the others are not.

Every denoiser D is audited at noisy crops of photographs, without any derivative of its own: λ =
‖J − Jᵀ‖_F / (2‖J‖_F) of its Jacobian J, by central differences along K Rademacher probes. D is the
gradient of a function if and only if λ is 0 everywhere.

Most denoisers here have kinks, at which there is no Jacobian. The short step hardly ever crosses
one. The long step is for total variation, which is as exact as its iteration, and for the bilateral
filter, which looks weights up in a table: steps have to be longer than what these leave.

The table is that of docs/denoisers.md.

References:
    Regularization by Denoising: Clarifications and New Interpretations (Reehorst & Schniter, 2018),
    Section III; https://arxiv.org/abs/1806.02296
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter, median_filter
from skimage.data import astronaut, camera, coins, moon
from skimage.restoration import denoise_bilateral, denoise_nl_means, denoise_tv_chambolle
from skimage.util import img_as_float

import qcsbm

SIGMA = 0.1
# In units of the samples' standard deviation, which is about a quarter of the range of grey.
SHORT, LONG = 1e-6, 4e-4
Denoiser = Callable[[np.ndarray], np.ndarray]


def soft_thresholding(image: np.ndarray, threshold: float) -> np.ndarray:
    """The proximal map of ``threshold`` times the ℓ¹ norm of the coefficients of a DCT."""
    coefficients = dctn(image, norm="ortho")
    shrunk = np.sign(coefficients) * np.maximum(np.abs(coefficients) - threshold, 0)
    return idctn(shrunk, norm="ortho")


def total_variation(iterations: int) -> Denoiser:
    """Chambolle's iteration for the proximal map of total variation, stopped when it is told to."""
    return partial(denoise_tv_chambolle, weight=0.05, eps=0.0, max_num_iter=iterations)


def denoisers() -> dict[str, tuple[Denoiser, float]]:
    """Denoiser and step by the name that the table has."""
    return {
        "soft-thresholding in a DCT": (partial(soft_thresholding, threshold=2 * SIGMA), SHORT),
        'Gaussian filter, `mode="reflect"`': (partial(gaussian_filter, sigma=1.0), SHORT),
        'Gaussian filter, `mode="nearest"`': (
            partial(gaussian_filter, sigma=1.0, mode="nearest"),
            SHORT,
        ),
        "total variation, 3 000 iterations": (total_variation(3000), LONG),
        "total variation, 300 iterations": (total_variation(300), LONG),
        "total variation, `eps=2e-4`": (partial(denoise_tv_chambolle, weight=0.05), LONG),
        "non-local means": (
            partial(
                denoise_nl_means,
                patch_size=5,
                patch_distance=5,
                h=0.8 * SIGMA,
                sigma=SIGMA,
                fast_mode=False,
            ),
            SHORT,
        ),
        "bilateral filter": (
            partial(denoise_bilateral, sigma_color=2 * SIGMA, sigma_spatial=1.5, bins=100_000),
            LONG,
        ),
        "median filter": (partial(median_filter, size=3), SHORT),
    }


def photographs(n: int, size: int) -> torch.Tensor:
    """``n`` noisy crops (n, size, size) of photographs, grey from 0 to 1, float64."""
    draws = np.random.default_rng(0)
    grey = [img_as_float(image) for image in (camera(), coins(), moon(), astronaut()[..., 1])]
    crops = []
    for number in range(n):
        image = grey[number % len(grey)]
        row, column = (draws.integers(length - size) for length in image.shape)
        crops.append(image[row : row + size, column : column + size])
    noise = SIGMA * draws.standard_normal((n, size, size))
    return torch.from_numpy(np.stack(crops) + noise)


def audit(name: str, x: torch.Tensor, probes: int) -> qcsbm.Report:
    denoiser, step = denoisers()[name]
    field = qcsbm.from_denoiser(denoiser, tuple(x.shape[1:]), name=name)
    return qcsbm.asymmetry(field, x, probes=probes, step=step)


def row(name: str, report: qcsbm.Report) -> str:
    """A line of the Markdown table."""
    mean = report.mean
    if mean.zero_within:
        found = f"zero within {mean.zero_within.lambda_:.0e} |"
    else:
        found = f"{mean.lambda_.value:.2g} | {mean.lambda_.low:.2g} – {mean.lambda_.high:.2g}"
    return f"| {name} | {found} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="crops of photographs")
    parser.add_argument("--size", type=int, default=16, help="their height and width")
    parser.add_argument("--probes", type=int, default=12, help="Rademacher probes of each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x = photographs(arguments.images, arguments.size)
    print("| denoiser | λ | 95 % interval |\n|---|---|---|")
    start = time.perf_counter()
    for name in denoisers():
        print(row(name, audit(name, x, arguments.probes)), flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
