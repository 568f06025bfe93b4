"""Where tensors are computed, and how."""

import os

import torch

from qcsbm.runtime import gpus


def claim_device() -> torch.device:
    """A GPU that becomes this process's own if this machine has one, else the CPU.

    All other GPUs are hidden from CUDA, see `qcsbm.runtime.gpus`. Later calls give the same one.
    """
    gpus.claim()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fix_arithmetic() -> None:
    """Make results a function of the input alone: one thread, deterministic kernels, no TF32."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.set_num_threads(1)
    # `torch.use_deterministic_algorithms` tells the compiler too, whose import takes a second.
    torch.set_deterministic_debug_mode("error")
    # On a GPU, threads of their own would number second derivatives by their history, and gradients
    # are added in the order of these numbers.
    torch.autograd.set_multithreading_enabled(False)
    allow_tf32(False)


def allow_tf32(allowed: bool) -> None:
    """Let GPUs round the factors of products and convolutions to 10 bits, or not."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
