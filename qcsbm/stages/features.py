"""Extract features and class logits of a shard of images, for every metric that reads them."""

import argparse

import numpy as np

from qcsbm.data.splits import describe, open_images
from qcsbm.quality import extractor_weights, feature_file
from qcsbm.quality.extractors import EXTRACTORS, extract
from qcsbm.runtime import outside
from qcsbm.runtime.device import claim_device
from qcsbm.runtime.files import sha256
from qcsbm.runtime.shards import share
from qcsbm.runtime.source_code import stage_digest
from qcsbm.schema.specifications import FeaturesSpec
from qcsbm.stages.arguments import add_data, add_output, add_shard, add_spec, existing

BATCH_SIZE = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, FeaturesSpec)
    add_data(parser)
    parser.add_argument("--images", type=existing, required=True, help="uint8 images, .npy")
    parser.add_argument("--weights", type=existing, help="weights that the workflow trained")
    add_shard(parser)
    add_output(parser, "--out", "features of the shard to write, .npz")


def run(arguments: argparse.Namespace) -> None:
    images = open_images(arguments.images)
    batches = share(arguments.shard, -(-len(images) // BATCH_SIZE))
    spec: FeaturesSpec = arguments.spec
    name = spec.protocol.extractor
    load = EXTRACTORS[name]
    extractor = load(arguments.weights) if arguments.weights else load()
    path = extractor_weights.path(name)
    if path and "weights" in spec.outside:
        outside.require(path, spec.outside["weights"])
    features = logits = np.empty((0, 0), np.float32)
    if batches:
        extractor.compute_in(spec.protocol.precision)
        features, logits = extract(
            extractor.to(claim_device()),
            images[batches.start * BATCH_SIZE : batches.stop * BATCH_SIZE],
            describe(arguments.data).levels,
            BATCH_SIZE,
            claim_device(),
        )
    origin = extractor.sha256, sha256(arguments.images), extractor.accuracy
    found = feature_file.Features(features, logits, *origin, stage_digest("features"))
    feature_file.write(arguments.out, found)
