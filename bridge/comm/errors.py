"""What a collective raises.

All are ``torch.distributed.DistBackendError``, so ``except`` clauses written for NCCL fit.
"""

from __future__ import annotations

from torch.distributed import DistBackendError


class CollectiveError(DistBackendError):
    """A collective failed; the message names rank, group, collective, sequence number and sizes."""


class PeerLostError(CollectiveError):
    """Another rank of the group died, or left while this one still waits for it."""


class MismatchError(CollectiveError):
    """The ranks of a group called different collectives, or the same with different shapes or element
    types."""


class CollectiveTimeoutError(CollectiveError):
    """A collective did not complete within its timeout; the message tells which ranks have not entered it."""


class GroupClosedError(CollectiveError):
    """The process group was destroyed while a collective was pending, or is used after that."""


BY_NAME: dict[str, type[CollectiveError]] = {
    "peer_lost": PeerLostError,
    "mismatch": MismatchError,
    "timeout": CollectiveTimeoutError,
    "closed": GroupClosedError,
    "internal": CollectiveError,
}
"""Name of a failure in ``mindspeed_ms._native.comm.FAILURES`` -> exception type; "none" has none."""
