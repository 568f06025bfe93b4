"""Prepare a dataset: write both splits as uint8 arrays and describe them."""

import argparse
from pathlib import Path

from qcsbm import source_code
from qcsbm.data import raw, splits
from qcsbm.data.sources import SOURCES
from qcsbm.errors import BadInput
from qcsbm.provenance import provenance
from qcsbm.schema import Dataset, parse
from qcsbm.stages.arguments import add_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(arguments: argparse.Namespace) -> None:
    document = {"label": "", "data": arguments.spec["data"]}
    data = parse(Dataset, "specification", [("", document)]).data
    found = raw.fingerprint(data)
    expected = arguments.spec.get("raw", found)
    if found != expected:
        raise BadInput(
            f"{raw.folder(data)}: found {_text(found)}, expected {_text(expected)} as when this "
            "job was planned; run snakemake again"
        )
    arrays = SOURCES[data.source](data)
    code = {"prepare": [source_code.stage_digest("prepare")]}
    splits.write(
        arguments.out,
        arrays,
        specification=arguments.spec,
        raw=found and {**found, "path": str(raw.folder(data).resolve())},
        provenance=provenance(code),
    )


def _text(fingerprint: dict | None) -> str:
    if fingerprint is None:
        return "no files"
    return "{files} files of {bytes} bytes with SHA-256 {sha256}".format(**fingerprint)
