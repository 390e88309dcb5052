// libascendcl.so: the older "aclop" path. torch_npu takes it for BroadcastTo, which has no aclnn
// name, for any operator whose aclnn name is missing from libopapi.so, and for all of them on the
// older chips unless jit_compile is off.
#include "legacy_operators.h"

#include "faults.h"
#include "options.h"

#include <acl/acl_op_compiler.h>
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

using namespace fake_cann;

namespace {

constexpr int kNotEmulated = 97;

// A format of the chip's own (NC1HWC0, FRACTAL_NZ) is only a name here: the values lie as those of
// the tensor's own size do, for whoever writes them and whoever reads them.
struct Description {
  aclDataType type;
  std::vector<int64_t> dimensions;
  aclFormat format;
  bool on_host = false;
};

struct Buffer {
  void* data;
  size_t bytes;
};

using Attributes = std::map<std::string, LegacyAttribute>;

Description& description_of(const aclTensorDesc* handle) {
  return *reinterpret_cast<Description*>(const_cast<aclTensorDesc*>(handle));
}

Attributes& attributes_of(const aclopAttr* handle) {
  return *reinterpret_cast<Attributes*>(const_cast<aclopAttr*>(handle));
}

aclError set(aclopAttr* handle, const char* name, LegacyAttribute value) {
  attributes_of(handle)[name] = std::move(value);
  return ACL_SUCCESS;
}

std::vector<LegacyTensor> tensors(int count, const aclTensorDesc* const* descriptions,
                                  const aclDataBuffer* const* buffers) {
  std::vector<LegacyTensor> listed;
  for (int i = 0; i < count; ++i) {
    const Description& description = description_of(descriptions[i]);
    auto* buffer = reinterpret_cast<const Buffer*>(buffers[i]);
    LegacyTensor tensor{description.type, description.dimensions, buffer ? buffer->data : nullptr,
                        ""};
    if (description.on_host && buffer)
      tensor.host_data.assign(static_cast<const char*>(buffer->data), buffer->bytes);
    listed.push_back(std::move(tensor));
  }
  return listed;
}

aclError not_emulated(const char* name) {
  fprintf(stderr, "[fake_cann] operator not emulated: aclop %s\n", name);
  if (options().strict) {
    fflush(nullptr);
    _exit(kNotEmulated);
  }
  return fail(ACL_ERROR_OP_NOT_FOUND, std::string("operator not emulated: aclop ") + name);
}

PrepareLegacyOperator* prepare() {
  static auto* found = [] {
    void* library = dlopen("libopapi.so", RTLD_NOW);
    return library
               ? reinterpret_cast<PrepareLegacyOperator*>(dlsym(library, kPrepareLegacyOperator))
               : nullptr;
  }();
  return found;
}

aclError execute(LegacyCall call, aclrtStream handle) {
  const std::string name = call.name;
  std::function<void(Stream&)> run;
  if (prepare()) {
    if (int error = prepare()(call, run)) return error;
  }
  if (!run) return not_emulated(name.c_str());
  Stream& stream = stream_of(handle);
  if (aclError error = device_error(stream.device)) return error;
  try {
    submit(handle, name, std::move(run), duration_ns(name));
  } catch (const std::exception& error) {
    fprintf(stderr, "[fake_cann] %s: %s\n", name.c_str(), reason_of(error).c_str());
    return fail(ACL_ERROR_FAILURE, name + ": " + reason_of(error));
  }
  return device_error(stream.device);
}

}  // namespace

API aclError aclopCompileAndExecute(const char* name, int input_count,
                                    const aclTensorDesc* const* inputs,
                                    const aclDataBuffer* const* sources, int output_count,
                                    const aclTensorDesc* const* outputs,
                                    aclDataBuffer* const* targets, const aclopAttr* attributes,
                                    aclopEngineType, aclopCompileType, const char*,
                                    aclrtStream stream) {
  return execute(
      {name, tensors(input_count, inputs, sources), tensors(output_count, outputs, targets),
       attributes ? attributes_of(attributes) : Attributes()},
      stream);
}
API aclError aclopCompileAndExecuteV2(const char* name, int input_count, aclTensorDesc** inputs,
                                      aclDataBuffer** sources, int output_count,
                                      aclTensorDesc** outputs, aclDataBuffer** targets,
                                      aclopAttr* attributes, aclopEngineType engine,
                                      aclopCompileType type, const char* path, aclrtStream stream) {
  return aclopCompileAndExecute(name, input_count, inputs, sources, output_count, outputs, targets,
                                attributes, engine, type, path, stream);
}

API aclTensorDesc* aclCreateTensorDesc(aclDataType type, int count, const int64_t* dimensions,
                                       aclFormat format) {
  return reinterpret_cast<aclTensorDesc*>(
      new Description{type, {dimensions, dimensions + count}, format});
}
API void aclDestroyTensorDesc(const aclTensorDesc* handle) { delete &description_of(handle); }
API aclDataType aclGetTensorDescType(const aclTensorDesc* handle) {
  return description_of(handle).type;
}
API aclFormat aclGetTensorDescFormat(const aclTensorDesc* handle) {
  return description_of(handle).format;
}
API size_t aclGetTensorDescNumDims(const aclTensorDesc* handle) {
  return description_of(handle).dimensions.size();
}
API aclError aclGetTensorDescDimV2(const aclTensorDesc* handle, size_t index, int64_t* size) {
  *size = description_of(handle).dimensions.at(index);
  return ACL_SUCCESS;
}
API void aclSetTensorDescName(aclTensorDesc*, const char*) {}
API_WITHOUT_EFFECT(aclSetTensorFormat(aclTensorDesc*, aclFormat))
API aclError aclSetTensorPlaceMent(aclTensorDesc* handle, aclMemType place) {
  description_of(handle).on_host = place != ACL_MEMTYPE_DEVICE;
  return ACL_SUCCESS;
}
API_WITHOUT_EFFECT(aclSetTensorShape(aclTensorDesc*, int, const int64_t*))
API aclDataBuffer* aclCreateDataBuffer(void* data, size_t bytes) {
  return reinterpret_cast<aclDataBuffer*>(new Buffer{data, bytes});
}
API aclError aclDestroyDataBuffer(const aclDataBuffer* buffer) {
  delete reinterpret_cast<const Buffer*>(buffer);
  return ACL_SUCCESS;
}
API aclopAttr* aclopCreateAttr() { return reinterpret_cast<aclopAttr*>(new Attributes); }
API void aclopDestroyAttr(const aclopAttr* handle) { delete &attributes_of(handle); }
API aclError aclopSetAttrBool(aclopAttr* handle, const char* name, uint8_t value) {
  return set(handle, name, value != 0);
}
API aclError aclopSetAttrDataType(aclopAttr* handle, const char* name, aclDataType value) {
  return set(handle, name, static_cast<int64_t>(value));
}
API aclError aclopSetAttrFloat(aclopAttr* handle, const char* name, float value) {
  return set(handle, name, value);
}
API aclError aclopSetAttrInt(aclopAttr* handle, const char* name, int64_t value) {
  return set(handle, name, value);
}
API aclError aclopSetAttrListInt(aclopAttr* handle, const char* name, int count,
                                 const int64_t* values) {
  return set(handle, name, std::vector<int64_t>(values, values + count));
}
API aclError aclopSetAttrString(aclopAttr* handle, const char* name, const char* value) {
  return set(handle, name, std::string(value));
}
// No operator that is emulated has attributes of these types.
API_WITHOUT_EFFECT(aclopSetAttrListBool(aclopAttr*, const char*, int, const uint8_t*))
API_WITHOUT_EFFECT(aclopSetAttrListFloat(aclopAttr*, const char*, int, const float*))
API_WITHOUT_EFFECT(aclopSetAttrListListInt(aclopAttr*, const char*, int, const int*,
                                           const int64_t* const*))
