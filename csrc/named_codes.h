#pragma once
#include <cstddef>
#include <string>
#include <string_view>

// Enums that callers pass as integers. The list of enumerators is also the list of their names, which Python
// reads as a dict (csrc/binding.h): `_native.kernels.UNARY["exp"]`. A code is typed nowhere else.
#define NAMED_CODES(Type, ...)           \
  enum class Type : int { __VA_ARGS__ }; \
  constexpr std::string_view names_of(Type) { return #__VA_ARGS__; }

namespace mindspeed_ms {

template <class T>
concept Code = requires {
  names_of(T{});
};

// The `index`-th name of a list "a, b, c"; empty beyond its end. A name that C++ has taken for itself ends in
// an underscore there (bool_), which is not part of it.
constexpr std::string_view name_at(std::string_view names, std::size_t index) {
  for (; index > 0; --index) {
    const std::size_t comma = names.find(',');
    if (comma == names.npos) return {};
    names.remove_prefix(comma + 1);
  }
  names = names.substr(0, names.find(','));
  while (names.starts_with(' ')) names.remove_prefix(1);
  while (names.ends_with('_')) names.remove_suffix(1);
  return names;
}

constexpr std::size_t count_names(std::string_view names) {
  std::size_t count = 0;
  while (!name_at(names, count).empty()) ++count;
  return count;
}

template <Code T>
std::string name_of(T code) {
  return std::string(name_at(names_of(code), static_cast<std::size_t>(code)));
}

}  // namespace mindspeed_ms
