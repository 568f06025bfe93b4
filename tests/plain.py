"""What the stages compute, once more, by the shortest code that can say it.

Nothing here calls a stage or the module behind it. Taken over is only what is documented: the
layers of the networks, the recipe of the training, and the addresses of random streams
(`qcsbm.runtime.seeding`). Draws are float32, as the package's; all that is made of them is float64,
by full Jacobians and brute force. Images are the digits, k (n, 1, 8, 8) in 0 … 16, and ``cell`` is
what the configuration says of one dataset and method, `qcsbm.schema.document.Cell`: specifications
are not believed.
"""

import warnings
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from scipy.integrate import RK45
from scipy.linalg import LinAlgWarning, sqrtm
from scipy.optimize import brentq
from scipy.spatial.distance import cdist
from scipy.special import softmax

from qcsbm.nets.classifier import Classifier
from qcsbm.runtime.seeding import derive, generator, permutation
from qcsbm.schema.specifications import Model
from qcsbm.score.models import build

SHAPE = (1, 8, 8)
LEVELS = 17
EPSILON = 1e-5


def tensors(path, part=""):
    """The tensors of a safetensors file whose names begin with ``part``, named without it."""
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(part)]  # noqa: SIM118
        return {name.removeprefix(part): file.get_tensor(name) for name in names}


def mean(values):
    """Mean, standard error and number of independent ``values``."""
    values = np.asarray(values, np.float64)
    n = len(values)
    spread = np.sqrt(((values - values.mean()) ** 2).sum() / (n - 1))
    return values.mean(), spread / np.sqrt(n), n


def mean_of_shares(found):
    """The share of what was ``found``, and its binomial error."""
    share, n = np.mean(found), len(found)
    return share, np.sqrt(share * (1 - share) / n), n


# Data


def on_grid(k):
    return torch.as_tensor(k).double() / (LEVELS - 1)


def dequantised(k, draws):
    """(k + u) / L with u one of 2¹⁵ midpoints."""
    u = (torch.randint(0, 2**15, k.shape, generator=draws).double() + 0.5) / 2**15
    return (torch.as_tensor(k).double() + u) / LEVELS


def data(k, dequantise, draws):
    return dequantised(k, draws) if dequantise else on_grid(k)


def quantised(x, dequantise):
    k = np.floor(x * LEVELS) if dequantise else np.rint(x * (LEVELS - 1))
    return np.clip(k, 0, LEVELS - 1).astype(np.uint8)


def assert_same_images(found, expected):
    """Rounding of the network's float32 may carry an entry over the edge of its level."""
    assert found.dtype == np.uint8 and found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02


def rademacher(shape, draws):
    return 2.0 * torch.randint(0, 2, shape, generator=draws).double() - 1


# SDEs: the flow is dx = (c x − g² s / 2) dt, and a chain of n steps has x_k = a x_{k−1} + √v z.


class VE:
    def __init__(self, settings):
        self.low, self.high = settings.sigma_min, settings.sigma_max
        self.first, self.prior = 0, self.high

    def kernel(self, t):
        """Mean and standard deviation of x_t for x_0 = 1."""
        std = self.low * (self.high / self.low) ** t
        return std / std, std

    def rates(self, t):
        """c and g² = d(σ²)/dt."""
        return 0, 2 * self.kernel(t)[1] ** 2 * np.log(self.high / self.low)

    def chain(self, n):
        """(a, v) of every step."""
        scales = np.append(0, np.exp(np.linspace(np.log(self.low), np.log(self.high), n)))
        return [(1, v) for v in np.diff(scales**2)]


class VP:
    def __init__(self, settings):
        self.low, self.high = settings.beta_min, settings.beta_max
        self.first, self.prior = EPSILON, 1

    def kernel(self, t):
        """Mean and standard deviation of x_t for x_0 = 1."""
        mean = np.e ** (-(t**2) / 4 * (self.high - self.low) - t / 2 * self.low)
        return mean, (1 - mean**2) ** 0.5

    def rates(self, t):
        """c and g²."""
        beta = (1 - t) * self.low + t * self.high
        return -beta / 2, beta

    def chain(self, n):
        """(a, v) of every step: the shares of the mean that are left, and what they make room for.

        The variance of unit data stays 1.
        """
        means = np.append(1, self.kernel(np.linspace(EPSILON, 1, n))[0])
        return [(a, 1 - a**2) for a in means[1:] / means[:-1]]


# Scores


def network(cell, seed=None):
    """The network of ``cell``, freshly drawn."""
    model = Model(parameterisation="score", residual=False, network=cell.network, sde=cell.sde)
    return build(SHAPE, model, seed=seed).network


class Score:
    """s(x, t) of ``cell`` with the ``weights`` of its network."""

    def __init__(self, cell, weights):
        self.cell, self.sde = cell, {"ve": VE, "vp": VP}[cell.sde.type](cell.sde)
        self.network = network(cell).double().eval().requires_grad_(False)
        self.network.load_state_dict(weights)

    def __call__(self, x, t):
        """The score at x (n, 1, 8, 8) and t (n,), with its graph where x or a weight has one."""
        mean, std = self.sde.kernel(t)
        h = self.network(x, std / mean)
        h = x - h if self.cell.residual else h
        if self.cell.parameterisation == "score":
            return h / std.view(-1, 1, 1, 1)
        energy = (h.flatten(1).square().sum(1) / (2 * std)).sum()
        return -torch.autograd.grad(energy, x, create_graph=True)[0]

    def value(self, x, t):
        """The score at x (n, 1, 8, 8) at one time ``t``."""
        x = torch.as_tensor(x).detach().requires_grad_()
        return self(x, torch.full((len(x),), t, dtype=torch.float64)).detach()

    def and_jacobian(self, x, t):
        """The score (D,) and its Jacobian (D, D) at one image: row i is the gradient of s_i."""
        d = x.numel()
        copies = x.detach().reshape(1, *SHAPE).repeat(d, 1, 1, 1).requires_grad_()
        s = self(copies, torch.full((d,), t, dtype=torch.float64)).flatten(1)
        j = torch.autograd.grad(s.diagonal().sum(), copies)[0].flatten(1)
        return s[0].detach().numpy(), j.numpy()


# Measurements


def asymmetry(score, test, cell, seed):
    """Asym and NAsym of the first images of ``test`` at every level, (levels, 2, n)."""
    protocol = cell.asymmetry
    k = test[: protocol.samples]
    x_0 = data(k, cell.training.dequantise, generator(seed, "dequantise"))
    size, n_levels = protocol.batch_size, protocol.noise_levels
    values = np.empty((n_levels, 2, len(k)))
    for level in range(n_levels):
        t = score.sde.first + (1 - score.sde.first) * level / n_levels
        mean, std = score.sde.kernel(t)
        z = torch.randn(x_0.shape, generator=generator(seed, "perturb", level)).double()
        x_t = mean * x_0 + std * z
        draws = generator(seed, "asymmetry", level)
        for start in range(0, len(k), size):
            batch = x_t[start : start + size]
            jacobians = [score.and_jacobian(x, t)[1] for x in batch]
            if protocol.estimator == "exact":
                found = [_asymmetry(j) for j in jacobians]
            else:
                n_probes = protocol.probes or 1
                probes = [rademacher(batch.shape, draws) for _ in range(n_probes)]
                v = np.stack([probe.flatten(1).numpy() for probe in probes])
                if protocol.estimator == "trace":
                    found = [_one_probe(j, v[:, i]) for i, j in enumerate(jacobians)]
                else:
                    jv = [v[:, i] @ j.T for i, j in enumerate(jacobians)]
                    if protocol.derivatives == "finite_differences":
                        step = protocol.difference_step * std
                        s = score.value(batch, t)
                        rises = [score.value(batch + step * probe, t) - s for probe in probes]
                        jv = torch.stack(rises, 1).flatten(2).numpy() / step
                    jtv = [v[:, i] @ j for i, j in enumerate(jacobians)]
                    found = [_jackknife(*pair) for pair in zip(jv, jtv, strict=True)]
            values[level, :, start : start + size] = np.array(found).T
    return values


def circulation(score, test, cell, seed, nodes=200):
    """The circulation around the triangles of ``test`` at every level, (levels, triangles)."""
    protocol, n_levels = cell.circulation, cell.asymmetry.noise_levels
    k = test[: 3 * protocol.triangles]
    x_0 = data(k, cell.training.dequantise, generator(seed, "dequantise"))
    values = np.zeros((n_levels, protocol.triangles))
    # The midpoint rule.
    shares = ((torch.arange(nodes) + 0.5) / nodes).double().view(-1, 1, 1, 1)
    for level in range(n_levels):
        t = score.sde.first + (1 - score.sde.first) * level / n_levels
        mean, std = score.sde.kernel(t)
        z = torch.randn(x_0.shape, generator=generator(seed, "perturb", level)).double()
        corners = (mean * x_0 + std * z).unflatten(0, (-1, 3))
        for i, triangle in enumerate(corners):
            for a, b in zip(triangle, triangle.roll(-1, 0), strict=True):
                s = score.value(a + shares * (b - a), t)
                values[level, i] += float((s * (b - a)).flatten(1).sum(1).mean())
    return values


def _asymmetry(j):
    a = j - j.T
    return (a**2).sum() / 2, (a**2).sum() / (4 * (j**2).sum())


def _jackknife(jv, jtv):
    up, down = ((jv - jtv) ** 2).sum(1) / 2, (jv**2).sum(1) + (jtv**2).sum(1)
    n = len(jv)
    if n == 1:
        return up.mean(), up.item() / down.item()
    without = [(up.sum() - up[i]) / (down.sum() - down[i]) for i in range(n)]
    return up.mean(), n * up.sum() / down.sum() - (n - 1) * np.mean(without)


def _one_probe(j, probes):
    (v,) = probes
    jtv = j.T @ v
    asym = jtv @ jtv - v @ j @ j @ v
    return asym, asym / (2 * jtv @ jtv)


def likelihood(score, test, cell, seed):
    """Bits/dim and evaluations of each of the first images of ``test``, one at a time."""
    protocol = cell.likelihood
    k = test[: protocol.samples]
    bits, nfe, size = [], [], protocol.batch_size
    for start in range(0, len(k), size):
        batch = start // size
        x = dequantised(k[start : start + size], generator(seed, "dequantise", batch))
        v = [None] * len(x)
        if protocol.divergence == "hutchinson":
            v = rademacher(x.shape, generator(seed, "divergence", batch))
        for x_0, probe in zip(x, v, strict=True):
            log_p, evaluations = _log_density(score, x_0, probe, protocol)
            bits.append(-log_p / (x_0.numel() * np.log(2)) + np.log2(LEVELS))
            nfe.append(evaluations)
    return bits, nfe


def _log_density(score, x_0, v, protocol):
    d = x_0.numel()

    def flow(t, y):
        x = torch.from_numpy(y[:d]).view(1, *SHAPE)
        if v is None:
            s, j = score.and_jacobian(x, t)
            divergence = np.trace(j)
        else:
            x.requires_grad_()
            s = score(x, torch.tensor([t], dtype=torch.float64))
            divergence = float((torch.autograd.grad(s, x, v[None])[0] * v).sum())
            s = s.detach().numpy().ravel()
        c, g_squared = score.sde.rates(t)
        return c * np.append(y[:d], d) - g_squared / 2 * np.append(s, divergence)

    start = np.append(x_0.numpy().ravel(), 0.0)
    end, nfe = solve(flow, EPSILON, 1, start, protocol)
    x_1, change = end[:d], end[d]
    variance = score.sde.prior**2
    prior = -d / 2 * np.log(2 * np.pi * variance) - (x_1**2).sum() / (2 * variance)
    return prior + change, nfe


def solve(flow, start, end, y, protocol):
    """The solution at ``end`` of dy/dt = flow(t, y), and its evaluations of ``flow``.

    Dormand and Prince's pair with SciPy's coefficients, of whose errors Shampine takes two thirds;
    Hairer's first step; every later one, also after a step that was refused, 0.9 r^(-1/5) times
    this one, at least 0.2 and at most 10 times.
    """
    rtol, atol = protocol.rtol, protocol.atol
    sign, t = np.sign(end - start), start

    def rms(a, scale):
        return np.sqrt(np.mean((a / scale) ** 2))

    slope = flow(t, y)
    scale = atol + rtol * np.abs(y)
    d_0, d_1 = rms(y, scale), rms(slope, scale)
    h_0 = min(0.01 * d_0 / d_1, abs(end - start))
    d_2 = rms(flow(t + sign * h_0, y + sign * h_0 * slope) - slope, scale) / h_0
    h = min(100 * h_0, (0.01 / max(d_1, d_2)) ** (1 / 5))
    nfe = 2
    while True:
        h = min(h, abs(end - t))
        slopes = [slope]
        for c, a in zip(RK45.C[1:], RK45.A[1:], strict=True):
            step = sign * h * sum(w * k for w, k in zip(a, slopes, strict=False))
            slopes.append(flow(t + sign * h * c, y + step))
        new = y + sign * h * sum(w * k for w, k in zip(RK45.B, slopes, strict=True))
        slopes.append(flow(t + sign * h, new))
        nfe += 6
        error = 2 / 3 * h * sum(w * k for w, k in zip(RK45.E, slopes, strict=True))
        r = rms(error, atol + rtol * np.maximum(np.abs(y), np.abs(new)))
        if r < 1 and h == abs(end - t):
            return new, nfe
        if r < 1:
            t, y, slope = t + sign * h, new, slopes[-1]
        h = h * np.clip(0.9 * r ** (-1 / 5), 0.2, 10)


# Samples


def samples(score, cell, sampler, seed):
    """Images of whole batches, and the NFE of each."""
    protocol = cell.samplers[sampler]
    draw = {
        "pc": _predictor_corrector,
        "ode": _flow_backwards,
        "heun": _heun,
        "langevin": _langevin,
    }[protocol.type]
    images, nfe = [], []
    for batch in range(-(-cell.quality.samples // protocol.batch_size)):
        x, evaluations = draw(score, protocol, generator(seed, "sample", batch))
        images.append(quantised(x, cell.training.dequantise))
        nfe.append(evaluations)
    return np.concatenate(images), np.concatenate(nfe)


def _predictor_corrector(score, protocol, draws):
    n, size = protocol.steps, protocol.batch_size

    def noise():
        return torch.randn((size, *SHAPE), generator=draws).double()

    def norm(a):
        return a.flatten(1).square().sum(1).sqrt().mean()

    x = score.sde.prior * noise()
    chain = reversed(score.sde.chain(n))
    for t, (a, v) in zip(np.linspace(1, EPSILON, n), chain, strict=True):
        for _ in range(protocol.corrector_steps):
            z, s = noise(), score.value(x, t)
            step = 2 * a**2 * (protocol.snr * norm(z) / norm(s)) ** 2
            x = x + step * s + (2 * step).sqrt() * z
        denoised = (2 - a) * x + v * score.value(x, t)
        x = denoised + np.sqrt(v) * noise()
    return denoised.numpy(), np.full(size, n)


def _flow_backwards(score, protocol, draws):
    size = protocol.batch_size
    start = score.sde.prior * torch.randn((size, *SHAPE), generator=draws).double()
    images, nfe = [], []
    for x in start.numpy().reshape(size, -1):

        def flow(t, y):
            s = score.value(torch.from_numpy(y).view(1, *SHAPE), t)
            c, g_squared = score.sde.rates(t)
            return c * y - g_squared / 2 * s.numpy().ravel()

        end, evaluations = solve(flow, 1, EPSILON, x, protocol)
        x = torch.from_numpy(end).view(1, *SHAPE)
        mean, std = score.sde.kernel(score.sde.first)
        images.append(((x + std**2 * score.value(x, EPSILON)) / mean).numpy())
        nfe.append(evaluations)
    return np.concatenate(images), nfe


def _relative(score):
    """The score of y = x / mean with noise of σ = std / mean, and the σ of a time."""

    def level(t):
        mean, std = score.sde.kernel(t)
        return std / mean

    def at(y, sigma):
        t = brentq(lambda t: level(t) - sigma, 0, 1 + 1e-9, xtol=1e-16, rtol=1e-15)
        mean, _ = score.sde.kernel(t)
        return mean * score.value(mean * y, t)

    return at, level


def _heun(score, protocol, draws):
    n, size = protocol.steps, protocol.batch_size
    s, level = _relative(score)
    y = score.sde.prior / score.sde.kernel(1)[0]
    y = y * torch.randn((size, *SHAPE), generator=draws).double()
    levels = np.linspace(*(level(t) ** (1 / protocol.rho) for t in (1, EPSILON)), n) ** protocol.rho

    def slope(y, sigma):
        return -sigma * s(y, sigma)

    for here, there in pairwise(levels):
        euler = y + (there - here) * slope(y, here)
        y = y + (there - here) * (slope(y, here) + slope(euler, there)) / 2
    return (y - levels[-1] * slope(y, levels[-1])).numpy(), np.full(size, 2 * n - 1)


def _langevin(score, protocol, draws):
    def noise():
        return torch.randn((protocol.batch_size, *SHAPE), generator=draws).double()

    s, level = _relative(score)
    y = score.sde.prior / score.sde.kernel(1)[0] * noise()
    levels = np.geomspace(level(1), level(EPSILON), protocol.noise_levels)
    # A single level is the smallest.
    for sigma in [level(EPSILON)] if len(levels) == 1 else levels:
        step = protocol.step_size * sigma**2
        for _ in range(protocol.steps_per_level):
            y = y + step * s(y, sigma) + (2 * step) ** 0.5 * noise()
    y = y + sigma**2 * s(y, sigma)
    calls = protocol.noise_levels * protocol.steps_per_level + 1
    return y.numpy(), np.full(protocol.batch_size, calls)


# Sample quality


def classify(weights, k):
    """Features (n, 64) and logits (n, classes) of the classifier with ``weights``, float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    h = 2 * on_grid(k) - 1
    for i, stride in enumerate((1, 2, 2)):
        h = F.conv2d(h, w[f"conv_{i}.weight"], w[f"conv_{i}.bias"], stride, 1).relu()
    h = h.flatten(1)  # 64 channels of 2 × 2
    features = (h @ w["dense.weight"].T + w["dense.bias"]).relu()
    return features.numpy(), (features @ w["head.weight"].T + w["head.bias"]).numpy()


def train_classifier(images, labels, epochs):
    """The weights after Adam on the cross-entropy, with half a cosine of the learning rate."""
    torch.manual_seed(derive(0, "classifier"))
    model = Classifier(1, 10).double()
    adam = torch.optim.Adam(model.parameters())
    for epoch in range(epochs):
        adam.param_groups[0]["lr"] = 1e-3 * (1 + np.cos(np.pi * epoch / epochs))
        order = torch.randperm(len(images), generator=generator(0, "classifier", epoch))
        for batch in order.split(64):
            logits = model(on_grid(images[batch]))[1]
            chosen = logits.log_softmax(1)[torch.arange(len(batch)), labels[batch]]
            adam.zero_grad()
            (-chosen.mean()).backward()
            adam.step()
    return model.state_dict()


def frechet_distance(fake, mean, covariance):
    """Between features ``fake`` (n, d) and a mean (d,) and covariance (d, d)."""
    own = np.cov(fake.T)
    with warnings.catch_warnings():  # fewer samples than features: the product is singular
        warnings.simplefilter("ignore", LinAlgWarning)
        cross = np.trace(sqrtm(own @ covariance)).real
    return ((fake.mean(0) - mean) ** 2).sum() + np.trace(own) + np.trace(covariance) - 2 * cross


def kernel_distance(fake, real):
    """The distance and its error, from all pairs of pairs of samples."""

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, others = len(fake), ~np.eye(len(real), dtype=bool)
    to_real = kernel(fake, real).mean(1)
    h = kernel(fake, fake) - to_real[:, None] - to_real + kernel(real, real)[others].mean()
    i, j, k, m = np.indices((n,) * 4).reshape(4, -1)
    pairs = (i != j) & (k != m)
    shared = (i == k).astype(int) + (i == m) + (j == k) + (j == m)
    none, one, both = (np.mean((h[i, j] * h[k, m])[pairs & (shared == s)]) for s in range(3))
    first, second = max(one - none, 0), max(both - none, 0)
    error = np.sqrt((4 * (n - 2) * first + 2 * second) / (n * (n - 1)))
    return h[~np.eye(n, dtype=bool)].mean(), error, n


def class_score(logits):
    """exp of the mean divergence of each sample's classes from all samples' classes."""
    p = softmax(logits, axis=1)
    value, error, n = mean((p * np.log(p / p.mean(0))).sum(1))
    return np.exp(value), np.exp(value) * error, n


def prdc(real, fake, k):
    """Precision and its error, recall, density and its error, coverage."""

    def radii(a):
        return np.sort(cdist(a, a), axis=1)[:, k]  # the 0-th is itself

    between = cdist(real, fake)
    inside = between < radii(real)[:, None]
    recall = (between < radii(fake)[None]).any(1).mean()
    return {
        "precision": mean_of_shares(inside.any(0)),
        "recall": (recall, None, len(fake)),
        "density": mean(inside.sum(0) / k),
        "coverage": (inside.any(1).mean(), None, len(fake)),
    }


# Training


def train(cell, images, seed, start, stop):
    """The parts of a checkpoint after the step ``stop``, and dsm and σ² L_QC of every step to it.

    ``start`` is a step and the parts of its checkpoint, or 0 and None. Names are the network's.
    """
    training, regulariser = cell.training, cell.regulariser
    first, parts = start
    weights = network(cell, seed).state_dict() if parts is None else parts["model"]
    score = Score(cell, weights)
    parameters = dict(score.network.train().requires_grad_(True).named_parameters())
    if parts is None:
        zero = {name: torch.zeros_like(p) for name, p in parameters.items()}
        parts = {"ema": weights, "exp_avg": zero, "exp_avg_sq": zero}
    ema, m, v = (
        {name: parts[part][name].double() for name in parameters}
        for part in ("ema", "exp_avg", "exp_avg_sq")
    )
    beta_1, beta_2, losses = training.beta1, 0.999, []
    for step in range(first + 1, stop + 1):
        dsm, qc = _losses(score, images, cell, seed, step)
        loss = dsm + regulariser.weight * qc if regulariser else dsm
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients))
        lr = training.lr * min(1, step / training.warmup)
        decay = min(training.ema, (1 + step) / (10 + step))
        for name, gradient in zip(parameters, gradients, strict=True):
            p, g = parameters[name], gradient * min(1, training.grad_clip / norm)
            m[name] = beta_1 * m[name] + (1 - beta_1) * g
            v[name] = beta_2 * v[name] + (1 - beta_2) * g**2
            scale = (v[name] / (1 - beta_2**step)).sqrt() + training.eps
            p.data = p.data - lr * m[name] / (1 - beta_1**step) / scale
            ema[name] = decay * ema[name] + (1 - decay) * p.data
        losses.append((dsm.item(), qc.item(), norm.item()))
    weights = {name: p.detach() for name, p in parameters.items()}
    return {"model": weights, "ema": ema, "exp_avg": m, "exp_avg_sq": v}, losses


def _losses(score, images, cell, seed, step):
    """The means of DSM and of std² L_QC over the batch of ``step``."""
    training, regulariser, size = cell.training, cell.regulariser, cell.training.batch_size
    n = len(images)
    positions = range((step - 1) * size, step * size)
    indices = [permutation(n, seed, "epoch", p // n)[p % n] for p in positions]
    draws = generator(seed, "batch", step)
    x_0 = data(images[indices], training.dequantise, draws)
    if training.flip:
        mirrored = torch.rand(size, generator=draws) < 0.5
        x_0[mirrored] = x_0[mirrored].flip(3)
    t = EPSILON + (1 - EPSILON) * torch.rand(size, generator=draws).double()
    z = torch.randn(x_0.shape, generator=draws).double()
    mean, std = (values.view(-1, 1, 1, 1) for values in score.sde.kernel(t))
    x_t = (mean * x_0 + std * z).requires_grad_()
    s = score(x_t, t)
    dsm = (std * s + z).square().sum() / (2 * size)
    if regulariser is None:
        return dsm, torch.zeros(())
    b = regulariser.batch_size or size
    draws = generator(seed, "probes", step)
    v = rademacher((regulariser.probes, b, *SHAPE), draws).flatten(2)
    # Row i of every sample's Jacobian is the gradient of its s_i.
    rows = [
        torch.autograd.grad(s_i.sum(), x_t, create_graph=True)[0][:b].flatten(1)
        for s_i in s.flatten(1).T
    ]
    j = torch.stack(rows, 1)
    jv, jtv = torch.einsum("bij,kbj->kbi", j, v), torch.einsum("bji,kbj->kbi", j, v)
    if regulariser.estimator == "trace":
        qc = (jtv * jtv - jtv * jv).sum(2)
    else:
        qc = (jv - jtv).square().sum(2) / 2
    return dsm, (std[:b].flatten().square() * qc.mean(0)).mean()
