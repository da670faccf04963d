#include "runtime/generator.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cstring>
#include <mutex>
#include <vector>

namespace mindspeed_ms {

NpuGenerator::NpuGenerator(at::Generator engine, c10::DeviceIndex device)
    : c10::GeneratorImpl(c10::Device(kNpu, device), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
      engine_(std::move(engine)) {}

void NpuGenerator::set_current_seed(uint64_t seed) { engine_.set_current_seed(seed); }
void NpuGenerator::set_offset(uint64_t offset) { engine_.set_offset(offset); }
uint64_t NpuGenerator::get_offset() const { return engine_.get_offset(); }
uint64_t NpuGenerator::current_seed() const { return engine_.current_seed(); }
uint64_t NpuGenerator::seed() { return engine_.seed(); }
// A state saved on CUDA: seed and offset of its Philox generator, 16 bytes. This generator draws other
// numbers, so a run goes on with new ones, the same each time: those of the seed, or of both mixed where
// numbers were drawn.
void NpuGenerator::set_state(const c10::TensorImpl& state) {
  uint64_t philox[2];
  if (state.numel() != sizeof(philox)) {
    engine_.unsafeGetGeneratorImpl()->set_state(state);
    return;
  }
  at::detail::check_rng_state(state);
  std::memcpy(philox, state.data(), sizeof(philox));
  engine_.set_current_seed(philox[0] ^ (philox[1] * 0x9E3779B97F4A7C15ull));
}

c10::intrusive_ptr<c10::TensorImpl> NpuGenerator::get_state() const {
  return engine_.unsafeGetGeneratorImpl()->get_state();
}

void NpuGenerator::graphsafe_set_state(const c10::intrusive_ptr<c10::GeneratorImpl>& state) {
  auto* other = dynamic_cast<NpuGenerator*>(state.get());
  TORCH_CHECK(other, "an npu generator can take its state only from another npu generator.");
  engine_ = other->engine_;
}

c10::intrusive_ptr<c10::GeneratorImpl> NpuGenerator::graphsafe_get_state() const {
  return c10::make_intrusive<NpuGenerator>(engine_, device().index());
}

NpuGenerator* NpuGenerator::clone_impl() const { return new NpuGenerator(engine_.clone(), device().index()); }

at::Generator new_generator(c10::DeviceIndex device) {
  return at::make_generator<NpuGenerator>(at::detail::createCPUGenerator(),
                                          device < 0 ? current_device() : device);
}

const at::Generator& default_generator(c10::DeviceIndex device) {
  static std::mutex mutex;
  static std::vector<at::Generator> generators(64);
  std::lock_guard<std::mutex> lock(mutex);
  auto& generator = generators.at(device < 0 ? current_device() : device);
  if (!generator.defined()) generator = new_generator(device);
  return generator;
}

at::Generator engine_of(const at::Generator& generator) {
  if (generator.device().type() != kNpu) return generator;
  return static_cast<NpuGenerator*>(generator.unsafeGetGeneratorImpl())->engine();
}

}  // namespace mindspeed_ms
