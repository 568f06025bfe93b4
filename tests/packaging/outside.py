"""What a user's own folder has: a field of known asymmetry, audited from Python and by the command.

`python outside.py`, in any folder, says which package it has found, and fails where an audit does.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import qcsbm

JACOBIAN = torch.tensor([[-1.0, -0.5], [0.5, -1.0]])
NASYM = 0.2  # ‖J − Jᵀ‖² = 2 and ‖J‖² = 2.5


def field(x: torch.Tensor) -> torch.Tensor:
    return x @ JACOBIAN.T


def main() -> None:
    x = torch.randn(30, 2)
    reports = [qcsbm.audit(field, x)]
    np.save("x.npy", x.numpy())
    command = Path(sys.executable).with_name("qcsbm")
    subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)
    words = ["audit", "outside:field", "--data", "x.npy", "--out", "audit"]
    subprocess.run([command, *words], check=True)
    reports.append(qcsbm.Report.from_json("audit/audit.json"))
    for report in reports:
        assert abs(report.mean.nasym.value - NASYM) < 1e-6, report
    print(qcsbm.__version__, qcsbm.__file__)


if __name__ == "__main__":
    main()
