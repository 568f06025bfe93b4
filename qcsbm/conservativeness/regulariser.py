r"""L_QC for any training loop, by second derivatives or by first ones and differences.

With J the Jacobian of the score s at x and A = J − Jᵀ, L_QC = ½‖A‖_F², estimated from a = Jᵀv and
b = Jv of random probes v (`qcsbm.conservativeness.asymmetry`). An estimate f(a, b) has the
parameter gradient of

.. math:: v^T J p + q^T J v, \qquad p = \frac{\partial f}{\partial a}, \quad
   q = \frac{\partial f}{\partial b} \quad \text{held constant.}

Second derivatives give it by a backward pass through both products. First ones do where each
product with J on the right is a difference quotient: with s_v = s(x + εv), r = ‖v‖/‖p‖ and
s_p = s(x + εrp), a by a backward pass from s and b = (s_v − s)/ε,

.. math:: \frac{v^T (s_p - s)}{\varepsilon r} + \frac{q^T (s_v - s)}{\varepsilon}

has that gradient up to O(ε). For f = ½‖b − a‖² it is q = −p = Av. No pass is differentiated twice,
so that networks that are compiled or have fused attention can be regularised.

References:
    On Investigating the Conservative Property of Score-Based Generative Models (Chao et al., 2023),
    Eqs. 7 to 9; https://arxiv.org/abs/2209.12753
    Efficient Learning of Generative Models via Finite-Difference Score Matching (Pang et al.,
    2020), for differences in place of second derivatives; https://arxiv.org/abs/2007.03317
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qcsbm.conservativeness.asymmetry import ESTIMATORS, qc_loss
from qcsbm.conservativeness.products import rademacher, vjp
from qcsbm.runtime.errors import BadInput

Derivatives = Literal["autograd", "finite_differences"]

# What PyTorch says of networks that are compiled, fused attention, and functions of one's own.
_NO_SECOND_DERIVATIVE = ("double backward", "derivative for aten::", "used in the graph")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def quasi_conservative_loss(
    score: Callable[..., Tensor],
    x: Tensor,
    t: Tensor | None = None,
    *,
    estimator: Literal["antisymmetric", "trace"] = "antisymmetric",
    probes: int = 1,
    derivatives: Derivatives = "autograd",
    step: float | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""L_QC = ½‖J − Jᵀ‖_F² at each sample, estimated without bias; shape (B,).

    The paper's objective is a mean over samples and noise levels σ, with L_QC weighted like DSM:

    .. math:: E\left[\tfrac12 \|\sigma s(x) + z\|^2 + \lambda \, \sigma^2 L_{QC}\right].

    ``score`` maps x (B, ...) and t, or x alone where ``t`` is None, to a tensor like x; samples of
    a batch must not interact. Gradients flow into its parameters and not into x. Where gradients
    are disabled, the value alone is computed. Units are those of (score / x)².

    ``estimator`` is the paper's ``trace`` (Eq. 9), or ``antisymmetric``, whose gradient has the
    same mean and, as a rule, less variance. ``probes`` are averaged. They are Rademacher vectors
    from ``generator``, or else from PyTorch's own of x's device, sample by sample: micro-batches
    that share a generator of the CPU have the probes of the whole batch.

    ``derivatives="autograd"`` is exact. It needs second derivatives; fused attention, which has
    none, is replaced by PyTorch's plain one. ``derivatives="finite_differences"`` errs by O(step),
    and does for networks under ``torch.compile`` too. ``step`` is how far each entry of x is moved,
    a number or (B,): 0.001 to 0.003 times the noise level σ in float32. All passes have the same
    dropout masks.

    Under autocast the network's precision is autocast's; products and sums have that of x. Finite
    differences switch autocast off, since rounding would drown them.

    With ``DistributedDataParallel`` take DSM from the wrapper and L_QC from its ``.module``, and
    differentiate their sum at once: all gradients are then averaged over processes. Networks under
    ``fully_shard`` need finite differences.

    Raises:
        BadInput: an argument is out of range; the score has another shape than x, no graph, or no
            second derivative; or it is a module whose batch normalisation makes samples interact,
            or that is sharded or wrapped with a static graph, so that its gradients would fail or
            be wrong. What a function calls is not looked into.

    References:
        On Investigating the Conservative Property of Score-Based Generative Models (Chao et al.,
        2023), Eqs. 7 to 9; https://arxiv.org/abs/2209.12753

    >>> import torch
    >>> import qcsbm
    >>> rotation = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> x = torch.randn(3, 2)
    >>> qcsbm.quasi_conservative_loss(lambda x: x @ rotation.T, x).detach()  # ‖J − Jᵀ‖² is 8
    tensor([4., 4., 4.])
    >>> score = torch.nn.Linear(2, 2)
    >>> qcsbm.quasi_conservative_loss(score, x).mean().backward()
    >>> w = score.weight.detach()
    >>> torch.testing.assert_close(score.weight.grad, 2 * (w - w.T))
    """
    _check(score, x, estimator, probes, derivatives, step)
    device = x.device if generator is None else generator.device
    draws = rademacher((len(x), probes, *x.shape[1:]), generator, device)
    v = draws.transpose(0, 1).to(x)

    def field(x: Tensor) -> Tensor:
        s = score(x) if t is None else score(x, t)
        if s.shape != x.shape:
            raise BadInput(
                f"score: found a value of shape {tuple(s.shape)}, "
                f"expected that of x, {tuple(x.shape)}"
            )
        if x.requires_grad and not s.requires_grad:
            raise BadInput("score: found a value without a graph, expected one to differentiate")
        if derivatives == "finite_differences":
            _check_precision("score", s)
        return s.to(x.dtype)

    x = x.detach()
    if step is None:
        return _second_derivative_loss(field, x, v, estimator)
    with torch.autocast(x.device.type, enabled=False):
        function = repeatable(field, x.device)
        return finite_difference_loss(function, function(x), x, v, step, estimator)


def finite_difference_loss(
    function: Callable[[Tensor], Tensor],
    s: Tensor,
    x: Tensor,
    probes: Tensor,
    step: float | Tensor,
    estimator: str,
) -> Tensor:
    """`qc_loss` up to O(step), from first derivatives: ``s`` is ``function(x)`` with its graph.

    ``x`` is (B, ...), ``probes`` (K, B, ...), ``step`` a number or (B,). Each probe costs two more
    evaluations and a backward pass. Where ``x`` requires a gradient, that is from ``s``, and else
    from a third evaluation: compiled code may free what it has differentiated once. Shape (B,).
    """
    estimate = ESTIMATORS[estimator]
    x, with_graph = x.detach(), x if x.requires_grad else None
    if isinstance(step, Tensor):
        step = _bcast(step, x)
    losses = []
    for v in probes:
        s_v = function(x + step * v)
        with torch.enable_grad():
            if with_graph is None:
                y = x.clone().requires_grad_()
                jt_v = torch.autograd.grad(function(y), y, v)[0]
            else:
                jt_v = vjp(s, with_graph, v)
            a = jt_v.requires_grad_()
            b = ((s_v - s) / step).detach().requires_grad_()
            value = estimate(a, b)
            p, q = torch.autograd.grad(value.sum(), (a, b))
        norm_v, norm_p = (_bcast(w.flatten(1).norm(dim=1), x) for w in (v, p))
        # Where p vanishes so does its term, and s_p must only be finite.
        s_p = function(x + step * norm_v * p / norm_p.clamp_min(torch.finfo(x.dtype).tiny))
        products = v * (s_p - s) * (norm_p / norm_v) + q * (s_v - s)
        surrogate = (products / step).flatten(1).sum(1)
        losses.append(value.detach() + (surrogate - surrogate.detach()))
    return torch.stack(losses).mean(0)


def _second_derivative_loss(
    function: Callable[[Tensor], Tensor], x: Tensor, probes: Tensor, estimator: str
) -> Tensor:
    try:
        with torch.enable_grad():
            x.requires_grad_()
            with sdpa_kernel(SDPBackend.MATH):
                s = function(x)
            # As in any training: passes back are no part of what autocast is for.
            with torch.autocast(x.device.type, enabled=False):
                loss = qc_loss(s, x, probes, estimator)
    except RuntimeError as error:
        if not any(text in str(error) for text in _NO_SECOND_DERIVATIVE):
            raise
        raise BadInput(
            f"score: found no second derivative ({error}), expected one or "
            "derivatives='finite_differences', which needs only first derivatives"
        ) from error
    return loss if torch.is_grad_enabled() else loss.detach()


def repeatable(
    function: Callable[[Tensor], Tensor], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """``function`` with the same random numbers, which are those of dropout, in every call.

    They are PyTorch's own from now on, and after a call these go on as after the first one.
    """
    cuda = device.type == "cuda"
    state = torch.get_rng_state()
    state_of_cuda = torch.cuda.get_rng_state(device) if cuda else None

    def call(x: Tensor) -> Tensor:
        torch.set_rng_state(state)
        if state_of_cuda is not None:
            torch.cuda.set_rng_state(state_of_cuda, device)
        return function(x)

    return call


def _bcast(values: Tensor, x: Tensor) -> Tensor:
    """``values`` (B,) as (B, 1, ...), to be multiplied with x (B, ...)."""
    return values.to(x).view(-1, *(1,) * (x.dim() - 1))


def _check(
    score: object,
    x: Tensor,
    estimator: str,
    probes: int,
    derivatives: str,
    step: float | Tensor | None,
) -> None:
    if estimator not in ESTIMATORS:
        raise BadInput(f"estimator: found {estimator!r}, expected one of {', '.join(ESTIMATORS)}")
    if derivatives not in get_args(Derivatives):
        expected = ", ".join(get_args(Derivatives))
        raise BadInput(f"derivatives: found {derivatives!r}, expected one of {expected}")
    if probes < 1:
        raise BadInput(f"probes: found {probes}, expected at least 1")
    if x.dim() < 2 or not x.is_floating_point():
        raise BadInput(
            f"x: found {x.dtype} of shape {tuple(x.shape)}, expected real numbers of shape (B, ...)"
        )
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise BadInput("x: found torch.inference_mode, expected torch.no_grad or none of the two")
    if derivatives == "finite_differences":
        _check_precision("x", x)
        _check_step(step, len(x))
    elif step is not None:
        raise BadInput("step: found one, expected none with derivatives='autograd'")
    if isinstance(score, nn.Module):
        _check_module(score, derivatives)


def _check_precision(name: str, values: Tensor) -> None:
    if torch.finfo(values.dtype).bits < 32:
        raise BadInput(
            f"{name}: found values in {values.dtype}, "
            "expected float32 or float64 for finite differences"
        )


def _check_step(step: float | Tensor | None, n: int) -> None:
    if step is None:
        raise BadInput(
            "step: found none, expected how far finite differences move each entry of x, "
            "such as 0.003 times the noise level"
        )
    if isinstance(step, Tensor):
        if step.shape not in ((), (n,)):
            raise BadInput(f"step: found shape {tuple(step.shape)}, expected a number or ({n},)")
    elif not 0 < step < math.inf:
        raise BadInput(f"step: found {step}, expected a positive number")


def _check_module(score: nn.Module, derivatives: str) -> None:
    if isinstance(score, nn.parallel.DistributedDataParallel) and score.static_graph:
        # Its gradients would be wrong without a word: it counts on one backward pass a step.
        raise BadInput(
            "score: found DistributedDataParallel with static_graph, "
            "expected its .module, with the DSM loss from the wrapper itself"
        )
    sharded = _sharded() if derivatives == "autograd" else _sharded()[:1]
    for name, module in score.named_modules():
        if isinstance(module, sharded):
            raise BadInput(
                "score: found a network under FSDP, expected DistributedDataParallel, or "
                "fully_shard with derivatives='finite_differences'"
            )
        if isinstance(module, _BATCH_NORMS) and (module.training or not module.track_running_stats):
            raise BadInput(
                f"score: found batch normalisation in training mode in {name!r}, expected samples "
                "that do not interact, as with .eval() or group normalisation"
            )


def _sharded() -> tuple[type, ...]:
    """FSDP's classes, the one that no derivatives were tested with first, if any can be in use."""
    if not (dist.is_available() and dist.is_initialized()):
        return ()
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    return FullyShardedDataParallel, FSDPModule
