"""Noise of samplers that take many draws: on a GPU each is ready before it is asked for.

The generator is the CPU's, so that noise does not depend on the device. A GPU would stand idle
while the CPU draws, and the CPU would wait until the GPU has taken what was drawn: so a thread
draws the next noise while the GPU computes, into memory that the GPU reads by itself.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from qcsbm.sampling.base import Device, Shape


@contextmanager
def noises(
    n: int, shape: Shape, generator: torch.Generator, device: Device
) -> Iterator[Iterator[Tensor]]:
    """Within, an iterator over ``n`` ≥ 1 draws of `qcsbm.sampling.base.noise`, the same bytes.

    Nothing else may draw from ``generator`` within. Whoever leaves before the last draw leaves it
    at most one draw further than on a CPU.
    """
    pinned = torch.device(device).type == "cuda"
    draw = partial(torch.randn, shape, generator=generator, pin_memory=pinned)
    with (
        drawn_ahead(draw, n) if ahead_on(device) else nullcontext(draw() for _ in range(n)) as draws
    ):
        yield (z.to(device, non_blocking=True) for z in draws)


def ahead_on(device: Device) -> bool:
    """Whether noise for ``device`` is drawn ahead of its use."""
    return torch.device(device).type == "cuda"


@contextmanager
def drawn_ahead(draw: Callable[[], Tensor], n: int) -> Iterator[Iterator[Tensor]]:
    """Within, an iterator over ``n`` results of ``draw``, the next one under way in a thread.

    An exception of ``draw`` is raised where its result is asked for. The thread ends with the
    context, after the draw under way.
    """
    with ThreadPoolExecutor(1, "noise") as thread:
        yield _results(thread, draw, n)


def _results(thread: ThreadPoolExecutor, draw: Callable[[], Tensor], n: int) -> Iterator[Tensor]:
    following = thread.submit(draw)
    for _ in range(n - 1):
        result, following = following.result(), thread.submit(draw)
        yield result
    yield following.result()
