"""Ends a run of several processes when one of them is lost; it would wait for ever.

A thread of every process holds a connection to the first process and gives a sign each second. The
system closes it at once when a process dies, even of kill -9; one that is stopped gives no signs.
The first process tells the others who is lost (`roll_call.py`), and what waits for it is ended.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lmpg.runtime.roll_call import RollCall
from lmpg.settings.section import UserError

EVERY = 1.0
"""Seconds between two signs."""

GRACE = 4.0
"""Seconds that this process has to end by itself once another has ended, as torch tells it."""

SOON = EVERY
"""The same where one is silent or hangs, of which torch tells nothing: the others hear of it first.
"""

TIMEOUT = 600.0
"""Seconds after which a process is given up, where no settings say (`run.rank_timeout`)."""

_PLACE = "lmpg/watch"


class Watch:
    """The watch of process `rank` of `count` over the others, from `start` to `finish`.

    board: what all processes can write to and read once at the start, as torch.distributed's store.
    address: of the first process's machine. advice: how to go on with the run that was ended.
    lost: the process that was lost, and what became of it.
    """

    timeout = TIMEOUT
    advice = "resume it with --run.resume"

    def __init__(self, rank: int, count: int, board: Any, address: str) -> None:
        self._rank, self._count, self._board, self._address = rank, count, board, address
        self._name = f"process {os.getpid()} on {socket.gethostname()}"
        self._meeting, self._waits, self._busy = 0, False, 1
        self._why: str | None = None
        self._roll = RollCall(
            {0, rank, *range(0 if rank else count)}, self.timeout, time.monotonic()
        )
        self._peers: dict[socket.socket, int] = {}
        self._halves: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self._bell, self._ring = socket.socketpair()
        self._token = ""
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watch")
        self._server: socket.socket | None = None
        self.lost: tuple[int, str] | None = None
        self._end_at = self._left = 0.0
        self._said = False

    def start(self) -> None:
        """Connect with the first process, and watch in a thread of its own."""
        if self._rank == 0:
            self._token = secrets.token_hex(16)
            self._server = _server()
            port = self._server.getsockname()[1]
            self._board.set(_PLACE, f"{port} {self._token} {self._name}")
            self._selector.register(self._server, selectors.EVENT_READ)
        else:
            port, self._token, name = self._board.get(_PLACE).decode().split(" ", 2)
            self._greeted(0, name)
            self._take(self._connected(int(port)), 0)
        self._selector.register(self._bell, selectors.EVENT_READ)
        os.register_at_fork(after_in_child=self._close)  # or a child would seem to be this process
        self._thread.start()

    def _connected(self, port: int) -> socket.socket:
        try:
            peer = socket.create_connection((self._address, port), timeout=60)
            peer.sendall(f"{self._token} {self._rank} {self._name}\n".encode())
        except OSError as error:
            raise UserError(
                f"rank {self._rank} ({self._name}) cannot reach rank 0 at {self._address}:{port} "
                f"({error}); the machines of a run must let one another in at all ports"
            ) from error
        return peer

    def finish(self, why: str = "") -> None:
        """The process ends in order, for this reason; nobody is to wait for it."""
        if self.lost and self._says() and not self._said:
            self._said = True
            print(f"error: {self._message()}", file=sys.stderr)
        if self._thread.is_alive():
            unhandled = getattr(sys, "last_value", None)
            self._why = why or (repr(unhandled) if unhandled else "")
            with suppress(OSError):  # it has seen it by itself
                self._ring.send(b"1")
            self._thread.join(EVERY)

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """The block returns once all processes have come to it; see `end_if_lost`."""
        self.end_if_lost()
        self._meeting += 1
        self._waits = True
        try:
            with self.exchange():
                yield
        finally:
            self._waits = False

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """A block that sends or receives something, which fails once another process is lost; see
        `end_if_lost`."""
        try:
            yield
        except RuntimeError:  # so torch tells of a connection that was closed
            deadline = time.monotonic() + GRACE
            while self.lost is None and time.monotonic() < deadline:
                time.sleep(0.1)
            self.end_if_lost()
            raise

    @contextmanager
    def busy(self, busy: bool = True) -> Iterator[None]:
        """A block in which this process may take its time as long as it gives signs of life; or in
        which it may not any more."""
        change = 1 if busy else -1
        self._busy += change
        try:
            yield
        finally:
            self._busy -= change

    def end_if_lost(self) -> None:
        """Ends this process where another one is lost; UserError in the one that says so."""
        if self.lost is None:
            return
        if self._says() and not self._said:
            self._said = True
            raise UserError(self._message())
        raise SystemExit(1)

    def _says(self) -> bool:
        """Whether this process is the first of those that are left."""
        lost = self.lost[0] if self.lost else -1
        return self._rank == (1 if lost == 0 else 0)

    def _message(self) -> str:
        return f"{self.lost[1] if self.lost else ''}, so the run ends here; {self.advice}"

    def _watch(self) -> None:
        due = 0.0
        while True:
            for key, _ in self._selector.select(EVERY):
                self._receive(key.fileobj)  # type: ignore[arg-type]
            now = time.monotonic()
            if now >= due or self._why is not None:
                due = now + EVERY
                self._tick(now)
            if self._why is not None:
                self._close()
                return
            if self.lost and now > self._end_at:
                self._end()

    def _tick(self, now: float) -> None:
        """Give a sign; look who gave none."""
        sign = {"name": self._name, "meeting": self._meeting, "waiting": self._waits}
        sign |= {"busy": self._busy > 0} | ({} if self._why is None else {"why": self._why})
        self._roll.timeout = self.timeout
        self._roll.hear(self._rank, sign, now)
        stands_in = self._rank == 1 and self._roll.silent(0, now) > 3 * EVERY
        if (self._rank == 0 or stands_in) and (line := self._roll.line(now)):
            print(line, flush=True)
        self._judge(now)
        lost = {"lost": self.lost, "left": self._left} if self.lost and not self._rank else {}
        self._send({"sign": sign} | lost)

    def _judge(self, now: float) -> None:
        if self.lost is None and (found := self._roll.verdict(now)):
            self._lose(found, GRACE if self._roll.has_left(found[0]) else SOON)

    def _lose(self, lost: tuple[int, str], left: float) -> None:
        """left: seconds until this process is ended."""
        self.lost, self._left = lost, left
        self._end_at = time.monotonic() + left

    def _end(self) -> None:
        """End this process, whatever it waits for."""
        if self._says() and not self._said:
            print(f"error: {self._message()}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(1)

    def _receive(self, source: socket.socket) -> None:
        if source is self._server:
            self._take(source.accept()[0], -1)
            return
        try:
            data = source.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if source is self._bell:
            return
        *lines, self._halves[source] = (self._halves[source] + data).split(b"\n")
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                self._hear(source, line.decode())
        if not data and source in self._peers:
            self._drop(source)

    def _hear(self, source: socket.socket, line: str) -> None:
        rank = self._peers[source]
        if rank < 0:
            token, number, name = line.split(" ", 2)
            if secrets.compare_digest(token, self._token) and 0 < int(number) < self._count:
                self._peers[source] = int(number)
                self._greeted(int(number), name)
            else:
                self._drop(source)
            return
        said = json.loads(line)
        self._roll.hear(rank, said["sign"], time.monotonic())
        if "lost" in said and self.lost is None:
            rank, what = said["lost"]
            self._lose((rank, what), said["left"])

    def _greeted(self, rank: int, name: str) -> None:
        sign = {"name": name, "meeting": 0, "waiting": False, "busy": True}
        self._roll.hear(rank, sign, time.monotonic())

    def _take(self, peer: socket.socket, rank: int) -> None:
        peer.setblocking(False)
        self._peers[peer], self._halves[peer] = rank, b""
        self._selector.register(peer, selectors.EVENT_READ)

    def _drop(self, peer: socket.socket) -> None:
        self._selector.unregister(peer)
        peer.close()
        rank = self._peers.pop(peer)
        if rank >= 0:
            self._roll.lose(rank)
            self._judge(time.monotonic())

    def _send(self, said: dict[str, Any]) -> None:
        line = json.dumps(said).encode() + b"\n"
        for peer, rank in self._peers.items():
            if rank >= 0:
                with suppress(OSError):  # stopped or gone: found out otherwise
                    peer.send(line)

    def _close(self) -> None:
        for each in (*self._peers, self._server, self._bell, self._ring):
            if each is not None:
                each.close()


def _server() -> socket.socket:
    """A socket that listens on every address of this machine."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
