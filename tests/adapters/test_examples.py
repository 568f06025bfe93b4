"""The examples in the documentation of adapters."""

import doctest

import pytest

import qcsbm
from qcsbm.adapters import azula, edm, functions


@pytest.mark.parametrize("module", [azula, edm, functions], ids=lambda module: module.__name__)
def test_examples_give_what_they_say(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_adapters_and_schedules_are_public():
    names = ["azula", "diffusers", "edm", "function", "numpy", "score_sde"]
    for name in [f"from_{name}" for name in names] + [
        "Discrete",
        "EDM",
        "RectifiedFlow",
        "VE",
        "VP",
    ]:
        assert name in qcsbm.__all__ and callable(getattr(qcsbm, name))
