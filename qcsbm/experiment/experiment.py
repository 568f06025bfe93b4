"""A checked experiment: its cells, and which checkpoint comes from which.

A *cell* is one dataset with one method. `qcsbm.experiment.config` reads an experiment from its
file.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from qcsbm.experiment import outside_models
from qcsbm.runtime.errors import BadInput
from qcsbm.schema.document import Cell, Comparisons, Dataset, OutsideCell, Table, Toy, TrainedCell
from qcsbm.schema.outside import model_name
from qcsbm.schema.specifications import FromOutside, Trained


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file."""

    tier: str
    datasets: dict[str, Dataset]
    seeds: dict[str, list[int]]
    methods: list[str]
    cells: dict[tuple[str, str], Cell]
    tables: dict[str, Table]
    comparisons: dict[str, Comparisons]
    toy: Toy | None
    strict: bool

    @property
    def root(self) -> str:
        """The folder of results, relative to the project."""
        return "results" if self.tier == "quick" else f"results/{self.tier}"

    @property
    def samplers(self) -> list[str]:
        """The samplers of all tables."""
        return sorted({table.sampler for table in self.tables.values() if table.sampler})

    def cell(self, dataset: str, method: str) -> Cell:
        """The cell of names that a user gave.

        Raises:
            BadInput: there is no such dataset or method.
        """
        _require_known("dataset", dataset, self.datasets)
        _require_known("method", method, self.methods)
        return self.cells[dataset, method]

    def only(self, dataset: str) -> "Experiment":
        """The part of the experiment that is about ``dataset``, a name that a user gave.

        Raises:
            BadInput: there is no such dataset.
        """
        _require_known("dataset", dataset, self.datasets)
        return replace(
            self,
            datasets={dataset: self.datasets[dataset]},
            seeds={dataset: self.seeds[dataset]},
            cells={cell: facts for cell, facts in self.cells.items() if cell[0] == dataset},
            toy=None,
        )

    @cached_property
    def trainings(self) -> dict[tuple[str, str], TrainedCell]:
        """The cells whose models are trained here; all others are from outside."""
        return {key: cell for key, cell in self.cells.items() if isinstance(cell, TrainedCell)}

    def predecessor(self, dataset: str, method: str, step: int) -> tuple[str, int] | None:
        """Method and step of the checkpoint that training towards ``step`` starts from, if any.

        An imported checkpoint belongs to the method that starts from it.
        """
        cell = self.trainings[dataset, method]
        earlier = [stop for stop in cell.stops if stop < step]
        if earlier:
            return method, earlier[-1]
        origin = cell.init_from
        return (origin.method or method, origin.step) if origin else None

    def imported(self, dataset: str, method: str, step: int) -> str | None:
        """The path of the imported file that is the method's checkpoint at ``step``, if one is."""
        origin = self.trainings[dataset, method].init_from
        return origin.checkpoint if origin and origin.step == step else None

    def trained_steps(self, dataset: str, method: str) -> list[int]:
        """The steps of the method's checkpoints that are trained here; none from outside."""
        cell = self.trainings.get((dataset, method))
        steps = cell.stops if cell else []
        return [step for step in steps if not self.imported(dataset, method, step)]

    @cached_property
    def passed(self) -> dict[tuple[str, str], list[tuple[str, int] | None]]:
        """The checkpoints that training goes through, from its start to the final one, by cell.

        Each is (method, step), or (path, step) for an imported file; None, for random weights,
        begins the list of a model that was trained from scratch. That of a model from outside is
        empty.
        """
        return {cell: self._passed(*cell) for cell in self.cells}

    def _passed(self, dataset: str, method: str) -> list[tuple[str, int] | None]:
        if (dataset, method) not in self.trainings:
            return []
        found: list[tuple[str, int] | None] = []
        last: tuple[str, int] | None = (method, self.trainings[dataset, method].steps)
        while last:
            file = self.imported(dataset, *last)
            found.insert(0, (file or last[0], last[1]))
            if file:
                return found
            last = self.predecessor(dataset, *last)
        return [None, *found]

    def chain(self, dataset: str, method: str) -> list[tuple[str, int, int]]:
        """(method, first step, last step) of all trainings that lead to the final checkpoint."""
        return [
            (last[0], first[1] if first else 0, last[1])
            for first, last in pairwise(self.passed[dataset, method])
            if last
        ]

    def origins(self, dataset: str, method: str) -> list[tuple[str, int] | None]:
        """The part of `passed` that came before the method's own training."""
        passed = self.passed[dataset, method]
        return [c for c in passed if c is None or c[0] != method]

    @cached_property
    def trained(self) -> dict[tuple[str, str], Trained | FromOutside]:
        """How the final model of every cell was trained, or which one from outside it is."""
        return {cell: self._trained(*cell) for cell in self.cells}

    def _trained(self, dataset: str, method: str) -> Trained | FromOutside:
        cell = self.cells[dataset, method]
        if isinstance(cell, OutsideCell):
            return FromOutside(
                started_from="outside",
                model=model_name(cell.model),
                model_sha256=outside_models.sha256(cell.model),
            )
        origins = [f"{of}@{step}" for of, step in filter(None, self.origins(dataset, method))]
        known = bool(self.chain(dataset, method))
        return Trained(
            train_steps=cell.steps,
            parameterisation=cell.parameterisation,
            residual=cell.residual,
            started_from=" → ".join(origins) or "random weights",
            training_batch_size=cell.training.batch_size if known else None,
            regulariser=cell.regulariser if known else None,
        )

    def control(self, dataset: str, method: str) -> str | None:
        """The unregularised score model that was trained alike and for as many steps, if any.

        It passes the very checkpoint that the model's own training starts from. From there on the
        two differ in the parameterisation or in the regulariser alone; processes and micro-batches
        change the cost of a training and not what it is. A model that was imported and not trained
        any further has none, as its training is not known; nor has a model from outside.
        """

        def trained(cell: TrainedCell) -> tuple[object, ...]:
            training = cell.training.model_copy(update={"processes": 1, "micro_batch": None})
            return training, cell.network, cell.sde, cell.residual

        def unregularised(cell: TrainedCell) -> bool:
            return cell.parameterisation == "score" and cell.regulariser is None

        if not self.chain(dataset, method):
            return None
        cell = self.trainings[dataset, method]
        start = self.origins(dataset, method)[-1]
        for other in self.methods:
            passed = self.passed[dataset, other]
            if other == method or start not in passed:
                continue
            later = filter(None, passed[passed.index(start) + 1 :])
            after = [self.trainings[dataset, of] for of, _ in later]
            if self.trainings[dataset, other].steps == cell.steps and all(
                unregularised(c) and trained(c) == trained(cell) for c in after
            ):
                return other
        return None


def _require_known(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise BadInput(f"{what}: found {name!r}, expected one of {', '.join(known)}")
