// libascendcl.so: the older "aclop" path. torch_npu takes it for an operator whose aclnn name is
// missing from libopapi.so; none is emulated, so all it has to do is to say which one was wanted.
#include "options.h"

#include <acl/acl_op_compiler.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
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

const Description* description_of(const aclTensorDesc* handle) { return reinterpret_cast<const Description*>(handle); }

aclError not_emulated(const char* name) {
  fprintf(stderr, "[fake_cann] operator not emulated: aclop %s\n", name);
  if (options().strict) {
    fflush(nullptr);
    _exit(kNotEmulated);
  }
  return fail(ACL_ERROR_OP_NOT_FOUND, std::string("operator not emulated: aclop ") + name);
}

}  // namespace

API aclError aclopCompileAndExecute(const char* name, int, const aclTensorDesc* const*, const aclDataBuffer* const*, int,
                                    const aclTensorDesc* const*, aclDataBuffer* const*, const aclopAttr*, aclopEngineType,
                                    aclopCompileType, const char*, aclrtStream) {
  return not_emulated(name);
}
API aclError aclopCompileAndExecuteV2(const char* name, int, aclTensorDesc**, aclDataBuffer**, int, aclTensorDesc**,
                                      aclDataBuffer**, aclopAttr*, aclopEngineType, aclopCompileType, const char*, aclrtStream) {
  return not_emulated(name);
}

API aclTensorDesc* aclCreateTensorDesc(aclDataType type, int count, const int64_t* dimensions, aclFormat format) {
  return reinterpret_cast<aclTensorDesc*>(new Description{type, {dimensions, dimensions + count}, format});
}
API void aclDestroyTensorDesc(const aclTensorDesc* handle) { delete description_of(handle); }
API aclDataType aclGetTensorDescType(const aclTensorDesc* handle) { return description_of(handle)->type; }
API aclFormat aclGetTensorDescFormat(const aclTensorDesc* handle) { return description_of(handle)->format; }
API size_t aclGetTensorDescNumDims(const aclTensorDesc* handle) { return description_of(handle)->dimensions.size(); }
API aclError aclGetTensorDescDimV2(const aclTensorDesc* handle, size_t index, int64_t* size) {
  *size = description_of(handle)->dimensions.at(index);
  return ACL_SUCCESS;
}
API void aclSetTensorDescName(aclTensorDesc*, const char*) {}
API_WITHOUT_EFFECT(aclSetTensorFormat(aclTensorDesc*, aclFormat))
API_WITHOUT_EFFECT(aclSetTensorPlaceMent(aclTensorDesc*, aclMemType))
API_WITHOUT_EFFECT(aclSetTensorShape(aclTensorDesc*, int, const int64_t*))
API aclDataBuffer* aclCreateDataBuffer(void* data, size_t bytes) { return reinterpret_cast<aclDataBuffer*>(new Buffer{data, bytes}); }
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
API_WITHOUT_EFFECT(aclopSetAttrListListInt(aclopAttr*, const char*, int, const int*, const int64_t* const*))
API_WITHOUT_EFFECT(aclopSetAttrString(aclopAttr*, const char*, const char*))
