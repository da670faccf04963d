#pragma once
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/process.h"
#include "comm/reduce.h"
#include "comm/segment.h"

namespace mindspeed_ms::comm {

using Clock = std::chrono::steady_clock;

// What ends a group, thrown on the driver's way and turned into the failure of everything pending.
struct Broken {
  Failure code;
  std::string text;
};

inline int64_t now_ns() { return Clock::now().time_since_epoch().count(); }

struct Buffer {
  void* data;
  int64_t count;  // elements
};

// One collective or message as asked for. Buffers are the caller's and must outlive the operation.
//   sends / recvs: one entry per peer for all_gather (recvs), reduce_scatter (sends), all_to_all (both),
//   gather (recvs, on the root), scatter (sends, on the root); one entry otherwise.
struct Request {
  Kind kind;
  DType dtype;
  RedOp op = RedOp::none;
  double factor = 1.0;
  int root = -1;  // root, or the peer of send / recv (-1: any)
  int64_t tag = 0;
  std::vector<Buffer> sends, recvs;
  double timeout_s = 1800;
};

class Engine;

// A moving part of a collective: pushes into, or drains, one or more rings without ever blocking.
class Flow {
 public:
  virtual ~Flow() = default;
  virtual bool step(Engine& e) = 0;  // true when anything moved
  virtual void waiting_for(const Engine& e, std::vector<bool>& ranks) const = 0;
  bool done = false;
};

class Op {
 public:
  Request request;
  uint64_t seq = 0;
  int source = -1;  // sender, for recv
  Clock::time_point created, deadline;
  std::atomic<int64_t> started_ns{0}, finished_ns{0};  // steady clock; 0: not yet
  std::atomic<bool> done{false};
  Failure failure = Failure::none;  // valid once done
  std::string error;

  bool collective() const { return request.kind < Kind::send; }

 private:
  friend class Engine;
  bool started = false;
  bool bound = false;    // recv: a message is being copied into it
  uint64_t moved = 0;    // send: bytes already in the ring
  uint64_t scratch = 0;  // payload of a barrier
  std::vector<std::unique_ptr<Flow>> flows;
};

// All traffic of one group among the ranks of this host. Operations are state machines; whichever thread
// waits drives all of them ("driver"), and a progress thread does so while nobody waits.
//   engine.cpp: life, submitting, waiting, driving; collectives.cpp: what moves for each; messages.cpp: send
//   and recv; failures.cpp: dead and late peers, mismatches, and how they are told.
class Engine {
 public:
  struct Peer {
    int global_rank;
    int pid;
    uint64_t start_time;
  };
  Engine(Segment segment, int rank, std::vector<Peer> peers, std::string group);
  ~Engine();

  std::shared_ptr<Op> submit(Request r, bool foreground);
  // True when `op` is done, false after `slice_ms` without it.
  bool wait(const std::shared_ptr<Op>& op, int slice_ms);
  // Tells the peers that this rank leaves, stops the progress thread. Pending operations fail.
  void close(const std::string& reason);
  bool all_attached() const;
  std::string describe(const Op& op) const;
  // The last operations, newest last.
  std::vector<std::shared_ptr<Op>> history() const;
  std::string path() const { return segment_.path(); }
  // Closes the segment's descriptor, which no rank needs once all have mapped it.
  void release_descriptor();
  uint64_t sequence() const { return next_seq_; }

  // For flows.
  int rank() const { return rank_; }
  int world() const { return world_; }
  uint64_t chunk() const { return segment_.header()->geometry.chunk; }
  Ring& broadcast_ring(int producer) { return broadcast_[producer]; }
  Ring& pair_ring(int from, int to) { return pairs_[from * world_ + to]; }
  void ring(int r) { segment_.rank(r)->bell.ring(); }
  void ring_others();
  // Throws unless `slot`, from rank `from`, is the piece of `op` that this rank expects next.
  void expect(const Op& op, const Slot& slot, uint64_t bytes, uint64_t total, int from) const;

 private:
  struct Incoming {  // the message at the head of a point-to-point ring
    bool active = false;
    uint64_t total = 0, received = 0;
    int64_t tag = 0;
    DType dtype{};
    std::shared_ptr<Op> into;  // or, when nobody asked for it yet, `stash`
    std::vector<char> stash;
  };
  struct Stashed {
    DType dtype;
    std::vector<char> bytes;
  };

  void progress_main();
  void drive(const Op* until, Clock::time_point slice_end, bool spin);
  bool step_all();
  bool step_collective();
  bool step_send(int to);
  bool step_receive(int from);
  bool start(Op& op);
  void build_flows(Op& op);
  void add_all_reduce(Op& op, const void* src, void* dst, int64_t count);
  std::vector<Ring*> rings_to_me(bool broadcast);
  int64_t expected_count(const Op& op, int peer) const;
  void take_inbox();
  bool take_stashed(const std::shared_ptr<Op>& op);
  std::shared_ptr<Op> match(int from, int64_t tag);
  void check_message(const Op& op, uint64_t total, DType dtype, int from);
  void check_descriptors();
  void check_peers();
  void check_deadlines();
  void check_poison();
  template <class Body>
  bool guarded(Body body);
  const Op* head() const;
  template <class Visit>
  void for_each_active(Visit visit) const;
  void waiting_for(const Op& op, std::vector<bool>& ranks) const;
  void finish(Op& op);
  void fail(Failure code, const std::string& text);
  void fail_pending();
  void settle();
  void wake_progress();
  int global(int r) const { return peers_[r].global_rank; }
  std::string who() const;
  std::string describe(Kind k, DType t, RedOp op, int root, int64_t count, uint64_t seq) const;
  std::string arrivals(const Op& op) const;

  Segment segment_;
  const int rank_, world_;
  const std::string group_;
  std::vector<Peer> peers_;
  std::vector<ProcessWatch> watches_;
  std::vector<Clock::time_point> stopped_since_;
  std::vector<Ring> broadcast_, pairs_, outgoing_, incoming_rings_;
  std::vector<uint64_t> checked_;  // descriptors of each peer already compared
  std::vector<int64_t> expected_;  // [seq % kDescriptors][peer]: elements expected of it, -1: not comparable

  mutable std::mutex m_;
  std::condition_variable waiters_, progress_;
  bool driving_ = false, stop_ = false;
  size_t pending_ = 0;  // submitted and not done
  size_t waiting_ = 0;  // threads in wait() that do not drive
  std::deque<std::shared_ptr<Op>> history_;
  std::vector<std::shared_ptr<Op>> inbox_;
  uint64_t next_seq_ = 0, next_message_ = 0;
  std::thread thread_;

  // Owned by the driver.
  std::deque<std::shared_ptr<Op>> collectives_;
  std::vector<std::deque<std::shared_ptr<Op>>> sends_;
  std::deque<std::shared_ptr<Op>> recvs_;
  std::vector<Incoming> incoming_;
  std::vector<std::map<int64_t, std::deque<Stashed>>> stashed_;
  size_t finished_now_ = 0;
  Clock::time_point last_check_{};

  std::atomic<int> failure_{0};
  std::string failure_text_;  // written once, before failure_
};

}  // namespace mindspeed_ms::comm
