"""Take note that the source of stages changed: `make digests`, or one stage after the other.

    python tests/regression/code_digests.py [STAGE …]

A stage whose version was raised is taken as it is. A stage whose source changed and whose version
did not has to be named: whoever does so says that its results are the same bytes as before.
"""

import json
import sys
from pathlib import Path

from qcsbm.experiment.specification import VERSIONS
from qcsbm.runtime.source_code import stage_digest

DIGESTS = Path(__file__).with_name("code.json")


def main(unchanged: list[str]) -> int:
    committed = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}
    unnamed = []
    found = {}
    for stage, version in VERSIONS.items():
        found[stage] = {"version": version, "digest": stage_digest(stage)}
        before = committed.get(stage, {"version": None})
        if before["version"] == version and before != found[stage] and stage not in unchanged:
            unnamed.append(stage)
    if unnamed:
        print(
            f"{', '.join(unnamed)}: found other source and the same version, expected a raised "
            "version in qcsbm/experiment/specification.py, or the name as an argument if results "
            "are the same",
            file=sys.stderr,
        )
        return 1
    DIGESTS.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
