"""Extract features and class logits of images, once, for every metric that reads them."""

import argparse
from pathlib import Path

from qcsbm.data.splits import describe, open_images
from qcsbm.feature_file import Features, write
from qcsbm.features import EXTRACTORS, extract
from qcsbm.files import sha256
from qcsbm.provenance import device
from qcsbm.stages.arguments import add_data, add_spec, existing

BATCH_SIZE = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    add_data(parser)
    parser.add_argument("--images", type=existing, required=True, help="uint8 images, .npy")
    parser.add_argument("--weights", type=existing, help="weights that the workflow trained")
    parser.add_argument("--out", type=Path, required=True, help="features to write, .npz")


def run(arguments: argparse.Namespace) -> None:
    images = open_images(arguments.images)
    load = EXTRACTORS[arguments.spec["protocol"]["extractor"]]
    extractor = load(arguments.weights) if arguments.weights else load()
    features, logits = extract(
        extractor.to(device()), images, describe(arguments.data).levels, BATCH_SIZE, device()
    )
    write(arguments.out, Features(features, logits, extractor.sha256, sha256(arguments.images)))
