"""Models that the library itself wrote: tiny, with random weights."""

import doctest
import json
import socket
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
    UNet2DModel,
)

from qcsbm.adapters.diffusers import SCHEDULERS, from_diffusers
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import sha256
from qcsbm.runtime.seeding import generator
from qcsbm.score.kinds import denoised
from qcsbm.score.schedules import EDM, RectifiedFlow

TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}


def saved(folder, scheduler=None, **settings):
    """A pipeline in ``folder`` and its U-Net, whose dropout is on as after training."""
    torch.manual_seed(1)
    unet = UNet2DModel(**(TINY | settings), dropout=0.5)
    DDPMPipeline(unet, scheduler or DDPMScheduler()).save_pretrained(folder)
    # As the field has it: with gradients some kernels round otherwise.
    return unet.eval().requires_grad_(False)


def images(*shape):
    return torch.randn(*(shape or (3, 1, 8, 8)), generator=generator(0, "images"))


STEPS = torch.tensor([0.0, 417.0, 999.0])


@pytest.mark.parametrize(
    ("prediction", "kind"), [("epsilon", "epsilon"), ("sample", "x0"), ("v_prediction", "v")]
)
@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler, EulerDiscreteScheduler])
def test_posterior_mean_is_what_the_library_itself_makes_of_the_output(
    scheduler, prediction, kind, tmp_path
):
    unet = saved(tmp_path, scheduler(prediction_type=prediction, beta_schedule="squaredcos_cap_v2"))
    field = from_diffusers(tmp_path)
    assert field.kind == kind and field.shape == (1, 8, 8) and field.data_range == (-1, 1)
    x = images()
    assert torch.equal(field(x, STEPS), unet(x, STEPS).sample)
    found = denoised(kind, field.schedule, field(x, STEPS), x, STEPS)
    # One step of DDIM says what it takes the data to be.
    library = DDIMScheduler(
        prediction_type=prediction, beta_schedule="squaredcos_cap_v2", clip_sample=False
    )
    library.set_timesteps(1000)
    for i, step in enumerate(STEPS.long().tolist()):
        output = unet(x[i : i + 1], step).sample
        expected = library.step(output, step, x[i : i + 1]).pred_original_sample
        # The table is in float32, where 1 − ᾱ of the first steps has four digits.
        torch.testing.assert_close(found[i : i + 1], expected, rtol=1e-3, atol=1e-3)


def test_noise_is_that_which_the_library_adds(tmp_path):
    scheduler = DDPMScheduler()
    saved(tmp_path, scheduler)
    schedule = from_diffusers(tmp_path).schedule
    x_0, z = images(), torch.randn(3, 1, 8, 8, generator=generator(0, "z"))
    expected = scheduler.add_noise(x_0, z, STEPS.long())
    mean, std = (
        value[:, None, None, None] for value in (schedule.mean(STEPS), schedule.std(STEPS))
    )
    torch.testing.assert_close(mean * x_0 + std * z, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheduler", [DDPMScheduler, EulerDiscreteScheduler])
def test_a_last_step_without_data_is_one_whatever_the_sampler(scheduler, tmp_path):
    saved(tmp_path, scheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    schedule = from_diffusers(tmp_path).schedule
    assert schedule.mean(STEPS)[2] == 0 and (schedule.mean(STEPS)[:2] > 0).all()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_edm_is_a_denoiser_with_the_preconditioning_of_its_scheduler(
    scheduler, prediction, tmp_path
):
    unet = saved(tmp_path, scheduler(prediction_type=prediction, sigma_data=0.4, sigma_max=50))
    field = from_diffusers(tmp_path)
    assert (field.kind, field.schedule) == ("denoiser", EDM(0.002, 50))
    x, sigma = images(2, 1, 8, 8), torch.tensor([0.1, 20.0])
    # Karras et al. (2022), Table 1; v is minus that.
    noise, variance = sigma[:, None, None, None], sigma[:, None, None, None] ** 2 + 0.4**2
    inner = unet(x / variance.sqrt(), sigma.log() / 4).sample
    sign = 1 if prediction == "epsilon" else -1
    expected = 0.4**2 / variance * x + sign * noise * 0.4 / variance.sqrt() * inner
    torch.testing.assert_close(field(x, sigma), expected)


def test_flow_matching_is_a_velocity_whose_time_counts_to_a_thousand(tmp_path):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    unet = saved(tmp_path, scheduler)
    field = from_diffusers(tmp_path)
    assert (field.kind, field.schedule) == ("velocity", RectifiedFlow())
    x, t = images(2, 1, 8, 8), torch.tensor([0.25, 0.9])
    assert torch.equal(field(x, t), unet(x, 1000 * t).sample)
    # The library's own noise at the time it calls 900.
    x_0, z = images(1, 1, 8, 8), torch.randn(1, 1, 8, 8, generator=generator(0, "z"))
    step = scheduler.timesteps[600:601]
    t = step / 1000
    noisy = field.schedule.mean(t) * x_0 + field.schedule.std(t) * z
    torch.testing.assert_close(noisy, scheduler.scale_noise(x_0, step, z))


def test_score_sde_is_a_score_told_the_noise_level(tmp_path):
    scheduler = ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=30.0)
    unet = saved(tmp_path, scheduler, time_embedding_type="fourier", center_input_sample=True)
    field = from_diffusers(tmp_path)
    assert (field.kind, field.schedule) == ("score", EDM(0.02, 30.0))
    assert field.data_range == (0, 1)
    x, sigma = images(2, 1, 8, 8), torch.tensor([0.1, 20.0])
    assert torch.equal(field(x, sigma), unet(x, sigma).sample)


@pytest.mark.parametrize("safe", [True, False])
def test_files_are_those_that_were_read(safe, tmp_path):
    unet = saved(tmp_path)
    if not safe:
        (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
        unet.save_pretrained(tmp_path / "unet", safe_serialization=False)
    field = from_diffusers(tmp_path)
    ending = "safetensors" if safe else "bin"
    names = ["unet/config.json", "scheduler/scheduler_config.json"]
    names.append(f"unet/diffusion_pytorch_model.{ending}")
    assert field.files == {str(tmp_path / name): sha256(tmp_path / name) for name in names}
    assert field.name == tmp_path.name
    for name, weight in field.module.named_parameters():
        assert torch.equal(weight, unet.get_parameter(name)) and not weight.requires_grad


def test_a_unet_may_lie_with_its_scheduler_or_beside_it(tmp_path):
    unet = saved(tmp_path / "pipeline")
    DDPMScheduler(beta_end=0.05).save_pretrained(tmp_path / "flat")
    unet.save_pretrained(tmp_path / "flat")
    unet.save_pretrained(tmp_path / "flat", variant="other")
    x = images()
    for folder in (tmp_path / "pipeline/unet", tmp_path / "flat"):
        assert torch.equal(from_diffusers(folder)(x, STEPS), unet(x, STEPS).sample)
    ends = [from_diffusers(tmp_path / name).schedule.ratio[-1] for name in ("pipeline", "flat")]
    assert ends[0] != ends[1]
    other = from_diffusers(tmp_path / "flat", variant="other")
    assert any(name.endswith("model.other.safetensors") for name in other.files)


def test_learnt_variances_are_left_out(tmp_path):
    unet = saved(tmp_path, out_channels=2)
    x = images()
    assert torch.equal(from_diffusers(tmp_path)(x, STEPS), unet(x, STEPS).sample[:, :1])


def test_learnt_times_are_steps(tmp_path):
    unet = saved(tmp_path, time_embedding_type="learned", num_train_timesteps=1000)
    field, x = from_diffusers(tmp_path), images()
    assert torch.equal(field(x, STEPS), unet(x, STEPS.long()).sample)
    with pytest.raises(BadInput, match="found a time between two steps, expected steps"):
        field(x, STEPS + 0.5)


def test_latents_have_no_known_range(tmp_path):
    saved(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"vqvae": ["diffusers", "VQ"]}))
    assert from_diffusers(tmp_path).data_range is None


def test_in_float64_the_field_follows_its_module(tmp_path):
    unet = saved(tmp_path)
    field, x = from_diffusers(tmp_path), images()
    field.module.double()
    found = field(x.double(), STEPS.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), unet(x, STEPS).sample, rtol=1e-4, atol=1e-5)


# Classes.


def test_guidance_moves_from_no_class_to_the_class_and_beyond(tmp_path):
    unet = saved(tmp_path, num_class_embeds=4)
    x = images()

    def of_class(number):
        return unet(x, STEPS, torch.full((3,), number)).sample

    assert torch.equal(from_diffusers(tmp_path, label=1)(x, STEPS), of_class(1))
    for settings, null in [({}, 3), ({"null_label": 0}, 0)]:
        for weight in (0.0, 1.0, 2.5):
            field = from_diffusers(tmp_path, label=1, guidance=weight, **settings)
            expected = (1 - weight) * of_class(null) + weight * of_class(1)
            torch.testing.assert_close(field(x, STEPS), expected)
    assert field.name == f"{tmp_path.name}, class 1, guidance 2.5"


@pytest.mark.parametrize(
    ("classes", "settings", "sentence"),
    [
        (4, {}, "found a model that needs class labels, expected label, one of 0 to 3"),
        (4, {"label": 4}, "found label 4, expected one of 0 to 3"),
        (4, {"label": 1, "guidance": 2.0, "null_label": -1}, "found label -1, expected one of"),
        (4, {"label": 1, "null_label": 3}, "found null_label without guidance"),
        (None, {"label": 1}, "found a model without classes, expected no label"),
        (None, {"guidance": 1.0}, "found a model without classes, expected no label"),
    ],
)
def test_labels_that_do_not_fit_the_model_are_refused(classes, settings, sentence, tmp_path):
    saved(tmp_path, num_class_embeds=classes)
    with pytest.raises(BadInput) as refusal:
        from_diffusers(tmp_path, **settings)
    assert str(refusal.value).startswith(f"{tmp_path}: {sentence}")


# What is refused.


def change(name, **settings):
    def corrupt(folder):
        path = folder / name
        config = json.loads(path.read_text()) | settings
        path.write_text(json.dumps(config))

    return corrupt


def remove(name):
    return lambda folder: (folder / name).unlink()


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def other_weights(folder):
    unet = UNet2DModel(**(TINY | {"layers_per_block": 2}))
    unet.save_pretrained(folder / "other")
    name = "diffusion_pytorch_model.safetensors"
    (folder / "other" / name).replace(folder / "unet" / name)


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return type(self.marker).touch, (self.marker,)


def code(folder):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"a": Payload(folder / "marker")}, folder / "unet/diffusion_pytorch_model.bin")


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("corrupt", "sentence"),
    [
        (remove(UNET), "{folder}/unet/config.json: found no such file, expected the configuration"),
        (remove(SCHEDULER), "{folder}: found no scheduler_config.json, expected it there or in a"),
        (
            remove(WEIGHTS),
            "{folder}/unet: found no diffusion_pytorch_model.safetensors and no diff",
        ),
        (put(UNET, b"{"), "{folder}/unet/config.json: found Expecting property name"),
        (put(UNET, b"[]"), "{folder}/unet/config.json: found a list, expected a mapping"),
        (
            change(UNET, _class_name="UNet2DConditionModel"),
            "{folder}/unet/config.json: _class_name: found 'UNet2DConditionModel', expected UNet2",
        ),
        (
            change(UNET, block_out_channels=[8]),
            "{folder}/unet/diffusion_pytorch_model.safetensors: found ValueError: Must provide",
        ),
        (
            change(UNET, out_channels=3),
            "{folder}/unet/diffusion_pytorch_model.safetensors: found ",
        ),
        (
            change(UNET, class_embed_type="timestep", num_class_embeds=None),
            "{folder}/unet/diffusion_pytorch_model.safetensors: found missing keys: class",
        ),
        (
            change(SCHEDULER, _class_name="CMStochasticIterativeScheduler"),
            "{folder}/scheduler/scheduler_config.json: _class_name: found 'CMSto",
        ),
        (
            change(SCHEDULER, prediction_type="flow_prediction"),
            "{folder}/scheduler/scheduler_config.json: prediction_type: found 'flow",
        ),
        (
            change(SCHEDULER, beta_schedule="new"),
            "{folder}/scheduler/scheduler_config.json: found NotImplementedError: new is not",
        ),
        (put(WEIGHTS, b"cut short"), "{folder}/unet/diffusion_pytorch_model.safetensors: found "),
        (other_weights, "{folder}/unet/diffusion_pytorch_model.safetensors: found unexpected keys"),
        (code, "{folder}/unet/diffusion_pytorch_model.bin: found the Python object "),
    ],
)
def test_a_folder_that_is_no_model_is_refused_in_one_sentence(corrupt, sentence, tmp_path):
    saved(tmp_path)
    corrupt(tmp_path)
    with pytest.raises(BadInput) as refusal:
        from_diffusers(tmp_path)
    found = str(refusal.value)
    assert found.startswith(sentence.format(folder=tmp_path)), found
    assert "expected" in found and "\n" not in found
    assert not (tmp_path / "marker").exists()


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone: found no such folder, expected one that"):
        from_diffusers(tmp_path / "gone")


def test_a_class_of_another_kind_and_channels_of_conditions_are_refused(tmp_path):
    saved(tmp_path, in_channels=3)
    with pytest.raises(BadInput, match="out_channels: found 1, expected 3, those of the input"):
        from_diffusers(tmp_path)
    saved(tmp_path, class_embed_type="timestep")
    with pytest.raises(BadInput, match="class_embed_type: found 'timestep', expected none"):
        from_diffusers(tmp_path)


def test_nothing_is_fetched(tmp_path, monkeypatch):
    saved(tmp_path)

    connections = []
    monkeypatch.setattr(socket.socket, "connect", lambda *address: connections.append(address))
    assert from_diffusers(tmp_path).files
    assert connections == []


def test_examples_of_the_documentation_give_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs/adapters.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 5 and result.failed == 0


def test_schedulers_are_those_of_the_library():
    for name in SCHEDULERS:
        assert hasattr(diffusers, name)
