"""Data-parallel training: processes of one machine that share out every batch.

Each of n processes has the whole model and draws the whole batch, which is a function of seed and
step, but computes the loss of every n-th sample only. The sum of their gradients is the batch's,
so that all make the same step. One and n processes hence train alike but for rounding and for
dropout, whose masks each process draws for its samples.

Gradients are summed by one all-reduce after the last backward pass. PyTorch's
DistributedDataParallel would do so during it, yet expects a single pass through its wrapped
forward, where C and L_QC differentiate the score itself.

References:
    PyTorch Distributed: Experiences on Accelerating Data Parallel Training (Li et al., 2020);
    https://arxiv.org/abs/2006.15704
"""

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import SimpleQueue

import torch
import torch.distributed as dist
from torch import Tensor

from qcsbm.runtime import gpus
from qcsbm.runtime.device import claim_device, fix_arithmetic
from qcsbm.runtime.errors import BadInput, Diverged

LOOPBACK = "127.0.0.1"
# More than a step takes: until its next sum, the first process does not know that another ended.
PATIENCE_S = 120.0


class ProcessEnded(OSError):
    """Another process of this training has ended."""


def rank() -> int:
    """The number of this process; 0 is the one that writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shares(samples: int, micro_batch: int | None = None) -> list[slice]:
    """What is this process's of a batch of so many ``samples``: every n-th one, in parts.

    A part has ``micro_batch`` of them, the last one what is left; without a number there is one
    part.
    """
    n = size()
    stride = n * (micro_batch or samples)
    return [slice(first, first + stride, n) for first in range(rank(), samples, stride)]


def sum_(tensors: list[Tensor]) -> None:
    """Put the sum over all processes in place of each of ``tensors``.

    Raises:
        ProcessEnded: another process has ended.
    """
    if size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _needing_all():
        dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@contextmanager
def processes(n: int, work: Callable[..., object], *arguments: object) -> Iterator[None]:
    """Within, this process is rank 0 of ``n``; the others call ``work(*arguments)``, and end.

    Each takes a GPU of its own where there are any. None outlives the block, or this process. Where
    one of them ends early, this process raises what that one met, if it is no mistake, or else ends
    with status 1; that one has printed the traceback of its mistake.

    Raises:
        BadInput: there are GPUs, but fewer than processes, or another process met bad input.
        Diverged: the training diverged in another process.
        OSError: another process met one, or has ended.
    """
    if n == 1:
        yield
        return
    if 0 < len(gpus.visible()) < n:
        raise BadInput(
            f"training.processes: found {n}, expected at most {len(gpus.visible())}, the number of "
            "GPUs of this job"
        )
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.TCPStore(LOOPBACK, 0, n, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    reports = context.SimpleQueue()
    others = [
        context.Process(
            target=_work, args=(rank, n, store.port, reports, work, arguments), daemon=True
        )
        for rank in range(1, n)
    ]
    # They start before this process claims its GPU and hides all others.
    for process in others:
        process.start()
    done = threading.Event()
    watch = threading.Thread(target=_end_with_any, args=(others, reports, done), daemon=True)
    watch.start()
    try:
        try:
            _join(store, 0, n)
            yield
            for process in others:
                process.join()
            if any(process.exitcode for process in others):
                raise ProcessEnded("lost a process of this training")
        except ProcessEnded:
            if reports.empty():
                raise
            raise reports.get() from None
    finally:
        done.set()
        for process in others:
            process.kill()
            process.join()
        if dist.is_initialized():
            dist.destroy_process_group()


def _join(store: dist.TCPStore, rank: int, n: int) -> None:
    backend = "nccl" if claim_device().type == "cuda" else "gloo"
    with _needing_all():
        dist.init_process_group(backend, store=store, rank=rank, world_size=n)


@contextmanager
def _needing_all() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessEnded(f"lost a process of this training: {error}") from None


def _work(
    rank: int,
    n: int,
    port: int,
    reports: SimpleQueue[Exception],
    work: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    """What a process other than the first one does: it ``reports`` what is no mistake."""
    # Schedulers send signals to every process of a job; the first one decides when to end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    fix_arithmetic()
    try:
        _join(dist.TCPStore(LOOPBACK, port, n, is_master=False), rank, n)
        work(*arguments)
    except ProcessEnded:
        os._exit(1)
    except (BadInput, Diverged, OSError) as error:
        reports.put(error)
        os._exit(1)
    except Exception:
        traceback.print_exc()
        os._exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("found no parent, expected a process that `processes` started")
    parent.join()
    os._exit(1)


def _end_with_any(
    others: list[SpawnProcess], reports: SimpleQueue[Exception], done: threading.Event
) -> None:
    """End this process when one of ``others`` fails: it would wait for that one in vain.

    Where that one reported why, this process is given the time to notice and to raise it.
    """
    running = list(others)
    while running:
        wait([process.sentinel for process in running])
        if done.is_set():
            return
        for process in [process for process in running if process.exitcode is not None]:
            if process.exitcode != 0 and not done.wait(0 if reports.empty() else PATIENCE_S):
                logging.error("a process of this training ended with status %d", process.exitcode)
                os._exit(1)
            running.remove(process)
