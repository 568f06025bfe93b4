"""The classifier and the network of the plane, layer by layer from their weights."""

import torch
import torch.nn.functional as F
from torch import nn

from qcsbm.nets.classifier import Classifier
from qcsbm.nets.mlp import MLP
from qcsbm.runtime.seeding import generator


def with_random_weights(network):
    draws = generator(0, "weights")
    for parameter in network.double().parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=draws) / 4)
    return {name: parameter.data for name, parameter in network.named_parameters()}


def test_classifier_halves_twice_and_pools_to_four_regions():
    network = Classifier(channels=3, classes=5)
    w = with_random_weights(network)
    shapes = {name: tuple(tensor.shape) for name, tensor in w.items() if tensor.dim() > 1}
    assert shapes == {
        "conv_0.weight": (32, 3, 3, 3),
        "conv_1.weight": (64, 32, 3, 3),
        "conv_2.weight": (64, 64, 3, 3),
        "dense.weight": (64, 256),
        "head.weight": (5, 64),
    }
    x = torch.rand(2, 3, 16, 16, generator=generator(1)).double()
    h = 2 * x - 1
    for name, stride in (("conv_0", 1), ("conv_1", 2), ("conv_2", 2)):
        h = F.conv2d(F.pad(h, (1, 1, 1, 1)), w[f"{name}.weight"], w[f"{name}.bias"], stride)
        h = h.clamp(min=0)
    assert h.shape == (2, 64, 4, 4)
    pooled = h.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5)).flatten(1)
    expected = (pooled @ w["dense.weight"].T + w["dense.bias"]).clamp(min=0)
    features, logits = network(x)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(logits, expected @ w["head.weight"].T + w["head.bias"])
    assert Classifier(1, 2, width=8).conv_1.weight.shape == (16, 8, 3, 3)


def test_network_of_the_plane_adds_what_it_makes_of_point_and_noise():
    network = MLP()
    w = with_random_weights(network)

    def through(h, part, layers):
        for i, layer in enumerate(layers):
            h = h * torch.sigmoid(h) if i else h
            h = h @ w[f"{part}.{layer}.weight"].T + w[f"{part}.{layer}.bias"]
        return h

    x = torch.randn(4, 2, generator=generator(1)).double()
    sigma = torch.tensor([0.1, 1.0, 3.0, 20.0]).double()
    h = through(x, "point", (0, 2, 4)) + through(sigma.log()[:, None], "noise", (0, 2))
    expected = (h * torch.sigmoid(h)) @ w["output.weight"].T + w["output.bias"]
    torch.testing.assert_close(network(x, sigma), expected)
    widths = [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]
    assert widths == [64, 128, 256, 64, 256, 2]
