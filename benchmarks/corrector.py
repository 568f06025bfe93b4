"""Samples of few predictor–corrector steps by the corrector's signal-to-noise ratio.

    python benchmarks/corrector.py [--samples 512] [--seed 0] [--fourier-scale 16]

U is trained as `config/quick.yaml` says, on digits and on patches. Samples of the same noise are
compared with the training images, in the features of the tier's Table 3: Fréchet distance,
precision and recall, and on the patches the spread: the standard deviation of the pixels of a
sample and colour, averaged, which residual noise raises. The last line is a JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from qcsbm.data.digits import digits
from qcsbm.data.patches import patches
from qcsbm.data.quantisation import quantise
from qcsbm.data.splits import Splits
from qcsbm.experiment import specification
from qcsbm.experiment.config import read
from qcsbm.quality.classification import train_classifier
from qcsbm.quality.extractors import EfficientNetLite0, extract
from qcsbm.quality.frechet import feature_statistics, frechet_estimate
from qcsbm.quality.prdc import prdc
from qcsbm.runtime.seeding import generator
from qcsbm.sampling import pc
from qcsbm.schema.samplers import PC
from qcsbm.score.models import ScoreModel, build
from qcsbm.training.loop import train

QUICK = read(Path(__file__).parents[1] / "config/quick.yaml")
STEPS, RATIOS = (50, 75, 100), (0.16, 0.22, 0.3, 0.4)
SOURCES = {"digits": digits, "patches": patches}


def trained(dataset: str, data: Splits, seed: int, fourier_scale: float | None) -> ScoreModel:
    """The tier's U with its averaged weights, or with another ``fourier_scale``."""
    cell = QUICK.trainings[dataset, "u"]
    settings = specification.model(cell)
    if fourier_scale:
        network = settings.network.model_copy(update={"fourier_scale": fourier_scale})
        settings = settings.model_copy(update={"network": network})
    images = data.train.images
    model = build(images.shape[1:], settings, seed=seed)
    state = train(model, images, data.levels, cell.training, None, seed, cell.steps)
    model.load_state_dict(state.model | state.ema)
    return model.eval()


def features_of(dataset: str, data: Splits) -> Callable[[np.ndarray], np.ndarray]:
    """What maps uint8 images to the features of the tier's Table 3."""
    if dataset == "digits":
        epochs = QUICK.datasets[dataset].classifier.epochs
        images, labels = data.train.images, data.train.labels
        network = train_classifier(images, labels, data.levels, epochs).eval()
    else:
        network = EfficientNetLite0()
    return lambda images: extract(network, images, data.levels, 64)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=512, help="a multiple of 128")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fourier-scale", type=float, help="instead of the tier's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    result = {}
    for dataset, source in SOURCES.items():
        data = source(QUICK.datasets[dataset].data)
        model = trained(dataset, data, arguments.seed, arguments.fourier_scale)
        features = features_of(dataset, data)
        real = features(data.train.images)
        statistics = feature_statistics(real)
        dequantised = QUICK.trainings[dataset, "u"].training.dequantise
        print(
            f"{dataset:>8} {'steps':>5} {'snr':>5} {'CPU s':>6} {'FD':>6} {'precision':>9}"
            f" {'recall':>6} {'spread':>6}"
        )
        for steps in STEPS:
            for snr in RATIOS:
                settings = PC(type="pc", steps=steps, snr=snr, batch_size=128)
                shape = (settings.batch_size, *data.train.images.shape[1:])
                start = time.process_time()
                drawn = [
                    pc.sample(
                        model, model.sde, shape, generator(arguments.seed, "sample", b), settings
                    ).x
                    for b in range(arguments.samples // settings.batch_size)
                ]
                cpu_s = time.process_time() - start
                images = quantise(torch.cat(drawn), data.levels, dequantised).numpy()
                found = features(images)
                neighbours = prdc(real, found, QUICK.cells[dataset, "u"].quality.neighbours)
                row = {
                    "cpu_s": cpu_s,
                    "fd": frechet_estimate(found, statistics).distance,
                    "precision": neighbours.precision.value,
                    "recall": neighbours.recall.value,
                    "spread": float((images / (data.levels - 1)).std(axis=(2, 3)).mean()),
                }
                result[f"{dataset} {steps} {snr}"] = row
                print(
                    f"{'':>8} {steps:5} {snr:5} {cpu_s:6.1f} {row['fd']:6.1f}"
                    f" {row['precision']:9.3f} {row['recall']:6.3f} {row['spread']:6.4f}"
                )
        spread = float((data.train.images / (data.levels - 1)).std(axis=(2, 3)).mean())
        result[f"{dataset} real"] = {"spread": spread}
        print(f"{'':>8} the spread of the training images is {spread:.4f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
