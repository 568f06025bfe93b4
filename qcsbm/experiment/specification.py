"""What one job of the workflow is told, made from an experiment.

The models are those of `qcsbm.schema.specifications`. Stages that put records together are told
which specifications these may have, see `qcsbm.experiment.agreement`.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Literal

from qcsbm.data import raw
from qcsbm.experiment import layout, outside_models, paper_rows
from qcsbm.experiment.agreement import digest
from qcsbm.experiment.experiment import Experiment
from qcsbm.quality import extractor_weights
from qcsbm.runtime import outside, own_code
from qcsbm.schema import specifications as schema
from qcsbm.schema.base import Precision
from qcsbm.schema.document import Cell, OutsideCell, Table, Toy, TrainedCell
from qcsbm.schema.networks import Own

VERSIONS = {
    "prepare": 1,
    "classifier": 2,
    "train": 3,
    "import_checkpoint": 2,
    "sample": 3,
    "features": 3,
    "quality": 7,
    "likelihood": 2,
    "asymmetry": 2,
    "circulation": 1,
    "gather_records": 1,
    "table": 6,
    "cost": 3,
    "figure1": 3,
    "figure4": 2,
    "figures": 3,
    "claims": 4,
    "toy": 1,
    "toy_table": 3,
    "toy_figure": 1,
}

# Records in the folder of a run.
TRAINED = ("step*.json",)
LIKELIHOOD = ("likelihood.json", "asymmetry.json", "circulation.json")
MEASURED = (*LIKELIHOOD, "*/sample.json", "*/quality.json")
COSTLY = (*TRAINED, "likelihood.json", "*/sample.json")

# The keys of `qcsbm.motivation.toy.DATASETS` and ``METHODS``, known without torch.
TOY_DATASETS = ("8-gaussian", "spirals", "checkerboard")
TOY_METHODS = ("c", "u", "qc")


def prepare(
    experiment: Experiment, dataset: str, description: str | None = None
) -> schema.PrepareSpec:
    """``raw`` is the fingerprint of the files that are read.

    Where they are gone, what was prepared from them stays valid: the file ``description`` says what
    that is, the one of the dataset's folder if None.
    """
    data = experiment.datasets[dataset].data
    prepared = description or f"{layout.data(experiment, dataset)}/data.json"
    return schema.PrepareSpec(
        version=VERSIONS["prepare"], data=data, raw=raw.fingerprint(data) or raw.prepared(prepared)
    )


def classifier(experiment: Experiment, dataset: str) -> schema.ClassifierSpec:
    protocol = experiment.datasets[dataset].classifier
    if protocol is None:
        raise ValueError(f"dataset {dataset}: found no classifier, expected how it is trained")
    return schema.ClassifierSpec(version=VERSIONS["classifier"], dataset=dataset, protocol=protocol)


def train(
    experiment: Experiment, dataset: str, method: str, seed: int, step: int
) -> schema.TrainSpec:
    """Training of one segment, towards the checkpoint at ``step``."""
    cell = experiment.trainings[dataset, method]
    origin = cell.init_from
    # Of other checkpoints to start from, the workflow itself knows which step they are at.
    imported = origin.checkpoint if origin and step == cell.stops[0] else None
    return schema.TrainSpec(
        version=VERSIONS["train"],
        dataset=dataset,
        method=method,
        seed=seed,
        model=model(cell),
        protocol=schema.Segment(
            stop=step,
            training=cell.training,
            regulariser=cell.regulariser,
            start=origin.step if origin and imported else None,
        ),
        outside=_outside(cell, init=imported),
    )


def import_checkpoint(
    experiment: Experiment, dataset: str, method: str
) -> schema.ImportCheckpointSpec:
    return schema.ImportCheckpointSpec(
        version=VERSIONS["import_checkpoint"],
        dataset=dataset,
        method=method,
        model=model(experiment.trainings[dataset, method]),
    )


def describe(experiment: Experiment, dataset: str, method: str) -> dict[str, Any]:
    """Everything about a cell, for a reader."""
    return {
        "dataset": dataset,
        "method": method,
        "tier": experiment.tier,
        "seeds": experiment.seeds[dataset],
        "data": experiment.datasets[dataset].data.model_dump(),
        **experiment.cells[dataset, method].model_dump(),
    }


def sample(
    experiment: Experiment, dataset: str, method: str, seed: int, sampler: str
) -> schema.SampleSpec:
    cell = experiment.cells[dataset, method]
    return schema.SampleSpec(
        version=VERSIONS["sample"],
        **_measured(experiment, dataset, method, seed),
        protocol=schema.Sampling(
            weights=cell.quality.weights,
            samples=cell.quality.samples,
            dequantised=_dequantised(cell),
            sampler=sampler,
            settings=cell.samplers[sampler],
        ),
    )


def features(experiment: Experiment, extractor: str, precision: Precision) -> schema.FeaturesSpec:
    weights = extractor_weights.path(extractor)
    return schema.FeaturesSpec(
        version=VERSIONS["features"],
        protocol=schema.FeaturesProtocol(extractor=extractor, precision=precision),
        outside={"weights": outside.sha256(weights)} if weights else {},
    )


def quality(
    experiment: Experiment, dataset: str, method: str, seed: int, sampler: str
) -> schema.QualitySpec:
    cell = experiment.cells[dataset, method]
    configured, statistics = cell.quality, cell.quality.statistics
    return schema.QualitySpec(
        version=VERSIONS["quality"],
        dataset=dataset,
        method=method,
        seed=seed,
        trained=experiment.trained[dataset, method],
        protocol=schema.Comparison(
            weights=configured.weights,
            sampler=sampler,
            sampler_type=cell.samplers[sampler].type,
            extractor=configured.extractor,
            precision=configured.precision,
            reference=configured.reference,
            statistics=statistics,
            neighbours=configured.neighbours,
        ),
        outside={"statistics": outside.sha256(statistics)} if statistics else {},
    )


def likelihood(
    experiment: Experiment, dataset: str, method: str, seed: int
) -> schema.LikelihoodSpec:
    return schema.LikelihoodSpec(
        version=VERSIONS["likelihood"],
        **_measured(experiment, dataset, method, seed),
        protocol=experiment.cells[dataset, method].likelihood,
    )


def asymmetry(experiment: Experiment, dataset: str, method: str, seed: int) -> schema.AsymmetrySpec:
    cell = experiment.cells[dataset, method]
    return schema.AsymmetrySpec(
        version=VERSIONS["asymmetry"],
        **_measured(experiment, dataset, method, seed),
        protocol=schema.AsymmetryProtocol(
            dequantised=_dequantised(cell), **cell.asymmetry.model_dump()
        ),
    )


def circulation(
    experiment: Experiment, dataset: str, method: str, seed: int
) -> schema.CirculationSpec:
    cell = experiment.cells[dataset, method]
    if cell.circulation is None:
        raise ValueError(f"dataset {dataset}, method {method}: found no circulation to measure")
    return schema.CirculationSpec(
        version=VERSIONS["circulation"],
        **_measured(experiment, dataset, method, seed),
        protocol=schema.CirculationProtocol(
            **cell.circulation.model_dump(),
            noise_levels=cell.asymmetry.noise_levels,
            precision=cell.asymmetry.precision,
            weights=cell.asymmetry.weights,
            dequantised=_dequantised(cell),
        ),
    )


def gather_records(experiment: Experiment) -> schema.Together:
    return schema.Together(
        version=VERSIONS["gather_records"],
        **_expected(experiment, experiment.datasets, experiment.methods, MEASURED),
    )


def table(experiment: Experiment, name: str) -> schema.TableSpec:
    configured = experiment.tables[name]
    rows = {
        dataset: {
            method: paper_rows.counterpart(experiment, dataset, method, configured.sampler)
            for method in configured.methods
        }
        for dataset in experiment.datasets
    }
    return schema.TableSpec(
        version=VERSIONS["table"],
        **_expected(experiment, experiment.datasets, configured.methods, table_files(configured)),
        sampler=configured.sampler,
        datasets={key: dataset.label for key, dataset in experiment.datasets.items()},
        methods={
            dataset: _labels(experiment, dataset, configured.methods)
            for dataset in experiment.datasets
        },
        names={
            dataset: dict(_labels(experiment, dataset, experiment.methods))
            for dataset in experiment.datasets
        },
        paper={
            dataset: {method: row for method, row in of_dataset.items() if row}
            for dataset, of_dataset in rows.items()
        },
    )


def table_files(configured: Table) -> tuple[str, ...]:
    """Patterns of the records in the folder of a run that a table is made of."""
    return (f"{configured.sampler}/*.json",) if configured.sampler else LIKELIHOOD


def cost(experiment: Experiment) -> schema.CostSpec:
    return schema.CostSpec(
        version=VERSIONS["cost"],
        **_expected(experiment, experiment.datasets, experiment.methods, COSTLY),
        datasets={key: dataset.label for key, dataset in experiment.datasets.items()},
        methods={
            dataset: _labels(experiment, dataset, experiment.methods)
            for dataset in experiment.datasets
        },
    )


def figure1(experiment: Experiment) -> schema.Figure1Spec:
    sizes = [0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015]
    return schema.Figure1Spec(version=VERSIONS["figure1"], starts=100, sizes=sizes)


def figure4(experiment: Experiment) -> schema.Figure4Spec:
    return schema.Figure4Spec(version=VERSIONS["figure4"], seeds=10, steps=10_000)


def figures(experiment: Experiment, dataset: str) -> schema.FiguresSpec:
    methods = experiment.methods
    controls = {method: experiment.control(dataset, method) for method in methods}
    return schema.FiguresSpec(
        version=VERSIONS["figures"],
        **_expected(experiment, [dataset], methods, (*TRAINED, *MEASURED)),
        methods=_labels(experiment, dataset, methods),
        seed=experiment.seeds[dataset][0],
        samplers=experiment.samplers,
        controls={method: control for method, control in controls.items() if control},
        chains={method: experiment.chain(dataset, method) for method in methods},
    )


def claims(experiment: Experiment) -> schema.ClaimsSpec:
    datasets: list[schema.ComparedDataset] = []
    alone: list[str] = []
    for name, dataset in experiment.datasets.items():
        if experiment.comparisons:
            families = [
                schema.Family(
                    name=family,
                    comparisons=[_compared(experiment, name, *pair) for pair in declared.pairs],
                    metrics=declared.metrics,
                    samplers=declared.samplers,
                )
                for family, declared in experiment.comparisons.items()
            ]
            methods = sorted({m for f in families for c in f.comparisons for m in _pair(c)})
            compared = schema.ComparedDataset(
                dataset=name,
                label=dataset.label,
                comparisons=[],
                families=families,
                chains={method: experiment.chain(name, method) for method in methods},
            )
        else:
            controls = {
                method: experiment.control(name, method)
                for method in experiment.methods
                if _kind(experiment, name, method) != "other"
            }
            alone += [
                f"{experiment.cells[name, method].label} on {dataset.label}"
                for method, control in controls.items()
                if control is None
            ]
            compared = schema.ComparedDataset(
                dataset=name,
                label=dataset.label,
                comparisons=[
                    _compared(experiment, name, method, control)
                    for method, control in controls.items()
                    if control
                ],
            )
        datasets.append(compared)
    return schema.ClaimsSpec(
        version=VERSIONS["claims"], datasets=datasets, samplers=experiment.samplers, alone=alone
    )


def _compared(experiment: Experiment, dataset: str, method: str, control: str) -> schema.Compared:
    plain = _kind(experiment, dataset, control) == "other"
    labels = [experiment.cells[dataset, name].label for name in (method, control)]
    return schema.Compared(
        kind=_kind(experiment, dataset, method) if plain else "other",
        method=method,
        control=control,
        subject=" against ".join(labels),
    )


def _kind(
    experiment: Experiment, dataset: str, method: str
) -> Literal["regularised", "conservative", "other"]:
    """What the paper has claims about, if it has."""
    cell = experiment.trainings.get((dataset, method))
    if cell and cell.regulariser:
        return "regularised"
    return "conservative" if cell and cell.parameterisation == "energy" else "other"


def _pair(compared: schema.Compared) -> tuple[str, str]:
    return compared.method, compared.control


def toy(experiment: Experiment, dataset: str, method: str, seed: int) -> schema.ToySpec:
    """Training and evaluation of one model in two dimensions."""
    return schema.ToySpec(
        version=VERSIONS["toy"],
        dataset=dataset,
        method=method,
        seed=seed,
        protocol=schema.ToyTraining(**_toy(experiment).model_dump(exclude={"seeds"})),
    )


def toy_table(experiment: Experiment) -> schema.ToyTableSpec:
    seeds = _toy(experiment).seeds
    return schema.ToyTableSpec(
        version=VERSIONS["toy_table"],
        strict=experiment.strict,
        seeds=dict.fromkeys(TOY_DATASETS, seeds),
        records={
            f"{dataset}/{method}": [digest(toy(experiment, dataset, method, seeds[0]).document())]
            for dataset in TOY_DATASETS
            for method in TOY_METHODS
        },
    )


def toy_figure(experiment: Experiment, dataset: str) -> schema.ToyFigureSpec:
    return schema.ToyFigureSpec(
        version=VERSIONS["toy_figure"],
        dataset=dataset,
        points=_toy(experiment).points,
        seed=_toy(experiment).seeds[0],
    )


def of_run(experiment: Experiment, dataset: str, method: str, seed: int) -> dict[str, schema.Run]:
    """The specification of every record of a run, by its file in the run's folder."""
    cell = experiment.cells[dataset, method]
    run = dataset, method, seed
    found: dict[str, schema.Run] = {
        f"step{step}.json": train(experiment, *run, step)
        for step in experiment.trained_steps(dataset, method)
    }
    found["likelihood.json"] = likelihood(experiment, *run)
    found["asymmetry.json"] = asymmetry(experiment, *run)
    if cell.circulation:
        found["circulation.json"] = circulation(experiment, *run)
    for sampler in experiment.samplers:
        if sampler in cell.samplers:
            found[f"{sampler}/sample.json"] = sample(experiment, *run, sampler)
            found[f"{sampler}/quality.json"] = quality(experiment, *run, sampler)
    return found


def model(cell: TrainedCell) -> schema.Model:
    """The score model of a cell that is trained."""
    return schema.Model(
        parameterisation=cell.parameterisation,
        residual=cell.residual,
        network=cell.network,
        sde=cell.sde,
    )


def model_from_outside(cell: OutsideCell) -> schema.ModelFromOutside:
    return schema.ModelFromOutside(source=cell.model, sde=cell.sde)


def _dequantised(cell: Cell) -> bool:
    """Whether the model was trained on (k + u)/L instead of k/(L − 1)."""
    return cell.model.dequantised if isinstance(cell, OutsideCell) else cell.training.dequantise


def _toy(experiment: Experiment) -> Toy:
    if experiment.toy is None:
        raise ValueError(f"tier {experiment.tier}: found no two-dimensional examples")
    return experiment.toy


def _expected(
    experiment: Experiment, datasets: Iterable[str], methods: Iterable[str], files: Iterable[str]
) -> dict[str, Any]:
    """Which records may be put together, for `schema.Together`; ``files`` are patterns."""
    records = {}
    for dataset in datasets:
        for method in methods:
            specs = of_run(experiment, dataset, method, experiment.seeds[dataset][0])
            records[f"{dataset}/{method}"] = [
                digest(spec.document())
                for file, spec in specs.items()
                if any(fnmatchcase(file, pattern) for pattern in files)
            ]
    return {
        "strict": experiment.strict,
        "seeds": {dataset: experiment.seeds[dataset] for dataset in datasets},
        "records": records,
    }


def _labels(experiment: Experiment, dataset: str, methods: Iterable[str]) -> list[tuple[str, str]]:
    return [(method, experiment.cells[dataset, method].label) for method in methods]


def _measured(experiment: Experiment, dataset: str, method: str, seed: int) -> dict[str, Any]:
    """What every measurement of a cell's model must know, for `schema.Measured`."""
    cell = experiment.cells[dataset, method]
    trained = experiment.trained[dataset, method]
    facts = {"dataset": dataset, "method": method, "seed": seed, "trained": trained}
    if isinstance(cell, OutsideCell):
        sha256 = outside_models.sha256(cell.model)
        return facts | {"model": model_from_outside(cell), "outside": {"model": sha256}}
    imported = experiment.imported(dataset, method, cell.steps)
    return facts | {"model": model(cell), "outside": _outside(cell, checkpoint=imported)}


def _outside(cell: TrainedCell, **files: str | None) -> dict[str, str | None]:
    """The SHA-256 of what no job makes: ``files`` by name, and code of a network of one's own."""
    found = {name: outside.sha256(path) for name, path in files.items() if path}
    if isinstance(cell.network, Own):
        found["network"] = own_code.sha256(cell.network.type)
    return found
