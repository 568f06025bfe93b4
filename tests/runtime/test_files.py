"""Files that appear whole or not at all, how they come to their names, and their checksums."""

import hashlib
import os
import stat

import pytest

from qcsbm.runtime.files import CHUNK, atomic, sha256, write_text


def test_file_has_its_content_before_its_name(tmp_path, monkeypatch):
    path = tmp_path / "new/folder/array.npy"
    synced = []

    def fsync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        assert not path.exists()

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic(path) as temporary:
        # Beside it, so that renaming is one step; hidden; and of a kind that writers know.
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".array.npy.") and temporary.suffix == ".npy"
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert synced == [str(temporary)]
    assert path.read_bytes() == b"whole" and os.listdir(path.parent) == ["array.npy"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), OSError("full")])
def test_old_file_stays_where_the_block_fails(error, tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(type(error)), atomic(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_errors_of_writing_name_the_file(tmp_path):
    path = tmp_path / "a.json"
    for error in (OSError(28, "No space left on device"), OSError("I/O error")):
        reason = error.strerror or str(error)
        sentence = rf"^{path}: {reason}, expected to write it$"
        with pytest.raises(OSError, match=sentence), atomic(path):
            raise error
    other = FileNotFoundError(2, "No such file or directory", "other.json")
    with pytest.raises(FileNotFoundError) as raised, atomic(path):
        raise other
    assert raised.value is other


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_others_may_read_what_the_umask_allows(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a", "")
        left = os.umask(mask)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask
    assert left == mask


def test_no_file_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        write_text(tmp_path / "a", "σ")
    assert len(os.listdir("/proc/self/fd")) == before
    assert (tmp_path / "a").read_bytes() == "σ".encode()


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1])
def test_checksum_is_that_of_the_whole_file(size, tmp_path):
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
