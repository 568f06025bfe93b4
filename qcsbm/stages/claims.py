"""Judge the paper's claims by all that was measured."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from qcsbm.motivation import autoencoder, gaussian
from qcsbm.report import claims, pages
from qcsbm.report.claims import Judgement
from qcsbm.report.figures import frames
from qcsbm.report.tables import read_csv
from qcsbm.runtime.files import write_text
from qcsbm.runtime.provenance import read_record
from qcsbm.schema.specifications import ClaimsSpec
from qcsbm.stages.arguments import add_spec, existing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, ClaimsSpec)
    parser.add_argument("--metrics", type=existing, required=True, help="all numbers, CSV")
    parser.add_argument(
        "--training", type=existing, nargs="*", default=[], help="records of training, for its time"
    )
    parser.add_argument("--figure1", type=existing, required=True, help="counts per start, CSV")
    parser.add_argument("--figure4", type=existing, required=True, help="table of Figure 4, CSV")
    parser.add_argument("--out", type=Path, required=True, help="files to write, without suffix")


def run(arguments: argparse.Namespace) -> None:
    spec = arguments.spec
    largest = max(gaussian.EPSILONS)
    counterexample = autoencoder.l_qc(autoencoder.counterexample(), autoencoder.grid()).item()
    judgements = [
        *claims.about_models(
            read_csv(arguments.metrics), spec, training_seconds(spec, arguments.training)
        ),
        *claims.about_steps(read_csv(arguments.figure1), gaussian.paper_step_size(largest)),
        *claims.about_tying(read_csv(arguments.figure4), counterexample),
        *claims.of_the_paper(spec),
    ]
    for suffix, text in texts(spec, judgements).items():
        write_text(f"{arguments.out}{suffix}", text)


def texts(spec: ClaimsSpec, judgements: Sequence[Judgement]) -> dict[str, str]:
    """The page of claims and its numbers, by the suffix of the file."""
    title, sections = "Claims of the paper", claims.sections(judgements, spec)
    document = claims.document(judgements, spec)
    return {
        ".json": json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        ".html": pages.html(title, sections),
        ".md": pages.markdown(title, sections),
    }


def training_seconds(spec: ClaimsSpec, records: Iterable[Path]) -> pd.DataFrame:
    """Seconds of training behind every model that is compared: dataset, method, seed, seconds."""
    trained: dict[str, list[Path]] = {}
    for path in records:
        record = read_record(path)
        if record["stage"] == "train":  # and not the reason why there is no model
            trained.setdefault(record["dataset"], []).append(path)
    parts = [
        frames.compute(trained.get(dataset.dataset, []), dataset.chains).assign(
            dataset=dataset.dataset
        )
        for dataset in spec.datasets
    ]
    return pd.concat(parts, ignore_index=True)
