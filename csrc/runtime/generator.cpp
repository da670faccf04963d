#include "runtime/generator.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>

#include <cstring>
#include <mutex>
#include <vector>

#include "runtime/memory.h"

namespace mindspeed_ms {
namespace {
constexpr uint64_t kMix = 0x9E3779B97F4A7C15ull;
}

NpuGenerator::NpuGenerator(at::Generator engine, c10::DeviceIndex device)
    : c10::GeneratorImpl(c10::Device(kNpu, device), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
      engine_(std::move(engine)),
      philox_(engine_.defined() ? nullptr : std::make_shared<Philox>()) {}

void NpuGenerator::set_current_seed(uint64_t seed) {
  if (philox_)
    *philox_ = {seed, 0};
  else
    engine_.set_current_seed(seed);
}

void NpuGenerator::set_offset(uint64_t offset) {
  if (philox_)
    philox_->offset = offset;
  else
    engine_.set_offset(offset);
}

uint64_t NpuGenerator::get_offset() const { return philox_ ? philox_->offset : engine_.get_offset(); }
uint64_t NpuGenerator::current_seed() const { return philox_ ? philox_->seed : engine_.current_seed(); }

uint64_t NpuGenerator::seed() {
  if (!philox_) return engine_.seed();
  *philox_ = Philox{};
  return philox_->seed;
}

// Two formats: seed and offset of Philox (16 bytes), saved on Ascend or on CUDA, and the state of the CPU
// engine. An engine that is given the other's goes on with other numbers, the same each time: those of the
// seed, or of both mixed where numbers were drawn; those of a digest of the CPU engine's state.
void NpuGenerator::set_state(const c10::TensorImpl& state) {
  uint64_t given[2];
  const bool is_philox = state.numel() == sizeof(given);
  if (!is_philox && !philox_) {
    engine_.unsafeGetGeneratorImpl()->set_state(state);
    return;
  }
  at::detail::check_rng_state(state);
  if (!is_philox) {
    uint64_t digest = 0xCBF29CE484222325ull;  // FNV-1a
    auto* bytes = static_cast<const uint8_t*>(state.data());
    for (int64_t i = 0; i < state.numel(); ++i) digest = (digest ^ bytes[i]) * 0x100000001B3ull;
    *philox_ = {digest, 0};
    return;
  }
  std::memcpy(given, state.data(), sizeof(given));
  if (philox_)
    *philox_ = {given[0], given[1]};
  else
    engine_.set_current_seed(given[0] ^ (given[1] * kMix));
}

c10::intrusive_ptr<c10::TensorImpl> NpuGenerator::get_state() const {
  if (!philox_) return engine_.unsafeGetGeneratorImpl()->get_state();
  auto state = at::detail::empty_cpu({sizeof(Philox)}, at::kByte);
  std::memcpy(state.mutable_data_ptr(), philox_.get(), sizeof(Philox));
  return state.getIntrusivePtr();
}

void NpuGenerator::graphsafe_set_state(const c10::intrusive_ptr<c10::GeneratorImpl>& state) {
  auto* other = dynamic_cast<NpuGenerator*>(state.get());
  TORCH_CHECK(other, "an npu generator can take its state only from another npu generator.");
  engine_ = other->engine_;
  philox_ = other->philox_;
}

c10::intrusive_ptr<c10::GeneratorImpl> NpuGenerator::graphsafe_get_state() const {
  auto out = c10::make_intrusive<NpuGenerator>(engine_, device().index());
  out->philox_ = philox_;
  return out;
}

NpuGenerator* NpuGenerator::clone_impl() const {
  auto* out = new NpuGenerator(philox_ ? at::Generator() : engine_.clone(), device().index());
  if (philox_) *out->philox_ = *philox_;
  return out;
}

std::pair<uint64_t, uint64_t> NpuGenerator::draw_philox(uint64_t count) {
  std::lock_guard<std::mutex> lock(mutex_);
  TORCH_CHECK(philox_, "Only an Ascend device draws numbers of Philox.");
  const std::pair<uint64_t, uint64_t> out{philox_->seed, philox_->offset};
  philox_->offset += count;
  return out;
}

at::Generator NpuGenerator::engine() {
  if (!philox_) return engine_;
  const auto [seed, offset] = draw_philox(4);
  return at::detail::createCPUGenerator(seed ^ (offset * kMix));
}

at::Generator new_generator(c10::DeviceIndex device) {
  return at::make_generator<NpuGenerator>(
      opaque_memory() ? at::Generator() : at::detail::createCPUGenerator(),
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
  return generator.get<NpuGenerator>()->engine();
}

}  // namespace mindspeed_ms
