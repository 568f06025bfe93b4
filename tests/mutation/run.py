"""Which small mistakes do the tests see? ``python tests/mutation/run.py --help``

Mutants of every module are drawn at random. Each is written into a copy of the tree, where those
tests run that pass through its lines, quick ones first, until one fails. A mutant costs a fork of
a process that has imported the libraries already; jobs that tests start see it too, as the copy is
first on their path.

Tests that are slow or run the ci tier are left out, and a mutant is given no more than `SECONDS` of
tests: the whole suite sees at least what is reported here.
"""

import argparse
import contextlib
import csv
import fnmatch
import hashlib
import importlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import coverage
import pytest
from mutants import Mutant, mutants

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
SECONDS = 40.0
CONTROL_EVERY = 20


class Recorder:
    """A pytest plugin: the processor time of every test, and the lines that it passes through."""

    def __init__(self, measured: coverage.Coverage):
        self.measured, self.seconds = measured, {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        left_out = ("slow", "cluster")
        items[:] = [
            item
            for item in items
            if "ci" not in item.fixturenames and not any(map(item.get_closest_marker, left_out))
        ]
        # A test that happens to be the first to import a module passes through all of it.
        for path in Path.cwd().glob("qcsbm/**/*.py"):
            if path.stem != "__main__":
                name = ".".join(path.relative_to(Path.cwd()).with_suffix("").parts)
                importlib.import_module(name.removesuffix(".__init__"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> object:
        self.measured.switch_context(item.nodeid)
        begin = sum(os.times()[:4])
        result = yield
        self.seconds[item.nodeid] = sum(os.times()[:4]) - begin
        return result


def copy_tree(to: Path) -> Path:
    """The files that are in the repository, or that git does not ignore, copied to ``to``."""
    shutil.rmtree(to, ignore_errors=True)
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def start(tree: Path, work: Callable[[], int]) -> int:
    """The id of a process that ends with the status of ``work``, done in ``tree``."""
    if pid := os.fork():
        return pid
    os.setsid()
    os.chdir(tree)
    # By date and size, the bytecode of one mutant could be taken for that of the next.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree), "MPLBACKEND": "agg"}
    sys.path.insert(0, str(tree))
    log = os.open(tree.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        status = work()
    finally:
        os._exit(status)


def run_pytest(tree: Path, arguments: list[str], plugins: list | None = None) -> int:
    temporary = f"--basetemp={tree.with_suffix('.tmp')}"
    return pytest.main(["-q", "-p", "no:cacheprovider", temporary, *arguments], plugins)


def tests_by_line(tree: Path) -> tuple[dict[str, float], dict[str, dict[str, list[str]]]]:
    """Seconds by test, and by file and line the tests that pass there, of what is in ``tree``.

    Both are kept beside ``tree`` for as long as package and tests stay as they are, with the names
    of the libraries that tests import: they are imported here, once for all mutants.
    """
    digest = hashlib.sha256()
    for path in sorted([*tree.glob("qcsbm/**/*.py"), *tree.glob("tests/**/*.py")]):
        digest.update(path.read_bytes())
    kept = tree.with_name(f"{digest.hexdigest()[:16]}.json")

    def measure() -> int:
        measured = coverage.Coverage(data_file=None, source=[str(tree / "qcsbm")])
        recorder = Recorder(measured)
        measured.start()
        status = run_pytest(tree, ["tests"], [recorder])
        measured.stop()
        data = measured.get_data()
        files = {str(Path(name).relative_to(tree)): name for name in data.measured_files()}
        lines = {short: data.contexts_by_lineno(name) for short, name in files.items()}
        libraries = [
            name
            for name, module in sys.modules.items()
            if "site-packages" in (getattr(module, "__file__", None) or "")
        ]
        if status == 0:
            kept.write_text(json.dumps([recorder.seconds, lines, libraries]))
        return status

    if not kept.exists() and os.waitpid(start(tree, measure), 0)[1]:
        raise SystemExit(f"{tree.with_suffix('.log')}: found tests that fail, expected none")
    seconds, lines, libraries = json.loads(kept.read_text())
    for name in libraries:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    return seconds, lines


def tests_of(mutant: Mutant, seconds: dict, by_line: dict) -> list[str]:
    """The tests that pass through the lines of ``mutant``, quick ones first, up to `SECONDS`."""
    if mutant.path.endswith(".smk"):
        files = {name.split("::")[0] for name in seconds}
        files = {name for name in files if "snakemake(" in (ROOT / name).read_text()}
        chosen = {name for name in seconds if name.split("::")[0] in files}
    else:
        lines = by_line.get(mutant.path, {})
        first, last = mutant.lines
        chosen = {name for n in range(first, last + 1) for name in lines.get(str(n), [])} - {""}
        if not chosen:  # what runs while a module is imported is seen by all that use it
            chosen = {name for names in lines.values() for name in names} - {""}
    ordered = sorted(chosen, key=seconds.__getitem__)
    total = 0.0
    for i, name in enumerate(ordered):
        total += seconds[name]
        if i and total > SECONDS:
            return ordered[:i]
    return ordered


def outcomes(
    jobs: list[tuple[Mutant, bool]], trees: list[Path], seconds: dict, by_line: dict
) -> Iterator[tuple[Mutant, bool, str]]:
    """Each of ``jobs``, a mutant and whether it is made at all, with what came of it."""
    queue, free, running = jobs[::-1], list(trees), {}
    while queue or running:
        while queue and free:
            mutant, made = queue.pop()
            tests = tests_of(mutant, seconds, by_line)
            if not tests:
                yield mutant, made, "no test"
                continue
            tree = free.pop()
            if made:
                source = (ROOT / mutant.path).read_bytes()
                (tree / mutant.path).write_bytes(mutant.apply(source))
            limit = 30 + 3 * math.ceil(sum(seconds[name] for name in tests))

            def work(tree: Path = tree, tests: list[str] = tests, limit: int = limit) -> int:
                resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
                return run_pytest(tree, ["-x", *tests])

            # A process that waits for nothing takes no time of a processor.
            running[start(tree, work)] = mutant, made, tree, time.monotonic() + 20 * limit
        pid, status = os.waitpid(-1, os.WNOHANG)
        late = next((p for p, job in running.items() if job[3] < time.monotonic()), 0)
        if not pid and late:
            os.killpg(late, signal.SIGKILL)
            pid, status = os.waitpid(late, 0)
        if not pid:
            time.sleep(0.05)
            continue
        mutant, made, tree, _ = running.pop(pid)
        shutil.copy2(ROOT / mutant.path, tree / mutant.path)
        free.append(tree)
        yield mutant, made, "killed" if status else "survived"


def table(counts: dict[str, Counter], totals: dict[str, int]) -> str:
    """Scores by module and, weighted by the number of their mutants, of all; in Markdown."""
    rows = ["| module | mutants | drawn | seen | not seen |", "|---|---|---|---|---|"]
    score = variance = 0.0
    for path, outcome in sorted(counts.items()):
        n, seen = sum(outcome.values()), outcome["killed"]
        rows.append(f"| `{path}` | {totals[path]} | {n} | {seen} | {n - seen} |")
        weight = totals[path] / sum(totals[name] for name in counts)
        p = (seen + 2) / (n + 4)  # Agresti & Coull (1998): all of a few seen does not prove all
        score += weight * seen / n
        variance += weight**2 * p * (1 - p) / n * (1 - n / totals[path])
    rows.append(f"\nseen: {score:.1%} ± {1.96 * math.sqrt(variance):.1%}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", default=["qcsbm/*", "workflow/rules/*"])
    parser.add_argument("--per-file", type=int, default=20, help="mutants of each file")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of mutants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=ROOT / ".mutants", help="folder for copies")
    arguments = parser.parse_args()

    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    trees = [copy_tree(work / f"tree{i}") for i in range(arguments.jobs)]
    seconds, by_line = tests_by_line(trees[0])

    equivalent = {line.split("  #")[0] for line in EQUIVALENT.read_text().splitlines()}
    totals, jobs = {}, []
    for path in sorted([*ROOT.glob("qcsbm/**/*.py"), *ROOT.glob("workflow/rules/*.smk")]):
        name = str(path.relative_to(ROOT))
        found = [mutant for mutant in mutants(ROOT, name) if str(mutant) not in equivalent]
        if found and any(fnmatch.fnmatch(name, pattern) for pattern in arguments.paths):
            totals[name] = len(found)
            drawn = random.Random(f"{arguments.seed} {name}")
            jobs += [(m, True) for m in drawn.sample(found, min(arguments.per_file, len(found)))]
    jobs += [(mutant, False) for mutant, _ in jobs[::CONTROL_EVERY]]

    counts = defaultdict(Counter)
    with open(work / "outcomes.csv", "w", newline="") as file:
        writer = csv.writer(file)
        for mutant, made, outcome in outcomes(jobs, trees, seconds, by_line):
            if not made and outcome != "survived":
                raise SystemExit(f"the tests of {mutant}: found some that fail without it")
            if made:
                writer.writerow([outcome, mutant.path, mutant.lines[0], mutant])
                file.flush()
                counts[mutant.path][outcome] += 1
            if made and outcome != "killed":
                print(f"{outcome}: line {mutant.lines[0]} of {mutant}", flush=True)
    print(table(counts, totals))


if __name__ == "__main__":
    main()
