import sys

from qcsbm.cli import main
from qcsbm.runtime.terminal import show_plainly

show_plainly()
sys.exit(main())
