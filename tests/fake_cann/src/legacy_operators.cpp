// libascendcl.so: the older "aclop" path. torch_npu takes it for BroadcastTo, which has no aclnn
// name, and for any operator whose aclnn name is missing from libopapi.so: then all that this file
// does is to say which one was wanted.
#include "faults.h"
#include "options.h"
#include "streams.h"

#include <acl/acl_op_compiler.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using namespace fake_cann;

namespace {

constexpr int kNotEmulated = 97;

struct Description {
  aclDataType type;
  std::vector<int64_t> dimensions;
  aclFormat format;
};

struct Buffer {
  void* data;
  size_t bytes;
};

// How many bytes one element of the type has; 0 for types that no broadcast meets.
size_t element_bytes(aclDataType type) {
  switch (type) {
    case ACL_BOOL:
    case ACL_INT8:
    case ACL_UINT8: return 1;
    case ACL_FLOAT16:
    case ACL_BF16:
    case ACL_INT16: return 2;
    case ACL_FLOAT:
    case ACL_INT32: return 4;
    case ACL_DOUBLE:
    case ACL_INT64: return 8;
    default: return 0;
  }
}

// Copies a contiguous tensor into a larger contiguous one, repeating dimensions of size 1.
void broadcast(const Description& from, const char* source, const Description& to, char* target) {
  size_t bytes = element_bytes(from.type), missing = to.dimensions.size() - from.dimensions.size();
  int64_t elements = 1;
  for (int64_t size : to.dimensions) elements *= size;
  for (int64_t element = 0; element < elements; ++element) {
    int64_t rest = element, position = 0, stride = 1;
    for (size_t dim = to.dimensions.size(); dim-- > missing;) {
      int64_t index = rest % to.dimensions[dim], size = from.dimensions[dim - missing];
      rest /= to.dimensions[dim];
      position += size == 1 ? 0 : index * stride;
      stride *= size;
    }
    memcpy(target + element * bytes, source + position * bytes, bytes);
  }
}

const Description* description_of(const aclTensorDesc* handle) {
  return reinterpret_cast<const Description*>(handle);
}

aclError not_emulated(const char* name) {
  fprintf(stderr, "[fake_cann] operator not emulated: aclop %s\n", name);
  if (options().strict) {
    fflush(nullptr);
    _exit(kNotEmulated);
  }
  return fail(ACL_ERROR_OP_NOT_FOUND, std::string("operator not emulated: aclop ") + name);
}

const Buffer* buffer_of(const aclDataBuffer* handle) {
  return reinterpret_cast<const Buffer*>(handle);
}

aclError execute(const char* name, const aclTensorDesc* from, const aclDataBuffer* source,
                 const aclTensorDesc* to, const aclDataBuffer* target, aclrtStream stream) {
  if (strcmp(name, "BroadcastTo") || !element_bytes(description_of(from)->type))
    return not_emulated(name);
  if (aclError error = device_error(stream_of(stream).device)) return error;
  auto run = [from = *description_of(from), to = *description_of(to),
              source = buffer_of(source)->data, target = buffer_of(target)->data](Stream&) {
    if (!options().no_compute)
      broadcast(from, static_cast<char*>(source), to, static_cast<char*>(target));
  };
  submit(stream, name, run, duration_ns(name));
  return ACL_SUCCESS;
}

}  // namespace

API aclError aclopCompileAndExecute(const char* name, int, const aclTensorDesc* const* inputs,
                                    const aclDataBuffer* const* sources, int,
                                    const aclTensorDesc* const* outputs,
                                    aclDataBuffer* const* targets, const aclopAttr*,
                                    aclopEngineType, aclopCompileType, const char*,
                                    aclrtStream stream) {
  return execute(name, inputs[0], sources[0], outputs[0], targets[0], stream);
}
API aclError aclopCompileAndExecuteV2(const char* name, int, aclTensorDesc** inputs,
                                      aclDataBuffer** sources, int, aclTensorDesc** outputs,
                                      aclDataBuffer** targets, aclopAttr*, aclopEngineType,
                                      aclopCompileType, const char*, aclrtStream stream) {
  return execute(name, inputs[0], sources[0], outputs[0], targets[0], stream);
}

API aclTensorDesc* aclCreateTensorDesc(aclDataType type, int count, const int64_t* dimensions,
                                       aclFormat format) {
  return reinterpret_cast<aclTensorDesc*>(
      new Description{type, {dimensions, dimensions + count}, format});
}
API void aclDestroyTensorDesc(const aclTensorDesc* handle) { delete description_of(handle); }
API aclDataType aclGetTensorDescType(const aclTensorDesc* handle) {
  return description_of(handle)->type;
}
API aclFormat aclGetTensorDescFormat(const aclTensorDesc* handle) {
  return description_of(handle)->format;
}
API size_t aclGetTensorDescNumDims(const aclTensorDesc* handle) {
  return description_of(handle)->dimensions.size();
}
API aclError aclGetTensorDescDimV2(const aclTensorDesc* handle, size_t index, int64_t* size) {
  *size = description_of(handle)->dimensions.at(index);
  return ACL_SUCCESS;
}
API void aclSetTensorDescName(aclTensorDesc*, const char*) {}
API_WITHOUT_EFFECT(aclSetTensorFormat(aclTensorDesc*, aclFormat))
API_WITHOUT_EFFECT(aclSetTensorPlaceMent(aclTensorDesc*, aclMemType))
API_WITHOUT_EFFECT(aclSetTensorShape(aclTensorDesc*, int, const int64_t*))
API aclDataBuffer* aclCreateDataBuffer(void* data, size_t bytes) {
  return reinterpret_cast<aclDataBuffer*>(new Buffer{data, bytes});
}
API aclError aclDestroyDataBuffer(const aclDataBuffer* buffer) {
  delete reinterpret_cast<const Buffer*>(buffer);
  return ACL_SUCCESS;
}
API aclopAttr* aclopCreateAttr() { return static_cast<aclopAttr*>(malloc(1)); }
API void aclopDestroyAttr(const aclopAttr* attribute) { free(const_cast<aclopAttr*>(attribute)); }
API_WITHOUT_EFFECT(aclopSetAttrBool(aclopAttr*, const char*, uint8_t))
API_WITHOUT_EFFECT(aclopSetAttrDataType(aclopAttr*, const char*, aclDataType))
API_WITHOUT_EFFECT(aclopSetAttrFloat(aclopAttr*, const char*, float))
API_WITHOUT_EFFECT(aclopSetAttrInt(aclopAttr*, const char*, int64_t))
API_WITHOUT_EFFECT(aclopSetAttrListBool(aclopAttr*, const char*, int, const uint8_t*))
API_WITHOUT_EFFECT(aclopSetAttrListFloat(aclopAttr*, const char*, int, const float*))
API_WITHOUT_EFFECT(aclopSetAttrListInt(aclopAttr*, const char*, int, const int64_t*))
API_WITHOUT_EFFECT(aclopSetAttrListListInt(aclopAttr*, const char*, int, const int*,
                                           const int64_t* const*))
API_WITHOUT_EFFECT(aclopSetAttrString(aclopAttr*, const char*, const char*))
