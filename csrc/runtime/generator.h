#pragma once
#include <ATen/core/Generator.h>

#include <memory>
#include <utility>

#include "runtime/device.h"

namespace mindspeed_ms {

// Generator of the npu device.
//
// On host memory it wraps torch's CPU engine (Mersenne Twister), so a seed gives on the host route the very
// numbers that plain torch gives on CPU: loss curves with dropout stay comparable. On Ascend it is the seed
// and the offset of the Philox engine that the device's operators have; its state is that of a CUDA
// generator.
class NpuGenerator final : public c10::GeneratorImpl {
 public:
  // `engine`: undefined for Philox.
  NpuGenerator(at::Generator engine, c10::DeviceIndex device);

  void set_current_seed(uint64_t seed) override;
  void set_offset(uint64_t offset) override;
  uint64_t get_offset() const override;
  uint64_t current_seed() const override;
  uint64_t seed() override;
  void set_state(const c10::TensorImpl& state) override;
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override;
  void graphsafe_set_state(const c10::intrusive_ptr<c10::GeneratorImpl>& state) override;
  c10::intrusive_ptr<c10::GeneratorImpl> graphsafe_get_state() const override;

  // CPU generator for torch's CPU kernels; that of Philox is a new one, seeded by its next numbers.
  at::Generator engine();

  // Seed and offset of the next `count` numbers of each element; the generator goes on after them.
  std::pair<uint64_t, uint64_t> draw_philox(uint64_t count);

 private:
  NpuGenerator* clone_impl() const override;
  at::Generator engine_;
  struct Philox {
    uint64_t seed = c10::detail::getNonDeterministicRandom(), offset = 0;
  };
  std::shared_ptr<Philox> philox_;  // shared where graphsafe_set_state says so
};

const at::Generator& default_generator(c10::DeviceIndex device);
at::Generator new_generator(c10::DeviceIndex device);

// A CPU generator that stands for an npu generator; a CPU generator is returned as it is.
at::Generator engine_of(const at::Generator& generator);

}  // namespace mindspeed_ms
