"""Forces of ASE's calculators as vector fields, and structures from files."""

import doctest
import pickle

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms

import qcsbm.adapters.ase
from qcsbm.adapters.ase import from_calculator, load_calculator, read_structures
from qcsbm.runtime.errors import BadInput, MissingFile

T = torch.zeros(2)


class Constant(Calculator):
    """Forces that are the same everywhere."""

    implemented_properties = ["forces"]

    def __init__(self, forces):
        super().__init__()
        self.forces = forces

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"forces": self.forces}


class NoForces(Constant):
    implemented_properties = ["energy"]


def water():
    return molecule("H2O")


def test_field_has_the_calculators_forces_at_every_sample():
    atoms = water()
    x = torch.from_numpy(atoms.positions).expand(2, 3, 3).clone()
    x[1, 0, 2] += 0.1
    field = from_calculator(EMT(), atoms)
    expected = []
    for positions in x.numpy():
        moved = Atoms("OHH", positions, calculator=EMT())
        expected.append(moved.get_forces())
    np.testing.assert_array_equal(field(x, T).numpy(), np.stack(expected))
    assert (field.kind, field.shape, field.differentiable) == ("force", (3, 3), False)
    assert field(x.float(), T).dtype == torch.float32
    np.testing.assert_array_equal(atoms.positions, water().positions)
    assert atoms.calc is None


def test_fixed_atoms_have_forces_all_the_same():
    atoms = water()
    free = from_calculator(EMT(), atoms)
    atoms.set_constraint(FixAtoms([0]))
    x = torch.from_numpy(atoms.positions)[None] * 1.1
    fixed = from_calculator(EMT(), atoms)(x, T)
    assert fixed[0, 0].abs().max() > 0
    torch.testing.assert_close(fixed, free(x, T))


@pytest.mark.parametrize(
    ("calculator", "atoms", "sentence"),
    [
        (dict(), water(), "found an object of type dict, expected a calculator of ASE"),
        (NoForces(None), water(), "found the properties energy, expected a calculator that has"),
        (EMT(), Atoms(), "found a structure without atoms"),
        (EMT(), Atoms("Og2", [[0, 0, 0], [0, 0, 2]]), "Og2: found NotImplementedError: No EMT"),
        (Constant(np.full((3, 3), np.nan)), water(), "H2O: found forces that are not finite"),
        (Constant(np.zeros(3)), water(), "forces of shape \\(3,\\), expected \\(3, 3\\)"),
    ],
)
def test_calculator_without_forces_there_is_refused(calculator, atoms, sentence):
    with pytest.raises(BadInput, match=sentence):
        field = from_calculator(calculator, atoms)
        field(torch.from_numpy(atoms.positions)[None], T)


def test_structures_of_a_file_are_read_in_order(tmp_path):
    frames = [molecule(name) for name in ("H2O", "CH4", "NH3")]
    frames[1].set_constraint(FixAtoms([0]))
    path = tmp_path / "three@home.xyz"
    ase.io.write(str(path), frames, format="extxyz", append=True)
    formulas = [atoms.get_chemical_formula() for atoms in read_structures(path)]
    assert formulas == ["H2O", "CH4", "H3N"]


def test_file_without_structures_is_refused(tmp_path):
    with pytest.raises(MissingFile, match="none.xyz: found no such file"):
        read_structures(tmp_path / "none.xyz")
    broken = tmp_path / "broken.xyz"
    broken.write_text("3\n\nH 0 0\n")
    empty = tmp_path / "empty.xyz"
    empty.write_text("")
    text = tmp_path / "notes.txt"
    text.write_text("nothing\n")
    for path in (broken, empty, text):
        with pytest.raises(BadInput, match=f"{path.name}: found .*, expected"):
            read_structures(path)


@pytest.mark.parametrize("name", ["old.traj", "old"])
def test_nothing_is_unpickled(tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = tmp_path / name
    path.write_bytes(b"PickleTrajectory" + pickle.dumps(Trap()))
    with pytest.raises(BadInput, match="expected structures"):
        read_structures(path)


def test_calculators_of_different_structures_do_not_disturb_each_other():
    calculator = LennardJones()
    fields = [from_calculator(calculator, Atoms(f"Ar{n}", np.eye(n, 3) * 1.2)) for n in (2, 3)]
    x = [torch.eye(n, 3, dtype=torch.float64)[None] * 1.2 for n in (2, 3)]
    first = fields[0](x[0], T)
    fields[1](x[1], T)
    torch.testing.assert_close(fields[0](x[0], T), first)


def test_calculator_comes_from_a_function_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "potentials.py").write_text(
        "from ase.calculators.emt import EMT\n"
        "def copper():\n    return EMT()\n"
        "def broken():\n    raise KeyError('no weights')\n"
    )
    assert isinstance(load_calculator("potentials:copper"), EMT)
    with pytest.raises(BadInput, match=r"found KeyError: 'no weights' \(potentials.py, line 5\)"):
        load_calculator("potentials:broken")
    with pytest.raises(BadInput, match="potentials:iron: found nothing under that name"):
        load_calculator("potentials:iron")


def test_examples_run():
    assert doctest.testmod(qcsbm.adapters.ase).failed == 0
