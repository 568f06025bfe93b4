"""Train the classifier whose features and class scores judge samples of a labelled dataset."""

import argparse
from pathlib import Path

import numpy as np

from qcsbm import classification
from qcsbm.data.splits import SPLITS, describe, open_images
from qcsbm.provenance import recorded
from qcsbm.stages.arguments import add_data, add_record, add_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    add_data(parser)
    parser.add_argument("--out", type=Path, required=True, help="weights to write, safetensors")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    folder = arguments.data
    levels = describe(folder).levels
    images = {split: open_images(folder / f"{split}.npy") for split in SPLITS}
    labels = {
        split: np.load(folder / f"{split}_labels.npy", allow_pickle=False) for split in SPLITS
    }
    inputs = [folder / "train.npy", folder / "test.npy"]
    with recorded(arguments.record, "classifier", arguments.spec, inputs) as record:
        model = classification.train_classifier(
            np.array(images["train"]),
            labels["train"],
            levels,
            arguments.spec["protocol"]["epochs"],
        )
        n = len(images["test"])
        share = classification.accuracy(model, np.array(images["test"]), labels["test"], levels)
        record.metric("accuracy", share, float(np.sqrt(share * (1 - share) / n)), n, "1")
        classification.save(arguments.out, model)
