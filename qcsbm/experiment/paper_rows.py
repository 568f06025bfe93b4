"""Which row of the paper's tables a model is, and what keeps their numbers from standing together.

A difference between our number and the paper's says something only if both are of the same model,
measured alike. What that takes is `row`; of a measurement it has what moves the expectation of a
number or makes it another quantity, and not what moves it by less than seeds do: tolerances,
batches of the sampler, estimators of Asym.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Tables 2 and 3 and appendix; https://arxiv.org/abs/2209.12753
"""

from collections.abc import Iterator
from typing import Any, Literal

from qcsbm.experiment.experiment import Experiment
from qcsbm.schema.networks import NCSNpp
from qcsbm.schema.samplers import ODE, PC
from qcsbm.schema.sde import VE
from qcsbm.schema.specifications import PaperRow
from qcsbm.schema.training import Regulariser, Training

DATASETS = ("cifar10", "cifar100", "imagenet32", "svhn")


def row(dataset: str, kind: str, sampler: str | None) -> dict[str, Any]:
    """What the paper's row is, under the keys of a cell; ``kind`` is c, u or qc.

    ``sampler`` is its type. Table 2, which has none, and Table 3 show two trainings of QC.
    """
    svhn, imagenet = dataset == "svhn", dataset == "imagenet32"
    table2_qc = kind == "qc" and sampler is None
    network = NCSNpp(
        type="ncsnpp",
        nf=128,
        ch_mult=[1, 2, 2, 2],
        num_res_blocks=8,
        attn_resolutions=[16],
        dropout=0.0 if imagenet else 0.1,
    )
    training = Training(batch_size=8 if table2_qc else 128, flip=not imagenet)
    facts: dict[str, Any] = {
        "data": {"source": dataset, "train": None, "test": None},
        "parameterisation": "energy" if kind == "c" else "score",
        "residual": False,
        "steps": 400_000 if svhn else 700_000,
        "sde": VE(type="ve", sigma_min=0.01, sigma_max=50.0).model_dump(),
        "network": network.model_dump(),
        "training": training.model_dump(exclude={"processes", "micro_batch"}),
        "regulariser": None,
    }
    if kind == "qc":
        probes = 16 if table2_qc else 1
        regulariser = Regulariser(weight=1e-4, probes=probes, estimator="trace")
        facts["regulariser"] = regulariser.model_dump()
        facts["init_from"] = {"step": 300_000 if svhn else 600_000}
    if sampler is None:
        facts["likelihood"] = {"samples": None, "precision": "float32", "weights": "raw"}
        facts["asymmetry"] = {
            "derivatives": "autograd",
            "noise_levels": 100,
            "precision": "float32",
            "weights": "raw",
        }
    else:
        facts["quality"] = {
            "samples": 26_032 if svhn else 50_000,
            "extractor": "inception",
            "reference": "train",
            "neighbours": 3,
            "weights": "ema",
        }
        facts["sampler"] = {"precision": "float32"}
        if sampler == "pc":
            snr = 0.001 if svhn and kind == "c" else 0.16
            facts["sampler"] |= {"steps": 1000, "snr": snr, "corrector_steps": 1}
    return facts


def counterpart(
    experiment: Experiment, dataset: str, method: str, sampler: str | None
) -> PaperRow | None:
    """The row that stands beside a method, and the ``differences`` on whose account it must not.

    None for a dataset or a type of sampler that the paper has no numbers of, and for a model from
    outside. The row has the kind of the method: an energy is a C, a regularised score a QC. What is
    not known of an imported model, that is how it was trained, is no difference.
    """
    source = experiment.datasets[dataset].data.source
    name = dataset if dataset in DATASETS else source
    if name not in DATASETS:
        return None
    cell = experiment.trainings.get((dataset, method))
    if cell is None:
        return None
    configured = cell.samplers.get(sampler) if sampler else None
    if not isinstance(configured, PC | ODE | None):
        return None
    kind: Literal["c", "u", "qc"] = (
        "c" if cell.parameterisation == "energy" else "qc" if cell.regulariser else "u"
    )
    expected = row(name, kind, configured.type if configured else None)
    found = {**cell.model_dump(), "data": experiment.datasets[dataset].data.model_dump()}
    if configured:
        found["sampler"] = configured.model_dump()
    if not experiment.chain(dataset, method):
        del expected["training"]
        expected.pop("init_from", None)
    differences = list(_differences(found, expected))
    # What a method starts from was trained as the paper's U, or C, was.
    start = {"training": row(name, "u", None)["training"], "regulariser": None}
    for of, step in filter(None, experiment.origins(dataset, method)):
        if (dataset, of) in experiment.trainings:
            earlier = experiment.trainings[dataset, of].model_dump()
            differences += [f"{of} at step {step}: {d}" for d in _differences(earlier, start)]
    return PaperRow(
        dataset=name,
        kind=kind,
        sampler=configured.type if configured else None,
        differences=differences,
    )


def _differences(found: dict[str, Any], expected: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in expected.items():
        here = found.get(key)
        if isinstance(value, dict) and isinstance(here, dict):
            if "type" in value and here.get("type") != value["type"]:
                # What is of another type has other keys.
                value = {"type": value["type"]}
            yield from _differences(here, value, f"{path}{key}.")
        elif here != value:
            yield f"{path}{key} is {here}, not {value}"
