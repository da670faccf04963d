#pragma once
#include <c10/core/ScalarType.h>

#include <array>
#include <atomic>
#include <chrono>
#include <string>
#include <vector>

namespace mindspeed_ms {

enum class Route : uint8_t { MindSpore, Csrc, Host };
constexpr int kRoutes = 3;
const char* route_name(Route route);

// Calls and exclusive nanoseconds of one operator, by route and dtype.
struct Counter {
  std::atomic<uint64_t> calls{0}, nanoseconds{0};
};

constexpr int kDtypes = static_cast<int>(c10::ScalarType::NumOptions);

struct OpCounters {
  explicit OpCounters(std::string name_) : name(std::move(name_)) {}
  std::string name;
  std::array<std::array<Counter, kDtypes>, kRoutes> by_route_dtype{};
};

// Counters of the operator or kernel called `name`; lives for ever.
OpCounters& counters_of(const std::string& name);

// Measures a call. Time spent in calls nested inside goes to those, so that the sum is operator time.
class Timed {
 public:
  Timed(OpCounters& op, Route route, c10::ScalarType dtype)
      : counter_(op.by_route_dtype[static_cast<int>(route)][static_cast<int>(dtype)]),
        parent_(current_),
        start_(std::chrono::steady_clock::now()) {
    current_ = this;
  }
  ~Timed() {
    auto elapsed = static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start_)
            .count());
    current_ = parent_;
    if (parent_) parent_->nested_ += elapsed;
    if (cancelled_) return;
    counter_.calls.fetch_add(1, std::memory_order_relaxed);
    counter_.nanoseconds.fetch_add(elapsed > nested_ ? elapsed - nested_ : 0, std::memory_order_relaxed);
  }
  // The call turned out to run on another route, which counts itself.
  void cancel() { cancelled_ = true; }

 private:
  static thread_local Timed* current_;
  Counter& counter_;
  Timed* parent_;
  std::chrono::steady_clock::time_point start_;
  uint64_t nested_ = 0;
  bool cancelled_ = false;
};

struct CoverageRow {
  std::string op, dtype, route;
  uint64_t calls;
  double seconds;
};
std::vector<CoverageRow> coverage_rows();
void reset_coverage();

}  // namespace mindspeed_ms
