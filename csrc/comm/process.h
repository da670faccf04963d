#pragma once
#include <cstdint>
#include <string>

namespace mindspeed_ms::comm {

// Watches one process of this host: by pidfd where the kernel has it (exact, sees zombies), else by /proc.
class ProcessWatch {
 public:
  // `start_time`: field 22 of /proc/<pid>/stat, which tells a recycled pid from the process that was meant.
  ProcessWatch(int pid, uint64_t start_time);
  ~ProcessWatch();
  ProcessWatch(ProcessWatch&&) noexcept;
  ProcessWatch(const ProcessWatch&) = delete;

  bool alive() const;
  // One letter of /proc/<pid>/stat (R, S, D, T, Z, ...), '?' when the process is gone.
  char state() const;
  int pid() const { return pid_; }

  static uint64_t start_time_of(int pid);  // 0 when there is no such process

 private:
  int pid_;
  int fd_;
  uint64_t start_time_;
};

}  // namespace mindspeed_ms::comm
