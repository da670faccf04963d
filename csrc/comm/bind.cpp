#include "native.h"

namespace mindspeed_ms {

void bind_comm(pybind11::module_&) {}

}  // namespace mindspeed_ms
