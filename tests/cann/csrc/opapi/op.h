// What an operator of the simulated libopapi.so is written with.
//
// aclnn has two phases: aclnnXGetWorkspaceSize checks its arguments and makes an executor, aclnnX puts the
// executor's kernel on a stream. ACLNN(aclnnX, arguments) opens a function that is the first phase; it
// returns through KERNEL, whose statements are the second. Values come from ATen's CPU kernels over views of
// the device's bytes.
#pragma once
#include <ATen/ATen.h>

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "../sim.h"

struct aclTensor {
  std::vector<int64_t> shape, stride, storage;
  int64_t offset;
  int dtype, format;
  void* data;
  std::atomic<int> references{1};
};
struct aclScalar {
  int dtype;
  at::Scalar value;
};
struct aclIntArray {
  std::vector<int64_t> values;
};
struct aclFloatArray {
  std::vector<float> values;
};
struct aclBoolArray {
  std::vector<char> values;
};
struct aclTensorList {
  std::vector<aclTensor*> tensors;
};
struct aclScalarList {
  std::vector<aclScalar*> scalars;
};
struct aclOpExecutor;
enum aclDataType : int {};

namespace opapi {

using at::Scalar;
using at::Tensor;

at::ScalarType scalar_type(int acl_dtype);
Tensor view_of(const aclTensor* t);

// The arguments: one pointer each, as the C API passes them. An optional argument may be null.
struct In {
  const aclTensor* p;
  Tensor operator()() const { return view_of(p); }
  explicit operator bool() const { return p; }
  operator const aclTensor*() const { return p; }
  at::ScalarType type() const { return scalar_type(p->dtype); }
  int64_t dim() const { return p->shape.size(); }
  int64_t size(int64_t i) const { return p->shape[i < 0 ? i + dim() : i]; }
};
struct Out : In {};
struct Num {
  const aclScalar* p;
  Scalar operator()() const { return p->value; }
  explicit operator bool() const { return p; }
  std::optional<Scalar> maybe() const { return p ? std::optional<Scalar>(p->value) : std::nullopt; }
};
struct Ints {
  const aclIntArray* p;
  at::IntArrayRef operator()() const { return p ? at::IntArrayRef(p->values) : at::IntArrayRef(); }
  explicit operator bool() const { return p; }
};
struct Bools {
  const aclBoolArray* p;
  bool operator[](size_t i) const { return !p || p->values[i]; }
};
struct Tensors {
  const aclTensorList* p;
  explicit operator bool() const { return p; }
  size_t size() const { return p ? p->tensors.size() : 0; }
  In operator[](size_t i) const { return In{p->tensors[i]}; }
  std::vector<Tensor> operator()() const;
};

// ---- values
// ------------------------------------------------------------------------------------------------------- The
// chip sums and computes 16-bit floats in fp32.
Tensor wide(const Tensor& t);
inline Tensor wide(In t) { return wide(t()); }
inline std::optional<Tensor> maybe_wide(In t) { return t ? std::optional<Tensor>(wide(t)) : std::nullopt; }
inline std::optional<Tensor> maybe(In t) { return t ? std::optional<Tensor>(t()) : std::nullopt; }
inline Tensor indices(In t) { return t().to(at::kLong); }

// Writes a result, cast to the type of the output; the shapes must be equal.
void put(Out out, const Tensor& result);
inline void put_if(Out out, const Tensor& result) {
  if (out) put(out, result);
}
void put_all(Tensors outs, const std::vector<Tensor>& results);
// For outputs whose shape only the kernel knows: MindSpore hands over the largest, waits, asks
// aclGetViewShape.
void put_shaped(Out out, const Tensor& result);

// ---- limits
// -------------------------------------------------------------------------------------------------------
enum Types : unsigned {
  kF32 = 1,
  kF16 = 2,
  kBF16 = 4,
  kF64 = 8,
  kI8 = 16,
  kI16 = 32,
  kI32 = 64,
  kI64 = 128,
  kU8 = 256,
  kBool = 512,
  kC64 = 1024,
  kC128 = 2048,
  kOther = 4096,
  kHalves = kF16 | kBF16,
  kFloats = kF32 | kHalves,
  kSigned = kI8 | kI16 | kI32 | kI64,
  kIntegers = kSigned | kU8,
  kReals = kFloats | kF64 | kIntegers | kBool,
  kAny = kReals | kC64 | kC128,
  kIndex = kI32 | kI64,
};
int refuse(const char* function, const std::string& why);
int refuse_types(const char* function, const char* names, unsigned allowed,
                 std::initializer_list<const aclTensor*> tensors);
int refuse_shapes(const char* function, const char* names, std::initializer_list<const aclTensor*> tensors);
std::string shape_text(const aclTensor* t);

// ---- the two phases
// -----------------------------------------------------------------------------------------------
int plan(const char* function, uint64_t* workspace, aclOpExecutor** executor, std::function<void()> kernel,
         bool needed_in_null_mode = false, bool collective = false);
int run(aclOpExecutor* executor, void* stream);

// The C types of an operator as the mangled names of MindSpore spell them, for the check of the ABI.
template <class T>
constexpr const char* abi_name() {
  if constexpr (std::is_same_v<T, In> || std::is_same_v<T, Out>)
    return "aclTensor*";
  else if constexpr (std::is_same_v<T, Num>)
    return "aclScalar*";
  else if constexpr (std::is_same_v<T, Ints>)
    return "aclIntArray*";
  else if constexpr (std::is_same_v<T, Bools>)
    return "aclBoolArray*";
  else if constexpr (std::is_same_v<T, Tensors>)
    return "aclTensorList*";
  else if constexpr (std::is_same_v<T, aclDataType>)
    return "aclDataType";
  else if constexpr (std::is_same_v<T, const char*>)
    return "char const*";
  else if constexpr (std::is_same_v<T, double>)
    return "double";
  else if constexpr (std::is_same_v<T, float>)
    return "float";
  else if constexpr (std::is_same_v<T, bool>)
    return "bool";
  else if constexpr (std::is_same_v<T, int8_t>)
    return "signed char";
  else if constexpr (std::is_same_v<T, int>)
    return "int";
  else if constexpr (std::is_same_v<T, int64_t>)
    return "long";
  else
    return static_cast<const char*>(std::is_same_v<T, uint64_t> ? "unsigned long" : "?");
}
void register_signature(const char* name, const std::string& types);
template <class... A>
int register_types(const char* name, int (*)(A...)) {
  std::string types;
  ((types += (types.empty() ? "" : ", ") + std::string(abi_name<A>())), ...);
  register_signature(name, types);
  return 0;
}

}  // namespace opapi

#define ACLNN(name, ...)                                                        \
  API int name(void*, uint64_t, aclOpExecutor* executor, void* stream) {        \
    return opapi::run(executor, stream);                                        \
  }                                                                             \
  static const int signature_of_##name =                                        \
      opapi::register_types(#name, static_cast<int (*)(__VA_ARGS__)>(nullptr)); \
  API int name##GetWorkspaceSize(__VA_ARGS__, uint64_t* workspace, aclOpExecutor** executor)
#define KERNEL(...) return opapi::plan(__func__, workspace, executor, [=] { __VA_ARGS__; })
#define KERNEL_WITH_SHAPE(...) \
  return opapi::plan(          \
      __func__, workspace, executor, [=] { __VA_ARGS__; }, true)
// Runs in null mode, too, where `out` has whole numbers: what a program decides by them stays as it is.
#define KERNEL_INTO(out, ...) \
  return opapi::plan(         \
      __func__, workspace, executor, [=] { __VA_ARGS__; }, !at::isFloatingType((out).type()))
#define COLLECTIVE_KERNEL(...) \
  return opapi::plan(          \
      __func__, workspace, executor, [=] { __VA_ARGS__; }, false, true)
#define REQUIRE(condition, ...) \
  if (!(condition)) return opapi::refuse(__func__, __VA_ARGS__)
#define TYPES(allowed, ...) \
  if (int error = opapi::refuse_types(__func__, #__VA_ARGS__, (allowed), {__VA_ARGS__})) return error
#define SAME_SHAPES(...) \
  if (int error = opapi::refuse_shapes(__func__, #__VA_ARGS__, {__VA_ARGS__})) return error
