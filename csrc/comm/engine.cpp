#include "comm/engine.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <thread>

namespace mindspeed_ms::comm {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr auto kTick = milliseconds(20);      // how often a blocked rank looks at its peers
constexpr auto kHandover = microseconds(50);  // a waiter usually follows at once: leave the driving to it
constexpr auto kSpin = microseconds(30);
constexpr uint64_t kInlineBytes =
    64 * 1024;  // asynchronous operations up to this size get a first step inline
constexpr size_t kHistory = 256;

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
    op->request.dtype = DType::uint64;
    op->request.op = RedOp::SUM;
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

}  // namespace mindspeed_ms::comm
