"""Checkpoints: what is written comes back, in the same bytes, and only where it fits."""

import copy

import pytest
import torch
from torch import nn

from qcsbm.training import checkpoint
from qcsbm.training.checkpoint import TrainingState


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[0].bias.requires_grad_(False)
    return model


@pytest.fixture
def state(model):
    """Every part has other numbers than the others; the fixed bias has no moments."""
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    trained = {name: weights[name] for name in checkpoint.names(model)}
    ema = {name: (tensor + 1).to(tensor.dtype) for name, tensor in weights.items()}
    moments = [{name: w + i for name, w in trained.items()} for i in (2, 3, 4)]
    return TrainingState(
        7,
        weights,
        ema,
        *moments[:2],
        {"b": 1, "a": [2]},
        [[7, 1.5, None, 0.5]],
        [[1.0]],
        moments[2],
    )


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_state_comes_back(state, tmp_path):
    checkpoint.save(tmp_path / "a", state)
    found = checkpoint.load(tmp_path / "a", step=7)
    for part in checkpoint.PARTS:
        assert same(getattr(found, part), getattr(state, part)), part
    for name in ("step", "spec", "curve", "window"):
        assert getattr(found, name) == getattr(state, name)
    with pytest.raises(ValueError, match="found a checkpoint at step 7, expected step 6"):
        checkpoint.load(tmp_path / "a", step=6)


def test_bytes_do_not_depend_on_the_order_of_keys_or_of_memory(state, tmp_path):
    checkpoint.save(tmp_path / "a", state)
    state.spec = dict(reversed(state.spec.items()))
    state.model = {
        name: tensor.T.contiguous().T if tensor.dim() == 2 else tensor
        for name, tensor in state.model.items()
    }
    checkpoint.save(tmp_path / "b", state)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_model_is_loaded_for_evaluation(weights, model, state, tmp_path):
    checkpoint.save(tmp_path / "a", state)
    fresh = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    loaded = checkpoint.load_weights(fresh, tmp_path / "a", weights, 7)
    assert loaded is fresh
    assert same(loaded.state_dict(), state.ema if weights == "ema" else state.model)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with pytest.raises(ValueError, match="expected step 8"):
        checkpoint.load_weights(fresh, tmp_path / "a", weights, 8)


def test_moments_and_step_come_back_to_their_parameters(model, state):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained)
    assert checkpoint.adam_moments(optimiser, model) == ({}, {})
    checkpoint.restore_adam(optimiser, model, state)
    first, second = checkpoint.adam_moments(optimiser, model)
    assert same(first, state.exp_avg) and same(second, state.exp_avg_sq)
    assert "0.bias" not in first
    assert all(optimiser.state[parameter]["step"] == 7 for parameter in trained)
    # A state before the first step has none.
    state.exp_avg, state.exp_avg_sq = {}, {}
    optimiser = torch.optim.Adam(trained)
    checkpoint.restore_adam(optimiser, model, state)
    assert not optimiser.state


DAMAGES = {
    "shape": (lambda tensor: tensor[:1], r"found \(1,.*\), expected \("),
    "type": (lambda tensor: tensor.double(), "found torch.float64, expected torch.float32"),
    "value": (lambda tensor: tensor * float("nan"), "found a value that is not finite"),
    "missing": (None, "found nothing, expected"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", checkpoint.PARTS)
def test_a_tensor_that_does_not_fit_is_named(part, damage, model, state):
    checkpoint.require_fit(state, model, "a.safetensors")
    change, sentence = DAMAGES[damage]
    tensors = dict(getattr(state, part))
    last = tensors.pop("2.weight" if damage != "shape" else "0.weight")
    name = "0.weight" if damage == "shape" else "2.weight"
    if change:
        tensors[name] = change(last)
    damaged = copy.copy(state)
    setattr(damaged, part, tensors)
    with pytest.raises(ValueError, match=f"^a.safetensors: tensor {name}: {sentence}"):
        checkpoint.require_fit(damaged, model, "a.safetensors")
    if part == "model":
        with pytest.raises(ValueError, match=f"^a.safetensors: tensor {name}: {sentence}"):
            checkpoint.restore(model, tensors, "a.safetensors")


def test_a_state_without_moments_fits(model, state):
    state.exp_avg, state.exp_avg_sq, state.qc_grad = {}, {}, {}
    checkpoint.require_fit(state, model, "a")
    state.exp_avg = {"extra": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"tensor 0.weight: found nothing, expected \(3, 2\)"):
        checkpoint.require_fit(state, model, "a")
    state.model["3.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"tensor 3.weight: found \(1,\), expected nothing$"):
        checkpoint.require_fit(state, model, "a")
