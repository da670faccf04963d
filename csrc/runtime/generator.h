#pragma once
#include <ATen/core/Generator.h>

#include "runtime/device.h"

namespace mindspeed_ms {

// Generator of the npu device. It wraps torch's CPU engine (Mersenne Twister), so a seed gives on the host
// route the very numbers that plain torch gives on CPU: loss curves with dropout stay comparable.
class NpuGenerator final : public c10::GeneratorImpl {
 public:
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

  // CPU generator that the host route hands to torch's CPU kernels.
  const at::Generator& engine() const { return engine_; }

 private:
  NpuGenerator* clone_impl() const override;
  at::Generator engine_;
};

const at::Generator& default_generator(c10::DeviceIndex device);
at::Generator new_generator(c10::DeviceIndex device);

// The CPU engine behind an npu generator; a CPU generator is returned as it is.
at::Generator engine_of(const at::Generator& generator);

}  // namespace mindspeed_ms
