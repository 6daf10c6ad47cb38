"""Writing files so that a killed process or a full disk never leaves a half-written one under its final name.

A file is written under a temporary name beside its destination, synced to the disk, renamed, and the folder
synced, so that after a crash there is either the old content or the new one. Datasets and checkpoints are
written with these.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jepaworld.errors import StorageError

_REMEDIES = {
    errno.ENOSPC: "Free space on that disk, or choose a folder on another one.",
    errno.EDQUOT: "Your quota is used up: delete files, or choose a folder on another disk.",
    errno.EFBIG: "The file would exceed the largest size allowed here (file system or `ulimit -f`): raise "
    "the limit, or choose a folder on another disk.",
    errno.EACCES: "Choose a folder that you may write to, or change its permissions.",
    errno.EPERM: "Choose a folder that you may write to, or change its permissions.",
    errno.EROFS: "That file system is read-only: choose a folder on another one.",
    errno.ENOTDIR: "A part of that path is a file: choose another folder.",
    errno.EEXIST: "A file stands where the folder should be: move it away or choose another folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


@contextmanager
def storage_errors(path: str | Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into an error that says what to do.

    Args:
        path: the file or folder that is being written; the message names it.

    Raises:
        StorageError: no space, quota or file size left, no permission, or a path that cannot be a folder.
            Every other exception passes through.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise StorageError(f"{path}: cannot be written ({error.strerror}). {remedy}") from error


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the file `path` by `data`, or leave it as it was.

    Args:
        path: destination; its folder exists.
        data: the whole new content.

    Raises:
        StorageError: it cannot be written; the old file, if any, is untouched and nothing half-written
            remains.
    """
    path = Path(path)
    with storage_errors(path):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Replace the file `path` by `text` in UTF-8, or leave it as it was; see `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


@contextmanager
def alone_in(path: str | Path, busy: Exception) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder for as long as this process lives.

    Args:
        path: an existing folder.
        busy: raised if another process is in it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no such lock
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError as error:
            # Some network file systems cannot lock folders.
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise
        yield
    finally:
        os.close(descriptor)


def sync_folder(path: str | Path) -> None:
    """Make the names in a folder (new, renamed and deleted files) survive a power cut.

    Args:
        path: an existing folder. On Windows, where folders cannot be synced, nothing happens.
    """
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
