"""FID from images to the number is that of pytorch-fid's own command."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fid_network import random_network
from PIL import Image
from pytorch_fid.inception import FID_WEIGHTS_URL

from qcsbm.data.quantisation import to_unit
from qcsbm.quality import reference_statistics
from qcsbm.quality.extractor_weights import INCEPTION_VARIABLE
from qcsbm.quality.extractors import InceptionExtractor, extract
from qcsbm.quality.frechet import feature_statistics, frechet_distance
from qcsbm.runtime.files import sha256

pytestmark = pytest.mark.slow

N = 5


@pytest.fixture(scope="module")
def images():
    """Two sets of uint8 images (N, 3, 8, 8): noise, and darker noise that is coarser."""
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 256, (N, 3, 8, 8), dtype=np.uint8)
    coarse = rng.integers(0, 128, (N, 3, 4, 4), dtype=np.uint8).repeat(2, axis=2).repeat(2, axis=3)
    return fine, coarse


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory, images):
    """A hub cache with a weights file of the published format and random content."""
    folder = tmp_path_factory.mktemp("torch")
    path = folder / "hub/checkpoints" / Path(FID_WEIGHTS_URL).name
    path.parent.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = random_network()
    # With initial weights all images have nearly the same features, which batch normalisation by
    # the statistics of these images sets apart.
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    x = to_unit(torch.from_numpy(np.concatenate(images)), 256)
    x = 2 * F.interpolate(x, size=(299, 299), mode="bilinear") - 1
    with torch.random.fork_rng(), torch.no_grad():
        network(x)
    torch.save(network.state_dict(), path)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory, images):
    """A folder of PNG files of each set."""
    folders = [tmp_path_factory.mktemp(name) for name in ("fine", "coarse")]
    for folder, pixels in zip(folders, images, strict=True):
        for i, image in enumerate(pixels):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i}.png")
    return folders


@pytest.fixture(scope="module")
def statistics(torch_home, images):
    """Our statistics of both sets."""
    (path,) = (torch_home / "hub/checkpoints").iterdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(INCEPTION_VARIABLE, raising=False)
        patch.setenv("TORCH_HOME", str(torch_home))
        extractor = InceptionExtractor(sha256(path)[:8])
    return [feature_statistics(extract(extractor, pixels, 256, N)[0]) for pixels in images]


def pytorch_fid(torch_home, *arguments):
    """What pytorch-fid's command prints."""
    command = [sys.executable, "-m", "pytorch_fid", "--device", "cpu", "--num-workers", "0"]
    result = subprocess.run(
        [str(word) for word in (*command, "--batch-size", N, *arguments)],
        env=os.environ | {"TORCH_HOME": str(torch_home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_fid_is_that_of_pytorch_fid_s_command(torch_home, folders, statistics):
    a, b = statistics
    # Neither the means nor the covariances account for the distance alone.
    means = np.square(a.mean - b.mean).sum()
    distance = frechet_distance(a, b)
    assert 1 < means < 0.7 * distance
    peer = float(pytorch_fid(torch_home, *folders).rpartition("FID:")[2])
    # Float32 features differ by 1e-6 between decoders and batches. Of rank N - 1 = 4, the product
    # of the covariances has 2 044 null eigenvalues that the peer knows to 1e-16 of the largest;
    # their roots are up to 1e-8 of its root, at most the trace: 2e-5 of the distance altogether.
    assert distance == pytest.approx(peer, rel=2e-5)


def test_statistics_that_pytorch_fid_saves_give_the_same_distance(
    torch_home, folders, statistics, tmp_path
):
    path = tmp_path / "coarse.npz"
    pytorch_fid(torch_home, "--save-stats", folders[1], path)
    saved, _ = reference_statistics.read(path)
    # Float32 features differ by 1e-6 between decoders and batches.
    np.testing.assert_allclose(saved.mean, statistics[1].mean, rtol=1e-5, atol=1e-6)
    expected = frechet_distance(*statistics)
    assert frechet_distance(statistics[0], saved) == pytest.approx(expected, rel=1e-5)
