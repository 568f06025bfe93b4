"""Where the files of an experiment lie, relative to the working directory."""

from qcsbm.experiment.experiment import Experiment


def data(experiment: Experiment, dataset: str) -> str:
    """The folder of a prepared dataset."""
    return f"{experiment.root}/data/{dataset}"


def run(experiment: Experiment, dataset: str, method: str, seed: int | str) -> str:
    """The folder of one training and all that is measured on it."""
    return f"{experiment.root}/runs/{dataset}/{method}/seed{seed}"


def checkpoint(
    experiment: Experiment, dataset: str, method: str, seed: int | str, step: int
) -> str:
    """An imported file, or the output of a training."""
    trained = f"{run(experiment, dataset, method, seed)}/step{step}.safetensors"
    return experiment.imported(dataset, method, step) or trained
