"""Make one table, in Markdown, HTML, CSV and LaTeX, from the records that it needs."""

import argparse
from pathlib import Path

from qcsbm import pages, tables
from qcsbm.files import write_text
from qcsbm.provenance import read_record
from qcsbm.stages.arguments import add_spec, existing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser)
    parser.add_argument(
        "--records", type=existing, nargs="+", required=True, help="records of measuring stages"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="path without suffix of the files to write"
    )


def run(arguments: argparse.Namespace) -> None:
    sampler = arguments.spec["sampler"]
    title = f"Sample quality, {sampler.upper()} sampler" if sampler else "Likelihood and asymmetry"
    records = [read_record(path) for path in arguments.records]
    blocks = tables.build(tables.tidy(records), arguments.spec, tables.failures(records))
    write_text(f"{arguments.out}.csv", tables.flat(blocks).to_csv(index=False))
    write_text(f"{arguments.out}.tex", tables.latex(blocks))
    pages.write(arguments.out, title, tables.sections(blocks))
