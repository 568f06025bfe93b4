import pickle
import zipfile

import numpy as np
import pytest

from qcsbm.quality import reference_statistics
from qcsbm.quality.frechet import feature_statistics, frechet_distance
from qcsbm.runtime.errors import BadInput


@pytest.fixture
def path(tmp_path):
    return tmp_path / "statistics.npz"


def features(seed=0):
    return np.random.default_rng(seed).standard_normal((40, 5))


def good(seed=0):
    x = features(seed)
    return {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_published_statistics_are_those_of_the_features(path, save):
    save(path, **good())
    reference, n = reference_statistics.read(path)
    assert n is None
    expected = feature_statistics(features())
    np.testing.assert_allclose(reference.mean, expected.mean, rtol=1e-13)
    np.testing.assert_allclose(reference.covariance, expected.covariance, rtol=1e-12)
    other = feature_statistics(features(1))
    distance = frechet_distance(other, expected)
    assert distance > 0.1
    assert frechet_distance(other, reference) == pytest.approx(distance, rel=1e-12)


def test_statistics_in_single_precision_are_read_as_double(path):
    np.savez(path, **{name: array.astype(np.float32) for name, array in good().items()})
    reference, _ = reference_statistics.read(path)
    assert reference.mean.dtype == reference.covariance.dtype == np.float64
    np.testing.assert_allclose(reference.mean, good()["mu"], rtol=1e-7)


def test_asymmetry_of_the_size_of_rounding_is_read(path):
    arrays = good()
    arrays["sigma"][0, 1] += 1e-15
    np.savez(path, **arrays)
    np.testing.assert_array_equal(reference_statistics.read(path)[0].covariance, arrays["sigma"])


def test_published_features_are_read_as_their_statistics(path, monkeypatch):
    monkeypatch.setattr(reference_statistics, "BLOCK", 7)
    x = (1e4 + features()).astype(np.float32)
    np.savez_compressed(path, pool_3=x, logits=np.zeros((40, 3)))
    reference, n = reference_statistics.read(path)
    assert n == 40
    np.testing.assert_allclose(reference.mean, x.astype(np.float64).mean(0), rtol=1e-14)
    # In single precision, of which features of 10⁴ have 1e-3, the covariance would be lost.
    expected = np.cov(x.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(reference.covariance, expected, rtol=1e-9, atol=1e-12)


POOLS = {
    "nothing": (
        {"logits": np.zeros((40, 3))},
        "the arrays logits, expected mu and sigma, or pool_3",
    ),
    "no array": ({}, "the arrays none, expected mu and sigma, or pool_3"),
    "maps": ({"pool_3": np.zeros((40, 5, 1, 1))}, r"pool_3 of shape \(40, 5, 1, 1\), expected"),
    "one image": ({"pool_3": np.zeros((1, 5))}, r"pool_3 of shape \(1, 5\), expected"),
    "no features": ({"pool_3": np.zeros((40, 0))}, r"pool_3 of shape \(40, 0\), expected"),
    "whole numbers": ({"pool_3": np.zeros((40, 5), int)}, "pool_3 of int64, expected"),
    "infinity": ({"pool_3": np.append(features(), [[np.inf] * 5], 0)}, "not finite"),
}


@pytest.mark.parametrize("arrays, found", POOLS.values(), ids=POOLS)
def test_features_of_another_kind_are_one_sentence(path, arrays, found):
    np.savez(path, **arrays)
    with pytest.raises(BadInput, match=found) as error:
        reference_statistics.read(path)
    assert str(error.value).startswith(f"{path}: found ") and "\n" not in str(error.value)


def changed(name, index, value):
    def change(arrays):
        arrays[name][index] = value

    return change


FAULTS = {
    "no mu": (
        lambda arrays: arrays.pop("mu"),
        "the arrays sigma, expected mu and sigma, or pool_3",
    ),
    "no sigma": (
        lambda arrays: arrays.pop("sigma"),
        "the arrays mu, expected mu and sigma, or pool_3",
    ),
    "features instead": (lambda arrays: arrays.update(sigma=np.zeros((40, 5))), r"\(40, 5\)"),
    "other width": (lambda arrays: arrays.update(mu=np.zeros(4)), r"\(4,\)"),
    "mu in a row": (lambda arrays: arrays.update(mu=np.zeros((1, 5))), r"\(1, 5\)"),
    "scalars": (lambda arrays: arrays.update(mu=np.zeros(()), sigma=np.ones(())), r"shape \(\)"),
    "nan in mu": (changed("mu", 2, np.nan), "not finite"),
    "infinity in sigma": (changed("sigma", (1, 1), np.inf), "not finite"),
    "asymmetric": (changed("sigma", (0, 1), 7.0), "differs from its transpose"),
    "complex": (lambda arrays: arrays.update(mu=np.zeros(5, dtype=complex)), "complex128"),
    "text": (lambda arrays: arrays.update(mu=np.array(list("abcde"))), "<U1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_anything_else_is_one_sentence(path, fault):
    change, found = FAULTS[fault]
    arrays = good()
    change(arrays)
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=found) as error:
        reference_statistics.read(path)
    assert str(error.value).startswith(f"{path}: found ")
    assert "expected" in str(error.value) and "\n" not in str(error.value)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(path):
    np.savez(path, mu=np.array([Trap()], dtype=object), sigma=np.ones((1, 1)))
    with pytest.raises(ValueError, match="Python objects"):
        reference_statistics.read(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="found nothing usable"):
        reference_statistics.read(path)


def test_a_header_that_announces_more_than_there_is_takes_no_memory(path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }\n"
    with zipfile.ZipFile(path, "w") as archive:
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        archive.writestr("sigma.npy", content)
        archive.writestr("mu.npy", content)
    with pytest.raises(ValueError, match="0 bytes for the 8000000000000"):
        reference_statistics.read(path)


def test_missing_file_is_one_sentence(path):
    with pytest.raises(FileNotFoundError, match="found no such file"):
        reference_statistics.read(path)
