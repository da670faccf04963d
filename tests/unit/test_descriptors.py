"""Handing the descriptor of a shared-memory file to another rank over a socket without a file name."""

import os

import pytest
from mindspeed_ms.comm import descriptors


def test_every_receiver_gets_the_same_file():
    read, write = os.pipe()
    sender = descriptors.Sender(write, "test-nonce")
    os.close(write)
    received = [descriptors.receive("test-nonce", 10) for _ in range(2)]
    for number, descriptor in enumerate(received):
        os.write(descriptor, str(number).encode())
        os.close(descriptor)
    assert os.read(read, 10) == b"01"
    sender.close()
    sender.close()
    os.close(read)


def test_without_a_sender_there_is_an_error_at_once():
    with pytest.raises(ConnectionRefusedError):
        descriptors.receive("nobody", 10)
    read, write = os.pipe()
    sender = descriptors.Sender(read, "closed")
    sender.close()
    with pytest.raises((ConnectionError, TimeoutError)):
        descriptors.receive("closed", 10)
    os.close(read)
    os.close(write)
