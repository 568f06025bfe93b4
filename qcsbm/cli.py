"""``python -m qcsbm``: tools around an experiment, and the stages of its workflow.

Bad input (`qcsbm.runtime.errors.BadInput`) ends in one sentence on standard error and exit status
2, a failed computation (`qcsbm.runtime.errors.Diverged`) and what the system refuses (OSError: the
disk is full) in one sentence and exit status 1. Where a stage has outputs that tables are made of,
its failed computation is a result, see `qcsbm.runtime.failure`: the sentence stands in them, and
the status is 0. Any other exception is a mistake of this package, and ends in its traceback and
exit status 1.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from qcsbm.experiment import outside_models
from qcsbm.runtime import failure, outside, own_code, source_code
from qcsbm.runtime.errors import BadInput, Diverged
from qcsbm.stages.arguments import read_spec

TOOLS = {
    "audit": "measure how far a model of one's own is from a gradient",
    "compare": "compare two audits, or two result folders",
    "status": "show what is done, running, failed, interrupted, stale and missing",
    "verify": "check a result folder against its experiment file",
    "collect": "put the results on one dataset into a folder that explains itself",
    "describe": "print what an experiment file makes of one dataset and method",
    "import-checkpoint": "convert a published PyTorch checkpoint",
    "fetch": "download a dataset",
}
STAGES = {
    "prepare": "write a dataset as uint8 arrays",
    "classifier": "train the classifier that extracts features",
    "train": "train a model up to a checkpoint",
    "sample": "generate a shard of a model's samples",
    "gather_samples": "put the shards of samples together",
    "features": "extract features of images",
    "quality": "compare samples with reference images",
    "likelihood": "measure NLL on a shard of the test split",
    "gather_likelihood": "put the shards of likelihoods together",
    "asymmetry": "measure Asym and NAsym at a shard of the noise levels",
    "gather_asymmetry": "put the shards of asymmetries together",
    "circulation": "measure the circulation of the score around triangles",
    "gather_records": "put all numbers of records into one CSV",
    "table": "make a table from records",
    "cost": "make the table of costs from records",
    "figure1": "count steps to the mode under perturbed scores (Figure 1)",
    "figure4": "make untied autoencoders conservative (Figure 4)",
    "figures": "draw all pictures of the trained models of a dataset",
    "toy": "train and measure a model in two dimensions",
    "toy_table": "make the table of the two-dimensional examples",
    "toy_figure": "draw the models of a two-dimensional example",
    "claims": "judge the paper's claims by what was measured",
}


def parser(commands: Iterable[str] = TOOLS) -> argparse.ArgumentParser:
    """All tools and the stages among ``commands``, with the arguments of ``commands`` alone.

    Only the modules of these are imported: torch and its like take seconds.
    """
    listing = "\n".join(f"  {name:20}{summary}" for name, summary in STAGES.items())
    parser = argparse.ArgumentParser(
        prog="qcsbm",
        description="Tools around an experiment, and the stages of its workflow.",
        epilog=f"stages, which the workflow's jobs run one at a time:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tools = parser.add_subparsers(title="tools", dest="stage", required=True, metavar="COMMAND")
    known = TOOLS | {name: STAGES[name] for name in commands if name in STAGES}
    for name, summary in known.items():
        # Stages are listed by themselves, below.
        listed: dict[str, Any] = {"help": summary} if name in TOOLS else {}
        command = tools.add_parser(name, description=summary, **listed)
        if name in commands:
            _module(name).add_arguments(command)
    return parser


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"qcsbm.stages.{command.replace('-', '_')}")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO)
    understood = parser(argv[:1])
    arguments = understood.parse_args(argv)
    if arguments.stage != argv[0]:
        understood.error(f"found {argv[0]!r} before the command, expected nothing there")
    module = _module(arguments.stage)
    try:
        read_spec(arguments)
        return _run(module, arguments)
    except (BadInput, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        _say(arguments.stage, error)
        return 2
    except (Diverged, OSError) as error:
        _say(arguments.stage, error)
        return 1


def _run(module: ModuleType, arguments: argparse.Namespace) -> int:
    """Run the stage ``module``, or put the reason in place of its outputs why it has no result.

    The exit status is the stage's own where it has one.

    Raises:
        Diverged: the computation failed, and the stage has no such outputs.
    """
    if arguments.stage in STAGES:
        from threadpoolctl import threadpool_limits

        # One thread per job, of NumPy's and SciPy's libraries too: sums depend on their number.
        threadpool_limits(1)
    if "torch" in sys.modules:
        from qcsbm.runtime.device import fix_arithmetic

        fix_arithmetic()
    outputs = [getattr(arguments, name) for name in getattr(arguments, "outputs", ())]
    reason = failure.first(_inputs(arguments, outputs)) if outputs else None
    if reason is None:
        try:
            _require_planned(arguments)
            return module.run(arguments) or 0
        except Diverged as error:
            if not outputs:
                raise
            _say(arguments.stage, error)
            reason = str(error)
    failure.write(outputs, reason, arguments.spec)
    return 0


def _say(stage: str, error: Exception) -> None:
    # Names of files and messages of libraries may have line breaks.
    print(f"qcsbm {stage}: {' '.join(str(error).split())}", file=sys.stderr)


def _require_planned(arguments: argparse.Namespace) -> None:
    """Refuse code, and files from outside, other than those that this job was planned with.

    Raises:
        BadInput: there are some.
    """
    planned, found = os.environ.get(source_code.PLANNED), source_code.package_digest()
    if planned and planned != found:
        raise BadInput(
            f"{source_code.PACKAGE}: found code with digest {found[:12]}, expected {planned[:12]}, "
            "the code that planned this job: it was changed since, or is another installation; run "
            "snakemake again"
        )
    spec: Any = getattr(arguments, "spec", None)
    for name, sha256 in getattr(spec, "outside", {}).items():
        if name == "network":
            own_code.require(spec.model.network.type, sha256)
        elif name == "model":
            outside_models.require(spec.model.source, sha256)
        elif path := getattr(arguments, name, None):
            # A measurement is given all files of its model, and the checkpoint is one of them.
            for file in path if isinstance(path, list) else [path]:
                outside.require(file, sha256)


def _inputs(arguments: argparse.Namespace, outputs: list[Path]) -> list[Path]:
    """All paths among the arguments but those of ``outputs``."""
    values = [
        item
        for value in vars(arguments).values()
        for item in (value if isinstance(value, list) else [value])
    ]
    return [item for item in values if isinstance(item, Path) and item not in outputs]
