// aclTensor & co.: their creation, their end, their views of the device's bytes, and the checks that read
// them.
#include <ATen/native/Resize.h>

#include <mutex>
#include <numeric>

#include "executor.h"
#include "op.h"

namespace opapi {

at::ScalarType scalar_type(int acl_dtype) {  // aclDataType, acl_base.h
  switch (acl_dtype) {
    case 0:
      return at::kFloat;
    case 1:
      return at::kHalf;
    case 2:
      return at::kChar;
    case 3:
      return at::kInt;
    case 4:
      return at::kByte;
    case 6:
      return at::kShort;
    case 7:
      return at::kUInt16;
    case 8:
      return at::kUInt32;
    case 9:
      return at::kLong;
    case 10:
      return at::kUInt64;
    case 11:
      return at::kDouble;
    case 12:
      return at::kBool;
    case 16:
      return at::kComplexFloat;
    case 17:
      return at::kComplexDouble;
    case 27:
      return at::kBFloat16;
    default:
      throw std::runtime_error("aclDataType " + std::to_string(acl_dtype) + " is not simulated");
  }
}

Tensor view_of(const aclTensor* t) {
  if (!t) throw std::runtime_error("a tensor that must not be null is null");
  auto options = at::TensorOptions().dtype(scalar_type(t->dtype));
  if (std::find(t->shape.begin(), t->shape.end(), 0) != t->shape.end()) return at::empty(t->shape, options);
  if (!t->data) throw std::runtime_error("a tensor without memory");
  if (!sim::on_device(t->data)) throw std::runtime_error("a tensor in host memory");
  char* p = static_cast<char*>(sim::bytes_of(t->data)) + t->offset * c10::elementSize(scalar_type(t->dtype));
  return at::from_blob(p, t->shape, t->stride, options);
}

std::vector<Tensor> Tensors::operator()() const {
  std::vector<Tensor> views;
  for (auto* t : p->tensors) views.push_back(view_of(t));
  return views;
}

Tensor wide(const Tensor& t) {
  return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16 ? t.to(at::kFloat) : t;
}

void put(Out out, const Tensor& result) {
  Tensor to = out();
  if (to.sizes() != result.sizes())
    throw std::runtime_error("the result is " + c10::str(result.sizes()) + ", the output " +
                             c10::str(to.sizes()));
  to.copy_(result);
}

void put_all(Tensors outs, const std::vector<Tensor>& results) {
  if (outs.size() != results.size()) throw std::runtime_error("a list of outputs of the wrong length");
  for (size_t i = 0; i < results.size(); ++i) put(Out{outs[i]}, results[i]);
}

void put_shaped(Out out, const Tensor& result) {
  auto* t = const_cast<aclTensor*>(out.p);
  t->shape = result.sizes().vec();
  t->stride = at::detail::defaultStrides(result.sizes());
  if (result.numel()) view_of(t).copy_(result);
}

static unsigned type_bit(int acl_dtype) {
  switch (acl_dtype) {
    case 0:
      return kF32;
    case 1:
      return kF16;
    case 2:
      return kI8;
    case 3:
      return kI32;
    case 4:
      return kU8;
    case 6:
      return kI16;
    case 9:
      return kI64;
    case 11:
      return kF64;
    case 12:
      return kBool;
    case 16:
      return kC64;
    case 17:
      return kC128;
    case 27:
      return kBF16;
    default:
      return kOther;
  }
}

static std::string operator_name(const char* function) { return std::string(sim::kernel_name(function)); }

// The i-th name of "self, other, out".
static std::string nth_name(const char* names, size_t i) {
  std::string text = names;
  for (; i; --i) text = text.substr(text.find(',') + 2);
  return text.substr(0, text.find(','));
}

std::string shape_text(const aclTensor* t) { return t ? c10::str(at::IntArrayRef(t->shape)) : "null"; }

int refuse(const char* function, const std::string& why) {
  return sim::fail(sim::kInvalidOperator, operator_name(function) + ": " + why);
}

int refuse_types(const char* function, const char* names, unsigned allowed,
                 std::initializer_list<const aclTensor*> tensors) {
  size_t i = 0;
  for (auto* t : tensors) {
    if (t && !(type_bit(t->dtype) & allowed))
      return refuse(function, nth_name(names, i) + " must not be " + c10::toString(scalar_type(t->dtype)));
    ++i;
  }
  return sim::kOk;
}

int refuse_shapes(const char* function, const char* names, std::initializer_list<const aclTensor*> tensors) {
  const aclTensor* first = *tensors.begin();
  size_t i = 0;
  for (auto* t : tensors) {
    if (t && t->shape != first->shape)
      return refuse(function, nth_name(names, i) + " is " + shape_text(t) + ", " + nth_name(names, 0) +
                                  " is " + shape_text(first) + ": they must be equal");
    ++i;
  }
  return sim::kOk;
}

}  // namespace opapi

using opapi::when_unused;

API aclTensor* aclCreateTensor(const int64_t* dims, uint64_t n, int dtype, const int64_t* strides,
                               int64_t offset, int format, const int64_t* storage, uint64_t storage_n,
                               void* data) {
  auto* t = new aclTensor;
  t->shape.assign(dims, dims + n);
  t->stride = strides ? std::vector<int64_t>(strides, strides + n) : at::detail::defaultStrides(t->shape);
  t->storage.assign(storage, storage + storage_n);
  t->offset = offset;
  t->dtype = dtype;
  t->format = format;
  t->data = data;
  return t;
}
static void release(const aclTensor* t) {
  if (t && --const_cast<aclTensor*>(t)->references == 0) delete t;
}
API int aclDestroyTensor(const aclTensor* t) {  // null: an optional argument that is None
  when_unused([t] { release(t); });
  return 0;
}

template <class T>
static at::Scalar number(const void* value) {
  return at::Scalar(*static_cast<const T*>(value));
}
API aclScalar* aclCreateScalar(void* v, int dtype) {
  auto value = [&]() -> at::Scalar {
    switch (dtype) {
      case 0:
        return number<float>(v);
      case 1:
        return number<c10::Half>(v);
      case 2:
        return number<int8_t>(v);
      case 3:
        return number<int32_t>(v);
      case 4:
        return number<uint8_t>(v);
      case 6:
        return number<int16_t>(v);
      case 8:
        return static_cast<int64_t>(*static_cast<uint32_t*>(v));
      case 9:
        return number<int64_t>(v);
      case 10:
        return static_cast<int64_t>(*static_cast<uint64_t*>(v));
      case 11:
        return number<double>(v);
      case 12:
        return number<bool>(v);
      case 27:
        return number<c10::BFloat16>(v);
      default:
        sim::fail(sim::kInvalidParam, "aclCreateScalar: dtype " + std::to_string(dtype));
        return 0;
    }
  }();
  return new aclScalar{dtype, value};
}

#define DESTROY(function, type)     \
  API int function(const type* p) { \
    when_unused([p] { delete p; }); \
    return 0;                       \
  }
DESTROY(aclDestroyScalar, aclScalar)
DESTROY(aclDestroyIntArray, aclIntArray)
DESTROY(aclDestroyFloatArray, aclFloatArray)
DESTROY(aclDestroyBoolArray, aclBoolArray)
DESTROY(aclDestroyScalarList, aclScalarList)
API aclIntArray* aclCreateIntArray(const int64_t* v, uint64_t n) { return new aclIntArray{{v, v + n}}; }
API aclFloatArray* aclCreateFloatArray(const float* v, uint64_t n) { return new aclFloatArray{{v, v + n}}; }
API aclBoolArray* aclCreateBoolArray(const bool* v, uint64_t n) { return new aclBoolArray{{v, v + n}}; }
API aclScalarList* aclCreateScalarList(const aclScalar* const* v, uint64_t n) {
  auto* list = new aclScalarList;
  for (uint64_t i = 0; i < n; ++i) list->scalars.push_back(const_cast<aclScalar*>(v[i]));
  return list;
}
API aclTensorList* aclCreateTensorList(const aclTensor* const* v, uint64_t n) {
  auto* list = new aclTensorList;
  for (uint64_t i = 0; i < n; ++i) list->tensors.push_back(const_cast<aclTensor*>(v[i]));
  return list;
}
API int aclDestroyTensorList(const aclTensorList* list) {
  when_unused([list] {
    if (!list) return;
    for (auto* t : list->tensors) release(t);
    delete list;
  });
  return 0;
}
API int aclGetViewShape(const aclTensor* t, int64_t** dims, uint64_t* n) {
  *n = t->shape.size();
  *dims = new int64_t[*n + 1];
  std::copy(t->shape.begin(), t->shape.end(), *dims);
  return 0;
}
