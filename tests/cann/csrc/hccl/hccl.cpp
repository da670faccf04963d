// libhccl.so: communicators of the ranks of one host, collectives, point to point. Every call joins the
// stream that it is given and runs on that stream's thread, in every mode: it waits for its peers and the
// host does not.
#include <unistd.h>

#include <cstdlib>
#include <numeric>
#include <random>
#include <stdexcept>

#include "../sim.h"
#include "reduce.h"
#include "transport.h"

using namespace sim;
using Counts = std::vector<uint64_t>;

namespace {

constexpr size_t kRootInfo = 4108;  // HCCL_ROOT_INFO_BYTES

std::string described(const char* call, uint64_t n, int dtype, const std::string& more = "") {
  return std::string(call) + "(" + std::to_string(n) + " x " + dtype_name(dtype) + more + ")";
}

int create(const std::string& id, uint32_t size, uint32_t rank, void** comm) {
  try {
    *comm = new Comm(id, size, rank);
    count(Count::kComms);
    SIM_TRACE("communicator %s, rank %u of %u", id.c_str(), rank, size);
    return kOk;
  } catch (const std::exception& e) {
    return fail(4, e.what());  // HCCL_E_INTERNAL
  }
}

int launch(void* handle, void* stream, const std::string& call, const char* name,
           std::function<void(Comm&, const std::string&)> work) {
  auto* comm = static_cast<Comm*>(handle);
  SIM_TRACE("%s, communicator %s rank %u of %u", call.c_str(), comm->id.c_str(), comm->rank, comm->size);
  count(Count::kCollectives);
  count_launch(name);
  if (settings().null) return kOk;
  enqueue(
      stream,
      [=] {
        std::lock_guard<std::mutex> lock(comm->one_at_a_time);
        work(*comm, call);
      },
      name, true);
  return kOk;
}

// Where each rank's block lies in what rank `peer` has published.
std::vector<const char*> blocks(Comm& comm, size_t bytes_each, size_t offset) {
  std::vector<const char*> from;
  for (uint32_t k = 0; k < comm.size; ++k) from.push_back(comm.published(k, bytes_each) + offset);
  return from;
}

Counts host_array(const void* values, uint32_t n) {
  auto* p = static_cast<const uint64_t*>(values);
  return Counts(p, p + n);
}

char* at(const void* p, size_t offset = 0) {
  return bytes_of(static_cast<char*>(const_cast<void*>(p))) + offset;
}

// All-to-all with the counts and displacements (elements) of this rank. The counts travel with the bytes.
int all_to_all(const char* name, const void* from, Counts send, Counts send_at, int dtype, const void* to,
               Counts receive, Counts receive_at, void* handle, void* stream) {
  uint64_t n = send.size();
  std::string call = std::string(name) + "(" + dtype_name(dtype) + ")";
  return launch(handle, stream, call, name, [=](Comm& comm, const std::string& text) {
    size_t each = element_size(dtype), end = 0, head = 2 * 8 * n;
    for (uint64_t k = 0; k < n; ++k)
      if (send[k]) end = std::max<size_t>(end, (send[k] + send_at[k]) * each);
    std::vector<char> mine(head + end);
    memcpy(mine.data(), send.data(), 8 * n);
    memcpy(mine.data() + 8 * n, send_at.data(), 8 * n);
    if (end) memcpy(mine.data() + head, at(from), end);
    comm.exchange(text, mine.data(), mine.size(), [&] {
      for (uint32_t k = 0; k < n; ++k) {
        auto* theirs = reinterpret_cast<const uint64_t*>(comm.published(k, head));
        uint64_t size = theirs[comm.rank], start = theirs[n + comm.rank];
        if (size != receive[k])
          throw std::runtime_error("HCCL: " + text + ": rank " + std::to_string(k) + " sends " +
                                   std::to_string(size) + " elements to rank " + std::to_string(comm.rank) +
                                   ", which expects " + std::to_string(receive[k]));
        if (size)
          memcpy(at(to, receive_at[k] * each),
                 comm.published(k, head + (start + size) * each) + head + start * each, size * each);
      }
    });
  });
}

Counts running_sum(const Counts& counts) {
  Counts starts(counts.size(), 0);
  for (size_t k = 1; k < counts.size(); ++k) starts[k] = starts[k - 1] + counts[k - 1];
  return starts;
}

}  // namespace

// ---- communicators
// ------------------------------------------------------------------------------------------------
API int HcclSetConfig(int, int) { return kOk; }
API int HcclGetConfig(int, int* value) {
  *value = 0;
  return kOk;
}
API uint32_t HcclGetCommConfigCapability() { return 10; }
API int HcclGetRootInfo(char* info) {
  remove_segments_of_the_dead();
  memset(info, 0, kRootInfo);
  std::random_device random;
  snprintf(info, 64, "%d_%08x%08x", static_cast<int>(getpid()), random(), random());
  return kOk;
}
API int HcclCommInitRootInfo(uint32_t size, const char* info, uint32_t rank, void** comm) {
  return create(info, size, rank, comm);
}
API int HcclCommInitRootInfoConfig(uint32_t size, const char* info, uint32_t rank, const void*, void** comm) {
  return create(info, size, rank, comm);
}
API int HcclCreateSubCommConfig(void** parent, uint32_t size, uint32_t* ranks, uint64_t id, uint32_t rank,
                                void*, void** comm) {
  *comm = nullptr;
  if (!ranks || rank == UINT32_MAX) return kOk;  // this rank is not in it
  return create(static_cast<Comm*>(*parent)->id + "s" + std::to_string(id), size, rank, comm);
}
API int HcclCommDestroy(void*) { return kOk; }  // kept: work in a queue may still need it
API int HcclGetRankSize(void* comm, uint32_t* size) {
  *size = static_cast<Comm*>(comm)->size;
  return kOk;
}
API int HcclGetRankId(void* comm, uint32_t* rank) {
  *rank = static_cast<Comm*>(comm)->rank;
  return kOk;
}
API int HcclGetCommName(void* comm, char* name) {
  snprintf(name, 128, "%s", static_cast<Comm*>(comm)->id.c_str());
  return kOk;
}
API int HcclGetCommAsyncError(void*, int* error) {
  *error = 0;
  return kOk;
}
API const char* HcclGetErrorString(int) { return "an error of the simulated HCCL"; }
API int HcclCommResume(void*) { return kOk; }

// ---- collectives
// --------------------------------------------------------------------------------------------------
API int HcclAllReduce(void* from, void* to, uint64_t n, int dtype, int op, void* comm, void* stream) {
  return launch(comm, stream, described("HcclAllReduce", n, dtype, ", op " + std::to_string(op)),
                "HcclAllReduce", [=](Comm& c, const std::string& call) {
                  size_t bytes = n * element_size(dtype);
                  c.exchange(call, at(from), bytes,
                             [&] { reduce(at(to), blocks(c, bytes, 0), n, dtype, op); });
                });
}
API int HcclReduce(void* from, void* to, uint64_t n, int dtype, int op, uint32_t root, void* comm,
                   void* stream) {
  return launch(
      comm, stream,
      described("HcclReduce", n, dtype, ", op " + std::to_string(op) + ", root " + std::to_string(root)),
      "HcclReduce", [=](Comm& c, const std::string& call) {
        size_t bytes = n * element_size(dtype);
        c.exchange(call, at(from), bytes, [&] {
          if (c.rank == root) reduce(at(to), blocks(c, bytes, 0), n, dtype, op);
        });
      });
}
API int HcclBroadcast(void* data, uint64_t n, int dtype, uint32_t root, void* comm, void* stream) {
  return launch(comm, stream, described("HcclBroadcast", n, dtype, ", root " + std::to_string(root)),
                "HcclBroadcast", [=](Comm& c, const std::string& call) {
                  size_t bytes = n * element_size(dtype);
                  c.exchange(call, at(data), c.rank == root ? bytes : 0, [&] {
                    if (c.rank != root) memcpy(at(data), c.published(root, bytes), bytes);
                  });
                });
}
API int HcclAllGather(void* from, void* to, uint64_t n, int dtype, void* comm, void* stream) {
  return launch(comm, stream, described("HcclAllGather", n, dtype), "HcclAllGather",
                [=](Comm& c, const std::string& call) {
                  size_t bytes = n * element_size(dtype);
                  c.exchange(call, at(from), bytes, [&] {
                    for (uint32_t k = 0; k < c.size; ++k)
                      memcpy(at(to, k * bytes), c.published(k, bytes), bytes);
                  });
                });
}
API int HcclReduceScatter(void* from, void* to, uint64_t n, int dtype, int op, void* comm, void* stream) {
  return launch(comm, stream, described("HcclReduceScatter", n, dtype, ", op " + std::to_string(op)),
                "HcclReduceScatter", [=](Comm& c, const std::string& call) {
                  size_t bytes = n * element_size(dtype);
                  c.exchange(call, at(from), bytes * c.size, [&] {
                    reduce(at(to), blocks(c, bytes * c.size, c.rank * bytes), n, dtype, op);
                  });
                });
}
API int HcclScatter(void* from, void* to, uint64_t n, int dtype, uint32_t root, void* comm, void* stream) {
  return launch(comm, stream, described("HcclScatter", n, dtype, ", root " + std::to_string(root)),
                "HcclScatter", [=](Comm& c, const std::string& call) {
                  size_t bytes = n * element_size(dtype);
                  bool mine = c.rank == root;
                  c.exchange(call, mine ? at(from) : nullptr, mine ? bytes * c.size : 0, [&] {
                    memcpy(at(to), c.published(root, bytes * c.size) + c.rank * bytes, bytes);
                  });
                });
}
API int HcclBarrier(void* comm, void* stream) {
  return launch(comm, stream, "HcclBarrier()", "HcclBarrier",
                [](Comm& c, const std::string& call) { c.exchange(call, nullptr, 0, [] {}); });
}

API int HcclAlltoAll(const void* from, uint64_t n, int dtype, const void* to, uint64_t receive_n, int,
                     void* comm, void* stream) {
  uint32_t size = static_cast<Comm*>(comm)->size;
  Counts send(size, n), receive(size, receive_n);
  return all_to_all("HcclAlltoAll", from, send, running_sum(send), dtype, to, receive, running_sum(receive),
                    comm, stream);
}
// Counts and displacements are host arrays that the caller may free at once, here and in the V forms below.
API int HcclAlltoAllV(const void* from, const void* send, const void* send_at, int dtype, const void* to,
                      const void* receive, const void* receive_at, int, void* comm, void* stream) {
  uint32_t n = static_cast<Comm*>(comm)->size;
  return all_to_all("HcclAlltoAllV", from, host_array(send, n), host_array(send_at, n), dtype, to,
                    host_array(receive, n), host_array(receive_at, n), comm, stream);
}
API int HcclAlltoAllVC(const void* from, const void* matrix, int dtype, const void* to, int, void* comm,
                       void* stream) {
  auto* c = static_cast<Comm*>(comm);
  Counts all = host_array(matrix, c->size * c->size), send, receive;
  for (uint32_t k = 0; k < c->size; ++k) {
    send.push_back(all[c->rank * c->size + k]);
    receive.push_back(all[k * c->size + c->rank]);
  }
  return all_to_all("HcclAlltoAllVC", from, send, running_sum(send), dtype, to, receive, running_sum(receive),
                    comm, stream);
}
API int HcclAllGatherV(void* from, uint64_t n, void* to, const void* counts, const void* starts, int dtype,
                       void* comm, void* stream) {
  uint32_t size = static_cast<Comm*>(comm)->size;
  Counts sizes = host_array(counts, size), places = host_array(starts, size);
  return launch(comm, stream, std::string("HcclAllGatherV(") + dtype_name(dtype) + ")", "HcclAllGatherV",
                [=](Comm& c, const std::string& call) {
                  size_t each = element_size(dtype);
                  if (sizes[c.rank] != n)
                    throw std::runtime_error("HCCL: HcclAllGatherV: sendCount is not recvCounts[rank]");
                  c.exchange(call, at(from), n * each, [&] {
                    for (uint32_t k = 0; k < c.size; ++k)
                      memcpy(at(to, places[k] * each), c.published(k, sizes[k] * each), sizes[k] * each);
                  });
                });
}
API int HcclReduceScatterV(void* from, const void* counts, const void* starts, void* to, uint64_t n,
                           int dtype, int op, void* comm, void* stream) {
  uint32_t size = static_cast<Comm*>(comm)->size;
  Counts sizes = host_array(counts, size), places = host_array(starts, size);
  return launch(comm, stream,
                std::string("HcclReduceScatterV(") + dtype_name(dtype) + ", op " + std::to_string(op) + ")",
                "HcclReduceScatterV", [=](Comm& c, const std::string& call) {
                  size_t each = element_size(dtype), end = 0;
                  if (sizes[c.rank] != n)
                    throw std::runtime_error("HCCL: HcclReduceScatterV: recvCount is not sendCounts[rank]");
                  for (uint32_t k = 0; k < c.size; ++k)
                    end = std::max<size_t>(end, (sizes[k] + places[k]) * each);
                  c.exchange(call, at(from), end,
                             [&] { reduce(at(to), blocks(c, end, places[c.rank] * each), n, dtype, op); });
                });
}

// ---- point to point
// -----------------------------------------------------------------------------------------------
API int HcclSend(void* data, uint64_t n, int dtype, uint32_t to, void* comm, void* stream) {
  return launch(comm, stream, described("HcclSend", n, dtype, " to rank " + std::to_string(to)), "HcclSend",
                [=](Comm& c, const std::string& call) {
                  c.transfer(call, {{data, n * element_size(dtype), to, true}});
                });
}
API int HcclRecv(void* data, uint64_t n, int dtype, uint32_t from, void* comm, void* stream) {
  return launch(comm, stream, described("HcclRecv", n, dtype, " from rank " + std::to_string(from)),
                "HcclRecv", [=](Comm& c, const std::string& call) {
                  c.transfer(call, {{data, n * element_size(dtype), from, false}});
                });
}

struct HcclSendRecvItem {  // hccl_types.h
  int type;                // 0 send, 1 receive
  void* data;
  uint64_t n;
  int dtype;
  uint32_t peer;
};
API int HcclBatchSendRecv(HcclSendRecvItem* items, uint32_t n, void* comm, void* stream) {
  std::vector<Transfer> transfers;
  std::string call = "HcclBatchSendRecv(";
  for (uint32_t i = 0; i < n; ++i) {
    auto& item = items[i];
    transfers.push_back({item.data, item.n * element_size(item.dtype), item.peer, item.type == 0});
    call += std::string(i ? ", " : "") + (item.type == 0 ? "send to " : "receive from ") +
            std::to_string(item.peer);
  }
  return launch(comm, stream, call + ")", "HcclBatchSendRecv",
                [=](Comm& c, const std::string& text) { c.transfer(text, transfers); });
}
