"""Handing a file descriptor to the other ranks of a host, where they may not open it below /proc.

The socket's name is in Linux's abstract namespace: it is gone with its owner, whatever ends that.
"""

from __future__ import annotations

import os
import socket
import threading


def _address(nonce: str) -> str:
    return f"\0mindspeed_ms-{nonce}"


class Sender:
    """Sends a copy of ``descriptor`` to every process that asks, until :meth:`close`."""

    def __init__(self, descriptor: int, nonce: str) -> None:
        self._descriptor = os.dup(descriptor)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(_address(nonce))
        self._socket.listen()
        threading.Thread(target=self._serve, name="mindspeed_ms descriptor", daemon=True).start()

    def _serve(self) -> None:
        with self._socket:
            while True:
                try:
                    connection, _ = self._socket.accept()
                except OSError:  # close() was called
                    break
                with connection:
                    socket.send_fds(connection, [b"1"], [self._descriptor])
        os.close(self._descriptor)

    def close(self) -> None:
        """Ends the thread; idempotent."""
        if self._socket.fileno() >= 0:
            self._socket.shutdown(socket.SHUT_RDWR)


def receive(nonce: str, timeout_s: float) -> int:
    """The descriptor, now this process's own, that the :class:`Sender` of ``nonce`` sends.

    Raises OSError when there is none, or when it does not answer within ``timeout_s``.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(_address(nonce))
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    if not descriptors:
        raise ConnectionError("the creator of the shared memory closed the connection without sending it")
    return descriptors[0]
