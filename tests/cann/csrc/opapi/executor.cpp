#include "executor.h"

#include <c10/core/InferenceMode.h>

#include <mutex>
#include <thread>

#include "op.h"

namespace opapi {
namespace {

std::atomic<int> in_flight{0};
std::mutex ends_mutex;
std::vector<std::function<void()>> ends;

std::map<std::string, std::string>& signatures() {
  static auto* s = new std::map<std::string, std::string>;
  return *s;
}

}  // namespace

void when_unused(std::function<void()> end) {
  std::lock_guard<std::mutex> lock(ends_mutex);
  ends.push_back(std::move(end));
  if (in_flight) return;
  for (auto& e : ends) e();
  ends.clear();
}

int plan(const char* function, uint64_t* workspace, aclOpExecutor** executor, std::function<void()> kernel,
         bool needed_in_null_mode, bool collective) {
  *workspace = 0;
  sim::count(sim::Count::kExecutors);
  *executor = new aclOpExecutor{function, std::move(kernel), needed_in_null_mode, collective};
  return sim::kOk;
}

int run(aclOpExecutor* executor, void* stream) {
  SIM_TRACE("%.*s", static_cast<int>(sim::kernel_name(executor->function).size()), executor->function);
  sim::count(sim::Count::kKernels);
  sim::count_launch(executor->function);
  if (sim::settings().null && !executor->needed_in_null_mode) {
    if (!executor->repeatable) delete executor;
    return sim::kOk;
  }
  ++in_flight;
  ++executor->running;
  auto kernel = [executor] {
    struct End {
      aclOpExecutor* executor;
      ~End() {
        --executor->running;
        if (!executor->repeatable) delete executor;
        --in_flight;
      }
    } end{executor};
    c10::InferenceMode no_autograd(true);
    try {
      executor->kernel();
    } catch (const c10::Error& e) {
      throw std::runtime_error(e.what_without_backtrace());
    }
  };
  sim::enqueue(stream, kernel, executor->function, executor->collective);
  return sim::kOk;
}

void register_signature(const char* name, const std::string& types) { signatures()[name] = types; }

// A repeated executor reads its descriptors when its kernel runs: they may change only when none is running.
static void set_address(aclOpExecutor* executor, aclTensor* t, void* data) {
  while (executor->running) std::this_thread::yield();
  t->data = data;
}

}  // namespace opapi

API int aclSetTensorAddr(aclOpExecutor* e, size_t, aclTensor* t, void* data) {
  opapi::set_address(e, t, data);
  return 0;
}
API int aclSetInputTensorAddr(aclOpExecutor* e, size_t i, aclTensor* t, void* data) {
  return aclSetTensorAddr(e, i, t, data);
}
API int aclSetOutputTensorAddr(aclOpExecutor* e, size_t i, aclTensor* t, void* data) {
  return aclSetTensorAddr(e, i, t, data);
}
API int aclSetDynamicTensorAddr(aclOpExecutor* e, size_t, size_t j, aclTensorList* list, void* data) {
  opapi::set_address(e, list->tensors[j], data);
  return 0;
}
// Non-zero says "not cacheable", and MindSpore builds every call anew.
API int aclSetAclOpExecutorRepeatable(aclOpExecutor* e) {
  e->repeatable = sim::settings().cache;
  return e->repeatable ? 0 : 1;
}
API int aclDestroyAclOpExecutor(aclOpExecutor* e) {
  while (e->running) std::this_thread::yield();
  delete e;
  return 0;
}

SIM_NOTHING(aclnnFinalize)
API int aclnnInit(const char*) { return 0; }
API int InitHugeMemThreadLocal(void*, bool) { return 0; }
API void UnInitHugeMemThreadLocal(void*, bool) {}
API void ReleaseHugeMem(void*, bool) {}
API void InitPTACacheThreadLocal() {}
API void UnInitPTACacheThreadLocal() {}
API void SetPTAHashKey(uint64_t) {}
API bool CanUsePTACache(const char*) { return false; }
API aclOpExecutor* PTAGetExecCache(uint64_t, uint64_t*) { return nullptr; }

// One line per operator: its name, a tab, its C types.
API const char* cannsim_signatures() {
  static const std::string text = [] {
    std::string lines;
    for (auto& [name, types] : opapi::signatures()) lines += name + "\t" + types + "\n";
    return lines;
  }();
  return text.c_str();
}
