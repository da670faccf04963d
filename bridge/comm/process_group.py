"""The ``torch.distributed`` backend ``mindspore``: a ProcessGroup for npu and CPU tensors over an engine."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mindspeed_ms.comm import flight, roster
from mindspeed_ms.comm.engine import NO_OP, REDUCTIONS, Call, Engine, Handle
from mindspeed_ms.comm.staging import Staging
from mindspeed_ms.comm.topology import make_device_engine, make_engine, through_mindspore
from mindspeed_ms.comm.work import CollectiveWork

Tensors = Sequence[torch.Tensor]
_generations: Counter[str] = Counter()


def _listed(tensors: torch.Tensor | Tensors) -> Tensors:
    return [tensors] if isinstance(tensors, torch.Tensor) else tensors


def _reduction(opts: Any) -> tuple[int, float]:
    """(RedOpType number, factor) of a ReduceOp, a RedOpType, or an options object that holds one; default
    SUM."""
    op = getattr(opts, "reduceOp", opts)
    if op is None:
        return REDUCTIONS["SUM"], 1.0
    code = int(getattr(op, "op", op))
    return code, float(op.__getstate__()[1]) if code == REDUCTIONS["PREMUL_SUM"] else 1.0


class ProcessGroupMindSpore(dist.ProcessGroup):
    """All collectives of one group, on npu and CPU tensors, through the engine that fits the group's hosts.

    The engine is connected at the first collective: Megatron makes dozens of groups that it never uses.
    Method names and arguments are those of ``torch.distributed.ProcessGroup`` (torch 2.13).
    """

    supports_splitting = True
    supports_coalescing = True
    supports_time_estimate = False

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        size: int,
        timeout: timedelta,
        group_name: str = "",
        global_ranks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(rank, size)
        # A store outlives destroy_process_group(): the keys of each generation of a name must differ.
        # Every rank
        # of a group makes it equally often.
        generation = _generations[group_name]
        _generations[group_name] += 1
        self._store = dist.PrefixStore(f"mindspeed_ms/{group_name}/{generation}", store)
        self._rank, self._size = rank, size
        self._timeout = timeout
        self._name, self._desc = group_name, ""
        self.global_ranks: Sequence[int] = tuple(global_ranks) if global_ranks else tuple(range(size))
        self._engine: Engine | None = None
        self._device_engine: Engine | None = None
        self._closed: str | None = None
        self._engine_lock = threading.Lock()
        self._local = threading.local()
        roster.join(self._store, rank)
        flight.register(self)

    # ---- identity --------------------

    def getBackendName(self) -> str:
        return "mindspore"

    def name(self) -> str:
        return "mindspore"

    def getGroupName(self) -> str:
        return self._name

    def setGroupName(self, name: str) -> None:
        self._name = name

    def getGroupDesc(self) -> str:
        return self._desc

    def setGroupDesc(self, desc: str) -> None:
        self._desc = desc

    def getRank(self) -> int:
        return self._rank

    def getSize(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    @property
    def title(self) -> str:
        """The group's description if it has one (Megatron names its groups), else its name."""
        return self._desc if self._desc not in ("", "undefined") else self._name

    @property
    def options(self) -> None:
        return None

    def _get_backend(self, device: torch.device) -> ProcessGroupMindSpore:
        return self

    def get_group_store(self) -> dist.Store:
        return self._store

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout = timeout

    _set_default_timeout = set_timeout

    def _set_sequence_number_for_group(self) -> None:
        """Sequence numbers start at 0 on every rank and need no agreement."""

    def _get_sequence_number_for_group(self) -> int:
        return self.engine.sequence

    def perform_nocolor_split(self, device: torch.device) -> None:
        """What non-members call while others split; nothing to do here."""

    # ---- life --------------------

    @property
    def engine(self) -> Engine:
        """The group's engine for host memory, connected on first use. Raises GroupClosedError after
        shutdown()."""
        if self._engine is None:
            with self._engine_lock:
                self._check_open()
                if self._engine is None:
                    self._engine = make_engine(
                        self._store, self._rank, self._size, self.global_ranks, self.title, self._timeout
                    )
        return self._engine

    def _engine_for(self, call: Call) -> Engine:
        """The engine that reaches the tensors of ``call``."""
        tensors = call.sends or call.recvs
        if not tensors or tensors[0].device.type == "cpu" or not through_mindspore():
            return self.engine
        if self._device_engine is None:
            with self._engine_lock:
                self._check_open()
                if self._device_engine is None:
                    self._device_engine = make_device_engine(self)
        return self._device_engine

    def _check_open(self) -> None:
        if self._closed is not None:
            raise flight.closed_error(self, self._closed)

    def history(self) -> list[dict[str, Any]]:
        """The last collectives of this rank, oldest first; empty before the first one."""
        engines = [engine for engine in (self._engine, self._device_engine) if engine is not None]
        return sorted((e for engine in engines for e in engine.history()), key=lambda e: e["created_s"])

    def shutdown(self, reason: str = "its process group was destroyed") -> None:
        """Leaves the group: pending collectives fail here, peers that wait for this rank are told."""
        with self._engine_lock:
            self._closed = reason
            for engine in (self._engine, self._device_engine):
                if engine is not None:
                    engine.close(reason)
        roster.leave(self._store)
        flight.unregister(self)

    def abort(self) -> None:
        self.shutdown("its process group was aborted")

    def split_group(
        self,
        ranks: Sequence[int],
        timeout: timedelta | None = None,
        opts: Any = None,
        group_name: str | None = None,
        group_desc: str | None = None,
        device_types: Any = None,
    ) -> ProcessGroupMindSpore | None:
        """The sub-group of these group ranks; None on a rank that is not among them."""
        if self._rank not in ranks:
            return None
        members = [self.global_ranks[r] for r in ranks]
        name = group_name or f"{self._name}:{'-'.join(map(str, members))}"
        group = ProcessGroupMindSpore(
            self._store, ranks.index(self._rank), len(ranks), timeout or self._timeout, name, members
        )
        group.setGroupDesc(group_desc or "")
        return group

    splitGroup = split_group

    # ---- starting a collective -----------------------------------------------------------------------------

    def _seconds(self, opts: Any) -> float:
        timeout = getattr(opts, "timeout", None)
        if timeout is None or timeout.total_seconds() < 0:
            timeout = self._timeout
        return timeout.total_seconds()

    def _start(self, call: Call, opts: Any, result: Any, staging: Staging) -> CollectiveWork:
        if not -1 <= call.root < self._size:  # torch passes on ranks that do not exist
            where = f"group {self._name} of {self._size} ranks"
            raise ValueError(f"{call.kind}: rank {call.root} is not in {where}")
        call.timeout = self._seconds(opts)
        call.foreground = not getattr(opts, "asyncOp", True)
        if self._defers(call):
            work = CollectiveWork([], result, staging.finisher(), self._failed)
            self._local.messages.append((call, work))
            return self._batched(work)
        work = self._work([self._engine_for(call).start(call)], result, staging.finisher())
        if call.foreground:
            work.wait()
        return work

    def _work(
        self, handles: Sequence[Handle], result: Any, finish: Callable[[], None] | None
    ) -> CollectiveWork:
        return self._batched(CollectiveWork(handles, result, finish, self._failed))

    def _batched(self, work: CollectiveWork) -> CollectiveWork:
        batch = getattr(self._local, "batch", None)
        if batch is not None:
            batch.append(work)
        return work

    def _defers(self, call: Call) -> bool:
        """Whether a message of a batch is to go out with the others: where the engine takes them as one."""
        if getattr(self._local, "batch", None) is None or call.kind not in ("send", "recv"):
            return False
        return hasattr(self._engine_for(call), "start_batch")

    def _failed(self, error: Exception) -> None:
        flight.dump(self, error)

    def _join(self, works: Sequence[CollectiveWork], result: Any) -> CollectiveWork:
        """One Work for several."""

        def settle_all() -> None:
            for work in works:
                work.wait()

        return CollectiveWork([h for w in works for h in w._handles], result, settle_all, self._failed)

    def _start_coalescing(self, device: torch.device) -> None:
        self._local.batch, self._local.messages = [], []

    def _end_coalescing(self, device: torch.device) -> CollectiveWork:
        batch, self._local.batch = self._local.batch, None
        messages, self._local.messages = self._local.messages, []
        if messages:
            calls = [call for call, _ in messages]
            engine: Any = self._engine_for(calls[0])  # one that has it: `_defers` looked
            handle = engine.start_batch(calls)
            for _, work in messages:
                work._handles = [handle]
        return self._join(batch, [t for w in batch for t in w._result])

    def _blocks(self, tensor: torch.Tensor, what: str) -> Tensors:
        """A contiguous tensor as one flat block per rank."""
        if tensor.numel() % self._size:
            raise ValueError(f"{what} of {tensor.numel()} elements cannot be split among {self._size} ranks")
        return (
            tensor.view(-1).split(tensor.numel() // self._size) if tensor.numel() else [tensor] * self._size
        )

    # ---- reductions --------------------

    def allreduce(self, tensors: torch.Tensor | Tensors, opts: Any = None) -> CollectiveWork:
        tensors = _listed(tensors)
        if len(tensors) != 1:
            return self.allreduce_coalesced(tensors, opts)
        op, factor = _reduction(opts)
        staging = Staging(op)
        buffer = [staging.write(tensors[0], keep=True)]
        return self._start(Call("all_reduce", buffer, buffer, op, factor), opts, list(tensors), staging)

    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None) -> CollectiveWork:
        return self._join([self.allreduce([t], opts) for t in tensors], list(tensors))

    def reduce(self, tensors: torch.Tensor | Tensors, opts: Any = None) -> CollectiveWork:
        (tensor,) = _listed(tensors)
        op, factor = _reduction(opts)
        staging = Staging(op)
        root = getattr(opts, "rootRank", 0)
        buffer = [staging.write(tensor, keep=True) if root == self._rank else staging.read(tensor)]
        return self._start(Call("reduce", buffer, buffer, op, factor, root), opts, [tensor], staging)

    def reduce_scatter(
        self, outputs: torch.Tensor | Tensors, inputs: Sequence[Any], opts: Any = None
    ) -> CollectiveWork:
        (output,) = _listed(outputs)
        blocks = inputs if isinstance(inputs[0], torch.Tensor) else inputs[0]
        self._check_per_rank(blocks, "reduce_scatter")
        op, factor = _reduction(opts)
        staging = Staging(op)
        sends = [staging.read(t) for t in blocks]
        return self._start(
            Call("reduce_scatter", sends, [staging.write(output)], op, factor), opts, [output], staging
        )

    def reduce_scatter_single(
        self, output: torch.Tensor, input: torch.Tensor, opts: Any = None
    ) -> CollectiveWork:
        op, factor = _reduction(opts)
        staging = Staging(op)
        sends = self._blocks(staging.read(input), "the input of reduce_scatter")
        if sends[0].numel() != output.numel() * (2 if output.is_complex() else 1):
            raise ValueError(
                f"reduce_scatter: input of {input.numel()} elements needs an output of "
                f"{input.numel() // self._size}, got {output.numel()}"
            )
        return self._start(
            Call("reduce_scatter", sends, [staging.write(output)], op, factor), opts, [output], staging
        )

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> CollectiveWork:
        works = [self.reduce_scatter_single(o, i, opts) for o, i in zip(outputs, inputs, strict=True)]
        return self._join(works, list(outputs))

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    # ---- moving data --------------------

    def broadcast(self, tensors: torch.Tensor | Tensors, opts: Any = None) -> CollectiveWork:
        (tensor,) = _listed(tensors)
        staging = Staging(NO_OP)
        root = opts if isinstance(opts, int) else getattr(opts, "rootRank", 0)
        buffer = [staging.read(tensor) if root == self._rank else staging.write(tensor)]
        return self._start(Call("broadcast", buffer, root=root), opts, [tensor], staging)

    def allgather(
        self, outputs: Sequence[Any], inputs: torch.Tensor | Tensors, opts: Any = None
    ) -> CollectiveWork:
        (tensor,) = _listed(inputs)
        targets = outputs if isinstance(outputs[0], torch.Tensor) else outputs[0]
        self._check_per_rank(targets, "all_gather")
        staging = Staging(NO_OP)
        recvs = [staging.write(t) for t in targets]
        return self._start(Call("all_gather", [staging.read(tensor)], recvs), opts, outputs, staging)

    def allgather_coalesced(
        self, outputs: Sequence[Sequence[torch.Tensor]], inputs: Tensors, opts: Any = None
    ) -> CollectiveWork:
        # One list per rank, each with one tensor per input: transposed with respect to allgather().
        works = [self.allgather([[row[i] for row in outputs]], [t], opts) for i, t in enumerate(inputs)]
        return self._join(works, outputs)

    def all_gather_single(
        self, output: torch.Tensor, input: torch.Tensor, opts: Any = None
    ) -> CollectiveWork:
        if output.numel() != input.numel() * self._size:
            raise ValueError(
                f"all_gather: input of {input.numel()} elements on {self._size} ranks needs an output of "
                f"{input.numel() * self._size}, got {output.numel()}"
            )
        staging = Staging(NO_OP)
        recvs = self._blocks(staging.write(output), "the output of all_gather")
        return self._start(Call("all_gather", [staging.read(input)], recvs), opts, [output], staging)

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> CollectiveWork:
        works = [self.all_gather_single(o, i, opts) for o, i in zip(outputs, inputs, strict=True)]
        return self._join(works, list(outputs))

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def gather(
        self, outputs: Sequence[Tensors], inputs: torch.Tensor | Tensors, opts: Any = None
    ) -> CollectiveWork:
        (tensor,) = _listed(inputs)
        staging = Staging(NO_OP)
        root = getattr(opts, "rootRank", 0)
        recvs = []
        if root == self._rank:
            self._check_per_rank(outputs[0], "gather")
            recvs = [staging.write(t) for t in outputs[0]]
        return self._start(Call("gather", [staging.read(tensor)], recvs, root=root), opts, outputs, staging)

    def scatter(
        self, outputs: torch.Tensor | Tensors, inputs: Sequence[Tensors], opts: Any = None
    ) -> CollectiveWork:
        (tensor,) = _listed(outputs)
        staging = Staging(NO_OP)
        root = getattr(opts, "rootRank", 0)
        sends = []
        if root == self._rank:
            self._check_per_rank(inputs[0], "scatter")
            sends = [staging.read(t) for t in inputs[0]]
        return self._start(
            Call("scatter", sends, [staging.write(tensor)], root=root), opts, [tensor], staging
        )

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> CollectiveWork:
        self._check_per_rank(outputs, "all_to_all")
        self._check_per_rank(inputs, "all_to_all")
        staging = Staging(NO_OP)
        sends, recvs = [staging.read(t) for t in inputs], [staging.write(t) for t in outputs]
        return self._start(Call("all_to_all", sends, recvs), opts, list(outputs), staging)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_splits: Sequence[int] = (),
        input_splits: Sequence[int] = (),
        opts: Any = None,
    ) -> CollectiveWork:
        staging = Staging(NO_OP)
        sends = self._rows(staging.read(input), input_splits, "input")
        recvs = self._rows(staging.write(output), output_splits, "output")
        return self._start(Call("all_to_all", sends, recvs), opts, [output], staging)

    alltoall_base = all_to_all_single

    def _rows(self, tensor: torch.Tensor, splits: Sequence[int], what: str) -> Tensors:
        """Split along dim 0 into one part per rank, ``splits`` rows each (equal parts without).

        ``splits``: any sequence of integers; Megatron's token dispatcher passes a numpy array.
        """
        rows = tensor.shape[0] if tensor.dim() else 1
        counts = [int(count) for count in splits]
        if counts:
            if len(counts) != self._size or sum(counts) != rows:
                raise ValueError(
                    f"all_to_all: {what} splits {counts} do not fit {rows} rows on {self._size} ranks"
                )
            return tensor.split(counts)
        if rows % self._size:
            raise ValueError(f"all_to_all: {what} of {rows} rows cannot be split among {self._size} ranks")
        return tensor.split(rows // self._size) if rows else [tensor] * self._size

    def _check_per_rank(self, tensors: Tensors, what: str) -> None:
        if len(tensors) != self._size:
            raise ValueError(f"{what} needs one tensor per rank, {self._size}, got {len(tensors)}")

    # ---- point to point, barriers --------------------

    def send(self, tensors: Tensors, peer: int, tag: int = 0) -> CollectiveWork:
        (tensor,) = tensors
        staging = Staging(NO_OP)
        return self._start(Call("send", [staging.read(tensor)], root=peer, tag=tag), None, [tensor], staging)

    def recv(self, tensors: Tensors, peer: int, tag: int = 0) -> CollectiveWork:
        (tensor,) = tensors
        staging = Staging(NO_OP)
        call = Call("recv", (), [staging.write(tensor)], root=peer, tag=tag)
        return self._start(call, None, [tensor], staging)

    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> CollectiveWork:
        return self.recv(tensors, -1, tag)

    def barrier(self, opts: Any = None) -> CollectiveWork:
        return self._start(Call("barrier"), opts, [], Staging(NO_OP))

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """A barrier whose timeout names every rank that has not come, whether or not ``wait_all_ranks``."""
        call = Call("barrier", timeout=(timeout or self._timeout).total_seconds(), foreground=True)
        self._work([self.engine.start(call)], [], None).wait()


def create(options: Any, backend_options: Any = None) -> ProcessGroupMindSpore:
    """Creator function for ``torch.distributed.Backend.register_backend(..., extended_api=True)``."""
    timeout = options.timeout
    return ProcessGroupMindSpore(
        options.store,
        options.group_rank,
        options.group_size,
        timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout),
        options.group_id,
        options.global_ranks_in_group,
    )
