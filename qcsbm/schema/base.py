"""Closed, typed models of the experiment file, and one sentence for whatever does not fit them.

Nothing here imports torch, so that a dry run stays fast.
"""

import re
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from qcsbm.runtime.errors import BadInput


class ConfigError(BadInput):
    """Bad input in an experiment file; the sentence names file and key path."""


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
# As many as a standard error needs.
Several = Annotated[Whole, Field(ge=2)]
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
    resamp_with_conv: bool = True
    progressive: Literal["none", "output_skip", "residual"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"
    progressive_combine: Literal["sum", "cat"] = "sum"
    fourier_scale: Positive = 16.0
    init_scale: NonNegative = 0.0


class Training(Closed):
    """Adam on the DSM loss; ``dequantise`` trains on (k + u)/L instead of k/(L − 1).

    ``batch_size`` samples are shared out to that many ``processes``, see `qcsbm.training.parallel`.
    With ``precision: bfloat16`` the network's products and convolutions are computed in that;
    weights, losses and everything after training are float32.
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

    ``batch_size`` samples of a batch are regularised, all of them if null. Every ``every``-th step
    does so, and its gradient of L_QC counts for the steps up to the next one. With ``times:
    squared`` the t of these steps favour small ones, where that gradient varies most, and are
    weighted for it.
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
    an .npz of published statistics (``mu`` and ``sigma``, or ``pool_3``), with those.
    """

    samples: Annotated[Whole, Field(ge=4)]
    extractor: Literal["classifier", "efficientnet_lite0", "inception"]
    reference: Literal["train", "test"] = "train"
    statistics: str | None = None
    neighbours: Count = 3
    weights: Weights = "ema"


class Likelihood(Closed):
    """Bits/dim of the first ``samples`` test images (all of them if null)."""

    samples: Several | None = None
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
    samples: Several
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


class Source(Closed):
    """Where images come from, and what the configuration alone knows of them.

    ``shape`` is (C, H, W), None where only the files know; ``labelled`` whether images have labels;
    ``whole`` has the number of images in each split of the files, where those are published.
    """

    shape: ClassVar[tuple[int, int, int] | None] = None
    labelled: ClassVar[bool] = False
    whole: ClassVar[dict[str, int]] = {}

    def images_in(self, split: str) -> int | None:
        """The number of images in ``split``, "train" or "test", None where only the files know."""
        return getattr(self, split) or self.whole.get(split)


class Digits(Source):
    """The 8 × 8 digits with 17 grey levels that scikit-learn ships."""

    total: ClassVar[int] = 1797
    shape: ClassVar = (1, 8, 8)
    labelled: ClassVar[bool] = True
    source: Literal["digits"]
    # Both splits have all ten of them.
    test: Annotated[Whole, Field(ge=10, le=total - 10)] = 360

    def images_in(self, split: str) -> int:
        return self.test if split == "test" else self.total - self.test


class Patches(Source):
    """Colour patches of the two photographs that scikit-learn ships."""

    source: Literal["patches"]
    size: Annotated[Whole, Field(ge=4, le=64)]
    train: Count
    test: Several

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, self.size, self.size)


class FromFiles(Source):
    """Images from files on this machine: all, or ``train`` and ``test`` of them at random."""

    train: Count | None = None
    test: Several | None = None


class Published(FromFiles):
    """Colour images of 256 levels with labels, in files that anyone can have."""

    shape: ClassVar = (3, 32, 32)
    levels: ClassVar[int] = 256
    labelled: ClassVar[bool] = True


class Cifar10(Published):
    whole: ClassVar = {"train": 50_000, "test": 10_000}
    source: Literal["cifar10"]


class Cifar100(Published):
    whole: ClassVar = {"train": 50_000, "test": 10_000}
    source: Literal["cifar100"]


class Svhn(Published):
    whole: ClassVar = {"train": 73_257, "test": 26_032}
    source: Literal["svhn"]


class ImageNet32(Published):
    whole: ClassVar = {"train": 1_281_167, "test": 50_000}
    source: Literal["imagenet32"]


class Own(FromFiles):
    """The user's own images, of ``levels`` grey levels per channel, in the folder ``name``."""

    name: FolderName
    levels: Annotated[Whole, Field(ge=2, le=256)] = 256


class Idx(Own):
    """Grey images in IDX files, such as Fashion-MNIST, in the folder ``name``."""

    labelled: ClassVar[bool] = True
    source: Literal["idx"]


class Folder(Own):
    """PNG images in the folders ``name``/train and ``name``/test."""

    source: Literal["folder"]


class Arrays(Own):
    """NumPy arrays in the folder ``name``, their axes in the order ``layout``."""

    source: Literal["arrays"]
    layout: Literal["nhw", "nhwc", "nchw"]
    labels: bool = False

    @property
    def labelled(self) -> bool:
        return self.labels


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
    """The file as it is written; parts of cells are checked once they are merged.

    ``strict`` refuses tables of numbers that were not all computed by the same code.
    """

    tier: str
    strict: bool = False
    seeds: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1)]
    defaults: dict[str, Any] = {}
    datasets: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    tables: dict[str, Table]
    toy: Toy | None = None


def parse(model: type[Closed], source: str, layers: list[tuple[str, dict]]) -> Any:
    """Merge ``layers`` of (key path, mapping), later ones winning, into a ``model``."""
    merged: dict = {}
    for _, layer in layers:
        merged = _merge(merged, layer)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(sentence(model, error, source, layers)) from None


def _merge(base: dict, change: dict) -> dict:
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def sentence(
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
    return f"{where}: found {short(first['input'])}, expected: {expected}"


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


def short(value: Any) -> str:
    """``value`` as a sentence shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
