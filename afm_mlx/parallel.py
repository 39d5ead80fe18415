"""Several processes that train one model, on one machine or many (``mx.distributed``).

    mlx.launch --hosts 10.0.0.1,10.0.0.2 -- python -m afm_mlx.distill ...

starts them: over TCP (ring) or Thunderbolt (JACCL) on Macs, over NCCL on NVIDIA GPUs, or MPI.
They need not share a disk: the first process writes and reads, and tells the others.

What MLX does when a process is lost depends: the ring raises an error if a socket closes, JACCL
waits forever, and so do both if a machine falls silent. So every process also holds a TCP
connection to the first one, with a sign of life each second. Whoever sees it break ends.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from afm_mlx.errors import InputError, first_line

import mlx.core as mx
import numpy as np

Group = mx.distributed.Group

SILENCE = 30.0
"""Seconds without a sign of life after which a process counts as lost."""
PATIENCE = 30.0
"""Seconds in which all processes must have found the first one."""
_LATER = 5.0
"""Seconds by which a connection's end may be noticed later than MLX notices it."""
_BEAT, _BYE = b".", b"!"


@contextmanager
def join(backend: str = "any") -> Iterator[Group | None]:
    """The processes that were started together; ``None`` for one on its own.

    Until the block is left, the loss of any process ends all others with one line and exit
    code 1; so does an error that leaves the block.

    Raises:
        InputError: the processes cannot reach each other.
    """
    try:
        group = mx.distributed.init(strict="MLX_RANK" in os.environ, backend=backend)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the processes cannot be joined ({first_line(error)}): check the hosts given to"
            " mlx.launch (at least two), or start the command without it"
        ) from error
    if group.size() == 1:
        yield None
        return
    watch = _Watch(group)
    try:
        yield group
        watch.leave()
    except RuntimeError:
        watch.let_say()
        raise
    finally:
        watch.close()


def total(x: mx.array, group: Group | None) -> mx.array:
    """Sum of ``x`` over all processes, evaluated.

    Operands are evaluated before: a GPU that has to wait for the network for five seconds is
    reset by macOS. One array at a time, so that all processes send them in the same order.
    """
    if group is None:
        return x
    mx.eval(x)
    summed = mx.distributed.all_sum(x, group=group)
    mx.eval(summed)
    return summed


def first(x: mx.array, group: Group | None) -> mx.array:
    """``x`` of the first process; that of the others only gives shape and type."""
    if group is None or group.rank() == 0:
        return total(x, group)
    return total(mx.zeros_like(x), group)


def share(value: Any, group: Group | None) -> Any:
    """``value`` of the first process, anything that JSON can hold."""
    if group is None:
        return value
    data = json.dumps(value).encode() if group.rank() == 0 else b""
    size = int(np.array(first(mx.array([len(data)]), group))[0])
    numbers = np.frombuffer(data or bytes(size), np.uint8).astype(np.int32)
    received = np.array(first(mx.array(numbers), group))
    return json.loads(received.astype(np.uint8).tobytes())


class _Watch:
    """A connection from each process to the first one, and threads that listen to it."""

    def __init__(self, group: Group) -> None:
        self.rank, self.size = group.rank(), group.size()
        self._left = False
        self._lost = threading.Event()
        self._peers: dict[int, socket.socket] = {}
        if self.rank == 0:
            with socket.create_server(("", 0), backlog=self.size) as server:
                token = secrets.token_hex(8)
                share([_addresses(), server.getsockname()[1], token], group)
                self._accept(server, token)
        else:
            addresses, port, token = share(None, group)
            self._peers[0] = self._connect(addresses, port, token)
        self._listeners = [
            threading.Thread(target=self._listen, args=peer, daemon=True)
            for peer in self._peers.items()
        ]
        for thread in self._listeners:
            thread.start()
        threading.Thread(target=self._beat, daemon=True).start()

    def leave(self) -> None:
        """Part in peace: what becomes of the others no longer matters, nor we to them."""
        self._left = True
        for peer in self._peers.values():
            with suppress(OSError):
                peer.sendall(_BYE)
        for thread in self._listeners:  # they end as the others have read it
            thread.join(2)

    def let_say(self) -> None:
        """End with the line of a lost process, if that is why MLX raised an error: it may have
        noticed first."""
        if self._lost.wait(_LATER):
            for thread in self._listeners:  # one of them ends this process
                thread.join()

    def close(self) -> None:
        """Hang up; who has not left before is lost to the others."""
        self._left = True
        for peer in self._peers.values():
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def _accept(self, server: socket.socket, token: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(self._peers) < self.size - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                peer, _ = server.accept()
            except TimeoutError as error:
                missing = sorted(set(range(1, self.size)) - set(self._peers))
                raise InputError(
                    f"processes {missing} did not reach the first one: let Python accept"
                    " connections in the firewall of its machine"
                ) from error
            peer.settimeout(5)
            with suppress(OSError, ValueError):  # a stranger: forget it
                said, rank = peer.recv(64).decode().split()
                if said == token and 0 < int(rank) < self.size:
                    peer.sendall(_BEAT)
                    self._peers[int(rank)] = peer

    def _connect(self, addresses: list[str], port: int, token: str) -> socket.socket:
        for address in addresses:
            with suppress(OSError):
                peer = socket.create_connection((address, port), timeout=5)
                peer.sendall(f"{token} {self.rank}".encode())
                if peer.recv(1) == _BEAT:
                    return peer
        raise InputError(
            f"process {self.rank} cannot reach the first one at {', '.join(addresses)}: let"
            " Python accept connections in the firewall there"
        )

    def _beat(self) -> None:
        while not self._left:
            for peer in self._peers.values():
                with suppress(OSError):  # the listener deals with it
                    peer.sendall(_BEAT)
            time.sleep(min(1.0, SILENCE / 4))

    def _listen(self, rank: int, peer: socket.socket) -> None:
        peer.settimeout(SILENCE)
        reason = "has ended"
        with peer:
            try:
                while said := peer.recv(64):
                    if _BYE in said:
                        return
            except TimeoutError:
                reason = f"has been silent for {SILENCE:g} s"
            except OSError:
                pass
        self._lost.set()
        time.sleep(0.3)  # the ring writes letter by letter what it thinks of the loss
        if self._left:
            return
        line = (
            f"afm: process {rank} of {self.size} {reason}: start the same command again, it goes"
            " on from the last save\n"
        )
        os.write(2, line.encode())
        os._exit(1)  # the main thread may be in MLX for good


def _addresses() -> list[str]:
    """Where the others may reach this process, likeliest first."""
    found: list[str] = []
    with suppress(OSError, ValueError, KeyError, IndexError):
        hosts = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text(encoding="utf-8"))
        found += [str(address).rpartition(":")[0] for address in hosts[0]]
    found.append(os.environ.get("MLX_JACCL_COORDINATOR", "").rpartition(":")[0])
    found.append(os.environ.get("NCCL_HOST_IP", ""))
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.255.255.255", 1))  # sends nothing, but chooses a way out
        found.append(probe.getsockname()[0])
    found += [socket.gethostname(), "127.0.0.1"]
    return [address for address in dict.fromkeys(found) if address]
