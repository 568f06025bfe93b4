"""The experiment file: read, merged into cells and checked.

A *cell* is one dataset with one method. Its facts are merged key by key from four places, later
ones winning: ``defaults``, ``datasets.<dataset>``, ``methods.<method>`` and
``datasets.<dataset>.methods.<method>``; the result is one `qcsbm.schema.Cell`. Nothing here imports
torch, so that a dry run stays fast.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import yaml
from pydantic import ValidationError

from qcsbm.consistency import inconsistencies
from qcsbm.errors import BadInput, MissingFile
from qcsbm.schema import Cell, ConfigError, Dataset, Document, Table, Toy, parse, sentence, short

NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file."""

    tier: str
    datasets: dict[str, Dataset]
    seeds: dict[str, list[int]]
    methods: list[str]
    cells: dict[tuple[str, str], Cell]
    tables: dict[str, Table]
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
        for what, name, known in [
            ("dataset", dataset, list(self.datasets)),
            ("method", method, self.methods),
        ]:
            if name not in known:
                raise BadInput(f"{what}: found {name!r}, expected one of {', '.join(known)}")
        return self.cells[dataset, method]

    def predecessor(self, dataset: str, method: str, step: int) -> tuple[str, int] | None:
        """Method and step of the checkpoint that training towards ``step`` starts from, if any.

        An imported checkpoint belongs to the method that starts from it.
        """
        cell = self.cells[dataset, method]
        earlier = [stop for stop in cell.stops if stop < step]
        if earlier:
            return method, earlier[-1]
        origin = cell.init_from
        return (origin.method or method, origin.step) if origin else None

    def imported(self, dataset: str, method: str, step: int) -> str | None:
        """The path of the imported file that is the method's checkpoint at ``step``, if one is."""
        origin = self.cells[dataset, method].init_from
        return origin.checkpoint if origin and origin.step == step else None

    @cached_property
    def passed(self) -> dict[tuple[str, str], list[tuple[str, int] | None]]:
        """The checkpoints that training goes through, from its start to the final one, by cell.

        Each is (method, step), or (path, step) for an imported file; None, for random weights,
        begins the list of a model that was trained from scratch.
        """
        return {cell: self._passed(*cell) for cell in self.cells}

    def _passed(self, dataset: str, method: str) -> list[tuple[str, int] | None]:
        found = []
        last = method, self.cells[dataset, method].steps
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
        ]

    def origins(self, dataset: str, method: str) -> list[tuple[str, int] | None]:
        """The part of `passed` that came before the method's own training."""
        passed = self.passed[dataset, method]
        return [c for c in passed if c is None or c[0] != method]

    @cached_property
    def trained(self) -> dict[tuple[str, str], dict]:
        """How the final model of every cell was trained, in flat keys: what its numbers are of.

        Of a model that was imported and not trained any further, that is not known.
        """
        return {cell: self._trained(*cell) for cell in self.cells}

    def _trained(self, dataset: str, method: str) -> dict:
        cell = self.cells[dataset, method]
        origins = [f"{of}@{step}" for of, step in filter(None, self.origins(dataset, method))]
        facts = {
            "train_steps": cell.steps,
            "parameterisation": cell.parameterisation,
            "residual": cell.residual,
            "started_from": " → ".join(origins) or "random weights",
        }
        if self.chain(dataset, method):
            facts["training_batch_size"] = cell.training.batch_size
            if cell.regulariser:
                keys = cell.regulariser.model_dump()
                keys["batch_size"] = keys["batch_size"] or cell.training.batch_size
                facts |= {f"regulariser_{key}": value for key, value in keys.items()}
        return facts

    def control(self, dataset: str, method: str) -> str | None:
        """The unregularised score model that was trained alike and for as many steps, if any.

        It passes the very checkpoint that the model's own training starts from. From there on the
        two differ in the parameterisation or in the regulariser alone; the number of processes
        changes the cost of a training and not what it is. A model that was imported and not trained
        any further has none, as its training is not known.
        """

        def trained(cell: Cell) -> tuple:
            training = cell.training.model_copy(update={"processes": 1})
            return training, cell.network, cell.sde, cell.residual

        def unregularised(cell: Cell) -> bool:
            return cell.parameterisation == "score" and cell.regulariser is None

        if not self.chain(dataset, method):
            return None
        cell = self.cells[dataset, method]
        start = self.origins(dataset, method)[-1]
        for other in self.methods:
            passed = self.passed[dataset, other]
            if other == method or start not in passed:
                continue
            after = [self.cells[dataset, of] for of, _ in passed[passed.index(start) + 1 :]]
            if self.cells[dataset, other].steps == cell.steps and all(
                unregularised(c) and trained(c) == trained(cell) for c in after
            ):
                return other
        return None


def read(path: str | Path) -> Experiment:
    """The experiment file at ``path``, checked.

    Raises:
        ConfigError: see there.
        MissingFile: there is no such file.
    """
    if not Path(path).is_file():
        raise MissingFile(f"{path}: found no such file, expected an experiment file")
    content = Path(path).read_bytes()
    try:
        config = yaml.safe_load(content.decode())
    # Values such as 2026-99-99 lead the constructor to almost any exception.
    except Exception:
        raise ConfigError(f"{path}: found no YAML, expected an experiment file") from None
    require_keys_once(path)
    return load(config, str(path))


def require_keys_once(path: str | Path) -> None:
    """Refuse what readers of YAML pass over: a key that hides an earlier one of the same name.

    Raises:
        ConfigError: the YAML file at ``path`` has one.
    """
    waiting = [("", yaml.compose(Path(path).read_text(encoding="utf-8")))]
    visited = []  # an anchor may lead back to where it stands
    while waiting:
        place, node = waiting.pop()
        if not isinstance(node, yaml.MappingNode) or node in visited:
            continue
        visited.append(node)
        seen = set()
        for key, value in node.value:
            name = f"{place}.{key.value}" if place else str(key.value)
            if name in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{path}: {name}: found twice (line {line}), expected it once")
            seen.add(name)
            waiting.append((name, value))


def load(config: dict, source: str) -> Experiment:
    """Check ``config``, read from the file(s) ``source``, and merge its cells.

    Raises:
        ConfigError: see there.
    """
    try:
        document = Document.model_validate(config)
    except ValidationError as error:
        raise ConfigError(sentence(Document, error, source, [("", config)])) from None
    for place, names in [
        ("tier", [document.tier]),
        ("datasets", document.datasets),
        ("methods", document.methods),
        ("tables", document.tables),
    ]:
        for name in names:
            if not NAME.fullmatch(name):
                raise ConfigError(
                    f"{source}: {place}: found the name {name!r}, expected lower-case letters, "
                    "digits and underscores, as it becomes part of file names"
                )

    datasets, cells = {}, {}
    for name, raw in document.datasets.items():
        datasets[name] = parse(
            Dataset, source, [(f"datasets.{name}", {k: raw[k] for k in _own(raw)})]
        )
        overrides = raw.get("methods", {})
        if not isinstance(overrides, dict) or set(overrides) - set(document.methods):
            raise ConfigError(
                f"{source}: datasets.{name}.methods: found {short(overrides)}, expected some of "
                f"the methods {', '.join(document.methods)}"
            )
        for method, override in overrides.items():
            if not isinstance(override, dict):
                raise ConfigError(
                    f"{source}: datasets.{name}.methods.{method}: found {short(override)}, "
                    "expected a mapping of keys"
                )
        for method, row in document.methods.items():
            cells[name, method] = parse(
                Cell,
                source,
                [
                    ("defaults", document.defaults),
                    (f"datasets.{name}", {k: v for k, v in raw.items() if k not in DATASET_KEYS}),
                    (f"methods.{method}", row),
                    (f"datasets.{name}.methods.{method}", overrides.get(method, {})),
                ],
            )
    experiment = Experiment(
        tier=document.tier,
        datasets=datasets,
        seeds={name: dataset.seeds or document.seeds for name, dataset in datasets.items()},
        methods=list(document.methods),
        cells=cells,
        tables=document.tables,
        toy=document.toy,
        strict=document.strict,
    )
    for problem in inconsistencies(experiment):
        raise ConfigError(f"{source}: {problem}")
    return experiment


DATASET_KEYS = {*Dataset.model_fields, "methods"}


def _own(raw: dict) -> list[str]:
    return [key for key in raw if key in Dataset.model_fields]
