"""Networks that map images to features and class logits, for the metrics of sample quality.

An extractor is a module from images (B, C, H, W) in [0, 1], grey or colour, to features (B, F) and
logits (B, classes), float32 whatever precision it computes in; means over positions are taken in
float32, too. Its ``sha256`` is that of its weights. Its ``accuracy`` is the share of the
test images that it recognises, and NaN if it did not learn their classes. `EXTRACTORS` has all of
them by name.

References:
    EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan & Le, 2019);
    https://arxiv.org/abs/1905.11946
    Rethinking the Inception Architecture for Computer Vision (Szegedy et al., 2016);
    https://arxiv.org/abs/1512.00567
    pytorch-fid: FID Score for PyTorch (Seitzer, 2020); https://github.com/mseitzer/pytorch-fid
"""

import math
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from tqdm import tqdm

from qcsbm.data.quantisation import to_unit
from qcsbm.nets.precision import InPrecision
from qcsbm.quality import classification, extractor_weights
from qcsbm.runtime.errors import BadInput, Diverged, MissingFile
from qcsbm.runtime.files import sha256


class ClassifierExtractor(InPrecision):
    """The 64 penultimate features of the classifier that the workflow trained on the dataset."""

    def __init__(self, path: str | Path):
        super().__init__()
        self.network, self.accuracy = classification.load(path)
        self.sha256 = sha256(path)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with self.lowered(x):
            features, logits = self.network(x)
        return features.float(), logits.float()


class EfficientNetLite0(InPrecision):
    """EfficientNet-Lite0, trained on ImageNet, with weights from its package.

    Features are the 112 channels after block 11, averaged over positions. Between two halves of
    2 000 patches of photographs their Fréchet distance, which ought to be 0, is 2.5 % of the
    features' total variance, against 25 % for the 1 280 features before the classifier: in later
    layers, the number of samples decides more of the distance.
    """

    INPUT_SIZE = 64
    BLOCKS = 11
    accuracy = math.nan

    def __init__(self) -> None:
        super().__init__()
        path = extractor_weights.efficientnet_lite0()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(path, weights_only=True))
        self.network.eval()
        self.sha256 = sha256(path)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = _colour(x)
        size = (self.INPUT_SIZE, self.INPUT_SIZE)
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        # The weights come from TensorFlow: levels are moved by 127 and divided by 128.
        x = (255 * x - 127) / 128
        with self.lowered(x):
            h = self.network._swish(self.network._bn0(self.network._conv_stem(x)))
            for block in self.network._blocks[: self.BLOCKS]:
                h = block(h)
            features = h.float().mean((2, 3))
            for block in self.network._blocks[self.BLOCKS :]:
                h = block(h)
            h = self.network._swish(self.network._bn1(self.network._conv_head(h)))
            logits = self.network._fc(h.float().mean((2, 3)))
        return features, logits.float()


class InceptionExtractor(InPrecision):
    """The Inception network of FID: 2 048 pooled features and 1 008 logits without bias.

    The file is looked for at the path in the environment variable QCSBM_INCEPTION_WEIGHTS, then in
    PyTorch's hub cache, and never downloaded.

    Raises:
        MissingFile: it is in neither place.
        BadInput: its SHA-256 does not begin with the digits in its published name.
    """

    accuracy = math.nan

    def __init__(self, sha256_prefix: str | None = None):
        # It imports torchvision, which takes as long as torch does; other extractors do without.
        from pytorch_fid import inception as fid_inception

        super().__init__()
        name = Path(fid_inception.FID_WEIGHTS_URL).name
        prefix = sha256_prefix or name.removesuffix(".pth").rsplit("-", 1)[1]
        path = extractor_weights.inception()
        if not path.is_file():
            raise MissingFile(
                f"{path}: found no weights of the Inception network, expected the file {name} from "
                f"{fid_inception.FID_WEIGHTS_URL} there or where "
                f"{extractor_weights.INCEPTION_VARIABLE} says"
            )
        self.sha256 = sha256(path)
        if not self.sha256.startswith(prefix):
            raise BadInput(
                f"{path}: found SHA-256 {self.sha256}, expected one that begins with {prefix}, as "
                f"that of {fid_inception.FID_WEIGHTS_URL} does"
            )
        # The constructor would download weights and unpickle them.
        weights = torch.load(path, weights_only=True, map_location="cpu")
        with patch.object(fid_inception, "load_state_dict_from_url", return_value=weights):
            self.network = fid_inception.fid_inception_v3().eval()
        self.head, self.network.fc = self.network.fc, nn.Identity()
        self.network.avgpool.register_forward_pre_hook(lambda pool, given: given[0].float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.interpolate(_colour(x), size=(299, 299), mode="bilinear", align_corners=False)
        with self.lowered(x):
            features = self.network(2 * x - 1)
            logits = features @ self.head.weight.T
        return features, logits.float()


EXTRACTORS = {
    "classifier": ClassifierExtractor,
    "efficientnet_lite0": EfficientNetLite0,
    "inception": InceptionExtractor,
}


@torch.no_grad()
def extract(
    extractor: nn.Module,
    images: np.ndarray,
    levels: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, F) and logits (N, classes), float32, of uint8 ``images`` (N, C, H, W).

    Raises:
        Diverged: some are not finite.
    """
    of_batches = []
    for start in tqdm(range(0, len(images), batch_size), mininterval=5.0):
        k = torch.from_numpy(images[start : start + batch_size].copy())
        f, y = extractor(to_unit(k, levels).to(device))
        of_batches.append((f.cpu().numpy(), y.cpu().numpy()))
    features, logits = map(np.concatenate, zip(*of_batches, strict=True))
    if not (np.isfinite(features).all() and np.isfinite(logits).all()):
        raise Diverged("features or logits of the extractor are not finite")
    return features, logits


def _colour(x: Tensor) -> Tensor:
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
