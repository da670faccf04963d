// The single-operator API (aclop), the way of MindSpore's legacy primitives, which a chip compiles online.
#include <dlfcn.h>

#include <mutex>
#include <set>

#include "../sim.h"

namespace sim {
AclopKernel aclop_kernel = nullptr;
}
using namespace sim;

API size_t aclDataTypeSize(int type) {
  switch (type) {
    case 2:
    case 4:
    case 12:
      return 1;  // int8, uint8, bool
    case 1:
    case 6:
    case 7:
    case 27:
      return 2;  // fp16, int16, uint16, bf16
    case 0:
    case 3:
    case 8:
      return 4;  // fp32, int32, uint32
    case 9:
    case 10:
    case 11:
    case 16:
      return 8;
    case 17:
      return 16;
    default:
      return 0;
  }
}
API Desc* aclCreateTensorDesc(int dtype, int n, const int64_t* dims, int format) {
  return new Desc{dtype, std::vector<int64_t>(dims, dims + (dims ? n : 0)), format, "", nullptr, 0};
}
API void aclDestroyTensorDesc(Desc* d) { delete d; }
API int aclSetTensorShape(Desc*, int, const int64_t*) { return kOk; }  // the storage's shape
API int aclSetTensorFormat(Desc*, int) { return kOk; }
API int aclSetTensorPlaceMent(Desc*, int) { return kOk; }
API void aclSetTensorDescName(Desc* d, const char* name) { d->name = name ? name : ""; }
API int aclSetTensorConst(Desc* d, void* data, size_t size) {
  d->constant = data;
  d->constant_size = size;
  return kOk;
}
API size_t aclGetTensorDescNumDims(Desc* d) { return d->dims.size(); }
API int64_t aclGetTensorDescDim(Desc* d, size_t i) { return d->dims[i]; }
API int aclGetTensorDescDimV2(Desc* d, size_t i, int64_t* value) {
  *value = d->dims[i];
  return kOk;
}
API size_t aclGetTensorDescSize(Desc* d) {
  size_t size = aclDataTypeSize(d->dtype);
  for (auto dim : d->dims) size *= dim;
  return size;
}
API int aclGetTensorDescType(Desc* d) { return d->dtype; }
API Buffer* aclCreateDataBuffer(void* data, size_t size) { return new Buffer{data, size}; }
API int aclDestroyDataBuffer(Buffer* b) {
  delete b;
  return kOk;
}
API void* aclGetDataBufferAddr(Buffer* b) { return b->data; }
API int aclUpdateDataBuffer(Buffer* b, void* data, size_t size) {
  *b = {data, size};
  return kOk;
}

API Attributes* aclopCreateAttr() { return new Attributes; }
API void aclopDestroyAttr(Attributes* a) { delete a; }
API int aclopSetAttrBool(Attributes* a, const char* name, uint8_t v) {
  a->ints[name] = v;
  return kOk;
}
API int aclopSetAttrInt(Attributes* a, const char* name, int64_t v) {
  a->ints[name] = v;
  return kOk;
}
API int aclopSetAttrDataType(Attributes* a, const char* name, int v) {
  a->ints[name] = v;
  return kOk;
}
API int aclopSetAttrFloat(Attributes* a, const char* name, float v) {
  a->floats[name] = v;
  return kOk;
}
API int aclopSetAttrString(Attributes* a, const char* name, const char* v) {
  a->strings[name] = v;
  return kOk;
}
API int aclopSetAttrListInt(Attributes* a, const char* name, int n, const int64_t* v) {
  a->int_lists[name].assign(v, v + n);
  return kOk;
}
API int aclopSetAttrListBool(Attributes* a, const char* name, int n, const uint8_t* v) {
  a->int_lists[name].assign(v, v + n);
  return kOk;
}
API int aclopSetAttrListFloat(Attributes* a, const char* name, int n, const float* v) {
  a->float_lists[name].assign(v, v + n);
  return kOk;
}

API int aclopCompileAndExecuteV2(const char* type, int ins, Desc** in, Buffer** in_data, int outs, Desc** out,
                                 Buffer** out_data, Attributes* attributes, int, int, const char*,
                                 void* stream) {
  if (!aclop_kernel) dlopen("libopapi.so", RTLD_NOW);
  if (!aclop_kernel)
    return fail(kFeatureNotSupported, std::string("aclop ") + type + ": libopapi.so does not load");
  AclopCall call;
  call.type = type;
  for (int i = 0; i < ins; ++i) {
    call.in.push_back(*in[i]);
    call.in_data.push_back(*in_data[i]);
  }
  for (int i = 0; i < outs; ++i) {
    call.out.push_back(*out[i]);
    call.out_data.push_back(*out_data[i]);
  }
  if (attributes) call.attributes = *attributes;
  SIM_TRACE("aclop %s, %d inputs", type, ins);
  count(Count::kKernels);
  count(Count::kAclopKernels);
  static auto* names = new std::set<std::string>;  // never destroyed: count_launch keeps the pointers
  static std::mutex names_mutex;
  const char* name;
  {
    std::lock_guard<std::mutex> lock(names_mutex);
    name = names->insert("aclop " + call.type).first->c_str();
  }
  count_launch(name);
  if (settings().null) return kOk;
  enqueue(
      stream, [call = std::move(call)] { aclop_kernel(call); }, name);
  return kOk;
}
API int aclopCompileAndExecute(const char* type, int ins, Desc** in, Buffer** in_data, int outs, Desc** out,
                               Buffer** out_data, Attributes* attributes, int engine, int compile,
                               const char* path, void* stream) {
  return aclopCompileAndExecuteV2(type, ins, in, in_data, outs, out, out_data, attributes, engine, compile,
                                  path, stream);
}
