"""Figure 4: a one-layer autoencoder that becomes conservative without tied weights."""

import argparse
from pathlib import Path

import pandas as pd

from qcsbm.motivation import autoencoder
from qcsbm.report import pages
from qcsbm.report.figures import motivation, style
from qcsbm.runtime.files import write_text
from qcsbm.schema.specifications import Figure4Spec
from qcsbm.stages.arguments import add_spec

COLUMNS = {
    "seed": "seed",
    "l_qc_start": "L_QC, start",
    "l_qc": "L_QC, end",
    "asymmetry": "‖WRᵀ − RWᵀ‖",
    "untying": "‖W − R‖",
    "angle": "largest angle (°)",
    "slope_gap": "slope gap",
    "route": "route",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec(parser, Figure4Spec)
    parser.add_argument("--table", type=Path, required=True, help="table to write, without suffix")
    parser.add_argument(
        "--figure", type=Path, required=True, help="picture to write, without suffix"
    )


def run(arguments: argparse.Namespace) -> None:
    seeds = range(arguments.spec.seeds)
    steps = arguments.spec.steps
    trend = autoencoder.train(seeds, steps=steps)
    tied = autoencoder.train(seeds[:1], tied=True, steps=steps)
    table = outcomes(seeds, trend, tied)
    routes = table.loc[~table["tied"], "route"].tolist()
    title = "Figure 4: conservative without tied weights"
    style.save(motivation.figure4(trend, routes, tied), arguments.figure)
    write_text(f"{arguments.table}.csv", table.to_csv(index=False))
    pages.write(arguments.table, title, [section(table, steps)])


def outcomes(seeds: range, trend: autoencoder.Trend, tied: autoencoder.Trend) -> pd.DataFrame:
    """`autoencoder.outcomes` of both, with a column ``tied``."""
    untied = autoencoder.outcomes(seeds, trend).assign(tied=False)
    return pd.concat(
        [untied, autoencoder.outcomes(seeds[:1], tied).assign(tied=True)], ignore_index=True
    )


def section(table: pd.DataFrame, steps: int) -> pages.Section:
    rows = [
        [
            f"{row['seed']}, tied" if row["tied"] else str(row["seed"]),
            *(f"{row[key]:.3g}" for key in list(COLUMNS)[1:-1]),
            row["route"],
        ]
        for _, row in table.iterrows()
    ]
    counts = table.loc[~table["tied"], "route"].value_counts()
    x = autoencoder.grid()
    example = autoencoder.counterexample()
    notes = [
        f"Of {counts.sum()} seeds, {counts.get('parallel', 0)} became conservative with each r_i "
        f"parallel to its w_i, {counts.get('merged', 0)} because the two units merged, and "
        f"{counts.get('none', 0)} did not in {steps} steps (L_QC above a millionth of its start). "
        f"The smallest ‖W − R‖ is {table.loc[~table['tied'], 'untying'].min():.3g}.",
        "A symmetric RWᵀ is necessary, not sufficient: for W = I, R = [[1, 2], [2, −1]] "
        f"‖WRᵀ − RWᵀ‖ is {autoencoder.asymmetry(example).item():g} and L_QC is "
        f"{autoencoder.l_qc(example, x).item():.3g}. The verdict therefore rests on L_QC, and the "
        "angle and the difference of the units' slopes explain it.",
    ]
    return pages.Section("After training", list(COLUMNS.values()), rows, notes)
