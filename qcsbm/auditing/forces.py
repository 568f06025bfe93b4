r"""The audit of a force field: are the forces of an ASE calculator the gradient of an energy?

With J = ∂F/∂x the Jacobian of the forces F (eV/Å) at the positions x (Å) of a structure of N atoms,
and J_ij its 3 × 3 block ∂F_i/∂x_j,

.. math:: \lambda = \frac{\|J - J^T\|_F}{2 \|J\|_F} = \sqrt{NAsym} \in [0, 1], \qquad
   \lambda_{ij}^2 = \frac{\|J_{ij} - J_{ji}^T\|_F^2}{2 (\|J_{ij}\|_F^2 + \|J_{ji}\|_F^2)},

the latter for pairs of atoms i ≠ j, in the manner of Bigi et al.: whether theirs is normalised in
the same way was not compared, so that λ alone should be set beside their figures. λ_ij is λ of the
matrix that has the two blocks of the pair and zeros elsewhere, and the same for (j, i). Where the
two blocks are of one size, it is ‖½(J_ij − J_jiᵀ)‖_F / ‖J_ij‖_F. Both are 0 where forces are
conservative, and 1 where the energy is missing altogether.

A whole Jacobian takes 2 · 3N force calls, by central differences along every coordinate. K
Rademacher probes take 2K, whatever N is: see `qcsbm.conservativeness.estimates`. They leave the
blocks of pairs unknown.

References:
    The dark side of the forces: assessing non-conservative force models for atomistic machine
    learning (Bigi, Langer & Ceriotti, 2024), for λ; https://arxiv.org/abs/2412.11569
    ML-PEG, benchmark "Jacobian symmetry", for whole Jacobians by 2 · 3N force calls and the mean of
    λ over structures; https://github.com/ddmms/ml-peg
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from qcsbm.adapters.ase import from_calculator, read_structures
from qcsbm.adapters.field import Field
from qcsbm.adapters.library import library
from qcsbm.auditing import force_report as found
from qcsbm.auditing.audit import versions
from qcsbm.auditing.report import Circulation, Cost, Quantity, Zero
from qcsbm.conservativeness import circulation as paths
from qcsbm.conservativeness.asymmetry import half_squared_rotation
from qcsbm.conservativeness.estimates import CHECKS, estimate, zero_within
from qcsbm.conservativeness.interval import mean
from qcsbm.conservativeness.products import central_difference, rademacher
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import sha256
from qcsbm.runtime.seeding import generator, permutation

if TYPE_CHECKING:
    from ase import Atoms

# Probes where nobody asks for another number. Up to so many coordinates a whole Jacobian costs no
# more.
PROBES = 64
# Å. Calculators that round to float32 need the long ones.
STEPS = (1e-5, 1e-4, 1e-3, 1e-2)
TRIANGLES = 2
# Relative error of a circulation, and the most intervals that a triangle is given for it: 51 to 153
# force calls.
TOLERANCE, INTERVALS = 0.05, 6
# Å: what atoms move by at room temperature.
DISPLACEMENT = 0.1
# A pair of atoms counts where its blocks are so many times as large as what rounding and truncation
# make of them: then these change λ_ij by less than 0.1.
RESOLVED = 10.0
# Å.
BIN = 1.0


def audit_forces(
    calculator: Any,
    structures: "str | Path | Sequence[Atoms]",
    *,
    probes: int | Literal["exact"] | None = None,
    step: float | None = None,
    samples: int | None = None,
    circulation: bool = True,
    displacement: float = DISPLACEMENT,
    seed: int = 0,
    progress: bool = False,
) -> found.ForceReport:
    """Whether the forces of an ASE ``calculator`` are the gradient of an energy at ``structures``.

    These are a list of ``ase.Atoms``, or the path of a file that ASE reads, such as extended XYZ.
    Of more structures than ``samples`` a random part is taken, which ``seed`` decides.

    Of structures of at most 64 coordinates, and of all of them with ``probes="exact"``, the whole
    Jacobian is computed; else there are 64 ``probes``, or as many as are given. ``step`` of the
    central differences is in Å; without one, that of 1e-5, 1e-4, 1e-3 and 1e-2 is taken whose
    rounding and truncation are the smallest at the first structure. ``circulation`` is that around
    two triangles between copies of each structure whose coordinates have Gaussian noise of standard
    deviation ``displacement`` (Å). ``progress`` shows a bar on standard error.

    Raises:
        BadInput: ASE is missing, there are no structures, the calculator has no finite forces there
            or other ones at the next call, or arguments do not fit.

    >>> from ase.build import molecule
    >>> from ase.calculators.emt import EMT
    >>> report = audit_forces(EMT(), [molecule("H2O")])
    >>> report.zero_within is not None
    True
    """
    start = time.perf_counter()
    library("ase")
    _require_arguments(samples, probes, step, displacement)
    frames, digest = _frames(structures)
    if samples is not None:
        chosen = permutation(len(frames), seed, "samples")[:samples]
        frames = [frames[i] for i in np.sort(chosen)]
    forces = [_Forces(from_calculator(calculator, atoms)) for atoms in frames]
    _require_repeatable(forces[0], frames[0])
    length = _best_step(forces[0], frames[0], seed) if step is None else step
    measured, pairs = [], []
    with tqdm(total=len(frames), disable=not progress, unit="structure") as bar:
        for number, (field, atoms) in enumerate(zip(forces, frames, strict=True)):
            draws = generator(seed, "forces", number)
            one, of_pairs = _measure(field, atoms, probes, length, draws)
            measured.append(one)
            pairs.append(of_pairs)
            bar.update()
    calls = {"Jacobians": sum(field.calls for field in forces)}
    around = _around(forces, frames, displacement, seed) if circulation else None
    calls["circulation"] = sum(field.calls for field in forces) - calls["Jacobians"]
    zeros = [one.zero_within for one in measured if one.zero_within]
    zero = _largest(zeros) if len(zeros) == len(measured) else None
    lambda_ = Quantity.of(mean(torch.tensor([one.lambda_ for one in measured])))
    protocol = found.ForceProtocol(
        calculator=type(calculator).__name__,
        structures=digest,
        probes=None if all(one.estimator == "exact" for one in measured) else _count(probes),
        step=length,
        displacement=displacement,
        seed=seed,
    )
    return found.ForceReport(
        protocol=protocol,
        structures=tuple(measured),
        nasym=Quantity.of(mean(torch.tensor([one.nasym for one in measured]))),
        lambda_=lambda_,
        zero_within=zero,
        circulation=around,
        pairs=tuple(_bins(pairs)),
        conclusion=tuple(
            found.conclusion(protocol.calculator, lambda_, zero, around, displacement)
        ),
        cost=Cost(
            evaluations=sum(calls.values()),
            parts=calls,
            seconds=round(time.perf_counter() - start, 3),
        ),
        versions=dict(versions()),
    )


class _Forces:
    """The forces on a structure as a function of positions (B, N, 3), whose calls are counted."""

    def __init__(self, field: Field):
        self.field, self.calls = field, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += len(x)
        return self.field(x, x.new_zeros(len(x)))


def _frames(
    structures: "str | Path | Sequence[Atoms]",
) -> "tuple[list[Atoms], str]":
    """The structures and the SHA-256 of the file, or of their elements, cells and positions."""
    if isinstance(structures, str | Path):
        return read_structures(structures), sha256(structures)
    frames = list(structures)
    if not frames:
        raise BadInput("structures: found none, expected one or more")
    digest = hashlib.sha256()
    for atoms in frames:
        if not hasattr(atoms, "get_chemical_formula"):
            raise BadInput(f"structures: found a {type(atoms).__name__}, expected ase.Atoms")
        for array in (atoms.numbers, atoms.cell.array, atoms.pbc, atoms.positions):
            digest.update(np.ascontiguousarray(array).tobytes())
    return frames, digest.hexdigest()


def _require_arguments(
    samples: int | None,
    probes: int | Literal["exact"] | None,
    step: float | None,
    displacement: float,
) -> None:
    if samples is not None and samples < 1:
        raise BadInput(f"samples: found {samples}, expected a positive number")
    if probes is not None and probes != "exact" and (isinstance(probes, str) or probes < 3):
        raise BadInput(f"probes: found {probes!r}, expected 'exact' or a number of 3 or more")
    for name, length in (("step", step), ("displacement", displacement)):
        if length is not None and not 0 < length < float("inf"):
            raise BadInput(f"{name}: found {length:g}, expected a positive length in Å")


def _positions(atoms: "Atoms") -> Tensor:
    """Positions (1, N, 3), float64."""
    return torch.from_numpy(np.array(atoms.positions, dtype=np.float64))[None]


def _require_repeatable(forces: _Forces, atoms: "Atoms") -> None:
    x = _positions(atoms)
    # Calculators keep the results of their last positions: others lie between the two calls.
    first, _, again = (forces(x + shift) for shift in (0.0, STEPS[-1], 0.0))
    change, largest = float((first - again).abs().max()), float(first.abs().max())
    # Forces in single precision need not be added up in one order.
    if change > 1e-3 * largest:
        raise BadInput(
            f"{forces.field.name}: found forces at the same positions that differ by {change:.2g} "
            "eV/Å, expected the same ones"
        )


def _best_step(forces: _Forces, atoms: "Atoms", seed: int) -> float:
    """That of `STEPS` at which a product changes the least with the step."""
    x = _positions(atoms)
    v = rademacher(x.shape, generator(seed, "step")).to(x)

    def error(step: float) -> float:
        # Truncation doubles at √2 times the step, and the two roundings are independent.
        products = [central_difference(forces, x, v, h) for h in (step, 2**0.5 * step)]
        return float((products[0] - products[1]).norm())

    return min(STEPS, key=error)


def _count(probes: int | Literal["exact"] | None) -> int:
    return probes if isinstance(probes, int) else PROBES


def _measure(
    forces: _Forces,
    atoms: "Atoms",
    probes: int | Literal["exact"] | None,
    step: float,
    draws: torch.Generator,
) -> tuple[found.Structure, tuple[Tensor, Tensor]]:
    """One structure, and the distances and λ_ij of its pairs where they are known."""
    x = _positions(atoms)
    whole = probes == "exact" or (probes is None and x.numel() <= PROBES)
    before = forces.calls
    pairs = torch.empty(0), torch.empty(0)
    if whole:
        j, defect = _jacobian(forces, x, step, draws)
        asym, norm = float(half_squared_rotation(j[None])), j.square().sum()
        nasym = asym / (2 * float(norm)) if norm else 0.0
        # With E the error of J, E[‖Ev‖²] = ‖E‖_F² for probes v, and ½‖E − Eᵀ‖_F² is as large where
        # the entries of E are independent.
        floor, comparisons = defect.square().sum(1).mean(), defect.numel()
        pairs = _pairs(atoms, j, defect)
    else:
        estimates = estimate(forces, x, _count(probes), "forward", step, draws)
        asym, norm, nasym = float(estimates.asym), estimates.squared_norm, float(estimates.nasym())
        floor, comparisons = estimates.floor, estimates.comparisons
    structure = found.Structure(
        formula=atoms.get_chemical_formula(),
        atoms=len(atoms),
        estimator="exact" if whole else "probes",
        evaluations=forces.calls - before,
        asym=asym,
        nasym=nasym,
        lambda_=max(nasym, 0.0) ** 0.5,
        floor=float(floor),
        zero_within=_zero(asym, float(norm), float(floor), comparisons),
    )
    return structure, pairs


def _jacobian(
    forces: _Forces, x: Tensor, step: float, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """J (3N, 3N) at x (1, N, 3) by 2 · 3N force calls, and what `CHECKS` probes find wrong with it.

    The latter (CHECKS, 3N) are Jv less a difference along v, whose step is another one: a
    coordinate that is rounded always moves by the same wrong length. Coordinates are moved one at a
    time, so that blocks of atoms too far apart to feel each other are exactly zero.
    """
    unit = torch.eye(x.numel()).to(x)
    columns = [central_difference(forces, x, e.view_as(x), step).flatten() for e in unit]
    j = torch.stack(columns, 1)
    v = torch.stack([rademacher(x.shape, draws) for _ in range(CHECKS)]).to(x)
    longer = 2**0.5 * step
    direct = torch.stack([central_difference(forces, x, probe, longer).flatten() for probe in v])
    return j, direct - v.flatten(1) @ j.T


def pair_asymmetry(j: Tensor) -> tuple[Tensor, Tensor]:
    """λ_ij of all pairs of atoms, and ‖J_ij‖_F² + ‖J_ji‖_F², from a Jacobian (3N, 3N); two (N, N).

    λ_ij is 0 where both blocks are.

    >>> import torch
    >>> j = torch.zeros(6, 6)
    >>> j[0, 3], j[3, 0] = 3.0, 1.0
    >>> pair_asymmetry(j)[0][0, 1].square()
    tensor(0.2000)
    """
    blocks = j.unflatten(0, (-1, 3)).unflatten(2, (-1, 3)).transpose(1, 2)
    rotation = (blocks - blocks.transpose(0, 1).mT).square().sum((2, 3))
    norm = blocks.square().sum((2, 3))
    norm = norm + norm.T
    return (rotation / (2 * norm.where(norm > 0, 1.0))).sqrt(), norm


def _pairs(atoms: "Atoms", j: Tensor, defect: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (Å) and λ_ij of the pairs whose blocks stand out from rounding and truncation."""
    lambdas, norm = pair_asymmetry(j)
    # Of each row of J the mean square of an entry's error, and so of the nine in a block.
    noise = 9 * defect.square().mean(0).view(-1, 3).mean(1) / len(j)
    seen = (norm > RESOLVED**2 * (noise + noise[:, None])).triu(1)
    distances = torch.from_numpy(atoms.get_all_distances(mic=bool(atoms.pbc.any())))
    return distances[seen], lambdas[seen]


def _bins(pairs: list[tuple[Tensor, Tensor]]) -> list[found.Pairs]:
    """λ_ij by distance: means over structures of their own means."""
    bins = []
    furthest = max((float(d.max()) for d, _ in pairs if len(d)), default=0.0)
    for number in range(int(furthest // BIN) + 1):
        low, high = BIN * number, BIN * (number + 1)
        within = [values[(low <= d) & (d < high)] for d, values in pairs]
        within = [values for values in within if len(values)]
        if within:
            bins.append(
                found.Pairs(
                    low=low,
                    high=high,
                    pairs=sum(map(len, within)),
                    lambda_=Quantity.of(mean(torch.stack([v.mean() for v in within]))),
                )
            )
    return bins


def _around(
    forces: list[_Forces], frames: "list[Atoms]", displacement: float, seed: int
) -> Circulation:
    """The work around triangles between displaced copies of the structures, in eV."""
    values, absolute, error = [], [], []
    for number, (field, atoms) in enumerate(zip(forces, frames, strict=True)):
        x = _positions(atoms)
        draws = generator(seed, "displacements", number)
        z = torch.randn((TRIANGLES, 3, *x.shape[1:]), dtype=torch.float64, generator=draws)
        work = paths.circulation(field, x + displacement * z, TOLERANCE, INTERVALS)
        values.append(work.values)
        absolute.append(work.absolute)
        error.append(work.error)
    work_done = torch.cat(values)
    rms = paths.root_mean_square(work_done)
    return Circulation(
        rms=Quantity.of(rms),
        relative=_rms(work_done) / _rms(torch.cat(absolute)),
        error=_rms(torch.cat(error)),
        unit="eV",
        values=tuple(work_done.tolist()),
    )


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _zero(asym: float, squared_norm: float, floor: float, comparisons: int) -> Zero | None:
    within = zero_within(torch.tensor([asym]), torch.tensor([floor]), comparisons)
    if within is None:
        return None
    nasym = within / (2 * squared_norm) if squared_norm else 0.0
    return Zero(asym=within, nasym=nasym, lambda_=nasym**0.5)


def _largest(zeros: list[Zero]) -> Zero:
    return Zero(
        asym=max(zero.asym for zero in zeros),
        nasym=max(zero.nasym for zero in zeros),
        lambda_=max(zero.lambda_ for zero in zeros),
    )
