"""What an audit of a force field found, as closed models that become JSON, a table and a figure.

The same calculator, structures and seed give the same bytes of all but ``cost`` and ``versions``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qcsbm.auditing.report import (
    Circulation,
    Cost,
    Number,
    Part,
    Quantity,
    Size,
    Whole,
    Written,
    Zero,
    aligned,
    by_part,
    interval,
    shown,
    wrapped,
)
from qcsbm.runtime.terminal import plain

# Rows of the table: of more structures those with the largest λ.
ROWS = 12


class ForceProtocol(Part):
    """How the numbers came about.

    ``calculator`` is its class. ``structures`` is the SHA-256 of their file, or of the arrays of a
    list. ``probes`` is None where all Jacobians are whole. ``step`` is that of central differences
    and ``displacement`` the standard deviation of the corners of triangles, both in Å.
    """

    calculator: str
    structures: str
    probes: Whole | None
    step: Size
    displacement: Size
    seed: int


class Structure(Part):
    """One structure: Asym in (eV/Å²)², NAsym and λ = √NAsym.

    ``estimator`` is exact where the whole Jacobian was computed. ``evaluations`` counts its force
    calls. ``floor`` is what rounding and truncation alone leave of Asym; where Asym is no more than
    that, ``zero_within`` says what it is known to be below.
    """

    formula: str
    atoms: Whole
    estimator: Literal["exact", "probes"]
    evaluations: Whole
    asym: Number
    nasym: Number
    lambda_: Annotated[Size, Field(alias="lambda")]
    floor: Size
    zero_within: Zero | None


class Pairs(Part):
    """λ_ij of the pairs of atoms that are from ``low`` to ``high`` Å apart.

    A structure counts once, with the mean over its ``pairs``, which are all that stand out from
    rounding and truncation.
    """

    low: Size
    high: Size
    pairs: Whole
    lambda_: Annotated[Quantity, Field(alias="lambda")]


class ForceReport(Written):
    """The result of `audit_forces`: print it, or write it as JSON or as a figure.

    ``nasym`` and ``lambda`` are means over structures; ``zero_within`` says what they are known to
    be below where none of the structures has an asymmetry that can be seen. ``pairs`` is empty
    unless there are whole Jacobians.
    """

    of: ClassVar[str] = "an audit of forces"

    schema_version: Literal[1] = 1
    kind: Literal["force"] = "force"
    protocol: ForceProtocol
    structures: Annotated[tuple[Structure, ...], Field(min_length=1)]
    nasym: Quantity
    lambda_: Annotated[Quantity, Field(alias="lambda")]
    zero_within: Zero | None
    circulation: Circulation | None
    pairs: tuple[Pairs, ...]
    conclusion: tuple[str, ...]
    cost: Cost
    versions: dict[str, str]

    def plot(self, path: str | Path) -> None:
        """Draw λ of every structure, and λ_ij against the distance of atoms.

        The suffix of ``path`` says the format: .png, .svg or .pdf.

        Raises:
            BadInput: it has another suffix, or Matplotlib is missing.
        """
        from qcsbm.auditing import force_figure

        force_figure.plot(self, path)

    def page(self, path: str | Path) -> None:
        """Write the table and the figure on one page, as `plot` does.

        Raises:
            BadInput: as in `plot`.
        """
        from qcsbm.auditing import force_figure

        force_figure.page(self, path)

    def __str__(self) -> str:
        """A table in ASCII, at most 80 columns wide."""
        rows, left = structure_rows(self)
        parts = [
            [heading(self)],
            wrapped(protocol(self)),
            aligned([[plain(cell) for cell in row] for row in rows]) + list(map(plain, left)),
            [line for text in summary(self) for line in wrapped(text)],
            list(_pair_table(self)),
            [line for text in self.conclusion for line in wrapped(text, bullet="* ")],
        ]
        return "\n\n".join("\n".join(lines) for lines in parts if lines)


def conclusion(
    calculator: str, lambda_: Quantity, zero: Zero | None, around: Circulation | None, length: float
) -> Iterator[str]:
    """What may be concluded, and what may not; each sentence stands by itself."""
    where = "at these structures, and at others nothing is known"
    if zero:
        yield (
            f"As far as differences of forces can tell, {calculator} is the gradient of an energy "
            f"{where}: λ is zero within {zero.lambda_:.2g}."
        )
        return
    yield (
        f"{calculator} is not the gradient of an energy: λ = {lambda_.value:.2g} (mean over "
        f"structures) {where}."
    )
    if around and around.rms.value > around.error:
        yield (
            f"The energy is ambiguous by ± {around.rms.value:.2g} eV (root mean square): that much "
            "work is done in going round a triangle between copies of a structure whose "
            f"coordinates are displaced by {length:g} Å each."
        )
    yield (
        "λ alone does not say how much a simulation drifts: forces without an energy heat "
        "molecular dynamics at constant energy and leave relaxations without a minimum (Bigi et "
        "al. 2412.11569), which takes a simulation to see."
    )


def heading(report: ForceReport) -> str:
    """What was audited, in one line."""
    n = len(report.structures)
    return plain(f"Audit of {report.protocol.calculator}: forces on {n} structure{'s' * (n > 1)}")


def protocol(report: ForceReport) -> str:
    """How it was measured, in words."""
    p = report.protocol
    whole = sum(one.estimator == "exact" for one in report.structures)
    jacobians = [f"whole Jacobians of {whole}"] if whole else []
    if p.probes is not None:
        jacobians.append(
            f"{p.probes} Rademacher probes for each of {len(report.structures) - whole}"
        )
    done = " and ".join(jacobians)
    return (
        f"{done[0].upper()}{done[1:]}, by central differences of {p.step:g} Å; "
        f"seed {p.seed}. Force calls: "
        f"{by_part(report.cost)}."
    )


def structure_rows(report: ForceReport) -> tuple[list[list[str]], list[str]]:
    """The cells of the table of structures, its head first, and a line on those left out."""
    order = sorted(report.structures, key=lambda one: -one.lambda_)[:ROWS]
    shown_ones = [one for one in report.structures if one in order][:ROWS]
    rows = [["structure", "atoms", "force calls", "Asym (eV/Å²)²", "λ"]]
    for one in shown_ones:
        zero = one.zero_within
        values = [f"{one.asym:.3g}", f"{one.lambda_:.3g}"]
        if zero:
            values = [f"zero within {zero.asym:.2g}", f"< {zero.lambda_:.2g}"]
        rows.append([one.formula[:20], str(one.atoms), str(one.evaluations), *values])
    left = len(report.structures) - len(shown_ones)
    return rows, [f"and {left} with smaller λ"] if left else []


def summary(report: ForceReport) -> Iterator[str]:
    """Means over structures, and the work around triangles; each is a paragraph."""
    if report.zero_within:
        zero = report.zero_within
        yield f"λ of every structure: zero within {zero.lambda_:.3g}."
    else:
        for name, quantity in (("NAsym", report.nasym), ("λ", report.lambda_)):
            bounds = interval(quantity)
            known = f", 95 % interval {bounds}" if bounds else ""
            yield f"{name}, mean over structures: {shown(quantity)}{known}."
    around = report.circulation
    if around:
        triangles = f"triangles of structures displaced by {report.protocol.displacement:g} Å"
        if around.rms.value <= around.error:
            yield f"Work around {triangles}: zero within {around.error:.2g} eV."
        else:
            yield (
                f"Work around {triangles}: {shown(around.rms)} eV, 95 % interval "
                f"{interval(around.rms)}, {around.relative:.2g} of the work that is done on the "
                f"way in either direction; quadrature errs by {around.error:.1g} eV."
            )


def _pair_table(report: ForceReport) -> Iterator[str]:
    if report.pairs:
        yield "distance (A)  pairs  lambda_ij"
        for bin in report.pairs:
            distance = f"{bin.low:g} - {bin.high:g}"
            yield f"{distance:>12}  {bin.pairs:5}  {shown(bin.lambda_)}"
