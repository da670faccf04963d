#include "comm/engine.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <thread>

#include "comm/flows.h"

namespace mindspeed_ms::comm {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr auto kTick = milliseconds(20);  // how often a blocked rank looks at its peers
constexpr auto kStoppedLimit = std::chrono::seconds(10);
constexpr auto kHandover = microseconds(50);  // a waiter usually follows at once: leave the driving to it
constexpr auto kSpin = microseconds(30);
constexpr uint64_t kInlineBytes =
    64 * 1024;  // asynchronous operations up to this size get a first step inline
constexpr uint64_t kOnePassBytes = 16 * 1024;  // all_reduce in one hop instead of two
constexpr size_t kHistory = 256;

struct Broken {
  Failure code;
  std::string text;
};

int64_t now_ns() { return Clock::now().time_since_epoch().count(); }

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

Engine::Engine(Segment segment, int rank, std::vector<Peer> peers, std::string group)
    : segment_(std::move(segment)),
      rank_(rank),
      world_(static_cast<int>(peers.size())),
      group_(std::move(group)),
      peers_(std::move(peers)),
      stopped_since_(world_),
      checked_(world_, 0),
      expected_(kDescriptors * world_, -1),
      sends_(world_),
      incoming_(world_),
      stashed_(world_) {
  for (const Peer& p : peers_) watches_.emplace_back(p.pid, p.start_time);
  for (int r = 0; r < world_; ++r) broadcast_.push_back(segment_.broadcast_ring(r));
  for (int from = 0; from < world_; ++from)
    for (int to = 0; to < world_; ++to) pairs_.push_back(segment_.pair_ring(Segment::collective, from, to));
  for (int r = 0; r < world_; ++r) {
    outgoing_.push_back(segment_.pair_ring(Segment::point_to_point, rank_, r));
    incoming_rings_.push_back(segment_.pair_ring(Segment::point_to_point, r, rank_));
  }
  segment_.rank(rank_)->attached.store(1, std::memory_order_release);
  ring_others();
}

Engine::~Engine() { close("its process group was destroyed"); }

void Engine::close(const std::string& reason) {
  {
    std::unique_lock lock(m_);
    if (stop_) return;
    stop_ = true;
    progress_.notify_all();
    segment_.rank(rank_)->bell.ring();
    waiters_.wait(lock, [&] { return !driving_; });
    driving_ = true;
  }
  if (thread_.joinable()) thread_.join();
  take_inbox();
  if (failure_ == 0) {
    failure_text_ = who() + " has left it: " + reason;
    failure_ = static_cast<int>(Failure::closed);
  }
  fail_pending();
  RankBlock* me = segment_.rank(rank_);
  std::strncpy(me->reason, reason.c_str(), sizeof(me->reason) - 1);
  me->left.store(1, std::memory_order_release);
  ring_others();
  std::lock_guard lock(m_);
  driving_ = false;
  pending_ = 0;
  waiters_.notify_all();
}

bool Engine::all_attached() const {
  for (int r = 0; r < world_; ++r)
    if (!segment_.rank(r)->attached.load(std::memory_order_acquire)) return false;
  return true;
}

void Engine::release_descriptor() { segment_.close_descriptor(); }

void Engine::ring_others() {
  for (int r = 0; r < world_; ++r)
    if (r != rank_) ring(r);
}

// ---- submitting and waiting
// ------------------------------------------------------------------------------------

std::shared_ptr<Op> Engine::submit(Request request, bool foreground) {
  auto op = std::make_shared<Op>();
  op->request = std::move(request);
  if (op->request.kind == Kind::barrier) {  // an all_reduce of one word that nobody reads
    op->request.dtype = DType::u64;
    op->request.op = RedOp::sum;
  }
  op->created = Clock::now();
  op->deadline = op->created + std::chrono::duration_cast<Clock::duration>(
                                   std::chrono::duration<double>(op->request.timeout_s));
  uint64_t bytes = 0;
  for (const Buffer& b : op->request.sends) bytes += b.count * dtype_size(op->request.dtype);

  std::unique_lock lock(m_);
  op->seq = op->collective() ? next_seq_++ : next_message_++;
  history_.push_back(op);
  if (history_.size() > kHistory) history_.pop_front();
  if (failure_.load(std::memory_order_acquire) != 0) {
    op->failure = static_cast<Failure>(failure_.load());
    op->error = failure_text_;
    op->done.store(true, std::memory_order_release);
    return op;
  }
  inbox_.push_back(op);
  ++pending_;
  if (driving_) {
    segment_.rank(rank_)->bell.ring();
  } else if (!foreground) {
    if (bytes <= kInlineBytes) {
      driving_ = true;
      lock.unlock();
      drive(nullptr, Clock::time_point::min(), false);
      lock.lock();
      driving_ = false;
      if (waiting_) waiters_.notify_all();
    }
    if (pending_) wake_progress();
  }
  return op;
}

void Engine::wake_progress() {
  if (stop_) return;
  if (!thread_.joinable()) thread_ = std::thread([this] { progress_main(); });
  progress_.notify_one();
}

bool Engine::wait(const std::shared_ptr<Op>& op, int slice_ms) {
  if (op->done.load(std::memory_order_acquire)) return true;
  const auto slice_end = Clock::now() + milliseconds(slice_ms);
  std::unique_lock lock(m_);
  while (!op->done.load(std::memory_order_acquire)) {
    if (!driving_ && !stop_) {
      driving_ = true;
      lock.unlock();
      drive(op.get(), slice_end, true);
      lock.lock();
      driving_ = false;
      if (waiting_ || stop_) waiters_.notify_all();
      if (pending_) wake_progress();
    } else {
      ++waiting_;
      waiters_.wait_until(lock, slice_end);
      --waiting_;
    }
    if (Clock::now() >= slice_end) break;
  }
  return op->done.load(std::memory_order_acquire);
}

std::vector<std::shared_ptr<Op>> Engine::history() const {
  std::lock_guard lock(m_);
  return {history_.begin(), history_.end()};
}

// ---- driving
// ---------------------------------------------------------------------------------------------------

void Engine::progress_main() {
  std::unique_lock lock(m_);
  while (!stop_) {
    progress_.wait(lock, [&] { return stop_ || (pending_ && !driving_); });
    if (progress_.wait_for(lock, kHandover, [&] { return stop_ || driving_ || !pending_; })) continue;
    driving_ = true;
    lock.unlock();
    drive(nullptr, Clock::time_point::max(), false);
    lock.lock();
    driving_ = false;
    waiters_.notify_all();
  }
}

// Moves everything that can move until `until` is done, nothing is left, or (at a moment when nothing moves)
// `slice_end` has passed. The caller holds the driver's role.
void Engine::drive(const Op* until, Clock::time_point slice_end, bool spin) {
  static const bool cores_for_all = std::thread::hardware_concurrency() >= 2;
  spin = spin && cores_for_all && world_ <= static_cast<int>(std::thread::hardware_concurrency());
  Doorbell& bell = segment_.rank(rank_)->bell;
  for (;;) {
    const uint32_t seen = bell.value.load(std::memory_order_seq_cst);
    take_inbox();
    const bool moved = guarded([&] {
      check_poison();
      const bool any = step_all();
      if (!any) check_descriptors();
      return any;
    });
    settle();
    if (until ? until->done.load(std::memory_order_relaxed) : head() == nullptr) return;
    if (moved) continue;
    auto now = Clock::now();
    if (now >= slice_end || stop_) return;
    if (spin) {
      const auto spin_end = now + kSpin;
      while (bell.value.load(std::memory_order_acquire) == seen && Clock::now() < spin_end)
        for (int i = 0; i < 16; ++i) relax();
      if (bell.value.load(std::memory_order_acquire) != seen) continue;
      now = Clock::now();
    }
    if (now - last_check_ >= kTick) {
      last_check_ = now;
      guarded([&] {
        check_peers();
        check_deadlines();
        return false;
      });
      settle();
      if (until && until->done.load(std::memory_order_relaxed)) return;
    }
    const auto nap = std::min<Clock::duration>(kTick, slice_end - now);
    bell.wait(seen, std::chrono::duration_cast<std::chrono::nanoseconds>(nap).count());
  }
}

// Runs `body`; whatever it throws fails the group. An exception must never leave the driver's role taken.
template <class Body>
bool Engine::guarded(Body body) {
  try {
    return body();
  } catch (const Broken& b) {
    fail(b.code, b.text);
  } catch (const std::exception& e) {
    fail(Failure::internal, who() + " failed: " + e.what());
  }
  return false;
}

// Publishes what finished to pending_ and to threads that wait without driving.
void Engine::settle() {
  if (!finished_now_) return;
  std::lock_guard lock(m_);
  pending_ -= finished_now_;
  finished_now_ = 0;
  if (waiting_) waiters_.notify_all();
}

void Engine::take_inbox() {
  std::vector<std::shared_ptr<Op>> fresh;
  {
    std::lock_guard lock(m_);
    fresh.swap(inbox_);
  }
  for (auto& op : fresh) {
    if (op->collective())
      collectives_.push_back(op);
    else if (op->request.kind == Kind::send)
      sends_[op->request.root].push_back(op);
    else if (!take_stashed(op))
      recvs_.push_back(op);
  }
}

bool Engine::step_all() {
  bool moved = step_collective();
  for (int r = 0; r < world_; ++r) {
    if (!sends_[r].empty()) moved |= step_send(r);
    if (!recvs_.empty() || incoming_[r].active) moved |= step_receive(r);
  }
  return moved;
}

bool Engine::step_collective() {
  bool moved = false;
  while (!collectives_.empty()) {
    Op& op = *collectives_.front();
    if (!op.started && !start(op)) return moved;
    bool all = true;
    for (auto& flow : op.flows) {
      if (!flow->done) moved |= flow->step(*this);
      all &= flow->done;
    }
    if (!all) return moved;
    finish(op);
    collectives_.pop_front();
    moved = true;
  }
  return moved;
}

void Engine::finish(Op& op) {
  op.flows.clear();
  op.finished_ns = now_ns();
  if (op.collective()) segment_.rank(rank_)->finished.store(op.seq + 1, std::memory_order_release);
  ++finished_now_;
  op.done.store(true, std::memory_order_release);
}

// ---- collectives
// -----------------------------------------------------------------------------------------------

int64_t Engine::expected_count(const Op& op, int peer) const {
  const Request& q = op.request;
  switch (q.kind) {
    case Kind::all_gather:
      return q.recvs[peer].count;
    case Kind::reduce_scatter:
      return q.sends[peer].count;
    case Kind::gather:
      return rank_ == q.root ? q.recvs[peer].count : -1;
    case Kind::scatter:
      return rank_ == q.root ? q.sends[peer].count : -1;
    case Kind::all_to_all:
      return -1;
    default:
      return q.sends.empty() ? 0 : q.sends[0].count;
  }
}

// Enters the collective: says so to the peers and lays out its flows. False while a peer is too far behind.
bool Engine::start(Op& op) {
  for (int r = 0; r < world_; ++r)
    if (op.seq >= segment_.rank(r)->finished.load(std::memory_order_acquire) + kDescriptors) return false;
  const Request& q = op.request;
  RankBlock* me = segment_.rank(rank_);
  Descriptor& d = me->desc[op.seq % kDescriptors];
  d.kind = q.kind;
  d.dtype = q.dtype;
  d.op = q.op;
  d.root = q.root;
  const auto& mine = q.kind == Kind::reduce_scatter || q.kind == Kind::scatter ? q.recvs : q.sends;
  d.count = q.kind == Kind::all_to_all ? -1 : mine.empty() ? 0 : mine[0].count;
  d.seq.store(op.seq, std::memory_order_relaxed);
  for (int r = 0; r < world_; ++r) expected_[(op.seq % kDescriptors) * world_ + r] = expected_count(op, r);
  me->entered.store(op.seq + 1, std::memory_order_release);
  op.started = true;
  op.started_ns = now_ns();
  check_descriptors();
  build_flows(op);
  return true;
}

std::vector<Ring*> Engine::rings_to_me(bool broadcast) {
  std::vector<Ring*> rings(world_, nullptr);
  for (int r = 0; r < world_; ++r)
    if (r != rank_) rings[r] = broadcast ? &broadcast_ring(r) : &pair_ring(r, rank_);
  return rings;
}

void Engine::add_all_reduce(Op& op, const void* src, void* dst, int64_t count) {
  const uint64_t width = dtype_size(op.request.dtype), bytes = count * width;
  if (bytes <= std::min(kOnePassBytes, chunk())) {
    op.flows.push_back(send_flow(*this, op, broadcast_ring(rank_), -1, src, bytes));
    const Flow* sent = op.flows.back().get();
    op.flows.push_back(reduce_flow(*this, op, rings_to_me(true), src, dst, bytes, nullptr, sent));
    return;
  }
  // Reduce-scatter through the pair rings, all-gather through the broadcast rings, piece by piece. A rank's
  // piece of another's block is overwritten only by that other's result, which exists only once the piece has
  // been sent.
  const uint64_t per = ((count + world_ - 1) / world_ + 63) / 64 * 64 * width;
  auto block = [&](int r) {
    const uint64_t begin = std::min<uint64_t>(r * per, bytes);
    return std::pair{begin, std::min<uint64_t>(begin + per, bytes) - begin};
  };
  const char* in = static_cast<const char*>(src);
  char* out = static_cast<char*>(dst);
  for (int i = 1; i < world_; ++i) {
    const int to = (rank_ + i) % world_;
    const auto [at, n] = block(to);
    op.flows.push_back(send_flow(*this, op, pair_ring(rank_, to), to, in + at, n));
  }
  const auto [at, n] = block(rank_);
  op.flows.push_back(
      reduce_flow(*this, op, rings_to_me(false), in + at, out + at, n, &broadcast_ring(rank_), nullptr));
  for (int i = 1; i < world_; ++i) {
    const int from = (rank_ + i) % world_;
    const auto [at, n] = block(from);
    op.flows.push_back(copy_flow(*this, op, broadcast_ring(from), from, out + at, n));
  }
}

void Engine::build_flows(Op& op) {
  const Request& q = op.request;
  const uint64_t width = dtype_size(q.dtype);
  auto bytes = [&](const Buffer& b) { return static_cast<uint64_t>(b.count) * width; };
  auto send = [&](int to, const Buffer& b) {
    op.flows.push_back(send_flow(*this, op, pair_ring(rank_, to), to, b.data, bytes(b)));
  };
  auto receive = [&](int from, const Buffer& b) {
    op.flows.push_back(copy_flow(*this, op, pair_ring(from, rank_), from, b.data, bytes(b)));
  };
  auto copy_own = [&](const Buffer& from, const Buffer& to) {
    op.flows.push_back(local_flow(*this, from.data, to.data, bytes(from)));
  };
  switch (q.kind) {
    case Kind::all_reduce:
      add_all_reduce(op, q.sends[0].data, q.recvs[0].data, q.sends[0].count);
      break;
    case Kind::barrier:
      add_all_reduce(op, &op.scratch, &op.scratch, 1);
      break;
    case Kind::reduce:
      if (rank_ == q.root)
        op.flows.push_back(reduce_flow(*this, op, rings_to_me(false), q.sends[0].data, q.recvs[0].data,
                                       bytes(q.sends[0]), nullptr, nullptr));
      else
        send(q.root, q.sends[0]);
      break;
    case Kind::broadcast:
      if (rank_ == q.root)
        op.flows.push_back(
            send_flow(*this, op, broadcast_ring(rank_), -1, q.sends[0].data, bytes(q.sends[0])));
      else
        op.flows.push_back(
            copy_flow(*this, op, broadcast_ring(q.root), q.root, q.sends[0].data, bytes(q.sends[0])));
      break;
    case Kind::all_gather: {
      const Buffer& own = q.recvs[rank_];
      void* mirror = own.data == q.sends[0].data ? nullptr : own.data;
      op.flows.push_back(
          send_flow(*this, op, broadcast_ring(rank_), -1, q.sends[0].data, bytes(q.sends[0]), mirror));
      for (int i = 1; i < world_; ++i) {
        const int from = (rank_ + i) % world_;
        op.flows.push_back(
            copy_flow(*this, op, broadcast_ring(from), from, q.recvs[from].data, bytes(q.recvs[from])));
      }
      break;
    }
    case Kind::reduce_scatter:
      for (int i = 1; i < world_; ++i) send((rank_ + i) % world_, q.sends[(rank_ + i) % world_]);
      op.flows.push_back(reduce_flow(*this, op, rings_to_me(false), q.sends[rank_].data, q.recvs[0].data,
                                     bytes(q.recvs[0]), nullptr, nullptr));
      break;
    case Kind::all_to_all:
      for (int i = 1; i < world_; ++i) {
        send((rank_ + i) % world_, q.sends[(rank_ + i) % world_]);
        receive((rank_ + i) % world_, q.recvs[(rank_ + i) % world_]);
      }
      copy_own(q.sends[rank_], q.recvs[rank_]);
      break;
    case Kind::gather:
      if (rank_ != q.root) {
        send(q.root, q.sends[0]);
        break;
      }
      for (int r = 0; r < world_; ++r)
        if (r != rank_) receive(r, q.recvs[r]);
      copy_own(q.sends[0], q.recvs[rank_]);
      break;
    case Kind::scatter:
      if (rank_ != q.root) {
        receive(q.root, q.recvs[0]);
        break;
      }
      for (int r = 0; r < world_; ++r)
        if (r != rank_) send(r, q.sends[r]);
      copy_own(q.sends[rank_], q.recvs[0]);
      break;
    default:
      break;
  }
}

// ---- point to point
// --------------------------------------------------------------------------------------------

bool Engine::step_send(int to) {
  bool moved = false;
  Ring& ring = outgoing_[to];
  while (!sends_[to].empty() && ring.can_publish()) {
    Op& op = *sends_[to].front();
    const uint64_t total = op.request.sends[0].count * dtype_size(op.request.dtype);
    const uint64_t n = std::min(piece_size(total, chunk()), total - op.moved);
    if (!op.started_ns) op.started_ns = now_ns();
    Slot* slot = ring.next();
    slot->seq = op.seq;
    slot->bytes = n;
    slot->total = total;
    slot->tag = op.request.tag;
    slot->dtype = op.request.dtype;
    if (n) std::memcpy(slot->data, static_cast<const char*>(op.request.sends[0].data) + op.moved, n);
    ring.publish();
    this->ring(to);
    op.moved += n;
    moved = true;
    if (op.moved == total) {
      finish(op);
      sends_[to].pop_front();
    }
  }
  return moved;
}

std::shared_ptr<Op> Engine::match(int from, int64_t tag) {
  for (auto& op : recvs_)
    if (!op->bound && op->request.tag == tag && (op->request.root == from || op->request.root < 0)) return op;
  return nullptr;
}

void Engine::check_message(const Op& op, uint64_t total, DType dtype, int from) {
  const Request& q = op.request;
  if (total == q.recvs[0].count * dtype_size(q.dtype) && dtype == q.dtype) return;
  throw Broken{Failure::mismatch, "rank " + std::to_string(global(from)) + " sent " + std::to_string(total) +
                                      " bytes of " + dtype_name(dtype) + " to " + who() + ", which expects " +
                                      std::to_string(q.recvs[0].count * dtype_size(q.dtype)) + " bytes of " +
                                      dtype_name(q.dtype) + " in " + describe(op)};
}

bool Engine::step_receive(int from) {
  bool moved = false;
  Ring& ring = incoming_rings_[from];
  Incoming& in = incoming_[from];
  while (ring.available(0)) {
    const Slot* slot = ring.head(0);
    if (!in.active) {
      auto into = match(from, slot->tag);
      const bool awaited = std::any_of(recvs_.begin(), recvs_.end(), [&](const auto& op) {
        return !op->bound && (op->request.root == from || op->request.root < 0);
      });
      if (!into && !awaited) return moved;  // nobody wants anything from this rank: leave it in the ring
      in = Incoming{true, slot->total, 0, slot->tag, slot->dtype, into, {}};
      if (into) {
        check_message(*into, slot->total, slot->dtype, from);
        into->bound = true;
        into->source = from;
        if (!into->started_ns) into->started_ns = now_ns();
      } else {
        in.stash.resize(slot->total);  // a message with another tag is in the way of one that is awaited
      }
    }
    char* dst = in.into ? static_cast<char*>(in.into->request.recvs[0].data) : in.stash.data();
    if (slot->bytes) std::memcpy(dst + in.received, slot->data, slot->bytes);
    in.received += slot->bytes;
    ring.pop(0);
    this->ring(from);
    moved = true;
    if (in.received == in.total) {
      if (in.into) {
        finish(*in.into);
        recvs_.erase(std::find(recvs_.begin(), recvs_.end(), in.into));
      } else {
        stashed_[from][in.tag].push_back({in.dtype, std::move(in.stash)});
      }
      in = Incoming{};
    }
  }
  return moved;
}

// A message that had to be put aside earlier may be what `op` asks for.
bool Engine::take_stashed(const std::shared_ptr<Op>& op) {
  for (int r = 0; r < world_; ++r) {
    if (op->request.root >= 0 && op->request.root != r) continue;
    auto it = stashed_[r].find(op->request.tag);
    if (it == stashed_[r].end()) continue;
    Stashed message = std::move(it->second.front());
    it->second.pop_front();
    if (it->second.empty()) stashed_[r].erase(it);
    try {
      check_message(*op, message.bytes.size(), message.dtype, r);
    } catch (const Broken& b) {
      recvs_.push_back(op);
      fail(b.code, b.text);
      return true;
    }
    std::memcpy(op->request.recvs[0].data, message.bytes.data(), message.bytes.size());
    op->source = r;
    finish(*op);
    return true;
  }
  return false;
}

// ---- failure
// ---------------------------------------------------------------------------------------------------

std::string Engine::who() const {
  std::string ranks;
  for (const Peer& p : peers_) ranks += (ranks.empty() ? "" : ", ") + std::to_string(p.global_rank);
  return "rank " + std::to_string(global(rank_)) + " of group '" + group_ + "' (ranks [" + ranks + "])";
}

std::string Engine::describe(Kind k, DType t, RedOp op, int root, int64_t count, uint64_t seq) const {
  std::string s = std::string(kind_name(k)) + " #" + std::to_string(seq);
  if (k == Kind::barrier) return s;
  s += " (";
  if (op != RedOp::none) s += std::string(redop_name(op)) + ", ";
  if (k == Kind::send || k == Kind::recv)
    s += (k == Kind::send ? "to rank " : "from rank ") + (root < 0 ? "any" : std::to_string(global(root))) +
         ", ";
  else if (root >= 0)
    s += "root rank " + std::to_string(root < world_ ? global(root) : root) + ", ";
  s += dtype_name(t);
  if (count >= 0)
    s += ", " + std::to_string(count) + " elements, " + std::to_string(count * dtype_size(t)) + " bytes";
  return s + ")";
}

std::string Engine::describe(const Op& op) const {
  const Request& q = op.request;
  const auto& buffers = q.sends.empty() || q.kind == Kind::reduce_scatter ? q.recvs : q.sends;
  int64_t count = 0;
  for (const Buffer& b : buffers) count += b.count;
  return describe(q.kind, q.dtype, q.op, q.root, count, op.seq);
}

void Engine::expect(const Op& op, const Slot& slot, uint64_t bytes, uint64_t total, int from) const {
  if (slot.seq == op.seq && slot.bytes == bytes && slot.total == total) return;
  throw Broken{Failure::mismatch, who() + " is in " + describe(op) + " and expects " + std::to_string(total) +
                                      " bytes from rank " + std::to_string(global(from)) + ", which sent " +
                                      std::to_string(slot.total) + " bytes in its collective #" +
                                      std::to_string(slot.seq)};
}

// Compares what each peer says it entered with what this rank entered under the same number.
void Engine::check_descriptors() {
  const RankBlock* me = segment_.rank(rank_);
  const uint64_t mine = me->entered.load(std::memory_order_relaxed);
  for (int r = 0; r < world_; ++r) {
    if (r == rank_) continue;
    const RankBlock* peer = segment_.rank(r);
    const uint64_t until = std::min(mine, peer->entered.load(std::memory_order_acquire));
    for (; checked_[r] < until; ++checked_[r]) {
      const uint64_t s = checked_[r];
      const Descriptor &a = me->desc[s % kDescriptors], &b = peer->desc[s % kDescriptors];
      if (a.seq != s || b.seq != s) continue;  // overwritten since; the peer compared it when it entered
      const int64_t expected = expected_[(s % kDescriptors) * world_ + r];
      if (a.kind == b.kind && a.dtype == b.dtype && a.op == b.op && a.root == b.root &&
          (expected < 0 || b.count < 0 || expected == b.count))
        continue;
      std::string wanted = a.kind == b.kind && expected >= 0 && expected != b.count
                               ? ", where " + std::to_string(expected) + " elements of it are expected"
                               : "";
      throw Broken{Failure::mismatch, who() + " is in " +
                                          describe(a.kind, a.dtype, a.op, a.root, a.count, s) + " but rank " +
                                          std::to_string(global(r)) + " called " +
                                          describe(b.kind, b.dtype, b.op, b.root, b.count, s) + wanted};
    }
  }
}

const Op* Engine::head() const {
  if (!collectives_.empty()) return collectives_.front().get();
  for (const auto& queue : sends_)
    if (!queue.empty()) return queue.front().get();
  return recvs_.empty() ? nullptr : recvs_.front().get();
}

template <class Visit>
void Engine::for_each_active(Visit visit) const {
  for (const auto& op : collectives_) visit(*op);
  for (const auto& queue : sends_)
    for (const auto& op : queue) visit(*op);
  for (const auto& op : recvs_) visit(*op);
}

void Engine::waiting_for(const Op& op, std::vector<bool>& ranks) const {
  if (op.request.kind == Kind::send || (op.request.kind == Kind::recv && op.request.root >= 0)) {
    ranks[op.request.root] = true;
  } else if (op.request.kind == Kind::recv) {
    // Any sender would do: only the last one leaving makes it hopeless.
    int present = 0;
    for (int r = 0; r < world_; ++r) present += r != rank_ && !segment_.rank(r)->left.load();
    if (!present) ranks.assign(world_, true);
  } else if (!op.started) {
    for (int r = 0; r < world_; ++r)
      if (op.seq >= segment_.rank(r)->finished.load(std::memory_order_acquire) + kDescriptors)
        ranks[r] = true;
  }
  for (const auto& flow : op.flows) flow->waiting_for(*this, ranks);
}

void Engine::check_peers() {
  std::vector<bool> left(world_), waited(world_);
  bool any_left = false;
  for (int r = 0; r < world_; ++r) any_left |= left[r] = r != rank_ && segment_.rank(r)->left.load();
  if (any_left && step_all()) return;  // it may have sent its share before it left
  if (any_left && !collectives_.empty()) waiting_for(*collectives_.front(), waited);
  if (any_left)
    for_each_active([&](const Op& op) {
      if (!op.collective()) waiting_for(op, waited);
    });
  const Op* op = head();
  if (!op) return;
  for (int r = 0; r < world_; ++r) {
    if (r == rank_) continue;
    const std::string name =
        "rank " + std::to_string(global(r)) + " (pid " + std::to_string(peers_[r].pid) + ")";
    if (left[r]) {
      if (waited[r])
        throw Broken{Failure::peer_lost, name + " has left (" + segment_.rank(r)->reason + ") and " + who() +
                                             " waits for it in " + describe(*op)};
      continue;
    }
    if (!watches_[r].alive())
      throw Broken{Failure::peer_lost, name + " died while " + who() + " was in " + describe(*op)};
    const char state = watches_[r].state();
    const auto now = Clock::now();
    if (state != 'T')
      stopped_since_[r] = {};
    else if (stopped_since_[r] == Clock::time_point{})
      stopped_since_[r] = now;
    else if (now - stopped_since_[r] > kStoppedLimit)
      throw Broken{Failure::peer_lost, name + " has been stopped by a signal for 10 s while " + who() +
                                           " was in " + describe(*op)};
  }
}

std::string Engine::arrivals(const Op& op) const {
  std::string s;
  for (int r = 0; r < world_; ++r) {
    if (r == rank_) continue;
    const RankBlock* peer = segment_.rank(r);
    const uint64_t entered = peer->entered.load(std::memory_order_acquire);
    s += "; rank " + std::to_string(global(r));
    if (!peer->attached.load(std::memory_order_acquire)) {
      s += " has not used this group yet";
    } else if (op.collective() && entered > op.seq) {
      s += " has entered it";
    } else if (entered == 0) {
      s += " has entered no collective of this group";
    } else {
      const Descriptor& d = peer->desc[(entered - 1) % kDescriptors];
      s += std::string(op.collective() ? " has not entered it" : "") + ", its last collective is " +
           describe(d.kind, d.dtype, d.op, d.root, d.count, entered - 1) +
           (peer->finished.load() >= entered ? ", finished" : ", unfinished");
    }
  }
  return s;
}

void Engine::check_deadlines() {
  const auto now = Clock::now();
  const Op* late = nullptr;
  for_each_active([&](const Op& op) {
    if (!late && now > op.deadline) late = &op;
  });
  if (!late) return;
  char seconds[32];
  std::snprintf(seconds, sizeof(seconds), "%.3g", late->request.timeout_s);
  throw Broken{Failure::timeout, who() + " waited " + seconds + " s in " + describe(*late) + arrivals(*late)};
}

void Engine::check_poison() {
  const SegmentHeader* h = segment_.header();
  if (failure_ == 0 && h->failure_state.load(std::memory_order_acquire) == 2)
    throw Broken{static_cast<Failure>(h->failure_code), h->failure};
  if (failure_ != 0) fail_pending();
}

// Fails everything that is pending here and tells the group: its rings can no longer be trusted.
void Engine::fail(Failure code, const std::string& text) {
  if (failure_ == 0) {
    std::lock_guard lock(m_);
    failure_text_ = text;
    failure_.store(static_cast<int>(code), std::memory_order_release);
    SegmentHeader* h = segment_.header();
    uint32_t none = 0;
    if (h->failure_state.compare_exchange_strong(none, 1)) {
      h->failure_code = static_cast<int32_t>(code);
      std::strncpy(h->failure, text.c_str(), sizeof(h->failure) - 1);
      h->failure_state.store(2, std::memory_order_release);
    }
  }
  fail_pending();
  ring_others();
}

void Engine::fail_pending() {
  auto fail_one = [&](const std::shared_ptr<Op>& op) {
    const std::string here = describe(*op);
    op->failure = static_cast<Failure>(failure_.load());
    op->error = failure_text_;
    if (failure_text_.find(here) == std::string::npos) op->error += "; pending on " + who() + ": " + here;
    op->flows.clear();
    op->finished_ns = now_ns();
    ++finished_now_;
    op->done.store(true, std::memory_order_release);
  };
  for (auto& op : collectives_) fail_one(op);
  collectives_.clear();
  for (auto& queue : sends_) {
    for (auto& op : queue) fail_one(op);
    queue.clear();
  }
  for (auto& op : recvs_) fail_one(op);
  recvs_.clear();
  for (auto& in : incoming_) in = Incoming{};
}

}  // namespace mindspeed_ms::comm
