"""The experiment file: what is merged, and what is refused with which sentence."""

import copy
import datetime
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from conftest import snakemake

from qcsbm.experiment import consistency
from qcsbm.experiment.config import ConfigError, load, read
from qcsbm.experiment.specification import train
from qcsbm.nets.ncsnpp import NCSNpp
from qcsbm.schema import networks, sources

ROOT = Path(__file__).parents[2]
# The link config.yaml is one of them.
CONFIGS = sorted({path.resolve() for path in (ROOT / "config").glob("*.yaml")})


@pytest.fixture
def quick():
    return yaml.safe_load((ROOT / "config/quick.yaml").read_text())


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    """The rules of the workflow, but for those that are called like a dataset."""
    folder = tmp_path_factory.mktemp("rules")
    options = ("--configfile", ROOT / "config/quick.yaml")
    found = set(snakemake("--list-rules", *options, cwd=folder).stdout.split())
    return found - set(QUICK["datasets"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configuration_is_valid_and_named_after_its_tier(path):
    experiment = load(yaml.safe_load(path.read_text()), str(path))
    assert experiment.tier == path.stem
    assert experiment.root == ("results" if path.stem == "quick" else f"results/{path.stem}")


def test_quick_tier_compares_four_methods_on_two_datasets(quick):
    experiment = load(quick, "quick.yaml")
    assert len(experiment.seeds["digits"]) >= 3 and len(experiment.seeds["patches"]) >= 1
    assert experiment.methods == ["c", "u", "qc", "qcplus"]
    steps = {cell.steps for (dataset, _), cell in experiment.cells.items() if dataset == "digits"}
    assert len(steps) == 1, "methods are compared at equal steps"


def test_later_layers_win_key_by_key(quick):
    quick["defaults"]["training"]["lr"] = 1.0
    quick["methods"]["u"]["training"] = {"lr": 2.0}
    quick["datasets"]["digits"]["methods"] = {"u": {"training": {"lr": 3.0}}}
    cells = load(quick, "x").cells
    assert cells["digits", "u"].training.lr == 3.0
    assert cells["patches", "u"].training.lr == 2.0
    assert cells["patches", "c"].training.lr == 1.0
    assert cells["patches", "u"].training.batch_size == cells["patches", "c"].training.batch_size


def test_training_starts_where_the_method_says(quick):
    experiment = load(quick, "x")
    step = experiment.cells["digits", "qc"].init_from.step
    last = experiment.cells["digits", "u"].steps
    assert experiment.predecessor("digits", "u", step) is None
    assert experiment.predecessor("digits", "u", last) == ("u", step)
    assert experiment.predecessor("digits", "qc", last) == ("u", step)


def imported(quick, **row):
    """The method u, on both datasets at the same steps, from an imported checkpoint at step 50."""
    quick["datasets"]["patches"] = {**quick["datasets"]["digits"], "label": "Patches"}
    quick["methods"]["u"] = {
        "label": "U",
        "parameterisation": "score",
        "init_from": {"checkpoint": "u/checkpoint.safetensors", "step": 50},
        **row,
    }
    quick["methods"]["qc"]["init_from"] = {"method": "u", "step": row.get("steps", 50)}
    del quick["methods"]["qcplus"]["init_from"]
    return load(quick, "x")


def test_imported_checkpoint_takes_the_place_of_a_training(quick):
    experiment = imported(quick, steps=50)
    assert experiment.cells["digits", "u"].stops == [50]
    assert experiment.imported("digits", "u", 50) == "u/checkpoint.safetensors"
    assert experiment.predecessor("digits", "qc", 600) == ("u", 50)
    assert experiment.imported("digits", "qc", 50) is None


def test_training_goes_on_from_an_imported_checkpoint(quick):
    experiment = imported(quick, checkpoints=[60], steps=70)
    assert experiment.predecessor("digits", "u", 60) == ("u", 50)
    assert experiment.predecessor("digits", "u", 70) == ("u", 60)
    assert experiment.imported("digits", "u", 60) is None
    starts = [train(experiment, "digits", "u", 0, step).protocol.start for step in (60, 70)]
    assert starts == [50, None]


def change(config, path, value):
    *parents, last = path.split(".")
    for key in parents:
        config = config.setdefault(key, {})
    config[last] = value


QUICK = yaml.safe_load((ROOT / "config/quick.yaml").read_text())
DIGITS = QUICK["datasets"]["digits"]
ASYMMETRY = DIGITS["asymmetry"]
METHODS = QUICK["methods"]
DIFFERENT = {
    **{**ASYMMETRY, "estimator": "antisymmetric", "probes": 2},
    "derivatives": "finite_differences",
}
DIFFERENCES = {"weight": 0.01, "estimator": "antisymmetric", "derivatives": "finite_differences"}
BAD = {
    "unknown key": ("methods.u.learning_rate", 1, "methods.u.learning_rate: found an unknown key"),
    "unknown nested key": (
        "defaults.training.momentum",
        1,
        "defaults.training.momentum: found an unknown key, expected one of batch_size, processes, ",
    ),
    "misspelt key": (
        "methods.qc.regulariser",
        {"wieght": 1.0, "estimator": "trace"},
        "methods.qc.regulariser.wieght: found an unknown key, expected one of weight, probes",
    ),
    "missing nested key": (
        "methods.qc.regulariser",
        {"estimator": "trace"},
        "quick.yaml: methods.qc.regulariser.weight: found nothing, expected a value",
    ),
    "unknown top-level key": ("sedes", [1], "sedes: found an unknown key, expected one of tier"),
    "wrong type": (
        "datasets.digits.training.batch_size",
        "many",
        "datasets.digits.training.batch_size: found 'many', expected: input should be a valid int",
    ),
    "a flag for a number": ("methods.u.steps", True, "methods.u.steps: found True, expected"),
    "negative weight": (
        "methods.qc.regulariser.weight",
        -1.0,
        "methods.qc.regulariser.weight: found -1.0, expected: input should be greater than or",
    ),
    "unknown estimator": (
        "methods.qc.regulariser.estimator",
        "magic",
        "methods.qc.regulariser.estimator: found 'magic', expected: input should be 'trace' or",
    ),
    "unknown source": (
        "datasets.digits.data",
        {"source": "mnist"},
        "datasets.digits.data.source: found 'mnist', expected one of 'digits', 'patches', 'idx'",
    ),
    "method of a table": (
        "tables.table2.methods",
        ["c", "ghost"],
        "tables.table2.methods: found 'ghost', expected some of the methods c, u, qc, qcplus",
    ),
    "override of an unknown method": (
        "datasets.digits.methods",
        {"ghost": {}},
        "datasets.digits.methods: found {'ghost': {}}, expected some of the methods",
    ),
    "origin of unknown name": (
        "methods.qc.init_from.method",
        "ghost",
        "methods.qc.init_from.method (dataset digits): found 'ghost', expected one of the methods",
    ),
    "origin at a step without checkpoint": (
        "methods.qc.init_from.step",
        7,
        "methods.qc.init_from.step (dataset digits): found 7, expected one of the checkpoints",
    ),
    "origin after the end": (
        "methods.qc.steps",
        400,
        "methods.qc.init_from.step (dataset digits): found 400, expected less than this method's",
    ),
    "origin that starts from an unknown one": (
        "methods",
        {
            **METHODS,
            "c": {**METHODS["c"], "init_from": {"method": "u", "step": 400}},
            "u": {**METHODS["u"], "init_from": {"method": "ghost", "step": 10}},
        },
        "methods.c.parameterisation (dataset digits): found another value than that of method u",
    ),
    "origin of both kinds": (
        "methods.qc.init_from.checkpoint",
        "x.safetensors",
        "methods.qc.init_from (dataset digits): found {'method': 'u', 'checkpoint': 'x.safetensors'"
        ", 'step': 400}, expected step with either method or checkpoint",
    ),
    "origin of no kind": (
        "methods.qc.init_from",
        {"step": 400},
        "methods.qc.init_from (dataset digits): found {'step': 400}, expected step with either",
    ),
    "imported checkpoint without step": (
        "methods.u.init_from",
        {"checkpoint": "x.safetensors"},
        "methods.u.init_from.step: found nothing, expected a value",
    ),
    "pickled checkpoint": (
        "methods.u.init_from",
        {"checkpoint": "x.pth", "step": 50},
        "methods.u.init_from.checkpoint (dataset digits): found 'x.pth', expected a .safetensors",
    ),
    "imported checkpoint of an energy": (
        "methods.c.init_from",
        {"checkpoint": "x.safetensors", "step": 50},
        "methods.c.init_from.checkpoint (dataset digits): found one for a method with an energy",
    ),
    "imported checkpoint after the first stop": (
        "methods.u.init_from",
        {"checkpoint": "x.safetensors", "step": 400},
        "methods.u.init_from.step (dataset digits): found 400, expected less than this method's",
    ),
    "cycle": (
        "methods.u.init_from",
        {"method": "qc", "step": 1},
        "found the cycle u → qc → u, expected a chain that ends",
    ),
    "no seeds": ("seeds", [], "seeds: found [], expected: list should have at least 1 item"),
    "seeds twice": ("seeds", [1, 1], "seeds of digits: found [1, 1], expected each seed once"),
    "negative seed": ("seeds", [-1], "seeds.0: found -1, expected: input should be greater"),
    "missing key": ("methods.u", {"label": "U"}, "parameterisation: found nothing, expected"),
    "name that leaves its folder": ("datasets", {"../x": {}}, "found the name '../x', expected"),
    "regularised energy": (
        "methods.c.regulariser",
        {"weight": 1.0, "estimator": "trace"},
        "methods.c.regulariser (dataset digits): found one for parameterisation 'energy'",
    ),
    "more regularised samples than a batch has": (
        "methods.qc.regulariser.batch_size",
        1000,
        "methods.qc.regulariser.batch_size (dataset digits): found 1000, expected at most",
    ),
    "step of differences without them": (
        "methods.qc.regulariser.difference_step",
        0.003,
        "methods.qc.regulariser.difference_step (dataset digits): found 0.003 with derivatives "
        "'autograd', expected a number with derivatives 'finite_differences' and none otherwise",
    ),
    "differences without a step": (
        "methods.qcplus.regulariser",
        {**DIFFERENCES, "difference_step": None},
        "methods.qcplus.regulariser.difference_step (dataset digits): found None with derivatives "
        "'finite_differences', expected a number with",
    ),
    "step of differences that is no number": (
        "methods.qcplus.regulariser",
        {**DIFFERENCES, "difference_step": 0},
        "methods.qcplus.regulariser.difference_step: found 0, expected: input should be greater",
    ),
    "unknown derivatives": (
        "methods.qcplus.regulariser.derivatives",
        "forward",
        "methods.qcplus.regulariser.derivatives: found 'forward', expected: input should be "
        "'autograd' or 'finite_differences'",
    ),
    "differences of the trace": (
        "methods.qc.regulariser.derivatives",
        "finite_differences",
        "methods.qc.regulariser.derivatives (dataset digits): found 'finite_differences' with "
        "estimator 'trace', expected 'autograd' or estimator 'antisymmetric', as the trace is a",
    ),
    "differences in bfloat16": (
        "methods.qcplus",
        {**METHODS["qcplus"], "regulariser": DIFFERENCES, "training": {"precision": "bfloat16"}},
        "methods.qcplus.regulariser.derivatives (dataset digits): found 'finite_differences' with "
        "training.precision 'bfloat16', expected 'autograd' or precision 'float32', as coarser",
    ),
    "differences in tf32": (
        "methods.qcplus",
        {**METHODS["qcplus"], "regulariser": DIFFERENCES, "training": {"precision": "tf32"}},
        "methods.qcplus.regulariser.derivatives (dataset digits): found 'finite_differences' with "
        "training.precision 'tf32', expected 'autograd' or precision 'float32', as coarser",
    ),
    "step of differences in Asym without them": (
        "datasets.digits.asymmetry",
        {**DIFFERENT, "derivatives": "autograd", "difference_step": 0.003},
        "asymmetry.difference_step (dataset digits), method c: found 0.003 with derivatives "
        "'autograd', expected a number with derivatives 'finite_differences' and none otherwise",
    ),
    "differences in Asym without a step": (
        "datasets.digits.asymmetry",
        {**DIFFERENT, "difference_step": None},
        "asymmetry.difference_step (dataset digits), method c: found None with derivatives",
    ),
    "differences in an exact Asym": (
        "datasets.digits.asymmetry.derivatives",
        "finite_differences",
        "asymmetry.derivatives (dataset digits), method c: found 'finite_differences' with "
        "estimator 'exact', expected 'autograd' or estimator 'antisymmetric', as exact Jacobians",
    ),
    "differences in Asym by the trace": (
        "datasets.digits.asymmetry",
        {**DIFFERENT, "estimator": "trace", "probes": None},
        "asymmetry.derivatives (dataset digits), method c: found 'finite_differences' with "
        "estimator 'trace', expected 'autograd' or estimator 'antisymmetric', as the trace is a",
    ),
    "differences in Asym in bfloat16": (
        "datasets.digits.asymmetry",
        {**DIFFERENT, "precision": "bfloat16"},
        "asymmetry.derivatives (dataset digits), method c: found 'finite_differences' with "
        "precision 'bfloat16', expected 'autograd' or precision 'float32', as coarser rounding",
    ),
    "differences in Asym in tf32": (
        "datasets.digits.asymmetry",
        {**DIFFERENT, "precision": "tf32"},
        "asymmetry.derivatives (dataset digits), method c: found 'finite_differences' with "
        "precision 'tf32', expected 'autograd' or precision 'float32', as coarser rounding",
    ),
    "more processes than samples": (
        "defaults.training.processes",
        65,
        "training.processes (dataset digits), method c: found 65, expected at most 64",
    ),
    "more processes than regularised samples": (
        "methods.qc",
        {
            **METHODS["qc"],
            "regulariser": {"weight": 1.0, "estimator": "trace", "batch_size": 4},
            "training": {"processes": 5},
        },
        "training.processes (dataset digits), method qc: found 5, expected at most 4",
    ),
    "micro-batch of more than a process has": (
        "defaults.training",
        {**QUICK["defaults"]["training"], "batch_size": 7, "processes": 2, "micro_batch": 5},
        "training.micro_batch (dataset digits), method c: found 5, expected at most 4",
    ),
    "checkpoints out of order": (
        "methods.u.checkpoints",
        [400, 100],
        "methods.u.checkpoints (dataset digits): found [400, 100], expected increasing steps",
    ),
    "noise scales that are equal": (
        "datasets.digits.sde.sigma_min",
        5.0,
        "sde.sigma_max (dataset digits): found 5.0, expected more than sigma_min = 5.0",
    ),
    "noise scales reversed": ("datasets.digits.sde.sigma_min", 9.0, "expected more than sigma_min"),
    "rates of noise that are equal": (
        "datasets.digits.sde",
        {"type": "vp", "beta_min": 0.5, "beta_max": 0.5},
        "sde.beta_max (dataset digits): found 0.5, expected more than beta_min = 0.5",
    ),
    "rates of noise reversed": (
        "datasets.digits.sde",
        {"type": "vp", "beta_min": 3.0, "beta_max": 0.5},
        "sde.beta_max (dataset digits): found 0.5, expected more than beta_min = 3.0",
    ),
    "no rate of noise": (
        "datasets.digits.sde",
        {"type": "vp", "beta_min": 0, "beta_max": 0.5},
        "datasets.digits.sde.beta_min: found 0, expected: input should be greater than 0",
    ),
    "SDE of no type": (
        "datasets.digits.sde",
        {"sigma_min": 0.01, "sigma_max": 5.0},
        "datasets.digits.sde: found no type, expected one of 've', 'vp'",
    ),
    "SDE of an unknown type": (
        "datasets.digits.sde.type",
        "subvp",
        "datasets.digits.sde.type: found 'subvp', expected one of 've', 'vp'",
    ),
    "SDE with the keys of another": (
        "datasets.digits.sde.type",
        "vp",
        "datasets.digits.sde.sigma_min: found an unknown key, expected one of type, beta_min, beta",
    ),
    "imported checkpoint under another SDE": (
        "methods.u",
        {
            "label": "U",
            "parameterisation": "score",
            "sde": {"type": "vp", "beta_min": 0.1, "beta_max": 20.0},
            "init_from": {"checkpoint": "x.safetensors", "step": 50},
        },
        "methods.u.init_from.checkpoint (dataset digits): found one for an SDE of type 'vp'",
    ),
    "other SDE than the origin's": (
        "methods.qc.sde",
        {"type": "vp", "beta_min": 0.1, "beta_max": 20.0},
        "methods.qc.sde (dataset digits): found another value than that of method u, expected the",
    ),
    "other network than the origin's": (
        "methods.qc.network",
        {"nf": 32},
        "methods.qc.network (dataset digits): found another value than that of method u",
    ),
    "sampler that is not configured": (
        "tables.table3.sampler",
        "ode",
        "tables.table3.sampler: found 'ode', expected a sampler that is configured for dataset",
    ),
    "more test images than there are for the likelihood": (
        "defaults.likelihood.samples",
        361,
        "likelihood.samples (dataset digits), method c: found 361, expected at most 360, the",
    ),
    "more test images than the source has by default": (
        "datasets.digits",
        {**DIGITS, "data": {"source": "digits"}, "asymmetry": {**ASYMMETRY, "samples": 361}},
        "asymmetry.samples (dataset digits), method c: found 361, expected at most 360, the",
    ),
    "more test images than there are for one method": (
        "datasets.patches.methods.qc.asymmetry",
        {"samples": 1025},
        "asymmetry.samples (dataset patches), method qc: found 1025, expected at most 1024, the",
    ),
    "more test images than are taken from files": (
        "datasets.digits",
        {**DIGITS, "data": {"source": "cifar10", "test": 47}},
        "likelihood.samples (dataset digits), method c: found 48, expected at most 47, the",
    ),
    "more test images than published files have": (
        "datasets.digits",
        {**DIGITS, "data": {"source": "svhn"}, "likelihood": {"samples": 26_033}},
        "likelihood.samples (dataset digits), method c: found 26033, expected at most 26032, the",
    ),
    "larger split than published files have": (
        "datasets.digits.data",
        {"source": "cifar100", "train": 50_001},
        "datasets.digits.data.train: found 50001, expected at most 50000, the number of images in",
    ),
    "one image for a likelihood": (
        "defaults.likelihood.samples",
        1,
        "defaults.likelihood.samples: found 1, expected: input should be greater than or equal to",
    ),
    "one image for testing": (
        "datasets.digits.data",
        {"source": "cifar10", "test": 1},
        "datasets.digits.data.test: found 1, expected: input should be greater than or equal to 2",
    ),
    "as many neighbours as samples": (
        "datasets.digits.quality.neighbours",
        512,
        "quality.neighbours (dataset digits), method c: found 512, expected fewer than 512, the "
        "number of generated images",
    ),
    "as many neighbours as reference images": (
        "datasets.digits.quality",
        {**DIGITS["quality"], "reference": "test", "neighbours": 360},
        "quality.neighbours (dataset digits), method c: found 360, expected fewer than 360, the "
        "number of images in the split test",
    ),
    "as many neighbours as training images": (
        "datasets.digits.quality",
        {**DIGITS["quality"], "samples": 5000, "neighbours": 1437},
        "quality.neighbours (dataset digits), method c: found 1437, expected fewer than 1437, the "
        "number of images in the split train",
    ),
    "classifier of patches": (
        "datasets.patches.quality.extractor",
        "classifier",
        "quality.extractor (dataset patches), method c: found 'classifier', expected another one, "
        "as the data have no labels",
    ),
    "classifier of arrays without labels": (
        "datasets.digits.data",
        {"source": "arrays", "name": "mine", "layout": "nhw"},
        "quality.extractor (dataset digits), method c: found 'classifier', expected another one",
    ),
    "classifier of a folder": (
        "datasets.digits.data",
        {"source": "folder", "name": "mine"},
        "quality.extractor (dataset digits), method c: found 'classifier', expected another one",
    ),
    "classifier that nothing describes": (
        "datasets.digits.classifier",
        None,
        "quality.extractor (dataset digits): found 'classifier', expected datasets.digits.classif",
    ),
    "published statistics beside features in bfloat16": (
        "datasets.patches.quality",
        {
            "samples": 64,
            "extractor": "efficientnet_lite0",
            "precision": "bfloat16",
            "statistics": "s.npz",
        },
        "quality.precision (dataset patches), method c: found 'bfloat16' with published "
        "statistics, expected 'float32' or 'tf32'",
    ),
    "attention where no level is": (
        "datasets.digits.network.attn_resolutions",
        [4, 5],
        "network.attn_resolutions (dataset digits), method c: found 5, expected some of [8, 4]",
    ),
    "more levels than the size can be halved for": (
        "datasets.digits.network.ch_mult",
        [1, 1, 1, 1, 1],
        "network.ch_mult (dataset digits), method c: found 5 levels, expected as many as a size of",
    ),
    "imported checkpoint of a residual": (
        "methods.u",
        {
            "label": "U",
            "parameterisation": "score",
            "residual": True,
            "init_from": {"checkpoint": "x.safetensors", "step": 50},
        },
        "methods.u.init_from.checkpoint (dataset digits): found one for a method with an energy or",
    ),
    "probes that are missing": (
        "datasets.digits.asymmetry.estimator",
        "antisymmetric",
        "asymmetry.probes (dataset digits), method c: found None with estimator 'antisymmetric'",
    ),
    "earlier key": (
        "datasets.digits.asymmetry.levels",
        4,
        "datasets.digits.asymmetry.levels: found a key of earlier versions, expected noise_levels",
    ),
    "earlier value": (
        "datasets.digits.asymmetry.estimator",
        "paper",
        "datasets.digits.asymmetry.estimator: found 'paper', expected 'trace', its name now",
    ),
    "network of no type": (
        "datasets.digits.network",
        {"nf": 8},
        "datasets.digits.network.type: found nothing, expected a value",
    ),
    "network of an unknown type": (
        "datasets.digits.network.type",
        "unet",
        "datasets.digits.network.type: found 'unet', expected: ncsnpp, or module:Class for a class",
    ),
    "network whose type is a number": (
        "datasets.digits.network",
        {"type": 5, "width": 8},
        "datasets.digits.network.type: found 5, expected: ncsnpp, or module:Class for a class of",
    ),
    "network that is no mapping": (
        "methods.c.network",
        "mine:Net",
        "methods.c.network: found 'mine:Net', expected: input should be a valid dictionary",
    ),
    "network that is not there": (
        "datasets.digits.network",
        {"type": "gone.net:Net", "width": 8},
        "network.type (dataset digits), method c: found 'gone.net:Net', expected a module in the "
        "working directory, as there is no gone/net.py or gone/net/__init__.py",
    ),
    "argument that JSON does not have": (
        "datasets.digits.network",
        {"type": "mine:Net", "since": datetime.date(2026, 1, 1)},
        "datasets.digits.network.since: found datetime.date(2026, 1, 1), expected: finite numbers",
    ),
    "argument that is no number": (
        "methods.c.network",
        {"type": "mine:Net", "widths": [1, {"a": float("nan")}]},
        "methods.c.network.widths: found [1, {'a': nan}], expected: finite numbers, text, true",
    ),
    "key of NCSN++ that is unknown": (
        "datasets.digits.network.width",
        8,
        "datasets.digits.network.width: found an unknown key, expected one of type, nf, ch_mult",
    ),
    "sampler of no type": (
        "defaults.samplers.pc",
        {"steps": 8},
        "defaults.samplers.pc: found no type, expected one of 'pc', 'ode'",
    ),
    "sampler of an unknown type": (
        "defaults.samplers.pc.type",
        "ddim",
        "defaults.samplers.pc.type: found 'ddim', expected one of 'pc', 'ode'",
    ),
    "unknown key of a sampler": (
        "defaults.samplers.pc.rtol",
        1e-3,
        "defaults.samplers.pc.rtol: found an unknown key, expected one of type, steps, snr",
    ),
    "sampler in the folder of the shards": (
        "defaults.samplers.shards",
        {"type": "ode", "rtol": 0.1, "atol": 0.1, "batch_size": 2},
        "samplers (dataset digits), method c: found the name 'shards'",
    ),
    "sampler whose costs would be those of training": (
        "defaults.samplers.train",
        {"type": "ode", "rtol": 0.1, "atol": 0.1, "batch_size": 2},
        "samplers (dataset digits), method c: found the name 'train', expected another one, as a",
    ),
    "sampler with the name of another type": (
        "defaults.samplers.ode",
        {"type": "heun", "steps": 18, "batch_size": 2},
        "samplers.ode.type (dataset digits), method c: found 'heun', expected 'ode' or another",
    ),
    "Langevin steps that can only diverge": (
        "defaults.samplers.slow",
        {
            "type": "langevin",
            "noise_levels": 2,
            "steps_per_level": 2,
            "step_size": 2,
            "batch_size": 2,
        },
        "defaults.samplers.slow.step_size: found 2, expected: input should be less than 2",
    ),
    "probes without need": ("datasets.digits.asymmetry.probes", 4, "asymmetry.probes"),
}


@pytest.mark.parametrize("path, value, sentence", BAD.values(), ids=BAD)
def test_bad_configuration_is_one_sentence(quick, path, value, sentence):
    load(copy.deepcopy(quick), "quick.yaml")
    change(quick, path, value)
    with pytest.raises(ConfigError) as caught:
        load(quick, "quick.yaml")
    message = str(caught.value)
    assert message.startswith("quick.yaml: ") and sentence in message
    assert "\n" not in message


GOOD = {
    "as many processes as samples": ("defaults.training.processes", 64),
    "a batch in one part": ("defaults.training.micro_batch", 64),
    "a batch that is regularised as a whole": ("methods.qc.regulariser.batch_size", 64),
    "differences": ("methods.qc.regulariser", DIFFERENCES),
    "differences over a step": ("methods.qc.regulariser", {**DIFFERENCES, "difference_step": 0.01}),
    "differences in Asym": ("datasets.digits.asymmetry", DIFFERENT),
    "differences in Asym over a step": (
        "datasets.digits.asymmetry",
        {**DIFFERENT, "difference_step": 0.01},
    ),
    "as many test images as there are": ("datasets.digits.likelihood", {"samples": 360}),
    "all test images": ("defaults.likelihood.samples", None),
    "one neighbour fewer than samples": ("datasets.digits.quality.neighbours", 511),
    "all published images": (
        "datasets.digits.data",
        {"source": "cifar10", "train": 50_000, "test": 10_000},
    ),
}


@pytest.mark.parametrize("path, value", GOOD.values(), ids=GOOD)
def test_what_is_just_possible_is_accepted(quick, path, value):
    if path == "datasets.digits.data":
        quick["datasets"]["digits"]["network"]["attn_resolutions"] = []
    change(quick, path, value)
    experiment = load(quick, "x")
    found = experiment.cells["digits", "qc"].model_dump()
    found["data"] = experiment.datasets["digits"].data.model_dump()
    parts = path.split(".")
    for key in parts[1 if parts[0] == "defaults" else 2 :]:
        found = found[key]
    assert found | value == found if isinstance(value, dict) else found == value


def test_no_dataset_or_table_has_the_name_of_a_rule(quick, rules):
    assert rules == consistency.RULES
    for name in rules:
        bad = {**quick, "datasets": {name: DIGITS}}
        with pytest.raises(ConfigError, match=f"x: datasets: found the name '{name}', expected"):
            load(bad, "x")
    for name in (*rules, "report"):
        bad = {**quick, "tables": {name: {"methods": ["u"]}}}
        with pytest.raises(ConfigError, match=f"x: tables: found the name '{name}', expected"):
            load(bad, "x")


def test_no_tier_has_the_name_of_a_folder_of_the_quick_tier(quick):
    rules = [
        *(ROOT / "workflow/rules").iterdir(),
        ROOT / "workflow/Snakefile",
        ROOT / "qcsbm/experiment/layout.py",
    ]
    text = "".join(path.read_text() for path in rules)
    folders = set(re.findall(r'\{(?:ROOT|experiment\.root)\}/([a-z0-9_]+)(?=[/"])', text))
    assert folders == consistency.FOLDERS
    for tier in consistency.FOLDERS:
        with pytest.raises(ConfigError, match=f"x: tier: found the name '{tier}', expected"):
            load({**quick, "tier": tier}, "x")


@pytest.mark.parametrize("size", [8, 12, 16, 28])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("attention", [[], [8], [7], [3, 12], [1]])
def test_a_network_is_refused_where_it_cannot_be_built(quick, size, levels, attention):
    network = {**DIGITS["network"], "ch_mult": [1] * levels, "attn_resolutions": attention}
    quick["datasets"]["patches"] |= {"network": network}
    quick["datasets"]["patches"]["data"] |= {"size": size}
    built = refused = None
    try:
        with torch.device("meta"):
            built = NCSNpp(size, 3, networks.NCSNpp(**network))
    except ValueError as error:
        refused = str(error)
    if built:
        load(quick, "x")
    else:
        key = "attn_resolutions" if "attn_resolutions" in refused else "ch_mult"
        with pytest.raises(ConfigError, match=f"x: network.{key} ") as caught:
            load(quick, "x")
        assert "expected" in str(caught.value)


def test_all_keys_of_a_network_of_ones_own_are_arguments(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("class Net:\n    pass\n")
    quick["methods"], quick["tables"] = {name: quick["methods"][name] for name in "cu"}, {}
    del quick["datasets"]["patches"]
    given = {"type": "mine:Net", "widths": ["16", 32], "rate": "1e-2", "copy": None}
    quick["methods"]["u"]["network"] = given | {"more": {"a": [True, "relu", 0.5]}}
    quick["methods"]["c"]["network"] = given
    experiment = load(quick, "x")
    read = {"type": "mine:Net", "widths": [16, 32], "rate": 0.01, "copy": None}
    for method, expected in (("c", read), ("u", read | {"more": {"a": [True, "relu", 0.5]}})):
        assert experiment.cells["digits", method].network.model_dump() == expected
        assert experiment.cells["digits", method].network.model_extra.keys() == (
            expected.keys() - {"type"}
        )
    # Another type takes the place of the dataset's NCSN++; one more key of the same does not.
    quick["datasets"]["digits"]["methods"] = {"c": {"network": {"depth": 3}}}
    changed = load(quick, "x").cells["digits", "c"].network
    assert changed.model_dump() == read | {"depth": 3}


@pytest.mark.parametrize(
    "network, sentence",
    [
        (
            {"type": "json:Net"},
            "network.type (dataset digits), method c: found 'json:Net', expected",
        ),
        ({"type": "mine:Net", "channels": 3}, "network.channels (dataset digits), method c: found"),
    ],
)
def test_names_and_keys_that_are_given_are_refused(quick, network, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("json.py", "mine.py"):
        (tmp_path / name).write_text("class Net:\n    pass\n")
    quick["methods"]["c"]["network"] = network
    with pytest.raises(ConfigError) as refusal:
        load(quick, "x")
    assert str(refusal.value).startswith(f"x: {sentence}")


def test_sources_know_how_many_images_they_have():
    digits = sources.Digits(source="digits", test=10)
    assert [digits.images_in(split) for split in ("train", "test")] == [1787, 10]
    files = sources.Idx(source="idx", name="x", test=7)
    assert [files.images_in(split) for split in ("train", "test")] == [None, 7]


def test_numbers_without_a_point_are_numbers(quick):
    assert quick["defaults"]["training"]["lr"] == "3e-3", "YAML 1.1 reads a string"
    assert load(quick, "x").cells["digits", "u"].training.lr == 3e-3


def test_numbers_from_the_command_line_are_numbers(quick):
    quick["seeds"] = ["0", "4"]
    quick["defaults"]["training"]["lr"] = "0.5"
    experiment = load(quick, "x")
    assert experiment.seeds["digits"] == [0, 4]
    assert experiment.cells["digits", "u"].training.lr == 0.5


def test_checking_a_configuration_needs_no_torch():
    code = "import sys, qcsbm.experiment.specification; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def pinned(file):
    """Versions by package in an environment file of conda, by the names that PyPI has."""
    *conda, pip = yaml.safe_load((ROOT / file).read_text())["dependencies"]
    pins = dict(d.split("=") for d in conda if d != "pip" and not d.startswith("python="))
    aliases = {
        "pytorch": "torch",
        "snakemake-minimal": "snakemake",
        "matplotlib-base": "matplotlib",
    }
    pins = {aliases.get(name, name): version for name, version in pins.items()}
    return pins | dict(d.split("==") for d in pip["pip"])


def test_environment_files_pin_what_the_package_asks_for_as_the_lock_does():
    pin = re.compile(r"^([\w.-]+)==([\w.+]+)", re.MULTILINE)
    locks = [(ROOT / name).read_text() for name in ("requirements.lock", "torch.lock")]
    lock = dict(pin.findall("".join(locks)))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {"core": project["dependencies"], **project["optional-dependencies"]}
    names = {
        extra: {re.match(r"[\w-]+", requirement)[0] for requirement in requirements} - {"qcsbm"}
        for extra, requirements in asked.items()
    }
    development = names.pop("dev") | names.pop("docs", set())
    runtime = set.union(*names.values())
    assert pinned("environment.yml") == {name: lock[name] for name in runtime}
    assert pinned("environment-dev.yml") == {name: lock[name] for name in development - runtime}


def test_chain_has_every_training_behind_a_checkpoint(quick):
    experiment = load(quick, "x")
    step, last = (
        experiment.cells["digits", "qc"].init_from.step,
        experiment.cells["digits", "u"].steps,
    )
    assert experiment.chain("digits", "u") == [("u", 0, step), ("u", step, last)]
    assert experiment.chain("digits", "qc") == [("u", 0, step), ("qc", step, last)]
    assert experiment.chain("digits", "c") == [("c", 0, last)]
    quick["methods"]["qc"]["init_from"] = {"checkpoint": "u.safetensors", "step": step}
    assert load(quick, "x").chain("digits", "qc") == [("qc", step, last)]


def test_control_differs_by_parameterisation_or_regulariser_alone(quick):
    del quick["datasets"]["patches"]
    controls = {method: load(quick, "x").control("digits", method) for method in quick["methods"]}
    assert controls == {"c": "u", "u": None, "qc": "u", "qcplus": "u"}
    quick["methods"]["qc"]["training"] = {"micro_batch": 4, "processes": 2}
    assert load(quick, "x").control("digits", "qc") == "u"
    quick["methods"]["qc"]["training"] = {"batch_size": 8}
    quick["methods"]["c"]["steps"] = 7
    experiment = load(quick, "x")
    assert experiment.control("digits", "qc") is None and experiment.control("digits", "c") is None
    quick["methods"]["u_b8"] = {
        **quick["methods"]["u"],
        "checkpoints": [],
        "training": {"batch_size": 8},
    }
    assert load(quick, "x").control("digits", "qc") is None, "another U from scratch"
    quick["methods"]["u_b8"]["init_from"] = quick["methods"]["qc"]["init_from"]
    assert load(quick, "x").control("digits", "qc") == "u_b8"
    quick["methods"]["c"] |= {"steps": 600, "residual": True}
    assert load(quick, "x").control("digits", "c") is None


L_QC = {"weight": 1.0, "estimator": "trace"}
SMALL = {"batch_size": 8}
FILE, OTHER = "file.safetensors", "other.safetensors"


def method(init=None, step=None, **keys):
    """A score model of 600 steps, from a method or a file at ``step`` if one is named."""
    key = "checkpoint" if init in (FILE, OTHER) else "method"
    start = {"init_from": {key: init, "step": step}} if init else {}
    return {"label": "", "parameterisation": "score", **start, **keys}


U = method(checkpoints=[200, 400])
ENERGY = {"parameterisation": "energy"}
# Beside each set of methods, the control of the one that is called m.
ORIGINS = {
    "of the control": ({"u": U, "m": method("u", 400, regulariser=L_QC)}, "u"),
    "an earlier one of the control": ({"u": U, "m": method("u", 200, regulariser=L_QC)}, "u"),
    "none of both": ({"u": U, "m": method(**ENERGY)}, "u"),
    "none of a regularised one": ({"u": U, "m": method(regulariser=L_QC)}, "u"),
    "a file, against none": ({"u": U, "m": method(FILE, 400, regulariser=L_QC)}, None),
    "none, against a file": ({"u": method(FILE, 400), "m": method(regulariser=L_QC)}, None),
    "none, against a file, of an energy": ({"u": method(FILE, 400), "m": method(**ENERGY)}, None),
    "the same file": ({"u": method(FILE, 400), "m": method(FILE, 400, regulariser=L_QC)}, "u"),
    "the file, earlier": (
        {"u": method(FILE, 200), "m": method(FILE, 400, regulariser=L_QC)},
        None,
    ),
    "another file": ({"u": method(OTHER, 400), "m": method(FILE, 400, regulariser=L_QC)}, None),
    "a file by way of a method": (
        {
            "file": method(FILE, 400, steps=400),
            "u": method("file", 400),
            "m": method(FILE, 400, regulariser=L_QC),
        },
        "u",
    ),
    "a file, and nothing trained": (
        {"u": method(FILE, 600), "m": method(FILE, 600, regulariser=L_QC)},
        None,
    ),
    "two of the same kind": (
        {"u": U, "v": method(checkpoints=[400]), "m": method("v", 400, regulariser=L_QC)},
        "v",
    ),
    "two hops, the same": (
        {
            "u": U,
            "v": method("u", 200, checkpoints=[400], training=SMALL),
            "m": method("v", 400, regulariser=L_QC, training=SMALL),
        },
        "v",
    ),
    "two hops, branching at the second": (
        {
            "u": U,
            "v": method("u", 200, checkpoints=[400], training=SMALL),
            "w": method("v", 400),
            "m": method("v", 400, regulariser=L_QC),
        },
        "w",
    ),
    "two hops, against one": (
        {
            "u": U,
            "v": method("u", 200, checkpoints=[400], training=SMALL),
            "w": method("u", 200, training=SMALL),
            "m": method("v", 400, regulariser=L_QC),
        },
        None,
    ),
    "one hop, against two that are not alike": (
        {
            "u": U,
            "v": method("u", 200, checkpoints=[400]),
            "w": method("v", 400, training=SMALL),
            "m": method("u", 200, regulariser=L_QC, training=SMALL),
        },
        None,
    ),
    "one hop, against two with L_QC in between": (
        {
            "u": method(checkpoints=[200], training=SMALL),
            "v": method("u", 200, checkpoints=[400], regulariser=L_QC),
            "w": method("v", 400),
            "m": method("u", 200, regulariser=L_QC),
        },
        None,
    ),
    "two hops to a file": (
        {
            "v": method(FILE, 200, checkpoints=[400]),
            "w": method(FILE, 200, training=SMALL),
            "m": method("v", 400, regulariser=L_QC),
        },
        "v",
    ),
}


@pytest.mark.parametrize("methods, control", ORIGINS.values(), ids=ORIGINS)
def test_control_has_the_origin_of_the_model(quick, methods, control):
    quick["methods"], quick["tables"] = methods, {}
    del quick["datasets"]["patches"]
    experiment = load(quick, "x")
    assert experiment.control("digits", "m") == control


def test_pairs_of_the_paper_tier_are_those_that_its_comments_name():
    experiment = read(ROOT / "config/paper.yaml")
    for dataset in experiment.datasets:
        controls = {method: experiment.control(dataset, method) for method in experiment.methods}
        assert controls == {
            "c": "u",
            "u": None,
            "u_b8": None,
            "qc_k16": "u_b8",
            "qc": "u",
            "qcplus": "u",
        }


@pytest.mark.parametrize(
    "dataset, source",
    [("digits", "quick"), ("patches", "quick"), ("fashion_mnist", "standard_short")],
)
def test_the_study_has_the_values_of_the_tiers_that_it_repeats(dataset, source):
    study, tier = (read(ROOT / f"config/{name}.yaml") for name in ("study", source))
    assert study.datasets[dataset].data == tier.datasets[dataset].data
    assert study.datasets[dataset].classifier == tier.datasets[dataset].classifier
    for method in ("c", "u", "qc", "qcplus"):
        ours, theirs = (experiment.cells[dataset, method] for experiment in (study, tier))
        for name in ours.samplers.keys() & theirs.samplers.keys():
            assert ours.samplers[name] == theirs.samplers[name], (method, name)
        own = {"samplers", "circulation"}
        assert ours.model_dump(exclude=own) == theirs.model_dump(exclude=own), method


@pytest.mark.parametrize("ours, theirs", [("u", "u"), ("qcplus_001", "qcplus")])
def test_models_of_more_or_less_l_qc_are_those_of_the_study(ours, theirs):
    sweep = read(ROOT / "benchmarks/asymmetry_and_quality.yaml")
    study = read(ROOT / "config/study.yaml")
    mine, cell = sweep.cells["digits", ours], study.cells["digits", theirs]
    assert mine.samplers["pc"] == cell.samplers["pc"]
    own = {"samplers", "label"}
    assert mine.model_dump(exclude=own) == cell.model_dump(exclude=own)
