#include "comm/process.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <utility>

namespace mindspeed_ms::comm {
namespace {

struct Stat {
  char state = '?';
  uint64_t start_time = 0;
};

Stat read_stat(int pid) {
  Stat out;
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  size_t close = text.rfind(')');  // the command name may itself hold spaces and parentheses
  if (close == std::string::npos) return out;
  std::istringstream rest(text.substr(close + 1));
  rest >> out.state;
  std::string skipped;
  for (int field = 4; field <= 21; ++field) rest >> skipped;
  rest >> out.start_time;
  return out;
}

}  // namespace

uint64_t ProcessWatch::start_time_of(int pid) { return read_stat(pid).start_time; }

ProcessWatch::ProcessWatch(int pid, uint64_t start_time) : pid_(pid), fd_(-1), start_time_(start_time) {
#ifdef SYS_pidfd_open
  fd_ = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
#endif
  if (fd_ >= 0 && start_time_of(pid) != start_time) {  // recycled between the roster and now
    close(fd_);
    fd_ = -1;
  }
}

ProcessWatch::~ProcessWatch() {
  if (fd_ >= 0) close(fd_);
}

ProcessWatch::ProcessWatch(ProcessWatch&& o) noexcept
    : pid_(o.pid_), fd_(std::exchange(o.fd_, -1)), start_time_(o.start_time_) {}

bool ProcessWatch::alive() const {
  if (fd_ >= 0) {
    pollfd p{fd_, POLLIN, 0};
    return poll(&p, 1, 0) == 0;
  }
  Stat s = read_stat(pid_);
  return s.start_time == start_time_ && s.state != 'Z' && s.state != 'X' && s.state != '?';
}

char ProcessWatch::state() const {
  Stat s = read_stat(pid_);
  return s.start_time == start_time_ ? s.state : '?';
}

}  // namespace mindspeed_ms::comm
