"""``python -m qcsbm <stage>``: one subcommand per stage of the workflow.

Bad input ends in one sentence on standard error and exit status 2, a failed computation in one
sentence and exit status 1.
"""

import argparse
import importlib
import logging
import os
import sys

STAGES = {
    "prepare": "write a dataset as uint8 arrays",
    "classifier": "train the classifier that extracts features",
    "train": "train a model up to a checkpoint",
    "sample": "generate images with a trained model",
    "features": "extract features of images",
    "quality": "compare samples with reference images",
    "likelihood": "measure NLL on the test split",
    "asymmetry": "measure Asym and NAsym on the test split",
    "metrics": "gather records into one CSV",
    "table": "make a table from records",
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(prog="qcsbm", description=__doc__.split("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    module = None
    for name, summary in STAGES.items():
        stage = stages.add_parser(name, help=summary, description=summary)
        # Only the stage that runs is imported: torch and its like take seconds.
        if argv[:1] == [name]:
            module = importlib.import_module(f"qcsbm.stages.{name}")
            module.add_arguments(stage)
    arguments = parser.parse_args(argv)
    _fix_arithmetic()
    try:
        module.run(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"qcsbm {arguments.stage}: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, OSError) as error:
        print(f"qcsbm {arguments.stage}: {error}", file=sys.stderr)
        return 1
    return 0


def _fix_arithmetic() -> None:
    """Make results a function of the input alone: one thread, deterministic kernels, no TF32."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
