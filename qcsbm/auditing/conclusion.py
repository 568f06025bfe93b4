"""What may be concluded from an audit, and what may not.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023);
    https://arxiv.org/abs/2209.12753
    On gauge freedom, conservativity and intrinsic dimensionality estimation in diffusion models
    (Horvat & Pfister, 2024); https://arxiv.org/abs/2402.03845
    Diffusion Models Observe Only Gradients: A Geometric Perspective on Score Matching Errors
    (Khelifa, Turner & Venkataramanan, 2026); https://arxiv.org/abs/2606.06179
    The dark side of the forces: assessing non-conservative force models for atomistic machine
    learning (Bigi et al., 2024); https://arxiv.org/abs/2412.11569
    Regularization by Denoising: Clarifications and New Interpretations (Reehorst & Schniter, 2018);
    https://arxiv.org/abs/1806.02296
    Reduce, Reuse, Recycle: Compositional Generation with Energy-Based Diffusion Models and MCMC
    (Du et al., 2023); https://arxiv.org/abs/2302.11552
"""

from collections.abc import Iterator, Sequence

from qcsbm.auditing.report import Audited, Level, Mean, Protocol


def conclusion(
    field: Audited, protocol: Protocol, levels: Sequence[Level], mean: Mean
) -> Iterator[str]:
    """Sentences, each of which stands by itself."""
    yield _of_the_asymmetry(field, protocol, levels, mean)
    if field.kind == "force":
        yield from _of_forces(levels, mean)
    elif field.kind == "denoiser" and field.schedule is None:
        yield from _of_denoisers(mean)
        yield from _of_eigenvalues(levels)
    else:
        yield from _of_scores(field, levels, mean)
        yield from _of_eigenvalues(levels)


def _of_the_asymmetry(
    field: Audited, protocol: Protocol, levels: Sequence[Level], mean: Mean
) -> str:
    where = "at these samples, and at others nothing is known"
    if mean.zero_within:
        return (
            f"As far as {protocol.products} in {protocol.dtype} can tell, {field.name} is a "
            f"gradient {where}: λ is zero within {mean.zero_within.lambda_:.2g}."
        )
    zeros = sum(level.zero_within is not None for level in levels)
    some = f" (at {zeros} of {len(levels)} levels none was seen)" if zeros else ""
    return (
        f"{field.name} is not a gradient{some}: its {field.kind} field has λ = "
        f"{mean.lambda_.value:.2g} {where}; as another kind of field it has another λ."
    )


def _of_forces(levels: Sequence[Level], mean: Mean) -> Iterator[str]:
    yield (
        "λ = √NAsym is that of Bigi et al. (2412.11569), who find that forces without an energy "
        "make dynamics at constant energy drift; how much, λ alone does not say."
    )
    largest = _largest_circulation(levels)
    if largest is not None and not mean.zero_within:
        yield (
            f"Going round a triangle of these structures does work of {largest:.2g} (root mean "
            "square, in the field's units of energy) on average."
        )


def _of_scores(field: Audited, levels: Sequence[Level], mean: Mean) -> Iterator[str]:
    yield (
        "A small asymmetry does not predict good samples, nor a large one bad samples: models "
        "that are gradients by construction had worse ones than free models (Chao et al. 2023), "
        "and a field that is no gradient can sample the right distribution (Horvat & Pfister 2024)."
    )
    if mean.zero_within:
        return
    yield (
        "Only the gradient part of a score's error, in a decomposition that the density weighs, "
        "moves the marginals (Khelifa et al. 2606.06179): Asym, which has no such weights, bounds "
        "nothing about samples by itself."
    )
    largest = _largest_circulation(levels)
    if largest is not None and (field.kind == "score" or field.schedule):
        yield (
            f"Differences of log p between these samples are ambiguous by {largest:.2g} nats (root "
            "mean square, at the worst level): acceptance probabilities of MCMC and compositions "
            "that need them (Du et al. 2302.11552) depend on the path."
        )


def _of_denoisers(mean: Mean) -> Iterator[str]:
    if not mean.zero_within:
        yield (
            "A denoiser whose Jacobian is not symmetric is the gradient of no function and no "
            "proximal map: there is no regulariser that it stands for (Reehorst & Schniter "
            "1806.02296), though iterations with it may converge all the same."
        )


def _of_eigenvalues(levels: Sequence[Level]) -> Iterator[str]:
    lows = [
        s.denoiser[0]
        for level in levels
        for s in level.spectrum
        if s.denoiser and s.denoiser[0] is not None
    ]
    if lows and min(lows) < NEGATIVE:
        yield (
            f"The denoiser's Jacobian has an eigenvalue of {min(lows):.2g}: it is no posterior "
            "mean, whose Jacobian is a covariance over the noise's variance."
        )


# Beyond what rounding and Lanczos' iteration leave of 0.
NEGATIVE = -1e-3


def _largest_circulation(levels: Sequence[Level]) -> float | None:
    """The largest that is known to differ from 0."""
    sizes = [
        level.circulation.rms.value
        for level in levels
        if level.circulation and level.circulation.seen
    ]
    return max(sizes, default=None)
