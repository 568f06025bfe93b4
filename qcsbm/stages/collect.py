"""Put what was measured on one dataset into a folder of its own, small enough to be committed.

It holds the experiment file, all records, the numbers, claims and tables that follow from these,
the pictures, and ``piece.json``, which says what they were computed with. Samples and checkpoints
stay behind. Beside the folders of a study are the numbers and claims of all of them. The results
are verified first; the exit status is 1 if they are not whole.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from qcsbm.auditing.prediction import PIECE
from qcsbm.experiment import agreement, specification
from qcsbm.experiment.config import read
from qcsbm.experiment.experiment import Experiment
from qcsbm.report import claims, tables, verification
from qcsbm.runtime.files import sha256, write_text
from qcsbm.runtime.provenance import read_record
from qcsbm.stages import claims as claims_stage
from qcsbm.stages import cost as cost_stage
from qcsbm.stages import table as table_stage

Records = dict[Path, dict[str, Any]]
RECORDS, EXPERIMENT = "records.jsonl", "experiment.yaml"
METRICS, CLAIMS = "metrics.csv", "claims.json"
LINES_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="the dataset, as the experiment file calls it")
    parser.add_argument("--configfile", type=Path, default=Path("config/study.yaml"))
    parser.add_argument(
        "--out", type=Path, default=Path("docs/study"), help="folder to write OUT/DATASET in"
    )
    parser.add_argument(
        "--again", action="store_true", help="only make the tables of a collected folder once more"
    )


def run(arguments: argparse.Namespace) -> int:
    dataset, folder = arguments.dataset, arguments.out / arguments.dataset
    if not arguments.again:
        experiment = read(arguments.configfile).only(dataset)
        report = verification.verify(experiment)
        if wrong := report.problems + report.missing:
            print("\n".join(f"  {line}" for line in wrong[:LINES_SHOWN]))
            print(f"{experiment.root}: {len(wrong)} files are wrong or missing, none was collected")
            return 1
        _collect(arguments.configfile, experiment, dataset, report.records, folder)
    for name, text in texts(dataset, folder).items():
        write_text(folder / name, text)
    for name, text in together(arguments.out).items():
        write_text(arguments.out / name, text)
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 2**20:.1f} MiB")
    return 0


def _collect(
    configfile: Path, experiment: Experiment, dataset: str, records: Records, folder: Path
) -> None:
    """What all else follows from, and pictures."""
    root = Path(experiment.root)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(configfile, folder / EXPERIMENT)
    by_path = {path.relative_to(root).as_posix(): record for path, record in records.items()}
    write_text(folder / RECORDS, "".join(_lines(by_path)))
    for picture in sorted((root / "figures" / dataset).glob("*.png")):
        shutil.copyfile(picture, folder / picture.name)


def _lines(records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A line for each of ``records``, by path.

    Commands are left out: they repeat the specification, and name files that stay behind.
    """
    for path, record in sorted(records.items()):
        origin = {k: v for k, v in record.get("provenance", {}).items() if k != "command"}
        kept = record | ({"provenance": origin} if origin else {})
        yield json.dumps({"path": path, "record": kept}, allow_nan=False) + "\n"


def texts(dataset: str, folder: Path) -> dict[str, str]:
    """All files that follow from the records and the experiment file in ``folder``, by name.

    Whether the records are those of the experiment was verified when they were collected.
    """
    experiment = read(folder / EXPERIMENT).only(dataset)
    records: Records = {}
    with tempfile.TemporaryDirectory() as temporary:
        for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            path = Path(temporary) / entry["path"]
            write_text(path, json.dumps(entry["record"]))
            records[Path(entry["path"])] = read_record(path)
        training = [Path(temporary) / path for path, r in records.items() if r["stage"] == "train"]
        claims_spec = specification.claims(experiment)
        seconds = claims_stage.training_seconds(claims_spec, training)
    metrics = tables.tidy(_chosen(records, specification.MEASURED)).to_csv(index=False)
    judgements = claims.about_models(pd.read_csv(StringIO(metrics)), claims_spec, seconds)
    costly = _chosen(records, specification.COSTLY)
    pages = {
        "claims": claims_stage.texts(claims_spec, judgements),
        "cost": cost_stage.texts(specification.cost(experiment), costly),
    }
    notes = agreement.code_notes(records) + agreement.machine_notes(records)
    for name, table in experiment.tables.items():
        rows = [
            record
            for record in _chosen(records, specification.table_files(table))
            if record["method"] in table.methods
        ]
        pages[name] = table_stage.texts(specification.table(experiment, name), rows, notes)
    found = {
        f"{name}{suffix}": text
        for name, page in pages.items()
        for suffix, text in page.items()
        if suffix != ".html"
    }
    facts = json.dumps(_origin(dataset, experiment, folder, records), indent=1)
    return {METRICS: metrics, PIECE: facts + "\n", **found}


def together(study: Path) -> dict[str, str]:
    """The numbers and claims of all folders in ``study``, by the name of their file."""
    folders = [path.parent for path in sorted(study.glob(f"*/{PIECE}"))]
    numbers = [pd.read_csv(folder / METRICS, dtype=str, na_filter=False) for folder in folders]
    documents = [json.loads((folder / CLAIMS).read_text(encoding="utf-8")) for folder in folders]
    judged = {key: [x for document in documents for x in document[key]] for key in documents[0]}
    return {
        METRICS: pd.concat(numbers).to_csv(index=False),
        CLAIMS: json.dumps(judged, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }


def _chosen(records: Records, files: Iterable[str]) -> list[dict[str, Any]]:
    """Those records whose files in the folder of their run match one of ``files``."""
    return [
        record
        for path, record in records.items()
        if any(fnmatchcase("/".join(path.parts[4:]), pattern) for pattern in files)
    ]


def _origin(dataset: str, experiment: Experiment, folder: Path, records: Records) -> dict[str, Any]:
    """What the records were computed with: every value that any of them has."""
    origins = [record["provenance"] for record in records.values() if "provenance" in record]
    checkouts = {json.dumps(origin["checkout"], sort_keys=True) for origin in origins}
    packages = sorted({name for origin in origins for name in origin["packages"]})
    return {
        "dataset": dataset,
        "seeds": experiment.seeds[dataset],
        "records": len(records),
        "experiment_sha256": sha256(folder / EXPERIMENT),
        "checkouts": [json.loads(text) for text in sorted(checkouts)],
        "processors": sorted({origin["processor"] for origin in origins}),
        "devices": sorted({origin["device"] for origin in origins}),
        "python": sorted({origin["python"] for origin in origins}),
        "packages": {
            name: sorted({origin["packages"].get(name, "none") for origin in origins})
            for name in packages
        },
    }
