"""A catalogue of bad input: each ends with status 2, in one sentence, and leaves nothing behind."""

import gzip
import json
import pickle
import struct
import zipfile
from functools import cache, partial
from io import BytesIO
from zlib import crc32

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, in_process, preparing
from PIL import Image
from safetensors.torch import save
from torchvision.datasets import CIFAR10, SVHN

from qcsbm.adapters.published import published_names
from qcsbm.data import splits
from qcsbm.data.digits import digits
from qcsbm.experiment import config, specification
from qcsbm.schema import sources
from qcsbm.score.models import build

CI = ROOT / "config/ci.yaml"
MUCH = 10**12


@cache
def experiment():
    return config.read(CI)


@cache
def model():
    return build((1, 8, 8), specification.train(experiment(), "digits", "u", 0, 60).model)


def spec(stage, *names):
    return getattr(specification, stage)(experiment(), *names).text()


@pytest.fixture(scope="module", autouse=True)
def prepared(tmp_path_factory):
    """The digits, as `prepare` writes them."""
    folder = tmp_path_factory.mktemp("prepared")
    splits.write(folder, digits(sources.Digits(source="digits")))
    return folder


# Each entry of the table is a function that puts something bad into a folder and returns the
# command that meets it. What a function of these takes is what makes it bad.


def configured(path, value, folder, _):
    document = yaml.safe_load(CI.read_text())
    *parents, last = path.split(".")
    place = document
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    text = yaml.safe_dump(document, sort_keys=False)
    return configuration(text.encode(), folder, _)


def configuration(content, folder, _):
    (folder / "x.yaml").write_bytes(content)
    return ["describe", "--configfile", "x.yaml", "--dataset", "digits", "--method", "u"]


def cell(arguments, folder, _):
    return ["describe", "--configfile", CI, *arguments]


def data(source, files, folder, _):
    """Prepare ``source``, a name or the whole of `data`, from ``files``: name → bytes or array."""
    keys = {"source": source} if isinstance(source, str) else source
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content if isinstance(content, bytes) else npy(content))
    return ["prepare", "--spec", preparing(keys), "--out", "out"]


def started(content, folder, prepared):
    """Train U from step 40 on, starting from the checkpoint ``content()``."""
    (folder / "x.safetensors").write_bytes(content())
    training = json.loads(spec("train", "digits", "u", 0, 60))
    training["protocol"]["start"] = 40
    return [
        *("train", "--spec", json.dumps(training), "--data", prepared, "--init", "x.safetensors"),
        *("--out", "o.safetensors", "--curve", "o.csv", "--record", "o.json"),
    ]


def imported(change, folder, _):
    """Import what ``change`` makes of a published checkpoint: bytes, or other contents."""
    contents = change(published())
    if not isinstance(contents, bytes):
        torch.save(contents, folder / "x.pth")
    else:
        (folder / "x.pth").write_bytes(contents)
    cell = ["--configfile", CI, "--dataset", "digits", "--method", "u"]
    return ["import-checkpoint", "x.pth", "--out", "out", *cell]


def compared(content, folder, _):
    """Compare the samples' features ``content``, bytes or arrays, with good ones."""
    (folder / "good.npz").write_bytes(npz(**FEATURES))
    found = content if isinstance(content, bytes) else npz(**FEATURES | content)
    (folder / "x.npz").write_bytes(found)
    arguments = ["--samples", "x.npz", "--reference", "good.npz", "--record", "o.json"]
    return ["quality", "--spec", spec("quality", "digits", "u", 0, "pc"), *arguments]


def gathered(content, folder, _, stage="gather_records"):
    """Gather the record ``content``, bytes or what differs from a good one."""
    found = content if isinstance(content, bytes) else json.dumps(RECORD | content).encode()
    (folder / "x.json").write_bytes(found)
    options = {"gather_records": "--out", "cost": "--table"}[stage]
    return [stage, "--records", "x.json", "--spec", spec(stage), options, "o"]


def learnt(files, folder, prepared):
    """Train the classifier on the prepared digits with other ``files``: name → bytes or array."""
    for path in prepared.iterdir():
        (folder / path.name).symlink_to(path)
    for name, content in files.items():
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else npy(content))
    arguments = ["--data", folder, "--out", "o.safetensors", "--record", "o.json"]
    return ["classifier", "--spec", spec("classifier", "digits"), *arguments]


def judged(content, folder, _):
    (folder / "x.csv").write_bytes(content)
    tables = ["--metrics", "x.csv", "--figure1", "x.csv", "--figure4", "x.csv"]
    return ["claims", "--spec", spec("claims"), *tables, "--out", "o"]


def training(regulariser=None, **keys):
    """The specification of a training with other ``keys``."""
    found = json.loads(spec("train", "digits", "u", 0, 60))
    found["protocol"]["training"] |= keys
    found["protocol"]["regulariser"] = regulariser
    return json.dumps(found)


def arguments(words, folder, prepared):
    return [str(word).replace("PREPARED", str(prepared)) for word in words]


# --- good files, of which bad ones are made ---


def npy(array):
    file = BytesIO()
    np.save(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


def npz(**arrays):
    file = BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy_header(shape, descr="|u1"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117) + b"\n"


def npz_header(name, shape):
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.npy", npy_header(shape))
    return file.getvalue()


def idx(*shape, kind=8, content=None):
    header = bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return header + (bytes(int(np.prod(shape))) if content is None else content)


def png(*shape, mode=None, value=0, **options):
    file = BytesIO()
    image = Image.fromarray(np.full(shape, value, np.uint8))
    (image.convert(mode) if mode else image).save(file, format="PNG", **options)
    return file.getvalue()


def png_header(width, height):
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", crc32(header))


STEM = "network.stem.weight"


def checkpoint(step=40, /, **changes):
    """A checkpoint in which ``changes``, by part, replace the stem's weight, or remove it."""
    weights = model().state_dict()
    tensors = {
        f"{part}.{name}": tensor.clone()
        for part in ("model", "ema")
        for name, tensor in weights.items()
    }
    for part, change in changes.items():
        tensors[f"{part}.{STEM}"] = change(weights[STEM])
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return save(tensors, {"qcsbm": json.dumps({"step": step, "spec": {}, "curve": []})})


def tensors_header(metadata="{}", **tensors):
    """A safetensors file of nothing but a header."""
    text = json.dumps({"__metadata__": {"qcsbm": metadata}, **tensors}).encode()
    return struct.pack("<Q", len(text)) + text


def published():
    """What the published code would have saved."""
    state = model().network.state_dict()
    weights = {}
    for ours, name in published_names(model().network).items():
        square = name.endswith(".W") and state[ours].dim() == 4
        weights[name] = state[ours][..., 0, 0].T if square else state[ours]
    shadow = [weights[name] for name in weights if name != "all_modules.0.W"]
    return {"model": weights, "ema": {"num_updates": 4, "shadow_params": shadow}, "step": 4}


def published_with(value, *keys):
    def change(contents):
        place = contents
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        return contents

    return change


def saved(contents):
    file = BytesIO()
    torch.save(contents, file)
    return file.getvalue()


DRAWS = np.random.default_rng(0)
FEATURES = {
    "features": DRAWS.normal(size=(20, 3)).astype(np.float32),
    "logits": DRAWS.normal(size=(20, 2)).astype(np.float32),
    "extractor_sha256": "a",
    "images_sha256": "b",
    "extractor_accuracy": 0.9,
    "code": "",
}
METRIC = {"name": "nll", "value": 1.0, "stderr": None, "n": 3, "unit": "bits/dim"}
RECORD = {
    **{"stage": "likelihood", "dataset": "digits", "method": "u", "seed": 0},
    **{"metrics": [METRIC], "protocol": {"weights": "ema"}, "inputs": {}},
    "cost": {"wall_s": 1.0, "cpu_s": 1.0, "peak_memory_mb": 1.0, "evaluations": 4},
    "provenance": {"device": "x86_64"},
}
SMALL = np.zeros((4, 2, 2), np.uint8)
MINE = {"source": "arrays", "name": "mine", "layout": "nhw"}
LABELLED = MINE | {"labels": True}
IDX = {"source": "idx", "name": "mine"}
FOLDER = {"source": "folder", "name": "mine"}
IDX_FILES = {
    f"mine/{prefix}-{file}-ubyte": idx(*shape)
    for prefix in ("train", "t10k")
    for file, shape in (("images-idx3", (4, 2, 2)), ("labels-idx1", (4,)))
}
PNGS = {f"mine/{split}/0.png": png(2, 2) for split in ("train", "test")}
ARRAYS = {f"mine/{name}.npy": SMALL for name in ("train", "test")}
LABELS = {f"mine/{name}_labels.npy": np.arange(4) for name in ("train", "test")}
BATCH = {"data": np.zeros((2, 3072), np.uint8), "labels": np.array([1, 2])}
BATCHES = {f"imagenet32/train_data_batch_{i}.npz": npz(**BATCH) for i in range(1, 11)}
BATCHES["imagenet32/val_data.npz"] = npz(**BATCH)
BASE = f"cifar10/{CIFAR10.base_folder}"
DEEP = b"[" * 100_000

CONFIGURED = {
    "unknown key": ("methods.u.wieght", 1, "methods.u.wieght: found an unknown key"),
    "key of no level": (
        "sedes",
        [1],
        "sedes: found an unknown key, expected one of tier, strict, seeds",
    ),
    "text for a number": ("methods.u.steps", "many", "methods.u.steps: found 'many', expected"),
    "flag for a number": ("seeds", [True], "seeds.0: found True, expected"),
    "fraction for a count": ("seeds", [1.5], "seeds.0: found 1.5, expected"),
    "list for a mapping": ("methods.u", [1], "methods.u: found [1], expected"),
    "nothing for a mapping": ("methods.u", None, "methods.u: found None, expected"),
    "nothing for an override": (
        "datasets.digits.methods",
        {"u": None},
        "datasets.digits.methods.u: found None, expected",
    ),
    "no steps": ("methods.u.steps", 0, "methods.u.steps: found 0, expected"),
    "negative weight": (
        "methods.qc.regulariser.weight",
        -1,
        "methods.qc.regulariser.weight: found -1, expected",
    ),
    "learning rate of NaN": (
        "defaults.training.lr",
        float("nan"),
        "defaults.training.lr: found nan, expected",
    ),
    "infinite learning rate": (
        "defaults.training.lr",
        "1e999",
        "defaults.training.lr: found '1e999', expected",
    ),
    "dropout of everything": (
        "datasets.digits.network.dropout",
        1.0,
        "datasets.digits.network.dropout: found 1.0, expected",
    ),
    "unknown estimator": (
        "methods.qc.regulariser.estimator",
        "magic",
        "methods.qc.regulariser.estimator: found 'magic', expected",
    ),
    "no seeds": ("seeds", [], "seeds: found [], expected"),
    "seed twice": ("seeds", [1, 1], "seeds of digits: found [1, 1], expected each seed once"),
    "cycle": (
        "methods.u.init_from",
        {"method": "qc", "step": 1},
        "methods.u.init_from.method (dataset digits): found the cycle u → qc → u, expected",
    ),
    "start from oneself": (
        "methods.u.init_from",
        {"method": "u", "step": 1},
        "methods.u.init_from.method (dataset digits): found the cycle u → u, expected",
    ),
    "start from a ghost": (
        "methods.qc.init_from.method",
        "ghost",
        "methods.qc.init_from.method (dataset digits): found 'ghost', expected",
    ),
    "start at no checkpoint": (
        "methods.qc.init_from.step",
        7,
        "methods.qc.init_from.step (dataset digits): found 7, expected one of the checkpoints",
    ),
    "start from a pickle": (
        "methods.u.init_from",
        {"checkpoint": "x.pth", "step": 10},
        "methods.u.init_from.checkpoint (dataset digits): found 'x.pth', expected a .safetensors",
    ),
    "noise scales reversed": (
        "datasets.digits.sde.sigma_min",
        9.0,
        "sde.sigma_max (dataset digits): found 5.0, expected more than sigma_min",
    ),
    "table of a ghost": (
        "tables.table2.methods",
        ["ghost"],
        "tables.table2.methods: found 'ghost', expected",
    ),
    "tier that leads out": ("tier", "../x", "tier: found the name '../x', expected"),
    "tier with a command": (
        "tier",
        "'; touch x'",
        "tier: found the name \"'; touch x'\", expected",
    ),
    "dataset that leads out": ("datasets", {"../x": {}}, "datasets: found the name '../x'"),
    "method with a command": (
        "methods",
        {"$(touch x)": {}},
        "methods: found the name '$(touch x)'",
    ),
    "table that leads out": (
        "tables",
        {"../x": {"methods": ["u"]}},
        "tables: found the name '../x', expected",
    ),
    "data that lead out": (
        "datasets.digits.data",
        {"source": "idx", "name": "../x"},
        "datasets.digits.data.name: found '../x', expected",
    ),
    "label with a bar": ("methods.u.label", "a | b", "methods.u.label: found 'a | b', expected"),
    "label of two lines": ("methods.u.label", "a\nb", "methods.u.label: found 'a\\nb', expected"),
    "unknown source": (
        "datasets.digits.data",
        {"source": "mnist"},
        "datasets.digits.data.source: found 'mnist', expected one of 'digits', 'patches'",
    ),
}
CONFIGURATIONS = {
    "empty": (b"", "x.yaml: found None, expected"),
    "list": (b"[1, 2]", "x.yaml: found [1, 2], expected"),
    "tab": (b"a:\n\t- b", "x.yaml: found no YAML, expected"),
    "no text": (b"\xff\xfe\x00", "x.yaml: found no YAML, expected"),
    "Python": (b"!!python/object/apply:os.mkdir [x]", "x.yaml: found no YAML, expected"),
    "itself within itself": (b"&a [*a]", "x.yaml: found [[...]], expected"),
    "nested": (b"[" * 2000, "x.yaml: found no YAML, expected"),
    "date that is none": (b"tier: 2026-99-99", "x.yaml: found no YAML, expected"),
    "flag that is none": (b"tier: !!bool x", "x.yaml: found no YAML, expected"),
    "number of 5000 digits": (b"tier: " + b"1" * 5000, "x.yaml: found no YAML, expected"),
    "key twice": (
        b"methods:\n  u: {label: U}\n  c: {}\n  u: {label: V}",
        "x.yaml: methods.u: found twice (line 4), expected it once",
    ),
    "key twice, within itself": (b"&a {b: *a, c: 1, c: 2}", "x.yaml: c: found twice (line 1)"),
}
CELLS = {
    "unknown dataset": (["--dataset", "ghost"], "dataset: found 'ghost', expected one of digits"),
    "unknown method": (
        ["--dataset", "digits", "--method", "ghost"],
        "method: found 'ghost', expected one of c, u",
    ),
    "no configuration": (["--configfile", "gone.yaml"], "gone.yaml: found no such file, expected"),
    "folder for a configuration": (["--configfile", "/"], "/: found no such file, expected"),
}
DATA = {
    "no such file": (MINE, {}, "mine/train.npy: found no such file, expected"),
    "array truncated": (
        MINE,
        ARRAYS | {"mine/train.npy": npy(SMALL)[:-1]},
        "mine/train.npy: found nothing usable (15 bytes for the 16 of uint8 values",
    ),
    "array of nothing": (MINE, ARRAYS | {"mine/train.npy": b""}, "train.npy: found nothing usable"),
    "array of 10¹² images": (
        MINE,
        ARRAYS | {"mine/train.npy": npy_header((MUCH, 2, 2))},
        f"train.npy: found nothing usable (0 bytes for the {4 * MUCH} of uint8 values",
    ),
    "array of 10¹² empty images": (
        MINE,
        ARRAYS | {"mine/train.npy": npy_header((MUCH, 0, 2))},
        f"train.npy: found uint8 of shape ({MUCH}, 0, 2), expected",
    ),
    "array with a long header": (
        MINE,
        ARRAYS | {"mine/train.npy": b"\x93NUMPY\1\0\xff\xff" + b"{" * 65535},
        "train.npy: found nothing usable (Header info length (65535) is large",
    ),
    "array of floats": (
        MINE,
        ARRAYS | {"mine/train.npy": SMALL / 255},
        "train.npy: found float64 of shape (4, 2, 2), expected uint8",
    ),
    "array with other axes": (
        MINE | {"layout": "nhwc"},
        ARRAYS,
        "train.npy: found uint8 of shape (4, 2, 2), expected uint8 with the axes nhwc",
    ),
    "array of objects": (
        MINE,
        ARRAYS | {"mine/train.npy": np.array([None])},
        "train.npy: found nothing usable (Python objects), expected",
    ),
    "array with a folder for a name": (
        MINE,
        {"mine/train.npy": None},
        "train.npy: found no such file, expected",
    ),
    "archive truncated": (
        MINE,
        {"mine/train.npz": npz(images=SMALL)[:-30]},
        "train.npz: found nothing usable (File is not a zip file), expected",
    ),
    "archive of something else": (
        MINE,
        {"mine/train.npz": npz(pictures=SMALL)},
        "train.npz: found nothing usable",
    ),
    "archive of 10¹² images": (
        MINE,
        {"mine/train.npz": npz_header("images", (MUCH, 2, 2))},
        f"train.npz: found nothing usable (0 bytes for the {4 * MUCH} of uint8 values",
    ),
    "too few labels": (
        LABELLED,
        ARRAYS | LABELS | {"mine/train_labels.npy": np.arange(3)},
        "mine: found 3 labels and 4 images in the split train, expected",
    ),
    "labels of floats": (
        LABELLED,
        ARRAYS | LABELS | {"mine/train_labels.npy": np.zeros(4)},
        "train_labels.npy: found labels of float64 and shape (4,), expected",
    ),
    "labels too large": (
        LABELLED,
        ARRAYS | LABELS | {"mine/train_labels.npy": np.arange(4) + MUCH},
        f"train_labels.npy: found the label {MUCH}, expected a list of whole numbers from 0",
    ),
    "negative label": (
        LABELLED,
        ARRAYS | LABELS | {"mine/test_labels.npy": np.array([0, 1, -7, 2])},
        "test_labels.npy: found the label -7, expected a list of whole numbers from 0",
    ),
    "array of more levels than it is said to have": (
        MINE | {"levels": 2},
        ARRAYS | {"mine/test.npy": SMALL + 255},
        "mine: found the pixel value 255 in the split test, expected at most 1 with data.levels",
    ),
    "idx of more levels than it is said to have": (
        IDX | {"levels": 16},
        IDX_FILES | {"mine/train-images-idx3-ubyte": idx(4, 2, 2, content=bytes(range(1, 17)))},
        "mine: found the pixel value 16 in the split train, expected at most 15 with data.levels",
    ),
    "png between two levels": (
        FOLDER | {"levels": 16},
        PNGS | {"mine/train/0.png": png(2, 2, value=18)},
        "mine/train/0.png: found the pixel value 18, expected one of the 16 that data.levels says",
    ),
    "one level": (MINE | {"levels": 1}, ARRAYS, "data.levels: found 1, expected"),
    "more levels than a byte has": (MINE | {"levels": 257}, ARRAYS, "data.levels: found 257"),
    "oblong images": (
        MINE,
        {f"mine/{name}.npy": np.zeros((4, 2, 3), np.uint8) for name in ("train", "test")},
        "data: found images of 2 × 3 pixels, expected square ones",
    ),
    "a single test image": (
        MINE,
        ARRAYS | {"mine/test.npy": SMALL[:1]},
        "data: found 1 image in the split test, expected at least 2",
    ),
    "more images than there are": (
        MINE | {"train": MUCH},
        ARRAYS,
        f"data.train: found {MUCH}, expected at most 4",
    ),
    "idx truncated": (
        IDX,
        IDX_FILES | {"mine/train-images-idx3-ubyte": idx(4, 2, 2)[:-1]},
        "train-images-idx3-ubyte: found 15 bytes after the header, expected 16",
    ),
    "idx of floats": (
        IDX,
        IDX_FILES | {"mine/train-images-idx3-ubyte": idx(4, 2, 2, kind=13)},
        "train-images-idx3-ubyte: found a file that begins with 00 00 0d 03, expected",
    ),
    "idx of 10¹² pixels": (
        IDX,
        IDX_FILES | {"mine/train-images-idx3-ubyte": idx(10**6, 1000, 1000, content=b"")},
        f"train-images-idx3-ubyte: found 0 bytes after the header, expected {10**12}",
    ),
    "idx of no pixels": (
        IDX,
        IDX_FILES | {f"mine/{p}-images-idx3-ubyte": idx(4, 0, 2) for p in ("train", "t10k")},
        "mine: found images of shape (1, 0, 2), expected some with pixels",
    ),
    "idx not gzipped": (
        IDX,
        {"mine/train-images-idx3-ubyte.gz": idx(4, 2, 2)},
        "train-images-idx3-ubyte.gz: found a damaged gzip file",
    ),
    "idx gzipped and truncated": (
        IDX,
        {"mine/train-images-idx3-ubyte.gz": gzip.compress(idx(4, 2, 2))[:-9]},
        "train-images-idx3-ubyte.gz: found a damaged gzip file",
    ),
    "png truncated": (
        FOLDER,
        PNGS | {"mine/train/0.png": png(2, 2)[:50]},
        "mine/train/0.png: found a damaged image",
    ),
    "png of 10¹² pixels": (
        FOLDER,
        PNGS | {"mine/train/0.png": png_header(10**6, 10**6) + png(2, 2)[33:]},
        "mine/train/0.png: found a damaged image (Image size (1000000000000 pixels) exceeds limit",
    ),
    "png of more pixels than Pillow thinks safe": (
        FOLDER,
        PNGS | {"mine/train/0.png": png_header(10_000, 10_000) + png(2, 2)[33:]},
        "mine/train/0.png: found a damaged image (Image size (100000000 pixels) exceeds limit",
    ),
    "png with alpha": (
        FOLDER,
        PNGS | {"mine/train/0.png": png(2, 2, mode="RGBA")},
        "mine/train/0.png: found another kind of file, expected",
    ),
    "png with a transparent grey": (
        FOLDER,
        PNGS | {"mine/test/0.png": png(2, 2, transparency=0)},
        "mine/test/0.png: found a transparent colour (the chunk tRNS), expected an opaque image",
    ),
    "png of another size": (
        FOLDER,
        PNGS | {"mine/test/0.png": png(2, 3)},
        "mine/test/0.png: found an image of shape (1, 2, 3), expected (1, 2, 2)",
    ),
    "png in name only": (
        FOLDER,
        PNGS | {"mine/train/1.png": b"hello"},
        "mine/train/1.png: found another kind of file, expected",
    ),
    "folder for a png": (
        FOLDER,
        PNGS | {"mine/train/1.png": None},
        "mine/train/1.png: found something else, expected nothing but *.png",
    ),
    "another file beside the pngs": (
        FOLDER,
        PNGS | {"mine/train/a\nb.txt": b""},
        "mine/train/a b.txt: found something else, expected nothing but *.png",
    ),
    "no pngs": (FOLDER, {"mine/train": None, "mine/test": None}, "found no images in the split"),
    "cifar missing": ("cifar10", {}, "data_batch_1: found no such file, expected the one with MD5"),
    "cifar with another checksum": (
        "cifar10",
        {f"{BASE}/data_batch_1": b"x"},
        "data_batch_1: found a file with MD5 9dd4e461268c8034f5c8564e155c67a6, expected",
    ),
    "svhn with another checksum": (
        "svhn",
        {"svhn/train_32x32.mat": b"x"},
        f"train_32x32.mat: found a file with MD5 9dd4e461268c8034f5c8564e155c67a6, expected "
        f"{SVHN.split_list['train'][2]}",
    ),
    "imagenet32 as pickles": (
        "imagenet32",
        {"imagenet32/train_data_batch_1": b"x"},
        "train_data_batch_1: found the pickled release",
    ),
    "imagenet32 of another size": (
        "imagenet32",
        BATCHES
        | {"imagenet32/val_data.npz": npz(**BATCH | {"data": np.zeros((2, 768), np.uint8)})},
        "val_data.npz: found data of uint8 and shape (2, 768), expected",
    ),
    "imagenet32 with a label 0": (
        "imagenet32",
        BATCHES | {"imagenet32/val_data.npz": npz(**BATCH | {"labels": np.array([0, 1])})},
        "val_data.npz: found labels from 0 to 1, expected 1 to 1000",
    ),
    "too many digits for testing": (
        {"source": "digits", "test": 5000},
        {},
        "data.test: found 5000, expected: input should be less than or equal to 1787",
    ),
    "too many patches": (
        {"source": "patches", "size": 8, "train": MUCH, "test": 2},
        {},
        f"data.train: found {MUCH}, expected at most",
    ),
    "specification of another source": ({"source": "mnist"}, {}, "'mnist'"),
    "specification that leads out": (IDX | {"name": "../x"}, {}, "name"),
    "specification of no data": ({}, {}, "source"),
}
CHECKPOINTS = {
    "of nothing": (lambda: b"", "x.safetensors: found no usable checkpoint"),
    "truncated": (lambda: checkpoint()[:-100], "x.safetensors: found no usable checkpoint"),
    "pickled": (lambda: pickle.dumps([1]), "x.safetensors: found no usable checkpoint"),
    "of a header of 10¹² bytes": (
        lambda: struct.pack("<Q", MUCH) + b"{}",
        "x.safetensors: found no usable checkpoint",
    ),
    "of 10¹² numbers": (
        lambda: tensors_header(
            **{"model.x": {"dtype": "F32", "shape": [MUCH], "data_offsets": [0, 4 * MUCH]}}
        ),
        "x.safetensors: found no usable checkpoint",
    ),
    "without a step": (tensors_header, "x.safetensors: found no usable checkpoint"),
    "with a nested header": (
        lambda: tensors_header(DEEP.decode()),
        "x.safetensors: found no usable checkpoint",
    ),
    "of another step": (lambda: checkpoint(41), "found a checkpoint at step 41, expected step 40"),
    "of another network": (
        lambda: checkpoint(model=lambda w: torch.zeros(16, 1, 3, 3)),
        f"x.safetensors: tensor {STEM}: found (16, 1, 3, 3), expected (8, 1, 3, 3)",
    ),
    "without a tensor": (
        lambda: checkpoint(model=lambda w: None),
        f"x.safetensors: tensor {STEM}: found nothing, expected (8, 1, 3, 3)",
    ),
    "without an average": (
        lambda: checkpoint(ema=lambda w: None),
        f"x.safetensors: tensor {STEM}: found nothing, expected (8, 1, 3, 3)",
    ),
    "with other moments": (
        lambda: checkpoint(exp_avg=lambda w: w[:1].clone(), exp_avg_sq=lambda w: w.square()),
        "x.safetensors: tensor network.",
    ),
    "of whole numbers": (
        lambda: checkpoint(model=lambda w: w.int()),
        f"x.safetensors: tensor {STEM}: found torch.int32, expected",
    ),
    "with a number of 5000 digits": (
        lambda: tensors_header('{"step": ' + "1" * 5000 + "}"),
        "x.safetensors: found no usable checkpoint",
    ),
    "of NaN": (
        lambda: checkpoint(ema=lambda w: w * float("nan")),
        f"x.safetensors: tensor {STEM}: found a value that is not finite, expected",
    ),
}
PUBLISHED = {
    "of nothing": (lambda _: b"", "x.pth: found an empty file, expected"),
    "of text": (lambda _: b"hello", "x.pth: found a file that begins with b'hello', expected"),
    "truncated": (lambda c: saved(c)[:-100], "x.pth: found a PyTorch file that is cut short"),
    "of other contents": (lambda _: [1], "x.pth: model: found nothing, expected dict"),
    "without averages": (
        lambda c: c | {"ema": {}},
        "x.pth: ema.shadow_params: found nothing, expected list",
    ),
    "of another network": (
        published_with(torch.zeros(2, 2), "model", "all_modules.1.weight"),
        "model does not fit the network: wrong in shape: all_modules.1.weight (2, 2) for (32, 16)",
    ),
    "with a number for a name": (
        published_with(torch.zeros(1), "model", 1),
        "x.pth: model does not fit the network: unexpected: 1",
    ),
    "of whole numbers": (
        published_with(torch.zeros(32, 16, dtype=torch.int), "model", "all_modules.1.weight"),
        "without finite floating-point numbers: all_modules.1.weight",
    ),
    "of NaN": (
        published_with(torch.full((32, 16), float("nan")), "model", "all_modules.1.weight"),
        "without finite floating-point numbers: all_modules.1.weight",
    ),
    "of no memory": (
        published_with(torch.zeros(32, 16, device="meta"), "model", "all_modules.1.weight"),
        "without finite floating-point numbers: all_modules.1.weight",
    ),
    "at a negative step": (
        lambda c: c | {"step": -1},
        "x.pth: step: found another number, expected",
    ),
    "at a step of text": (lambda c: c | {"step": "4"}, "x.pth: step: found str, expected int"),
    "with a flag for a step": (
        lambda c: c | {"step": True},
        "x.pth: step: found bool, expected int",
    ),
    "with text for a parameter": (
        lambda c: c | {"optimizer": {"state": {"a": {}}}},
        "x.pth: optimizer.state: found parameter a, expected numbers below",
    ),
}
COMPARED = {
    "of nothing": (b"", "x.npz: found nothing usable"),
    "truncated": (npz(**FEATURES)[:-100], "x.npz: found nothing usable"),
    "of another kind of file": (npy(SMALL), "x.npz: found nothing usable"),
    "of objects": ({"features": np.array([None] * 20)}, "nothing usable (Python objects)"),
    "of 10¹² images": (npz_header("features", (MUCH, 3)), "x.npz: found nothing usable (0 bytes"),
    "without a row": ({"features": np.zeros(20, np.float32)}, "found features of float32"),
    "of text": ({"features": np.array([["a"] * 3] * 20)}, "found features of <U1"),
    "of doubles": ({"logits": np.zeros((20, 2))}, "x.npz: found logits of float64"),
    "of NaN": (
        {"features": np.full((20, 3), np.nan, np.float32)},
        "x.npz: found features of float32 and shape (20, 3), expected finite",
    ),
    "of infinite logits": (
        {"logits": np.full((20, 2), np.inf, np.float32)},
        "x.npz: found logits of float32 and shape (20, 2), expected finite",
    ),
    "with too few logits": (
        {"logits": FEATURES["logits"][1:]},
        "x.npz: found features of 20 images and logits of 19, expected",
    ),
    "of an accuracy of text": ({"extractor_accuracy": "all"}, "x.npz: found an accuracy of <U3"),
    "of many accuracies": (
        {"extractor_accuracy": np.zeros(3)},
        "x.npz: found an accuracy of float64 and shape (3,), expected",
    ),
    "of too few images for their neighbours": (
        {"features": FEATURES["features"][:3], "logits": FEATURES["logits"][:3]},
        "quality.neighbours: found 3, expected fewer than 3, the number of generated images",
    ),
    "of another extractor": (
        {"extractor_sha256": "c"},
        "x.npz: found features of the extractor c, expected those of a",
    ),
}
RECORDS = {
    "of nothing": (b"", "x.json: found no record of a stage, expected"),
    "of a list": (b"[]", "x.json: found no record of a stage, expected"),
    "of no text": (b"\xff\xfe", "x.json: found no record of a stage, expected"),
    "nested": (DEEP, "x.json: found no record of a stage, expected"),
    "without metrics": (b'{"stage": "x", "protocol": {}}', "x.json: found no record of a stage"),
    "with a number for metrics": ({"metrics": 3}, "x.json: found no record of a stage"),
    "with text for a metric": ({"metrics": ["nll"]}, "x.json: found no record of a stage"),
    "with a metric without value": ({"metrics": [{"name": "nll"}]}, "x.json: found no record"),
    "with text for a value": ({"metrics": [METRIC | {"value": "1"}]}, "x.json: found no record"),
    "with NaN for a value": (
        {"metrics": [METRIC | {"value": float("nan")}]},
        "x.json: found no record of a stage",
    ),
    "with a list for a protocol": ({"protocol": [1]}, "x.json: found no record of a stage"),
    "with a list for a method": ({"method": ["u"]}, "x.json: found no record of a stage"),
}
LEARNT = {
    "without a description": ({"data.json": None}, "data.json: found no such file, expected"),
    "with a damaged description": ({"data.json": b"{"}, "data.json: found another JSON"),
    "with a nested description": ({"data.json": DEEP}, "data.json: found another JSON"),
    "with an empty description": ({"data.json": b"{}"}, "data.json: found another shape"),
    "of no levels": (
        {"data.json": b'{"shape": [1, 8, 8], "levels": 0, "classes": 10}'},
        "data.json: found another levels",
    ),
    "of images without images": ({"train.npy": b""}, "train.npy: found nothing usable"),
    "of an archive of images": (
        {"train.npy": npz(images=SMALL)},
        "train.npy: found nothing usable",
    ),
    "of images of floats": (
        {"train.npy": np.zeros((4, 1, 8, 8))},
        "train.npy: found float64 of shape (4, 1, 8, 8), expected uint8",
    ),
    "of labels of objects": (
        {"train_labels.npy": np.array([None] * 1437)},
        "train_labels.npy: found nothing usable (Python objects), expected",
    ),
    "of labels of floats": ({"train_labels.npy": np.zeros(1437)}, "train_labels.npy: found"),
    "of too few labels": ({"train_labels.npy": np.zeros(3, np.int64)}, "train_labels.npy: found"),
    "without labels": (
        {"train_labels.npy": np.full(1437, -1)},
        "labels: found 1437 images without one, expected a label for every image",
    ),
    "of one class": (
        {"train_labels.npy": np.full(1437, 4)},
        "labels: found 4 for every image, expected at least two classes",
    ),
}
JUDGED = {
    "empty": (b"", "x.csv: found no table (No columns to parse from file), expected CSV"),
    "ragged": (b"a,b\n1,2\n1,2,3\n", "x.csv: found no table (Error tokenizing data."),
    "no text": (b"\xff\xfe\x00", "x.csv: found no table ('utf-8' codec can't decode"),
}


def measured(stage):
    """Measure ``stage`` on more test images than there are."""
    document = json.loads(spec(stage, "digits", "u", 0))
    document["protocol"]["samples"] = 361
    options = ["--data", "PREPARED", "--checkpoint", CI, "--shard", "1-of-1"]
    return [stage, "--spec", json.dumps(document), *options, "--out", "x", "--record", "y"]


ARGUMENTS = {
    **{
        f"more images for the {stage} than there are": (
            measured(stage),
            f"{stage}.samples: found 361, expected at most 360, the number of images in",
        )
        for stage in ("likelihood", "asymmetry")
    },
    "no stage": ([], "the following arguments are required: COMMAND"),
    "unknown stage": (["bogus"], "invalid choice: 'bogus'"),
    "unknown option": (
        ["prepare", "--spec", preparing({"source": "digits"}), "--out", "x", "--y"],
        "--y",
    ),
    "no specification": (["prepare", "--out", "x"], "arguments are required: --spec"),
    "specification that is no JSON": (
        ["prepare", "--spec", "{", "--out", "x"],
        "argument --spec: found no JSON",
    ),
    "specification that is a list": (
        ["prepare", "--spec", "[]", "--out", "x"],
        "specification: found [], expected: input should be an object",
    ),
    "nested specification": (
        ["prepare", "--spec", DEEP.decode(), "--out", "x"],
        "argument --spec: found no JSON",
    ),
    "specification without data": (
        ["prepare", "--spec", "{}", "--out", "x"],
        "specification: version: found nothing, expected a value",
    ),
    "specification without protocol": (
        ["quality", "--spec", "{}", "--samples", CI, "--reference", CI, "--record", "x"],
        "specification: version: found nothing, expected a value",
    ),
    "file that is gone": (
        [
            "gather_records",
            "--spec",
            spec("gather_records"),
            "--records",
            "gone.json",
            "--out",
            "x",
        ],
        "argument --records: gone.json: found nothing there, expected",
    ),
    "folder for a record": (
        ["gather_records", "--spec", spec("gather_records"), "--records", "/", "--out", "x"],
        "'/'",
    ),
    "dataset that cannot be fetched": (["fetch", "mnist"], "invalid choice: 'mnist'"),
    "training with a negative learning rate": (
        [
            *("train", "--spec", training(lr=-1.0), "--data", "PREPARED"),
            *("--out", "o.safetensors", "--curve", "o.csv", "--record", "o.json"),
        ],
        "specification: protocol.training.lr: found -1.0, expected",
    ),
    "regulariser without an estimator": (
        [
            *("train", "--spec", training(regulariser={"weight": 1.0}), "--data", "PREPARED"),
            *("--out", "o.safetensors", "--curve", "o.csv", "--record", "o.json"),
        ],
        "specification: protocol.regulariser.estimator: found nothing, expected",
    ),
    "shard that is none": (
        [
            *(
                "features",
                "--spec",
                spec("features", "efficientnet_lite0", "float32"),
                "--data",
                "PREPARED",
            ),
            *("--images", "PREPARED/test.npy", "--shard", "3-of-2", "--out", "x"),
        ],
        "shard: found '3-of-2', expected",
    ),
}
TABLE = {
    "configuration": (configured, CONFIGURED),
    "configuration file": (configuration, CONFIGURATIONS),
    "cell": (cell, CELLS),
    "data": (data, DATA),
    "checkpoint": (started, CHECKPOINTS),
    "published checkpoint": (imported, PUBLISHED),
    "features": (compared, COMPARED),
    "record": (gathered, RECORDS),
    "prepared data": (learnt, LEARNT),
    "table": (judged, JUDGED),
    "command": (arguments, ARGUMENTS),
}
CASES = {
    f"{kind}: {name}": (partial(meet, *bad), sentence)
    for kind, (meet, rows) in TABLE.items()
    for name, (*bad, sentence) in rows.items()
}


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("meet, sentence", CASES.values(), ids=CASES)
def test_bad_input_is_one_sentence(meet, sentence, tmp_path, prepared, monkeypatch, capsys):
    monkeypatch.setenv("QCSBM_DATA", ".")
    monkeypatch.chdir(tmp_path)
    # A training would go on after the signals that end a test run.
    monkeypatch.setattr("signal.signal", lambda *_: None)
    command = meet(tmp_path, prepared)
    before = contents(tmp_path)
    assert in_process(*command) == 2
    printed = capsys.readouterr()
    # argparse shows how a command is used before it says what is wrong.
    said = [line for line in printed.err.splitlines() if not line.startswith(("usage: ", " "))]
    assert len(said) == 1 and said[0].startswith("qcsbm"), printed.err
    assert sentence in said[0]
    assert printed.out == "" and contents(tmp_path) == before
