"""Feature extractors: known networks give their own values, damaged weights are refused."""

import numpy as np
import pytest
import torch
from pytorch_fid import inception as fid_inception
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

from qcsbm import classification, features
from qcsbm.feature_file import Features, read, write
from qcsbm.features import ClassifierExtractor, EfficientNetLite0, InceptionExtractor, extract
from qcsbm.files import sha256


@pytest.fixture(scope="module")
def classifier():
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    train_x, test_x, train_y, test_y = train_test_split(
        images, bunch.target, test_size=360, random_state=0, stratify=bunch.target
    )
    return classification.train_classifier(train_x, train_y, 17, 15), test_x, test_y


def test_classifier_recognises_digits(classifier):
    model, images, labels = classifier
    assert classification.accuracy(model, images, labels, 17) > 0.95


def test_classifier_file_gives_the_same_features_in_any_batch_size(classifier, tmp_path):
    model, images, _ = classifier
    path = tmp_path / "classifier.safetensors"
    classification.save(path, model)
    extractor = ClassifierExtractor(path)
    assert extractor.sha256 == sha256(path)
    one, logits = extract(extractor, images[:50], 17, 50)
    other, _ = extract(extractor, images[:50], 17, 7)
    assert one.shape == (50, 64) and logits.shape == (50, 10)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_file_that_is_no_classifier_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"x.safetensors: found no classifier \("):
        ClassifierExtractor(path)


def test_unlabelled_images_train_no_classifier():
    with pytest.raises(ValueError, match="found 2 images without one, expected a label"):
        classification.train_classifier(np.zeros((2, 1, 8, 8), np.uint8), np.array([-1, -1]), 17, 1)


def test_efficientnet_logits_are_those_of_its_package():
    photograph = load_sample_images().images[0][:64, :64].transpose(2, 0, 1)[None].copy()
    extractor = EfficientNetLite0()
    f, logits = extract(extractor, photograph, 256, 1)
    assert f.shape == (1, 112) and logits.shape == (1, 1000)
    with torch.no_grad():
        x = (torch.from_numpy(photograph).float() - 127) / 128
        # 64 × 64 is the extractor's own input size, so resizing changes nothing.
        expected = extractor.network(x)
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_grey_images_become_colour():
    grey = np.random.default_rng(0).integers(0, 17, (2, 1, 8, 8), dtype=np.uint8)
    extractor = EfficientNetLite0()
    np.testing.assert_array_equal(
        extract(extractor, grey, 17, 2)[0], extract(extractor, grey.repeat(3, 1), 17, 2)[0]
    )


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights in the format of the published file."""
    torch.manual_seed(0)
    network = features._fid_network()
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("hub") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
def test_inception_features_are_those_of_pytorch_fid(inception_file, monkeypatch):
    monkeypatch.setenv(features.INCEPTION_VARIABLE, str(inception_file))
    extractor = InceptionExtractor(sha256_prefix=sha256(inception_file)[:8])
    monkeypatch.setattr(
        fid_inception,
        "load_state_dict_from_url",
        lambda *_, **__: torch.load(inception_file, weights_only=True),
    )
    peer = fid_inception.InceptionV3([3]).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    f, logits = extract(extractor, images, 256, 2)
    with torch.no_grad():
        expected = peer(torch.from_numpy(images).float() / 255)[0].flatten(1).numpy()
    assert f.shape == (2, 2048) and logits.shape == (2, 1008)
    np.testing.assert_allclose(f, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        logits, f @ extractor.network.fc.weight.detach().numpy().T, rtol=1e-3, atol=1e-4
    )


def test_missing_or_wrong_inception_weights_are_named(inception_file, monkeypatch, tmp_path):
    monkeypatch.setenv(features.INCEPTION_VARIABLE, str(inception_file))
    with pytest.raises(ValueError, match="expected one that begins with 6726825d, as that of http"):
        InceptionExtractor()
    monkeypatch.setenv(features.INCEPTION_VARIABLE, str(tmp_path / "gone.pth"))
    with pytest.raises(FileNotFoundError, match="gone.pth: found no weights of the Inception"):
        InceptionExtractor()


def test_features_survive_their_file_and_others_are_refused(tmp_path):
    path = tmp_path / "f.npz"
    kept = Features(np.eye(3, dtype=np.float32), np.ones((3, 2), np.float32), "a", "b")
    write(path, kept)
    again = read(path)
    np.testing.assert_array_equal(again.features, kept.features)
    assert (again.extractor_sha256, again.images_sha256) == ("a", "b")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="f.npz: found no features"):
        read(path)
