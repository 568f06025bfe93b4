"""The table that records, tables, claims and pictures take their words from."""

from dataclasses import replace

import pytest

from qcsbm.quality.extractors import EXTRACTORS
from qcsbm.quality.metrics import METRICS, OF_MODELS, OF_SAMPLES, named, names


def test_columns_of_both_tables_are_those_of_the_paper_and_what_stands_beside_them():
    assert OF_MODELS == ["nll", "asym", "nasym"]
    assert OF_SAMPLES == ["nfe", "fid", "fd", "kid", "kd", "is", "cs", "precision", "recall"]


def test_only_inception_gives_fid_kid_and_is():
    ours = ["fd", "fd_infinity", "kd", "cs", "recall"]
    theirs = ["fid", "fid_infinity", "kid", "is", "recall"]
    for extractor in EXTRACTORS:
        expected = theirs if extractor == "inception" else ours
        assert [named(metric, extractor) for metric in ours] == expected


def test_both_names_of_a_metric_are_rows_that_differ_in_what_they_need():
    for metric in METRICS.values():
        assert names(metric.name)[-1] == metric.name
        assert (metric.unbiased or metric.name) in METRICS
        if metric.inception:
            other = METRICS[metric.inception]
            assert (metric.needs, other.needs) == ("features", "inception")
            assert names(metric.name) == [other.name, metric.name]
            assert metric.unbiased is None or METRICS[metric.unbiased].inception == other.unbiased
            own = {key: getattr(metric, key) for key in ("name", "heading", "needs", "inception")}
            assert replace(other, **own, unbiased=metric.unbiased) == metric


@pytest.mark.parametrize("better, arrow", [("lower", " ↓"), ("higher", " ↑"), (None, "")])
def test_an_arrow_says_which_way_is_better(better, arrow):
    assert replace(METRICS["nll"], better=better).column == f"NLL (bits/dim){arrow}"
