// libopapi.so: what OP needs once, for all operators.
#include "operator.h"

#include "arithmetic.h"

#include <ATen/core/Formatting.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/InferenceMode.h>
#include <operator_aten.h>  // written by build.py

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

namespace fake_cann {
namespace {

constexpr int kParameterInvalid = 161002;  // CANN's operator library: it cannot handle a parameter

// With FAKECANN_NOOP a copy between devices' tensors still happens, or nothing would ever arrive.
bool is_copy(const char* name) { return !strcmp(name, "aclnnInplaceCopy"); }

// An operator runs on torch_npu's queue thread, on a stream's worker or on the caller's own thread,
// wherever the caller has autocast, inference mode or a Python dispatch mode switched on. The chip
// knows none of these, so they are off while a CPU operator stands in for it.
class PlainThread {
 public:
  PlainThread() : saved_(c10::impl::tls_local_dispatch_key_set()), inference_(false) {
    c10::impl::PODLocalDispatchKeySet plain{};
    plain.set_included(c10::default_included_set);
    plain.set_excluded(c10::default_excluded_set | c10::autograd_dispatch_keyset);
    c10::impl::_force_tls_local_dispatch_key_set(c10::impl::LocalDispatchKeySet(plain));
  }
  ~PlainThread() { c10::impl::_force_tls_local_dispatch_key_set(saved_); }

 private:
  c10::impl::LocalDispatchKeySet saved_;
  c10::InferenceMode inference_;
  at::NoGradGuard no_grad_;
};

void spoil_row(const Tensor& output, int64_t row) {
  if (output.dim() < 2) return;
  int64_t rows = output.size(-2);
  Tensor token = output.select(-2, std::min(row, rows - 1));
  // Moved by its own size, so that it is wrong at every scale and stays a plausible number.
  token.add_(token.abs().mean().add(1).to(token.scalar_type()));
}

void corrupt(const ExecutionFaults& faults, const Tensor& output) {
  if (!output.is_floating_point() || output.numel() == 0) return;
  if (faults.nan) output.fill_(std::numeric_limits<double>::quiet_NaN());
  if (faults.wrong_factor) output.mul_(*faults.wrong_factor);
  if (faults.wrong_row) spoil_row(output, *faults.wrong_row);
}

bool all_finite(const Tensors& tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const Tensor& tensor) {
    return !tensor.is_floating_point() || at::isfinite(tensor).all().item<bool>();
  });
}

// True when an infinity or NaN in a result is the operator's own: none was put in.
bool may_overflow(const std::string& name, const Call& call) {
  bool in_place = name.find("Inplace") != std::string::npos;
  return !is_copy(name.c_str()) && !call.has_infinite_scalar && all_finite(call.inputs) &&
         (!in_place || all_finite(call.outputs));
}

void to_finite(const Tensor& output) {
  if (output.is_floating_point()) output.nan_to_num_();  // 0 for NaN, the largest for infinity
}

}  // namespace

Dtype dtype_of(aclDataType type) {
  switch (type) {
    case ACL_FLOAT: return at::kFloat;
    case ACL_FLOAT16: return at::kHalf;
    case ACL_BF16: return at::kBFloat16;
    case ACL_DOUBLE: return at::kDouble;
    case ACL_INT8: return at::kChar;
    case ACL_UINT8: return at::kByte;
    case ACL_INT16: return at::kShort;
    case ACL_INT32: return at::kInt;
    case ACL_INT64: return at::kLong;
    case ACL_BOOL: return at::kBool;
    case ACL_COMPLEX64: return at::kComplexFloat;
    case ACL_COMPLEX128: return at::kComplexDouble;
    default: TORCH_CHECK(false, "fake_cann: data type ", static_cast<int>(type));
  }
}

Tensor tensor_of(const aclTensor* handle) {
  if (!handle) return {};
  PlainThread plain;  // made on the caller's thread, used on another: never an inference tensor
  Dtype type = dtype_of(handle->type);
  char* data = static_cast<char*>(handle->data) +
               handle->offset * static_cast<int64_t>(c10::elementSize(type));
  return at::from_blob(data, handle->size, handle->stride, at::TensorOptions().dtype(type));
}

Tensors tensors_of(const aclTensorList* handles) {
  Tensors tensors;
  if (handles)
    for (const aclTensor* handle : handles->values) tensors.push_back(tensor_of(handle));
  return tensors;
}

bool is_idle(const char* name) {
  return options().no_compute && !is_copy(name) && !may_go_wrong(name);
}

void Call::add(const Tensor& tensor) {
  if (!tensor.defined()) return;
  inputs.push_back(tensor);
  add(tensor.scalar_type());
}
void Call::add(const Tensors& tensors) {
  for (const Tensor& tensor : tensors) add(tensor);
}
void Call::add(const Out& out) {
  if (!out.defined()) return;
  outputs.push_back(out);
  add(out.scalar_type());
}
void Call::add(const Outs& outs) {
  for (const Out& out : outs) add(out);
}
void Call::add(const Scalar& scalar) {
  if (scalar.isFloatingPoint() && !std::isfinite(scalar.toDouble())) has_infinite_scalar = true;
}
void Call::add(Dtype type) { has_bf16 = has_bf16 || type == at::kBFloat16; }

Tensor coarse(const Tensor& tensor, const ExecutionFaults& faults) {
  if (faults.mantissa_bits) return with_mantissa(tensor, *faults.mantissa_bits, false);
  if (faults.truncated_bits) return with_mantissa(tensor, *faults.truncated_bits, true);
  return tensor;
}
Tensors coarse(const Tensors& tensors, const ExecutionFaults& faults) {
  Tensors read;
  for (const Tensor& tensor : tensors) read.push_back(coarse(tensor, faults));
  return read;
}

int no_bf16(const char* name) {
  std::string listed = " is not in the list of types that " + options().soc + " supports";
  return fail(kParameterInvalid, std::string(name) + ": DT_BFLOAT16" + listed);
}

void run_operator(const char* name, const Stream& stream, const Call& call,
                  const std::function<void(const ExecutionFaults&)>& compute) {
  ExecutionFaults faults = next_execution(name, stream.device);
  if (faults.abort) throw KernelAborted("injected abort of " + std::string(name));
  PlainThread plain;
  bool saturate = saturates() && may_overflow(name, call);
  if (!options().no_compute || is_copy(name)) compute(faults);
  for (const Tensor& output : call.outputs) {
    if (saturate) to_finite(output);
    corrupt(faults, output);
  }
}

void log_call(const char* name, const std::vector<std::string>& arguments) {
  std::string text;
  for (const std::string& argument : arguments) text += "|" + argument;
  log(3, "call %s %s", name, text.c_str());
}

std::string describe(const Tensor& tensor) {
  if (!tensor.defined()) return "null";
  std::ostringstream text;
  text << c10::toString(tensor.scalar_type()) << tensor.sizes();
  if (!tensor.is_contiguous()) text << "/" << tensor.strides();
  return text.str();
}
std::string describe(const Scalar& scalar) {
  std::ostringstream text;
  text << c10::toString(scalar.type()) << " " << scalar;
  return text.str();
}
std::string describe(Dtype type) { return c10::toString(type); }
std::string describe(const Text& text) { return "\"" + text + "\""; }
std::string describe(double value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

}  // namespace fake_cann
