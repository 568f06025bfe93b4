"""What stages share that put records together: they refuse a mixture, and say what differs."""

import argparse
import logging
from pathlib import Path
from typing import Any

from qcsbm.experiment import agreement
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.provenance import read_record
from qcsbm.schema.specifications import Together
from qcsbm.stages.arguments import add_spec, existing


def add_records(parser: argparse.ArgumentParser, model: type[Together], help: str) -> None:
    """The specification and the records of a stage that puts records together."""
    add_spec(parser, model)
    parser.add_argument("--records", type=existing, nargs="+", required=True, help=help)


def read_records(arguments: argparse.Namespace) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """All records by path, and sentences on what a reader of their numbers must know.

    Raises:
        BadInput: they are not what the specification expects, contradict each other or, where it
            is strict, were not all computed by the same code.
    """
    records = {path: read_record(path) for path in arguments.records}
    agreement.require(records, arguments.spec)
    notes = agreement.code_notes(records)
    if notes and arguments.spec.strict:
        raise BadInput(f"{notes[0]} Expected one code, as the experiment file is strict.")
    notes += agreement.machine_notes(records)
    for note in notes:
        logging.warning("%s", note)
    return records, notes
