#include "comm/flows.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>

namespace mindspeed_ms::comm {
namespace {

// The index under which `rank` consumes `ring`: its own number in a broadcast ring, 0 in a pair ring.
int consumer_index(const Ring& ring, int rank) { return ring.producer() < 0 ? 0 : rank; }

constexpr uint64_t kStreamBytes =
    8 << 20;  // more than a core's share of the caches: what is written will not stay

#if defined(__x86_64__)
// Stores past the caches: the target is not read first, and what the rings need stays cached.
__attribute__((target("avx2"))) void stream_avx2(char* dst, const char* src, uint64_t n) {
  const uint64_t head = std::min<uint64_t>(n, -reinterpret_cast<uintptr_t>(dst) & 31);
  std::memcpy(dst, src, head);
  uint64_t i = head;
  for (; i + 32 <= n; i += 32)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(dst + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i)));
  std::memcpy(dst + i, src + i, n - i);
  _mm_sfence();
}
#endif

// Copies a piece of a transfer of `total` bytes to memory that this rank will not read again soon.
void copy_out(char* dst, const char* src, uint64_t n, uint64_t total) {
#if defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2");
  if (avx2 && total >= kStreamBytes) {
    stream_avx2(dst, src, n);
    return;
  }
#endif
  std::memcpy(dst, src, n);
}

void ring_consumers(Engine& e, const Ring& ring, int to) {
  if (to >= 0)
    e.ring(to);
  else
    e.ring_others();
}

void lagging_consumers(const Engine& e, const Ring& ring, int to, std::vector<bool>& ranks) {
  if (to >= 0) {
    if (!ring.can_publish()) ranks[to] = true;
    return;
  }
  for (int r = 0; r < e.world(); ++r)
    if (r != e.rank() && !ring.acknowledged_by(r)) ranks[r] = true;
}

class SendFlow final : public Flow {
 public:
  SendFlow(Engine& e, const Op& op, Ring& ring, int to, const void* src, uint64_t bytes, void* mirror)
      : op_(op),
        ring_(ring),
        to_(to),
        src_(static_cast<const char*>(src)),
        mirror_(static_cast<char*>(mirror)),
        bytes_(bytes),
        piece_(piece_size(bytes, e.chunk())) {
    done = bytes == 0;
  }

  bool step(Engine& e) override {
    bool moved = false;
    while (!done && ring_.can_publish()) {
      const uint64_t n = std::min(piece_, bytes_ - sent_);
      Slot* slot = ring_.next();
      slot->seq = op_.seq;
      slot->bytes = n;
      slot->total = bytes_;
      std::memcpy(slot->data, src_ + sent_, n);
      ring_.publish();
      ring_consumers(e, ring_, to_);
      if (mirror_) copy_out(mirror_ + sent_, slot->data, n, bytes_);
      sent_ += n;
      done = sent_ == bytes_;
      moved = true;
    }
    return moved;
  }

  void waiting_for(const Engine& e, std::vector<bool>& ranks) const override {
    if (!done) lagging_consumers(e, ring_, to_, ranks);
  }

 private:
  const Op& op_;
  Ring& ring_;
  const int to_;
  const char* src_;
  char* mirror_;
  const uint64_t bytes_, piece_;
  uint64_t sent_ = 0;
};

class CopyFlow final : public Flow {
 public:
  CopyFlow(Engine& e, const Op& op, Ring& ring, int from, void* dst, uint64_t bytes)
      : op_(op),
        ring_(ring),
        from_(from),
        index_(consumer_index(ring, e.rank())),
        dst_(static_cast<char*>(dst)),
        bytes_(bytes),
        piece_(piece_size(bytes, e.chunk())) {
    done = bytes == 0;
  }

  bool step(Engine& e) override {
    bool moved = false;
    while (!done && ring_.available(index_)) {
      const uint64_t n = std::min(piece_, bytes_ - got_);
      const Slot* slot = ring_.head(index_);
      e.expect(op_, *slot, n, bytes_, from_);
      copy_out(dst_ + got_, slot->data, n, bytes_);
      ring_.pop(index_);
      e.ring(from_);
      got_ += n;
      done = got_ == bytes_;
      moved = true;
    }
    return moved;
  }

  void waiting_for(const Engine&, std::vector<bool>& ranks) const override {
    if (!done) ranks[from_] = true;
  }

 private:
  const Op& op_;
  Ring& ring_;
  const int from_, index_;
  char* dst_;
  const uint64_t bytes_, piece_;
  uint64_t got_ = 0;
};

// Copies this rank's own block, a piece at a time, so that the peers need not wait for all of it.
class LocalFlow final : public Flow {
 public:
  LocalFlow(Engine& e, const void* src, void* dst, uint64_t bytes)
      : src_(static_cast<const char*>(src)), dst_(static_cast<char*>(dst)), bytes_(bytes), piece_(e.chunk()) {
    done = bytes == 0 || src == dst;
  }

  bool step(Engine&) override {
    const uint64_t n = std::min(piece_, bytes_ - at_);
    copy_out(dst_ + at_, src_ + at_, n, bytes_);
    at_ += n;
    done = at_ == bytes_;
    return true;
  }

  void waiting_for(const Engine&, std::vector<bool>&) const override {}

 private:
  const char* src_;
  char* dst_;
  const uint64_t bytes_, piece_;
  uint64_t at_ = 0;
};

class ReduceFlow final : public Flow {
 public:
  ReduceFlow(Engine& e, const Op& op, std::vector<Ring*> rings, const void* own, void* dst, uint64_t bytes,
             Ring* out, const Flow* after)
      : op_(op),
        rings_(std::move(rings)),
        own_(static_cast<const char*>(own)),
        dst_(static_cast<char*>(dst)),
        bytes_(bytes),
        piece_(piece_size(bytes, e.chunk())),
        out_(out),
        after_(after),
        sources_(rings_.size()) {
    done = bytes == 0;
  }

  bool step(Engine& e) override {
    if (after_ && !after_->done) return false;
    const size_t width = dtype_size(op_.request.dtype);
    bool moved = false;
    while (!done && ready(e)) {
      const uint64_t n = std::min(piece_, bytes_ - at_);
      for (size_t r = 0; r < rings_.size(); ++r) {
        if (!rings_[r]) {
          sources_[r] = own_ + at_;
          continue;
        }
        const Slot* slot = rings_[r]->head(consumer_index(*rings_[r], e.rank()));
        e.expect(op_, *slot, n, bytes_, static_cast<int>(r));
        sources_[r] = slot->data;
      }
      reduce_many(op_.request.dtype, op_.request.op, sources_.data(), static_cast<int>(sources_.size()),
                  dst_ + at_, n / width, e.world(), op_.request.factor);
      if (out_) {
        Slot* slot = out_->next();
        slot->seq = op_.seq;
        slot->bytes = n;
        slot->total = bytes_;
        std::memcpy(slot->data, dst_ + at_, n);
        out_->publish();
      }
      for (Ring* ring : rings_)
        if (ring) ring->pop(consumer_index(*ring, e.rank()));
      e.ring_others();
      at_ += n;
      done = at_ == bytes_;
      moved = true;
    }
    return moved;
  }

  void waiting_for(const Engine& e, std::vector<bool>& ranks) const override {
    if (done) return;
    for (size_t r = 0; r < rings_.size(); ++r)
      if (rings_[r] && !rings_[r]->available(consumer_index(*rings_[r], e.rank()))) ranks[r] = true;
    if (out_) lagging_consumers(e, *out_, -1, ranks);
  }

 private:
  bool ready(const Engine& e) const {
    for (Ring* ring : rings_)
      if (ring && !ring->available(consumer_index(*ring, e.rank()))) return false;
    return !out_ || out_->can_publish();
  }

  const Op& op_;
  std::vector<Ring*> rings_;
  const char* own_;
  char* dst_;
  const uint64_t bytes_, piece_;
  Ring* out_;
  const Flow* after_;
  std::vector<const void*> sources_;
  uint64_t at_ = 0;
};

}  // namespace

uint64_t piece_size(uint64_t total, uint64_t chunk) {
  constexpr uint64_t page = 4096, least = 32 * 1024;
  const uint64_t quarter = (total / 4 + page - 1) & ~(page - 1);
  return std::min(std::max(quarter, least), chunk);
}

std::unique_ptr<Flow> send_flow(Engine& e, const Op& op, Ring& ring, int to, const void* src, uint64_t bytes,
                                void* mirror) {
  return std::make_unique<SendFlow>(e, op, ring, to, src, bytes, mirror);
}

std::unique_ptr<Flow> copy_flow(Engine& e, const Op& op, Ring& ring, int from, void* dst, uint64_t bytes) {
  return std::make_unique<CopyFlow>(e, op, ring, from, dst, bytes);
}

std::unique_ptr<Flow> local_flow(Engine& e, const void* src, void* dst, uint64_t bytes) {
  return std::make_unique<LocalFlow>(e, src, dst, bytes);
}

std::unique_ptr<Flow> reduce_flow(Engine& e, const Op& op, std::vector<Ring*> rings, const void* own,
                                  void* dst, uint64_t bytes, Ring* out, const Flow* after) {
  return std::make_unique<ReduceFlow>(e, op, std::move(rings), own, dst, bytes, out, after);
}

}  // namespace mindspeed_ms::comm
