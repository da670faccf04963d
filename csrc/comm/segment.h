#pragma once
#include <atomic>
#include <cstdint>
#include <string>

#include "comm/doorbell.h"
#include "comm/types.h"

namespace mindspeed_ms::comm {

struct Geometry {
  int world;       // ranks of the group on this host
  uint64_t chunk;  // payload bytes of one slot, a multiple of 64
  uint64_t slots;  // slots of one ring
};

// What a rank says about the collective it has entered; compared field by field by its peers.
struct Descriptor {
  std::atomic<uint64_t> seq;
  Kind kind;
  DType dtype;
  RedOp op;
  int32_t root;
  int64_t count;  // elements this rank contributes
};

constexpr uint64_t kDescriptors = 64;  // how many collectives a rank may be ahead of its slowest peer

struct alignas(64) RankBlock {
  Doorbell bell;
  std::atomic<uint32_t> attached;
  std::atomic<uint32_t> left;      // 1: took leave in order; `reason` is valid
  std::atomic<uint64_t> entered;   // descriptors published
  std::atomic<uint64_t> finished;  // collectives finished
  Descriptor desc[kDescriptors];
  char reason[512];
};

struct alignas(64) Counter {
  std::atomic<uint64_t> v;
};

struct Slot {
  uint64_t seq;    // collective, or message of a point-to-point channel
  uint64_t bytes;  // payload of this slot
  uint64_t total;  // payload of the whole message (point-to-point)
  int64_t tag;
  DType dtype;
  char pad[28];
  char data[];
};
static_assert(sizeof(Slot) == 64);

struct SegmentHeader {
  uint64_t magic;
  char nonce[40];
  Geometry geometry;
  alignas(64) std::atomic<uint32_t> failure_state;  // 0 none, 1 being written, 2 written
  int32_t failure_code;
  char failure[1920];
};

// A single-producer ring of slots with one consumer (pair) or all other ranks as consumers (broadcast).
class Ring {
 public:
  Ring() = default;
  Ring(Counter* published, Counter* acks, int consumers, int producer, char* slots, const Geometry& g)
      : published_(published),
        acks_(acks),
        consumers_(consumers),
        producer_(producer),
        slots_(slots),
        k_(g.slots),
        stride_(sizeof(Slot) + g.chunk) {}

  bool can_publish() const {
    const uint64_t p = published_->v.load(std::memory_order_relaxed);
    for (int c = 0; c < consumers_; ++c)
      if (c != producer_ && p - acks_[c].v.load(std::memory_order_acquire) >= k_) return false;
    return true;
  }
  bool acknowledged_by(int c) const {
    return published_->v.load(std::memory_order_relaxed) - acks_[c].v.load(std::memory_order_acquire) < k_;
  }
  int consumers() const { return consumers_; }
  int producer() const { return producer_; }
  Slot* next() const { return at(published_->v.load(std::memory_order_relaxed)); }
  void publish() { published_->v.fetch_add(1, std::memory_order_release); }
  bool available(int c) const {
    return published_->v.load(std::memory_order_acquire) > acks_[c].v.load(std::memory_order_relaxed);
  }
  const Slot* head(int c) const { return at(acks_[c].v.load(std::memory_order_relaxed)); }
  void pop(int c) { acks_[c].v.fetch_add(1, std::memory_order_release); }

 private:
  Slot* at(uint64_t n) const { return reinterpret_cast<Slot*>(slots_ + (n % k_) * stride_); }

  Counter* published_ = nullptr;
  Counter* acks_ = nullptr;
  int consumers_ = 0;
  int producer_ = -1;  // index among the consumers to skip; -1 for a pair ring
  char* slots_ = nullptr;
  uint64_t k_ = 1;
  uint64_t stride_ = 0;
};

// One group's shared memory, mapped. Pages are touched, and so paid for, only when a ring is used.
class Segment {
 public:
  // An anonymous memory file: it has no name in any file system, so nothing can be left behind.
  static Segment create(const Geometry& g, const std::string& nonce);
  // `path`: the creator's path(), or one of a descriptor that it sent. Refuses memory that does not carry
  // `nonce`.
  static Segment open(const std::string& path, const std::string& nonce);
  Segment(Segment&&) noexcept;
  Segment(const Segment&) = delete;
  ~Segment();

  std::string path() const;  // /proc/<pid>/fd/<fd>, for open() in another process
  // The creator's descriptor is what others open; close it once all are attached.
  int descriptor() const { return fd_; }
  void close_descriptor();
  SegmentHeader* header() const { return reinterpret_cast<SegmentHeader*>(base_); }
  RankBlock* rank(int r) const;
  Ring broadcast_ring(int producer) const;
  enum Channel { collective = 0, point_to_point = 1 };
  Ring pair_ring(Channel ch, int from, int to) const;
  uint64_t bytes() const { return size_; }

 private:
  Segment() = default;
  static uint64_t size_of(const Geometry& g);
  char* counters() const;
  char* slot_area(uint64_t ring) const;

  char* base_ = nullptr;
  uint64_t size_ = 0;
  int fd_ = -1;
};

}  // namespace mindspeed_ms::comm
