"""Independent random streams, addressed by name instead of by order of use.

A draw depends only on the run's seed and on what it is for: ``generator(seed, "noise", step)``
gives the same numbers whether the steps before it ran in this process, in another one, or were
skipped by a resume. Two different addresses never share a stream.
"""

import hashlib
import json

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


def permutation(n: int, seed: int, *address: str | int) -> np.ndarray:
    """A random order (n,) of ``range(n)`` from the stream ``address`` of the run ``seed``."""
    return np.random.default_rng(derive(seed, *address)).permutation(n)
