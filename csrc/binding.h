#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

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

// A function of pybind11 and the names of its parameters. pybind11 makes a string for each name at each call
// to look it up (4.5 us for 15 names); here names are interned and mostly given in order (0.1 us).
struct Named {
  pybind11::object function;
  std::vector<PyObject*> names;  // interned: they live as long as the process
  PyMethodDef definition;

  std::size_t index_of(PyObject* name, std::size_t guess) const {
    if (guess < names.size() && names[guess] == name) return guess;
    const auto found = std::find_if(names.begin(), names.end(), [name](PyObject* each) {
      return each == name || PyUnicode_Compare(each, name) == 0;
    });
    return static_cast<std::size_t>(found - names.begin());
  }
};

constexpr std::size_t kMostParameters = 32;

inline PyObject* call_named(PyObject* self, PyObject* const* args, Py_ssize_t positional,
                            PyObject* keywords) {
  const auto& named = *static_cast<const Named*>(PyCapsule_GetPointer(self, nullptr));
  const auto given = static_cast<std::size_t>(positional);
  std::size_t count = given;
  std::array<PyObject*, kMostParameters> ordered{};
  if (given <= named.names.size()) std::copy(args, args + given, ordered.begin());
  const std::size_t by_name = keywords == nullptr ? 0 : static_cast<std::size_t>(PyTuple_GET_SIZE(keywords));
  if (by_name == 0) return PyObject_Vectorcall(named.function.ptr(), args, given, nullptr);
  for (std::size_t i = 0; i < by_name; ++i) {
    PyObject* name = PyTuple_GET_ITEM(keywords, static_cast<Py_ssize_t>(i));
    const std::size_t at = named.index_of(name, given + i);
    if (at >= named.names.size() || given > named.names.size() || ordered[at] != nullptr) {
      return PyErr_Format(PyExc_TypeError, "%s takes no further argument %R", named.definition.ml_name, name);
    }
    ordered[at] = args[given + i];
    count = std::max(count, at + 1);
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (ordered[i] == nullptr)
      return PyErr_Format(PyExc_TypeError, "%s misses argument %R", named.definition.ml_name, named.names[i]);
  }
  return PyObject_Vectorcall(named.function.ptr(), ordered.data(), count, nullptr);
}

// Defines a function that runs without the GIL; `names` ("a, b, c") are those of its parameters, for
// keywords.
template <class R, class... Args>
void define(pybind11::module_& m, const char* name, R (*function)(Args...), std::string_view names) {
  static_assert(sizeof...(Args) <= kMostParameters);
  std::array<std::string, sizeof...(Args)> each;
  for (std::size_t i = 0; i < each.size(); ++i) each[i] = name_at(names, i);
  [&]<std::size_t... i>(std::index_sequence<i...>) {
    m.def(name, function, pybind11::arg(each[i].c_str())...,
          pybind11::call_guard<pybind11::gil_scoped_release>());
  }
  (std::index_sequence_for<Args...>{});
  auto* named = new Named{m.attr(name), {}, {}};
  for (const auto& one : each) named->names.push_back(PyUnicode_InternFromString(one.c_str()));
  const auto doc = named->function.attr("__doc__").template cast<std::string>();
  named->definition = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&call_named)),
                       METH_FASTCALL | METH_KEYWORDS, strdup(doc.c_str())};
  const pybind11::capsule self(named, static_cast<void (*)(void*)>(nullptr));
  m.attr(name) = pybind11::reinterpret_steal<pybind11::object>(
      PyCFunction_NewEx(&named->definition, self.ptr(), pybind11::str(m.attr("__name__")).ptr()));
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
