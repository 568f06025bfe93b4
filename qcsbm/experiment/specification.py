"""What one job of the workflow has to know: the specification of a stage, as plain JSON.

It holds exactly what the stage's result depends on, so that a change of configuration reruns the
jobs it concerns and no other. ``protocol`` is what stands beside every number; ``version`` is
raised whenever the code of a stage changes its results; ``outside`` has the SHA-256 of files that
no job of the workflow makes, None of those that are not there. Stages that put records together
are told which specifications these may have, see `qcsbm.experiment.agreement`.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from qcsbm.data import raw
from qcsbm.experiment import layout, paper_rows
from qcsbm.experiment.agreement import digest
from qcsbm.experiment.experiment import Experiment
from qcsbm.quality import extractor_weights
from qcsbm.runtime import outside
from qcsbm.schema.document import Cell, Table

VERSIONS = {
    "prepare": 1,
    "classifier": 2,
    "train": 3,
    "import_checkpoint": 2,
    "sample": 3,
    "features": 3,
    "quality": 5,
    "likelihood": 2,
    "asymmetry": 2,
    "gather_records": 1,
    "table": 4,
    "cost": 2,
    "figure1": 2,
    "figure4": 1,
    "figures": 1,
    "claims": 2,
    "toy": 1,
    "toy_table": 2,
    "toy_figure": 1,
}

# Records in the folder of a run.
TRAINED = ("step*.json",)
LIKELIHOOD = ("likelihood.json", "asymmetry.json")
MEASURED = (*LIKELIHOOD, "*/sample.json", "*/quality.json")
COSTLY = (*TRAINED, "likelihood.json", "*/sample.json")

# The keys of `qcsbm.motivation.toy.DATASETS` and ``METHODS``, known without torch.
TOY_DATASETS = ("8-gaussian", "spirals", "checkerboard")
TOY_METHODS = ("c", "u", "qc")


def prepare(experiment: Experiment, dataset: str) -> dict:
    """``raw`` is the fingerprint of the files that are read.

    Where they are gone, what was prepared from them stays valid.
    """
    data = experiment.datasets[dataset].data
    prepared = f"{layout.data(experiment, dataset)}/data.json"
    return {
        "version": VERSIONS["prepare"],
        "data": data.model_dump(),
        "raw": raw.fingerprint(data) or raw.prepared(prepared),
    }


def classifier(experiment: Experiment, dataset: str) -> dict:
    return {
        "version": VERSIONS["classifier"],
        "dataset": dataset,
        "protocol": experiment.datasets[dataset].classifier.model_dump(),
    }


def train(experiment: Experiment, dataset: str, method: str, seed: int, step: int) -> dict:
    """Training of one segment, towards the checkpoint at ``step``."""
    cell = experiment.cells[dataset, method]
    regulariser = cell.regulariser and cell.regulariser.model_dump()
    # Of other checkpoints to start from, the workflow itself knows which step they are at.
    imported = cell.init_from and cell.init_from.checkpoint and step == cell.stops[0]
    return {
        **_run("train", dataset, method, seed, cell),
        "protocol": {
            "stop": step,
            "training": cell.training.model_dump(),
            "regulariser": regulariser,
            **({"start": cell.init_from.step} if imported else {}),
        },
        **({"outside": {"init": outside.sha256(cell.init_from.checkpoint)}} if imported else {}),
    }


def import_checkpoint(experiment: Experiment, dataset: str, method: str) -> dict:
    return {
        "version": VERSIONS["import_checkpoint"],
        "dataset": dataset,
        "method": method,
        "model": _model(experiment.cells[dataset, method]),
        "protocol": {},
    }


def describe(experiment: Experiment, dataset: str, method: str) -> dict:
    """Everything about a cell, for a reader, and the model to build."""
    cell = experiment.cells[dataset, method]
    return {
        "dataset": dataset,
        "method": method,
        "tier": experiment.tier,
        "seeds": experiment.seeds[dataset],
        "data": experiment.datasets[dataset].data.model_dump(),
        **cell.model_dump(),
        "model": _model(cell),
    }


def sample(experiment: Experiment, dataset: str, method: str, seed: int, sampler: str) -> dict:
    cell = experiment.cells[dataset, method]
    return {
        **_measured("sample", experiment, dataset, method, seed),
        "protocol": {
            **experiment.trained[dataset, method],
            "weights": cell.quality.weights,
            "samples": cell.quality.samples,
            "dequantised": cell.training.dequantise,
            "sampler": sampler,
            **cell.samplers[sampler].model_dump(),
        },
    }


def features(experiment: Experiment, extractor: str) -> dict:
    weights = extractor_weights.path(extractor)
    return {
        "version": VERSIONS["features"],
        "protocol": {"extractor": extractor},
        **({"outside": {"weights": outside.sha256(weights)}} if weights else {}),
    }


def quality(experiment: Experiment, dataset: str, method: str, seed: int, sampler: str) -> dict:
    cell = experiment.cells[dataset, method]
    statistics = cell.quality.statistics
    return {
        "version": VERSIONS["quality"],
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "protocol": {
            **experiment.trained[dataset, method],
            "weights": cell.quality.weights,
            "sampler": sampler,
            "extractor": cell.quality.extractor,
            "reference": cell.quality.reference,
            "statistics": cell.quality.statistics,
            "neighbours": cell.quality.neighbours,
        },
        **({"outside": {"statistics": outside.sha256(statistics)}} if statistics else {}),
    }


def likelihood(experiment: Experiment, dataset: str, method: str, seed: int) -> dict:
    cell = experiment.cells[dataset, method]
    return {
        **_measured("likelihood", experiment, dataset, method, seed),
        "protocol": {**experiment.trained[dataset, method], **cell.likelihood.model_dump()},
    }


def asymmetry(experiment: Experiment, dataset: str, method: str, seed: int) -> dict:
    cell = experiment.cells[dataset, method]
    return {
        **_measured("asymmetry", experiment, dataset, method, seed),
        "protocol": {
            **experiment.trained[dataset, method],
            "dequantised": cell.training.dequantise,
            **cell.asymmetry.model_dump(),
        },
    }


def gather_records(experiment: Experiment) -> dict:
    expected = _expected(experiment, experiment.datasets, experiment.methods, MEASURED)
    return {"version": VERSIONS["gather_records"], **expected}


def table(experiment: Experiment, name: str) -> dict:
    """Rows and labels of a table; ``sampler`` is None for the table of NLL and asymmetry.

    ``names`` has the labels of all methods, which those of the rows may have started from;
    ``paper`` the paper's rows on its datasets, see `qcsbm.experiment.paper_rows.counterpart`.
    """
    configured = experiment.tables[name]
    files = table_files(configured)
    rows = {
        dataset: {
            method: paper_rows.counterpart(experiment, dataset, method, configured.sampler)
            for method in configured.methods
        }
        for dataset in experiment.datasets
    }
    return {
        "version": VERSIONS["table"],
        **_expected(experiment, experiment.datasets, configured.methods, files),
        "sampler": configured.sampler,
        "datasets": {key: dataset.label for key, dataset in experiment.datasets.items()},
        "methods": {
            dataset: [
                [method, experiment.cells[dataset, method].label] for method in configured.methods
            ]
            for dataset in experiment.datasets
        },
        "names": {dataset: dict(_labels(experiment, dataset)) for dataset in experiment.datasets},
        "paper": {
            dataset: {method: row for method, row in of_dataset.items() if row}
            for dataset, of_dataset in rows.items()
        },
    }


def table_files(configured: Table) -> tuple[str, ...]:
    """Patterns of the records in the folder of a run that a table is made of."""
    return (f"{configured.sampler}/*.json",) if configured.sampler else LIKELIHOOD


def cost(experiment: Experiment) -> dict:
    """Rows and labels of the table of costs."""
    return {
        "version": VERSIONS["cost"],
        **_expected(experiment, experiment.datasets, experiment.methods, COSTLY),
        "datasets": {key: dataset.label for key, dataset in experiment.datasets.items()},
        "methods": {
            dataset: [
                [method, experiment.cells[dataset, method].label] for method in experiment.methods
            ]
            for dataset in experiment.datasets
        },
    }


def figure1(experiment: Experiment) -> dict:
    """``starts`` sets of random starts, at every step size of ``sizes``."""
    sizes = [0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015]
    return {"version": VERSIONS["figure1"], "protocol": {"starts": 100, "sizes": sizes}}


def figure4(experiment: Experiment) -> dict:
    return {"version": VERSIONS["figure4"], "protocol": {"seeds": 10, "steps": 10_000}}


def figures(experiment: Experiment, dataset: str) -> dict:
    """All pictures; samples are those of ``seed``. For the others see
    `qcsbm.experiment.experiment.Experiment`."""
    methods = experiment.methods
    controls = {method: experiment.control(dataset, method) for method in methods}
    return {
        "version": VERSIONS["figures"],
        **_expected(experiment, [dataset], methods, (*TRAINED, *MEASURED)),
        "methods": _labels(experiment, dataset),
        "seed": experiment.seeds[dataset][0],
        "samplers": experiment.samplers,
        "controls": {method: control for method, control in controls.items() if control},
        "chains": {method: experiment.chain(dataset, method) for method in methods},
    }


def claims(experiment: Experiment) -> dict:
    """What is compared: for each dataset, (kind, method, control, label) of every comparison.

    ``alone`` names conservative and regularised models that have no control.
    """
    datasets, alone = [], []
    for name, dataset in experiment.datasets.items():
        comparisons = []
        for method in experiment.methods:
            cell = experiment.cells[name, method]
            if cell.parameterisation == "score" and cell.regulariser is None:
                continue
            kind = "regularised" if cell.regulariser else "conservative"
            control = experiment.control(name, method)
            if control:
                against = f"{cell.label} against {experiment.cells[name, control].label}"
                comparisons.append([kind, method, control, against])
            else:
                alone.append(f"{cell.label} on {dataset.label}")
        datasets.append([name, dataset.label, comparisons])
    return {
        "version": VERSIONS["claims"],
        "datasets": datasets,
        "samplers": experiment.samplers,
        "alone": alone,
    }


def toy(experiment: Experiment, dataset: str, method: str, seed: int) -> dict:
    """Training and evaluation of one model in two dimensions."""
    return {
        "version": VERSIONS["toy"],
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "protocol": experiment.toy.model_dump(exclude={"seeds"}),
    }


def toy_table(experiment: Experiment) -> dict:
    seeds = experiment.toy.seeds
    return {
        "version": VERSIONS["toy_table"],
        "strict": experiment.strict,
        "seeds": dict.fromkeys(TOY_DATASETS, seeds),
        "records": {
            f"{dataset}/{method}": [digest(toy(experiment, dataset, method, seeds[0]))]
            for dataset in TOY_DATASETS
            for method in TOY_METHODS
        },
    }


def toy_figure(experiment: Experiment, dataset: str) -> dict:
    """The models of the first seed, beside the data that they were trained on."""
    return {
        "version": VERSIONS["toy_figure"],
        "dataset": dataset,
        "points": experiment.toy.points,
        "seed": experiment.toy.seeds[0],
    }


def of_run(experiment: Experiment, dataset: str, method: str, seed: int) -> dict[str, dict]:
    """The specification of every record of a run, by its file in the run's folder."""
    cell = experiment.cells[dataset, method]
    run = dataset, method, seed
    found = {
        f"step{step}.json": train(experiment, *run, step)
        for step in cell.stops
        if not experiment.imported(dataset, method, step)
    }
    found["likelihood.json"] = likelihood(experiment, *run)
    found["asymmetry.json"] = asymmetry(experiment, *run)
    for sampler in experiment.samplers:
        if sampler in cell.samplers:
            found[f"{sampler}/sample.json"] = sample(experiment, *run, sampler)
            found[f"{sampler}/quality.json"] = quality(experiment, *run, sampler)
    return found


def _expected(
    experiment: Experiment, datasets: Iterable[str], methods: Iterable[str], files: Iterable[str]
) -> dict:
    """Which records may be put together, see `qcsbm.experiment.agreement.require`; ``files`` are
    patterns."""
    records = {}
    for dataset in datasets:
        for method in methods:
            specs = of_run(experiment, dataset, method, experiment.seeds[dataset][0])
            records[f"{dataset}/{method}"] = [
                digest(spec)
                for file, spec in specs.items()
                if any(fnmatchcase(file, pattern) for pattern in files)
            ]
    return {
        "strict": experiment.strict,
        "seeds": {dataset: experiment.seeds[dataset] for dataset in datasets},
        "records": records,
    }


def _labels(experiment: Experiment, dataset: str) -> list[list[str]]:
    return [[method, experiment.cells[dataset, method].label] for method in experiment.methods]


def _run(stage: str, dataset: str, method: str, seed: int, cell: Cell) -> dict:
    return {
        "version": VERSIONS[stage],
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "model": _model(cell),
    }


def _measured(stage: str, experiment: Experiment, dataset: str, method: str, seed: int) -> dict:
    """What every measurement of the final checkpoint must know."""
    cell = experiment.cells[dataset, method]
    imported = experiment.imported(dataset, method, cell.steps)
    return {
        **_run(stage, dataset, method, seed, cell),
        **({"outside": {"checkpoint": outside.sha256(imported)}} if imported else {}),
    }


def _model(cell: Cell) -> dict:
    """Keyword arguments of `qcsbm.score.models.build`, all but the image shape and the seed."""
    return {
        "parameterisation": cell.parameterisation,
        "residual": cell.residual,
        "network": cell.network.model_dump(),
        "sde": cell.sde.model_dump(),
    }
