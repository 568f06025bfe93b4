import numpy as np
import pytest
import torch
from torch import nn

from qcsbm.conservativeness.products import jacobian, vjp_jvp
from qcsbm.experiment import paper_rows
from qcsbm.nets.layers import (
    Attention,
    Downsample,
    DownsampleConv,
    FourierEmbedding,
    ResidualBlock,
    StridedConv,
    Upsample,
    fan_avg_uniform_,
)
from qcsbm.nets.ncsnpp import NCSNpp
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.seeding import generator
from qcsbm.schema import networks

# Both filters are asymmetric where a test must tell a convolution from a correlation.
TAPS = (1, 3, 3, 1)
ASYMMETRIC = (1, 4, 2, 3)


def small_network(image_size=8, channels=1, **changes) -> NCSNpp:
    """A float64 network in evaluation mode, initialised away from its zero output."""
    torch.manual_seed(0)
    keys = {
        "type": "ncsnpp",
        "nf": 8,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
        "init_scale": 1.0,
    }
    settings = networks.NCSNpp(**(keys | changes))
    return NCSNpp(image_size, channels, settings).double().eval()


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(1, *shape), dtype=torch.float64)


def correlate(x: np.ndarray, kernel: np.ndarray, stride: int = 1) -> np.ndarray:
    """The valid correlation of images (C, H, W) with one filter, by definition."""
    k = len(kernel)
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
    return (windows * kernel).sum((-2, -1))[:, ::stride, ::stride]


def insert_zeros(x: np.ndarray) -> np.ndarray:
    stuffed = np.zeros((len(x), 2 * x.shape[1], 2 * x.shape[2]))
    stuffed[:, ::2, ::2] = x
    return stuffed


def pad(x: np.ndarray, before: int, after: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (before, after), (before, after)))


def flipped_filter(taps: tuple) -> np.ndarray:
    taps = np.array(taps[::-1], dtype=float)
    return np.outer(taps, taps) / taps.sum() ** 2


def test_the_network_of_the_paper_is_the_published_deep_continuous_one():
    paper = paper_rows.row("cifar10", "u", None)["network"]
    with torch.device("meta"):
        network = NCSNpp(32, 3, networks.NCSNpp(**paper))
    assert sum(p.numel() for p in network.parameters()) == 107_586_947
    # The published state has 964 entries, the unused noise levels among them.
    assert len(network.state_dict()) == 963
    assert sum(p.requires_grad for p in network.parameters()) == 962


@pytest.mark.parametrize("taps", [TAPS, ASYMMETRIC, (1, 1), (1, 2, 5, 5, 2, 2)])
def test_downsampling_is_a_padded_convolution_of_which_every_second_pixel_stays(taps):
    x = normal(1, 3, 8, 8)
    p = len(taps) - 2
    expected = correlate(pad(x[0].numpy(), (p + 1) // 2, p // 2), flipped_filter(taps), stride=2)
    np.testing.assert_allclose(Downsample(taps).double()(x)[0], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("taps", [TAPS, ASYMMETRIC, (1, 1), (1, 2, 5, 5, 2, 2)])
def test_upsampling_is_zero_insertion_and_a_convolution_with_gain_four(taps):
    x = normal(1, 3, 4, 4)
    p = len(taps) - 2
    stuffed = pad(insert_zeros(x[0].numpy()), (p + 1) // 2 + 1, p // 2)
    expected = 4 * correlate(stuffed, flipped_filter(taps))
    np.testing.assert_allclose(Upsample(taps).double()(x)[0], expected, rtol=1e-6, atol=1e-7)


def convolve_3x3(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """What a convolutional layer computes, by definition: x (in, H, W), weight (out, in, 3, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return np.einsum("chwij,ocij->ohw", windows[:, ::stride, ::stride], weight)


@pytest.mark.parametrize("taps", [TAPS, ASYMMETRIC, (1, 1)])
def test_downsampling_convolutions_pad_once_around_filter_and_weights(taps):
    x = normal(1, 2, 6, 6)
    down = DownsampleConv(2, 3, taps).double()
    with torch.no_grad():
        down.conv.bias.copy_(torch.arange(3))
    bias = np.arange(3)[:, None, None]
    p = len(taps)
    smoothed = correlate(pad(x[0].numpy(), (p + 1) // 2, p // 2), flipped_filter(taps))
    expected = convolve_3x3(smoothed, down.conv.weight.detach().numpy(), stride=2) + bias
    np.testing.assert_allclose(down(x)[0].detach(), expected, rtol=1e-6, atol=1e-6)


def test_the_strided_convolution_pads_on_the_right_and_below():
    x, layer = normal(1, 2, 6, 6), StridedConv(2, 3).double()
    with torch.no_grad():
        layer.conv.bias.copy_(torch.arange(3))
    padded = np.pad(x[0].numpy(), [(0, 0), (0, 1), (0, 1)])
    expected = convolve_3x3(padded, layer.conv.weight.detach().numpy(), stride=2)
    expected += np.arange(3)[:, None, None]
    np.testing.assert_allclose(layer(x)[0].detach(), expected, rtol=1e-6, atol=1e-6)


def test_attention_weighs_values_by_the_softmax_of_scaled_products():
    torch.manual_seed(0)
    layer = Attention(8, skip_rescale=True, init_scale=1.0).double()
    x = normal(1, 8, 2, 3)
    h = torch.nn.functional.group_norm(x, 2, eps=1e-6).flatten(2)[0]
    q, k, v, w = (
        m.weight.detach()[..., 0, 0] for m in (layer.query, layer.key, layer.value, layer.output)
    )
    out = torch.zeros_like(h)
    for i in range(6):
        logits = torch.stack([(q @ h[:, i]) @ (k @ h[:, j]) for j in range(6)]) / np.sqrt(8)
        out[:, i] = w @ sum(a * (v @ h[:, j]) for j, a in enumerate(logits.softmax(0)))
    torch.testing.assert_close(layer(x)[0].flatten(1), (x[0].flatten(1) + out) / np.sqrt(2))


def test_the_embedding_holds_sines_then_cosines_of_scaled_log_sigma():
    torch.manual_seed(0)
    layer = FourierEmbedding(1000, scale=16.0).double()
    w, sigma = layer.frequencies.numpy(), torch.tensor([0.3], dtype=torch.float64)
    # The standard deviation of 1000 normal draws is within 7 % of its mean, three standard errors.
    np.testing.assert_allclose(w.std(), 16.0, rtol=0.07)
    phase = 2 * np.pi * w * np.log(0.3)
    expected = np.concatenate([np.sin(phase), np.cos(phase)])
    np.testing.assert_allclose(layer(sigma)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("scale", "variance"), [(1.0, 1.0), (0.1, 0.1), (0.0, 1e-10)])
def test_initial_weights_are_uniform_with_variance_scale_over_fan_average(scale, variance):
    torch.manual_seed(0)
    weight = torch.empty(64, 32, 3, 3)
    fan_avg_uniform_(weight, scale)
    expected = variance / (9 * (64 + 32) / 2)
    # 18 432 uniform draws give the variance with a relative standard error of 0.9 / √18432.
    np.testing.assert_allclose(weight.var(), expected, rtol=0.02)
    np.testing.assert_allclose(weight.abs().max(), np.sqrt(3 * expected), rtol=1e-3)


@pytest.mark.parametrize(("resblock", "scale"), [("biggan", 1.0), ("ddpm", 0.1)])
def test_shortcuts_start_at_the_scale_of_their_blocks(resblock, scale):
    network = small_network(attn_resolutions=[], resblock=resblock)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    convolutions = [b.shortcut.weight for b in blocks if not isinstance(b.shortcut, nn.Identity)]
    assert convolutions
    for weight in convolutions:
        bound = (3 * scale / (sum(weight.shape[:2]) / 2)) ** 0.5
        # Of 64 or more uniform entries the largest is above 0.8 of the bound but for e⁻¹⁴.
        assert 0.8 * bound < weight.abs().max() <= bound


def test_a_fresh_network_has_zero_biases_and_starts_close_to_zero():
    network = small_network(init_scale=0.0)
    biases = [p for name, p in network.named_parameters() if name.endswith("bias")]
    assert all((b == 0).all() for b in biases)
    output = network(torch.rand(2, 1, 8, 8).double(), torch.tensor([0.1, 1.0]).double())
    assert 0 < output.abs().max() < 1e-3


VARIANTS = [
    {"resblock": resblock, "progressive": progressive, "progressive_input": inputs, "fir": fir}
    for resblock in ("biggan", "ddpm")
    for progressive in ("none", "output_skip")
    for inputs in ("none", "input_skip", "residual")
    for fir in (True, False)
] + [
    {"progressive_input": "input_skip", "progressive_combine": "cat", "ch_mult": [1, 2, 2]},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(map(str, s.values())))
def test_every_variant_uses_every_parameter_and_maps_images_to_images(settings):
    network = small_network(channels=3, **settings)
    x, sigma = normal(2, 3, 8, 8), torch.tensor([0.1, 2.0]).double()
    output = network(x, sigma)
    assert output.shape == x.shape
    gradients = torch.autograd.grad(output.square().sum(), list(network.parameters()))
    names = [name for name, _ in network.named_parameters()]
    # A constant added to every key does not change a softmax.
    unused = [n for n, g in zip(names, gradients, strict=True) if g.abs().max() < 1e-12]
    assert unused == [name for name in names if name.endswith("key.bias")]


def test_samples_of_a_batch_do_not_interact():
    network = small_network()
    x, sigma = normal(3, 1, 8, 8), torch.tensor([0.02, 0.7, 30.0]).double()
    alone = torch.cat([network(x[i : i + 1], sigma[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(x, sigma), alone, rtol=1e-10, atol=1e-10)


def test_the_output_depends_on_sigma():
    network = small_network()
    x = normal(1, 1, 8, 8)
    outputs = [network(x, torch.tensor([sigma]).double()) for sigma in (0.1, 0.11)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_float32_and_float64_agree():
    network = small_network()
    x, sigma = normal(2, 1, 8, 8), torch.tensor([0.1, 2.0]).double()
    in_double = network(x, sigma)
    in_single = network.float()(x.float(), sigma.float())
    assert (in_double.dtype, in_single.dtype) == (torch.float64, torch.float32)
    # Phases of the embedding reach 150 radians: float32 rounds them by 1e-5.
    torch.testing.assert_close(in_single.double(), in_double, rtol=1e-3, atol=1e-3)


def test_dropout_acts_in_training_mode_only():
    network = small_network(dropout=0.5)
    x, sigma = normal(1, 1, 8, 8), torch.ones(1).double()
    assert torch.equal(network(x, sigma), network(x, sigma))
    network.train()
    assert not torch.allclose(network(x, sigma), network(x, sigma))


def test_the_jacobian_products_agree_with_the_whole_jacobian():
    network = small_network()
    x, v = normal(2, 1, 8, 8).requires_grad_(), normal(2, 1, 8, 8).sign()
    s = network(x, torch.tensor([0.1, 2.0]).double())
    j = jacobian(s, x)
    jt_v, j_v = (product.flatten(1) for product in vjp_jvp(s, x, v))
    torch.testing.assert_close(jt_v, torch.einsum("bij,bi->bj", j, v.flatten(1)))
    torch.testing.assert_close(j_v, torch.einsum("bij,bj->bi", j, v.flatten(1)))


def test_second_derivatives_agree_with_finite_differences():
    network = small_network(nf=4, ch_mult=[1, 1], progressive="output_skip")
    x, sigma = normal(1, 1, 8, 8), torch.tensor([0.5]).double()
    assert torch.autograd.gradgradcheck(
        lambda x: network(x, sigma), x.requires_grad_(), fast_mode=True, atol=1e-6
    )


def test_parameter_gradients_of_the_jacobian_agree_with_finite_differences():
    network = small_network()
    x, sigma = normal(1, 1, 8, 8).requires_grad_(), torch.tensor([0.5]).double()
    v = normal(1, 1, 8, 8).sign()
    parameters = list(network.parameters())
    directions = [normal(*p.shape) / p.numel() ** 0.5 for p in parameters]

    def squared_products():
        jt_v, j_v = vjp_jvp(network(x, sigma), x, v, create_graph=True)
        return (jt_v * (jt_v - j_v)).sum()

    def shifted(step):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=step)
        value = squared_products()
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(d, alpha=step)
        return value.item()

    gradients = torch.autograd.grad(squared_products(), parameters, materialize_grads=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
    h = 1e-5
    # Central differences err by O(h²) and by rounding / h, both below 1e-6 of the slope here.
    np.testing.assert_allclose(slope, (shifted(h) - shifted(-h)) / (2 * h), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"image_size": 10, "ch_mult": [1, 2, 2]}, "image_size: 10 is not divisible by 4"),
        ({"attn_resolutions": [16]}, r"attn_resolutions: no level has resolution 16.*\[8, 4\]"),
        ({"nf": 9}, "cannot split 9 channels into 2 equal groups"),
        ({"nf": 2}, "cannot split 2 channels into 0 equal groups"),
        ({"fir_kernel": [1, 2, 1]}, r"fir_kernel: \[1, 2, 1\] has 3 taps"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(settings, sentence):
    with pytest.raises(BadInput, match=sentence):
        small_network(**settings)
