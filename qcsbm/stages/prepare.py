"""Prepare a dataset: write both splits as uint8 arrays and describe them."""

import argparse
import logging
from pathlib import Path

import numpy as np

from qcsbm.data import raw, splits
from qcsbm.data.sources import SOURCES
from qcsbm.data.splits import SPLITS, Splits
from qcsbm.runtime import source_code
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.provenance import provenance
from qcsbm.schema.sources import Fingerprint
from qcsbm.schema.specifications import PrepareSpec
from qcsbm.stages.arguments import add_spec

BLOCK = 1024  # images whose levels are looked at together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, PrepareSpec)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(arguments: argparse.Namespace) -> None:
    spec: PrepareSpec = arguments.spec
    data = spec.data
    found = raw.fingerprint(data)
    if found != spec.raw:
        raise BadInput(
            f"{raw.folder(data)}: found {_text(found)}, expected {_text(spec.raw)} as when this "
            "job was planned; run snakemake again"
        )
    code = {"prepare": [source_code.stage_digest("prepare")]}
    images = SOURCES[data.source](data)
    _require_measurable(images)
    used = _used_levels(images)
    if 2 * used <= images.levels:
        logging.warning(
            "data: found %d levels in use, expected most of data.levels = %d, at which bits/dim "
            "are counted",
            used,
            images.levels,
        )
    splits.write(
        arguments.out,
        images,
        specification=spec.document(),
        raw=found and {**found.model_dump(), "path": str(raw.folder(data).resolve())},
        provenance=provenance(code),
    )


def _text(fingerprint: Fingerprint | None) -> str:
    if fingerprint is None:
        return "no files"
    return (
        f"{fingerprint.files} files of {fingerprint.bytes} bytes with SHA-256 {fingerprint.sha256}"
    )


def _require_measurable(data: Splits) -> None:
    """Refuse images that no network takes, and a single one for testing.

    Raises:
        BadInput: see above.
    """
    n, _, height, width = data.test.images.shape
    if height != width:
        raise BadInput(
            f"data: found images of {height} × {width} pixels, expected square ones, as the "
            "network takes no others"
        )
    if n < 2:
        raise BadInput(
            f"data: found {n} image in the split test, expected at least 2, as no fewer have a "
            "standard error"
        )


def _used_levels(data: Splits) -> int:
    """How many of the levels some pixel has."""
    used = np.zeros(data.levels, dtype=bool)
    for name in SPLITS:
        images = getattr(data, name).images
        for start in range(0, len(images), BLOCK):
            if used.all():
                break
            used[images[start : start + BLOCK]] = True
    return int(used.sum())
