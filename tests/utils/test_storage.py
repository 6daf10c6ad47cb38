"""Atomic writes and the errors of a disk."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jepaworld.errors import JepaworldError, StorageError
from jepaworld.utils.storage import alone_in, atomic_write_bytes, atomic_write_text, storage_errors


def test_writes_and_replaces(tmp_path: Path):
    target = tmp_path / "file"
    atomic_write_bytes(target, b"one")
    atomic_write_text(target, "zwölf")
    assert target.read_text(encoding="utf-8") == "zwölf"
    assert list(tmp_path.iterdir()) == [target]


def test_new_file_has_the_users_permissions(tmp_path: Path):
    (tmp_path / "plain").write_bytes(b"")
    atomic_write_bytes(tmp_path / "atomic", b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch, failing: str):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match=r"file: cannot be written \(No space left on device\)\. Free space"):
        atomic_write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_content_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch):
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    atomic_write_bytes(tmp_path / "file", b"x")
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("code", ["ENOSPC", "EACCES", "EROFS", "EDQUOT", "EFBIG", "EPERM", "ENOTDIR"])
def test_the_systems_refusals_become_storage_errors(code: str):
    with (
        pytest.raises(StorageError, match=r"/some/file: cannot be written") as caught,
        storage_errors("/some/file"),
    ):
        raise OSError(getattr(errno, code), "refused")
    assert isinstance(caught.value, JepaworldError) and isinstance(caught.value, OSError)
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_pass_through():
    with pytest.raises(FileNotFoundError), storage_errors("x"):
        raise FileNotFoundError(errno.ENOENT, "gone")
    with pytest.raises(ValueError), storage_errors("x"):
        raise ValueError("unrelated")


def test_an_inner_message_is_kept():
    with pytest.raises(StorageError, match=r"^inner$"), storage_errors("outer"):
        raise StorageError("inner")


def test_a_file_where_a_folder_should_be(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another folder"):
        atomic_write_bytes(tmp_path / "file" / "below", b"")


def test_a_folder_is_for_one_process_at_a_time(tmp_path: Path):
    program = (
        "import sys; from jepaworld.utils.storage import alone_in\n"
        "with alone_in(sys.argv[1], RuntimeError('busy')):\n"
        "    print('inside', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "inside\n"
    with pytest.raises(ValueError, match="somebody"), alone_in(tmp_path, ValueError("somebody is there")):
        pass
    other.communicate()
    with alone_in(tmp_path, ValueError("nobody is there")):
        pass
