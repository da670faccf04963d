// The text of the last error, and the message for a host that touches device memory.
#include <execinfo.h>
#include <signal.h>
#include <unistd.h>

#include <mutex>

#include "../sim.h"
#include "internal.h"

namespace sim {
namespace {

std::mutex message_mutex;
std::string& message() {
  static auto* s = new std::string;
  return *s;
}
struct sigaction previous;

void on_fault(int signal, siginfo_t* info, void*) {
  // faulthandler and its like raise() the signal again: without an address it says nothing, the access itself
  // faults once more as soon as this handler returns.
  if (info->si_code <= 0) {
    static bool seen = false;
    if (!seen) {
      seen = true;
      return;
    }
  }
  if (on_device(info->si_addr)) {
    char text[256];
    int n = snprintf(text, sizeof text,
                     "[cannsim] FAULT: the host read or wrote device memory at %p: a stray pointer. %s\n",
                     info->si_addr, describe_address(info->si_addr).c_str());
    if (write(STDERR_FILENO, text, n) < 0) _exit(139);
    void* frames[40];
    backtrace_symbols_fd(frames, backtrace(frames, 40), STDERR_FILENO);
  }
  sigaction(signal, &previous, nullptr);
}

}  // namespace

void watch_faults() {
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &previous);
}

void set_error(const std::string& text) {
  std::lock_guard<std::mutex> lock(message_mutex);
  message() = text;
}

int fail(int code, const std::string& text) {
  set_error("cannsim: " + text);
  fprintf(stderr, "[cannsim] error %d: %s\n", code, text.c_str());
  return code;
}

}  // namespace sim

API const char* aclGetRecentErrMsg() {
  static thread_local std::string kept;
  std::lock_guard<std::mutex> lock(sim::message_mutex);
  if (sim::message().empty()) return nullptr;
  kept.swap(sim::message());
  sim::message().clear();
  return kept.c_str();
}
