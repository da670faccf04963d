// How ranks of one host meet: a shared page of states per communicator, and files in /dev/shm for the bytes.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "../sim.h"

namespace sim {

// A file in /dev/shm that grows; every process that shares it maps it again when it needs more of it.
class SharedFile {
 public:
  ~SharedFile();
  void open(const std::string& name);
  void grow(size_t size);   // makes the file at least that large and maps it
  void reach(size_t size);  // maps what another process has made that large
  void forget();            // takes the name away; the mappings stay
  char* data = nullptr;

 private:
  std::string name_;
  int file_ = -1;
  size_t size_ = 0;
};

constexpr int kRanks = 64;
struct RankState {  // what a rank is doing, for the messages about deadlocks
  std::atomic<int32_t> pid;
  std::atomic<uint64_t> collective;  // hash of the collective it is in
  char call[160];
};
struct Page {
  std::atomic<uint32_t> joined, arrived, turn;
  RankState ranks[kRanks];
};

struct Transfer {  // one send or receive of a batch
  void* data;
  size_t bytes;
  uint32_t peer;
  bool send;
};

class SIM_VISIBLE Comm {
 public:
  Comm(std::string id, uint32_t size, uint32_t rank);
  const std::string id;
  const uint32_t size, rank;
  std::mutex one_at_a_time;

  // Publishes `mine`, waits for everybody, lets `read` look at what the peers published, waits again. `call`
  // names the collective with all that must be equal on every rank; unequal calls are an error that names
  // both.
  void exchange(const std::string& call, const void* mine, size_t bytes, const std::function<void()>& read);
  char* published(uint32_t peer, size_t bytes);

  // Rendezvous: returns when every transfer is over, on both sides.
  void transfer(const std::string& call, const std::vector<Transfer>& transfers);

 private:
  struct Box {  // one direction of a pair
    std::atomic<uint64_t> sent, taken, bytes;
    std::atomic<uint32_t> opened;
  };
  std::string name(const std::string& part) const;
  Page* page() { return reinterpret_cast<Page*>(page_.data); }
  SharedFile& box(uint32_t from, uint32_t to);
  void barrier();
  void say(const std::string& call);
  void wait(const std::function<bool()>& done, uint32_t only_peer = UINT32_MAX);
  [[noreturn]] void stuck(const char* why, uint32_t only_peer);

  SharedFile page_;
  std::vector<SharedFile> published_;
  std::map<std::string, SharedFile> boxes_;
};

// Takes away the files of processes that were killed.
void remove_segments_of_the_dead();

// The communicator that HcclGetCommName names, or null.
SIM_VISIBLE Comm* find_comm(const std::string& name);

}  // namespace sim
