"""Compare samples with reference images, by their features and class logits."""

import argparse
import math
from pathlib import Path

import numpy as np

from qcsbm.quality import reference_statistics
from qcsbm.quality.feature_file import Features, read
from qcsbm.quality.frechet import FeatureStatistics, feature_statistics, frechet_estimate
from qcsbm.quality.inception_score import inception_score
from qcsbm.quality.kernel_distance import kernel_distance
from qcsbm.quality.metrics import METRICS, named
from qcsbm.quality.prdc import prdc
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import sha256
from qcsbm.runtime.provenance import recorded
from qcsbm.schema.specifications import QualitySpec
from qcsbm.stages.arguments import add_record, add_spec, existing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, QualitySpec)
    parser.add_argument(
        "--samples", type=existing, nargs="+", required=True, help="features of samples, all shards"
    )
    parser.add_argument(
        "--reference",
        type=existing,
        nargs="+",
        required=True,
        help="features of real images, all shards",
    )
    parser.add_argument(
        "--statistics", type=existing, help="statistics to take the Fréchet distance to, .npz"
    )
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    spec: QualitySpec = arguments.spec
    protocol = spec.protocol
    samples, reference = _joined(arguments.samples), _joined(arguments.reference)
    if samples.extractor_sha256 != reference.extractor_sha256:
        raise BadInput(
            f"{arguments.samples[0]}: found features of the extractor {samples.extractor_sha256}, "
            f"expected those of {reference.extractor_sha256} as in {arguments.reference[0]}"
        )
    n = len(samples.features)
    for what, found in [("generated", n), ("reference", len(reference.features))]:
        if protocol.neighbours >= found:
            raise BadInput(
                f"quality.neighbours: found {protocol.neighbours}, expected fewer than {found}, "
                f"the number of {what} images"
            )
    with recorded(arguments.record, "quality", arguments.spec, []) as record:
        record.computed_by({"features": f"{samples.code} {reference.code}".split()})
        record.protocol["extractor_sha256"] = samples.extractor_sha256
        if not math.isnan(samples.extractor_accuracy):
            record.protocol["extractor_accuracy"] = samples.extractor_accuracy
        record.protocol["samples_sha256"] = samples.images_sha256
        record.protocol["reference_sha256"] = reference.images_sha256
        record.protocol["reference_n"] = len(reference.features)
        if arguments.statistics:
            real, n_real = _published(arguments.statistics, samples)
            record.protocol["statistics_sha256"] = sha256(arguments.statistics)
            if n_real is not None:
                record.protocol["statistics_n"] = n_real
        else:
            real = feature_statistics(reference.features)
        frechet = frechet_estimate(samples.features, real)
        measured = {
            "fd": (frechet.distance, frechet.stderr),
            "fd_infinity": (frechet.infinity, frechet.infinity_stderr),
            "kd": kernel_distance(samples.features, reference.features),
            "cs": inception_score(samples.logits),
            **prdc(reference.features, samples.features, protocol.neighbours)._asdict(),
        }
        for metric, (value, stderr) in measured.items():
            name = named(metric, protocol.extractor)
            record.metric(name, value, stderr, n, METRICS[name].unit)


def _published(path: Path, samples: Features) -> tuple[FeatureStatistics, int | None]:
    """The statistics in the file ``path``, and the number of images that they are of, if known.

    They must be of features like those of ``samples``.
    """
    statistics, n = reference_statistics.read(path)
    found, expected = len(statistics.mean), samples.features.shape[1]
    if found != expected:
        raise BadInput(f"{path}: found statistics of {found} features, expected {expected}")
    return statistics, n


def _joined(paths: list[Path]) -> Features:
    """The features in all shards; BadInput if they are not of the same images."""
    shards = [read(path) for path in paths]
    origins = [(shard.extractor_sha256, shard.images_sha256) for shard in shards]
    for path, origin in zip(paths, origins, strict=True):
        if origin != origins[0]:
            raise BadInput(
                f"{path}: found features of extractor and images {origin}, expected those of "
                f"{origins[0]} as in {paths[0]}"
            )
    filled = [shard for shard in shards if len(shard.features)]
    return Features(
        np.concatenate([shard.features for shard in filled]),
        np.concatenate([shard.logits for shard in filled]),
        *origins[0],
        shards[0].extractor_accuracy,
        " ".join(sorted({shard.code for shard in shards})),
    )
