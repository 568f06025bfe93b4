"""Train the classifier whose features and class scores judge samples of a labelled dataset."""

import argparse
from pathlib import Path

import numpy as np

from qcsbm.data.splits import SPLITS, describe, read
from qcsbm.quality import classification
from qcsbm.quality.metrics import METRICS
from qcsbm.runtime.provenance import recorded
from qcsbm.schema.specifications import ClassifierSpec
from qcsbm.stages.arguments import add_data, add_record, add_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, ClassifierSpec)
    add_data(parser)
    parser.add_argument("--out", type=Path, required=True, help="weights to write, safetensors")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    folder = arguments.data
    levels = describe(folder).levels
    train, test = (read(folder, name) for name in SPLITS)
    inputs = [folder / "train.npy", folder / "test.npy"]
    outputs = [arguments.out]
    with recorded(arguments.record, "classifier", arguments.spec, inputs, outputs) as record:
        model = classification.train_classifier(
            np.array(train.images),
            np.array(train.labels),
            levels,
            arguments.spec.protocol.epochs,
        )
        n = len(test.images)
        share = classification.accuracy(model, np.array(test.images), test.labels, levels)
        classification.require_skill(share, test.labels)
        stderr = float(np.sqrt(share * (1 - share) / n))
        record.metric("accuracy", share, stderr, n, METRICS["accuracy"].unit)
        classification.save(arguments.out, model, share)
