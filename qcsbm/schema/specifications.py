"""What one job of the workflow is told: a closed model for every stage.

A specification holds exactly what the result of its stage depends on, so that a change of
configuration reruns the jobs it concerns and no other. ``version`` is raised whenever the code of a
stage changes its results; ``outside`` has the SHA-256 of files that no job of the workflow makes,
None of those that are not there. `qcsbm.experiment.specification` makes them from an experiment.
"""

import json
from typing import Any, Literal

from qcsbm.schema import evaluation
from qcsbm.schema.base import Closed, Count, Label, Precision, Weights, Whole
from qcsbm.schema.document import ClassifierTraining
from qcsbm.schema.networks import Network
from qcsbm.schema.outside import Outside
from qcsbm.schema.samplers import Sampler
from qcsbm.schema.sde import SDE
from qcsbm.schema.sources import Data, Fingerprint
from qcsbm.schema.training import Regulariser, Training


class Specification(Closed):
    """What every stage is told."""

    version: Whole

    def document(self) -> dict[str, Any]:
        """The specification as plain JSON types, as records hold it."""
        return self.model_dump(mode="json")

    def text(self) -> str:
        """The specification as it stands in the command line of a job."""
        return json.dumps(self.document(), sort_keys=True)

    def columns(self) -> dict[str, Any]:
        """What stands beside every number of the stage, by the names of columns."""
        return {}


class PrepareSpec(Specification):
    """``raw`` is None where files that were prepared before are gone, and nothing tells of them."""

    data: Data
    raw: Fingerprint | None


class ClassifierSpec(Specification):
    dataset: str
    protocol: ClassifierTraining

    def columns(self) -> dict[str, Any]:
        return self.protocol.model_dump()


class Model(Closed):
    """The score model to build, but for the shape of its images and its weights."""

    parameterisation: Literal["score", "energy"]
    residual: bool
    network: Network
    sde: SDE


class ModelFromOutside(Closed):
    """A model from outside, and the SDE under which it is measured."""

    source: Outside
    sde: SDE


class Run(Specification):
    """One dataset, method and seed."""

    dataset: str
    method: str
    seed: Whole
    outside: dict[str, str | None] = {}


class ImportCheckpointSpec(Specification):
    dataset: str
    method: str
    model: Model


class Segment(Closed):
    """Training up to the step ``stop``, from the step ``start`` of a checkpoint from outside."""

    stop: Count
    training: Training
    regulariser: Regulariser | None
    start: Count | None = None


class TrainSpec(Run):
    model: Model
    protocol: Segment

    def columns(self) -> dict[str, Any]:
        return self.protocol.model_dump()


class Trained(Closed):
    """How the model that is measured was trained: what its numbers are of.

    How an imported model was trained that was not trained any further is not known; it has no
    ``training_batch_size``.
    """

    train_steps: Count
    parameterisation: Literal["score", "energy"]
    residual: bool
    started_from: str
    training_batch_size: Count | None = None
    regulariser: Regulariser | None = None

    def columns(self) -> dict[str, Any]:
        facts = self.model_dump(exclude={"regulariser"}, exclude_none=True)
        if self.regulariser:
            keys = self.regulariser.model_dump()
            keys["batch_size"] = keys["batch_size"] or self.training_batch_size
            facts |= {f"regulariser_{key}": value for key, value in keys.items()}
        return facts


class FromOutside(Closed):
    """What stands in the place of `Trained` for a model from outside.

    ``model`` is its folder or its function, ``model_sha256`` that of all its files.
    """

    started_from: Literal["outside"]
    model: str
    model_sha256: str | None

    def columns(self) -> dict[str, Any]:
        return self.model_dump()


class Measured(Run):
    """A measurement of the final checkpoint, or of a model from outside."""

    model: Model | ModelFromOutside
    trained: Trained | FromOutside


class Sampling(Closed):
    """``samples`` images by the ``sampler`` of that name, whose ``settings`` are these."""

    weights: Weights | None
    samples: Count
    dequantised: bool
    sampler: str
    settings: Sampler

    def columns(self) -> dict[str, Any]:
        facts = self.model_dump(exclude={"settings"})
        settings = self.settings.model_dump()
        return {**facts, "sampler_type": settings.pop("type"), **settings}


class SampleSpec(Measured):
    protocol: Sampling

    def columns(self) -> dict[str, Any]:
        return {**self.trained.columns(), **self.protocol.columns()}


class LikelihoodSpec(Measured):
    protocol: evaluation.Likelihood

    def columns(self) -> dict[str, Any]:
        return {**self.trained.columns(), **self.protocol.model_dump()}


class AsymmetryProtocol(evaluation.Asymmetry):
    """``dequantised``: on data as the model was trained on."""

    dequantised: bool


class AsymmetrySpec(Measured):
    protocol: AsymmetryProtocol

    def columns(self) -> dict[str, Any]:
        return {**self.trained.columns(), **self.protocol.model_dump()}


class CirculationProtocol(evaluation.Circulation):
    """``dequantised``: around images as the model was trained on."""

    noise_levels: Count
    precision: Precision
    weights: Weights | None
    dequantised: bool


class CirculationSpec(Measured):
    protocol: CirculationProtocol

    def columns(self) -> dict[str, Any]:
        return {**self.trained.columns(), **self.protocol.model_dump()}


class FeaturesProtocol(Closed):
    extractor: str


class FeaturesSpec(Specification):
    protocol: FeaturesProtocol
    outside: dict[str, str | None] = {}

    def columns(self) -> dict[str, Any]:
        return self.protocol.model_dump()


class Comparison(Closed):
    """How samples are compared with reference images, see `qcsbm.schema.evaluation.Quality`."""

    weights: Weights | None
    sampler: str
    sampler_type: str
    extractor: str
    reference: Literal["train", "test"]
    statistics: str | None
    neighbours: Count


class QualitySpec(Run):
    trained: Trained | FromOutside
    protocol: Comparison

    def columns(self) -> dict[str, Any]:
        return {**self.trained.columns(), **self.protocol.model_dump()}


class Together(Specification):
    """Which records a stage may put together, see `qcsbm.experiment.agreement.require`.

    ``records`` has, by "dataset/method", the digests of their specifications; ``strict`` refuses
    numbers that were not all computed by the same code.
    """

    strict: bool
    seeds: dict[str, list[Whole]]
    records: dict[str, list[str]]


class PaperRow(Closed):
    """The row of the paper's tables beside a method, and what keeps it from standing there."""

    dataset: str
    kind: Literal["c", "u", "qc"]
    sampler: Literal["pc", "ode"] | None
    differences: list[str]


# (method, label) in the order of rows.
Labels = list[tuple[str, Label]]


class TableSpec(Together):
    """Rows and labels of a table; ``sampler`` is None for the table of NLL and asymmetry.

    By dataset: ``datasets`` has its label, ``methods`` the rows, ``names`` the labels of all
    methods, which those of the rows may have started from, ``paper`` the paper's rows by method.
    """

    sampler: str | None
    datasets: dict[str, Label]
    methods: dict[str, Labels]
    names: dict[str, dict[str, Label]]
    paper: dict[str, dict[str, PaperRow]]


class CostSpec(Together):
    """Rows and labels of the table of costs."""

    datasets: dict[str, Label]
    methods: dict[str, Labels]


class FiguresSpec(Together):
    """All pictures of a dataset; samples are those of ``seed``.

    ``controls`` and ``chains`` are, by method, those of `qcsbm.experiment.experiment.Experiment`.
    """

    methods: Labels
    seed: Whole
    samplers: list[str]
    controls: dict[str, str]
    chains: dict[str, list[tuple[str, Whole, Count]]]


class Compared(Closed):
    """A model and its control; ``kind`` says which claims it is subject to.

    The paper has none where the control is no unregularised score model, or both are.
    """

    kind: Literal["regularised", "conservative", "other"]
    method: str
    control: str
    subject: str


class Family(Closed):
    """`qcsbm.schema.document.Comparisons` on a dataset."""

    name: Label
    comparisons: list[Compared]
    metrics: list[str]
    samplers: list[str]


class ComparedDataset(Closed):
    """``chains``, by method, are those of `qcsbm.experiment.experiment.Experiment`."""

    dataset: str
    label: Label
    comparisons: list[Compared]
    families: list[Family] = []
    chains: dict[str, list[tuple[str, Whole, Count]]] = {}


class ClaimsSpec(Specification):
    """What is compared: pairs one by one, or families where the experiment file declares them.

    ``alone`` names conservative and regularised models without a control.
    """

    datasets: list[ComparedDataset]
    samplers: list[str]
    alone: list[str]


class Figure1Spec(Specification):
    """``starts`` sets of random starts, at every step size of ``sizes``."""

    starts: Count
    sizes: list[float]


class Figure4Spec(Specification):
    """Autoencoders of ``seeds`` seeds, trained for ``steps`` steps."""

    seeds: Count
    steps: Count


class ToyTraining(Closed):
    points: Count
    steps: Count
    batch_size: Count


class ToySpec(Run):
    """Training and evaluation of one model in two dimensions."""

    protocol: ToyTraining

    def columns(self) -> dict[str, Any]:
        return self.protocol.model_dump()


class ToyTableSpec(Together):
    """The table of the two-dimensional examples."""


class ToyFigureSpec(Specification):
    """The models of ``seed``, beside the ``points`` points that they were trained on."""

    dataset: str
    points: Count
    seed: Whole
