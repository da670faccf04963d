#include <algorithm>
#include <cstdio>
#include <cstring>

#include "comm/engine.h"

namespace mindspeed_ms::comm {
namespace {

constexpr auto kStoppedLimit = std::chrono::seconds(10);

}  // namespace

std::string Engine::who() const {
  std::string ranks;
  for (const Peer& p : peers_) ranks += (ranks.empty() ? "" : ", ") + std::to_string(p.global_rank);
  return "rank " + std::to_string(global(rank_)) + " of group '" + group_ + "' (ranks [" + ranks + "])";
}

std::string Engine::describe(Kind k, DType t, RedOp op, int root, int64_t count, uint64_t seq) const {
  std::string s = name_of(k) + " #" + std::to_string(seq);
  if (k == Kind::barrier) return s;
  s += " (";
  if (op != RedOp::none) s += name_of(op) + ", ";
  if (k == Kind::send || k == Kind::recv)
    s += (k == Kind::send ? "to rank " : "from rank ") + (root < 0 ? "any" : std::to_string(global(root))) +
         ", ";
  else if (root >= 0)
    s += "root rank " + std::to_string(root < world_ ? global(root) : root) + ", ";
  s += name_of(t);
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
