"""Make one table, in Markdown, HTML, CSV and LaTeX, from the records that it needs."""

import argparse
from pathlib import Path
from typing import Any

from qcsbm.report import pages, tables
from qcsbm.runtime.files import write_text
from qcsbm.schema.samplers import sampler_label
from qcsbm.schema.specifications import TableSpec
from qcsbm.stages.aggregation import add_records, read_records


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_records(parser, TableSpec, "records of measuring stages")
    parser.add_argument(
        "--out", type=Path, required=True, help="path without suffix of the files to write"
    )


def run(arguments: argparse.Namespace) -> None:
    records, notes = read_records(arguments)
    for suffix, text in texts(arguments.spec, list(records.values()), notes).items():
        write_text(f"{arguments.out}{suffix}", text)


def texts(spec: TableSpec, records: list[dict[str, Any]], notes: list[str]) -> dict[str, str]:
    """The table that ``spec`` describes, by the suffix of its file; ``notes`` stand below it."""
    sampler = spec.sampler
    title = "Likelihood and asymmetry"
    if sampler:
        title = f"Sample quality, {sampler_label(sampler)} sampler"
    blocks = tables.build(tables.tidy(records), spec, tables.failures(records))
    for block in blocks:
        block.notes.extend(notes)
    sections = tables.sections(blocks)
    return {
        ".csv": tables.flat(blocks).to_csv(index=False),
        ".tex": tables.latex(blocks),
        ".html": pages.html(title, sections),
        ".md": pages.markdown(title, sections),
    }
