#include "transport.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <thread>

namespace sim {

constexpr const char* kPrefix = "npusim_";  // then the process that made the root, see HcclGetRootInfo
constexpr size_t kHeader = 64;              // of a box: its state, then the bytes

SharedFile::~SharedFile() {
  if (data) munmap(data, size_);
  if (file_ >= 0) close(file_);
}

void SharedFile::open(const std::string& name) {
  name_ = name;
  file_ = shm_open(name.c_str(), O_RDWR | O_CREAT, 0600);
  if (file_ < 0) throw std::runtime_error("HCCL: shm_open of " + name + ": " + strerror(errno));
}

void SharedFile::grow(size_t size) {
  struct stat now;
  fstat(file_, &now);
  if (static_cast<size_t>(now.st_size) < size && ftruncate(file_, size))
    throw std::runtime_error(std::string("HCCL: no room in /dev/shm: ") + strerror(errno));
  reach(size);
}

void SharedFile::reach(size_t size) {
  if (size_ >= size && data) return;
  if (data) munmap(data, size_);
  size_ = std::max<size_t>((size + 4095) & ~static_cast<size_t>(4095), 4096);
  void* p = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
  if (p == MAP_FAILED) throw std::runtime_error(std::string("HCCL: mmap: ") + strerror(errno));
  data = static_cast<char*>(p);
}

void SharedFile::forget() { shm_unlink(name_.c_str()); }

bool is_alive(int pid) {
  if (kill(pid, 0) && errno == ESRCH) return false;
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  size_t name_end = text.rfind(')');
  return name_end == std::string::npos || text.compare(name_end + 2, 1, "Z") != 0;  // a zombie is gone
}

void remove_segments_of_the_dead() {
  std::error_code ignored;
  for (auto& entry : std::filesystem::directory_iterator("/dev/shm", ignored)) {
    std::string name = entry.path().filename();
    if (name.starts_with(kPrefix) && !is_alive(atoi(name.c_str() + strlen(kPrefix))))
      std::filesystem::remove(entry.path(), ignored);
  }
}

static std::mutex registry_mutex;
static std::map<std::string, Comm*>& registry() {
  static auto* r = new std::map<std::string, Comm*>;
  return *r;
}

Comm* find_comm(const std::string& name) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  auto found = registry().find(name);
  return found == registry().end() ? nullptr : found->second;
}

Comm::Comm(std::string id_, uint32_t size_, uint32_t rank_)
    : id(id_), size(size_), rank(rank_), published_(size_) {
  if (size > kRanks || rank >= size) throw std::runtime_error("HCCL: rank or size out of range");
  page_.open(name("page"));
  page_.grow(sizeof(Page));
  for (uint32_t k = 0; k < size; ++k) published_[k].open(name("data" + std::to_string(k)));
  published_[rank].grow(1);
  page()->ranks[rank].pid = getpid();
  say("creation of the communicator");
  page()->joined++;
  wait([&] { return page()->joined >= size; });
  barrier();
  published_[rank].forget();
  if (rank == 0) page_.forget();
  std::lock_guard<std::mutex> lock(registry_mutex);
  registry()[id] = this;
  // Boxes that only one side has opened still have their names when the process ends.
  static const int once = std::atexit([] {
    for (auto& [id, comm] : registry())
      for (auto& [pair, file] : comm->boxes_) file.forget();
  });
  (void)once;
}

std::string Comm::name(const std::string& part) const { return std::string("/") + kPrefix + id + "_" + part; }

void Comm::say(const std::string& call) {
  snprintf(page()->ranks[rank].call, sizeof(RankState::call), "%s", call.c_str());
}

void Comm::stuck(const char* why, uint32_t only_peer) {
  std::string text = std::string("HCCL ") + why + " in communicator " + id + ": rank " +
                     std::to_string(rank) + " is in " + page()->ranks[rank].call;
  for (uint32_t k = 0; k < size; ++k)
    if (k != rank && (only_peer == UINT32_MAX || only_peer == k))
      text += "; rank " + std::to_string(k) + " is in " +
              (page()->ranks[k].call[0] ? page()->ranks[k].call : "no call yet");
  throw std::runtime_error(text);
}

void Comm::wait(const std::function<bool()>& done, uint32_t only_peer) {
  auto start = std::chrono::steady_clock::now();
  for (int i = 0; !done(); ++i) {
    if (i < 100) {
      std::this_thread::yield();
      continue;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(i < 2000 ? 20 : 200));
    if (i % 500) continue;
    for (uint32_t k = 0; k < size; ++k) {
      int32_t pid = page()->ranks[k].pid;
      if (pid && !is_alive(pid) && !done())
        stuck(("peer lost: rank " + std::to_string(k) + " is gone").c_str(), k);
    }
    if (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() >
        settings().timeout_s)
      stuck("timeout, a deadlock on the chip too", only_peer);
  }
}

void Comm::barrier() {
  uint32_t turn = page()->turn.load();
  if (page()->arrived.fetch_add(1) + 1 == size) {
    page()->arrived = 0;
    page()->turn = turn + 1;
  } else {
    wait([&] { return page()->turn.load() != turn; });
  }
}

char* Comm::published(uint32_t peer, size_t bytes) {
  if (fault("swapped_ranks") && size > 1 && peer < 2) peer = 1 - peer;
  published_[peer].reach(bytes);
  return published_[peer].data;
}

void Comm::exchange(const std::string& call, const void* mine, size_t bytes,
                    const std::function<void()>& read) {
  say(call);
  uint64_t hash = std::hash<std::string>()(call);
  page()->ranks[rank].collective = hash;
  published_[rank].grow(std::max<size_t>(bytes, 1));
  if (bytes) memcpy(published_[rank].data, mine, bytes);
  barrier();
  bool equal = true;
  for (uint32_t k = 0; k < size; ++k) equal = equal && page()->ranks[k].collective == hash;
  if (!equal) stuck("mismatch", UINT32_MAX);
  read();
  barrier();
  say("no call (the last was " + call + ")");
}

SharedFile& Comm::box(uint32_t from, uint32_t to) {
  std::string key = std::to_string(from) + "to" + std::to_string(to);
  auto& file = boxes_[key];
  if (!file.data) {
    file.open(name(key));
    file.grow(kHeader);
    if (reinterpret_cast<Box*>(file.data)->opened.fetch_add(1) == 1) file.forget();
  }
  return file;
}

void Comm::transfer(const std::string& call, const std::vector<Transfer>& transfers) {
  say(call);
  struct Pending {
    const Transfer* transfer;
    SharedFile* file;
    uint64_t number;
    bool started, over;
    Box* state() { return reinterpret_cast<Box*>(file->data); }
  };
  // A batch runs all of its transfers at once; those of one pair keep their order.
  std::map<std::pair<uint32_t, bool>, uint64_t> numbers;
  std::vector<Pending> pending;
  for (auto& t : transfers) {
    if (t.peer >= size)
      throw std::runtime_error("HCCL: " + call + ": there is no rank " + std::to_string(t.peer));
    Pending p{&t, t.send ? &box(rank, t.peer) : &box(t.peer, rank), 0, false, false};
    auto& next = numbers.emplace(std::make_pair(t.peer, t.send), t.send ? p.state()->sent : p.state()->taken)
                     .first->second;
    p.number = ++next;
    pending.push_back(p);
  }
  auto step = [&](Pending& p) {
    auto& t = *p.transfer;
    if (t.send && !p.started) {
      if (p.state()->sent != p.number - 1 || p.state()->taken != p.number - 1) return;
      p.file->grow(kHeader + t.bytes);
      memcpy(p.file->data + kHeader, bytes_of(static_cast<const char*>(t.data)), t.bytes);
      p.state()->bytes = t.bytes;
      p.state()->sent = p.number;
      p.started = true;
    } else if (t.send) {
      p.over = p.state()->taken >= p.number;
    } else if (p.state()->sent == p.number && p.state()->taken == p.number - 1) {
      if (p.state()->bytes != t.bytes)
        throw std::runtime_error("HCCL: " + call + ": rank " + std::to_string(t.peer) + " sent " +
                                 std::to_string(p.state()->bytes) + " bytes, " + std::to_string(t.bytes) +
                                 " are received");
      p.file->reach(kHeader + t.bytes);
      memcpy(bytes_of(static_cast<char*>(t.data)), p.file->data + kHeader, t.bytes);
      p.state()->taken = p.number;
      p.over = true;
    }
  };
  wait(
      [&] {
        bool all = true;
        for (auto& p : pending) {
          if (!p.over) step(p);
          all = all && p.over;
        }
        return all;
      },
      transfers.size() == 1 ? transfers[0].peer : UINT32_MAX);
  say("no call (the last was " + call + ")");
}

}  // namespace sim
