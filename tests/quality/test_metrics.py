"""The table that records, tables, claims and pictures take their words from."""

from dataclasses import replace

import pytest

from qcsbm.quality.extractors import EXTRACTORS
from qcsbm.quality.metrics import METRICS, OF_MODELS, OF_SAMPLES, named, names


def test_columns_of_both_tables_have_their_headings_units_and_directions():
    def columns(metrics):
        return {name: (METRICS[name].column, METRICS[name].unit) for name in metrics}

    of_models = {
        "nll": ("NLL (bits/dim) ↓", "bits/dim"),
        "asym": ("Asym ↓", "1"),
        "nasym": ("NAsym ↓", "1"),
        "circulation": ("Circulation (nats) ↓", "nats"),
    }
    of_samples = {
        "nfe": ("NFE ↓", "evaluations"),
        "fid": ("FID ↓", "1"),
        "fd": ("FD ↓", "1"),
        "kid": ("KID ↓", "1"),
        "kd": ("KD ↓", "1"),
        "is": ("IS ↑", "1"),
        "cs": ("CS ↑", "1"),
        "precision": ("Prec. ↑", "1"),
        "recall": ("Rec. ↑", "1"),
        "density": ("Density ↑", "1"),
        "coverage": ("Coverage ↑", "1"),
    }
    assert list(columns(OF_MODELS).items()) == list(of_models.items())
    assert list(columns(OF_SAMPLES).items()) == list(of_samples.items())


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
