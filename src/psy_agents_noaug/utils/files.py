"""Files: written atomically, refused in words where they cannot be, and swept up after a kill."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from psy_agents_noaug.errors import ConfigError, DataError, StorageError

_OUT_OF_SPACE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this process may write (`ulimit -f`)",
}
_REASONS = {
    **_OUT_OF_SPACE,
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "there is no permission",
    errno.EPERM: "there is no permission",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the disk reports an error",
    errno.EMFILE: "too many files are open (`ulimit -n`)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOTDIR: "a part of the path is a file and not a folder",
    errno.ENOENT: "its folder is not there",
}
# Machines that share a disk, and containers most of all, have processes of the same number.
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\..+\.(?:([0-9a-f]{8})-)?(\d+)(?:-[0-9a-f]{8})?\.tmp")
_DAY_SECONDS = 86_400.0


def storage_message(
    path: Path | str,
    error: OSError,
    *,
    needed: int = 0,
    verb: str = "written",
    setting: str = "output_dir",
) -> str:
    """Say why `path` cannot be written, and what to do.

    Args:
        path: of the file or folder.
        error: of the operating system.
        needed: bytes to be written; 0 where that is not known.
        verb: what cannot be done.
        setting: that says where it is written.
    """
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    if error.errno not in _OUT_OF_SPACE:
        return f"{path} cannot be {verb}: {reason}. Mend that, or write elsewhere (`{setting}`)."
    free = free_bytes(Path(path))
    figures = [f"{megabytes(needed)} needed"] * bool(needed)
    figures += [] if free is None else [f"{megabytes(free)} free"]
    amounts = f" ({', '.join(figures)})" if figures else ""
    if error.errno == errno.EFBIG:
        return (
            f"{path} cannot be {verb}: {reason}{amounts}. Raise that limit, or write "
            f"elsewhere (`{setting}`)."
        )
    return (
        f"{path} cannot be {verb}: {reason}{amounts}. Make space there, or write elsewhere "
        f"(`{setting}`)."
    )


def refusal_to_write(error: BaseException | None) -> OSError | None:
    """Return the environment's refusal to write, if it is `error` or what caused it.

    PyTorch, for one, complains about an unfinished archive where the disk is full.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REASONS:
            return error
        error = error.__cause__ or error.__context__
    return None


def environment_refusal(error: OSError) -> str | None:
    """Describe an error that the environment caused where none was expected; None for others."""
    if error.errno not in _REASONS.keys() - {errno.ENOENT, errno.ENOTDIR}:
        return None
    return storage_message(error.filename or "A file", error, verb="read or written")


@contextmanager
def storing(path: Path, *, needed: int = 0, setting: str = "output_dir") -> Iterator[None]:
    """Turn a refusal to write at `path` into a StorageError.

    Args:
        path: of the file or folder.
        needed: bytes to be written; 0 where that is not known.
        setting: that says where it is written.

    Raises:
        StorageError: with the path, the reason, the remedy and, where space is lacking, its amount.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        refusal = refusal_to_write(error) or (error if isinstance(error, OSError) else None)
        if refusal is None:
            raise
        raise StorageError(
            storage_message(path, refusal, needed=needed, setting=setting)
        ) from error


def free_bytes(path: Path) -> int | None:
    """Return the free space where `path` is or would be made; None where that is not known."""
    for place in (path.absolute(), *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def megabytes(size: float) -> str:
    """Spell a size in MB."""
    return f"{size / 1e6:,.1f} MB"


def without_tilde(path: str) -> Path:
    """Return a path with the home directory in place of `~`; as it is if there is none."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (`Path.expanduser` raises without a home)


def make_folder(path: Path) -> list[Path]:
    """Make a folder and those above it. Return those that were not there, the lowest first.

    Raises:
        StorageError: it cannot be made; nothing is left of the attempt.
    """
    with storing(path):
        absent = [place for place in (path, *path.parents) if not place.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError:
            remove_empty(absent)
            raise
    return absent


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of the folders that are empty, in their order."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def check_unused(folder: Path, *, what: str) -> None:
    """Check that a folder is not there, or empty.

    Args:
        folder: that will be written.
        what: will be written there, for the message.

    Raises:
        ConfigError: it is a file, or not empty.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        kind = "is not empty" if folder.is_dir() else "is no folder"
        raise ConfigError(
            f"The {what} would go to {folder}, which {kind}: remove it, or choose another `output`."
        )


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to write to, which gets its name when all is done.

    Args:
        folder: not there, or empty (`check_unused`).

    Raises:
        StorageError: it cannot be written.
    """
    unfinished = temporary_beside(folder.absolute())
    make_folder(unfinished.parent)
    with storing(folder):
        try:
            unfinished.mkdir()
            yield unfinished
            if folder.is_dir():
                folder.rmdir()  # it is empty
            unfinished.replace(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


def write_atomically(
    path: Path, write: Callable[[BinaryIO], None], *, needed: int = 0, mode: int = 0o666
) -> None:
    """Write to a temporary file in the same folder, flush it to disk, and rename it to `path`.

    `path` is the old file or the new one, never a part, even if the process is killed. The temporary
    file is removed after an error, and by `sweep` after a kill.

    Args:
        path: of the file.
        write: writes the content.
        needed: bytes of the content, about; 0 where that is not known.
        mode: permissions of the file, less those that the umask takes away.

    Raises:
        StorageError: the file cannot be written.
    """
    temporary = temporary_beside(path)
    with storing(path, needed=needed):
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "w+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def temporary_beside(path: Path) -> Path:
    """Return a name for a temporary file in the folder of `path` that nobody else takes."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def sweep(folder: Path, *, in_use_by_others: bool = True) -> None:
    """Remove the temporary files that killed processes have left in a folder.

    Args:
        folder: whose files are looked at, without those of folders in it; may not exist.
        in_use_by_others: whether a temporary file of a living process may be one that it is writing.
            Of processes of other machines, one that is younger than a day may be.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            found = _TEMPORARY.fullmatch(path.name)
            with suppress(OSError):
                if found and not (in_use_by_others and _may_be_in_use(path, found[1], found[2])):
                    path.unlink()


def _may_be_in_use(path: Path, host: str | None, number: str) -> bool:
    if host not in (None, _HOST):
        return time.time() - path.lstat().st_mtime < _DAY_SECONDS
    return _is_another_process(int(number))


def _is_another_process(number: int) -> bool:
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it runs, for another user
    return True


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write `content` atomically, with the permissions `mode`."""
    write_atomically(path, lambda file: _write_all(file, content), needed=len(content), mode=mode)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8.

    Raises:
        DataError: it is not there, cannot be read, or holds no JSON that can be parsed. The message does
            not quote it.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        reason = "there is no such file"
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        reason = "it must be UTF-8 JSON, but is not UTF-8"
    except (ValueError, RecursionError) as error:
        reason = f"it must be UTF-8 JSON, but is not ({json_fault(error)})"
    raise DataError(f"{path}: {reason}.")


def json_fault(error: ValueError | RecursionError) -> str:
    """Say what is wrong with JSON, without quoting it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


def sha256_of_json(value: Any) -> str:
    """Return the SHA-256 of `value` as canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_all(file: BinaryIO, content: bytes) -> None:
    file.write(content)
