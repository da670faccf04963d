#include "aten/coverage.h"

#include <memory>
#include <unordered_map>

namespace mindspeed_ms {
namespace {

std::mutex g_mutex;
auto& registry() {
  static auto* map = new std::unordered_map<std::string, std::unique_ptr<OpCounters>>;
  return *map;
}

}  // namespace

std::atomic<clockid_t> Clock::id_{CLOCK_MONOTONIC};
thread_local Timed* Timed::current_ = nullptr;

const char* route_name(Route route) {
  switch (route) {
    case Route::MindSpore:
      return "mindspore";
    case Route::Csrc:
      return "csrc";
    case Route::Composite:
      return "composite";
    case Route::Host:
      return "host";
  }
  return "?";
}

Counter& OpCounters::add(Route route, c10::ScalarType dtype, Reason why) {
  std::lock_guard<std::mutex> lock(adding_);
  for (auto* c = first(); c; c = c->next)  // another thread may have been first
    if (c->route == route && c->dtype == dtype && c->why == why) return *c;
  auto* made = new Counter(route, dtype, why, first());
  first_.store(made, std::memory_order_release);
  return *made;
}

OpCounters& counters_of(const std::string& name) {
  std::lock_guard<std::mutex> lock(g_mutex);
  auto& slot = registry()[name];
  if (!slot) slot = std::make_unique<OpCounters>(name);
  return *slot;
}

std::vector<CoverageRow> coverage_rows() {
  std::lock_guard<std::mutex> lock(g_mutex);
  std::vector<CoverageRow> rows;
  for (auto& [name, op] : registry())
    for (auto* c = op->first(); c; c = c->next)
      if (c->calls)
        rows.push_back({name, c10::toString(c->dtype), route_name(c->route), sentence(c->why), c->calls,
                        static_cast<double>(c->nanoseconds) * 1e-9});
  return rows;
}

void reset_coverage() {
  std::lock_guard<std::mutex> lock(g_mutex);
  for (auto& [name, op] : registry())
    for (auto* c = op->first(); c; c = c->next) c->calls = 0, c->nanoseconds = 0;
}

}  // namespace mindspeed_ms
