// libopapi.so: creating, reading and destroying the objects of objects.h, and the launch.
#include "objects.h"

#include "../faults.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdio>

namespace fake_cann {
namespace {

// Codes of CANN's operator library: a parameter that cannot be handled, and a launch that failed.
constexpr int kParameterInvalid = 161002;
constexpr int kLaunchFailed = 561103;

template <class T>
c10::Scalar read(const void* value) {
  return c10::Scalar(*static_cast<const T*>(value));
}

template <class T>
c10::Scalar read_integer(const void* value) {
  return c10::Scalar(static_cast<int64_t>(*static_cast<const T*>(value)));
}

template <class List, class Element>
List* make_list(Element* elements, uint64_t count) {
  auto* list = new List;
  list->values.assign(elements, elements + count);
  return list;
}

}  // namespace

int launch(aclOpExecutor* executor, aclrtStream handle) {
  std::unique_ptr<aclOpExecutor> owned(executor);
  std::string name = owned->name;
  Stream& stream = stream_of(handle);
  if (aclError error = device_error(stream.device)) return error;
  if (aclError error = refused(name)) return error;
  try {
    submit(handle, name, std::move(owned->run), duration_ns(name));
  } catch (const std::exception& error) {
    std::string reason = name + ": " + reason_of(error);
    fprintf(stderr, "[fake_cann] %s\n", reason.c_str());
    return fail(kLaunchFailed, reason);
  }
  return device_error(stream.device);
}

}  // namespace fake_cann

using namespace fake_cann;

API aclTensor* aclCreateTensor(const int64_t* size, uint64_t dimensions, aclDataType type,
                               const int64_t* stride, int64_t offset, aclFormat, const int64_t*,
                               uint64_t, void* data) {
  return new aclTensor{
      {size, size + dimensions}, {stride, stride + dimensions}, offset, type, data};
}
API aclScalar* aclCreateScalar(void* value, aclDataType type) {
  switch (type) {
    case ACL_FLOAT: return new aclScalar{read<float>(value)};
    case ACL_DOUBLE: return new aclScalar{read<double>(value)};
    case ACL_FLOAT16: return new aclScalar{read<c10::Half>(value)};
    case ACL_BF16: return new aclScalar{read<c10::BFloat16>(value)};
    case ACL_INT8: return new aclScalar{read_integer<int8_t>(value)};
    case ACL_UINT8: return new aclScalar{read_integer<uint8_t>(value)};
    case ACL_INT16: return new aclScalar{read_integer<int16_t>(value)};
    case ACL_INT32: return new aclScalar{read_integer<int32_t>(value)};
    case ACL_INT64: return new aclScalar{read_integer<int64_t>(value)};
    case ACL_BOOL: return new aclScalar{read<bool>(value)};
    default:
      fail(kParameterInvalid, "aclCreateScalar: type " + std::to_string(type));
      return nullptr;
  }
}
API aclIntArray* aclCreateIntArray(const int64_t* values, uint64_t count) {
  return make_list<aclIntArray>(values, count);
}
API aclFloatArray* aclCreateFloatArray(const float* values, uint64_t count) {
  return make_list<aclFloatArray>(values, count);
}
API aclBoolArray* aclCreateBoolArray(const bool* values, uint64_t count) {
  return make_list<aclBoolArray>(values, count);
}
API aclTensorList* aclCreateTensorList(aclTensor* const* values, uint64_t count) {
  return make_list<aclTensorList>(values, count);
}
API aclScalarList* aclCreateScalarList(aclScalar* const* values, uint64_t count) {
  return make_list<aclScalarList>(values, count);
}

API int aclDestroyTensor(const aclTensor* tensor) { return delete tensor, 0; }
API int aclDestroyScalar(const aclScalar* scalar) { return delete scalar, 0; }
API int aclDestroyIntArray(const aclIntArray* array) { return delete array, 0; }
API int aclDestroyFloatArray(const aclFloatArray* array) { return delete array, 0; }
API int aclDestroyBoolArray(const aclBoolArray* array) { return delete array, 0; }
// A list owns its elements: torch_npu destroys only the list.
API int aclDestroyTensorList(const aclTensorList* list) {
  if (list)
    for (aclTensor* tensor : list->values) delete tensor;
  return delete list, 0;
}
API int aclDestroyScalarList(const aclScalarList* list) {
  if (list)
    for (aclScalar* scalar : list->values) delete scalar;
  return delete list, 0;
}
API int aclDestroyAclOpExecutor(aclOpExecutor* executor) { return delete executor, 0; }

// torch_npu asks this after an operator whose output's size depends on the data, and deletes the
// array.
API int aclGetViewShape(const aclTensor* tensor, int64_t** size, uint64_t* dimensions) {
  *dimensions = tensor->size.size();
  *size = new int64_t[*dimensions + 1];
  std::copy(tensor->size.begin(), tensor->size.end(), *size);
  return 0;
}
