"""Whether a network of one's own does what training and measuring need, tried before any step.

Of a model from outside it is what measuring needs.

Two networks are built for the trial alone. All draws are from streams of their own, so that no
training depends on it. Many networks begin with an output of zero, in which nothing could be seen:
most of it is tried with noise on the weights.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from qcsbm.adapters.models import OutsideModel
from qcsbm.conservativeness.asymmetry import qc_loss
from qcsbm.conservativeness.products import rademacher, vjp_jvp
from qcsbm.runtime.errors import BadInput
from qcsbm.runtime.own_code import errors_located
from qcsbm.runtime.seeding import generator, global_generator
from qcsbm.score.models import ScoreModel
from qcsbm.score.sde import SDE, bcast

Network = Callable[[Tensor, Tensor], Tensor]

SAMPLES = 3
# Relative to the largest entry of an output: other batch sizes round in another way.
SAME = 1e-3
# A difference quotient has to come as near to Jv, relative to ‖Jv‖, with one of these steps: nobody
# knows here over which lengths a network changes, and ReLUs have kinks.
NEAR, STEPS = 0.1, (1.0, 1e-1, 1e-2, 1e-3)


def require_contract(
    name: str, build: Callable[[], ScoreModel], shape: tuple[int, int, int], device: torch.device
) -> None:
    """Try networks of the class ``name``, built with one seed, on images of ``shape`` (C, H, W).

    Raises:
        BadInput: what was found, and what is expected.
    """
    model, again = build(), build()
    with global_generator(device, 0, "contract"):
        for fault in _faults(name, model, again, shape, device):
            raise BadInput(f"{name}: {fault}")


def require_measurable(
    name: str, model: OutsideModel, shape: tuple[int, int, int], device: torch.device
) -> None:
    """Try the ``model`` from outside that is called ``name`` on images of ``shape`` (C, H, W).

    Raises:
        BadInput: what was found, and what is expected.
    """
    for fault in _faults_of_outside(name, model, shape, device):
        raise BadInput(f"{name}: {fault}")


def _faults_of_outside(
    name: str, model: OutsideModel, shape: tuple[int, int, int], device: torch.device
) -> Iterator[str]:
    denoiser = model.denoiser
    x, t, v = _points(model.sde, shape, device, generator(0, "contract"))

    def field(x: Tensor, t: Tensor) -> Tensor:
        expected = f"an output for x {tuple(x.shape)} and t {tuple(t.shape)}"
        with errors_located(name, expected) if ":" in name else nullcontext():
            return denoiser.field(x, t)

    def score(x: Tensor, t: Tensor) -> Tensor:
        return bcast(model.sde.std(t), x) * model(x, t)

    # As the model has them: its own times, and its own range of data.
    y, sigma = x / bcast(model.sde.mean(t), x), model.sde.sigma(t)
    yield from _faults_of_output(field, *denoiser.arguments(y, sigma))
    yield from _faults_of_batch(score, x, t)
    yield from _faults_of_derivative(score, x, t, v)


def _faults(
    name: str,
    model: ScoreModel,
    again: ScoreModel,
    shape: tuple[int, int, int],
    device: torch.device,
) -> Iterator[str]:
    yield from _faults_of_weights(model.network, again.network)
    network = model.network.to(device)

    def output(x: Tensor, sigma: Tensor) -> Tensor:
        with errors_located(
            name, f"an output for x {tuple(x.shape)} and sigma {tuple(sigma.shape)}"
        ):
            return network(x, sigma)

    draws = generator(0, "contract")
    x, t, v = _points(model.sde, shape, device, draws)
    sigma = model.sde.sigma(t)

    network.eval()
    yield from _faults_of_output(output, x, sigma)
    _add_noise(network, draws)
    yield from _faults_of_output(output, x, sigma)
    yield from _faults_of_batch(output, x, sigma)
    yield from _faults_of_derivative(output, x, sigma, v)
    network.train()
    yield from _faults_in_training(network, output, x, sigma, v)


def _points(
    sde: SDE, shape: tuple[int, int, int], device: torch.device, draws: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples with their noise, times from the first to the last, and a probe for each."""
    t = torch.linspace(sde.epsilon, 1, SAMPLES)
    x_0, z = (draw(SAMPLES, *shape, generator=draws) for draw in (torch.rand, torch.randn))
    mean, std = sde.marginal_prob(x_0, t)
    x = mean + std[:, None, None, None] * z
    return x.to(device), t.to(device), rademacher(x.shape, draws).to(device)


def _faults_of_weights(network: nn.Module, again: nn.Module) -> Iterator[str]:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trained:
        yield "found no trainable parameters, expected some"
    memory: dict[int, str] = {}
    for name, tensor in network.state_dict().items():
        if not isinstance(tensor, Tensor):
            yield f"found {name}, a {type(tensor).__name__}, in the state dict, expected tensors"
        elif is_lazy(tensor):
            yield f"found {name} without a shape, expected one once the network is constructed"
        else:
            other = memory.setdefault(tensor.untyped_storage().data_ptr(), name)
            if tensor.numel() and other != name:
                yield f"found {other} and {name} in the same memory, expected each in its own"
    theirs = again.state_dict()
    for name, tensor in network.state_dict().items():
        if name not in theirs or not torch.equal(tensor, theirs[name]):
            yield (
                f"found that {name} differs between two networks of one seed, expected all draws "
                "to be from PyTorch's global generator"
            )


def _add_noise(network: nn.Module, draws: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=draws).to(parameter)
            # Divided by the number of inputs of one output, as initial weights are.
            inputs = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.add_(noise, alpha=0.1 / max(inputs, 1) ** 0.5)


def _faults_of_output(output: Network, x: Tensor, sigma: Tensor) -> Iterator[str]:
    before = x.clone()
    with torch.no_grad():
        y, same = output(x, sigma), output(x, sigma)
    if not isinstance(y, Tensor):
        yield f"found a {type(y).__name__} for an output, expected a tensor like x"
    if (y.shape, y.dtype, y.device) != (x.shape, x.dtype, x.device):
        yield (
            f"found an output of {y.dtype}, shape {tuple(y.shape)}, on {y.device}, expected one "
            f"like x: {x.dtype}, {tuple(x.shape)}, on {x.device}"
        )
    if not y.isfinite().all():
        yield "found an output that is not finite, expected finite numbers"
    if not torch.equal(y, same):
        yield "found two outputs for one input in evaluation mode, expected the same one"
    if not torch.equal(x, before):
        yield "found that x is changed in place, expected it to stay as it is"


def _faults_of_batch(output: Network, x: Tensor, sigma: Tensor) -> Iterator[str]:
    with torch.no_grad():
        y = output(x, sigma)
        alone = [output(x[i : i + 1], sigma[i : i + 1]) for i in range(len(x))]
    if alone[0].shape != x[:1].shape:
        found = tuple(alone[0].shape)
        yield f"found an output of shape {found} for one sample, expected one like x"
    change = (torch.cat(alone) - y).abs().max() / y.abs().max()
    if change > SAME:
        yield (
            f"found that a sample's output changes with its batch, by {change:.2g} of the largest "
            "entry, expected samples that do not interact"
        )


def _faults_of_derivative(output: Network, x: Tensor, sigma: Tensor, v: Tensor) -> Iterator[str]:
    x = x.clone().requires_grad_()
    s = output(x, sigma)
    if not s.requires_grad or _gradients(s.sum(), [x])[0] is None:
        yield "found an output without a derivative in x, expected one by autograd"
    try:
        _, j_v = vjp_jvp(s, x, v)
    except RuntimeError as error:
        yield _no_second_derivative(error)
        return
    with torch.no_grad():
        slopes = [(output(x + h * v, sigma) - output(x - h * v, sigma)) / (2 * h) for h in STEPS]
    distances = torch.stack([(slope - j_v).flatten(1).norm(dim=1) for slope in slopes])
    nearest = (distances.amin(0) / j_v.flatten(1).norm(dim=1)).max()
    if not nearest < NEAR:
        yield (
            f"found a derivative in x that differs from difference quotients by {nearest:.2g} of "
            "its size, expected all of the output's, without detach"
        )


def _faults_in_training(
    network: nn.Module, output: Network, x: Tensor, sigma: Tensor, v: Tensor
) -> Iterator[str]:
    x = x.clone().requires_grad_()
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    s = output(x, sigma)
    for name, buffer in network.named_buffers():
        if not torch.equal(buffer, buffers[name]):
            yield f"found that the buffer {name} changes in training, expected parameters only to"
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    of_x, *of_trained = _gradients((s[0] * v[0]).sum(), [x, *trained.values()])
    for name, gradient in zip(trained, of_trained, strict=True):
        if gradient is None:
            yield f"found that nothing depends on the parameter {name}, expected the output to"
        elif not gradient.isfinite().all():
            yield f"found a derivative in {name} that is not finite, expected finite numbers"
    if of_x is None or of_x[1:].any():
        yield "found that samples of a batch interact in training mode, expected them not to"
    try:
        l_qc = qc_loss(s, x, v[None], "antisymmetric").sum()
        second = torch.autograd.grad(l_qc, list(trained.values()), materialize_grads=True)
    except RuntimeError as error:
        yield _no_second_derivative(error)
        return
    if not all(gradient.isfinite().all() for gradient in second):
        yield "found a second derivative that is not finite, expected finite numbers"


def _gradients(value: Tensor, inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Those of ``value``, None of what it does not depend on; the graph is kept."""
    return torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)


def _no_second_derivative(error: RuntimeError) -> str:
    return (
        f"found no second derivative ({error}), expected an output that is twice differentiable, "
        "as fused attention is not"
    )
