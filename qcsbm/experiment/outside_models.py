"""The files of a model from outside: they count by their content, as all files from outside do."""

from pathlib import Path

from qcsbm.runtime import outside, own_code
from qcsbm.runtime.errors import BadInput
from qcsbm.schema.outside import Diffusers, Function, model_name

# Of a folder of diffusers, those that make the model; others are texts and pictures.
SUFFIXES = (".json", ".safetensors", ".bin")


def files(model: Diffusers | Function) -> list[Path]:
    """All files that the model is made of; those that are named and not there are among them."""
    if isinstance(model, Diffusers):
        folder = Path(model.path)
        # The scheduler of a pipeline may lie beside its U-Net.
        found = [*folder.rglob("*"), folder.parent / "scheduler" / "scheduler_config.json"]
        return sorted({p for p in found if p.suffix in SUFFIXES and p.is_file()})
    return [*own_code.files(model.type), *map(Path, model.files)]


def sha256(model: Diffusers | Function) -> str | None:
    """That of the model's files together, None where one is not there."""
    return outside.sha256_of(files(model))


def require(model: Diffusers | Function, expected: str | None) -> None:
    """Refuse a model that is not the one that a job was planned with.

    Raises:
        BadInput: the SHA-256 of its files is not ``expected``.
    """
    found = sha256(model)
    if found != expected:
        raise BadInput(
            f"{model_name(model)}: found files with SHA-256 {found}, expected {expected} as when "
            "this job was planned; run snakemake again"
        )
