"""Dataset readers on tiny files in each real format, sound and damaged, and prepared datasets."""

import argparse
import functools
import gzip
import hashlib
import http.server
import os
import pickle
import shutil
import struct
import threading
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision.datasets
import yaml
from conftest import in_process, preparing
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from qcsbm.data import imagenet32, splits
from qcsbm.data.local import random_order
from qcsbm.data.sources import SOURCES
from qcsbm.data.splits import SPLITS
from qcsbm.experiment.config import ConfigError, load
from qcsbm.schema.document import Dataset
from qcsbm.schema.sources import (
    Arrays,
    Cifar10,
    Cifar100,
    Digits,
    Folder,
    Idx,
    ImageNet32,
    Patches,
    Svhn,
)
from qcsbm.stages import fetch as fetching

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder where datasets are."""
    monkeypatch.setenv("QCSBM_DATA", str(tmp_path))
    return tmp_path


def read(config):
    return SOURCES[config.source](config)


def random_images(n, shape=(3, 32, 32), seed=0):
    """Images (n, *shape) that are all different, as their first bytes count them."""
    images = np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)
    images.reshape(n, -1)[:, :2] = np.stack(np.divmod(np.arange(n), 256), 1)
    return images


def assert_same_pairs(split, images, labels):
    """``split`` holds exactly these images with their labels, in any order."""
    order = np.lexsort(split.images.reshape(len(split.images), -1)[:, 1::-1].T)
    expected = np.lexsort(images.reshape(len(images), -1)[:, 1::-1].T)
    assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64
    assert np.array_equal(split.images[order], images[expected])
    assert np.array_equal(split.labels[order], np.asarray(labels)[expected])
    # Of 24 images or more, one in 24! orders is that of the file.
    assert not np.array_equal(split.images, images)


def assert_sentence(error, *parts):
    message = str(error.value)
    assert "\n" not in message and "expected" in message
    for part in parts:
        assert str(part) in message, message


# --- sources that scikit-learn ships ---


def test_digits_are_split_by_class():
    data = read(Digits(source="digits", test=360))
    assert data.levels == 17
    assert data.train.images.shape == (1437, 1, 8, 8)
    assert data.test.images.shape == (360, 1, 8, 8)
    images = np.concatenate([data.train.images, data.test.images])
    assert images.dtype == np.uint8 and images.min() == 0 and images.max() == 16
    # Both splits together are all the digits, each once.
    everything = load_digits().images.astype(np.uint8)[:, None]
    assert sorted(map(bytes, images)) == sorted(map(bytes, everything))
    share = 360 / 1797
    counts = np.bincount(np.concatenate([data.train.labels, data.test.labels]))
    assert counts.tolist() == np.bincount(load_digits().target).tolist()
    # Whole images: a stratified share of a class is rounded up or down.
    assert (np.abs(np.bincount(data.test.labels) - share * counts) < 1).all()


def coordinates(height, width):
    """Two photographs each of whose pixels has a colour of its own: the number of the pixel."""
    number = np.arange(2 * height * width).reshape(2, height, width)
    return np.stack([number >> 16, number >> 8 & 255, number & 255], -1).astype(np.uint8)


def pixel_numbers(images):
    """(N, H, W) from images (N, 3, H, W) cut from `coordinates`."""
    red, green, blue = images.astype(np.int64).transpose(1, 0, 2, 3)
    return red << 16 | green << 8 | blue


@pytest.mark.parametrize(
    "size, train, test, height, width",
    [
        # All positions: 29 rows, two bands with 4 · 4 columns for training, of which a patch covers
        # 4 from 13 left edges, and one left edge for testing.
        (4, 2 * 29 * 26, 2 * 29 * 2, 32, 41),
        # What the quick tier asks for, in the size of the real photographs.
        (16, 8192, 1024, 427, 640),
    ],
)
def test_no_pixel_is_in_training_and_test_patches(monkeypatch, size, train, test, height, width):
    class Bunch:
        images = list(coordinates(height, width))

    monkeypatch.setattr("sklearn.datasets.load_sample_images", Bunch)
    data = read(Patches(source="patches", size=size, train=train, test=test))
    numbers = {name: pixel_numbers(getattr(data, name).images) for name in SPLITS}
    assert not np.intersect1d(numbers["train"], numbers["test"]).size
    for name, wanted in [("train", train), ("test", test)]:
        corner = numbers[name][:, :1, :1]
        square = np.arange(size)[:, None] * width + np.arange(size)
        assert np.array_equal(numbers[name], corner + square), (
            "a patch is a square of one photograph"
        )
        assert len(np.unique(corner)) == len(corner) == wanted, "positions differ"
        assert len(np.unique(corner // (height * width))) == 2, "both photographs are used"


@pytest.mark.parametrize("change", [{"train": 1509}, {"test": 117}])
def test_more_patches_than_positions_are_refused(monkeypatch, change):
    class Bunch:
        images = list(coordinates(32, 41))

    monkeypatch.setattr("sklearn.datasets.load_sample_images", Bunch)
    config = Patches(source="patches", size=4, train=1508, test=116)
    with pytest.raises(ValueError) as error:
        read(config.model_copy(update=change))
    (name, wanted), *_ = change.items()
    assert_sentence(error, f"data.{name}: found {wanted}, expected at most {wanted - 1}")


def test_patches_of_the_real_photographs():
    config = Patches(source="patches", size=8, train=64, test=32)
    data = read(config)
    assert data.levels == 256
    assert data.train.images.shape == (64, 3, 8, 8) and data.train.images.dtype == np.uint8
    assert data.test.images.shape == (32, 3, 8, 8)
    assert (data.train.labels == -1).all() and (data.test.labels == -1).all()
    longer = read(config.model_copy(update={"train": 128}))
    assert np.array_equal(longer.train.images[:64], data.train.images), "a prefix is a subset"


# --- IDX ---


def idx_bytes(array, kind=8):
    return (
        bytes([0, 0, kind, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.fixture
def fashion(root):
    """A tiny Fashion-MNIST: name → content of its files."""
    folder = root / "fashion-mnist"
    folder.mkdir()
    arrays = {}
    for prefix, n, seed in [("train", 40, 0), ("t10k", 24, 1)]:
        arrays[f"{prefix}-images-idx3-ubyte"] = random_images(n, (5, 7), seed)
        arrays[f"{prefix}-labels-idx1-ubyte"] = np.arange(n, dtype=np.uint8) % 10
    for name, array in arrays.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return folder, arrays


FASHION = Idx(source="idx", name="fashion-mnist")


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_idx_files_are_read_whole(fashion, suffix):
    folder, arrays = fashion
    for name, array in arrays.items():
        if not suffix:
            (folder / f"{name}.gz").unlink()
            (folder / name).write_bytes(idx_bytes(array))
            # The reader of torchvision, which has no checks, agrees on the format.
            peer = read_sn3_pascalvincent_tensor(str(folder / name))
            assert np.array_equal(peer.numpy(), array)
    data = read(FASHION)
    assert data.levels == 256
    for split, prefix in [(data.train, "train"), (data.test, "t10k")]:
        images = arrays[f"{prefix}-images-idx3-ubyte"][:, None]
        assert_same_pairs(split, images, arrays[f"{prefix}-labels-idx1-ubyte"])


IMAGES = random_images(40, (5, 7))
BAD_IDX = {
    "truncated values": (idx_bytes(IMAGES)[:-1], "found 1399 bytes after the header"),
    "truncated header": (idx_bytes(IMAGES)[:9], "expected the header"),
    "empty": (b"", "begins with nothing"),
    "too long": (idx_bytes(IMAGES) + b"\0", "found more bytes after the header, expected 1400"),
    "wrong type": (idx_bytes(IMAGES, kind=0x0D), "begins with 00 00 0d 03"),
    "wrong number of dimensions": (idx_bytes(IMAGES.reshape(40, 35)), "begins with 00 00 08 02"),
    "no magic": (b"\x93NUMPY" + bytes(50), "begins with 93 4e 55 4d"),
    "4e9 images of 4e9 pixels": (
        bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**16, 2**16) + bytes(100),
        f"found 100 bytes after the header, expected {(2**32 - 1) * 2**32}",
    ),
}


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("content, message", BAD_IDX.values(), ids=BAD_IDX)
def test_bad_idx_file_is_refused_without_taking_memory(fashion, content, message, suffix):
    name = f"train-images-idx3-ubyte{suffix}"
    (fashion[0] / name).write_bytes(gzip.compress(content) if suffix else content)
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        read(FASHION)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_sentence(error, fashion[0] / name, message)
    assert peak < 4 << 20, "a chunk of 1 MiB, copied once or twice"


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-20], lambda b: b[:-6] + bytes(6), lambda b: b[5:]]
)
def test_damaged_gzip_file_is_refused(fashion, damage):
    path = fashion[0] / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError) as error:
        read(FASHION)
    assert_sentence(error, path, "damaged gzip file")


def test_images_and_labels_must_fit(fashion):
    folder, arrays = fashion
    labels = arrays["train-labels-idx1-ubyte"][:-1]
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(ValueError) as error:
        read(FASHION)
    assert_sentence(error, "found 39 labels and 40 images in the split train")
    (folder / "train-labels-idx1-ubyte").unlink()
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(random_images(24, (5, 8))))
    with pytest.raises(ValueError) as error:
        read(FASHION)
    assert_sentence(error, "found test images of shape (1, 5, 8)", "(1, 5, 7)")


def test_missing_idx_file_says_where_it_comes_from(fashion):
    (fashion[0] / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as error:
        read(FASHION)
    assert_sentence(
        error,
        fashion[0] / "t10k-images-idx3-ubyte.gz",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-images-idx3-ubyte.gz",
        "bef4ecab320f06d8554ea6380940ec79",
        "QCSBM_DATA",
    )


def test_only_fashion_mnist_comes_from_where_fashion_mnist_does(root):
    with pytest.raises(FileNotFoundError) as error:
        read(Idx(source="idx", name="mnist"))
    path = root / "mnist/train-images-idx3-ubyte.gz"
    assert_sentence(error, f"{path}: found no such file, expected an IDX file;", "QCSBM_DATA")
    assert "http" not in str(error.value) and "MD5" not in str(error.value)


def test_idx_files_have_the_levels_that_are_said(fashion):
    folder, arrays = fashion
    for name, array in arrays.items():
        if "images" in name:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array % 16)))
    data = read(FASHION.model_copy(update={"levels": 16}))
    assert data.levels == 16
    images = arrays["train-images-idx3-ubyte"][:, None] % 16
    assert sorted(map(bytes, data.train.images)) == sorted(map(bytes, images))


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_as_debian_packages_it(monkeypatch):
    monkeypatch.setenv("QCSBM_DATA", str(DEBIAN.parent))
    data = read(FASHION)
    assert data.train.images.shape == (60_000, 1, 28, 28)
    assert data.test.images.shape == (10_000, 1, 28, 28)
    assert np.bincount(data.train.labels).tolist() == [6000] * 10
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    # A random prefix holds every class: Pr[one is missing among 500] < 10 · 0.9^500 < 1e-21.
    assert len(np.unique(data.test.labels[:500])) == 10


# --- random order and limits, for all readers of files ---


def test_limit_takes_the_first_of_an_order_that_is_always_the_same(fashion):
    whole = read(FASHION)
    part = read(FASHION.model_copy(update={"train": 7, "test": 24}))
    assert np.array_equal(part.train.images, whole.train.images[:7])
    assert np.array_equal(part.train.labels, whole.train.labels[:7])
    assert np.array_equal(part.test.images, whole.test.images)
    with pytest.raises(ValueError) as error:
        read(FASHION.model_copy(update={"test": 25}))
    assert_sentence(error, "data.test: found 25, expected at most 24")


# --- CIFAR ---


def python_2_pickle(entry):
    """``entry`` as Python 2 and its NumPy pickled it with protocol 2: the official files."""

    def string(text):
        data = text.encode("latin1") if isinstance(text, str) else text
        return b"T" + struct.pack("<i", len(data)) + data

    def value(x):
        if isinstance(x, np.ndarray):
            rows, columns = x.shape
            shape = b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86"
            dtype = b"cnumpy\ndtype\n" + string("u1") + b"K\0K\1\x87R"
            dtype += b"(K\3" + string("|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\0tb"
            empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85"
            empty += string("b") + b"\x87R"
            return empty + b"(K\1" + shape + dtype + b"\x89" + string(x.tobytes()) + b"tb"
        if isinstance(x, list):
            return b"](" + b"".join(map(value, x)) + b"e"
        return string(x) if isinstance(x, str) else b"K" + bytes([x])

    items = b"".join(string(k) + value(v) for k, v in entry.items())
    return b"\x80\2}(" + items + b"u."


CIFARS = {
    "cifar10": (Cifar10(source="cifar10"), torchvision.datasets.CIFAR10, "labels"),
    "cifar100": (Cifar100(source="cifar100"), torchvision.datasets.CIFAR100, "fine_labels"),
}


@pytest.fixture(params=CIFARS)
def cifar(request, root, monkeypatch):
    """A tiny CIFAR whose checksums take the place of the published ones."""
    config, published, key = CIFARS[request.param]
    folder = root / config.source / published.base_folder
    folder.mkdir(parents=True)

    def write(name, content):
        (folder / name).write_bytes(content)
        return [name, hashlib.md5(content).hexdigest()]

    expected = {}
    for attribute, seed in [("train_list", 0), ("test_list", 1)]:
        files = [name for name, _ in getattr(published, attribute)]
        images = random_images(24 * len(files), seed=seed)
        labels = [int(k) for k in np.arange(len(images)) % 10]
        expected[attribute] = images, labels
        entries = []
        for i, name in enumerate(files):
            part = slice(24 * i, 24 * i + 24)
            entry = {
                "batch_label": name,
                "data": images[part].reshape(24, -1),
                key: labels[part],
            }
            if key == "fine_labels":
                entry["coarse_labels"] = [0] * 24
            entries.append(write(name, python_2_pickle(entry)))
        monkeypatch.setattr(published, attribute, entries)
    meta = dict(published.meta)
    content = python_2_pickle({meta["key"]: ["a", "b"]})
    meta["md5"] = write(meta["filename"], content)[1]
    monkeypatch.setattr(published, "meta", meta)
    return config, published, folder, expected


def test_cifar_is_read_whole(cifar):
    config, _, _, expected = cifar
    data = read(config)
    assert data.levels == 256
    assert_same_pairs(data.train, *expected["train_list"])
    assert_same_pairs(data.test, *expected["test_list"])
    part = read(config.model_copy(update={"train": 5}))
    assert np.array_equal(part.train.images, data.train.images[:5])


class Bomb:
    """Unpickling it makes the file ``path``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_malicious_pickle_is_refused_before_it_runs(cifar, tmp_path):
    config, published, folder, _ = cifar
    names = [name for name, _ in [*published.train_list, *published.test_list]]
    pickle.loads(pickle.dumps(Bomb(tmp_path / "control")))
    assert (tmp_path / "control").exists(), "the pickle does run when it is loaded"
    for name in [*names, published.meta["filename"]]:
        original = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "planted")))
        with pytest.raises(ValueError) as error:
            read(config)
        assert_sentence(error, folder / name, "found a file with MD5", published.url)
        assert not (tmp_path / "planted").exists()
        (folder / name).write_bytes(original)
    read(config)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""])
def test_damaged_cifar_file_is_refused(cifar, damage):
    config, published, folder, _ = cifar
    path = folder / published.test_list[0][0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError) as error:
        read(config)
    assert_sentence(error, path, "found a file with MD5", published.test_list[0][1])


@pytest.fixture
def served(tmp_path_factory, monkeypatch):
    """A folder, and the address under which this machine alone sees its files."""
    folder = tmp_path_factory.mktemp("served")
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(source):
    fetching.run(argparse.Namespace(source=source))


@pytest.fixture
def served_cifar(cifar, served, monkeypatch):
    """The tiny CIFAR as an archive on a server, and no longer where datasets are."""
    _, published, folder, _ = cifar
    archive = shutil.make_archive(served[0] / "cifar", "gztar", folder.parent, folder.name)
    shutil.rmtree(folder.parent)
    monkeypatch.setattr(published, "url", f"{served[1]}/{Path(archive).name}")
    digest = hashlib.md5(Path(archive).read_bytes()).hexdigest()
    monkeypatch.setattr(published, "tgz_md5", digest)
    return cifar


def test_cifar_is_fetched_to_where_it_is_read(served_cifar):
    config, _, _, expected = served_cifar
    fetch(config.source)
    assert_same_pairs(read(config).train, *expected["train_list"])
    assert_same_pairs(read(config).test, *expected["test_list"])


def test_download_with_another_checksum_is_refused(served_cifar, monkeypatch):
    config, published, folder, _ = served_cifar
    monkeypatch.setattr(published, "tgz_md5", "0" * 32)
    with pytest.raises(OSError, match="found no complete download .*, expected the published"):
        fetch(config.source)
    assert not folder.exists()


def test_missing_cifar_file_says_where_it_comes_from(cifar):
    config, published, folder, _ = cifar
    (folder / published.meta["filename"]).unlink()
    with pytest.raises(FileNotFoundError) as error:
        read(config)
    assert_sentence(
        error,
        folder / published.meta["filename"],
        published.url,
        published.tgz_md5,
        published.meta["md5"],
        f"unpacked in {folder.parent}",
    )


# --- SVHN ---


@pytest.fixture
def svhn(root, monkeypatch):
    folder = root / "svhn"
    folder.mkdir()
    published, expected = {}, {}
    for split, n, seed in [("train", 30, 0), ("test", 24, 1)]:
        images, digits = random_images(n, seed=seed), np.arange(n) % 10
        url, file, _ = torchvision.datasets.SVHN.split_list[split]
        stored = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
        contents = {"X": images.transpose(2, 3, 1, 0), "y": stored}
        scipy.io.savemat(folder / file, contents, do_compression=True)
        published[split] = [url, file, hashlib.md5((folder / file).read_bytes()).hexdigest()]
        expected[split] = images, digits
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", published)
    return folder, expected


def test_svhn_is_read_whole_and_its_ten_is_a_zero(svhn):
    data = read(Svhn(source="svhn"))
    assert data.levels == 256
    assert_same_pairs(data.train, *svhn[1]["train"])
    assert_same_pairs(data.test, *svhn[1]["test"])
    assert data.train.images.shape == (30, 3, 32, 32)


def test_svhn_is_fetched_to_where_it_is_read(svhn, served, monkeypatch):
    folder, expected = svhn
    addresses = {}
    for split, (_, file, md5) in torchvision.datasets.SVHN.split_list.items():
        shutil.move(folder / file, served[0] / file)
        addresses[split] = [f"{served[1]}/{file}", file, md5]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", addresses)
    fetch("svhn")
    assert_same_pairs(read(Svhn(source="svhn")).train, *expected["train"])
    assert_same_pairs(read(Svhn(source="svhn")).test, *expected["test"])


def test_damaged_or_missing_svhn_file_is_refused(svhn):
    path = svhn[0] / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError) as error:
        read(Svhn(source="svhn"))
    url = "http://ufldl.stanford.edu/housenumbers/test_32x32.mat"
    assert_sentence(error, path, "found a file with MD5", url)
    path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        read(Svhn(source="svhn"))
    assert_sentence(error, path, url, torchvision.datasets.SVHN.split_list["test"][2])


def test_published_checksums_are_those_of_the_official_files():
    """What torchvision publishes, so that a patched or changed constant does not go unseen."""
    assert torchvision.datasets.CIFAR10.tgz_md5 == "c58f30108f718f92721af3b95e74349a"
    assert torchvision.datasets.CIFAR100.tgz_md5 == "eb9058c3a382ffc7106e4002c42a8d85"
    splits_of_svhn = torchvision.datasets.SVHN.split_list
    assert splits_of_svhn["train"][2] == "e26dedcc434d2e4c54c9b2d4a06d8373"
    assert splits_of_svhn["test"][2] == "eb5a983be6a315427106f1b164d9cef3"


# --- ImageNet-32 ---

IMAGENET32 = ImageNet32(source="imagenet32")


@pytest.fixture
def imagenet(root):
    """Ten tiny training batches of different lengths and a validation batch."""
    folder = root / "imagenet32"
    folder.mkdir()
    expected = {}
    for split, seed in [("train", 0), ("test", 1)]:
        files = imagenet32.BATCHES[split]
        lengths = [20 + 3 * i for i in range(len(files))] if split == "train" else [24]
        images = random_images(sum(lengths), seed=seed)
        labels = np.random.default_rng(seed).integers(1, 1001, len(images))
        expected[split] = images, labels - 1
        end = 0
        for file, n in zip(files, lengths, strict=True):
            part, end = slice(end, end + n), end + n
            data = images[part].reshape(n, -1)
            np.savez(folder / file, data=data, labels=labels[part], mean=data.mean(0))
    return folder, expected


def test_imagenet32_batches_are_read_whole(imagenet):
    data = read(IMAGENET32)
    assert data.levels == 256
    assert_same_pairs(data.train, *imagenet[1]["train"])
    assert_same_pairs(data.test, *imagenet[1]["test"])
    part = read(IMAGENET32.model_copy(update={"train": 50, "test": 3}))
    assert np.array_equal(part.train.images, data.train.images[:50])
    assert np.array_equal(part.train.labels, data.train.labels[:50])
    assert np.array_equal(part.test.images, data.test.images[:3])


def test_imagenet32_is_held_in_memory_once(imagenet):
    folder = imagenet[0]
    batch = np.zeros((1000, 3072), dtype=np.uint8)
    for file in imagenet32.BATCHES["train"]:
        np.savez(folder / file, data=batch, labels=np.ones(1000, dtype=np.int64))
    read(IMAGENET32)
    tracemalloc.start()
    read(IMAGENET32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All images, a batch as read and as scattered; half a batch more for everything else.
    assert peak < (10 + 2 + 0.5) * batch.nbytes


GOOD = {"data": random_images(24).reshape(24, -1), "labels": np.arange(1, 25)}
BAD_BATCHES = {
    "no labels": ({"data": GOOD["data"]}, "expected an .npz file with an array 'labels'"),
    "no data": ({"labels": GOOD["labels"]}, "expected an .npz file with an array 'data'"),
    "float images": (GOOD | {"data": GOOD["data"] / 255}, "found data of float64"),
    "other size": (GOOD | {"data": GOOD["data"][:, :768]}, "shape (24, 768)"),
    "too few labels": (GOOD | {"labels": GOOD["labels"][:-1]}, "expected uint8 and (23, 3072)"),
    "labels from 0": (GOOD | {"labels": np.arange(24)}, "found labels from 0 to 23"),
    "labels beyond 1000": (GOOD | {"labels": np.arange(980, 1004)}, "to 1003, expected 1 to 1000"),
    "float labels": (GOOD | {"labels": np.arange(1.0, 25.0)}, "found labels of float64"),
    "Python objects": (GOOD | {"labels": GOOD["labels"].astype(object)}, "Python objects"),
}


@pytest.mark.parametrize("arrays, message", BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_bad_imagenet32_batch_is_refused(imagenet, arrays, message):
    path = imagenet[0] / "val_data.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError) as error:
        read(IMAGENET32)
    assert_sentence(error, path, message)


def test_objects_in_an_npz_file_are_never_unpickled(imagenet, tmp_path):
    objects = np.array([Bomb(tmp_path / "planted")] * 24, dtype=object)
    for arrays in [GOOD | {"labels": objects}, GOOD | {"data": objects}]:
        np.savez(imagenet[0] / "val_data.npz", **arrays)
        with pytest.raises(ValueError, match="Python objects"):
            read(IMAGENET32)
        assert not (tmp_path / "planted").exists()
    np.load(imagenet[0] / "val_data.npz", allow_pickle=True)["data"]
    assert (tmp_path / "planted").exists(), "the pickle does run when it is loaded"


@pytest.mark.parametrize("damage", [lambda b: b[:-30], lambda b: b[:200], lambda b: b""])
def test_truncated_npz_file_is_refused(imagenet, damage):
    path = imagenet[0] / "train_data_batch_7.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError) as error:
        read(IMAGENET32)
    assert_sentence(error, path)


def test_pickled_release_is_refused_unread(imagenet, tmp_path):
    path = imagenet[0] / "train_data_batch_3.npz"
    path.unlink()
    pickled = path.with_suffix("")
    pickled.write_bytes(pickle.dumps(Bomb(tmp_path / "planted")))
    with pytest.raises(ValueError) as error:
        read(IMAGENET32)
    assert_sentence(error, pickled, "pickled release", path.name, "Imagenet32_train_npz.zip")
    assert not (tmp_path / "planted").exists()
    pickled.unlink()
    with pytest.raises(FileNotFoundError) as error:
        read(IMAGENET32)
    url, sha256 = imagenet32.ARCHIVES["train"]
    assert_sentence(error, path, url, sha256, f"unpacked in {imagenet[0]}")


# --- a folder of PNG images ---


def write_pngs(folder, images, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / (names[i] if names else f"{i:05}.png"))


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_of_png_images_is_read_whole(root, channels):
    expected = {name: random_images(24, (channels, 6, 5), seed) for seed, name in enumerate(SPLITS)}
    for name, images in expected.items():
        write_pngs(root / "mine" / name, images)
    (root / "mine/train/.hidden").touch()
    config = Folder(source="folder", name="mine")
    data = read(config)
    assert data.levels == 256
    for name, images in expected.items():
        assert_same_pairs(getattr(data, name), images, [-1] * 24)
    part = read(config.model_copy(update={"train": 4}))
    assert np.array_equal(part.train.images, data.train.images[:4])


@pytest.mark.parametrize("levels", [2, 3, 4, 16, 17, 86, 255, 256])
def test_white_of_a_png_is_255_whatever_the_number_of_levels(root, levels):
    k = np.arange(256 * 3).reshape(3, 1, 16, 16) % levels
    for name in SPLITS:
        # ⌊x + ½⌋ is how the format scales samples of fewer bits to 8.
        write_pngs(root / "mine" / name, np.floor(k * 255 / (levels - 1) + 0.5).astype(np.uint8))
    data = read(Folder(source="folder", name="mine", levels=levels))
    assert data.levels == levels and data.test.images.max() == levels - 1
    assert data.train.images.dtype == np.uint8
    assert sorted(map(bytes, data.train.images)) == sorted(map(bytes, k.astype(np.uint8)))


@pytest.mark.parametrize("levels, value", [(2, 1), (2, 254), (17, 15), (128, 1)])
def test_grey_value_between_two_levels_is_refused(root, levels, value):
    for name in SPLITS:
        write_pngs(root / "mine" / name, np.zeros((2, 1, 4, 4), np.uint8))
    odd = np.zeros((1, 4, 4), np.uint8)
    odd[0, 2, 3] = value
    write_pngs(root / "mine/test", [odd])
    with pytest.raises(ValueError) as error:
        read(Folder(source="folder", name="mine", levels=levels))
    path, expected = root / "mine/test/00000.png", f"255 k / {levels - 1} rounded"
    assert_sentence(error, f"{path}: found the pixel value {value}, expected one of", expected)


def test_order_of_a_folder_is_that_of_names_and_not_of_the_file_system(root, monkeypatch):
    for name in SPLITS:
        write_pngs(root / "mine" / name, random_images(24, (1, 4, 4)))
    listings = [sorted, lambda paths: sorted(paths, reverse=True)]
    list_folder, found = Path.iterdir, []
    for listing in listings:
        monkeypatch.setattr(Path, "iterdir", lambda path, by=listing: iter(by(list_folder(path))))
        found.append(read(Folder(source="folder", name="mine")))
    assert np.array_equal(found[0].train.images, found[1].train.images)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height, depth, colour):
    data = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", data)


def bad_png(folder, kind):
    path = folder / "00000.png"
    good = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(good[:60])
    elif kind == "damaged":
        path.write_bytes(good[:45] + bytes([good[45] ^ 255]) + good[46:])
    elif kind == "no PNG":
        Image.fromarray(np.zeros((5, 5, 3), dtype=np.uint8)).save(path, format="JPEG")
    elif kind == "palette":
        Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).convert("P").save(path)
    elif kind == "alpha":
        Image.fromarray(np.zeros((5, 5, 4), dtype=np.uint8)).save(path)
    elif kind == "transparent colour":
        Image.fromarray(np.zeros((5, 5, 3), dtype=np.uint8)).save(path, transparency=(1, 2, 3))
    elif kind == "transparent colour at the end":
        path.write_bytes(good[:-12] + png_chunk(b"tRNS", bytes(6)) + good[-12:])
    elif kind == "16 bits":
        path.write_bytes(
            png_header(5, 5, 16, 2)
            + png_chunk(b"IDAT", zlib.compress((b"\0" + bytes(30)) * 5))
            + png_chunk(b"IEND", b"")
        )
    elif kind == "1e6 x 1e6 pixels":
        path.write_bytes(png_header(10**6, 10**6, 8, 2) + png_chunk(b"IDAT", zlib.compress(b"")))
    elif kind == "other size":
        Image.fromarray(np.zeros((5, 6, 3), dtype=np.uint8)).save(path)
    elif kind == "other kind":
        Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).save(path)
    return path


BAD_PNGS = {
    "truncated": "damaged image",
    "damaged": "damaged image",
    "no PNG": "another kind of file",
    "palette": "another kind of file",
    "alpha": "another kind of file",
    "transparent colour": "found a transparent colour (the chunk tRNS), expected an opaque image",
    "transparent colour at the end": "found a transparent colour",
    "16 bits": "another kind of file",
    "1e6 x 1e6 pixels": "damaged image",
    "other size": "found an image of shape (3, 5, 6)",
    "other kind": "found an image of shape (1, 5, 5)",
}


@pytest.mark.parametrize("kind", BAD_PNGS)
def test_bad_png_file_is_refused(root, kind):
    write_pngs(root / "mine/train", random_images(3, (3, 5, 5)))
    write_pngs(root / "mine/test", random_images(2, (3, 5, 5)))
    path = bad_png(root / "mine/test", kind)
    with pytest.raises(ValueError) as error:
        read(Folder(source="folder", name="mine"))
    assert_sentence(error, path, BAD_PNGS[kind])


def test_folder_without_images_or_with_other_files_is_refused(root):
    config = Folder(source="folder", name="mine")
    write_pngs(root / "mine/train", random_images(3, (3, 5, 5)))
    with pytest.raises(FileNotFoundError) as error:
        read(config)
    assert_sentence(error, root / "mine/test", "QCSBM_DATA")
    (root / "mine/test").mkdir()
    with pytest.raises(ValueError) as error:
        read(config)
    assert_sentence(error, "found no images in the split test")
    (root / "mine/test/photo.jpg").touch()
    with pytest.raises(ValueError) as error:
        read(config)
    assert_sentence(error, root / "mine/test/photo.jpg")


# --- NumPy arrays ---


@pytest.mark.parametrize("layout, channels", [("nhw", 1), ("nhwc", 1), ("nhwc", 3), ("nchw", 3)])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_are_read_whole(root, layout, channels, labelled, suffix):
    (root / "mine").mkdir()
    expected = {}
    for seed, name in enumerate(SPLITS):
        images = random_images(24, (channels, 4, 6), seed)
        labels = np.arange(24, dtype=np.uint8) if labelled else np.full(24, -1)
        expected[name] = images, labels
        stored = {"nhw": images[:, 0], "nhwc": images.transpose(0, 2, 3, 1), "nchw": images}[layout]
        if suffix == ".npz":
            np.savez_compressed(root / "mine" / name, images=stored, labels=labels)
        else:
            np.save(root / "mine" / name, stored)
            np.save(root / "mine" / f"{name}_labels", labels)
    config = Arrays(source="arrays", name="mine", layout=layout, labels=labelled)
    data = read(config)
    assert data.levels == 256
    for name in SPLITS:
        assert_same_pairs(getattr(data, name), *expected[name])
    part = read(config.model_copy(update={"test": 4}))
    assert np.array_equal(part.test.images, data.test.images[:4])


@pytest.fixture
def mine(root):
    folder = root / "mine"
    folder.mkdir()
    for name in SPLITS:
        np.save(folder / f"{name}.npy", random_images(24, (4, 6, 3)))
        np.save(folder / f"{name}_labels.npy", np.arange(24))
    return folder


ARRAYS = Arrays(source="arrays", name="mine", layout="nhwc", labels=True)


@pytest.mark.parametrize("levels", [2, 255])
def test_arrays_have_the_levels_that_are_said(mine, levels):
    config = ARRAYS.model_copy(update={"levels": levels})
    images = random_images(24, (4, 6, 3))
    for name in SPLITS:
        np.save(mine / f"{name}.npy", images % levels)
    data = read(config)
    assert data.levels == levels
    assert sorted(map(bytes, data.train.images.transpose(0, 2, 3, 1))) == sorted(
        map(bytes, images % levels)
    )
    images[5, 1, 2, 0] = 255
    np.save(mine / "test.npy", np.minimum(images, levels))
    with pytest.raises(ValueError) as error:
        read(config)
    assert_sentence(error, f"{mine}: found the pixel value {levels} in the split test, expected")


BAD_ARRAYS = {
    "wrong dtype": ("train", np.zeros((24, 4, 6, 3)), "found float64 of shape (24, 4, 6, 3)"),
    "wrong axes": ("train", np.zeros((24, 4, 6), np.uint8), "expected uint8 with the axes nhwc"),
    "wrong layout": ("train", np.zeros((24, 3, 4, 6), np.uint8), "found 6 channels"),
    "other size": ("test", np.zeros((24, 4, 5, 3), np.uint8), "test images of shape (3, 4, 5)"),
    "no images": ("test", np.zeros((0, 4, 6, 3), np.uint8), "expected"),
    "too few": ("test", np.zeros((23, 4, 6, 3), np.uint8), "found 24 labels and 23 images"),
    "float labels": ("test_labels", np.zeros(24), "found labels of float64"),
    "negative labels": ("test_labels", np.arange(24) - 3, "found the label -3, expected a list"),
    "large labels": ("train_labels", np.arange(24) + 65_520, "found the label 65536, expected a"),
    "labels in a column": ("test_labels", np.zeros((24, 1), int), "shape (24, 1)"),
}


@pytest.mark.parametrize("name, array, message", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_of_something_else_are_refused(mine, name, array, message):
    np.save(mine / f"{name}.npy", array)
    with pytest.raises(ValueError) as error:
        read(ARRAYS)
    assert_sentence(error, mine, message)


def npy_header(shape, descr="'|u1'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text = text.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


BAD_NPY = {
    "truncated": lambda good: good[:-1],
    "too long": lambda good: good + b"\0",
    "empty": lambda good: b"",
    "no array": lambda good: b"images",
    "1e12 images": lambda good: npy_header((10**12, 4, 6, 3)) + bytes(100),
    "objects": lambda good: npy_header((24,), "'|O'") + pickle.dumps([0] * 24),
    "broken header": lambda good: npy_header("(24, (4"),
}


@pytest.mark.parametrize("damage", BAD_NPY.values(), ids=BAD_NPY)
@pytest.mark.parametrize("archive", [False, True])
def test_damaged_array_is_refused_without_taking_memory(mine, damage, archive):
    path = mine / "train.npy"
    content = damage(path.read_bytes())
    if archive:
        path = path.with_suffix(".npz")
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("images.npy", content)
            file.writestr("labels.npy", (mine / "train_labels.npy").read_bytes())
    else:
        path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        read(ARRAYS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_sentence(error, path, "nothing usable")
    assert peak < 4 << 20


def test_missing_array_is_named(mine):
    (mine / "test_labels.npy").unlink()
    with pytest.raises(FileNotFoundError) as error:
        read(ARRAYS)
    assert_sentence(error, mine / "test_labels.npy", "QCSBM_DATA")
    (mine / "test.npy").unlink()
    with pytest.raises(FileNotFoundError) as error:
        read(ARRAYS)
    assert_sentence(error, mine / "test.npy")


# --- configuration ---


def test_datasets_are_looked_for_in_the_working_directory_by_default(monkeypatch):
    monkeypatch.delenv("QCSBM_DATA", raising=False)
    with pytest.raises(FileNotFoundError) as error:
        read(Svhn(source="svhn"))
    assert_sentence(error, "data/svhn/train_32x32.mat")


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "a/b", ".", ".a", "", "a\\b", "a\n"])
@pytest.mark.parametrize("source", ["folder", "arrays", "idx"])
def test_no_name_leads_out_of_the_folder_of_datasets(source, name):
    layout = {"layout": "nhw"} if source == "arrays" else {}
    good = {"label": "x", "data": {"source": source, "name": "a-B_1.c", **layout}}
    assert Dataset.model_validate(good).data.name == "a-B_1.c"
    good["data"]["name"] = name
    with pytest.raises(ValueError, match="match pattern"):
        Dataset.model_validate(good)


BAD_DATA = {
    "unknown key": ({"source": "svhn", "extra": True}, "data.extra: found an unknown key"),
    "key of another source": (
        {"source": "folder", "name": "a", "layout": "nhw"},
        "data.layout: found an unknown key, expected one of train, test, name, levels, source",
    ),
    "no layout": ({"source": "arrays", "name": "a"}, "data.layout: found nothing"),
    "no images": ({"source": "cifar10", "train": 0}, "data.train: found 0"),
    "source": ({"source": "cifar1000"}, "'imagenet32'"),
}


@pytest.mark.parametrize("data, message", BAD_DATA.values(), ids=BAD_DATA)
def test_data_that_do_not_fit_are_one_sentence(data, message):
    quick = yaml.safe_load((Path(__file__).parents[2] / "config/quick.yaml").read_text())
    quick["datasets"]["digits"]["data"] = data
    with pytest.raises(ConfigError) as error:
        load(quick, "x.yaml")
    assert_sentence(error, "x.yaml: datasets.digits.data", message)


def test_every_source_has_a_reader_and_every_reader_a_source():
    for source in SOURCES:
        extra = {
            "idx": {"name": "a"},
            "folder": {"name": "a"},
            "arrays": {"name": "a", "layout": "nhw"},
            "patches": {"size": 8, "train": 1, "test": 2},
        }.get(source, {})
        data = Dataset.model_validate({"label": "x", "data": {"source": source, **extra}}).data
        assert data.source == source
        # Unknown keys are named by the keys of this source: see `qcsbm.schema.base`.
        assert type(data).__name__.lower() == source


# --- prepared datasets ---


def prepare(folder, **data):
    """Run the stage, which must end well; the number of levels of what it wrote."""
    spec = preparing(data)
    assert in_process("prepare", "--spec", spec, "--out", folder) == 0
    return splits.describe(folder).levels


@pytest.mark.parametrize(
    "levels, used, warns", [(256, 2, True), (256, 128, True), (256, 129, False)]
)
@pytest.mark.parametrize("source", ["arrays", "folder"])
def test_images_that_use_few_of_their_levels_are_warned_of(
    root, tmp_path, caplog, source, levels, used, warns
):
    # Values from both ends, one of them only in the image that comes last in the test split.
    k = np.sort(np.r_[np.arange(used - used // 2), 255 - np.arange(used // 2)]).astype(np.uint8)
    images = np.resize(k[:-1], (3, 1, 16, 16))
    for name in SPLITS:
        if source == "folder":
            write_pngs(root / "mine" / name, images)
        else:
            (root / "mine").mkdir(exist_ok=True)
            np.save(root / f"mine/{name}.npy", images[:, 0])
    images[random_order(3, None, "test")[-1], 0, 15, 15] = k[-1]
    if source == "folder":
        write_pngs(root / "mine/test", images)
    else:
        np.save(root / "mine/test.npy", images[:, 0])
    layout = {"layout": "nhw"} if source == "arrays" else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qcsbm.stages.prepare.BLOCK", 2)
        prepare(tmp_path / "out", source=source, name="mine", **layout)
    said = [record.getMessage() for record in caplog.records]
    sentence = f"data: found {used} levels in use, expected most of data.levels = 256, at which"
    assert len(said) == warns and all(line.startswith(sentence) for line in said)


def test_levels_that_are_said_are_not_warned_of_and_reach_the_description(root, tmp_path, caplog):
    for name in SPLITS:
        write_pngs(root / "mine" / name, 255 * (random_images(3, (1, 8, 8)) % 2))
    data = {"source": "folder", "name": "mine", "levels": 2}
    assert prepare(tmp_path / "out", **data) == 2
    assert not caplog.records
    assert set(np.unique(splits.read(tmp_path / "out", "train").images)) == {0, 1}
    assert prepare(tmp_path / "digits", source="digits", test=360) == 17
    assert prepare(tmp_path / "patches", source="patches", size=8, train=99, test=9) == 256
    assert not caplog.records


@pytest.mark.parametrize("samples, most", [(5, None), (4, 4), (1, 1), (None, 4)])
def test_no_more_test_images_are_measured_than_there_are(tmp_path, samples, most):
    images = random_images(4, (1, 4, 4))
    np.save(tmp_path / "test.npy", images)
    if most:
        found = splits.first_test_images(tmp_path, samples, "likelihood")
        assert np.array_equal(found, images[:most])
    else:
        with pytest.raises(ValueError) as error:
            splits.first_test_images(tmp_path, samples, "likelihood")
        assert_sentence(
            error, "likelihood.samples: found 5, expected at most 4, the number", tmp_path
        )


def test_prepared_dataset_round_trips_and_is_the_same_every_time(tmp_path):
    data = read(Digits(source="digits", test=360))
    for folder in ["a", "b"]:
        splits.write(tmp_path / folder, data)
    for name in SPLITS:
        images = splits.open_images(tmp_path / f"a/{name}.npy")
        assert isinstance(images, np.memmap)
        assert np.array_equal(images, getattr(data, name).images)
        labels = np.load(tmp_path / f"a/{name}_labels.npy", allow_pickle=False)
        assert np.array_equal(labels, getattr(data, name).labels)
    assert splits.describe(tmp_path / "a") == splits.Description((1, 8, 8), 17, 10)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [
        "data.json",
        "test.npy",
        "test_labels.npy",
        "train.npy",
        "train_labels.npy",
    ]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    digest = hashlib.sha256((tmp_path / "a/train.npy").read_bytes()).hexdigest()
    assert digest in (tmp_path / "a/data.json").read_text()


def test_every_memory_order_is_written_as_the_same_bytes(tmp_path, svhn):
    data = read(Svhn(source="svhn"))
    splits.write(tmp_path / "a", data)
    ordered = splits.Split(np.ascontiguousarray(data.train.images), data.train.labels)
    splits.write(tmp_path / "b", splits.Splits(ordered, data.test, 256))
    a, b = (tmp_path / folder / "train.npy" for folder in "ab")
    assert a.read_bytes() == b.read_bytes()
    assert not data.train.images.flags.c_contiguous, "the reader does return another order"


def test_dataset_without_labels_has_no_classes(tmp_path):
    splits.write(tmp_path, read(Patches(source="patches", size=8, train=8, test=4)))
    assert splits.describe(tmp_path) == splits.Description((3, 8, 8), 256, 0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"images",
        npy_header((2, 2, 2)) + bytes(8),
        npy_header((1, 1, 2, 2), "'<f4'") + bytes(16),
    ],
)
def test_other_file_is_not_opened_as_images(tmp_path, content):
    path = tmp_path / "train.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        splits.open_images(path)
    assert_sentence(error, path)
