#pragma once
#include <c10/core/Device.h>
#include <c10/core/Stream.h>

namespace mindspeed_ms {

// The torch device type behind the name "npu".
constexpr c10::DeviceType kNpu = c10::DeviceType::PrivateUse1;

// Number of npu devices that this process sees. On the CPU target it is the number of ranks of this host, so
// that `torch.cuda.set_device(local_rank)` of a stock script holds; every index is the same host memory.
c10::DeviceIndex device_count() noexcept;
void set_device_count(c10::DeviceIndex count);

// This process has one card for all its threads; it can be chosen until the first use of the device.
void use_one_card(c10::DeviceIndex card);

// Current device of this thread.
c10::DeviceIndex current_device() noexcept;
void set_current_device(c10::DeviceIndex index);
c10::DeviceIndex exchange_device(c10::DeviceIndex index);
// Whether set_current_device() would take it.
bool may_choose(c10::DeviceIndex index) noexcept;

// True in a child made by fork() after the device was used: MindSpore's threads do not survive a fork and its
// first operator would hang, so the child must not touch the device.
bool in_bad_fork() noexcept;

// Called once before the first allocation or operator on the device; imports MindSpore and its lowerings.
void ensure_initialized();
bool is_initialized() noexcept;

// Python callable run by the first ensure_initialized().
void set_initializer(void* callable);

}  // namespace mindspeed_ms
