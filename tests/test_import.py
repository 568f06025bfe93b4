"""What importing the package takes: little time, and nothing that is an extra."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

import qcsbm

# Dependencies of the workflow, of figures and of adapters.
EXTRAS = {
    "ase",
    "azula",
    "diffusers",
    "efficientnet_lite_pytorch",
    "matplotlib",
    "pandas",
    "pytorch_fid",
    "skimage",
    "sklearn",
    "snakemake",
    "tabulate",
    "threadpoolctl",
    "torchvision",
    "yaml",
}

REPORT = """
import json, sys, time
print(json.dumps([time.process_time(), sorted({name.split(".")[0] for name in sys.modules})]))
"""

# As if none of the extras was installed.
WITHOUT_EXTRAS = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""

LOSS = """
import torch, qcsbm
score = torch.nn.Linear(3, 3)
x = torch.randn(5, 3)
loss = qcsbm.quasi_conservative_loss(score, x)
loss.mean().backward()
same = qcsbm.quasi_conservative_loss(score, x, derivatives="finite_differences", step=1e-2)
print(loss.shape == same.shape == (5,) and bool(score.weight.grad.norm() > 0))
"""

AUDIT = """
import torch, qcsbm
x = torch.randn(30, 2)
report = qcsbm.audit(lambda x: x @ torch.tensor([[-1.0, -0.5], [0.5, -1.0]]), x)
print(abs(report.mean.nasym.value - 0.2) < 1e-6)
"""


def run(program):
    """What a Python of its own prints."""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_takes_no_time_and_neither_torch_nor_an_extra():
    seconds, modules = json.loads(run("import qcsbm" + REPORT))
    assert seconds < 2
    assert "qcsbm" in modules and not {"torch", "numpy", *EXTRAS} & set(modules)


def test_jobs_have_deterministic_kernels_without_the_compiler():
    deterministic = run(
        "import sys, torch, qcsbm.runtime.device as device; device.fix_arithmetic();"
        "print(torch.get_deterministic_debug_mode(), 'torch._dynamo' in sys.modules)"
    )
    assert deterministic.split() == ["2", "False"]


def test_importing_every_public_name_takes_no_extra():
    _, modules = json.loads(run("from qcsbm import *" + REPORT))
    assert "torch" in modules and not EXTRAS & set(modules)


def test_public_names_are_all_there_and_no_others():
    assert qcsbm.__all__ == sorted(qcsbm.__all__)
    assert set(qcsbm.__all__) == set(qcsbm._PUBLIC) and set(qcsbm.__all__) <= set(dir(qcsbm))
    assert all(getattr(qcsbm, name).__name__ == name for name in qcsbm.__all__)
    with pytest.raises(AttributeError, match="module 'qcsbm' has no attribute 'anything'"):
        _ = qcsbm.anything


@pytest.mark.parametrize("program", [LOSS, AUDIT], ids=["loss", "audit"])
def test_the_core_runs_where_no_extra_is_installed(program):
    assert run(WITHOUT_EXTRAS + program).split() == ["True"]


def test_extras_are_blocked_where_the_tests_say_so():
    with pytest.raises(AssertionError, match="No module named 'yaml'"):
        run(WITHOUT_EXTRAS + "import yaml")
