"""Compare samples with reference images: Fréchet distance, class score, precision and recall."""

import argparse

from qcsbm.feature_file import read
from qcsbm.metrics import metric_names
from qcsbm.metrics.frechet import feature_statistics, frechet_distance, frechet_standard_error
from qcsbm.metrics.inception_score import inception_score
from qcsbm.metrics.prdc import precision_recall
from qcsbm.provenance import recorded
from qcsbm.stages.arguments import add_record, add_spec, existing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    parser.add_argument("--samples", type=existing, required=True, help="features of samples")
    parser.add_argument("--reference", type=existing, required=True, help="features of real images")
    add_record(parser)


def run(arguments: argparse.Namespace) -> None:
    protocol = arguments.spec["protocol"]
    samples, reference = read(arguments.samples), read(arguments.reference)
    if samples.extractor_sha256 != reference.extractor_sha256:
        raise ValueError(
            f"{arguments.samples}: found features of the extractor {samples.extractor_sha256}, "
            f"expected those of {reference.extractor_sha256} as in {arguments.reference}"
        )
    n = len(samples.features)
    distance_name, score_name = metric_names(protocol["extractor"])
    inputs = [arguments.samples, arguments.reference]
    with recorded(arguments.record, "quality", arguments.spec, inputs) as record:
        record.protocol["extractor_sha256"] = samples.extractor_sha256
        record.protocol["reference_sha256"] = reference.images_sha256
        generated = feature_statistics(samples.features)
        real = feature_statistics(reference.features)
        record.metric(
            distance_name,
            frechet_distance(generated, real),
            frechet_standard_error(samples.features, generated, real),
            n,
            "1",
        )
        score, score_stderr = inception_score(samples.logits)
        record.metric(score_name, score, score_stderr, n, "1")
        pr = precision_recall(reference.features, samples.features, k=protocol["neighbours"])
        record.metric("precision", pr.precision, pr.precision_stderr, n, "1")
        record.metric("recall", pr.recall, pr.recall_stderr, len(reference.features), "1")
