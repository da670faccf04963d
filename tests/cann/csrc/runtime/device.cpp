// Devices, contexts, limits, and the odds and ends of libascendcl.so that need no more than an answer.
#include <chrono>
#include <cstdlib>
#include <thread>

#include "../sim.h"
#include "internal.h"

using namespace sim;

namespace {

thread_local int32_t thread_device = -1;
thread_local void* thread_context = nullptr;
int32_t process_device = 0;

enum ResourceType { kCubeCores, kVectorCores };
int cores(int type, uint32_t* n) {
  *n = type == kCubeCores ? 24 : 48;  // an Ascend 910B2
  return kOk;
}

int check_device(int32_t device, const char* who) {
  if (device >= 0 && device < settings().devices) return kOk;
  return fail(107001, std::string(who) + ": there is no device " + std::to_string(device) + " among " +
                          std::to_string(settings().devices));
}

}  // namespace

API int aclInit(const char*) {
  arena_init();
  return kOk;
}
SIM_NOTHING(aclFinalize)
API int aclrtSetDevice(int32_t device) {
  if (int error = check_device(device, "aclrtSetDevice")) return error;
  thread_device = process_device = device;
  arena_init();
  return kOk;
}
API int aclrtResetDevice(int32_t) { return kOk; }
API int aclrtGetDevice(int32_t* device) {
  *device = thread_device < 0 ? process_device : thread_device;
  return kOk;
}
API int aclrtGetDeviceCount(uint32_t* n) {
  *n = settings().devices;
  return kOk;
}
API const char* aclrtGetSocName() { return settings().soc.c_str(); }
API int aclrtCreateContext(void** context, int32_t device) {
  if (int error = check_device(device, "aclrtCreateContext")) return error;
  *context = thread_context = new int32_t(device);
  thread_device = device;
  return kOk;
}
API int aclrtDestroyContext(void*) { return kOk; }
API int aclrtSetCurrentContext(void* context) {
  thread_context = context;
  return kOk;
}
API int aclrtGetCurrentContext(void** context) {
  static int32_t by_default = 0;
  *context = thread_context ? thread_context : &by_default;
  return kOk;
}
API int aclrtGetRunMode(int* mode) {
  *mode = 1;  // ACL_HOST
  return kOk;
}
API int aclrtGetLastError(int) { return kOk; }
API int aclrtPeekAtLastError(int) { return kOk; }
API int aclrtDeviceGetStreamPriorityRange(int32_t* least, int32_t* greatest) {
  if (least) *least = 7;
  if (greatest) *greatest = 0;
  return kOk;
}
API int aclrtGetDeviceResLimit(int32_t, int type, uint32_t* n) { return cores(type, n); }
API int aclrtGetStreamResLimit(void*, int type, uint32_t* n) { return cores(type, n); }
API int aclrtGetResInCurrentThread(int type, uint32_t* n) { return cores(type, n); }
SIM_NOTHING(aclrtSetDeviceResLimit)
SIM_NOTHING(aclrtSetStreamResLimit)
SIM_NOTHING(aclrtResetStreamResLimit)
SIM_NOTHING(aclrtUseStreamResInCurrentThread)
SIM_NOTHING(aclrtSetDeviceSatMode)
SIM_NOTHING(aclrtSetExceptionInfoCallback)
SIM_NOTHING(aclrtSetOpExecuteTimeOut)
SIM_NOTHING(aclrtSetOpWaitTimeout)
SIM_NOTHING(aclrtSetStreamFailureMode)
SIM_NOTHING(aclrtCtxSetSysParamOpt)
SIM_NOTHING(aclrtSetSysParamOpt)
SIM_NOTHING(aclrtDeviceTaskAbort)
SIM_NOTHING(aclrtGetMemUceInfo)
SIM_NOTHING(aclrtMemUceRepair)

API void* aclrtAllocatorCreateDesc() { return calloc(1, 64); }
API int aclrtAllocatorDestroyDesc(void* d) {
  free(d);
  return kOk;
}
SIM_NOTHING(aclrtAllocatorSetObjToDesc)
SIM_NOTHING(aclrtAllocatorSetAllocFuncToDesc)
SIM_NOTHING(aclrtAllocatorSetFreeFuncToDesc)
SIM_NOTHING(aclrtAllocatorSetAllocAdviseFuncToDesc)
SIM_NOTHING(aclrtAllocatorSetGetAddrFromBlockFuncToDesc)
SIM_NOTHING(aclrtAllocatorRegister)
SIM_NOTHING(aclrtAllocatorUnregister)
SIM_NOTHING(aclSetCompileopt)
SIM_NOTHING(aclopSetCompileFlag)
SIM_NOTHING(aclopSetModelDir)
SIM_NOTHING(aclmdlInitDump)
SIM_NOTHING(aclmdlSetDump)
SIM_NOTHING(aclmdlFinalizeDump)

// Channels for device print and summaries: six threads of MindSpore ask them all the time, nothing ever
// comes.
API void* acltdtCreateChannelWithCapacity(uint32_t, const char*, size_t) { return calloc(1, 64); }
API void* acltdtCreateChannel(uint32_t, const char*) { return calloc(1, 64); }
API void* acltdtCreateDataset() { return calloc(1, 64); }
API int acltdtDestroyDataset(void* p) {
  free(p);
  return kOk;
}
SIM_NOTHING(acltdtDestroyChannel)
SIM_NOTHING(acltdtStopChannel)
SIM_NOTHING(acltdtCleanChannel)
API int acltdtQueryChannelSize(void*, size_t* n) {
  *n = 0;
  return kOk;
}
API int acltdtReceiveTensor(void*, void*, int32_t ms) {
  std::this_thread::sleep_for(std::chrono::milliseconds(ms > 0 && ms < 500 ? ms : 200));
  return kQueueEmpty;
}
