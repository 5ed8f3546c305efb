"""Batches from worker processes. A worker that dies or hangs is an error, and none is left behind.

The workers are not those of torch's `DataLoader`: these share locks, so that killing one may block the
others and the main process for ever, and pass batches through /dev/shm, which is small in containers and
makes the main process wait for ever for a worker that is stopped. Here each worker has a socket of its
own and nothing else is shared, so a worker can be killed at any time.
"""

import ctypes
import io
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import BaseContext
from queue import Queue
from struct import Struct
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from psy_agents_noaug.errors import LoaderError
from psy_agents_noaug.utils.signals import STOP_SIGNALS, signals_blocked

T = TypeVar("T")

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 2.0
_CHUNK = 1 << 20
_LENGTH = Struct("<Q")  # before each message
_PR_SET_PDEATHSIG = 1  # from Linux's sys/prctl.h
_REMEDY = (
    "`training.num_workers=0` needs no workers. A training goes on from its last checkpoint with "
    "resume=auto."
)
_CAUSES = {
    "SIGKILL": "; most likely the machine or the container ran out of memory",
    "SIGBUS": "; most likely memory ran out, or a file that it reads was cut short",
}


@contextmanager
def loaded(
    dataset: Dataset[T],
    order: Sequence[int],
    options: Mapping[str, Any],
    *,
    while_waiting: Callable[[], None] = lambda: None,
) -> Iterator[Iterator[T]]:
    """Give an iterator over the items of `dataset` in the given order; end its workers afterwards.

    Args:
        dataset: collates an item.
        order: the indices of the items.
        options: of `get_optimal_dataloader_kwargs`. `timeout` is how many seconds to wait for an item.
        while_waiting: called at least once a second while an item is waited for; may raise.

    Raises:
        LoaderError: a worker cannot be started, died, or sent nothing for `timeout` seconds.
    """
    pin_memory = options.get("pin_memory", False)
    n_workers = options["num_workers"]
    if n_workers == 0:
        yield iter(DataLoader(dataset, batch_size=None, sampler=order, pin_memory=pin_memory))
        return
    context = multiprocessing.get_context(options.get("multiprocessing_context"))
    n_ahead = options.get("prefetch_factor", 1)
    workers: list[_Worker] = []
    try:
        try:
            for number in range(n_workers):
                workers.append(_Worker(context, dataset, order[number::n_workers], n_ahead))
        except OSError as error:
            raise LoaderError(f"A worker process cannot be started: {error}. {_REMEDY}") from error
        received: _Received[T] = _Received(
            workers, len(order), options.get("timeout"), while_waiting
        )
        yield iter(DataLoader(received, batch_size=None, pin_memory=pin_memory))
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.close()


class _Worker:
    """A process that collates some of the items, and the socket that they come through."""

    def __init__(
        self, context: BaseContext, dataset: Dataset[Any], order: Sequence[int], n_ahead: int
    ) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(_POLL_SECONDS)
        self.process = context.Process(  # type: ignore[attr-defined]
            target=_work, args=(theirs, dataset, order, n_ahead), daemon=True
        )
        try:
            with signals_blocked():  # until the worker ignores them
                self.process.start()
        except BaseException:
            self.socket.close()
            raise
        finally:
            theirs.close()

    def receive(self, size: int, waiting: Callable[[], None]) -> bytearray:
        """Return the next `size` bytes.

        Args:
            size: of the message.
            waiting: called whenever nothing has come for a while; may raise.

        Raises:
            LoaderError: the worker has ended.
        """
        message = bytearray()
        while len(message) < size:
            try:
                chunk = self.socket.recv(min(size - len(message), _CHUNK))
            except TimeoutError:
                waiting()
                continue
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise self._death()
            message += chunk
        return message

    def _death(self) -> LoaderError:
        self.process.join(_GRACE_SECONDS)
        code = self.process.exitcode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            causes = [cause for name, cause in _CAUSES.items() if getattr(signal, name) == -code]
            how = f"was killed by signal {-code} ({signal.strsignal(-code)}){''.join(causes)}"
        return LoaderError(f"A worker process that collates batches {how}. {_REMEDY}")

    def close(self) -> None:
        self.process.join(_GRACE_SECONDS)
        self.socket.close()


class _Received(IterableDataset[T]):
    """The items of all workers, in order: they take turns."""

    def __init__(
        self,
        workers: Sequence[_Worker],
        n_items: int,
        timeout: float | None,
        while_waiting: Callable[[], None],
    ) -> None:
        self._workers = workers
        self._n_items = n_items
        self._timeout = timeout
        self._while_waiting = while_waiting

    def __iter__(self) -> Iterator[T]:
        for number in range(self._n_items):
            yield self._receive(self._workers[number % len(self._workers)])

    def _receive(self, worker: _Worker) -> T:
        began = time.monotonic()

        def waiting() -> None:
            self._while_waiting()
            if self._timeout is not None and time.monotonic() - began > self._timeout:
                raise LoaderError(
                    f"A worker process has sent no batch for {self._timeout:g} s "
                    "(`training.loader_timeout`): it is stopped, or waits for a disk or for memory. "
                    f"Set a longer time if it is only slow. {_REMEDY}"
                )

        (size,) = _LENGTH.unpack(worker.receive(_LENGTH.size, waiting))
        item, error = pickle.loads(worker.receive(size, waiting))  # noqa: S301  (of our own worker)
        if error is not None:
            raise error
        received: T = item
        return received


# ------------------------------------------------------------------------------------ in the worker


def _work(
    connection: socket.socket, dataset: Dataset[Any], order: Sequence[int], n_ahead: int
) -> None:
    # A signal to the whole process group must not end workers before the state is saved.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    messages: Queue[bytes] = Queue(maxsize=n_ahead)
    collating = threading.Thread(target=_collate, args=(dataset, order, messages), daemon=True)
    collating.start()
    with suppress(ConnectionError):  # The main process reads no more.
        for _ in order:
            message = messages.get()
            connection.sendall(_LENGTH.pack(len(message)))
            connection.sendall(message)


def _die_with_parent() -> None:
    """Let the system kill this process when the main process ends in whatever way (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is None or os.getppid() != parent.pid:
            signal.raise_signal(signal.SIGKILL)  # It has ended before.


def _collate(dataset: Dataset[Any], order: Sequence[int], messages: "Queue[bytes]") -> None:
    torch.set_num_threads(1)
    for index in order:
        messages.put(_message(dataset, index))


def _message(dataset: Dataset[Any], index: int) -> bytes:
    """Return the pickled item and None, or None and the error that collating it raised."""
    try:
        return _pickled((dataset[index], None))
    except BaseException as error:  # noqa: BLE001  (the main process raises it)
        trace = "".join(traceback.format_exception(error))
        try:
            error.add_note(f"In a worker process:\n{trace}")
            message = _pickled((None, error))
            pickle.loads(message)  # noqa: S301  (as above)
        except Exception:  # noqa: BLE001  (of a class whose objects cannot be pickled)
            return _pickled((None, RuntimeError(trace)))
        return message


def _pickled(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Pickles tensors by value: torch's own way takes a file for each of them."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) and obj.dtype != torch.bfloat16:
            return torch.from_numpy, (obj.numpy(),)
        return NotImplemented
