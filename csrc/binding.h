#pragma once
#include <pybind11/pybind11.h>

#include <array>
#include <string>
#include <utility>

#include "named_codes.h"

// What both submodules of `_native` are bound with.
namespace mindspeed_ms {

// {name: code} of an enum made by NAMED_CODES.
template <Code T>
pybind11::dict codes() {
  pybind11::dict out;
  for (std::size_t i = 0; i < count_names(names_of(T{})); ++i)
    out[pybind11::str(name_at(names_of(T{}), i))] = i;
  return out;
}

// Defines a function that runs without the GIL; `names` ("a, b, c") are those of its parameters, for
// keywords.
template <class R, class... Args>
void define(pybind11::module_& m, const char* name, R (*function)(Args...), std::string_view names) {
  std::array<std::string, sizeof...(Args)> each;
  for (std::size_t i = 0; i < each.size(); ++i) each[i] = name_at(names, i);
  [&]<std::size_t... i>(std::index_sequence<i...>) {
    m.def(name, function, pybind11::arg(each[i].c_str())...,
          pybind11::call_guard<pybind11::gil_scoped_release>());
  }
  (std::index_sequence_for<Args...>{});
}

template <class R, class... Args>
constexpr std::size_t arity(R (*)(Args...)) {
  return sizeof...(Args);
}

}  // namespace mindspeed_ms

// define() with the names checked against the number of parameters: DEFINE_WITH_NAMES(m, "norm", &norm, x,
// weight, y).
#define DEFINE_WITH_NAMES(module, name, function, ...)                                                 \
  do {                                                                                                 \
    static_assert(::mindspeed_ms::count_names(#__VA_ARGS__) == ::mindspeed_ms::arity(function), name); \
    ::mindspeed_ms::define(module, name, function, #__VA_ARGS__);                                      \
  } while (false)

#if PYBIND11_VERSION_MAJOR >= 3  // which would take any enum for one of Python
template <mindspeed_ms::Code T>
struct pybind11::detail::type_caster_enum_type_enabled<T> : std::false_type {};
#endif

// A code comes as a Python int; one that the enum does not have is a TypeError.
template <mindspeed_ms::Code T>
struct pybind11::detail::type_caster<T> {
  PYBIND11_TYPE_CASTER(T, const_name("int"));

  bool load(handle source, bool convert) {
    make_caster<int> number;
    if (!number.load(source, convert)) return false;
    const int code = cast_op<int>(number);
    value = static_cast<T>(code);
    return code >= 0 && code < static_cast<int>(mindspeed_ms::count_names(names_of(T{})));
  }

  static handle cast(T code, return_value_policy, handle) { return PyLong_FromLong(static_cast<long>(code)); }
};
