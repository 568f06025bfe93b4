"""Command-line arguments that several stages share."""

import argparse
import json
from pathlib import Path

from pydantic import ValidationError

from qcsbm.schema.base import ConfigError
from qcsbm.schema.reading import sentence
from qcsbm.schema.specifications import Specification


def read_spec(arguments: argparse.Namespace) -> None:
    """Make the text ``arguments.spec`` the specification that its stage is told.

    Raises:
        ConfigError: it is none of that stage.
    """
    model = getattr(arguments, "specification", None)
    if model is not None:
        try:
            arguments.spec = model.model_validate_json(arguments.spec)
        except ValidationError as error:
            layers = [("", json.loads(arguments.spec))]
            raise ConfigError(sentence(model, error, "specification", layers)) from None


def _json(text: str) -> str:
    try:
        json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"found no JSON ({error}), expected an object") from None
    return text


def existing(text: str) -> Path:
    """A file or folder that is there."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{path}: found nothing there, expected a file or folder")
    return path


def add_spec(parser: argparse.ArgumentParser, model: type[Specification]) -> None:
    """What the stage is told, JSON that `read_spec` makes a ``model`` of."""
    parser.add_argument(
        "--spec", type=_json, required=True, help="specification of the stage, as JSON"
    )
    parser.set_defaults(specification=model)


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=existing, required=True, help="folder of the prepared dataset"
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=existing,
        nargs="+",
        required=True,
        help="checkpoint of the model, safetensors; of a model from outside all of its files",
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
