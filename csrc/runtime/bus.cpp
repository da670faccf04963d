#include "runtime/bus.h"

#include <map>
#include <mutex>

namespace mindspeed_ms {
namespace {

std::mutex g_mutex;
auto& rows() {
  static auto* map = new std::map<std::string, BusTotals>;
  return *map;
}

thread_local const std::string* tls_cause = nullptr;

// A crossing takes microseconds at least: a mutex and a look-up do not show.
template <typename Change>
void count(Change change) {
  static const std::string unnamed = "unnamed";
  std::lock_guard<std::mutex> lock(g_mutex);
  change(rows()[tls_cause ? *tls_cause : unnamed]);
}

}  // namespace

void count_to_device(std::size_t nbytes) {
  count([&](BusTotals& t) { ++t.to_device_calls, t.to_device_bytes += nbytes; });
}

void count_to_host(std::size_t nbytes) {
  count([&](BusTotals& t) { ++t.to_host_calls, t.to_host_bytes += nbytes, ++t.synchronizations; });
}

void count_synchronization() {
  count([](BusTotals& t) { ++t.synchronizations; });
}

std::vector<BusRow> bus_rows() {
  std::lock_guard<std::mutex> lock(g_mutex);
  std::vector<BusRow> out;
  for (auto& [cause, totals] : rows()) out.push_back({cause, totals});
  return out;
}

void reset_bus() {
  std::lock_guard<std::mutex> lock(g_mutex);
  rows().clear();
}

BusCause::BusCause(const std::string& name) : outermost_(!tls_cause) {
  if (outermost_) tls_cause = &name;
}

BusCause::~BusCause() {
  if (outermost_) tls_cause = nullptr;
}

}  // namespace mindspeed_ms
