"""Audits of force fields against Hessians by autograd, with and without a planted rotation."""

import doctest
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from conftest import ROOT, in_process

from qcsbm.auditing import forces
from qcsbm.auditing.audit import asymmetry
from qcsbm.auditing.compare import compare
from qcsbm.auditing.force_report import ForceReport, heading
from qcsbm.auditing.forces import audit_forces, pair_asymmetry
from qcsbm.runtime.errors import BadInput, MissingFile

SIZE = 8


def cluster(seed):
    """A rattled cube of argon whose atoms are about 1.2 Å apart, where ASE's LJ has its minimum."""
    corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1]), -1).reshape(-1, 3)
    atoms = Atoms(f"Ar{SIZE}", 1.2 * corners)
    atoms.rattle(0.05, seed=seed)
    return atoms


def clusters(n):
    return [cluster(seed) for seed in range(n)]


def antisymmetric(seed, d=3 * SIZE):
    matrix = np.random.default_rng(seed).standard_normal((d, d))
    return matrix - matrix.T


class Rotated(Calculator):
    """Another calculator's forces, a rotation of the positions of all atoms, and faults."""

    implemented_properties = ["forces"]

    def __init__(self, inner, rotation=None, rounded=None, noise=0.0):
        super().__init__()
        self.inner, self.rotation, self.rounded, self.noise = inner, rotation, rounded, noise
        self.draws = np.random.default_rng(0)
        self.calls = 0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        moved = atoms.copy()
        if self.rounded:
            moved.positions = moved.positions.astype(np.float32)
        moved.calc = self.inner
        values = moved.get_forces()
        if self.rotation is not None:
            values = values + (self.rotation @ moved.positions.ravel()).reshape(-1, 3)
        values = values + self.noise * self.draws.standard_normal(values.shape)
        if self.rounded == "both":
            values = values.astype(np.float32).astype(np.float64)
        self.results = {"forces": values}


def lennard_jones():
    return LennardJones(rc=10.0)


def hessian(atoms):
    """−J of Lennard-Jones forces, (3N, 3N), by autograd of the energy."""

    def energy(flat):
        # torch.pdist has no second derivative in PyTorch 2.6.
        x = flat.view(-1, 3)
        i, j = torch.triu_indices(len(x), len(x), 1)
        r = (x[i] - x[j]).norm(dim=1)
        return 4 * (r**-12 - r**-6).sum()

    return torch.autograd.functional.hessian(energy, torch.from_numpy(atoms.positions).flatten())


def lambda_of(j):
    return float((j - j.T).norm() / (2 * j.norm()))


def test_energy_is_found_in_forces_that_have_one():
    report = audit_forces(lennard_jones(), clusters(3))
    assert report.zero_within.lambda_ < 1e-7
    assert all(one.zero_within and one.estimator == "exact" for one in report.structures)
    assert report.circulation.rms.value <= report.circulation.error
    text = " ".join(str(report).split())
    assert "zero within" in text and "LennardJones is the gradient of an energy" in text


def test_energy_is_found_by_probes_in_metal_with_periodic_boundaries():
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=0)
    report = audit_forces(EMT(), [atoms], probes=8, circulation=False)
    assert report.structures[0].estimator == "probes"
    assert report.zero_within.lambda_ < 1e-7
    assert report.pairs == ()


@pytest.mark.parametrize("rounded", ["positions", "both"])
def test_forces_in_single_precision_are_zero_within_what_that_leaves(rounded):
    calculator = Rotated(lennard_jones(), rounded=rounded)
    report = audit_forces(calculator, clusters(4), circulation=False)
    assert report.protocol.step >= 1e-3
    assert 1e-6 < report.zero_within.lambda_ < 2e-3
    # Of a step that is too short, the errors are large and known to be so.
    short = audit_forces(calculator, clusters(4), step=3e-6, circulation=False)
    assert short.zero_within.lambda_ > 5e-3


@pytest.mark.parametrize("size", [0.02, 2.0])
def test_planted_rotation_is_found_with_its_size(size):
    rotation = size * antisymmetric(1)
    frames = clusters(4)
    report = audit_forces(Rotated(lennard_jones(), rotation), frames, circulation=False)
    expected = []
    for atoms, found in zip(frames, report.structures, strict=True):
        j = torch.from_numpy(rotation) - hessian(atoms)
        expected.append(lambda_of(j))
        assert found.asym == pytest.approx(2 * np.square(rotation).sum(), rel=1e-6)
        assert found.lambda_ == pytest.approx(expected[-1], rel=1e-6)
        assert found.evaluations == 2 * 3 * SIZE + 4
    assert report.zero_within is None
    assert report.lambda_.value == pytest.approx(np.mean(expected))
    assert report.lambda_.stderr == pytest.approx(np.std(expected, ddof=1) / 2)


def test_probes_agree_with_the_whole_jacobian():
    rotation = antisymmetric(1)
    frames = clusters(12)
    calculator = Rotated(lennard_jones(), rotation)
    report = audit_forces(calculator, frames, probes=24, circulation=False)
    asym = np.array([one.asym for one in report.structures])
    # Errors of structures are independent.
    assert abs(asym.mean() - 2 * np.square(rotation).sum()) < 4 * asym.std(ddof=1) / 12**0.5
    assert asym.std(ddof=1) < 0.5 * asym.mean()
    expected = [lambda_of(torch.from_numpy(rotation) - hessian(atoms)) for atoms in frames]
    error = np.array([one.lambda_ for one in report.structures]) - expected
    assert abs(error.mean()) < 4 * error.std(ddof=1) / 12**0.5


def test_pairs_have_the_lambda_of_their_two_blocks():
    j = torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lambdas, norm = pair_asymmetry(j)
    for first, second in ((0, 1), (0, 2), (2, 1)):
        alone = torch.zeros_like(j)
        for a, b in ((first, second), (second, first)):
            alone[3 * a : 3 * a + 3, 3 * b : 3 * b + 3] = j[3 * a : 3 * a + 3, 3 * b : 3 * b + 3]
        assert float(lambdas[first, second]) == pytest.approx(lambda_of(alone))
        assert float(norm[first, second]) == pytest.approx(float(alone.square().sum()))


def test_rotation_of_one_pair_is_seen_at_its_distance():
    atoms = Atoms("Ar3", [[0, 0, 0], [1.2, 0, 0], [0, 4.5, 0]])
    rotation = np.zeros((9, 9))
    # The third atom feels the first, and pushes back the wrong way.
    rotation[0, 6], rotation[6, 0] = 3.0, -3.0
    calculator = Rotated(LennardJones(rc=2.0), rotation)
    report = audit_forces(calculator, [atoms], circulation=False)
    near, far = report.pairs
    assert (near.low, near.high, near.pairs) == (1.0, 2.0, 1)
    assert near.lambda_.value < 1e-7
    # Beyond the cutoff there is nothing but the rotation; the other pair there has no forces.
    assert (far.low, far.high, far.pairs) == (4.0, 5.0, 1)
    assert far.lambda_.value == pytest.approx(1.0)


def test_pairs_that_rounding_alone_connects_are_left_out():
    atoms = Atoms("Ar3", [[0, 0, 0], [1.2, 0, 0], [0, 4.5, 0]])
    calculator = Rotated(LennardJones(rc=2.0), noise=1e-7)
    (near,) = audit_forces(calculator, [atoms], step=1e-3, circulation=False).pairs
    assert (near.low, near.pairs) == (1.0, 1)


def test_distances_are_those_across_boundaries():
    atoms = Atoms("Ar2", [[0.2, 5, 5], [9.0, 5, 5]], cell=[10, 10, 10], pbc=True)
    (pairs,) = audit_forces(lennard_jones(), [atoms], circulation=False).pairs
    assert (pairs.low, pairs.pairs) == (1.0, 1)


def test_work_around_triangles_is_that_of_the_rotation():
    rotation = antisymmetric(1)
    frames = clusters(12)
    report = audit_forces(Rotated(lennard_jones(), rotation), frames, displacement=0.02)
    around = report.circulation
    # Corners with covariance s² I: E[c²] = ¾ s⁴ ‖A‖².
    expected = (0.75 * 0.02**4 * np.square(2 * rotation).sum()) ** 0.5
    assert around.rms.low < expected < around.rms.high
    assert around.rms.n == 12 * forces.TRIANGLES and around.unit == "eV"
    assert f"{around.rms.value:.2g} eV" in " ".join(report.conclusion)


def test_fixed_atoms_do_not_look_like_a_rotation():
    atoms = cluster(0)
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    assert audit_forces(lennard_jones(), [atoms], circulation=False).zero_within


def test_force_calls_are_all_counted():
    calculator = Rotated(lennard_jones())
    # Triangles begin and end at the same positions, where ASE has the forces already.
    report = audit_forces(calculator, clusters(2), circulation=False)
    assert report.cost.evaluations == calculator.calls


def test_report_is_read_from_file_as_it_was_written(tmp_path):
    path = tmp_path / "structures.xyz"
    ase.io.write(path, clusters(3))
    calculator = Rotated(lennard_jones(), antisymmetric(1))
    report = audit_forces(calculator, path, samples=2, seed=3)
    assert len(report.structures) == 2
    report.to_json(tmp_path / "forces.json")
    assert ForceReport.from_json(tmp_path / "forces.json") == report
    assert max(map(len, str(report).splitlines())) <= 80 and str(report).isascii()
    again = audit_forces(calculator, str(path), samples=2, seed=3)
    assert again.model_dump(exclude={"cost"}) == report.model_dump(exclude={"cost"})
    report.plot(tmp_path / "forces.png")
    assert (tmp_path / "forces.png").stat().st_size > 10_000
    report.page(tmp_path / "page.svg")
    page = (tmp_path / "page.svg").read_text()
    for text in (heading(report), "Ar8", "mean over structures", "Pairs of atoms", "Bigi et"):
        assert text in page, text
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(BadInput, match="expected the report of an audit of forces"):
        ForceReport.from_json(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"structures": []}, "structures: found none"),
        ({"structures": ["H2O"]}, "structures: found a str, expected ase.Atoms"),
        ({"samples": 0}, "samples: found 0, expected a positive number"),
        ({"probes": 2}, "probes: found 2, expected 'exact' or a number of 3 or more"),
        ({"probes": "all"}, "probes: found 'all'"),
        ({"step": 0.0}, "step: found 0, expected a positive length"),
        ({"displacement": float("inf")}, "displacement: found inf"),
        ({"calculator": EMT()}, "EMT on Ar8: found .*, expected forces at these positions"),
        (
            {"calculator": Rotated(LennardJones(), noise=0.1)},
            "forces at the same positions that differ",
        ),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence):
    given = {"calculator": lennard_jones(), "structures": clusters(1)} | arguments
    with pytest.raises(BadInput, match=sentence) as error:
        audit_forces(given.pop("calculator"), given.pop("structures"), **given)
    assert "\n" not in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFile, match="none.xyz: found no such file"):
        audit_forces(lennard_jones(), tmp_path / "none.xyz")


def test_comparison_says_which_forces_are_worse(tmp_path):
    frames = clusters(6)
    some, more = (
        audit_forces(Rotated(lennard_jones(), size * antisymmetric(1)), frames)
        for size in (0.5, 0.6)
    )
    none = audit_forces(lennard_jones(), frames)
    some.to_json(tmp_path / "some.json")
    found = compare(tmp_path / "some.json", more)
    assert [d.verdict for d in found.differences] == ["worse"] * 3
    of_lambda = found.differences[1]
    differences = [
        b.lambda_ - a.lambda_ for a, b in zip(some.structures, more.structures, strict=True)
    ]
    assert of_lambda.metric == "lambda" and of_lambda.change.n == 6
    assert of_lambda.change.value == pytest.approx(np.mean(differences))
    assert compare(more, some).worse is False
    assert compare(some, some).worse is False
    assert {d.verdict for d in compare(none, none).differences} == {"same"}
    with pytest.raises(BadInput, match="B: found the seed 1, expected 0 as in A"):
        compare(some, audit_forces(lennard_jones(), frames, seed=1, circulation=False))
    with pytest.raises(BadInput, match="B: found the structures"):
        compare(some, audit_forces(lennard_jones(), frames[:5], circulation=False))
    plain = asymmetry(lambda x: x, torch.randn(4, 2))
    with pytest.raises(BadInput, match="found an audit of forces and an audit, expected two of"):
        compare(some, plain)


CALCULATORS = """
from ase.calculators.lj import LennardJones

def argon():
    return LennardJones(rc=10.0)
"""


def test_command_audits_a_calculator_at_structures_of_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "potentials.py").write_text(CALCULATORS)
    ase.io.write("clusters.xyz", clusters(3))
    command = ["audit", "potentials:argon", "--kind", "force", "--data", "clusters.xyz"]
    assert in_process(*command, "--out", "audit", "--samples", 2) == 0
    report = ForceReport.from_json(tmp_path / "audit/audit.json")
    assert len(report.structures) == 2 and report.zero_within
    assert str(report) in capsys.readouterr().out
    names = {f"audit.{suffix}" for suffix in ("json", "png", "svg", "pdf")}
    assert {path.name for path in (tmp_path / "audit").iterdir()} == names
    assert in_process(*command, "--out", "audit", "--label", 3) == 2
    assert "--label: found one, expected none for a calculator" in capsys.readouterr().err


def test_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/forces.md").read_text()
    names = {}
    for block in text.split("```python\n")[1:]:
        exec(block.split("```")[0], names)
    assert names["report"].zero_within.lambda_ < 1e-6
    pushed = names["pushed"]
    assert pushed.lambda_.value > 0.001 and pushed.zero_within is None
    assert f"{pushed.lambda_.value:.2g}" == "0.01"
    assert f"{pushed.circulation.rms.value:.1g}" == "0.006"
    assert ForceReport.from_json("audit.json") == names["report"]
    ase.io.write("structures.xyz", names["structures"])
    module, rest = text.split("```\ncat > ")[1].split(" <<'PYTHON'\n")
    code, command = rest.split("```")[0].split("PYTHON\n")
    Path(module).write_text(code)
    capsys.readouterr()
    assert in_process(*command.split()[1:]) == 0
    assert "zero within" in capsys.readouterr().out


def test_examples_run():
    assert doctest.testmod(forces).failed == 0
