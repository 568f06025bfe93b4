"""What an audit found, as closed models that become JSON, a table, a figure and a page.

``docs/audit.schema.json`` describes the JSON. The same field, data and seed give the same bytes of
all but ``cost`` and ``versions``.
"""

import json
import math
import textwrap
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, ValidationError

from qcsbm.conservativeness.interval import Interval
from qcsbm.runtime.errors import BadInput, MissingFile
from qcsbm.runtime.files import write_text
from qcsbm.runtime.terminal import plain
from qcsbm.schema.base import Closed

WIDTH = 80
ROUNDING = 1e-6

Number = Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]


class Part(Closed):
    """A part of a report; a name that Python reserves has an underscore that JSON has not."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)


class Quantity(Part):
    """An estimate with its standard error and its 95 % confidence interval.

    It is made of ``n`` independent samples; one alone has no error.
    """

    value: Number
    stderr: Size | None
    low: Number | None
    high: Number | None
    n: Whole

    @classmethod
    def of(cls, interval: Interval) -> Self:
        return cls(**interval._asdict())

    def times(self, factor: float) -> "Quantity":
        """A multiple of it by a positive ``factor``."""
        stderr, low, high = (
            p if p is None else factor * p for p in (self.stderr, self.low, self.high)
        )
        return Quantity(value=factor * self.value, stderr=stderr, low=low, high=high, n=self.n)

    def root(self) -> "Quantity":
        """Its square root, 0 where an estimate of what is not negative is below 0.

        The interval is that of the square; the standard error is to first order.
        """
        value, low, high = (
            p if p is None else math.sqrt(max(p, 0.0)) for p in (self.value, self.low, self.high)
        )
        assert value is not None
        stderr = None if self.stderr is None or value == 0 else self.stderr / (2 * value)
        return Quantity(value=value, stderr=stderr, low=low, high=high, n=self.n)


class Audited(Part):
    """The field: what it is called, what its values are and which files it was read from.

    ``kind`` is one of `qcsbm.score.kinds`, ``shape`` that of a sample and ``dimensions`` the number
    of its entries. ``files`` has the SHA-256 of every file by its path. ``data_range`` is the
    smallest and largest value of data that the field is known to expect.
    """

    name: str
    kind: str
    schedule: str | None
    shape: tuple[Whole, ...]
    dimensions: Whole
    data_range: tuple[Number, Number] | None
    files: dict[str, str]


class Protocol(Part):
    """How the numbers came about.

    ``why`` says why the products were chosen. ``estimator`` is exact where whole Jacobians were
    computed; else there were ``probes`` Rademacher probes for every sample. ``step`` is that of
    difference quotients, as a multiple of the noise level or, without one, of the samples' standard
    deviation. ``threads`` are those of PyTorch, on whose number the rounding of sums depends.
    ``data`` is the SHA-256 of the samples given.
    """

    products: Literal["autograd", "finite_differences", "forward"]
    why: str
    estimator: Literal["exact", "probes"]
    probes: Whole | None
    step: Size | None
    samples: Whole
    seed: int
    dtype: str
    device: str
    threads: Whole
    data: str


class Integrals(Part):
    """Line integrals ∮ s·dl of the field around closed triangles through triples of samples.

    ``rms`` is their root mean square and ``error`` that of the quadrature's error, in ``unit``.
    With a schedule s is the score, whatever the kind of the field. ``values`` has one integral for
    each triangle.
    """

    rms: Quantity
    error: Size
    unit: str
    values: tuple[Number, ...]

    @property
    def seen(self) -> bool:
        """Whether there is more of it than the quadrature's error."""
        return self.rms.value > self.error

    def __str__(self) -> str:
        return shown(self.rms) if self.seen else f"< {short(self.error)}"


class Circulation(Integrals):
    """The integrals, and their root mean square relative to that of ``∮ |s·dl|``."""

    relative: Size


class Spectrum(Part):
    """Rotation planes and extreme eigenvalues of one sample's Jacobian J, A = J − Jᵀ.

    ``rotation`` has the largest singular values of A, one for each plane, and ``share`` is what
    these planes hold of ‖A‖_F², with a standard error where it was estimated. ``symmetric`` are the
    lowest and the highest eigenvalue of (J + Jᵀ) / 2, ``denoiser`` those of the Jacobian of the
    denoiser D(x / α), in x / α, whose lowest is not negative where it is a posterior mean. What did
    not converge is None.
    """

    rotation: tuple[Number, ...]
    share: Number | None
    share_stderr: Size | None
    symmetric: tuple[Number | None, Number | None]
    denoiser: tuple[Number | None, Number | None] | None


class Zero(Part):
    """Below which values nothing was seen: what rounding and truncation alone would leave."""

    asym: Size
    nasym: Size
    lambda_: Annotated[Size, Field(alias="lambda")]


class Values(Part):
    """The estimates for every sample, so that two audits of the same samples can be paired."""

    asym: tuple[Number, ...]
    nasym: tuple[Number, ...]


class Level(Part):
    """All that was measured at one time t.

    ``sigma`` is the standard deviation of the noise relative to what is left of the data.
    ``evaluations`` counts forward and backward passes, for all samples together. λ is √NAsym and
    κ² is 4 NAsym. ``floor`` is what rounding and truncation alone leave of Asym; where the estimate
    is below it, ``zero_within`` says what the asymmetry is known to be below. ``nasym_by_kind`` has
    NAsym of what else the field can be converted to.
    """

    t: Number | None
    sigma: Number | None
    n: Whole
    evaluations: Whole
    asym: Quantity
    nasym: Quantity
    lambda_: Annotated[Quantity, Field(alias="lambda")]
    kappa_squared: Quantity
    nasym_by_kind: dict[str, Quantity]
    floor: Size
    zero_within: Zero | None
    circulation: Circulation | None
    spectrum: tuple[Spectrum, ...]
    samples: Values


class Mean(Part):
    """Means over levels; a sample's values at all levels count as one."""

    asym: Quantity
    nasym: Quantity
    lambda_: Annotated[Quantity, Field(alias="lambda")]
    kappa_squared: Quantity
    zero_within: Zero | None


class Cost(Part):
    """Forward and backward passes of single samples, in all and by part, and the time in seconds.

    Of an audit of forces they are force calls. The time includes what was tried before, whose
    passes are not counted: some dozens, and where the scale of data is judged 128 more.
    """

    evaluations: Whole
    parts: dict[str, Whole]
    seconds: Size


class Written(Part):
    """A report as a whole, which comes back from the JSON that it is written as."""

    of: ClassVar[str]

    def to_json(self, path: str | Path) -> None:
        """Write the report as JSON, which `from_json` reads."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False)
        write_text(path, text + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """The report in a file that `to_json` wrote.

        Raises:
            BadInput: the file holds something else.
            MissingFile: there is no such file.
        """
        expected = f"expected the report of {cls.of}"
        if not Path(path).is_file():
            raise MissingFile(f"{path}: found no such file, {expected}")
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "JSON"
            raise BadInput(
                f"{path}: found another {place} ({first['msg']}), {expected}, schema version 1"
            ) from None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {str(self).splitlines()[0]}>"


class Report(Written):
    """The result of `qcsbm.audit`: print it, or write it as JSON or as a figure."""

    of: ClassVar[str] = "an audit"

    schema_version: Literal[1] = 1
    field: Audited
    protocol: Protocol
    levels: Annotated[tuple[Level, ...], Field(min_length=1)]
    mean: Mean
    warnings: tuple[str, ...]
    conclusion: tuple[str, ...]
    cost: Cost
    versions: dict[str, str]

    def plot(self, path: str | Path) -> None:
        """Draw NAsym and λ, circulation and spectrum against the noise level.

        The suffix of ``path`` says the format: .png, .svg or .pdf.

        Raises:
            BadInput: it has another suffix, or Matplotlib is missing.
        """
        from qcsbm.auditing import figure

        figure.plot(self, path)

    def page(self, path: str | Path) -> None:
        """Write the table and the figure on one page, as `plot` does.

        Raises:
            BadInput: as in `plot`.
        """
        from qcsbm.auditing import figure

        figure.page(self, path)

    def __str__(self) -> str:
        """A table in ASCII, at most 80 columns wide."""
        parts = [
            [heading(self.field)],
            wrapped(protocol(self.field, self.protocol, self.cost)),
            table(self),
            means(self),
            spectra(self),
            [line for text in self.warnings for line in wrapped(f"Warning: {text}")],
            [line for text in self.conclusion for line in wrapped(text, bullet="* ")],
        ]
        return "\n\n".join("\n".join(lines) for lines in parts if lines)


def heading(field: Audited) -> str:
    """What was audited, in one line."""
    shape = " x ".join(map(str, field.shape))
    return plain(f"Audit of {field.name}: {field.kind} field on samples of {shape}")


def protocol(field: Audited, p: Protocol, cost: Cost) -> str:
    """How it was measured, in words."""
    jacobians = (
        "whole Jacobians" if p.estimator == "exact" else f"{p.probes} Rademacher probes a sample"
    )
    schedule = f" Schedule: {field.schedule}." if field.schedule else ""
    step = "" if p.step is None else f", step {p.step:g}"
    return (
        f"{p.samples} samples, {jacobians}, products: {p.products}{step} ({p.why}); {p.dtype} on "
        f"{p.device}, seed {p.seed}.{schedule} Evaluations: {by_part(cost)}."
    )


def by_part(cost: Cost) -> str:
    """The number of evaluations, and of those of each part."""
    parts = ", ".join(f"{name} {number}" for name, number in cost.parts.items())
    return f"{cost.evaluations} ({parts})"


def table(report: Report) -> list[str]:
    """A row for each level; standard errors in parentheses count the last digits shown."""
    rows = [["t", "sigma", "Asym", "NAsym", "95 % interval", "lambda", "circulation"]]
    for level in report.levels:
        sizes = [short(level.t), short(level.sigma)]
        if level.zero_within:
            zero = level.zero_within
            sizes += [f"< {short(zero.asym)}", f"< {short(zero.nasym)}", "zero"]
            sizes += [f"< {short(zero.lambda_)}"]
        else:
            sizes += [shown(level.asym), shown(level.nasym), interval(level.nasym)]
            sizes += [shown(level.lambda_)]
        circulation = level.circulation
        rows.append([*sizes, str(circulation or "")])
    lines = aligned(rows)
    if len(lines[0]) > WIDTH:
        asym, rest = [row[:5] for row in rows], [row[:2] + row[5:] for row in rows]
        lines = [*aligned(asym), "", *aligned(rest)]
    units = {level.circulation.unit for level in report.levels if level.circulation}
    notes = ["Standard errors in parentheses are in units of the last digits."]
    notes += [f"Circulation is in {unit}." for unit in sorted(units)]
    return [*lines, *wrapped(" ".join(notes))]


def means(report: Report) -> list[str]:
    """Means over levels, and NAsym of the same field as other kinds."""
    mean = report.mean
    head = "Mean over levels" if len(report.levels) > 1 else "In full"
    rows = [[head, "value", "standard error", "95 % interval"]]
    named = {"Asym": mean.asym, "NAsym": mean.nasym}
    named |= {"lambda": mean.lambda_, "kappa^2": mean.kappa_squared}
    for name, quantity in named.items():
        rows.append([name, *_in_full(quantity)])
    if mean.zero_within:
        zero = mean.zero_within
        sizes = [zero.asym, zero.nasym, zero.lambda_, 4 * zero.nasym]
        rows = [[head, "zero within"], *([n, short(z)] for n, z in zip(named, sizes, strict=True))]
    for kind in report.levels[0].nasym_by_kind:
        for level in report.levels:
            at = "" if level.t is None else f" at t = {short(level.t)}"
            rows.append([f"NAsym as {kind}{at}", *_in_full(level.nasym_by_kind[kind])])
    return aligned(rows)


def _in_full(quantity: Quantity) -> list[str]:
    return [short(quantity.value), short(quantity.stderr), interval(quantity)]


def spectra(report: Report) -> list[str]:
    """A row for each sample whose spectrum was computed."""
    planes = max((len(s.rotation) for level in report.levels for s in level.spectrum), default=0)
    if not planes:
        return []
    first = f"in {planes} plane{'s' * (planes > 1)}"
    rows = [["t", "sigma", "||A||^2 " + first, "largest", "(J + J^T)/2", "denoiser"]]
    for level in report.levels:
        for spectrum in level.spectrum:
            seen = level.zero_within is None and spectrum.share is not None
            share = f"{100 * (spectrum.share or 0):.3g} %" if seen else "zero"
            ends = [spectrum.symmetric, *([spectrum.denoiser] if spectrum.denoiser else [])]
            ranges = [f"{short(low) or '?'} to {short(high) or '?'}" for low, high in ends]
            largest = short(max(spectrum.rotation, default=None))
            sizes = [short(level.t), short(level.sigma), share, largest]
            rows.append([*sizes, *ranges, *[""] * (2 - len(ranges))])
    note = (
        "A = J - J^T: what the first planes hold of ||A||^2, its largest singular value, and the "
        "extreme eigenvalues of (J + J^T)/2 and of the denoiser's Jacobian."
    )
    return [*aligned(rows), *wrapped(note)]


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of ``rows``, the first of which is their head; columns of nothing are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    left = not columns[0][0].islower()
    lines = []
    for row in zip(*columns, strict=True):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        if left:
            cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells))
    return lines


def shown(quantity: Quantity) -> str:
    """A value with its standard error in units of the last digits, as in 1.41(14)e5."""
    value, stderr = quantity.value, quantity.stderr
    # An error that is rounding says nothing.
    if not stderr or stderr < ROUNDING * abs(value):
        return short(value)
    # Two digits of the error; of a value that is smaller than its error, all that are left.
    last = math.floor(math.log10(float(f"{stderr:.1e}"))) - 1
    size = max(abs(value), stderr)
    exponent = math.floor(math.log10(size))
    if -4 <= exponent < 5 and last <= 0:
        return f"{value:.{-last}f}({stderr / 10.0**last:.0f})"
    digits = max(exponent - last, 0)
    mantissa = value / 10.0**exponent
    return f"{mantissa:.{digits}f}({stderr / 10.0 ** (exponent - digits):.0f})e{exponent}"


def interval(quantity: Quantity | Interval) -> str:
    """The interval in brackets, nothing where there is none."""
    if quantity.low is None or quantity.high is None:
        return ""
    return f"[{short(quantity.low)}, {short(quantity.high)}]"


def wrapped(text: str, bullet: str = "") -> list[str]:
    """Lines of ASCII, no longer than the table."""
    return textwrap.wrap(
        plain(text), WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet)
    )


def short(number: float | None) -> str:
    """Three digits; nothing where there is no number."""
    if number is None:
        return ""
    mantissa, power, exponent = f"{number:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if power else mantissa
