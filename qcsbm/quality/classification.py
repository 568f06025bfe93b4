"""Training the classifier of a labelled dataset, and keeping its weights.

The weights are a safetensors file. Its header has the number of channels and of classes, and the
share of the test images that the classifier recognises.

References:
    The use of confidence or fiducial limits illustrated in the case of the binomial (Clopper &
    Pearson, 1934); https://doi.org/10.1093/biomet/26.4.404
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from scipy.special import betaincinv

from qcsbm.data.quantisation import to_unit
from qcsbm.nets.classifier import Classifier
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import atomic
from qcsbm.runtime.seeding import generator, global_generator
from qcsbm.training.checkpoint import write_tensors

BATCH_SIZE = 64
LEARNING_RATE = 2e-3


def train_classifier(
    images: np.ndarray, labels: np.ndarray, levels: int, epochs: int
) -> Classifier:
    """A classifier of uint8 ``images`` (N, C, H, W) with ``labels`` (N,) in 0 … classes − 1.

    It is part of the measuring instrument: the same for every seed of the experiment.

    Raises:
        BadInput: some images have no label, or all have the same one.
    """
    if labels.min() < 0:
        raise BadInput(
            f"labels: found {(labels < 0).sum()} images without one, expected a label for every "
            "image that the classifier learns from"
        )
    if (labels == labels[0]).all():
        raise BadInput(
            f"labels: found {labels[0]} for every image, expected at least two classes for the "
            "classifier to tell apart"
        )
    with global_generator(torch.device("cpu"), 0, "classifier"):
        model = Classifier(images.shape[1], int(labels.max()) + 1)
    optimiser = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    x, y = to_unit(torch.from_numpy(images), levels), torch.from_numpy(labels)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator(0, "classifier", epoch))
        for batch in order.split(BATCH_SIZE):
            optimiser.zero_grad()
            F.cross_entropy(model(x[batch])[1], y[batch]).backward()
            optimiser.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, images: np.ndarray, labels: np.ndarray, levels: int) -> float:
    """The share of uint8 ``images`` (N, C, H, W) that are given their label (N,)."""
    predicted = [
        model(to_unit(k, levels))[1].argmax(1) for k in torch.from_numpy(images).split(BATCH_SIZE)
    ]
    return float((torch.cat(predicted).numpy() == labels).mean())


def require_skill(share: float, labels: np.ndarray) -> None:
    """Refuse a classifier whose ``accuracy`` of test images with ``labels`` (N,) may be chance.

    The exact 95 % interval (Clopper & Pearson) of ``share`` has to lie above the share of the most
    frequent label, which a classifier can get without looking at any image.

    Raises:
        BadInput: it does not.
    """
    n, hits = len(labels), share * len(labels)
    lowest = betaincinv(hits, n - hits + 1, 0.025) if hits else 0.0
    chance = np.unique(labels, return_counts=True)[1].max() / n
    if lowest <= chance:
        raise BadInput(
            f"classifier: found that it recognises {share:.1%} of {n} test images (95 % interval "
            f"from {lowest:.1%}), expected an interval above {chance:.1%}, the share of the most "
            "frequent class: features of a classifier that has learnt nothing tell nothing"
        )


def save(path: str | Path, model: Classifier, share: float) -> None:
    """Write the weights, and the ``share`` of test images that they recognise, atomically."""
    header = {
        "channels": model.conv_0.in_channels,
        "classes": model.head.out_features,
        "accuracy": share,
    }
    with atomic(path) as temporary:
        write_tensors(temporary, model.state_dict(), header)


def load(path: str | Path) -> tuple[Classifier, float]:
    """The network and the share that `save` wrote; BadInput if the file holds anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["qcsbm"])
            share = header["accuracy"]
            if not 0 <= share <= 1:
                raise ValueError(f"accuracy {share}")
            # This takes no memory, whatever the header says: tensors of these sizes come later.
            with torch.device("meta"):
                model = Classifier(header["channels"], header["classes"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        model.load_state_dict(tensors, assign=True)
    # RuntimeError is also that of a header nested too deeply.
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        summary = str(error).splitlines()[0]
        raise BadInput(
            f"{path}: found no classifier ({summary}), expected one that the workflow trained"
        ) from None
    return model.eval(), share
