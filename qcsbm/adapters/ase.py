"""Structures and calculators of ASE, the Atomic Simulation Environment: forces as a vector field.

References:
    The Atomic Simulation Environment: a Python library for working with atoms (Larsen et al., 2017)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qcsbm.adapters.field import Field
from qcsbm.adapters.library import library
from qcsbm.runtime import own_code
from qcsbm.runtime.errors import BadInput, MissingFile

if TYPE_CHECKING:
    from ase import Atoms


def from_calculator(calculator: Any, atoms: "Atoms") -> Field:
    """The forces of an ASE ``calculator`` on the structure ``atoms``, in eV/Å.

    The field maps positions (B, N, 3) in Å to forces of that shape, by one call of the calculator
    for every sample, and ignores t. Elements, cell and charges stay those of ``atoms``. Constraints
    are left out, since a force that is set to zero is no gradient.

    >>> from ase.build import molecule
    >>> from ase.calculators.emt import EMT
    >>> field = from_calculator(EMT(), molecule("CO"))
    >>> field.name, field.shape
    ('EMT on CO', (2, 3))

    Raises:
        BadInput: ``calculator`` has no forces, or ``atoms`` no atoms.
    """
    found = type(calculator).__name__
    if not hasattr(calculator, "get_forces"):
        raise BadInput(f"calculator: found an object of type {found}, expected a calculator of ASE")
    # It is empty where a calculator does not say what it has.
    properties = getattr(calculator, "implemented_properties", ())
    if properties and "forces" not in properties:
        raise BadInput(
            f"{found}: found the properties {', '.join(properties)}, expected a calculator that "
            "has forces"
        )
    if len(atoms) == 0:
        raise BadInput(f"{found}: found a structure without atoms, expected one or more")
    structure = atoms.copy()
    structure.set_constraint()
    structure.calc = calculator
    name = f"{found} on {structure.get_chemical_formula()}"

    def forces(x: Tensor, t: Tensor) -> Tensor:
        values = []
        for positions in x.detach().cpu().numpy():
            structure.positions = positions
            values.append(_checked_forces(structure, name))
        return torch.from_numpy(np.stack(values)).to(x)

    return Field(forces, "force", name=name, shape=(len(atoms), 3), differentiable=False)


def _checked_forces(structure: "Atoms", name: str) -> np.ndarray:
    try:
        values = np.array(structure.get_forces(), dtype=np.float64)
    # Calculators raise what they like where an element is missing.
    except Exception as error:
        raise BadInput(
            f"{name}: found {type(error).__name__}: {error}, expected forces at these positions"
        ) from error
    if values.shape != (len(structure), 3):
        raise BadInput(
            f"{name}: found forces of shape {values.shape}, expected {(len(structure), 3)}"
        )
    if not np.isfinite(values).all():
        raise BadInput(f"{name}: found forces that are not finite, expected finite numbers")
    return values


def read_structures(path: str | Path) -> list["Atoms"]:
    """All structures of a file: extended XYZ, or whatever else ASE reads.

    Raises:
        BadInput: ASE is missing, or there is no such file, or there are no structures in it.
    """
    library("ase")
    from ase.io import iread
    from ase.io.formats import UnknownFileTypeError, filetype

    if not Path(path).exists():
        raise MissingFile(f"{path}: found no such file, expected structures")
    try:
        file_format = filetype(str(path))
        if file_format == "trj":
            raise BadInput(
                f"{path}: found an old trajectory of ASE, which is a pickle, expected structures "
                "as extended XYZ; `ase convert` makes them of it"
            )
        # To ASE, what follows an @ in a name would be an index.
        frames = iread(str(path), ":", format=file_format, do_not_split_by_at_sign=True)
        structures = list(frames)
    except BadInput:
        raise
    # ASE's readers raise whatever a broken line makes them raise.
    except Exception as error:
        what = (
            "a format that ASE does not know"
            if isinstance(error, UnknownFileTypeError)
            else f"{type(error).__name__}: {error}"
        )
        raise BadInput(f"{path}: found {what}, expected structures as extended XYZ") from error
    if not structures:
        raise BadInput(f"{path}: found no structures, expected one or more")
    return structures


def load_calculator(name: str) -> Any:
    """The calculator that the function ``name``, in the working directory, returns.

    ``module:function`` takes no arguments.

    Raises:
        BadInput: there is no such function, or it raised an exception.
    """
    factory = own_code.function(name)
    with own_code.errors_located(name, "a function without arguments that returns a calculator"):
        return factory()
