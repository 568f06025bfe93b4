"""Products with the Jacobian of a vector field, and random probes.

Functions that differentiate take the field's value ``s`` at ``x`` together with ``x`` itself, both
of shape (B, ...) with a graph between them. Samples of a batch must not interact, so that the
Jacobian is block diagonal; J below is one sample's block, with D = numel / B rows and columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def vjp(s: Tensor, x: Tensor, v: Tensor, create_graph: bool = False) -> Tensor:
    """Jᵀv, shaped like ``x``. The graph of ``s`` is kept."""
    return torch.autograd.grad(s, x, v, create_graph=create_graph, retain_graph=True)[0]


def vjp_jvp(s: Tensor, x: Tensor, v: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """(Jᵀv, Jv), both shaped like ``x``, from one forward pass.

    Jᵀw is linear in w, so the derivative of ⟨Jᵀw, v⟩ with respect to w is Jv: a second backward
    pass gives the forward product. With ``create_graph`` both carry their whole dependence on the
    parameters.

    References:
        A new trick for calculating Jacobian vector products (Townsend, 2017);
        https://j-towns.github.io/2017/06/12/A-new-trick.html
    """
    w = v.detach().clone().requires_grad_()
    jt_w = vjp(s, x, w, create_graph=True)
    j_v = torch.autograd.grad(jt_w, w, v, create_graph=create_graph, retain_graph=True)[0]
    return (jt_w if create_graph else jt_w.detach()), j_v


def jacobian(s: Tensor, x: Tensor, create_graph: bool = False, copies: int = 1) -> Tensor:
    """The full Jacobian ∂s_i/∂x_j of every sample, shape (B, D, D), by D backward passes.

    Where ``x`` (copies · B, ...) is a batch repeated ``copies`` times, one pass gives as many rows:
    small batches, whose passes cost what their operations cost to launch, gain from it.
    """
    flat = s.flatten(1)
    d = flat.shape[1]
    rows = []
    for start in range(0, d, copies):
        v = torch.zeros_like(flat).unflatten(0, (copies, -1))
        for copy in range(min(copies, d - start)):
            v[copy, :, start + copy] = 1
        products = vjp(flat, x, v.flatten(0, 1), create_graph=create_graph)
        rows.append(products.flatten(1).unflatten(0, (copies, -1)))
    return torch.cat(rows)[:d].transpose(0, 1)


def forward_difference(
    function: Callable[[Tensor], Tensor], s: Tensor, x: Tensor, v: Tensor, step: float
) -> Tensor:
    """Jv of the field ``function`` at ``x``, from its values ``s`` there and at ``x`` + ``step`` v.

    All are shaped like ``x``. It takes one pass where `central_difference` takes two, but its
    truncation grows as ``step``. This part is even in ``v`` where products are odd: over probes v
    and −v that are as likely, it has no effect on the mean of ‖Jv‖² or ‖(J − Jᵀ)v‖², whose bias
    grows as ``step``² in either case.
    """
    with torch.no_grad():
        return (function(x + step * v) - s) / step


def central_difference(
    function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor, step: float
) -> Tensor:
    """Jv of the field ``function`` at ``x``, from its values at ``x`` ± ``step`` ``v``; like ``x``.

    Needs no derivative. The error has a part from truncation, which grows as ``step``², and one
    from rounding, which grows as 1 / ``step``. A probe ``v`` moves every coordinate by ``step``, in
    the units of ``x``: a small fraction of its noise level is a good one.
    """
    with torch.no_grad():
        return (function(x + step * v) - function(x - step * v)) / (2 * step)


def rademacher(
    shape: torch.Size | tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device | None = None,
) -> Tensor:
    """Independent ±1 entries with equal probability, float32: E[v vᵀ] = I.

    They are drawn on ``device``, the CPU if none is given, by its ``generator`` or PyTorch's own.
    """
    return torch.randint(0, 2, shape, generator=generator, device=device).mul_(2).sub_(1).float()
