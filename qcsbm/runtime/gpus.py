"""One GPU for each process, on a machine where no scheduler hands them out.

Snakemake counts the GPUs that its jobs use on one machine, but does not say which: all jobs would
take the first. So every GPU has the name of a socket, and the process that binds a socket to it
holds the GPU: only one can. The name is abstract, see unix(7). It leaves no file behind, all users
share it, and it is free again when the process ends, for whatever reason.
"""

import errno
import logging
import os
import socket
import time
from functools import cache

import torch

from qcsbm.runtime.errors import BadInput

JOBS_PER_GPU = "QCSBM_JOBS_PER_GPU"
RETRY_S = 1.0


@cache
def claim() -> socket.socket | None:
    """Hold a GPU that no other process holds until this one ends, and hide all others from CUDA.

    It has to be called before CUDA is initialised. It chooses among the GPUs that
    CUDA_VISIBLE_DEVICES lists, else among all, and waits until one is free. Where there are none,
    nothing is held. QCSBM_JOBS_PER_GPU lets that many processes hold the same one.

    Raises:
        BadInput: QCSBM_JOBS_PER_GPU is not a positive number.
    """
    devices, jobs = visible(), os.environ.get(JOBS_PER_GPU, "1")
    if not jobs.isdecimal() or int(jobs) < 1:
        raise BadInput(f"{JOBS_PER_GPU}: found {jobs!r}, expected a positive number")
    if not devices:
        return None
    if (held := take(devices, int(jobs))) is None:
        logging.info("waiting for one of the GPUs %s", ",".join(devices))
        while (held := take(devices, int(jobs))) is None:
            time.sleep(RETRY_S)
    os.environ["CUDA_VISIBLE_DEVICES"], lock = held
    return lock


def visible() -> list[str]:
    """The names of the GPUs that CUDA would see, as CUDA_VISIBLE_DEVICES has them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
    return [name.strip() for name in named.split(",")[:count]]


def take(devices: list[str], jobs: int) -> tuple[str, socket.socket] | None:
    """One of ``devices`` that fewer than ``jobs`` processes hold, and the socket that holds it."""
    # A scheduler gives GPUs to one job only, and may number those of each job from 0.
    allocation = os.environ.get("SLURM_JOB_ID", "")
    for place in range(jobs):
        for device in devices:
            lock = socket.socket(socket.AF_UNIX)
            try:
                lock.bind(f"\0qcsbm-gpu/{allocation}/{device}/{place}")
                return device, lock
            except OSError as error:
                lock.close()
                if error.errno != errno.EADDRINUSE:
                    raise
    return None
