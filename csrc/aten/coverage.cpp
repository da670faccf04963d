#include "aten/coverage.h"

#include <memory>
#include <mutex>
#include <unordered_map>

namespace mindspeed_ms {
namespace {

std::mutex g_mutex;
auto& registry() {
  static auto* map = new std::unordered_map<std::string, std::unique_ptr<OpCounters>>;
  return *map;
}

}  // namespace

thread_local Timed* Timed::current_ = nullptr;

const char* route_name(Route route) {
  switch (route) {
    case Route::MindSpore:
      return "mindspore";
    case Route::Csrc:
      return "csrc";
    case Route::Host:
      return "host";
  }
  return "?";
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
  for (auto& [name, op] : registry()) {
    for (int r = 0; r < kRoutes; ++r) {
      for (int d = 0; d < kDtypes; ++d) {
        auto& c = op->by_route_dtype[r][d];
        if (!c.calls) continue;
        rows.push_back({name, c10::toString(static_cast<c10::ScalarType>(d)),
                        route_name(static_cast<Route>(r)), c.calls,
                        static_cast<double>(c.nanoseconds) * 1e-9});
      }
    }
  }
  return rows;
}

void reset_coverage() {
  std::lock_guard<std::mutex> lock(g_mutex);
  for (auto& [name, op] : registry())
    for (auto& route : op->by_route_dtype)
      for (auto& c : route) c.calls = 0, c.nanoseconds = 0;
}

}  // namespace mindspeed_ms
