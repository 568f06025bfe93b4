"""Files and names from strangers: no code in them runs, and no size in them is believed."""

import gzip
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, in_process, preparing, snakemake
from safetensors.torch import save_file
from torchvision.datasets import CIFAR10, CIFAR100

from qcsbm.data import splits
from qcsbm.data.digits import digits
from qcsbm.experiment import config, specification
from qcsbm.quality.extractor_weights import INCEPTION_VARIABLE
from qcsbm.schema import sources

CI = ROOT / "config/ci.yaml"
CELL = ["--configfile", CI, "--dataset", "digits", "--method", "u"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The digits, as `prepare` writes them."""
    folder = tmp_path_factory.mktemp("digits")
    splits.write(folder, digits(sources.Digits(source="digits")))
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The working directory, which is also where datasets are."""
    monkeypatch.setenv("QCSBM_DATA", str(tmp_path))
    monkeypatch.setenv(INCEPTION_VARIABLE, str(tmp_path / "inception.pth"))
    # A training would go on after the signals that end a test run.
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refusal(capsys):
    """Runs a command that must end with status 2 and one sentence; the sentence."""

    def run(*arguments):
        assert in_process(*arguments) == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert sentence.startswith(f"qcsbm {arguments[0]}: ") and "expected" in sentence
        return sentence

    return run


def ci(stage, *names):
    return getattr(specification, stage)(config.read(CI), *names).text()


def prepare(source, **keys):
    return ["prepare", "--spec", preparing({"source": source, **keys}), "--out", "out"]


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- where a file can enter: writes `content` there, and returns its path and the command ---


def published(root, content, prepared):
    path = put(root / "x.pth", content)
    return path, ["import-checkpoint", path, "--out", "out", *CELL]


def checkpoint(root, content, prepared):
    path = put(root / "x.safetensors", content)
    command = ["train", "--spec", ci("train", "digits", "u", 0, 40), "--data", prepared]
    return path, [*command, "--init", path, "--out", "o", "--curve", "c", "--record", "r"]


def classifier(root, content, prepared):
    path = put(root / "x.safetensors", content)
    command = ["features", "--spec", ci("features", "classifier", "float32"), "--data", prepared]
    command += ["--images", prepared / "test.npy", "--shard", "1-of-1", "--out", "o"]
    return path, [*command, "--weights", path]


def inception(root, content, prepared):
    path = put(root / "inception.pth", content)
    command = ["features", "--spec", ci("features", "inception", "float32"), "--data", prepared]
    return path, [*command, "--images", prepared / "test.npy", "--shard", "1-of-1", "--out", "o"]


def images(root, content, prepared):
    path = put(root / "samples.npy", content)
    command = [
        "features",
        "--spec",
        ci("features", "efficientnet_lite0", "float32"),
        "--data",
        prepared,
    ]
    return path, [*command, "--images", path, "--shard", "1-of-1", "--out", "o"]


def features(root, content, prepared):
    path = put(root / "x.npz", content)
    command = ["quality", "--spec", ci("quality", "digits", "u", 0, "pc"), "--record", "r"]
    return path, [*command, "--samples", path, "--reference", path]


def labels(root, content, prepared):
    for file in prepared.iterdir():
        (root / file.name).symlink_to(file)
    path = root / "train_labels.npy"
    path.unlink()
    command = ["classifier", "--spec", ci("classifier", "digits"), "--data", root]
    return put(path, content), [*command, "--out", "o", "--record", "r"]


def shard(root, content, prepared):
    path = put(root / "x.npz", content)
    command = ["gather_likelihood", "--spec", ci("likelihood", "digits", "u", 0), "--out", "o"]
    return path, [*command, "--shards", path, "--records", CI, "--record", "r"]


def toy_field(root, content, prepared):
    path = put(root / "x.npz", content)
    command = ["toy_figure", "--spec", ci("toy_figure", "8-gaussian"), "--figure", "o"]
    return path, [*command, "--fields", path, path, path]


def array(root, content, prepared):
    return put(root / "mine/train.npy", content), prepare("arrays", name="mine", layout="nhw")


def array_archive(root, content, prepared):
    return put(root / "mine/train.npz", content), prepare("arrays", name="mine", layout="nhw")


def idx(root, content, prepared):
    return put(root / "mine/train-images-idx3-ubyte", content), prepare("idx", name="mine")


def idx_gz(root, content, prepared):
    path = put(root / "mine/train-images-idx3-ubyte.gz", content)
    return path, prepare("idx", name="mine")


def png(root, content, prepared):
    return put(root / "mine/train/0.png", content), prepare("folder", name="mine")


def imagenet32(root, content, prepared):
    for i in range(1, 11):
        path = put(root / f"imagenet32/train_data_batch_{i}.npz", content)
    put(root / "imagenet32/val_data.npz", content)
    return path.with_name("train_data_batch_1.npz"), prepare("imagenet32")


def imagenet32_pickle(root, content, prepared):
    return put(root / "imagenet32/train_data_batch_1", content), prepare("imagenet32")


def cifar10(root, content, prepared):
    path = root / "cifar10" / CIFAR10.base_folder / CIFAR10.train_list[0][0]
    return put(path, content), prepare("cifar10")


def cifar100(root, content, prepared):
    path = root / "cifar100" / CIFAR100.base_folder / CIFAR100.train_list[0][0]
    return put(path, content), prepare("cifar100")


def svhn(root, content, prepared):
    return put(root / "svhn/train_32x32.mat", content), prepare("svhn")


# --- code in files ---


class Code:
    """Makes the folder ``marker`` when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def plain(code, path):
    path.write_bytes(pickle.dumps(code))


def zipped(code, path):
    torch.save({"model": code}, path)


def legacy(code, path):
    torch.save({"model": code}, path, _use_new_zipfile_serialization=False)


def npy(code, path):
    with path.open("wb") as file:
        np.save(file, np.array([code], dtype=object), allow_pickle=True)


def npz(code, path):
    array = np.array([code], dtype=object)
    names = ["images", "labels", "data", "features", "logits", "bits", "nfe", "x", "score"]
    with path.open("wb") as file:
        np.savez(file, **dict.fromkeys(names, array))


PICKLES = [
    *((published, form) for form in (plain, zipped, legacy)),
    *((entry, plain) for entry in (checkpoint, classifier, inception, idx, idx_gz, png)),
    *((entry, plain) for entry in (cifar10, cifar100, svhn, imagenet32_pickle)),
    *((entry, form) for entry in (images, labels, array) for form in (plain, npy)),
    *((entry, form) for entry in (features, shard, toy_field) for form in (plain, npz)),
    *((entry, form) for entry in (array_archive, imagenet32) for form in (plain, npz)),
]


@pytest.mark.parametrize(
    "entry, form", PICKLES, ids=[f"{entry.__name__}-{form.__name__}" for entry, form in PICKLES]
)
def test_code_in_a_file_is_refused_and_does_not_run(
    entry, form, root, prepared, refusal, tmp_path_factory
):
    marker = tmp_path_factory.mktemp("marker") / "made"
    form(Code(marker), root / "code")
    path, command = entry(root, (root / "code").read_bytes(), prepared)
    before = sorted(root.rglob("*"))
    assert path.name in refusal(*command)
    assert not marker.exists()
    assert sorted(root.rglob("*")) == before, "no output is left"


@pytest.mark.parametrize("form", [plain, zipped, legacy, npy, npz])
def test_the_code_does_run_where_it_is_unpickled(form, tmp_path):
    marker = tmp_path / "made"
    form(Code(marker), tmp_path / "code")
    if form is plain:
        pickle.loads((tmp_path / "code").read_bytes())
    elif form in (zipped, legacy):
        torch.load(tmp_path / "code", weights_only=False)
    else:
        loaded = np.load(tmp_path / "code", allow_pickle=True)
        assert form is npy or loaded["images"] is not None
    assert marker.exists()


def test_code_in_a_configuration_is_refused_and_does_not_run(root, refusal):
    put(root / "x.yaml", b"tier: !!python/object/apply:os.mkdir [made]\n")
    assert "x.yaml: found no YAML" in refusal("describe", "--configfile", "x.yaml")
    assert not (root / "made").exists()


# --- sizes in files ---

MUCH = 10**12


def npy_header(shape, descr="|u1"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117) + b"\n"


def archive(path, **members):
    """An .npz whose own directory says of each member what its header says."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path.read_bytes()


def lying_archive(path, n):
    """An .npz with ``images`` of ``n`` pixels, of which there are 100, as is its size."""
    header = npy_header((n, 1, 1))
    content = bytearray(archive(path, images=header + bytes(100)))
    for place in (22, content.index(b"PK\x01\x02") + 24):
        struct.pack_into("<I", content, place, len(header) + n)
    return bytes(content)


def tensors(header, body=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(width, height, data, *chunks):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(data))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + png_chunk(b"IEND", b"")


def storage(root, **options):
    """A PyTorch file of four numbers that says that there are 10¹¹."""
    torch.save({"model": torch.ones(4)}, root / "x", **options)
    four, many = b"K\x04", b"\x8a\x06" + (10**11).to_bytes(6, "little")
    if options:
        content = (root / "x").read_bytes()
        assert content.count(four + b"Nt") == 1
        return content.replace(four + b"Nt", many + b"Nt")
    with zipfile.ZipFile(root / "x") as old, zipfile.ZipFile(root / "y", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(four, many))
    return (root / "y").read_bytes()


WEIGHT = {"dtype": "F32", "shape": [MUCH], "data_offsets": [0, 4 * MUCH]}
IDX_HEADER = bytes([0, 0, 8, 3])
CLAIMS = {
    "npy": (array, lambda root: npy_header((MUCH, 1, 1)) + bytes(100)),
    "npy of nothing": (array, lambda root: npy_header((MUCH, 0, 1))),
    "npz": (array_archive, lambda root: archive(root / "z", images=npy_header((MUCH, 1, 1)))),
    "npz with a lying directory": (array_archive, lambda root: lying_archive(root / "z", 2**31)),
    "imagenet32": (imagenet32, lambda root: archive(root / "z", labels=npy_header((MUCH,), "<i8"))),
    "images": (images, lambda root: npy_header((MUCH, 1, 8, 8)) + bytes(64)),
    "labels": (labels, lambda root: npy_header((MUCH,), "<i8") + bytes(64)),
    "features": (features, lambda root: archive(root / "z", features=npy_header((MUCH, 2), "<f4"))),
    "shard": (shard, lambda root: archive(root / "z", bits=npy_header((MUCH,), "<f8"))),
    "toy field": (toy_field, lambda root: archive(root / "z", x=npy_header((MUCH,), "<f8"))),
    "idx": (idx, lambda root: IDX_HEADER + struct.pack(">3I", 10**6, 1000, 1000) + bytes(100)),
    "idx.gz": (
        idx_gz,
        lambda root: gzip.compress(IDX_HEADER + struct.pack(">3I", 10**6, 1000, 1000)),
    ),
    # 200 MB of zeros in 200 kB, where the header speaks of a hundred.
    "gzip bomb": (
        idx_gz,
        lambda root: gzip.compress(IDX_HEADER + struct.pack(">3I", 1, 10, 10) + bytes(2 * 10**8)),
    ),
    "png": (png, lambda root: png_file(10**6, 10**6, b"")),
    "png of 2 · 10⁸ pixels": (png, lambda root: png_file(20_000, 10_000, bytes(10**7))),
    "png with a bomb for a text": (
        png,
        lambda root: png_file(
            1, 1, bytes(4), png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
        ),
    ),
    "checkpoint": (checkpoint, lambda root: tensors({"model.x": WEIGHT}, bytes(100))),
    "checkpoint's header": (checkpoint, lambda root: struct.pack("<Q", MUCH) + b"{}"),
    "classifier": (classifier, lambda root: claiming_classifier(root, classes=2 * 10**7)),
    "published": (published, lambda root: storage(root)),
    "published in the old format": (
        published,
        lambda root: storage(root, _use_new_zipfile_serialization=False),
    ),
}


def claiming_classifier(root, **sizes):
    header = json.dumps({"channels": 1, "classes": 10, "accuracy": 0.5} | sizes)
    save_file({"x": torch.zeros(1)}, root / "c", metadata={"qcsbm": header})
    return (root / "c").read_bytes()


@pytest.mark.parametrize("entry, content", CLAIMS.values(), ids=CLAIMS)
def test_size_in_a_header_takes_neither_memory_nor_time(entry, content, root, prepared, refusal):
    path, command = entry(root, content(root), prepared)
    before = sorted(root.rglob("*"))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        sentence = refusal(*command)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.name in sentence
    # Modules that a stage is the first to import take tens of MB; what the headers speak of, and
    # what the bombs would burst into, takes 100 MB or more.
    assert peak < 100e6
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    assert kilobytes < 500e3
    assert sorted(root.rglob("*")) == before


# --- names ---


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "a/b", ".a", "a\\b", "'; touch x'", "$(x)"])
@pytest.mark.parametrize("source", ["folder", "arrays", "idx"])
def test_no_dataset_is_read_outside_the_folder_of_datasets(source, name, root, refusal):
    document = yaml.safe_load(CI.read_text())
    layout = {"layout": "nhw"} if source == "arrays" else {}
    data = {"source": source, "name": name, **layout}
    document["datasets"]["digits"]["data"] = data
    put(root / "x.yaml", yaml.safe_dump(document).encode())
    place = "x.yaml: datasets.digits.data.name: found"
    assert place in refusal("describe", "--configfile", "x.yaml", "--dataset", "digits")
    # The stage itself, given such a specification by hand, refuses it too.
    assert "name" in refusal(*prepare(**data))
    assert [path.name for path in root.iterdir()] == ["x.yaml"]


HOSTILE = "'; touch planted; echo '$(touch planted)`touch planted`\" {output} & > planted"


def test_labels_and_paths_reach_a_job_as_they_are_and_run_nothing(root):
    document = yaml.safe_load(CI.read_text())
    document["methods"]["u"] |= {
        "label": HOSTILE,
        "checkpoints": [],
        "init_from": {"checkpoint": "'; touch planted; '.safetensors", "step": 40},
    }
    document["methods"] = {"u": document["methods"]["u"]}
    document["datasets"]["digits"]["label"] = HOSTILE
    document["tables"] = {"table2": {"methods": ["u"]}}
    put(root / "x.yaml", yaml.safe_dump(document, allow_unicode=True).encode())
    (root / "'; touch planted; '.safetensors").touch()
    result = snakemake("-n", "-p", "results/ci/table2.md", "--configfile", "x.yaml", cwd=root)
    assert result.returncode == 0, result.stdout[-2000:]
    received = []
    for line in result.stdout.splitlines():
        _, found, command = line.partition("python -P -m qcsbm ")
        # A shell like a job's, in which `python` prints its arguments instead of starting a job.
        command = re.sub(r" 2> \S+$", "", command)
        script = f"python() {{ printf '%s\\0' \"$@\"; }}; python {command}"
        if found:
            shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
            received.append(shell.stdout.split("\0"))
    specs = {words[0]: json.loads(words[words.index("--spec") + 1]) for words in received}
    assert specs["table"]["datasets"]["digits"] == HOSTILE
    assert specs["table"]["methods"]["digits"] == [["u", HOSTILE]]
    starts = [words[words.index("--init") + 1] for words in received if "--init" in words]
    assert set(starts) == {"'; touch planted; '.safetensors"}
    assert not (root / "planted").exists()
