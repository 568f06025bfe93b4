"""Every key of the configuration reaches the specification of its stage, and the stage's result.

A key that is lost on the way, to a specification or to a model with a default for it, leaves a
result as it was when the configuration changes. Each key is therefore given another value, and a
key without one fails the tests.
"""

import copy
import itertools
import json
from contextlib import nullcontext
from typing import get_args

import numpy as np
import plain
import pytest
import torch
import yaml
from conftest import in_process
from sklearn.datasets import load_digits

from qcsbm.data import splits
from qcsbm.experiment import config, specification
from qcsbm.nets.classifier import Classifier
from qcsbm.quality import classification, feature_file
from qcsbm.schema import document, evaluation, networks, samplers, sde, training
from qcsbm.stages import toy
from qcsbm.training import checkpoint

DOCUMENT = yaml.safe_load("""
tier: tiny
seeds: [7]
datasets:
  digits: {label: Digits, data: {source: digits}, classifier: {epochs: 8}}
methods:
  u:
    label: U
    parameterisation: score
    steps: 3
    sde: {type: ve, sigma_min: 0.05, sigma_max: 1.0}
    network:
      type: ncsnpp
      nf: 4
      ch_mult: [1, 2]
      num_res_blocks: 1
      attn_resolutions: [4]
      fourier_scale: 1.0
      init_scale: 1.0
    training: {batch_size: 4, lr: 1e-2, warmup: 2, ema: 0.15}
    regulariser: {weight: 1.0, estimator: trace}
    samplers:
      pc: {type: pc, steps: 2, snr: 0.2, batch_size: 2}
      ode: {type: ode, rtol: 0.5, atol: 0.3, batch_size: 2}
      heun: {type: heun, steps: 3, batch_size: 2}
      langevin:
        {type: langevin, noise_levels: 2, steps_per_level: 2, step_size: 0.2, batch_size: 2}
    quality: {samples: 4, extractor: classifier}
    likelihood: {samples: 3, rtol: 0.5, atol: 0.3, batch_size: 2}
    asymmetry: {estimator: antisymmetric, probes: 2, noise_levels: 2, samples: 3, batch_size: 2}
    circulation: {triangles: 2}
tables: {table2: {methods: [u]}, table3: {methods: [u], sampler: pc}}
toy: {points: 50, steps: 2, batch_size: 8, seeds: [7]}
""")
RUN = ("digits", "u", 7)
SAMPLERS = tuple(samplers.TYPES)
MODEL = ("train", *SAMPLERS, "likelihood", "asymmetry", "circulation")
CELL = "methods.u"
MODELS = {
    f"{CELL}.network": networks.NCSNpp,
    f"{CELL}.sde": sde.SDE,
    f"{CELL}.training": training.Training,
    f"{CELL}.regulariser": training.Regulariser,
    **{f"{CELL}.samplers.{kind}": settings for kind, settings in samplers.TYPES.items()},
    f"{CELL}.quality": evaluation.Quality,
    f"{CELL}.likelihood": evaluation.Likelihood,
    f"{CELL}.asymmetry": evaluation.Asymmetry,
    f"{CELL}.circulation": evaluation.Circulation,
    "datasets.digits.classifier": document.ClassifierTraining,
    "toy": document.Toy,
}
# By section and key: another value, and the stages whose specifications hold it.
OTHERS = {
    CELL: {
        "parameterisation": ("energy", MODEL),
        "residual": (True, MODEL),
        "steps": (4, MODEL),
    },
    f"{CELL}.network": {
        "nf": (8, MODEL),
        "ch_mult": ([1, 1], MODEL),
        "num_res_blocks": (2, MODEL),
        "attn_resolutions": ([8], MODEL),
        "dropout": (0.5, MODEL),
        "fir": (False, MODEL),
        "fir_kernel": ([1, 1], MODEL),
        "skip_rescale": (False, MODEL),
        "resblock": ("ddpm", MODEL),
        "progressive": ("output_skip", MODEL),
        "progressive_input": ("none", MODEL),
        "progressive_combine": ("cat", MODEL),
        "fourier_scale": (2.0, MODEL),
        "init_scale": (0.5, MODEL),
    },
    f"{CELL}.sde": {
        "sigma_min": (0.1, MODEL),
        "sigma_max": (2.0, MODEL),
        "beta_min": (0.9, MODEL),
        "beta_max": (2.0, MODEL),
    },
    f"{CELL}.training": {
        "batch_size": (5, ("train",)),
        "processes": (3, ("train",)),
        "micro_batch": (2, ("train",)),
        "precision": ("bfloat16", ("train",)),
        "lr": (2e-2, ("train",)),
        "beta1": (0.5, ("train",)),
        "eps": (1e-3, ("train",)),
        "warmup": (3, ("train",)),
        "grad_clip": (0.1, ("train",)),
        "ema": (0.1, ("train",)),
        "flip": (True, ("train",)),
        "dequantise": (True, ("train", *SAMPLERS, "asymmetry", "circulation")),
    },
    f"{CELL}.regulariser": {
        "weight": (2.0, ("train",)),
        "probes": (2, ("train",)),
        "estimator": ("antisymmetric", ("train",)),
        "batch_size": (2, ("train",)),
        "every": (2, ("train",)),
        "time_sampling": ("importance", ("train",)),
        "derivatives": ("finite_differences", ("train",)),
        "difference_step": (0.5, ("train",)),
    },
    f"{CELL}.samplers.pc": {
        "steps": (3, ("pc",)),
        "snr": (0.1, ("pc",)),
        "corrector_steps": (2, ("pc",)),
        "precision": ("bfloat16", ("pc",)),
        "batch_size": (3, ("pc",)),
    },
    f"{CELL}.samplers.ode": {
        "rtol": (0.01, ("ode",)),
        "atol": (0.01, ("ode",)),
        "precision": ("bfloat16", ("ode",)),
        "batch_size": (3, ("ode",)),
    },
    f"{CELL}.samplers.heun": {
        "steps": (4, ("heun",)),
        "rho": (2.0, ("heun",)),
        "precision": ("bfloat16", ("heun",)),
        "batch_size": (3, ("heun",)),
    },
    f"{CELL}.samplers.langevin": {
        "noise_levels": (3, ("langevin",)),
        "steps_per_level": (1, ("langevin",)),
        "step_size": (0.4, ("langevin",)),
        "precision": ("bfloat16", ("langevin",)),
        "batch_size": (3, ("langevin",)),
    },
    f"{CELL}.quality": {
        "samples": (5, SAMPLERS),
        "extractor": ("efficientnet_lite0", ("features", "quality")),
        "reference": ("test", ("quality",)),
        "statistics": ("statistics.npz", ("quality",)),
        "neighbours": (2, ("quality",)),
        "weights": ("raw", (*SAMPLERS, "quality")),
    },
    f"{CELL}.likelihood": {
        "samples": (2, ("likelihood",)),
        "divergence": ("exact", ("likelihood",)),
        "rtol": (0.01, ("likelihood",)),
        "atol": (0.01, ("likelihood",)),
        "precision": ("bfloat16", ("likelihood",)),
        "batch_size": (3, ("likelihood",)),
        "weights": ("raw", ("likelihood",)),
    },
    f"{CELL}.asymmetry": {
        "estimator": ("trace", ("asymmetry",)),
        "probes": (3, ("asymmetry",)),
        "derivatives": ("finite_differences", ("asymmetry",)),
        "difference_step": (0.5, ("asymmetry",)),
        "noise_levels": (3, ("asymmetry", "circulation")),
        "samples": (2, ("asymmetry",)),
        "precision": ("bfloat16", ("asymmetry", "circulation")),
        "batch_size": (3, ("asymmetry",)),
        "weights": ("raw", ("asymmetry", "circulation")),
    },
    f"{CELL}.circulation": {"triangles": (3, ("circulation",))},
    "datasets.digits.classifier": {"epochs": (9, ("classifier",))},
    "toy": {
        "points": (60, ("toy",)),
        "steps": (3, ("toy",)),
        "batch_size": (9, ("toy",)),
        "seeds": ([8], ("toy",)),
    },
}
KEYS = [(section, key) for section, keys in OTHERS.items() for key in keys]
# What a key needs in order to act, whichever value it has.
GIVEN = {
    (CELL, "parameterisation"): {f"{CELL}.regulariser": None},
    (f"{CELL}.regulariser", "derivatives"): {f"{CELL}.regulariser.estimator": "antisymmetric"},
    (f"{CELL}.regulariser", "difference_step"): {
        f"{CELL}.regulariser.estimator": "antisymmetric",
        f"{CELL}.regulariser.derivatives": "finite_differences",
    },
    (f"{CELL}.network", "progressive_combine"): {f"{CELL}.network.progressive_input": "input_skip"},
    (f"{CELL}.likelihood", "divergence"): {f"{CELL}.likelihood.samples": 2},
    (f"{CELL}.asymmetry", "estimator"): {
        f"{CELL}.asymmetry.estimator": "exact",
        f"{CELL}.asymmetry.probes": None,
    },
    (f"{CELL}.asymmetry", "difference_step"): {
        f"{CELL}.asymmetry.derivatives": "finite_differences",
    },
}
VP = {f"{CELL}.sde": {"type": "vp", "beta_min": 0.5, "beta_max": 3.0}}
GIVEN |= {(f"{CELL}.sde", key): VP for key in ("beta_min", "beta_max")}
# Weights keep their shapes, and the score changes.
OF_THE_SCORE = ("parameterisation", "residual", *OTHERS[f"{CELL}.sde"], "skip_rescale")


def acts(stage, key):
    """Whether ``key``, which stands in the specification of ``stage``, changes its result."""
    if stage == "quality":
        # All others choose the files that it reads (test_inputs.py), and stand in its record.
        return key == "neighbours"
    if key == "processes":
        return False  # see below
    whole = OTHERS[CELL] | OTHERS[f"{CELL}.network"] | OTHERS[f"{CELL}.sde"]
    # All samplers are one stage, which builds one model.
    chosen = key in OF_THE_SCORE and stage not in SAMPLERS[1:]
    return stage == "train" or key not in whole or chosen


ACTIONS = [
    (section, key, stage)
    for section, key in KEYS
    for stage in OTHERS[section][key][1]
    if acts(stage, key)
]


def experiment(section, key, changed):
    """The experiment in which ``key`` can act, with the other value of it if ``changed``."""
    document = copy.deepcopy(DOCUMENT)
    edits = copy.deepcopy(GIVEN.get((section, key), {}))
    if changed:
        edits[f"{section}.{key}"] = OTHERS[section][key][0]
    for path, value in edits.items():
        *parents, last = path.split(".")
        place = document
        for parent in parents:
            place = place[parent]
        place[last] = value
    return config.load(document, "tiny.yaml")


def cell(experiment):
    return experiment.cells["digits", "u"]


SPECIFICATIONS = {
    "train": lambda e: specification.train(e, *RUN, cell(e).steps),
    **{kind: lambda e, kind=kind: specification.sample(e, *RUN, kind) for kind in SAMPLERS},
    "likelihood": lambda e: specification.likelihood(e, *RUN),
    "asymmetry": lambda e: specification.asymmetry(e, *RUN),
    "circulation": lambda e: specification.circulation(e, *RUN),
    "features": lambda e: specification.features(e, cell(e).quality.extractor),
    "quality": lambda e: specification.quality(e, *RUN, "pc"),
    "classifier": lambda e: specification.classifier(e, "digits"),
    "toy": lambda e: specification.toy(e, "8-gaussian", "qc", e.toy.seeds[0]),
}


def leaves(value, path=()):
    """What stands in nested mappings, by path."""
    if not isinstance(value, dict):
        return {path: value}
    parts = [leaves(item, (*path, key)) for key, item in value.items()]
    return {path: item for part in parts for path, item in part.items()}


@pytest.mark.parametrize("section", MODELS)
def test_every_key_has_another_value(section):
    # A section may be a union of models.
    models = get_args(get_args(MODELS[section])[0]) if get_args(MODELS[section]) else ()
    keys = {key for model in models or [MODELS[section]] for key in model.model_fields}
    assert OTHERS[section].keys() == keys - {"type"}


def test_every_section_of_a_cell_has_its_keys():
    sections = {section.split(".")[2] for section in MODELS if section.startswith(CELL)}
    # A label is shown; where training starts is a file, see test_inputs.py.
    others = {"label", "init_from", "checkpoints"}
    assert sections | OTHERS[CELL].keys() | others == document.TrainedCell.model_fields.keys()


@pytest.mark.parametrize("section, key", KEYS)
def test_a_key_stands_in_the_specification_of_its_stages(section, key):
    value, stages = OTHERS[section][key]
    value = value[0] if key == "seeds" else value
    for stage in stages:
        before, after = (
            leaves(SPECIFICATIONS[stage](experiment(section, key, changed)).document())
            for changed in (False, True)
        )
        changes = [item for path, item in after.items() if item != before.get(path)]
        assert value in changes, stage


class Stages:
    """Runs a stage and returns the arrays that it computes; results are kept by experiment."""

    def __init__(self, folder):
        self.folder, self.known, self.number = folder, {}, itertools.count()
        bunch = load_digits()
        images = bunch.images.astype(np.uint8)[:, None]
        train, test = (
            splits.Split(images[part], bunch.target[part].astype(np.int64))
            for part in (slice(40), slice(40, 49))
        )
        splits.write(folder / "data", splits.Splits(train, test, 17))
        torch.manual_seed(1)
        classification.save(folder / "weights", Classifier(1, 10), 0.5)
        draws = np.random.default_rng(1)
        for name, n, centre in (("fake", 20, 1.0), ("real", 30, 0.0)):
            arrays = (draws.normal(centre, size=(n, d)).astype(np.float32) for d in (4, 3))
            feature_file.write(
                folder / f"{name}.npz", feature_file.Features(*arrays, "extractor", name)
            )

    def __call__(self, stage, experiment):
        known = stage, json.dumps(cell(experiment).model_dump()), str(experiment)
        if known not in self.known:
            self.known[known] = self.run(stage, experiment)
        return self.known[known]

    def run(self, stage, experiment):
        here = self.folder / str(next(self.number))
        here.mkdir()
        out, data = here / "out.npz", ["--data", self.folder / "data"]
        record = ["--record", here / "record"]
        module = "sample" if stage in SAMPLERS else stage
        if stage == "quality":
            files = ["--samples", self.folder / "fake.npz", "--reference", self.folder / "real.npz"]
        elif stage == "features":
            # The package of the other extractor brings its weights.
            own = cell(experiment).quality.extractor == "classifier"
            files = ["--weights", self.folder / "weights"] if own else []
            files += [*data, "--images", self.folder / "data/test.npy", "--shard", "1-of-1"]
            files, record = [*files, "--out", out], []
        elif stage == "train":
            files = [*data, "--out", out, "--curve", here / "curve"]
        elif stage == "classifier":
            files = [*data, "--out", out]
        elif stage == "toy":
            files = ["--out", out]
        else:
            self.write_checkpoint(here / "checkpoint", cell(experiment))
            files = [*data, "--checkpoint", here / "checkpoint", "--shard", "1-of-1", "--out", out]
            if stage == "circulation":
                files = [*files[:4], "--levels", here / "levels"]
        spec = SPECIFICATIONS[stage](experiment).text()
        assert in_process(module, "--spec", spec, *files, *record) == 0
        if stage == "quality":
            metrics = json.loads((here / "record").read_text())["metrics"]
            return [np.array([metric["value"] for metric in metrics])]
        if stage == "circulation":
            return [np.loadtxt(here / "levels", delimiter=",", skiprows=1)]
        if stage in ("train", "classifier"):
            return [tensor.numpy() for tensor in plain.tensors(out).values()]
        with np.load(out) as arrays:
            # Checksums and other facts are no arrays of numbers.
            return [arrays[name] for name in arrays if arrays[name].ndim]

    def write_checkpoint(self, path, cell):
        """Random weights that do not depend on the cell as far as its network has the shapes."""
        parts = [
            {f"network.{k}": v for k, v in plain.network(cell, seed).state_dict().items()}
            for seed in (1, 2)
        ]
        checkpoint.save(path, checkpoint.TrainingState(cell.steps, *parts, {}, {}))


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return Stages(tmp_path_factory.mktemp("stages"))


@pytest.mark.parametrize("section, key, stage", ACTIONS)
def test_a_key_changes_the_result_of_its_stage(section, key, stage, stages, monkeypatch):
    monkeypatch.setattr(toy, "TEST", 20)
    # Of four test images nobody can tell what has learnt.
    monkeypatch.setattr(classification, "require_skill", lambda share, labels: None)
    before, after = (stages(stage, experiment(section, key, changed)) for changed in (False, True))
    same = [a.shape == b.shape and (a == b).all() for a, b in zip(before, after, strict=False)]
    assert len(before) != len(after) or not all(same)


def test_a_training_takes_as_many_processes_as_it_is_told(stages, monkeypatch):
    numbers = []

    def processes(n, *_):
        numbers.append(n)
        return nullcontext()

    monkeypatch.setattr("qcsbm.training.parallel.processes", processes)
    stages.run("train", experiment(f"{CELL}.training", "processes", changed=True))
    assert numbers == [3]
