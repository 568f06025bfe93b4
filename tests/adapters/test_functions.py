"""Functions of one's own: of NumPy arrays, and in files of the working directory."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qcsbm.adapters.functions import from_function, from_numpy
from qcsbm.adapters.load import load
from qcsbm.runtime.errors import BadInput, MissingFile
from qcsbm.runtime.files import sha256
from qcsbm.score.schedules import EDM
from qcsbm.score.sde import VP

MINE = """
import torch
import qcsbm

def of_both(x, t):
    return x * t[:, None]

def alone(x):
    return 2 * x

network = torch.nn.Linear(2, 2)
field = qcsbm.Field(of_both, "velocity", qcsbm.RectifiedFlow(), "my flow", files={"w": "1"})
number = 3

class Network(torch.nn.Module):
    pass
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory that is not on Python's path, but for mine.py."""
    monkeypatch.chdir(tmp_path)
    before = dict(sys.modules)
    Path("mine.py").write_text(MINE)
    yield tmp_path
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


X, T = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([0.5, 2.0])


def test_a_function_is_of_x_and_t_under_a_schedule_and_of_x_alone_without(here):
    Path("weights").write_text("w")
    field = from_function("mine:of_both", "epsilon", VP(), data_range=(0.0, 1.0), files=["weights"])
    assert torch.equal(field(X, T), X * T[:, None])
    assert (field.kind, field.schedule, field.data_range) == ("epsilon", VP(), (0, 1))
    assert field.files == {name: sha256(name) for name in ("mine.py", "weights")}
    assert field.name == "mine:of_both" and field.module is None and field.differentiable
    alone = from_function("mine:alone")
    assert torch.equal(alone(X, T), 2 * X)
    assert (alone.kind, alone.schedule) == ("score", None)


def test_a_module_brings_its_parameters_along(here):
    field = from_function("mine:network", "force")
    assert isinstance(field.module, torch.nn.Linear) and field.kind == "force"
    field.module.double()
    assert field(X.double(), T).dtype == torch.float64


def test_a_field_says_by_itself_what_it_is(here):
    field = from_function("mine:field")
    assert (field.name, field.kind) == ("my flow", "velocity")
    assert field.files == {"w": "1", "mine.py": sha256("mine.py")}
    with pytest.raises(BadInput, match="mine:field: found a Field, which has a kind, schedule"):
        from_function("mine:field", schedule=EDM())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mine:number", "mine:number: found an object of type int under that name in mine.py, exp"),
        ("mine:Network", "mine:Network: found an object of type type under that name in mine.py, "),
        ("mine:gone", "mine:gone: found nothing under that name in mine.py, expected a function"),
        ("gone:f", "gone:f: found no gone.py in "),
    ],
)
def test_what_is_no_function_is_refused(name, sentence, here):
    with pytest.raises(BadInput) as refusal:
        from_function(name)
    assert str(refusal.value).startswith(sentence)


def test_a_missing_file_of_the_function_is_refused(here):
    with pytest.raises(MissingFile, match="weights: found no such file, expected one that mine:a"):
        from_function("mine:alone", files=["weights"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_have_the_type_of_the_tensors(dtype):
    told = []

    def function(x, t):
        told.append((x, t))
        return x[:, ::-1] * t[:, None]

    field = from_numpy(function, "denoiser", EDM(), name="mine")
    x, t = X.to(dtype).requires_grad_(), T.to(dtype)
    found = field(x, t)
    assert found.dtype == dtype and torch.equal(found, X.to(dtype).flip(1) * t[:, None])
    for array, tensor in zip(told[0], (x, t), strict=True):
        assert isinstance(array, np.ndarray)
        assert np.array_equal(array, tensor.detach().numpy())
    assert not field.differentiable and not found.requires_grad
    assert (field.kind, field.schedule, field.name) == ("denoiser", EDM(), "mine")


def test_a_function_of_x_alone_is_not_told_a_time():
    assert torch.equal(from_numpy(lambda x: x + 1)(X, T), X + 1)
    # PyTorch knows no negative strides.
    assert torch.equal(from_numpy(lambda x: x[:, ::-1])(X, T), X.flip(1))


# A model by its name.


def test_a_name_with_a_colon_is_a_function_with_its_settings(here):
    field = load("mine:of_both", kind="x0", schedule=VP(), data_range=(0.0, 1.0))
    assert (field.kind, field.schedule) == ("x0", VP())


def test_settings_of_another_sort_of_model_are_refused(here):
    with pytest.raises(BadInput) as refusal:
        load("mine:of_both", label=3)
    assert str(refusal.value) == (
        "mine:of_both: found the setting label, expected some of kind, schedule, data_range, files "
        "for a model of this sort"
    )
    Path("folder").mkdir()
    with pytest.raises(BadInput, match="folder: found the setting kind, expected some of label, "):
        load("folder", kind="score")


@pytest.mark.parametrize("name", ["m.pkl", "m.pt", "m.ckpt", "m.bin"])
def test_pickles_are_refused_with_a_way_out(name, here):
    Path(name).write_bytes(b"\x80\x04.")
    with pytest.raises(BadInput, match=f"{name}: found a file that may hold code, .*safetensors, "):
        load(name)


def test_other_files_and_names_are_refused_with_what_is_expected(here):
    for name, found in [("mine.py", "a file"), ("gone", "nothing of that name")]:
        with pytest.raises(BadInput, match=f"{name}: found {found}, expected the folder of a mod"):
            load(name)
    with pytest.raises(MissingFile, match="gone.pth: no such file, expected a published NCSN"):
        load("gone.pth")
    with pytest.raises(BadInput, match="folder: found no scheduler|folder/unet/config.json: found"):
        Path("folder").mkdir()
        load("folder")
