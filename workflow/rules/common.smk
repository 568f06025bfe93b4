"""The checked experiment, and the helpers that turn wildcards into files and specifications."""

import shutil
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from qcsbm.data import raw
from qcsbm.experiment import config as experiment_file
from qcsbm.experiment import layout, outside_models, specification
from qcsbm.schema.document import OutsideCell

# Snakemake merges all configuration files. The experiment is a part of their keys, or all.
whole = workflow.modifier_stack[0].globals["config"]
FILES = experiment_file.origins(config, whole, workflow.configfiles)
if len(FILES) > 1:
    raise WorkflowError(
        f"experiment file: found {', '.join(map(str, FILES))}, expected one, as Snakemake would "
        "mix them; change single keys with --config"
    )
try:
    for file in FILES:
        experiment_file.require_keys_once(file)
    source = ", ".join(map(str, FILES)) or f"config of the module {__name__}"
    EXPERIMENT = experiment_file.load(config, source)
except experiment_file.ConfigError as error:
    raise WorkflowError(str(error)) from None

ROOT = EXPERIMENT.root
DATA = layout.data(EXPERIMENT, "{dataset}")
IMPORTED = {
    cell.init_from.checkpoint
    for cell in EXPERIMENT.trainings.values()
    if cell.init_from
}
RUN = layout.run(EXPERIMENT, "{dataset}", "{method}", "{seed}")
TOY = f"{ROOT}/toy"
LOGS = f"{ROOT}/logs"


wildcard_constraints:
    dataset="|".join(EXPERIMENT.datasets),
    method="|".join(EXPERIMENT.methods),
    table="|".join(EXPERIMENT.tables),
    seed=r"\d+",
    step=r"\d+",
    sampler="|".join(EXPERIMENT.samplers) or "(?!)",
    split="train|test",
    extractor="[a-z0-9_]+",
    precision="[a-z0-9]+",
    toy="|".join(specification.TOY_DATASETS),
    toy_method="|".join(specification.TOY_METHODS),


def spec(stage, *names):
    """A parameter: the specification of ``stage`` for the wildcards ``names``, as JSON."""
    whole = {"seed", "step"}

    def of(wildcards):
        values = [
            int(wildcards[name]) if name in whole else wildcards[name] for name in names
        ]
        function = getattr(specification, stage)
        return function(EXPERIMENT, *values).text()

    return of


# What a module's prefix makes of an output.
placed = workflow.modifier.path_modifier.replace_prefix


def description(dataset):
    """What says of a prepared dataset where it came from."""
    return placed(f"{layout.data(EXPERIMENT, dataset)}/data.json")


def cell(wildcards):
    return EXPERIMENT.cells[wildcards.dataset, wildcards.method]


def predecessor(wildcards):
    """The checkpoint that the training of a segment starts from, if any."""
    earlier = EXPERIMENT.predecessor(
        wildcards.dataset, wildcards.method, int(wildcards.step)
    )
    if earlier is None:
        return []
    return checkpoint(wildcards.dataset, earlier[0], wildcards.seed, earlier[1])


def from_outside(path):
    """A file that no job makes: its content counts and not its age, and it is where it was said to
    be, whatever the prefix of a module."""
    return ancient(local(str(path)))


def final_checkpoint(wildcards):
    """Of a model from outside all of its files."""
    configured = cell(wildcards)
    if isinstance(configured, OutsideCell):
        return list(map(from_outside, outside_models.files(configured.model)))
    return checkpoint(
        wildcards.dataset, wildcards.method, wildcards.seed, configured.steps
    )


def checkpoint(dataset, method, seed, step):
    path = layout.checkpoint(EXPERIMENT, dataset, method, seed, step)
    return from_outside(path) if path in IMPORTED else path


def runs(methods, datasets):
    """The folder of every run of ``methods`` on ``datasets``."""
    return [
        layout.run(EXPERIMENT, dataset, method, seed)
        for dataset in datasets
        for method in methods
        for seed in EXPERIMENT.seeds[dataset]
    ]


def likelihood_records(methods, datasets=EXPERIMENT.datasets):
    return [
        f"{run}/{stage}.json"
        for run in runs(methods, datasets)
        for stage in ("likelihood", "asymmetry")
    ] + [
        f"{run}/circulation.json"
        for dataset in datasets
        for method in methods
        if EXPERIMENT.cells[dataset, method].circulation
        for run in runs([method], [dataset])
    ]


def sampled(methods, sampler, datasets):
    """The folder that ``sampler`` has in every run whose method is configured with it."""
    return [
        f"{run}/{sampler}"
        for dataset in datasets
        for method in methods
        if sampler in EXPERIMENT.cells[dataset, method].samplers
        for run in runs([method], [dataset])
    ]


def sampling_records(methods, sampler, datasets=EXPERIMENT.datasets):
    return [
        f"{folder}/{stage}.json"
        for folder in sampled(methods, sampler, datasets)
        for stage in ("sample", "quality")
    ]


def table_records(wildcards):
    table = EXPERIMENT.tables[wildcards.table]
    if table.sampler:
        return sampling_records(table.methods, table.sampler)
    return likelihood_records(table.methods)


def all_records(datasets):
    records = likelihood_records(EXPERIMENT.methods, datasets)
    for sampler in EXPERIMENT.samplers:
        records += sampling_records(EXPERIMENT.methods, sampler, datasets)
    return records


def cost_records(wildcards):
    """Records of training, sampling and likelihood of everything that is measured."""
    trained = [
        f"{layout.run(EXPERIMENT, dataset, method, seed)}/step{step}.json"
        for dataset, method in EXPERIMENT.cells
        for steps in [EXPERIMENT.trained_steps(dataset, method)]
        for seed in EXPERIMENT.seeds[dataset]
        for step in steps
    ]
    stages = ("likelihood.json", "sample.json")
    measured = [
        file for file in all_records(EXPERIMENT.datasets) if file.endswith(stages)
    ]
    return trained + measured


def extractor_weights(dataset, extractor):
    """The weights that the workflow itself trains; other extractors bring theirs."""
    return (
        f"{ROOT}/data/{dataset}/classifier.safetensors"
        if extractor == "classifier"
        else []
    )


def statistics(wildcards):
    """Published statistics, if there are any."""
    path = cell(wildcards).quality.statistics
    return from_outside(path) if path else []


def sample_features(wildcards):
    quality = cell(wildcards).quality
    features = f"{RUN}/{{sampler}}/features.{quality.extractor}.{quality.precision}"
    return gather.shards(f"{features}.{{scatteritem}}.npz", **wildcards)


def reference_features(wildcards):
    quality = cell(wildcards).quality
    features = f"{DATA}/features/{quality.extractor}.{quality.precision}"
    return gather.shards(
        f"{features}.{quality.reference}.{{scatteritem}}.npz", **wildcards
    )


FIGURES = f"{ROOT}/figures/{{dataset}}"
PICTURES = [
    "asymmetry",
    "learning_curves",
    "metrics_by_seed",
    "quality_against_compute",
]
SAMPLES = [f"figure3_{sampler}" for sampler in EXPERIMENT.samplers]


def training_records(dataset):
    """Those of every training that some method's final checkpoint comes from."""
    chains = [EXPERIMENT.chain(dataset, method) for method in EXPERIMENT.methods]
    return [
        f"{layout.run(EXPERIMENT, dataset, method, seed)}/step{last}.json"
        for seed in EXPERIMENT.seeds[dataset]
        for method, _, last in dict.fromkeys(sum(chains, []))
    ]


def compared_trainings():
    """Where the experiment file declares comparisons, their costs stand beside them."""
    datasets = EXPERIMENT.datasets if EXPERIMENT.comparisons else []
    return sum(map(training_records, datasets), [])


def picture_records(wildcards):
    return [*all_records([wildcards.dataset]), *training_records(wildcards.dataset)]


def drawn_files(wildcards):
    """What is drawn beside the records: curves, noise levels, and samples of the first seed."""
    dataset, seed = wildcards.dataset, EXPERIMENT.seeds[wildcards.dataset][0]
    curves = [record.replace(".json", ".csv") for record in training_records(dataset)]
    levels = [f"{run}/asymmetry.csv" for run in runs(EXPERIMENT.methods, [dataset])]
    samples = [
        f"{folder}/samples.npy"
        for sampler in EXPERIMENT.samplers
        for folder in sampled(EXPERIMENT.methods, sampler, [dataset])
        if f"/seed{seed}/" in folder
    ]
    return [*curves, *levels, *samples]


def dataset_figures(datasets):
    """All pictures of ``datasets``."""
    names = [*PICTURES, *SAMPLES]
    return expand(f"{FIGURES}/{{name}}.png", dataset=datasets, name=names)
