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
    """What tables and pictures call it."""
    sde: SDE
    """The SDE that adds noise to the data."""
    samplers: dict[Name, Sampler] = {}
    """By name, how samples are drawn; tables name the sampler that they show."""
    quality: Quality
    """How samples are compared with real images."""
    likelihood: Likelihood
    """How bits/dim are measured."""
    asymmetry: Asymmetry
    """How Asym and NAsym are measured."""
    circulation: Circulation | None = None
    """How circulation is measured; not at all if null."""


class TrainedCell(Measurements):
    """Everything that one dataset × method needs, for any seed; its model is trained here."""

    parameterisation: Literal["score", "energy"]
    """`score` is U, any vector field; `energy` is C, the gradient of an energy."""
    residual: bool = False
    """For `energy`: h = x − f(x, σ), Eq. (10) to the letter, instead of h = f(x, σ)."""
    regulariser: Regulariser | None = None
    """L_QC; with it, a `score` is QC. None if null."""
    init_from: InitFrom | None = None
    """The checkpoint that training starts from; random weights if null."""
    steps: Count
    """The step at which training ends."""
    checkpoints: list[Count] = []
    """Earlier steps whose checkpoints are kept too, for others to start from."""
    network: Network
    """The network of the score model."""
    training: Training
    """How it is trained."""

    @property
    def stops(self) -> list[int]:
        """The steps at which a checkpoint is kept, in order; the last one is ``steps``."""
        return [*self.checkpoints, self.steps]


class OutsideCell(Measurements):
    """One dataset × method whose model is from outside, and measured as it is."""

    model: Outside
    """A trained model from outside, which is measured as it is."""


Cell = TrainedCell | OutsideCell


class ClassifierTraining(Closed):
    """The network that the workflow trains on the dataset's labels to extract features."""

    epochs: Count
    """Passes over the training images."""


class Dataset(Closed):
    """Images, and what else only a dataset as a whole has."""

    label: Label
    """What tables and pictures call it."""
    data: Data
    """Where its images come from."""
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)] | None = None
    """In place of the experiment's `seeds`, if not null."""
    classifier: ClassifierTraining | None = None
    """The classifier whose features ``extractor: classifier`` compares; it needs labels."""


class Table(Closed):
    """A table, of sample quality or of NLL and asymmetry."""

    methods: Annotated[list[str], Field(min_length=1)]
    """Its rows, in order."""
    sampler: str | None = None
    """The sampler whose samples it compares; a table of NLL and asymmetry if null."""


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
    """A method and its control each."""
    metrics: Annotated[list[str], Field(min_length=1)]
    """Names of metrics, as in `qcsbm.quality.metrics`."""
    samplers: list[str] = []
    """The samplers whose samples are compared."""


class Toy(Closed):
    """The two-dimensional examples, C, U and QC on each data set."""

    points: Count
    """Points of each data set."""
    steps: Count
    """Steps of training."""
    batch_size: Count
    """Points in a step."""
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)]
    """One training and measurement for each."""


class Document(Closed):
    """The file as it is written; parts of cells are checked once they are merged."""

    tier: str
    """Its name: results are in `results/<tier>/`, those of the tier `quick` in `results/`."""
    strict: bool = False
    """Refuse tables of numbers that were not all computed by the same code."""
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)]
    """One training and all measurements of it for each."""
    defaults: dict[str, Any] = {}
    """Keys of a cell for every dataset and method."""
    datasets: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """By name, its own keys and keys of a cell; `methods` in it has some for one method."""
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """By name, keys of a cell: the rows of tables."""
    tables: dict[str, Table]
    """By name, the tables that are made."""
    comparisons: dict[Label, Comparisons] = {}
    """By label, families of comparisons; each model with the one trained alike if empty."""
    toy: Toy | None = None
    """The two-dimensional examples; none if null."""
