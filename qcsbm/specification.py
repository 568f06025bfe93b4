"""What one job of the workflow has to know: the specification of a stage, as plain JSON.

It holds exactly what the stage's result depends on, so that a change of configuration reruns the
jobs it concerns and no other. ``protocol`` is what stands beside every number; ``version`` is
raised whenever the code of a stage changes its results.
"""

from qcsbm.config import Cell, Experiment

VERSIONS = {
    "prepare": 1,
    "classifier": 1,
    "train": 1,
    "sample": 1,
    "features": 1,
    "quality": 1,
    "likelihood": 1,
    "asymmetry": 1,
    "metrics": 1,
    "table": 1,
}


def prepare(experiment: Experiment, dataset: str) -> dict:
    data = experiment.datasets[dataset].data
    return {"version": VERSIONS["prepare"], "data": data.model_dump()}


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
    return {
        **_run("train", dataset, method, seed, cell),
        "protocol": {
            "stop": step,
            "training": cell.training.model_dump(),
            "regulariser": regulariser,
        },
    }


def sample(experiment: Experiment, dataset: str, method: str, seed: int, sampler: str) -> dict:
    cell = experiment.cells[dataset, method]
    return {
        **_run("sample", dataset, method, seed, cell),
        "protocol": {
            "train_steps": cell.steps,
            "weights": cell.quality.weights,
            "samples": cell.quality.samples,
            "dequantised": cell.training.dequantise,
            "sampler": sampler,
            **getattr(cell.samplers, sampler).model_dump(),
        },
    }


def features(experiment: Experiment, extractor: str) -> dict:
    return {"version": VERSIONS["features"], "protocol": {"extractor": extractor}}


def quality(experiment: Experiment, dataset: str, method: str, seed: int, sampler: str) -> dict:
    cell = experiment.cells[dataset, method]
    return {
        "version": VERSIONS["quality"],
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "protocol": {
            "train_steps": cell.steps,
            "weights": cell.quality.weights,
            "sampler": sampler,
            "extractor": cell.quality.extractor,
            "reference": cell.quality.reference,
            "neighbours": cell.quality.neighbours,
        },
    }


def likelihood(experiment: Experiment, dataset: str, method: str, seed: int) -> dict:
    cell = experiment.cells[dataset, method]
    return {
        **_run("likelihood", dataset, method, seed, cell),
        "protocol": {"train_steps": cell.steps, **cell.likelihood.model_dump()},
    }


def asymmetry(experiment: Experiment, dataset: str, method: str, seed: int) -> dict:
    cell = experiment.cells[dataset, method]
    return {
        **_run("asymmetry", dataset, method, seed, cell),
        "protocol": {
            "train_steps": cell.steps,
            "dequantised": cell.training.dequantise,
            **cell.asymmetry.model_dump(),
        },
    }


def metrics(experiment: Experiment) -> dict:
    return {"version": VERSIONS["metrics"]}


def table(experiment: Experiment, name: str) -> dict:
    """Rows and labels of a table; ``sampler`` is None for the table of NLL and asymmetry."""
    configured = experiment.tables[name]
    return {
        "version": VERSIONS["table"],
        "sampler": configured.sampler,
        "datasets": {key: dataset.label for key, dataset in experiment.datasets.items()},
        "methods": {
            dataset: [
                [method, experiment.cells[dataset, method].label] for method in configured.methods
            ]
            for dataset in experiment.datasets
        },
    }


def _run(stage: str, dataset: str, method: str, seed: int, cell: Cell) -> dict:
    return {
        "version": VERSIONS[stage],
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "model": {
            "parameterisation": cell.parameterisation,
            "residual": cell.residual,
            "network": cell.network.model_dump(),
            "sde": cell.sde.model_dump(),
        },
    }
