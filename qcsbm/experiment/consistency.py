"""What single models of the experiment file cannot see: facts that contradict each other."""

from collections.abc import Iterator
from pathlib import Path

from qcsbm.experiment.experiment import Experiment
from qcsbm.quality.metrics import COMPARED, OF_SAMPLES
from qcsbm.runtime import own_code
from qcsbm.schema.base import Precision
from qcsbm.schema.document import Cell, OutsideCell, TrainedCell
from qcsbm.schema.evaluation import Asymmetry
from qcsbm.schema.networks import Own
from qcsbm.schema.outside import EDM, Diffusers, RectifiedFlow
from qcsbm.schema.samplers import TYPES
from qcsbm.schema.sde import VE, VP
from qcsbm.schema.sources import Source
from qcsbm.schema.training import Regulariser

# Every rule of the workflow: a dataset becomes one, and a table's log lies where a rule's does.
RULES = {
    *("all", "prepare", "fetch_cifar10", "fetch_cifar100", "fetch_svhn", "classifier", "train"),
    *("sample", "gather_samples", "reference_features", "sample_features", "quality"),
    *("likelihood", "gather_likelihood", "asymmetry", "gather_asymmetry"),
    "circulation",
    *("gather_records", "table", "cost", "figure1", "figure4", "figures", "claims"),
    *("toy", "toy_run", "toy_table", "toy_figure"),
}
# What a run has beside the folders of samplers, and what has costs beside them.
TAKEN = {"shards", "train", "likelihood"}
# What the quick tier has in `results/`, where other tiers have their folders.
FOLDERS = {"data", "figures", "logs", "runs", "tables", "toy"}


def inconsistencies(experiment: Experiment) -> Iterator[str]:
    """Contradictions in a merged ``experiment``, a sentence each, without the file's name."""
    yield from _taken_names(experiment)
    for dataset in experiment.datasets:
        yield from _data_inconsistencies(dataset, experiment.datasets[dataset].data)
    for dataset, seeds in experiment.seeds.items():
        if len(set(seeds)) < len(seeds):
            yield f"seeds of {dataset}: found {seeds}, expected each seed once"
    for (dataset, method), cell in experiment.cells.items():
        yield from _cell_inconsistencies(experiment, dataset, method, cell)
    for name, table in experiment.tables.items():
        for method in table.methods:
            if method not in experiment.methods:
                yield (
                    f"tables.{name}.methods: found {method!r}, expected some of the methods "
                    f"{', '.join(experiment.methods)}"
                )
            for dataset in experiment.datasets:
                cell = experiment.cells[dataset, method]
                if table.sampler and table.sampler not in cell.samplers:
                    yield (
                        f"tables.{name}.sampler: found {table.sampler!r}, expected a sampler that "
                        f"is configured for dataset {dataset} and method {method}"
                    )
    yield from _comparison_inconsistencies(experiment)


def _comparison_inconsistencies(experiment: Experiment) -> Iterator[str]:
    """What nobody measures cannot be compared."""
    for name, family in experiment.comparisons.items():
        place = f"comparisons.{name}"
        for pair in family.pairs:
            if len(set(pair)) < 2 or not set(pair) <= set(experiment.methods):
                yield (
                    f"{place}.pairs: found {pair}, expected two of the methods "
                    f"{', '.join(experiment.methods)}"
                )
        for metric in family.metrics:
            if metric not in COMPARED:
                yield f"{place}.metrics: found {metric!r}, expected some of {', '.join(COMPARED)}"
        for sampler in family.samplers:
            if sampler not in experiment.samplers:
                yield (
                    f"{place}.samplers: found {sampler!r}, expected some of the tables' samplers "
                    f"{', '.join(experiment.samplers)}"
                )
        of_samples = [metric for metric in family.metrics if metric in OF_SAMPLES]
        if bool(of_samples) != bool(family.samplers):
            yield (
                f"{place}.samplers: found {family.samplers} with the metrics "
                f"{', '.join(family.metrics)}, expected some where there are metrics of samples, "
                "and else none"
            )
        for key, items in (("metrics", family.metrics), ("samplers", family.samplers)):
            if len(set(items)) < len(items):
                yield f"{place}.{key}: found {items}, expected each once"
        if len({tuple(pair) for pair in family.pairs}) < len(family.pairs):
            yield f"{place}.pairs: found {family.pairs}, expected each once"


def _taken_names(experiment: Experiment) -> Iterator[str]:
    for name in experiment.datasets:
        if name in RULES:
            yield (
                f"datasets: found the name {name!r}, expected another one, as the workflow has a "
                "rule of that name"
            )
    for name in experiment.tables:
        # `make` writes the report beside the tables.
        if name in RULES | {"report"}:
            yield (
                f"tables: found the name {name!r}, expected another one, as the workflow has files "
                "of that name"
            )
    if experiment.tier in FOLDERS:
        yield (
            f"tier: found the name {experiment.tier!r}, expected another one, as the quick tier "
            f"has its {experiment.tier} in the folder results/{experiment.tier}"
        )


def _data_inconsistencies(name: str, data: Source) -> Iterator[str]:
    for split, whole in data.whole.items():
        found = data.images_in(split)
        if found and found > whole:
            yield (
                f"datasets.{name}.data.{split}: found {found}, expected at most "
                f"{whole}, the number of images in the published files"
            )


def _cell_inconsistencies(
    experiment: Experiment, dataset: str, method: str, cell: Cell
) -> Iterator[str]:
    where = f"(dataset {dataset})"
    yield from _ends_inconsistencies("sde", where, cell.sde)
    if (cell.asymmetry.estimator == "antisymmetric") != (cell.asymmetry.probes is not None):
        yield (
            f"asymmetry.probes {where}, method {method}: found {cell.asymmetry.probes} with "
            f"estimator {cell.asymmetry.estimator!r}, expected a number with estimator "
            "'antisymmetric' and none otherwise"
        )
    yield from _difference_inconsistencies(
        "asymmetry",
        f"{where}, method {method}",
        cell.asymmetry,
        cell.asymmetry.precision,
        "precision",
    )
    for name, sampler in cell.samplers.items():
        if name in TAKEN:
            yield (
                f"samplers {where}, method {method}: found the name {name!r}, expected another "
                "one, as a run has other files or costs of that name"
            )
        if name in TYPES and name != sampler.type:
            yield (
                f"samplers.{name}.type {where}, method {method}: found {sampler.type!r}, expected "
                f"{name!r} or another name, as tables call it by that"
            )
    yield from _sample_inconsistencies(experiment, dataset, method, cell)
    if isinstance(cell, TrainedCell):
        yield from _training_inconsistencies(experiment, dataset, method, cell)
    else:
        yield from _outside_inconsistencies(f"methods.{method}", where, cell)
    labelled = experiment.datasets[dataset].data.labelled
    if cell.quality.extractor == "classifier" and not labelled:
        yield (
            f"quality.extractor {where}, method {method}: found 'classifier', expected another one,"
            " as the data have no labels that it could learn"
        )
    if cell.quality.extractor == "classifier" and experiment.datasets[dataset].classifier is None:
        yield (
            f"quality.extractor {where}: found 'classifier', expected datasets.{dataset}.classifier"
            " to say how it is trained"
        )


def _ends_inconsistencies(place: str, where: str, settings: VE | VP | EDM) -> Iterator[str]:
    low, high = settings.ends
    if getattr(settings, low) >= getattr(settings, high):
        yield (
            f"{place}.{high} {where}: found {getattr(settings, high)}, expected more than {low} = "
            f"{getattr(settings, low)}"
        )


def _training_inconsistencies(
    experiment: Experiment, dataset: str, method: str, cell: TrainedCell
) -> Iterator[str]:
    place = f"methods.{method}"
    where = f"(dataset {dataset})"
    if cell.stops != sorted(set(cell.stops)):
        yield (
            f"{place}.checkpoints {where}: found {cell.checkpoints}, expected increasing steps "
            f"below steps = {cell.steps}"
        )
    if cell.regulariser and cell.parameterisation == "energy":
        yield (
            f"{place}.regulariser {where}: found one for parameterisation 'energy', expected none: "
            "the gradient of an energy is conservative"
        )
    regularised = cell.regulariser.batch_size if cell.regulariser else None
    samples = min(cell.training.batch_size, regularised or cell.training.batch_size)
    if cell.training.processes > samples:
        yield (
            f"training.processes {where}, method {method}: found {cell.training.processes}, "
            f"expected at most {samples}, as each has to have a sample"
        )
    share = -(-cell.training.batch_size // cell.training.processes)
    if (cell.training.micro_batch or 1) > share:
        yield (
            f"training.micro_batch {where}, method {method}: found {cell.training.micro_batch}, "
            f"expected at most {share}, the samples of a process"
        )
    if regularised and regularised > cell.training.batch_size:
        yield (
            f"{place}.regulariser.batch_size {where}: found {regularised}, expected at most "
            f"training.batch_size = {cell.training.batch_size}"
        )
    if cell.regulariser:
        yield from _difference_inconsistencies(
            f"{place}.regulariser",
            where,
            cell.regulariser,
            cell.training.precision,
            "training.precision",
        )
    for stage in ("quality", "likelihood", "asymmetry"):
        if getattr(cell, stage).weights is None:
            yield (
                f"{stage}.weights {where}, method {method}: found None, expected 'ema' or 'raw', "
                "as a model that is trained here has both"
            )
    yield from _network_inconsistencies(experiment, dataset, method, cell)
    if cell.init_from:
        if (cell.init_from.method is None) == (cell.init_from.checkpoint is None):
            found = cell.init_from.model_dump(exclude_none=True)
            yield (
                f"{place}.init_from {where}: found {found}, expected step with either method or "
                "checkpoint"
            )
        elif cell.init_from.method:
            parent = cell.init_from.method, cell.init_from.step
            yield from _init_from_inconsistencies(experiment, dataset, method, cell, *parent)
        elif cell.init_from.checkpoint:
            imported = cell.init_from.checkpoint, cell.init_from.step
            yield from _import_inconsistencies(place, where, cell, *imported)


def _difference_inconsistencies(
    place: str, where: str, settings: Regulariser | Asymmetry, precision: Precision, key: str
) -> Iterator[str]:
    """Differences where there can be none; ``key`` says what the network's ``precision`` is."""
    differences = settings.derivatives == "finite_differences"
    if differences != (settings.difference_step is not None):
        yield (
            f"{place}.difference_step {where}: found {settings.difference_step} with derivatives "
            f"{settings.derivatives!r}, expected a number with derivatives 'finite_differences' "
            "and none otherwise"
        )
    if differences and settings.estimator != "antisymmetric":
        reason = {
            "trace": "the trace is a difference of large terms",
            "exact": "exact Jacobians are made of backward passes alone",
        }[settings.estimator]
        yield (
            f"{place}.derivatives {where}: found 'finite_differences' with estimator "
            f"{settings.estimator!r}, expected 'autograd' or estimator 'antisymmetric', as {reason}"
        )
    if differences and precision != "float32":
        yield (
            f"{place}.derivatives {where}: found 'finite_differences' with {key} {precision!r}, "
            "expected 'autograd' or precision 'float32', as coarser rounding drowns differences "
            "over a small step"
        )


def _outside_inconsistencies(place: str, where: str, cell: OutsideCell) -> Iterator[str]:
    """Files that are not there."""
    model = cell.model
    if isinstance(model, Diffusers):
        configs = [Path(model.path) / name for name in ("config.json", "unet/config.json")]
        if not Path(model.path).is_dir():
            yield f"{place}.model.path {where}: found no folder {model.path}, expected one"
        elif not any(path.is_file() for path in configs):
            yield (
                f"{place}.model.path {where}: found neither {configs[0]} nor {configs[1]}, "
                "expected a folder that save_pretrained of diffusers wrote"
            )
        return
    yield from _own_code_inconsistencies(f"{place}.model.type {where}", model.type)
    for file in model.files:
        if not Path(file).is_file():
            yield f"{place}.model.files {where}: found no file {file}, expected one"
    facts = {key: getattr(model, key) for key in ("kind", "schedule", "data_range")}
    given = [key for key, fact in facts.items() if fact is not None]
    if given and len(given) < len(facts):
        yield (
            f"{place}.model {where}: found {' and '.join(given)}, expected kind, schedule and "
            "data_range, or none of them for a Field"
        )
    if model.data_range and model.data_range[0] >= model.data_range[1]:
        yield (
            f"{place}.model.data_range {where}: found {model.data_range}, expected the smallest "
            "and then the largest value of data"
        )
    if model.schedule and not isinstance(model.schedule, RectifiedFlow):
        yield from _ends_inconsistencies(f"{place}.model.schedule", where, model.schedule)


def _sample_inconsistencies(
    experiment: Experiment, dataset: str, method: str, cell: Cell
) -> Iterator[str]:
    """More images than there are."""
    where = f"(dataset {dataset}), method {method}"
    data, quality = experiment.datasets[dataset].data, cell.quality
    for stage in ("likelihood", "asymmetry"):
        found, most = getattr(cell, stage).samples, data.images_in("test")
        if found and most and found > most:
            yield (
                f"{stage}.samples {where}: found {found}, expected at most {most}, the number of "
                "test images"
            )
    most = data.images_in("test")
    if cell.circulation and most and 3 * cell.circulation.triangles > most:
        yield (
            f"circulation.triangles {where}: found {cell.circulation.triangles}, expected at most "
            f"{most // 3}, as each has three of the {most} test images"
        )
    for images, n in [
        ("generated images", quality.samples),
        (f"images in the split {quality.reference}", data.images_in(quality.reference)),
    ]:
        if n and quality.neighbours >= n:
            yield (
                f"quality.neighbours {where}: found {quality.neighbours}, expected fewer than {n}, "
                f"the number of {images}"
            )


def _network_inconsistencies(
    experiment: Experiment, dataset: str, method: str, cell: TrainedCell
) -> Iterator[str]:
    """Code that is not there, or levels that images of a known size do not have."""
    where = f"(dataset {dataset}), method {method}"
    if isinstance(cell.network, Own):
        yield from _own_network_inconsistencies(where, cell.network)
        return
    shape = experiment.datasets[dataset].data.shape
    if shape is None:
        return
    size, levels = shape[-1], len(cell.network.ch_mult)
    if size % 2 ** (levels - 1):
        yield (
            f"network.ch_mult {where}: found {levels} levels, expected as many as a size of {size} "
            "pixels can be halved for, from level to level"
        )
    resolutions = [size // 2**level for level in range(levels)]
    for resolution in cell.network.attn_resolutions:
        if resolution not in resolutions:
            yield (
                f"network.attn_resolutions {where}: found {resolution}, expected some of "
                f"{resolutions}, the resolutions of the levels of ch_mult"
            )


def _own_network_inconsistencies(where: str, network: Own) -> Iterator[str]:
    yield from _own_code_inconsistencies(f"network.type {where}", network.type)
    for key in ("image_size", "channels"):
        if key in (network.model_extra or {}):
            yield (
                f"network.{key} {where}: found a value, expected none, as the data say what it is"
            )


def _own_code_inconsistencies(place: str, name: str) -> Iterator[str]:
    if not own_code.files(name):
        module = name.partition(":")[0]
        path = module.replace(".", "/")
        yield (
            f"{place}: found {name!r}, expected a module in the working directory, as there is no "
            f"{path}.py or {path}/__init__.py"
        )
    if own_code.is_taken(name):
        yield (
            f"{place}: found {name!r}, expected another name, as Python or a package has a module "
            f"{name.partition(':')[0].partition('.')[0]}"
        )


def _import_inconsistencies(
    place: str, where: str, cell: TrainedCell, checkpoint: str, step: int
) -> Iterator[str]:
    if not checkpoint.endswith(".safetensors"):
        yield (
            f"{place}.init_from.checkpoint {where}: found {checkpoint!r}, expected "
            "a .safetensors file, which import-checkpoint makes of a published one"
        )
    if cell.parameterisation == "energy" or cell.residual:
        yield (
            f"{place}.init_from.checkpoint {where}: found one for a method with an energy or a "
            "residual, expected none, as published models of those kinds are others than ours"
        )
    if cell.sde.type != "ve":
        yield (
            f"{place}.init_from.checkpoint {where}: found one for an SDE of type "
            f"{cell.sde.type!r}, expected none, as published networks were trained under 've'"
        )
    if step >= cell.stops[0] and cell.stops != [step]:
        yield (
            f"{place}.init_from.step {where}: found {step}, expected less than this method's first "
            f"checkpoint at step {cell.stops[0]}, or steps = {step} and no checkpoints for a model "
            "that is not trained any further"
        )


def _init_from_inconsistencies(
    experiment: Experiment, dataset: str, method: str, cell: TrainedCell, parent: str, step: int
) -> Iterator[str]:
    place = f"methods.{method}.init_from"
    where = f"(dataset {dataset})"
    origin: str | None = parent
    if origin not in experiment.methods:
        yield (
            f"{place}.method {where}: found {origin!r}, expected one of the methods "
            f"{', '.join(experiment.methods)}"
        )
        return
    trained = {of: cell for (on, of), cell in experiment.trainings.items() if on == dataset}
    if parent not in trained:
        yield (
            f"{place}.method {where}: found {parent!r}, a model from outside, expected a method "
            "that is trained here"
        )
        return
    seen = [method]
    while origin is not None:
        if origin in seen:
            yield (
                f"{place}.method {where}: found the cycle {' → '.join([*seen, origin])}, expected "
                "a chain that ends at a method without init_from"
            )
            return
        seen.append(origin)
        further = trained[origin].init_from
        origin = further.method if further and further.method in trained else None
    start = trained[parent]
    if step not in start.stops:
        yield (
            f"{place}.step {where}: found {step}, expected one of the checkpoints "
            f"{start.stops} of method {parent}"
        )
    if step >= cell.stops[0]:
        yield (
            f"{place}.step {where}: found {step}, expected less than this method's "
            f"first checkpoint at step {cell.stops[0]}"
        )
    for key in ("parameterisation", "residual", "network", "sde"):
        if getattr(start, key) != getattr(cell, key):
            yield (
                f"methods.{method}.{key} {where}: found another value than that of method "
                f"{parent}, expected the same, as training starts from its weights"
            )
