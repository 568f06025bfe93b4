import sys

from qcsbm.cli import main

sys.exit(main())
