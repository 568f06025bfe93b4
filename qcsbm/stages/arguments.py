"""Command-line arguments that several stages share."""

import argparse
import json
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from qcsbm.schema.reading import sentence
from qcsbm.schema.specifications import Specification


def specification(model: type[Specification], text: str) -> Specification:
    """The specification of a stage, as it stands in a job's command line."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        try:
            document = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as reason:
            raise argparse.ArgumentTypeError(
                f"found no JSON ({reason}), expected an object"
            ) from None
        problem = sentence(model, error, "specification", [("", document)])
        raise argparse.ArgumentTypeError(problem) from None


def existing(text: str) -> Path:
    """A file or folder that is there."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{path}: found nothing there, expected a file or folder")
    return path


def add_spec(parser: argparse.ArgumentParser, model: type[Specification]) -> None:
    """What the stage is told: ``arguments.spec`` is a ``model``."""
    parser.add_argument(
        "--spec",
        type=partial(specification, model),
        required=True,
        help="specification of the stage, as JSON",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=existing, required=True, help="folder of the prepared dataset"
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=existing, required=True, help="checkpoint of the model, safetensors"
    )


def add_output(parser: argparse.ArgumentParser, name: str, help: str) -> None:
    """A file to write, in whose place stands the reason where it cannot be computed."""
    parser.add_argument(name, type=Path, required=True, help=help)
    outputs = parser.get_default("outputs") or ()
    parser.set_defaults(outputs=(*outputs, name.removeprefix("--")))


def add_record(parser: argparse.ArgumentParser) -> None:
    add_output(parser, "--record", "JSON record to write")


def add_shard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard", required=True, help="part of the work to do: 1-of-1 is all of it"
    )


def add_measurement(parser: argparse.ArgumentParser, model: type[Specification], out: str) -> None:
    """What a stage needs that measures a model by shards; ``out`` says what its .npz holds."""
    add_spec(parser, model)
    add_data(parser)
    add_checkpoint(parser)
    add_shard(parser)
    add_output(parser, "--out", f"{out} to write, .npz")
    add_record(parser)


def add_shards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shards", type=existing, nargs="+", required=True, help="files of all shards, in order"
    )
    parser.add_argument(
        "--records", type=existing, nargs="+", required=True, help="records of all shards"
    )
