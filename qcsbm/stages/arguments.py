"""Command-line arguments that several stages share."""

import argparse
import json
from pathlib import Path


def json_object(text: str) -> dict:
    """The specification, as it stands in a job's command line."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"found no JSON ({error}), expected an object") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"found {text[:40]}, expected a JSON object")
    return value


def existing(text: str) -> Path:
    """A file or folder that is there."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{path}: found nothing there, expected a file or folder")
    return path


def add_spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spec", type=json_object, required=True, help="specification of the stage, as JSON"
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=existing, required=True, help="folder of the prepared dataset"
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=existing, required=True, help="checkpoint of the model, safetensors"
    )


def add_record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--record", type=Path, required=True, help="JSON record to write")
