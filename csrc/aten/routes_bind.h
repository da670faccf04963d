#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "aten/routes.h"

namespace mindspeed_ms {

// Adds the choice of implementation and what is counted to the extension's module.
void bind_routes(pybind11::module_& m);

// Raises ValueError for a name that is not a route.
Route route_of(const std::string& name);
uint64_t dtype_mask(const pybind11::iterable& dtypes);

}  // namespace mindspeed_ms
