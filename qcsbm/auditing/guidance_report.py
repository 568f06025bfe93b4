"""What an audit of guidance found, as closed models that become JSON, a table and a figure.

``docs/audit-guidance.schema.json`` describes the JSON. The same fields, data and seed give the same
bytes of all but ``cost`` and ``versions``.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023);
    https://arxiv.org/abs/2209.12753
    On gauge freedom, conservativity and intrinsic dimensionality estimation in diffusion models
    (Horvat & Pfister, 2024); https://arxiv.org/abs/2402.03845
    Conditional Diffusion Models with Classifier-Free Gibbs-like Guidance (Moufad et al., 2025);
    https://arxiv.org/abs/2505.21101
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qcsbm.auditing.report import (
    WIDTH,
    Audited,
    Cost,
    Integrals,
    Mean,
    Number,
    Part,
    Protocol,
    Quantity,
    Size,
    Values,
    Whole,
    Written,
    Zero,
    aligned,
    heading,
    interval,
    protocol,
    short,
    shown,
    wrapped,
)


class GuidedWeight(Part):
    """What one ``weight`` of guidance makes of the field, at one level.

    λ is √NAsym and κ² is 4 NAsym. ``floor`` is what rounding and truncation alone leave of Asym;
    where the estimate is below it, ``zero_within`` says what the asymmetry is known to be below.
    """

    weight: Number
    asym: Quantity
    nasym: Quantity
    lambda_: Annotated[Quantity, Field(alias="lambda")]
    kappa_squared: Quantity
    floor: Size
    zero_within: Zero | None
    circulation: Integrals | None
    samples: Values


class GuidedLevel(Part):
    """All that was measured at one time t, by weight, on the same samples and probes.

    ``sigma`` is the standard deviation of the noise relative to what is left of the data.
    ``evaluations`` counts forward and backward passes of both fields, which all weights share.
    """

    t: Number | None
    sigma: Number | None
    n: Whole
    evaluations: Whole
    weights: Annotated[tuple[GuidedWeight, ...], Field(min_length=1)]


class GuidedMean(Mean):
    """Means over levels at one weight; a sample's values at all levels count as one.

    ``change`` is the mean κ² minus that of the first weight, taken sample by sample.
    """

    weight: Number
    change: Quantity


class GuidanceReport(Written):
    """The result of `qcsbm.audit_guidance`: print it, or write it as JSON or as a figure."""

    of: ClassVar[str] = "an audit of guidance"

    schema_version: Literal[1] = 1
    field: Audited
    protocol: Protocol
    levels: Annotated[tuple[GuidedLevel, ...], Field(min_length=1)]
    means: Annotated[tuple[GuidedMean, ...], Field(min_length=1)]
    warnings: tuple[str, ...]
    conclusion: tuple[str, ...]
    cost: Cost
    versions: dict[str, str]

    def plot(self, path: str | Path) -> None:
        """Draw κ² and the circulation against the weight, a line for each level.

        The suffix of ``path`` says the format: .png, .svg or .pdf.

        Raises:
            BadInput: it has another suffix, or Matplotlib is missing.
        """
        from qcsbm.auditing import guidance_figure

        guidance_figure.plot(self, path)

    def __str__(self) -> str:
        """A table in ASCII, at most 80 columns wide."""
        parts = [
            [heading(self.field)],
            wrapped(protocol(self.field, self.protocol, self.cost)),
            _table(self),
            _means(self),
            [line for text in self.warnings for line in wrapped(f"Warning: {text}")],
            [line for text in self.conclusion for line in wrapped(text, bullet="* ")],
        ]
        return "\n\n".join("\n".join(lines) for lines in parts if lines)


def conclusion(
    name: str, levels: Sequence[GuidedLevel], means: Sequence[GuidedMean]
) -> Iterator[str]:
    """What may be concluded, and what may not; each sentence stands by itself."""
    where = "at these samples, and at others nothing is known"
    seen = [mean for mean in means if not mean.zero_within]
    if not seen:
        bound = max(4 * mean.zero_within.nasym for mean in means if mean.zero_within)
        yield (
            f"As far as these products can tell, {name} is a gradient at every weight {where}: κ² "
            f"is zero within {bound:.2g}."
        )
        return
    least, most = (choose(seen, key=lambda mean: mean.weight) for choose in (min, max))
    sizes = [f"{mean.kappa_squared.value:.2g} at weight {mean.weight:g}" for mean in (least, most)]
    yield (
        f"{name} is not a gradient: κ² is {' and '.join(dict.fromkeys(sizes))}"
        f"{', the mean over levels,' if len(levels) > 1 else ''} {where}."
    )
    yield (
        "Guidance by exact scores is the gradient of log p(x) + w (log p(x|c) − log p(x)) at every "
        "weight w and level. What is seen here is the asymmetry of the two models themselves, and "
        "w multiplies what these differ by."
    )
    yield (
        "A small asymmetry does not predict good samples, nor a large one bad samples (Chao et al. "
        "2023, Horvat & Pfister 2024). Guidance by exact scores, which is a gradient, does not "
        "sample the density whose score it is without noise either (Moufad et al. 2505.21101)."
    )


def _table(report: GuidanceReport) -> list[str]:
    """A row for each level and weight."""
    # There is room for one of the two.
    name = "t" if any(level.sigma is None for level in report.levels) else "sigma"
    rows = [[name, "w", "kappa^2", "95 % interval", "NAsym", "lambda", "circulation"]]
    for level in report.levels:
        place = short(getattr(level, name))
        for found in level.weights:
            around = found.circulation
            rows.append([place, f"{found.weight:g}", *_numbers(found), str(around or "")])
    lines = aligned(rows)
    if len(lines[0]) > WIDTH:
        lines = [*aligned([row[:5] for row in rows]), ""]
        lines += aligned([row[:2] + row[5:] for row in rows])
    notes = "w is the weight: 0 is the field that is guided from, and 1 the one that is guided. "
    notes += "Standard errors in parentheses are in units of the last digits."
    units = {w.circulation.unit for level in report.levels for w in level.weights if w.circulation}
    notes += "".join(f" Circulation is in {unit}." for unit in sorted(units))
    return [*lines, *wrapped(notes)]


def _means(report: GuidanceReport) -> list[str]:
    """κ² of every weight, and what it changes by from the first one on."""
    head = "Mean over levels" if len(report.levels) > 1 else "Weight"
    rows = [[head, "kappa^2", "95 % interval", "change", "95 % interval"]]
    first = report.means[0]
    for mean in report.means:
        change = ["", ""]
        if mean is not first and not mean.zero_within:
            change = [shown(mean.change), interval(mean.change)]
        rows.append([f"w = {mean.weight:g}", *_numbers(mean)[:2], *change])
    lines = [line.rstrip() for line in aligned(rows)]
    if any(row[3] for row in rows[1:]):
        note = f"The change is that of kappa^2 from w = {first.weight:g}, sample by sample."
        lines += wrapped(note)
    return lines


def _numbers(found: GuidedWeight | GuidedMean) -> list[str]:
    """κ², its interval, NAsym and λ."""
    if found.zero_within:
        nasym, root = found.zero_within.nasym, found.zero_within.lambda_
        return [f"< {short(4 * nasym)}", "zero", f"< {short(nasym)}", f"< {short(root)}"]
    return [
        shown(found.kappa_squared),
        interval(found.kappa_squared),
        shown(found.nasym),
        shown(found.lambda_),
    ]
