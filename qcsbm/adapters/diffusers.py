r"""Unconditional and class-conditional image models of diffusers, from a folder on this machine.

The scheduler beside a U-Net says what it was trained on, whichever sampler it is:

* β of n steps (DDPM, DDIM, PNDM, DPM-Solver, UniPC, DEIS, Euler, Heun, LMS, KDPM2 and kin):
  `Discrete`; ``prediction_type`` epsilon, sample or v_prediction is the kind;
* EDM (EDMEuler, EDMDPMSolverMultistep): kind ``denoiser`` with their preconditioning, `EDM`;
* flow matching (FlowMatchEuler, FlowMatchHeun): kind ``velocity``, `RectifiedFlow`;
* ScoreSdeVe: kind ``score``, whose time is the noise level, `EDM` between its ends.

Nothing is downloaded, and nothing but tensors is unpickled.

References:
    Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), Eq. 6;
    https://arxiv.org/abs/2207.12598
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qcsbm.adapters import torch_file
from qcsbm.adapters.field import Field
from qcsbm.adapters.library import library
from qcsbm.runtime.errors import BadInput, MissingFile
from qcsbm.runtime.files import sha256
from qcsbm.score.kinds import Kind
from qcsbm.score.schedules import EDM, Discrete, RectifiedFlow, Schedule
from qcsbm.score.sde import bcast

Function = Callable[[Tensor, Tensor], Tensor]
Trained = tuple[Kind, Schedule, Function]

PREDICTIONS: dict[str, Kind] = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
# Of latent diffusion, whose data are no images.
ENCODERS = ("vae", "vqvae", "movq")


def from_diffusers(
    path: str | Path,
    *,
    label: int | None = None,
    guidance: float | None = None,
    null_label: int | None = None,
    variant: str | None = None,
) -> Field:
    """The `UNet2DModel` in the folder ``path`` with its scheduler.

    The folder is that of a pipeline, or of a U-Net with ``scheduler_config.json`` in it or in a
    folder ``scheduler`` in or beside it. ``variant`` is the middle of a weight file's name, as in
    ``diffusion_pytorch_model.fp16.safetensors``. Data lie in [−1, 1], those of ScoreSdeVe in
    [0, 1], as the library's pipelines have it; of latents the range is not known.

    A class-conditional model needs the ``label`` of a class, the same for all samples. With a
    weight w of classifier-free ``guidance`` the output is f_∅ + w (f_c − f_∅), where c is the label
    and ∅ is ``null_label``, the last one unless it is given: w = 1 is the model of class c.

    Raises:
        BadInput: the folder has no such model, or one of a scheduler that says nothing of training;
            the weights do not fit; or labels are missing, unknown or not asked for.
    """
    return _field(_read_folder(path, variant), label, guidance, null_label)


def pair_from_diffusers(
    path: str | Path, label: int, null_label: int | None = None, variant: str | None = None
) -> tuple[Field, Field]:
    """The model of class ``label`` and that of class ``null_label``, of one network.

    Raises:
        BadInput: as in `from_diffusers`.
    """
    model = _read_folder(path, variant)
    conditional = _field(model, label, None, None)
    null = model.unet.config["num_class_embeds"] - 1 if null_label is None else null_label
    return conditional, _field(model, null, None, None)


class _Model(NamedTuple):
    """A network with its scheduler, and the files that they were read from."""

    folder: Path
    unet: Any
    scheduler: Any
    config_file: Path
    scheduler_file: Path
    weights: Path


def _read_folder(path: str | Path, variant: str | None) -> _Model:
    folder = Path(path)
    if not folder.is_dir():
        raise MissingFile(f"{folder}: found no such folder, expected one that diffusers wrote")
    unet_folder = folder if (folder / "config.json").is_file() else folder / "unet"
    config_file = unet_folder / "config.json"
    _read(config_file, "UNet2DModel")
    scheduler_file = _scheduler_file(folder)
    scheduler_config = _read(scheduler_file, *SCHEDULERS)
    scheduler_class = scheduler_config["_class_name"]
    weights = _weights(unet_folder, variant)

    diffusers = library("diffusers")
    with _errors_named(scheduler_file, f"what {scheduler_class} can be built from"):
        scheduler = getattr(diffusers, scheduler_class).from_config(scheduler_config)
    unet = _unet(diffusers, unet_folder, weights, variant)
    return _Model(folder, unet, scheduler, config_file, scheduler_file, weights)


def _field(
    model: _Model, label: int | None, guidance: float | None, null_label: int | None
) -> Field:
    folder, unet, scheduler, config_file, scheduler_file, weights = model
    output = _labelled(unet, folder, label, guidance, null_label)
    scheduler_class = type(scheduler).__name__
    kind, schedule, function = SCHEDULERS[scheduler_class](scheduler, output, scheduler_file)

    index = folder / "model_index.json"
    latent = index.is_file() and any(part in _json(index) for part in ENCODERS)
    low = 0.0 if scheduler_class == "ScoreSdeVeScheduler" else -1.0
    name = folder.resolve().name
    if label is not None:
        name += f", class {label}"
    if guidance is not None:
        name += f", guidance {guidance:g}"
    return Field(
        function,
        kind,
        schedule,
        name,
        shape=_shape(unet.config),
        data_range=None if latent else (low, 1.0),
        module=unet,
        files={str(file): sha256(file) for file in (config_file, scheduler_file, weights)},
    )


# What a model was trained on, from its scheduler and the function x, time → output.


def _discrete(scheduler: Any, output: Function, file: Path) -> Trained:
    kept = scheduler.alphas_cumprod.double()
    # To sample from there, some schedulers put a small number in place of the 0 of training.
    if scheduler.config.get("rescale_betas_zero_snr"):
        kept[-1] = 0
    prediction = scheduler.config["prediction_type"]
    if prediction not in PREDICTIONS:
        raise BadInput(
            f"{file}: prediction_type: found {prediction!r}, expected one of "
            f"{', '.join(PREDICTIONS)}"
        )
    return PREDICTIONS[prediction], Discrete(kept.sqrt(), (1 - kept).sqrt()), output


def _edm(scheduler: Any, output: Function, file: Path) -> Trained:
    def denoiser(y: Tensor, sigma: Tensor) -> Tensor:
        noise = bcast(sigma, y)
        inner = output(scheduler.precondition_inputs(y, noise), scheduler.precondition_noise(sigma))
        denoised: Tensor = scheduler.precondition_outputs(y, inner, noise)
        return denoised

    return "denoiser", EDM(scheduler.config["sigma_min"], scheduler.config["sigma_max"]), denoiser


def _flow(scheduler: Any, output: Function, file: Path) -> Trained:
    steps = scheduler.config["num_train_timesteps"]
    return "velocity", RectifiedFlow(), lambda x, t: output(x, steps * t)


def _score_sde_ve(scheduler: Any, output: Function, file: Path) -> Trained:
    return "score", EDM(scheduler.config["sigma_min"], scheduler.config["sigma_max"]), output


SCHEDULERS: dict[str, Callable[[Any, Function, Path], Trained]] = {
    **dict.fromkeys(
        (
            "DDPMScheduler",
            "DDPMParallelScheduler",
            "DDIMScheduler",
            "DDIMParallelScheduler",
            "DEISMultistepScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "HeunDiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "LMSDiscreteScheduler",
            "PNDMScheduler",
            "UniPCMultistepScheduler",
        ),
        _discrete,
    ),
    "EDMDPMSolverMultistepScheduler": _edm,
    "EDMEulerScheduler": _edm,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "FlowMatchHeunDiscreteScheduler": _flow,
    "ScoreSdeVeScheduler": _score_sde_ve,
}


# The network.


def _labelled(
    unet: Any,
    folder: Path,
    label: int | None,
    guidance: float | None,
    null_label: int | None,
) -> Function:
    """The U-Net as a function of x and its own time, with its class and guidance."""
    channels, classes = unet.config["in_channels"], unet.config["num_class_embeds"]
    if unet.config["class_embed_type"] is not None:
        raise BadInput(
            f"{folder}: class_embed_type: found {unet.config['class_embed_type']!r}, expected "
            "none, and labels that are numbers of classes"
        )
    if classes is None and (label, guidance, null_label) != (None, None, None):
        raise BadInput(
            f"{folder}: found a model without classes, expected no label and no guidance"
        )
    if classes is not None and label is None:
        raise BadInput(
            f"{folder}: found a model that needs class labels, expected label, one of 0 to "
            f"{classes - 1}"
        )
    null = classes - 1 if null_label is None and classes is not None else null_label
    for number in (label, null):
        if number is not None and not 0 <= number < classes:
            raise BadInput(f"{folder}: found label {number}, expected one of 0 to {classes - 1}")
    if guidance is None and null_label is not None:
        raise BadInput(f"{folder}: found null_label without guidance, expected both or neither")

    def output(x: Tensor, t: Tensor, number: int | None) -> Tensor:
        labels = None if number is None else torch.full((len(x),), number, device=x.device)
        return unet(x, t, labels).sample[:, :channels]

    def guided(x: Tensor, t: Tensor) -> Tensor:
        if unet.config["time_embedding_type"] == "learned":
            t = _whole(t, folder)
        if guidance is None:
            return output(x, t, label)
        without = output(x, t, null)
        return without + guidance * (output(x, t, label) - without)

    return guided


def _whole(t: Tensor, folder: Path) -> Tensor:
    if not torch.equal(t, t.round()):
        raise BadInput(
            f"{folder}: found a time between two steps, expected steps, as the model's "
            "time_embedding_type is 'learned'"
        )
    return t.long()


def _unet(diffusers: Any, folder: Path, weights: Path, variant: str | None) -> Any:
    if weights.suffix == ".bin":
        # The library's own error does not say what a file with code in it is.
        torch_file.load(weights, "weights of a U-Net")
    with _errors_named(weights, f"weights of the U-Net of {folder / 'config.json'}"):
        unet, found = diffusers.UNet2DModel.from_pretrained(
            folder,
            variant=variant,
            use_safetensors=weights.suffix == ".safetensors",
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    for fault, names in found.items():
        if names:
            raise BadInput(
                f"{weights}: found {fault.replace('_', ' ')}: {', '.join(map(str, names[:5]))}, "
                f"expected the weights of the U-Net of {folder / 'config.json'}"
            )
    channels, out_channels = unet.config["in_channels"], unet.config["out_channels"]
    # Some models append the variances that they learnt.
    if out_channels not in (channels, 2 * channels):
        raise BadInput(
            f"{folder / 'config.json'}: out_channels: found {out_channels}, expected {channels}, "
            "those of the input, or twice as many"
        )
    return unet.eval().requires_grad_(False)


# Files.


def _scheduler_file(folder: Path) -> Path:
    name = "scheduler_config.json"
    places = (
        folder / "scheduler" / name,
        folder / name,
        folder.absolute().parent / "scheduler" / name,
    )
    for place in places:
        if place.is_file():
            return place
    raise MissingFile(
        f"{folder}: found no {name}, expected it there or in a folder scheduler, as it says what "
        "the model was trained on"
    )


def _weights(folder: Path, variant: str | None) -> Path:
    stem = "diffusion_pytorch_model" + (f".{variant}" if variant else "")
    for ending in ("safetensors", "bin"):
        if (folder / f"{stem}.{ending}").is_file():
            return folder / f"{stem}.{ending}"
    raise MissingFile(
        f"{folder}: found no {stem}.safetensors and no {stem}.bin, expected the weights of a U-Net"
    )


def _read(path: Path, *classes: str) -> dict[str, Any]:
    """The configuration in ``path``, which is of one of the ``classes``."""
    if not path.is_file():
        raise MissingFile(f"{path}: found no such file, expected the configuration of a model")
    config = _json(path)
    if config.get("_class_name") not in classes:
        raise BadInput(
            f"{path}: _class_name: found {config.get('_class_name')!r}, expected "
            f"{'one of ' if len(classes) > 1 else ''}{', '.join(classes)}"
        )
    return config


@contextmanager
def _errors_named(path: Path, expected: str) -> Iterator[None]:
    """Within, an error of the library is bad input: what is in ``path`` is not as ``expected``."""
    try:
        yield
    # It raises what it likes.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(
            f"{path}: found {type(error).__name__}: {reason}, expected {expected}"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: found {error}, expected JSON") from None
    if not isinstance(config, dict):
        raise BadInput(f"{path}: found a {type(config).__name__}, expected a mapping")
    return config


def _shape(config: Any) -> tuple[int, ...] | None:
    size = config["sample_size"]
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return config["in_channels"], height, width
