"""``import mindspeed_ms.patch``: the one line at the top of a CUDA Megatron script.

It registers device ``npu``, makes the names of CUDA mean it, offers the torch.distributed backend, and arms
the patches of torch and Megatron. Beyond torch it imports nothing heavy: MindSpore starts with the first
operator that runs on it, Megatron's modules are patched when the script imports them (or at once, if it
already has).
"""

from mindspeed_ms.config import settings, versions

versions.check()
settings.check()

# the versions come first: their message is the clear one
from mindspeed_ms import comm, device, ops  # noqa: E402
from mindspeed_ms.comm import spawned  # noqa: E402
from mindspeed_ms.config import launch  # noqa: E402
from mindspeed_ms.patches import registry, verify  # noqa: E402
from mindspeed_ms.routes import coverage  # noqa: E402

launch.adopt_msrun_environment()  # first: the device count is one of its variables
device.enable(ops.register)
device.redirect_cuda()
comm.register()
registry.arm()
spawned.switch_on()
verify.warn_of_new_release()

coverage.write_at_exit()
