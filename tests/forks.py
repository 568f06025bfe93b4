"""Snakemake in forks of one process, as importing it takes longer than planning a few jobs.

Every line of standard input is a call as JSON: its arguments, folder, environment, file of output
and of errors, and the seconds after which it is killed. Its exit status is printed.
"""

import json
import os
import signal
import sys

import pydantic  # noqa: F401
import yaml  # noqa: F401
from snakemake import cli, report, workflow  # noqa: F401


def run(arguments, folder, environment, output, errors, seconds):
    """As ``python -m snakemake`` does in a process of its own."""
    signal.alarm(seconds)
    for number, file in ((0, os.devnull), (1, output), (2, errors)):
        os.dup2(os.open(file, os.O_RDWR), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, folder)
    sys.argv = ["snakemake", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    return 0


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = run(**json.loads(line))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
