#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace mindspeed_ms {

// What crosses between host and device, and how often the host waits for the device. Nothing does where npu
// memory is host memory.
struct BusTotals {
  uint64_t to_device_calls = 0, to_device_bytes = 0, to_host_calls = 0, to_host_bytes = 0;
  uint64_t synchronizations = 0;
};

struct BusRow {
  std::string cause;  // operator ("aten::copy_") or other name given to BusCause
  BusTotals totals;
};

void count_to_device(std::size_t nbytes);
void count_to_host(std::size_t nbytes);  // a copy to the host is waited for: one synchronization, too
void count_synchronization();

// By cause, those with anything to tell.
std::vector<BusRow> bus_rows();
void reset_bus();

// Names what this thread counts inside; the outermost name stays, as it is what the caller asked for.
class BusCause {
 public:
  explicit BusCause(const std::string& name);
  ~BusCause();
  BusCause(const BusCause&) = delete;

 private:
  bool outermost_;
};

}  // namespace mindspeed_ms
