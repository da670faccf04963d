// What the libraries of the simulated CANN share: device addresses, streams, settings, counters, errors.
//
// Device memory is an address range [kDevice, kDevice + kSpace) without access rights; the bytes themselves
// lie kShadow higher. A load or store of the host through a device pointer therefore faults, as it would on
// the chip; kernels and copies translate their pointers first.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#define SIM_VISIBLE __attribute__((visibility("default")))
#define API extern "C" SIM_VISIBLE

namespace sim {

constexpr uintptr_t kDevice = 0x400000000000ull;
constexpr size_t kSpace = 1ull << 40;
constexpr uintptr_t kShadow = 1ull << 41;

inline bool on_device(const void* p) { return reinterpret_cast<uintptr_t>(p) - kDevice < kSpace; }

// The bytes behind a pointer: the shadow of a device address, or the host pointer as it is.
template <class T>
T* bytes_of(T* p) {
  return on_device(p) ? reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + kShadow) : p;
}

// Error codes of acl_rt.h that MindSpore tells apart.
enum Code : int {
  kOk = 0,
  kInvalidParam = 107000,
  kReportTimeout = 107020,
  kMemoryAllocation = 207001,
  kQueueEmpty = 207013,
  kFeatureNotSupported = 100039,
  kAicoreException = 507015,
  kInvalidOperator = 161002,  // ACLNN_ERR_PARAM_INVALID of aclnn
};

struct Settings {         // every CANNSIM_* variable, read once
  bool async = false;     // CANNSIM_ASYNC: one thread per stream, random delays
  bool null = false;      // CANNSIM_NULL: kernels compute nothing
  bool cache = false;     // CANNSIM_CACHE: executors may be kept and run again
  int trace = 0;          // CANNSIM_TRACE: every call on stderr
  int devices = 8;        // CANNSIM_DEVICES
  size_t memory = 0;      // CANNSIM_MEMORY_GB, in bytes
  int delay_us = 200;     // CANNSIM_DELAY_US: longest random delay of a kernel in async mode
  double timeout_s = 60;  // CANNSIM_HCCL_TIMEOUT: a rendezvous that takes longer is a deadlock
  std::string soc;        // CANNSIM_SOC
  std::string fault;      // CANNSIM_FAULT: name of a deliberate mistake, see README
  std::string counters;   // CANNSIM_COUNTERS: file that gets the counters at exit
};
SIM_VISIBLE const Settings& settings();
SIM_VISIBLE bool fault(const char* name);  // is this mistake asked for?

enum class Count {
  kKernels,
  kAclopKernels,
  kExecutors,
  kH2D,
  kH2DBytes,
  kD2H,
  kD2HBytes,
  kD2D,
  kD2DBytes,
  kStreamSyncs,
  kDeviceSyncs,
  kEventSyncs,
  kCollectives,
  kComms,
  kMemoryUsed,
  kMemoryPeak,
  kEnd,
};
SIM_VISIBLE void count(Count what, int64_t n = 1);
SIM_VISIBLE int64_t counted(Count what);
SIM_VISIBLE void count_launch(const char* kernel);  // a string that lives as long as the process
// The operator's name in the name of its first phase: "aclnnAddGetWorkspaceSize" -> "aclnnAdd".
SIM_VISIBLE std::string_view kernel_name(const char* function);

// Puts work at the end of a stream (null: the default stream). `threaded` work never runs on the caller's
// thread, in no mode: a collective waits for its peers, and the host of a chip would not.
SIM_VISIBLE void enqueue(void* stream, std::function<void()> work, const char* what, bool threaded = false);

SIM_VISIBLE void set_error(const std::string& message);      // what aclGetRecentErrMsg will say
SIM_VISIBLE int fail(int code, const std::string& message);  // the same, on stderr too; returns the code

// Kernels of the single-operator path (aclop): libopapi.so puts its function here when it is loaded.
struct Desc {
  int dtype;
  std::vector<int64_t> dims;
  int format;
  std::string name;
  const void* constant = nullptr;
  size_t constant_size = 0;
};
struct Buffer {
  void* data;
  size_t size;
};
struct Attributes {
  std::map<std::string, int64_t> ints;
  std::map<std::string, double> floats;
  std::map<std::string, std::string> strings;
  std::map<std::string, std::vector<int64_t>> int_lists;
  std::map<std::string, std::vector<double>> float_lists;
};
struct AclopCall {
  std::string type;
  std::vector<Desc> in, out;
  std::vector<Buffer> in_data, out_data;
  Attributes attributes;
};
using AclopKernel = void (*)(const AclopCall&);
extern SIM_VISIBLE AclopKernel aclop_kernel;

}  // namespace sim

#define SIM_TRACE(...)                           \
  do {                                           \
    if (sim::settings().trace) {                 \
      fprintf(stderr, "[cannsim] " __VA_ARGS__); \
      fputc('\n', stderr);                       \
    }                                            \
  } while (0)
// A function of CANN that has nothing to do here.
#define SIM_NOTHING(name) \
  API int name() { return sim::kOk; }
