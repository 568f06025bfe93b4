import sys

from qcsbm.cli import main
from qcsbm.runtime.terminal import show_plainly


def run() -> int:
    show_plainly()
    return main()


if __name__ == "__main__":
    sys.exit(run())
