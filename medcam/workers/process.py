"""The driver's side of a local worker process: it is started, told jobs, listened to, and ended."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from medcam.errors import UsageError
from medcam.workers.jobs import Place, Setup, WorkersLostError

# What libraries print must not come between the answers: they get a descriptor of their own before anything is loaded.
_SERVE = (
    "import os; answers = os.dup(1); os.dup2(2, 1); import sys; sys.path[:] = [path for path in sys.path if path]; "
    "from medcam.workers.serving import main; main(answers)"
)
_THREADS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"),
)
# Threads that wait for each other sleep instead of turning round: beside a worker's threads that compute are those that read and write, and
# other workers, and on a busy machine turning took ten times the computing.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
# How long a worker that was told to stop may take to leave.
_LEAVE_S = 5.0
GONE = "gone"


def packed(setup: Setup) -> bytes:
    """Return a setup as it travels.

    Raises
    ------
    UsageError
        If it cannot: it is of the script itself, of a function, or holds what cannot be pickled.
    """
    if getattr(type(setup), "__module__", "") == "__main__" or getattr(setup, "__module__", "") == "__main__":
        raise UsageError(
            "what sets a worker up is defined in the script itself; put it into a module that workers can import"
        )
    try:
        return pickle.dumps(setup, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # objects that cannot be pickled raise nearly anything
        raise UsageError(f"what sets a worker up cannot be sent to it ({type(error).__name__}: {error})") from error


def unpacked(result: bytes) -> Any:
    """Return a result as the worker sent it; both ends of the pipe are this program."""
    return pickle.loads(result)


@dataclass(eq=False)
class Process:
    """A worker process. It is a plain child: `multiprocessing` would run the user's script again in each.

    Parameters
    ----------
    hear
        Called with this process and each of its messages, from a thread; the last is ('gone',).
    """

    place: Place
    setup: bytes
    threads: int
    hear: Callable[[Process, tuple[Any, ...]], None]
    _child: subprocess.Popen[bytes] = field(init=False)
    _thread: Thread = field(init=False)

    def __post_init__(self) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _SERVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**WAITING, **os.environ, "PYTHONPATH": paths, **dict.fromkeys(_THREADS, str(self.threads))},
                # Ctrl-C in the terminal reaches the driver alone.
                start_new_session=True,
            )
        except OSError as error:
            raise WorkersLostError(f"no worker process can be started: {error.strerror}") from error
        self._thread = Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def tell(self, job: tuple[int, Any] | None) -> None:
        """Send a job; None for the last. One that is gone does not hear it, as its last message will say."""
        message = pickle.dumps(job, pickle.HIGHEST_PROTOCOL)
        with suppress(OSError):
            _pipe(self._child.stdin).write(message)
            _pipe(self._child.stdin).flush()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._child.kill()

    def ended(self) -> str:
        """Wait until it has ended, clear up after it, and return how it ended, in words."""
        code = self._child.wait()
        self._thread.join()
        for pipe in (self._child.stdin, self._child.stdout):
            with suppress(OSError):
                _pipe(pipe).close()
        return _words(code)

    def leave(self) -> None:
        """Let it end by itself, and see to it that it does."""
        self.tell(None)
        try:
            self._child.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self.ended()

    def _listen(self) -> None:
        answers = _pipe(self._child.stdout)
        with suppress(OSError):
            _pipe(self._child.stdin).write(pickle.dumps((self.setup, self.place, self.threads)))
            _pipe(self._child.stdin).flush()
        # The end of the pipe, or of a process in the middle of a message.
        with suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                self.hear(self, pickle.load(answers))
        self.hear(self, (GONE,))


def _pipe(pipe: Any) -> Any:
    """Return a pipe that was asked for."""
    return pipe


def _words(code: int) -> str:
    if code >= 0:
        return f"ended by itself with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    hint = ", as when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by signal {-code} ({name}{hint})"
