// The types in which an operator's line works with its parameters, the C type in which each
// arrives, and how to own its value, since torch_npu destroys the C objects before a queued or
// captured operator runs.
#pragma once

#include "objects.h"

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace fake_cann {

using at::Scalar;
using at::Tensor;
using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;
using Floats = std::vector<float>;
using Bools = std::vector<bool>;
using Scalars = std::vector<Scalar>;
using MaybeTensor = std::optional<Tensor>;
using MaybeScalar = std::optional<Scalar>;
using Text = std::string;
using Dtype = at::ScalarType;

// A tensor that the operator writes. Faults that corrupt a result corrupt these.
struct Out : Tensor {
  explicit Out(Tensor tensor, aclTensor* handle = nullptr)
      : Tensor(std::move(tensor)), handle(handle) {}

  // Assigning writes the values into the output's memory, converted to its type; an output that the
  // caller did not ask for takes nothing.
  void operator=(const Tensor& result) const {
    if (defined()) copy_(result);
  }

  // For an output whose size depends on the data: torch_npu allocates the largest one and asks for
  // the true size afterwards.
  void shrink_to(const Tensor& result) const {
    flatten().narrow(0, 0, result.numel()).copy_(result.flatten());
    handle->size = result.sizes().vec();
  }

  aclTensor* handle;
};
using Outs = std::vector<Out>;

template <class T>
struct Abi {
  using type = T;  // numbers and flags
  static T own(T value) { return value; }
};

Tensor tensor_of(const aclTensor* handle);
Dtype dtype_of(aclDataType type);
Tensors tensors_of(const aclTensorList* handles);

template <>
struct Abi<Tensor> {
  using type = const aclTensor*;
  static Tensor own(type handle) { return tensor_of(handle); }
};
template <>
struct Abi<Out> {
  using type = aclTensor*;
  static Out own(type handle) { return Out(tensor_of(handle), handle); }
};
template <>
struct Abi<Tensors> {
  using type = const aclTensorList*;
  static Tensors own(type handles) { return tensors_of(handles); }
};
template <>
struct Abi<Outs> {
  using type = const aclTensorList*;
  static Outs own(type handles) {
    Outs outs;
    for (Tensor& tensor : tensors_of(handles)) outs.emplace_back(tensor);
    return outs;
  }
};
template <>
struct Abi<Scalar> {
  using type = const aclScalar*;
  static Scalar own(type handle) { return handle ? handle->value : Scalar(); }
};
template <>
struct Abi<Scalars> {
  using type = const aclScalarList*;
  static Scalars own(type handles) {
    Scalars values;
    for (const aclScalar* scalar : handles->values) values.push_back(scalar->value);
    return values;
  }
};
template <>
struct Abi<MaybeTensor> {
  using type = const aclTensor*;
  static MaybeTensor own(type handle) {
    return handle ? MaybeTensor(tensor_of(handle)) : std::nullopt;
  }
};
template <>
struct Abi<MaybeScalar> {
  using type = const aclScalar*;
  static MaybeScalar own(type handle) { return handle ? MaybeScalar(handle->value) : std::nullopt; }
};
template <>
struct Abi<Ints> {
  using type = const aclIntArray*;
  static Ints own(type handle) { return handle ? handle->values : Ints(); }
};
template <>
struct Abi<Floats> {
  using type = const aclFloatArray*;
  static Floats own(type handle) { return handle ? handle->values : Floats(); }
};
template <>
struct Abi<Bools> {
  using type = const aclBoolArray*;
  static Bools own(type handle) { return handle ? handle->values : Bools(); }
};
template <>
struct Abi<Text> {
  using type = const char*;
  static Text own(type value) { return value ? value : ""; }
};
template <>
struct Abi<Dtype> {
  using type = aclDataType;
  static Dtype own(type value) { return dtype_of(value); }
};

}  // namespace fake_cann
