// libopapi.so, third part: the operators of the older interface that DINOv3 and the kit meet on the
// older chips. Their inputs, outputs and attributes are those of CANN's graph operators.
#include "../legacy_operators.h"

#include "helpers.h"

#include <legacy_aten.h>  // written by build.py

namespace fake_cann {
namespace {

struct Arguments {
  Tensors inputs;  // an input that was left out is undefined
  Outs outputs;
  std::map<std::string, LegacyAttribute> attributes;

  const Tensor& operator[](size_t index) const {
    static const Tensor none;
    return index < inputs.size() ? inputs[index] : none;
  }
  Ints ints(size_t index) const {
    Tensor values = inputs.at(index).to(at::kLong).contiguous().flatten();
    auto* first = static_cast<int64_t*>(values.data_ptr());
    return {first, first + values.numel()};
  }
  Scalar scalar(size_t index) const { return inputs.at(index).item(); }
  template <class T>
  T attribute(const char* name, T fallback) const {
    auto found = attributes.find(name);
    return found == attributes.end() ? fallback : std::get<T>(found->second);
  }
};

// An operator, the name that faults and durations know it by, and its first output.
struct Operator {
  const char* fault_name;
  Tensor (*compute)(const Arguments& in);
};

Tensor transposed_if(bool wanted, const Tensor& matrix) {
  return wanted ? matrix.transpose(-1, -2) : matrix;
}

Tensor matrix_product(const Arguments& in, const char* transpose_a, const char* transpose_b) {
  Tensor result = product(transposed_if(in.attribute(transpose_a, false), in[0]),
                          transposed_if(in.attribute(transpose_b, false), in[1]), kKeepDtype);
  return in[2].defined() ? at::add(result, in[2]) : result;
}

Tensor convolution_2d(const Arguments& in) {
  auto last_two = [&](const char* name) {  // the attribute is in the order N, C, H, W
    Ints values = in.attribute(name, Ints{1, 1, 1, 1});
    return Ints{values.at(2), values.at(3)};
  };
  Ints pads = in.attribute("pads", Ints{0, 0, 0, 0});
  TORCH_CHECK(pads.at(0) == pads.at(1) && pads.at(2) == pads.at(3), "pads differ by side");
  return convolution(in[0], in[1], in[2], last_two("strides"), {pads[0], pads[2]},
                     last_two("dilations"), false, {0, 0}, in.attribute("groups", int64_t{1}),
                     kKeepDtype);
}

// The mean and the variance, not its reciprocal root, are the second and third output.
Tensor layer_normalization(const Arguments& in) {
  Tensor x = in[0].to(at::kFloat);
  int64_t begin = in.attribute("begin_norm_axis", int64_t{-1});
  Ints shape = x.sizes().slice(begin < 0 ? begin + x.dim() : begin).vec(), dims;
  for (size_t i = 1; i <= shape.size(); ++i) dims.push_back(-static_cast<int64_t>(i));
  in.outputs.at(1) = at::mean(x, dims, true).reshape(in.outputs[1].sizes());
  in.outputs.at(2) = at::var(x, dims, false, true).reshape(in.outputs[2].sizes());
  double eps = in.attribute("epsilon", 1e-5f);
  return std::get<0>(vector_unit::layer_norm(in[0], shape, in[1], in[2], eps));
}

bool keeps(const Arguments& in) { return in.attribute("keep_dims", false); }

#define ACLOP(name, fault_name, ...) \
  {#name, {#fault_name, [](const Arguments& in) -> Tensor { return __VA_ARGS__; }}},

const std::map<std::string, Operator>& operators() {
  static const std::map<std::string, Operator> table = {
#include "legacy.inc"
  };
  return table;
}

Tensor given(const LegacyTensor& described, std::vector<std::string>& kept) {
  if (described.type == ACL_DT_UNDEFINED || (!described.data && described.host_data.empty()))
    return {};
  void* data = described.data;
  if (!described.host_data.empty()) data = kept.emplace_back(described.host_data).data();
  Ints strides(described.size.size(), 1);
  for (size_t dim = strides.size(); dim-- > 1;)
    strides[dim - 1] = strides[dim] * described.size[dim];
  aclTensor handle{described.size, strides, 0, described.type, data};
  return tensor_of(&handle);
}

}  // namespace
}  // namespace fake_cann

extern "C" SHARED int fake_cann_prepare_legacy_operator(
    const fake_cann::LegacyCall& call, std::function<void(fake_cann::Stream&)>& run) {
  using namespace fake_cann;
  auto found = operators().find(call.name);
  if (found == operators().end()) return 0;
  for (const LegacyTensor& input : call.inputs) {
    if (input.type == ACL_BF16 && is_older_chip()) return no_bf16(call.name.c_str());
  }
  const Operator& chosen = found->second;
  run = [call, chosen](Stream& stream) {
    if (is_idle(chosen.fault_name)) return;
    std::vector<std::string> kept;
    kept.reserve(call.inputs.size());
    Arguments in;
    for (const LegacyTensor& input : call.inputs) in.inputs.push_back(given(input, kept));
    for (const LegacyTensor& output : call.outputs) in.outputs.emplace_back(given(output, kept));
    in.attributes = call.attributes;
    run_operator(chosen.fault_name, stream, Call(in.inputs, in.outputs),
                 [&](const ExecutionFaults& faults) {
                   in.inputs = coarse(in.inputs, faults);
                   Tensor result = chosen.compute(in);
                   in.outputs.at(0) = result.expand(in.outputs[0].sizes());
                 });
  };
  return 0;
}
