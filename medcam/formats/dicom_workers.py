"""Decoding in processes beside this one: the decoders are native code that lets no other thread run meanwhile.

A worker is this Python, started with one function of this file, that gets compressed frames by a pipe and gives back
stored numbers. It is a plain child process: `multiprocessing` would run the user's script again in each. A stream that
ends its decoder ends a worker only.
"""

from __future__ import annotations

import os
import pickle
import queue
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from jaxtyping import Num

import medcam
from medcam.errors import InputError
from medcam.formats import dicom_decoding
from medcam.formats.dicom_decoding import Pixels, Stream

_LENGTH = struct.Struct("<Q")
# What libraries print must not come between the answers: they get a descriptor of their own before anything is loaded.
_SERVE = (
    "import os; answers = os.dup(1); os.dup2(os.open(os.devnull, os.O_WRONLY), 1); "
    "from medcam.formats.dicom_workers import serve; serve(answers)"
)


class Worker:
    """A child process that decodes one frame at a time; used as a context, at whose end it is gone."""

    def __init__(self) -> None:
        # The child looks for modules where this process found its own, and not in the current folder.
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(medcam.__file__).parents[1],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            # What was not written yet finds nobody to read it.
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        self._process.wait()

    def decoded(self, compressed: Stream) -> Num[np.ndarray, "j i"]:
        """Return the numbers that a compressed frame holds.

        Raises
        ------
        InputError
            If it cannot be decoded, or its decoder ended the worker.
        """
        try:
            _send(self._process.stdin, tuple(compressed))
            answer = _received(self._process.stdout)
        except (OSError, EOFError) as error:
            raise InputError("is damaged: its compressed pixels crash their decoder; fetch it again") from error
        if isinstance(answer, str):
            raise InputError(answer)
        dtype, shape, content = answer
        return np.asarray(np.frombuffer(content, dtype).reshape(shape))


@contextmanager
def workers(count: int) -> Iterator[Any]:
    """Yield a function like `dicom_decoding.stored` that decodes compressed frames in so many processes, for as many threads.

    Where no process can be started, frames are decoded in this one.
    """
    idle: queue.Queue[Worker] = queue.Queue()
    with ExitStack() as running:
        try:
            for _ in range(count):
                idle.put(running.enter_context(Worker()))
        except OSError:
            yield dicom_decoding.stored
            return

        def stored(pixels: Pixels, frame: int) -> Num[np.ndarray, "j i"]:
            compressed = dicom_decoding.stream(pixels, frame)
            if compressed is None:
                return dicom_decoding.stored(pixels, frame)
            worker = idle.get()
            try:
                return worker.decoded(compressed)
            finally:
                idle.put(worker)

        yield stored


def serve(descriptor: int) -> None:
    """Answer frames from standard input at a descriptor, until it ends: the worker's side."""
    answers = os.fdopen(descriptor, "wb")
    while True:
        try:
            compressed = Stream(*_received(sys.stdin.buffer))
        except EOFError:
            return
        try:
            values = np.ascontiguousarray(dicom_decoding.decoded(compressed))
            _send(answers, (values.dtype.str, values.shape, values.tobytes()))
        except InputError as error:
            _send(answers, str(error))
        except Exception as error:  # noqa: BLE001 (a damaged header makes pydicom raise nearly anything)
            _send(answers, f"is damaged and cannot be read ({type(error).__name__}); fetch it again, or leave it out")


def _send(pipe: IO[bytes] | None, message: object) -> None:
    if pipe is None:
        raise EOFError
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    pipe.write(_LENGTH.pack(len(content)))
    pipe.write(content)
    pipe.flush()


def _received(pipe: IO[bytes] | None) -> Any:
    head = b"" if pipe is None else pipe.read(_LENGTH.size)
    if pipe is None or len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    # Both ends of the pipe are this program.
    return pickle.loads(content)
