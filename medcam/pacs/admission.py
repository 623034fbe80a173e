"""Who may come, and how much may be sent: lists, limits, and a count of what is open.

References
----------
DICOM PS3.8 table 9-21 (rejections), PS3.4 B.2.3 (statuses of storage).
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, final

from medcam.errors import UsageError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
HERE: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_MINUTE_S = 60.0
# Connections that have not said who they are, besides those of associations: of one address, and of all.
_UNNAMED_OF_ONE, _UNNAMED = 16, 64


class Refusal(NamedTuple):
    """Result, source and reason of an A-ASSOCIATE-RJ, and the same in words for our log."""

    result: int
    source: int
    reason: int
    words: str


_UNKNOWN_CALLER = Refusal(1, 1, 3, "its AE title is not on the list")
_WRONG_TITLE = Refusal(1, 1, 7, "it calls another AE title than ours")
_TOO_OFTEN = Refusal(2, 3, 1, "it came too often within a minute")
_TOO_MANY = Refusal(2, 3, 2, "there are too many associations already")
_LEAVING = Refusal(2, 3, 1, "the node is about to stop")


@dataclass(frozen=True)
class Limits:
    """What a node takes at most.

    Parameters
    ----------
    instance_bytes
        Of one instance; the association of a larger one is aborted.
    series_instances
        How many instances of one series; more get the status A700 (out of resources).
    queue_bytes
        Of all instances in the queue; more get A700.
    free_bytes
        What stays free on the disk; below it every instance gets A700.
    associations
        At once.
    per_minute
        Associations of one address in any minute.
    idle_s
        How long an association may be silent.
    opening_s
        How long a connection may take to become an association (ARTIM), TLS included.
    message_s
        How long one PDU may take to arrive, from its first byte, and a message of several besides the time that its bytes take.
    """

    instance_bytes: int = 512 << 20
    series_instances: int = 10_000
    queue_bytes: int = 100 << 30
    free_bytes: int = 2 << 30
    associations: int = 8
    per_minute: int = 600
    idle_s: float = 60.0
    opening_s: float = 10.0
    message_s: float = 30.0


@dataclass(frozen=True)
class Guests:
    """Who may associate.

    Parameters
    ----------
    called
        Our own AE title, by which we must be called.
    titles
        AE titles that may call; () for any.
    networks
        Addresses that may connect.
    """

    called: str
    titles: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = HERE

    def expects(self, address: str) -> bool:
        """Tell whether an address may connect."""
        found = plain_address(address)
        return any(found.version == each.version and found in each for each in self.networks)


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Return the networks that a user named: '10.1.2.3', '10.1.0.0/16', 'fd00::/8'.

    Raises
    ------
    UsageError
        If one is none.
    """
    found: list[Network] = []
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text.strip()))
        except ValueError as error:
            raise UsageError(
                f"--from takes addresses such as 10.1.2.3 or networks such as 10.1.0.0/16, not '{text}' ({error})"
            ) from error
    return tuple(found)


def plain_address(text: str) -> Address:
    """Return an address; one of IPv4 that came over a socket of IPv6 as itself."""
    found = ipaddress.ip_address(text.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


@final
class Door:
    """Counts connections and associations, and says which may come in. Threads share one.

    Parameters
    ----------
    clock
        Seconds that only grow.
    """

    def __init__(self, guests: Guests, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._guests, self._limits, self._clock = guests, limits, clock
        self._lock = threading.Lock()
        self._unnamed: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._came: dict[str, deque[float]] = {}
        self._leaving = False

    def knock(self, address: str) -> bool:
        """Let a connection in that has not said who it is, or not."""
        with self._lock:
            welcome = (
                not self._leaving
                and self._guests.expects(address)
                and self._unnamed[address] < _UNNAMED_OF_ONE
                and self._unnamed.total() < _UNNAMED
            )
            self._unnamed[address] += welcome
            return welcome

    def leave_unnamed(self, address: str) -> None:
        """Forget a connection that `knock` let in: it has said who it is, or is gone."""
        with self._lock:
            self._unnamed[address] -= 1
            self._unnamed += Counter()  # drops those that have none left

    def enter(self, calling: str, called: str, *, address: str) -> Refusal | None:
        """Let an association in, or say why not."""
        with self._lock:
            if called.strip() != self._guests.called:
                return _WRONG_TITLE
            if self._guests.titles and calling.strip() not in self._guests.titles:
                return _UNKNOWN_CALLER
            if self._leaving:
                return _LEAVING
            if self._too_often(address):
                return _TOO_OFTEN
            if self._open.total() >= self._limits.associations:
                return _TOO_MANY
            self._open[peer_name(calling, address)] += 1
            return None

    def leave(self, calling: str, address: str) -> None:
        """Forget an association that `enter` let in."""
        with self._lock:
            self._open[peer_name(calling, address)] -= 1
            self._open += Counter()

    def open_peers(self) -> frozenset[str]:
        """Return the peers of which an association is open."""
        with self._lock:
            return frozenset(self._open)

    def close(self) -> None:
        """Let nobody in any more."""
        with self._lock:
            self._leaving = True

    def _too_often(self, address: str) -> bool:
        now = self._clock()
        self._came = {each: times for each, times in self._came.items() if times[-1] > now - _MINUTE_S}
        times = self._came.setdefault(address, deque(maxlen=self._limits.per_minute))
        if len(times) == self._limits.per_minute and times[0] > now - _MINUTE_S:
            return True
        times.append(now)
        return False


def peer_name(calling: str, address: str) -> str:
    """Return a peer in one word: 'AET@address'."""
    return f"{calling.strip()}@{address}"
