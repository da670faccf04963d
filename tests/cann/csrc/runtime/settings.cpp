// The CANNSIM_* variables, and the counters that a test reads through ctypes.
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <unordered_map>

#include "../sim.h"

namespace sim {
namespace {

const char* variable(const char* name, const char* otherwise) {
  const char* value = getenv(name);
  return value && *value ? value : otherwise;
}

bool is_on(const char* name) { return atoi(variable(name, "0")) != 0; }

Settings read() {
  Settings s;
  s.async = is_on("CANNSIM_ASYNC");
  s.null = is_on("CANNSIM_NULL");
  s.cache = is_on("CANNSIM_CACHE");
  s.trace = atoi(variable("CANNSIM_TRACE", "0"));
  s.devices = atoi(variable("CANNSIM_DEVICES", "8"));
  s.memory = static_cast<size_t>(atof(variable("CANNSIM_MEMORY_GB", "64")) * (1ull << 30));
  s.delay_us = atoi(variable("CANNSIM_DELAY_US", "200"));
  s.timeout_s = atof(variable("CANNSIM_HCCL_TIMEOUT", "60"));
  s.soc = variable("CANNSIM_SOC", "Ascend910B2");
  s.fault = variable("CANNSIM_FAULT", "");
  s.counters = variable("CANNSIM_COUNTERS", "");
  return s;
}

constexpr std::array<const char*, static_cast<size_t>(Count::kEnd)> kNames = {
    "kernels",     "aclop_kernels", "executors",   "h2d",          "h2d_bytes",    "d2h",
    "d2h_bytes",   "d2d",           "d2d_bytes",   "stream_syncs", "device_syncs", "event_syncs",
    "collectives", "comms",         "memory_used", "memory_peak"};

std::array<std::atomic<int64_t>, static_cast<size_t>(Count::kEnd)> totals{};
std::mutex launches_mutex;
struct Launches {
  std::string name;  // a copy: the library that holds the text may be unloaded before the report at exit
  int64_t number = 0;
};
std::unordered_map<const char*, Launches>& launches() {
  static auto* m =
      new std::unordered_map<const char*, Launches>;  // never destroyed: streams may outlive static objects
  return *m;
}
std::atomic<int64_t>& total(Count what) { return totals[static_cast<size_t>(what)]; }

std::string report() {
  std::string text = "{";
  for (size_t i = 0; i < kNames.size(); ++i)
    text += std::string("\"") + kNames[i] + "\": " + std::to_string(totals[i].load()) + ", ";
  text += "\"launches\": {";
  std::lock_guard<std::mutex> lock(launches_mutex);
  const char* separator = "";
  std::map<std::string, int64_t> by_name;
  for (auto& [function, launched] : launches()) by_name[launched.name] += launched.number;
  for (auto& [name, n] : by_name) {
    text += separator + ("\"" + name + "\": ") + std::to_string(n);
    separator = ", ";
  }
  return text + "}}";
}

struct AtExit {
  ~AtExit() {
    if (settings().counters.empty()) return;
    std::string path = settings().counters + "." + std::to_string(getpid()) + ".json";
    if (FILE* file = fopen(path.c_str(), "w")) {
      fputs(report().c_str(), file);
      fclose(file);
    }
  }
} at_exit;

}  // namespace

const Settings& settings() {
  static const Settings* s = new Settings(read());
  return *s;
}

bool fault(const char* name) { return settings().fault == name; }

void count(Count what, int64_t n) {
  int64_t now = total(what).fetch_add(n, std::memory_order_relaxed) + n;
  if (what != Count::kMemoryUsed) return;
  auto& peak = total(Count::kMemoryPeak);
  for (int64_t seen = peak.load(); seen < now && !peak.compare_exchange_weak(seen, now);) {
  }
}

int64_t counted(Count what) { return total(what).load(std::memory_order_relaxed); }

std::string_view kernel_name(const char* function) {
  constexpr std::string_view kPhase = "GetWorkspaceSize";
  std::string_view name(function);
  return name.ends_with(kPhase) ? name.substr(0, name.size() - kPhase.size()) : name;
}

void count_launch(const char* kernel) {
  std::lock_guard<std::mutex> lock(launches_mutex);
  auto& launched = launches()[kernel];
  if (!launched.number++) launched.name = kernel_name(kernel);
}

}  // namespace sim

// Writes the counters as JSON and returns the length that the text needs.
API size_t cannsim_counters(char* text, size_t size) {
  std::string now = sim::report();
  if (text && size) snprintf(text, size, "%s", now.c_str());
  return now.size() + 1;
}

// Sets every counter to zero but the memory in use, which is a state and not an event.
API void cannsim_reset_counters() {
  using sim::Count;
  for (size_t i = 0; i < sim::totals.size(); ++i)
    if (static_cast<Count>(i) != Count::kMemoryUsed) sim::totals[i] = 0;
  sim::total(Count::kMemoryPeak) = sim::counted(Count::kMemoryUsed);
  std::lock_guard<std::mutex> lock(sim::launches_mutex);
  sim::launches().clear();
}
