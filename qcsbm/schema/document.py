"""The experiment file: cells, datasets, tables, and the file as a whole."""

from typing import Annotated, Any, Literal

from pydantic import Field

from qcsbm.schema.base import Closed, Count, Label, Name, Whole
from qcsbm.schema.evaluation import Asymmetry, Circulation, Likelihood, Quality
from qcsbm.schema.networks import Network
from qcsbm.schema.outside import Outside
from qcsbm.schema.samplers import Sampler
from qcsbm.schema.sde import SDE
from qcsbm.schema.sources import Data
from qcsbm.schema.training import InitFrom, Regulariser, Training


class Measurements(Closed):
    """What every cell, one dataset × method, has: an SDE, and how its model is measured.

    Circulation is measured where the file says how.
    """

    label: Label
    sde: SDE
    samplers: dict[Name, Sampler] = {}
    quality: Quality
    likelihood: Likelihood
    asymmetry: Asymmetry
    circulation: Circulation | None = None


class TrainedCell(Measurements):
    """Everything that one dataset × method needs, for any seed; its model is trained here."""

    parameterisation: Literal["score", "energy"]
    residual: bool = False
    regulariser: Regulariser | None = None
    init_from: InitFrom | None = None
    steps: Count
    checkpoints: list[Count] = []
    network: Network
    training: Training

    @property
    def stops(self) -> list[int]:
        """The steps at which a checkpoint is kept, in order; the last one is ``steps``."""
        return [*self.checkpoints, self.steps]


class OutsideCell(Measurements):
    """One dataset × method whose model is from outside, and measured as it is."""

    model: Outside


Cell = TrainedCell | OutsideCell


class ClassifierTraining(Closed):
    """The network that the workflow trains on the dataset's labels to extract features."""

    epochs: Count


class Dataset(Closed):
    label: Label
    data: Data
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)] | None = None
    classifier: ClassifierTraining | None = None


class Table(Closed):
    """The rows of a table: of sample quality with a ``sampler``, else of NLL and asymmetry."""

    methods: Annotated[list[str], Field(min_length=1)]
    sampler: str | None = None


class Comparisons(Closed):
    """A family of comparisons: every pair, on every metric.

    Each of the ``pairs`` is a method and its control. ``metrics`` have their names in
    `qcsbm.quality.metrics`, whatever network extracts features; those of samples are compared with
    every one of ``samplers``. On each dataset the family has an error of its own, and Holm's
    correction for as many comparisons as are declared here, measured or not.
    """

    pairs: Annotated[
        list[Annotated[list[str], Field(min_length=2, max_length=2)]], Field(min_length=1)
    ]
    metrics: Annotated[list[str], Field(min_length=1)]
    samplers: list[str] = []


class Toy(Closed):
    """The two-dimensional examples, on ``points`` points of each data set."""

    points: Count
    steps: Count
    batch_size: Count
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)]


class Document(Closed):
    """The file as it is written; parts of cells are checked once they are merged.

    ``comparisons`` are families by name. Where there are none, every conservative and regularised
    model is compared with the one that was trained alike, each comparison by itself. ``strict``
    refuses tables of numbers that were not all computed by the same code.
    """

    tier: str
    strict: bool = False
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)]
    defaults: dict[str, Any] = {}
    datasets: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    tables: dict[str, Table]
    comparisons: dict[Label, Comparisons] = {}
    toy: Toy | None = None
