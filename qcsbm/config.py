"""The experiment file: closed, typed models, and one sentence for whatever does not fit them.

A *cell* is one dataset with one method. Its facts are merged key by key from four places, later
ones winning: ``defaults``, ``datasets.<dataset>``, ``methods.<method>`` and
``datasets.<dataset>.methods.<method>``; the result is one `Cell`. Nothing here imports torch, so
that a dry run stays fast.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


class ConfigError(ValueError):
    """One sentence that names file, key path, what was found and what was expected."""


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4, without a point, as a string; so does Snakemake all numbers in the lists
    # and mappings that its option --config is given.
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", value):
        return float(value)
    return value


def _whole(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
Count = Annotated[Whole, Field(gt=0)]
# It stands in tables and pictures; a bar would end a cell of a Markdown table.
Label = Annotated[str, Field(pattern=r"^[^\r\n|]*$")]
Weights = Literal["ema", "raw"]
# A single folder, so that no name leads out of the one where datasets are.
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Closed(BaseModel):
    """A model that refuses unknown keys and converts nothing but whole numbers to floats."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SDE(Closed):
    sigma_min: Positive
    sigma_max: Positive


class Network(Closed):
    """NCSN++; the keys are those of `qcsbm.nets.ncsnpp.NCSNpp`."""

    nf: Count
    ch_mult: Annotated[list[Count], Field(min_length=1)]
    num_res_blocks: Count
    attn_resolutions: list[Count]
    dropout: Fraction = 0.0
    fir: bool = True
    fir_kernel: list[Count] = [1, 3, 3, 1]
    skip_rescale: bool = True
    resblock: Literal["biggan", "ddpm"] = "biggan"
    progressive: Literal["none", "output_skip", "residual"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"
    progressive_combine: Literal["sum", "cat"] = "sum"
    fourier_scale: Positive = 16.0
    init_scale: NonNegative = 0.0


class Training(Closed):
    """Adam on the DSM loss; ``dequantise`` trains on (k + u)/L instead of k/(L − 1).

    ``batch_size`` samples are shared out to that many ``processes``, see `qcsbm.parallel`. With
    ``precision: bfloat16`` the network's products and convolutions are computed in that; weights,
    losses and everything after training are float32.
    """

    batch_size: Count
    processes: Count = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    lr: Positive = 2e-4
    beta1: Fraction = 0.9
    eps: Positive = 1e-8
    warmup: Count = 5000
    grad_clip: Positive = 1.0
    ema: Fraction = 0.999
    flip: bool = False
    dequantise: bool = False


class Regulariser(Closed):
    """λ = ``weight`` and the estimator of L_QC, averaged over ``probes`` Rademacher probes.

    ``batch_size`` samples of a batch are regularised, all of them if null, at every ``every``-th
    step, with ``every`` times the weight. With ``times: squared`` the t of these steps favour small
    ones, where the gradient of L_QC varies most, and are weighted for it.
    """

    weight: NonNegative
    probes: Count = 1
    estimator: Literal["trace", "antisymmetric"]
    batch_size: Count | None = None
    every: Count = 1
    times: Literal["uniform", "squared"] = "uniform"


class InitFrom(Closed):
    """The checkpoint at ``step`` that training starts from.

    It is that of another ``method``, with the same seed, or an imported file, ``checkpoint``, with
    its path relative to the working directory.
    """

    method: str | None = None
    checkpoint: str | None = None
    step: Count


class PCSampler(Closed):
    steps: Annotated[Whole, Field(ge=2)]
    snr: Positive
    corrector_steps: Annotated[Whole, Field(ge=0)] = 1
    batch_size: Count


class ODESampler(Closed):
    rtol: Positive
    atol: Positive
    batch_size: Count


class Samplers(Closed):
    pc: PCSampler | None = None
    ode: ODESampler | None = None


class Quality(Closed):
    """Fréchet distance, class score, precision and recall of ``samples`` generated images.

    They are compared with the split ``reference``; the Fréchet distance, where ``statistics`` names
    an .npz of published statistics (``mu``, ``sigma``), with those.
    """

    samples: Annotated[Whole, Field(ge=2)]
    extractor: Literal["classifier", "efficientnet_lite0", "inception"]
    reference: Literal["train", "test"] = "train"
    statistics: str | None = None
    neighbours: Count = 3
    weights: Weights = "ema"


class Likelihood(Closed):
    """Bits/dim of the first ``samples`` test images (all of them if null)."""

    samples: Count | None = None
    divergence: Literal["hutchinson", "exact"] = "hutchinson"
    rtol: Positive
    atol: Positive
    batch_size: Count
    weights: Weights = "ema"


class Asymmetry(Closed):
    """Asym and NAsym at ``levels`` times 0, 1/levels, … of the first ``samples`` test images."""

    estimator: Literal["exact", "probes", "paper"]
    probes: Annotated[Whole, Field(ge=2)] | None = None
    levels: Count
    samples: Annotated[Whole, Field(ge=2)]
    batch_size: Count
    weights: Weights = "ema"


class Cell(Closed):
    """Everything that one dataset × method needs, for any seed."""

    label: Label
    parameterisation: Literal["score", "energy"]
    residual: bool = False
    regulariser: Regulariser | None = None
    init_from: InitFrom | None = None
    steps: Count
    checkpoints: list[Count] = []
    sde: SDE
    network: Network
    training: Training
    samplers: Samplers
    quality: Quality
    likelihood: Likelihood
    asymmetry: Asymmetry

    @property
    def stops(self) -> list[int]:
        """The steps at which a checkpoint is kept, in order; the last one is ``steps``."""
        return [*self.checkpoints, self.steps]


# (C, H, W) where the source determines it, None where only the prepared data know.
Shape = tuple[int, int, int] | None


class Digits(Closed):
    """The 8 × 8 digits with 17 grey levels that scikit-learn ships."""

    shape: ClassVar[Shape] = (1, 8, 8)
    source: Literal["digits"]
    test: Count = 360


class Patches(Closed):
    """Colour patches of the two photographs that scikit-learn ships."""

    source: Literal["patches"]
    size: Annotated[Whole, Field(ge=4, le=64)]
    train: Count
    test: Count

    @property
    def shape(self) -> Shape:
        return (3, self.size, self.size)


class FromFiles(Closed):
    """Images from files on this machine: all, or ``train`` and ``test`` of them at random."""

    shape: ClassVar[Shape] = None
    train: Count | None = None
    test: Count | None = None


class Idx(FromFiles):
    """Grey images in IDX files, such as Fashion-MNIST, in the folder ``name``."""

    source: Literal["idx"]
    name: FolderName


class Cifar10(FromFiles):
    shape: ClassVar[Shape] = (3, 32, 32)
    source: Literal["cifar10"]


class Cifar100(FromFiles):
    shape: ClassVar[Shape] = (3, 32, 32)
    source: Literal["cifar100"]


class Svhn(FromFiles):
    shape: ClassVar[Shape] = (3, 32, 32)
    source: Literal["svhn"]


class ImageNet32(FromFiles):
    shape: ClassVar[Shape] = (3, 32, 32)
    source: Literal["imagenet32"]


class Folder(FromFiles):
    """PNG images in the folders ``name``/train and ``name``/test."""

    source: Literal["folder"]
    name: FolderName


class Arrays(FromFiles):
    """NumPy arrays in the folder ``name``, their axes in the order ``layout``."""

    source: Literal["arrays"]
    name: FolderName
    layout: Literal["nhw", "nhwc", "nchw"]
    labels: bool = False


Data = Digits | Patches | Idx | Cifar10 | Cifar100 | Svhn | ImageNet32 | Folder | Arrays


class Classifier(Closed):
    """The network that the workflow trains on the dataset's labels to extract features."""

    epochs: Count


class Dataset(Closed):
    label: Label
    data: Annotated[Data, Field(discriminator="source")]
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)] | None = None
    classifier: Classifier | None = None


class Table(Closed):
    """The rows of a table; with ``sampler`` it shows sample quality, else NLL and asymmetry."""

    methods: Annotated[list[str], Field(min_length=1)]
    sampler: Literal["pc", "ode"] | None = None


class Toy(Closed):
    """The two-dimensional examples, on ``points`` points of each data set."""

    points: Count
    steps: Count
    batch_size: Count
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)]


class Document(Closed):
    """The file as it is written; parts of cells are checked once they are merged."""

    tier: str
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)]
    defaults: dict[str, Any] = {}
    datasets: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    tables: dict[str, Table]
    toy: Toy | None = None


@dataclass(frozen=True)
class Experiment:
    """A checked experiment file."""

    tier: str
    datasets: dict[str, Dataset]
    seeds: dict[str, list[int]]
    methods: list[str]
    cells: dict[tuple[str, str], Cell]
    tables: dict[str, Table]
    toy: Toy | None

    @property
    def root(self) -> str:
        """The folder of results, relative to the project."""
        return "results" if self.tier == "quick" else f"results/{self.tier}"

    def cell(self, dataset: str, method: str) -> Cell:
        """The cell of names that a user gave.

        Raises:
            ValueError: there is no such dataset or method.
        """
        for what, name, known in [
            ("dataset", dataset, list(self.datasets)),
            ("method", method, self.methods),
        ]:
            if name not in known:
                raise ValueError(f"{what}: found {name!r}, expected one of {', '.join(known)}")
        return self.cells[dataset, method]

    def predecessor(self, dataset: str, method: str, step: int) -> tuple[str, int] | None:
        """Method and step of the checkpoint that training towards ``step`` starts from, if any.

        An imported checkpoint belongs to the method that starts from it.
        """
        cell = self.cells[dataset, method]
        earlier = [stop for stop in cell.stops if stop < step]
        if earlier:
            return method, earlier[-1]
        origin = cell.init_from
        return (origin.method or method, origin.step) if origin else None

    def imported(self, dataset: str, method: str, step: int) -> str | None:
        """The path of the imported file that is the method's checkpoint at ``step``, if one is."""
        origin = self.cells[dataset, method].init_from
        return origin.checkpoint if origin and origin.step == step else None

    def chain(self, dataset: str, method: str) -> list[tuple[str, int, int]]:
        """(method, first step, last step) of all trainings that lead to the final checkpoint."""
        segments = []
        last = method, self.cells[dataset, method].steps
        while last and not self.imported(dataset, *last):
            first = self.predecessor(dataset, *last)
            segments.insert(0, (last[0], first[1] if first else 0, last[1]))
            last = first
        return segments

    def control(self, dataset: str, method: str) -> str | None:
        """The unregularised score model that was trained alike and for as many steps, if any.

        Model and control differ in the parameterisation or in the regulariser alone; the number
        of processes changes the cost of a training and not what it is.
        """

        def alike(cell: Cell) -> tuple:
            training = cell.training.model_copy(update={"processes": 1})
            return cell.steps, training, cell.network, cell.sde

        cell = self.cells[dataset, method]
        for other in self.methods:
            candidate = self.cells[dataset, other]
            plain = candidate.parameterisation == "score" and candidate.regulariser is None
            if other != method and plain and alike(candidate) == alike(cell):
                return other
        return None


def read(path: str | Path) -> Experiment:
    """The experiment file at ``path``, checked.

    Raises:
        ConfigError: see there.
        FileNotFoundError: there is no such file.
    """
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise ConfigError(f"{path}: found no YAML, expected an experiment file") from None
    require_keys_once(path)
    return load(config, str(path))


def require_keys_once(path: str | Path) -> None:
    """Refuse what readers of YAML pass over: a key that hides an earlier one of the same name.

    Raises:
        ConfigError: the YAML file at ``path`` has one.
    """
    waiting = [("", yaml.compose(Path(path).read_text(encoding="utf-8")))]
    visited = []  # an anchor may lead back to where it stands
    while waiting:
        place, node = waiting.pop()
        if not isinstance(node, yaml.MappingNode) or node in visited:
            continue
        visited.append(node)
        seen = set()
        for key, value in node.value:
            name = f"{place}.{key.value}" if place else str(key.value)
            if name in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{path}: {name}: found twice (line {line}), expected it once")
            seen.add(name)
            waiting.append((name, value))


def load(config: dict, source: str) -> Experiment:
    """Check ``config``, read from the file(s) ``source``, and merge its cells.

    Raises:
        ConfigError: see there.
    """
    try:
        document = Document.model_validate(config)
    except ValidationError as error:
        raise ConfigError(_sentence(Document, error, source, [("", config)])) from None
    for place, names in [
        ("tier", [document.tier]),
        ("datasets", document.datasets),
        ("methods", document.methods),
        ("tables", document.tables),
    ]:
        for name in names:
            if not NAME.fullmatch(name):
                raise ConfigError(
                    f"{source}: {place}: found the name {name!r}, expected lower-case letters, "
                    "digits and underscores, as it becomes part of file names"
                )

    datasets, cells = {}, {}
    for name, raw in document.datasets.items():
        datasets[name] = parse(
            Dataset, source, [(f"datasets.{name}", {k: raw[k] for k in _own(raw)})]
        )
        overrides = raw.get("methods", {})
        if not isinstance(overrides, dict) or set(overrides) - set(document.methods):
            raise ConfigError(
                f"{source}: datasets.{name}.methods: found {_short(overrides)}, expected some of "
                f"the methods {', '.join(document.methods)}"
            )
        for method, override in overrides.items():
            if not isinstance(override, dict):
                raise ConfigError(
                    f"{source}: datasets.{name}.methods.{method}: found {_short(override)}, "
                    "expected a mapping of keys"
                )
        for method, row in document.methods.items():
            cells[name, method] = parse(
                Cell,
                source,
                [
                    ("defaults", document.defaults),
                    (f"datasets.{name}", {k: v for k, v in raw.items() if k not in DATASET_KEYS}),
                    (f"methods.{method}", row),
                    (f"datasets.{name}.methods.{method}", overrides.get(method, {})),
                ],
            )
    experiment = Experiment(
        tier=document.tier,
        datasets=datasets,
        seeds={name: dataset.seeds or document.seeds for name, dataset in datasets.items()},
        methods=list(document.methods),
        cells=cells,
        tables=document.tables,
        toy=document.toy,
    )
    for problem in _inconsistencies(experiment):
        raise ConfigError(f"{source}: {problem}")
    return experiment


DATASET_KEYS = {*Dataset.model_fields, "methods"}


def _own(raw: dict) -> list[str]:
    return [key for key in raw if key in Dataset.model_fields]


def _inconsistencies(experiment: Experiment) -> Iterator[str]:
    """What single models cannot see, a sentence each."""
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
                if table.sampler and getattr(cell.samplers, table.sampler) is None:
                    yield (
                        f"tables.{name}.sampler: found {table.sampler!r}, expected a sampler that "
                        f"is configured for dataset {dataset} and method {method}"
                    )


def _cell_inconsistencies(
    experiment: Experiment, dataset: str, method: str, cell: Cell
) -> Iterator[str]:
    place = f"methods.{method}"
    where = f"(dataset {dataset})"
    if cell.sde.sigma_min >= cell.sde.sigma_max:
        yield (
            f"sde.sigma_max {where}: found {cell.sde.sigma_max}, expected more than sigma_min = "
            f"{cell.sde.sigma_min}"
        )
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
    if cell.training.processes > cell.training.batch_size:
        yield (
            f"training.processes {where}, method {method}: found {cell.training.processes}, "
            f"expected at most training.batch_size = {cell.training.batch_size}"
        )
    regularised = cell.regulariser.batch_size if cell.regulariser else None
    if regularised and regularised > cell.training.batch_size:
        yield (
            f"{place}.regulariser.batch_size {where}: found {regularised}, expected at most "
            f"training.batch_size = {cell.training.batch_size}"
        )
    if (cell.asymmetry.estimator == "probes") != (cell.asymmetry.probes is not None):
        yield (
            f"asymmetry.probes {where}, method {method}: found {cell.asymmetry.probes} with "
            f"estimator {cell.asymmetry.estimator!r}, expected a number with estimator 'probes' "
            "and none otherwise"
        )
    if cell.quality.extractor == "classifier" and experiment.datasets[dataset].classifier is None:
        yield (
            f"quality.extractor {where}: found 'classifier', expected datasets.{dataset}.classifier"
            " to say how it is trained"
        )
    if cell.init_from:
        if (cell.init_from.method is None) == (cell.init_from.checkpoint is None):
            found = cell.init_from.model_dump(exclude_none=True)
            yield (
                f"{place}.init_from {where}: found {found}, expected step with either method or "
                "checkpoint"
            )
        elif cell.init_from.method:
            yield from _init_from_inconsistencies(experiment, dataset, method, cell)
        else:
            yield from _import_inconsistencies(place, where, cell)


def _import_inconsistencies(place: str, where: str, cell: Cell) -> Iterator[str]:
    if not cell.init_from.checkpoint.endswith(".safetensors"):
        yield (
            f"{place}.init_from.checkpoint {where}: found {cell.init_from.checkpoint!r}, expected "
            "a .safetensors file, which import-checkpoint makes of a published one"
        )
    if cell.parameterisation == "energy" or cell.residual:
        yield (
            f"{place}.init_from.checkpoint {where}: found one for a method with an energy or a "
            "residual, expected none, as published models of those kinds are others than ours"
        )
    step = cell.init_from.step
    if step >= cell.stops[0] and cell.stops != [step]:
        yield (
            f"{place}.init_from.step {where}: found {step}, expected less than this method's first "
            f"checkpoint at step {cell.stops[0]}, or steps = {step} and no checkpoints for a model "
            "that is not trained any further"
        )


def _init_from_inconsistencies(
    experiment: Experiment, dataset: str, method: str, cell: Cell
) -> Iterator[str]:
    place = f"methods.{method}.init_from"
    where = f"(dataset {dataset})"
    origin = cell.init_from.method
    if origin not in experiment.methods:
        yield (
            f"{place}.method {where}: found {origin!r}, expected one of the methods "
            f"{', '.join(experiment.methods)}"
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
        further = experiment.cells[dataset, origin].init_from
        origin = further.method if further and further.method in experiment.methods else None
    parent = experiment.cells[dataset, cell.init_from.method]
    if cell.init_from.step not in parent.stops:
        yield (
            f"{place}.step {where}: found {cell.init_from.step}, expected one of the checkpoints "
            f"{parent.stops} of method {cell.init_from.method}"
        )
    if cell.init_from.step >= cell.stops[0]:
        yield (
            f"{place}.step {where}: found {cell.init_from.step}, expected less than this method's "
            f"first checkpoint at step {cell.stops[0]}"
        )
    for key in ("parameterisation", "residual", "network", "sde"):
        if getattr(parent, key) != getattr(cell, key):
            yield (
                f"methods.{method}.{key} {where}: found another value than that of method "
                f"{cell.init_from.method}, expected the same, as training starts from its weights"
            )


def parse(model: type[Closed], source: str, layers: list[tuple[str, dict]]) -> Any:
    """Merge ``layers`` of (key path, mapping), later ones winning, into a ``model``."""
    merged: dict = {}
    for _, layer in layers:
        merged = _merge(merged, layer)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_sentence(model, error, source, layers)) from None


def _merge(base: dict, change: dict) -> dict:
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _sentence(
    model: type[Closed], error: ValidationError, source: str, layers: list[tuple[str, dict]]
) -> str:
    """The first of the errors as one sentence, under the key path of the layer that caused it."""
    errors = error.errors()
    # A misspelt key is also a missing one; what stands in the file is the better thing to name.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    # The tag of a discriminated union is part of pydantic's path and not of the file's.
    loc = first["loc"]
    path = [str(part) for i, part in enumerate(loc) if loc[i - 1 : i] != ("data",)]
    present = path[:-1] if first["type"] == "missing" else path
    layer = next((name for name, raw in reversed(layers) if _has(raw, present)), layers[-1][0])
    key = ".".join([layer, *path] if layer else path)
    where = f"{source}: {key}" if key else source
    expected = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] == "extra_forbidden":
        known = ", ".join(_known_keys(model, first["loc"][:-1]))
        return f"{where}: found an unknown key, expected one of {known}"
    if first["type"] == "missing":
        return f"{where}: found nothing, expected a value"
    return f"{where}: found {_short(first['input'])}, expected: {expected}"


def _known_keys(model: type[Closed], path: tuple) -> list[str]:
    """The keys of the model that lies at ``path`` below ``model``."""
    for part in path:
        if part in model.model_fields:
            annotation = model.model_fields[part].annotation
            options = [annotation, *get_args(annotation)]
            options = [o for o in options if isinstance(o, type) and issubclass(o, Closed)]
            alternatives = {o.__name__.lower(): o for o in options}
            model = options[0]
        else:  # the tag of a discriminated union
            model = alternatives[part]
    return list(model.model_fields)


def _has(raw: Any, path: list[str]) -> bool:
    for part in path:
        if isinstance(raw, list):
            return part.isdigit() and int(part) < len(raw)
        if not isinstance(raw, dict) or part not in raw:
            return False
        raw = raw[part]
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
