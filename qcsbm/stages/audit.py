"""Measure how far a model of one's own is from a gradient: a table, JSON and one page."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from qcsbm.adapters.ase import from_calculator, load_calculator, read_structures
from qcsbm.adapters.diffusers import pair_from_diffusers
from qcsbm.adapters.load import load
from qcsbm.auditing.audit import DTYPES, LEVELS, audit
from qcsbm.auditing.data import samples
from qcsbm.auditing.force_report import ForceReport
from qcsbm.auditing.forces import audit_forces
from qcsbm.auditing.guidance import audit_guidance
from qcsbm.auditing.guidance_report import GuidanceReport
from qcsbm.auditing.measurement import like
from qcsbm.auditing.report import Report
from qcsbm.conservativeness.estimates import PRODUCTS
from qcsbm.runtime.device import claim_device
from qcsbm.runtime.errors import BadInput
from qcsbm.score.kinds import Kind
from qcsbm.score.schedules import NAMED, Discrete, Schedule, levels, parse

SAMPLES = 32
# Levels: whoever asks for more means the noise of one.
MOST = 100
# Samples of the calls that choose the number of threads, and what more of them have to save.
TRIED, FASTER = 8, 0.9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder of a model of diffusers, published checkpoint .pth, or module:function; with "
        "--kind force and structures, a function that returns a calculator of ASE",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help=".npy or .npz file (n, ...), folder of images or of a prepared dataset, or, with "
        "--kind force, file of structures that ASE reads",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--levels",
        type=_level,
        nargs="+",
        default=[LEVELS],
        help="number of noise levels, or the noise of each relative to the data: 0.1 1.0 10.0; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--samples",
        type=_number,
        default=SAMPLES,
        help="random samples of DATA, default: %(default)s",
    )
    parser.add_argument(
        "--probes", type=_probes, help="probes of each sample, or exact; default: as many as needed"
    )
    parser.add_argument(
        "--products", choices=PRODUCTS, help="default: the first of them that the model allows"
    )
    parser.add_argument(
        "--kind", choices=get_args(Kind), help="what a function's values are, default: score"
    )
    parser.add_argument(
        "--kinds", choices=get_args(Kind), nargs="+", default=[], help="as what else NAsym is shown"
    )
    parser.add_argument(
        "--schedule",
        help=f"noise of a function: {', '.join(NAMED)}, with its settings as in "
        "ve:sigma_min=0.01,sigma_max=50",
    )
    parser.add_argument("--label", type=int, help="class of a class-conditional model")
    parser.add_argument(
        "--guidance",
        type=float,
        nargs="+",
        help="weight of classifier-free guidance: 0 is the model without a class, 1 that of the "
        "class; several for kappa^2 against the weight",
    )
    parser.add_argument(
        "--unconditional",
        metavar="MODEL",
        help="what to guide MODEL from, by another name; default: a folder of diffusers without "
        "the class",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")


def run(arguments: argparse.Namespace) -> None:
    if arguments.out.exists() and not arguments.out.is_dir():
        raise BadInput(f"--out: found the file {arguments.out}, expected a folder to write into")
    if arguments.kind == "force" and not (
        arguments.data.is_dir() or arguments.data.suffix in (".npy", ".npz")
    ):
        _run_forces(arguments)
        return
    settings = {name: getattr(arguments, name) for name in ("kind", "schedule", "label")}
    if arguments.schedule is not None:
        settings["schedule"] = parse(arguments.schedule)
    settings = {name: value for name, value in settings.items() if value is not None}
    if arguments.unconditional is not None or len(arguments.guidance or ()) > 1:
        _run_guidance(arguments, settings)
        return
    if arguments.guidance:
        settings["guidance"] = arguments.guidance[0]
    field = load(arguments.model, **settings)
    x = samples(arguments.data, field, arguments.samples, arguments.seed).to(claim_device())
    times = _times(arguments.levels, field.schedule)
    some = x[:TRIED]
    with _arithmetic(lambda: field(some, like(times[-1] if times else None, some))):
        report = audit(
            field,
            x,
            times,
            kinds=arguments.kinds,
            products=arguments.products,
            probes=arguments.probes,
            dtype=arguments.dtype,
            seed=arguments.seed,
            progress=True,
        )
    _show(report, arguments.out)


def _run_guidance(arguments: argparse.Namespace, settings: dict[str, object]) -> None:
    """Audit a model guided from another one, at several weights."""
    if not arguments.guidance:
        raise BadInput("--guidance: found no weight with --unconditional, expected some")
    if arguments.kinds:
        raise BadInput("--kinds: found some, expected none with several weights of guidance")
    if arguments.unconditional is not None:
        names = (arguments.model, arguments.unconditional)
        pair = (load(names[0], **settings), load(names[1], **settings))
    elif Path(arguments.model).is_dir() and settings.keys() == {"label"}:
        pair = pair_from_diffusers(arguments.model, arguments.label)
    else:
        raise BadInput(
            "--guidance: found several weights, expected --unconditional with them, or the folder "
            "of a model of diffusers with --label and without --kind and --schedule"
        )
    x = samples(arguments.data, pair[0], arguments.samples, arguments.seed).to(claim_device())
    times = _times(arguments.levels, pair[0].schedule)
    some = x[:TRIED]
    with _arithmetic(lambda: pair[0](some, like(times[-1] if times else None, some))):
        report = audit_guidance(
            pair,
            x,
            times,
            arguments.guidance,
            products=arguments.products,
            probes=arguments.probes,
            dtype=arguments.dtype,
            seed=arguments.seed,
            progress=True,
        )
    _show(report, arguments.out)


def _run_forces(arguments: argparse.Namespace) -> None:
    """Audit a calculator of ASE at structures."""
    for name in ("schedule", "label", "guidance", "unconditional", "products", "dtype"):
        if getattr(arguments, name) is not None:
            raise BadInput(f"--{name}: found one, expected none for a calculator of ASE")
    if arguments.kinds or arguments.levels != [LEVELS]:
        raise BadInput("--kinds, --levels: found some, expected none for a calculator of ASE")
    calculator = load_calculator(arguments.model)
    frame = read_structures(arguments.data)[0]
    # A calculator keeps the forces at the positions of its last call.
    x = torch.from_numpy(np.stack([frame.positions, frame.positions + 0.01]))
    with _arithmetic(lambda: from_calculator(calculator, frame)(x, x.new_zeros(2))):
        report = audit_forces(
            calculator,
            arguments.data,
            probes=arguments.probes,
            samples=arguments.samples,
            seed=arguments.seed,
            progress=True,
        )
    _show(report, arguments.out)


def _show(report: Report | ForceReport | GuidanceReport, folder: Path) -> None:
    """The table first, so that it is there whatever happens to the files."""
    print(report)
    report.to_json(folder / "audit.json")
    write_figures(report, folder)


def write_figures(report: Report | ForceReport | GuidanceReport, folder: Path) -> None:
    """The figure and, unless it is one of guidance, the page of an audit, or why there are none."""
    # It says of every table of a font that it is there.
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    try:
        for suffix in (".png", ".svg"):
            report.plot(folder / f"audit{suffix}")
        if not isinstance(report, GuidanceReport):
            report.page(folder / "audit.pdf")
    except BadInput as error:
        print(f"qcsbm audit: {error}", file=sys.stderr)


@contextmanager
def _arithmetic(evaluate: Callable[[], object]) -> Iterator[None]:
    """Within, several cores may be used, and operations that are never deterministic are allowed.

    Unlike a job of the workflow, an audit may have the machine for itself, and its model may need
    any operation. ``evaluate`` is a call of the model, which tells how many cores it can use.
    """
    threads = torch.get_num_threads()
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn" if mode else "default")
    try:
        _set_threads(evaluate)
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)


def _set_threads(evaluate: Callable[[], object]) -> None:
    """As many threads as make a call faster, unless OMP_NUM_THREADS says how many.

    Where other processes need the cores too, threads wait for each other: two have taken 22 times
    as long as one.
    """
    if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads, most = 1, cores or 1
    # What is wrong with the model, the audit says.
    with suppress(Exception), torch.no_grad():
        evaluate()
        best = _seconds(evaluate, threads)
        while threads < most:
            more = min(2 * threads, most)
            taken = _seconds(evaluate, more)
            if taken > FASTER * best:
                break
            threads, best = more, taken
    torch.set_num_threads(threads)


def _seconds(evaluate: Callable[[], object], threads: int) -> float:
    """Of the faster of two calls."""
    torch.set_num_threads(threads)
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        evaluate()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _times(wanted: list[int | float], schedule: Schedule | None) -> list[float] | None:
    if schedule is None:
        if wanted != [LEVELS]:
            raise BadInput(
                "--levels: found noise levels, expected none for a field without a schedule"
            )
        return None
    if len(wanted) == 1 and isinstance(wanted[0], int):
        if wanted[0] > MOST:
            raise BadInput(
                f"--levels: found {wanted[0]} levels, expected at most {MOST}; a level with so "
                f"much noise is {wanted[0]}.0"
            )
        return levels(schedule, wanted[0]).tolist()
    times = schedule.time(torch.tensor(wanted, dtype=torch.float64))
    return (times.round() if isinstance(schedule, Discrete) else times).tolist()


def _level(text: str) -> int | float:
    try:
        number = int(text) if text.isdecimal() else float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a positive number")
    return number


def _probes(text: str) -> int | str:
    if text == "exact":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a positive number or exact")
    return int(text)


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a positive whole number")
    return int(text)
