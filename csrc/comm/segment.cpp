#include "comm/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace mindspeed_ms::comm {
namespace {

constexpr uint64_t kMagic = 0x4d53434f4d4d3031ull;  // "MSCOMM01": change it with the layout

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

uint64_t align64(uint64_t n) { return (n + 63) & ~63ull; }

uint64_t ranks_offset() { return align64(sizeof(SegmentHeader)); }
uint64_t counters_offset(const Geometry& g) { return ranks_offset() + g.world * sizeof(RankBlock); }
// per rank: 1 + world broadcast counters; per ordered pair and channel: 2.
uint64_t counter_count(const Geometry& g) { return g.world * (1ull + g.world) + 4ull * g.world * g.world; }
uint64_t slots_offset(const Geometry& g) {
  return (counters_offset(g) + counter_count(g) * sizeof(Counter) + 4095) & ~4095ull;
}
uint64_t ring_bytes(const Geometry& g) { return g.slots * (sizeof(Slot) + g.chunk); }
uint64_t ring_count(const Geometry& g) { return g.world + 2ull * g.world * g.world; }

}  // namespace

uint64_t Segment::size_of(const Geometry& g) { return slots_offset(g) + ring_count(g) * ring_bytes(g); }

Segment Segment::create(const Geometry& g, const std::string& nonce) {
  if (nonce.size() >= sizeof(SegmentHeader::nonce)) throw std::invalid_argument("nonce too long");
  Segment s;
  s.size_ = size_of(g);
  s.fd_ = memfd_create("mindspeed_ms", MFD_CLOEXEC);
  if (s.fd_ < 0) fail("creating a shared-memory segment");
  if (ftruncate(s.fd_, static_cast<off_t>(s.size_)) != 0) fail("sizing a shared-memory segment");
  void* p = mmap(nullptr, s.size_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, s.fd_, 0);
  if (p == MAP_FAILED) fail("mapping a shared-memory segment");
  s.base_ = static_cast<char*>(p);
  SegmentHeader* h = s.header();
  h->geometry = g;
  std::strncpy(h->nonce, nonce.c_str(), sizeof(h->nonce) - 1);
  std::atomic_ref<uint64_t>(h->magic).store(kMagic, std::memory_order_release);
  return s;
}

Segment Segment::open(const std::string& path, const std::string& nonce) {
  Segment s;
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) fail("opening the shared-memory segment " + path);
  struct stat st;
  if (fstat(fd, &st) != 0) {
    ::close(fd);
    fail("reading the size of the shared-memory segment " + path);
  }
  s.size_ = static_cast<uint64_t>(st.st_size);
  if (s.size_ < sizeof(SegmentHeader)) {
    ::close(fd);
    throw std::runtime_error(path + " is no segment of this library");
  }
  void* p = mmap(nullptr, s.size_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  ::close(fd);
  if (p == MAP_FAILED) fail("mapping the shared-memory segment " + path);
  s.base_ = static_cast<char*>(p);
  const SegmentHeader* h = s.header();
  if (h->magic != kMagic || nonce != h->nonce || s.size_ != size_of(h->geometry))
    throw std::runtime_error(path + " belongs to another run (its nonce differs)");
  return s;
}

Segment::Segment(Segment&& o) noexcept
    : base_(std::exchange(o.base_, nullptr)), size_(o.size_), fd_(std::exchange(o.fd_, -1)) {}

Segment::~Segment() {
  close_descriptor();
  if (base_) munmap(base_, size_);
}

void Segment::close_descriptor() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

std::string Segment::path() const {
  return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(fd_);
}

RankBlock* Segment::rank(int r) const { return reinterpret_cast<RankBlock*>(base_ + ranks_offset()) + r; }

char* Segment::counters() const { return base_ + counters_offset(header()->geometry); }

char* Segment::slot_area(uint64_t ring) const {
  const Geometry& g = header()->geometry;
  return base_ + slots_offset(g) + ring * ring_bytes(g);
}

Ring Segment::broadcast_ring(int producer) const {
  const Geometry& g = header()->geometry;
  Counter* c = reinterpret_cast<Counter*>(counters()) + producer * (1 + g.world);
  return Ring(c, c + 1, g.world, producer, slot_area(producer), g);
}

Ring Segment::pair_ring(Channel ch, int from, int to) const {
  const Geometry& g = header()->geometry;
  const uint64_t pair = static_cast<uint64_t>(ch) * g.world * g.world + from * g.world + to;
  Counter* c = reinterpret_cast<Counter*>(counters()) + g.world * (1 + g.world) + 2 * pair;
  return Ring(c, c + 1, 1, -1, slot_area(g.world + pair), g);
}

}  // namespace mindspeed_ms::comm
