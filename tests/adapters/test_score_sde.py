"""A published checkpoint as a field; tests/adapters/test_published.py has the reader."""

import pytest
import torch
from test_published import published_file, tiny_network

from qcsbm.adapters.load import load
from qcsbm.adapters.score_sde import from_score_sde
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.files import sha256
from qcsbm.runtime.seeding import generator
from qcsbm.score.sde import VE

TINY = {"nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]}
IMAGES = {"image_size": 8, "channels": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "checkpoint.pth"
    torch.save(published_file(tiny_network(init_scale=1.0)), path)
    return path


def test_score_is_the_averaged_network_divided_by_the_noise(checkpoint):
    network = tiny_network(init_scale=1.0).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            # What `published_file` adds to the averages; the frequencies have none.
            if parameter.requires_grad:
                parameter += 1
    field = from_score_sde(checkpoint, TINY, **IMAGES, sigma_min=0.02, sigma_max=30.0)
    assert (field.kind, field.schedule, field.shape) == ("score", VE(0.02, 30.0), (1, 8, 8))
    assert field.data_range == (0, 1) and field.name == "checkpoint.pth"
    assert field.files == {str(checkpoint): sha256(checkpoint)}
    x, t = torch.rand(2, 1, 8, 8, generator=generator(0, "x")), torch.tensor([0.1, 0.8])
    sigma = 0.02 * 1500**t
    expected = network(x, sigma) / sigma[:, None, None, None]
    torch.testing.assert_close(field(x, t), expected, rtol=1e-4, atol=1e-4)
    assert not field.module.training
    by_name = load(str(checkpoint), network=TINY, **IMAGES, sigma_min=0.02, sigma_max=30.0)
    assert torch.equal(by_name(x, t), field(x, t))


def test_global_random_numbers_are_left_as_they_are(checkpoint):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    from_score_sde(checkpoint, TINY, **IMAGES)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("network", "settings", "sentence"),
    [
        ({"nf": "many"}, {}, "network.nf: found 'many', expected"),
        ({"depth": 3}, {}, "network.depth: "),
        ({"nf": 16}, {}, "model does not fit the network: wrong in shape: all_modules.0.W"),
        ({}, {"sigma_min": -1.0}, "sigma_min: found -1.0, expected"),
    ],
)
def test_another_network_is_refused(network, settings, sentence, checkpoint):
    with pytest.raises(BadInput) as refusal:
        from_score_sde(checkpoint, TINY | network, **IMAGES, **settings)
    assert str(refusal.value).startswith(f"{checkpoint}: {sentence}")
