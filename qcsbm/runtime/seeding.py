"""Independent random streams, addressed by name instead of by order of use.

A draw depends only on the run's seed and on what it is for: ``generator(seed, "noise", step)``
gives the same numbers whether the steps before it ran in this process, in another one, or were
skipped by a resume. Two different addresses never share a stream.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *address: str | int) -> int:
    """A 63-bit seed for the stream ``address`` of the run ``seed``, by SHA-256."""
    digest = hashlib.sha256(json.dumps([seed, *address]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *address: str | int) -> torch.Generator:
    """A CPU generator at the start of the stream ``address`` of the run ``seed``.

    Draws are made on the CPU and moved to the device, so that a GPU sees the same numbers.
    """
    return torch.Generator().manual_seed(derive(seed, *address))


@contextmanager
def global_generator(device: torch.device, seed: int, *address: str | int) -> Iterator[None]:
    """Within, the global generators of the CPU and of ``device`` begin the stream ``address``.

    For draws that take no generator, such as initial weights and dropout. Afterwards the generators
    are where they were, so that the caller's own draws are not touched.
    """
    number = derive(seed, *address)
    # Those of other GPUs stay as they are; torch.manual_seed would set them all.
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        torch.default_generator.manual_seed(number)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(number)
        yield


def permutation(n: int, seed: int, *address: str | int) -> np.ndarray:
    """A random order (n,) of ``range(n)`` from the stream ``address`` of the run ``seed``."""
    return np.random.default_rng(derive(seed, *address)).permutation(n)
