"""What single models of the experiment file cannot see: facts that contradict each other."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qcsbm.schema import Cell

if TYPE_CHECKING:
    from qcsbm.config import Experiment


def inconsistencies(experiment: "Experiment") -> Iterator[str]:
    """Contradictions in a merged ``experiment``, a sentence each, without the file's name."""
    for dataset, seeds in experiment.seeds.items():
        if len(set(seeds)) < len(seeds):
            yield f"seeds of {dataset}: found {seeds}, expected each seed once"
    for (dataset, method), cell in experiment.cells.items():
        yield from _cell_inconsistencies(experiment, dataset, method, cell)
    for name, table in experiment.tables.items():
        for method in table.methods:
            if method not in experiment.methods:
                yield (
                    f"tables.{name}.methods: found {method!r}, expected some of the methods "
                    f"{', '.join(experiment.methods)}"
                )
            for dataset in experiment.datasets:
                cell = experiment.cells[dataset, method]
                if table.sampler and getattr(cell.samplers, table.sampler) is None:
                    yield (
                        f"tables.{name}.sampler: found {table.sampler!r}, expected a sampler that "
                        f"is configured for dataset {dataset} and method {method}"
                    )


def _cell_inconsistencies(
    experiment: "Experiment", dataset: str, method: str, cell: Cell
) -> Iterator[str]:
    place = f"methods.{method}"
    where = f"(dataset {dataset})"
    if cell.sde.sigma_min >= cell.sde.sigma_max:
        yield (
            f"sde.sigma_max {where}: found {cell.sde.sigma_max}, expected more than sigma_min = "
            f"{cell.sde.sigma_min}"
        )
    if cell.stops != sorted(set(cell.stops)):
        yield (
            f"{place}.checkpoints {where}: found {cell.checkpoints}, expected increasing steps "
            f"below steps = {cell.steps}"
        )
    if cell.regulariser and cell.parameterisation == "energy":
        yield (
            f"{place}.regulariser {where}: found one for parameterisation 'energy', expected none: "
            "the gradient of an energy is conservative"
        )
    regularised = cell.regulariser.batch_size if cell.regulariser else None
    samples = min(cell.training.batch_size, regularised or cell.training.batch_size)
    if cell.training.processes > samples:
        yield (
            f"training.processes {where}, method {method}: found {cell.training.processes}, "
            f"expected at most {samples}, as each has to have a sample"
        )
    if regularised and regularised > cell.training.batch_size:
        yield (
            f"{place}.regulariser.batch_size {where}: found {regularised}, expected at most "
            f"training.batch_size = {cell.training.batch_size}"
        )
    if (cell.asymmetry.estimator == "probes") != (cell.asymmetry.probes is not None):
        yield (
            f"asymmetry.probes {where}, method {method}: found {cell.asymmetry.probes} with "
            f"estimator {cell.asymmetry.estimator!r}, expected a number with estimator 'probes' "
            "and none otherwise"
        )
    if cell.quality.extractor == "classifier" and experiment.datasets[dataset].classifier is None:
        yield (
            f"quality.extractor {where}: found 'classifier', expected datasets.{dataset}.classifier"
            " to say how it is trained"
        )
    if cell.init_from:
        if (cell.init_from.method is None) == (cell.init_from.checkpoint is None):
            found = cell.init_from.model_dump(exclude_none=True)
            yield (
                f"{place}.init_from {where}: found {found}, expected step with either method or "
                "checkpoint"
            )
        elif cell.init_from.method:
            yield from _init_from_inconsistencies(experiment, dataset, method, cell)
        else:
            yield from _import_inconsistencies(place, where, cell)


def _import_inconsistencies(place: str, where: str, cell: Cell) -> Iterator[str]:
    if not cell.init_from.checkpoint.endswith(".safetensors"):
        yield (
            f"{place}.init_from.checkpoint {where}: found {cell.init_from.checkpoint!r}, expected "
            "a .safetensors file, which import-checkpoint makes of a published one"
        )
    if cell.parameterisation == "energy" or cell.residual:
        yield (
            f"{place}.init_from.checkpoint {where}: found one for a method with an energy or a "
            "residual, expected none, as published models of those kinds are others than ours"
        )
    step = cell.init_from.step
    if step >= cell.stops[0] and cell.stops != [step]:
        yield (
            f"{place}.init_from.step {where}: found {step}, expected less than this method's first "
            f"checkpoint at step {cell.stops[0]}, or steps = {step} and no checkpoints for a model "
            "that is not trained any further"
        )


def _init_from_inconsistencies(
    experiment: "Experiment", dataset: str, method: str, cell: Cell
) -> Iterator[str]:
    place = f"methods.{method}.init_from"
    where = f"(dataset {dataset})"
    origin = cell.init_from.method
    if origin not in experiment.methods:
        yield (
            f"{place}.method {where}: found {origin!r}, expected one of the methods "
            f"{', '.join(experiment.methods)}"
        )
        return
    seen = [method]
    while origin is not None:
        if origin in seen:
            yield (
                f"{place}.method {where}: found the cycle {' → '.join([*seen, origin])}, expected "
                "a chain that ends at a method without init_from"
            )
            return
        seen.append(origin)
        further = experiment.cells[dataset, origin].init_from
        origin = further.method if further and further.method in experiment.methods else None
    parent = experiment.cells[dataset, cell.init_from.method]
    if cell.init_from.step not in parent.stops:
        yield (
            f"{place}.step {where}: found {cell.init_from.step}, expected one of the checkpoints "
            f"{parent.stops} of method {cell.init_from.method}"
        )
    if cell.init_from.step >= cell.stops[0]:
        yield (
            f"{place}.step {where}: found {cell.init_from.step}, expected less than this method's "
            f"first checkpoint at step {cell.stops[0]}"
        )
    for key in ("parameterisation", "residual", "network", "sde"):
        if getattr(parent, key) != getattr(cell, key):
            yield (
                f"methods.{method}.{key} {where}: found another value than that of method "
                f"{cell.init_from.method}, expected the same, as training starts from its weights"
            )
