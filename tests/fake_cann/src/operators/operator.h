// OP(name, (parameters), body): one operator of libopapi.so.
//
// torch_npu looks up two C functions for each: `<name>GetWorkspaceSize`, which takes the
// parameters, and `<name>`, which launches. OP exports both from the one list of parameters, in the
// types that the body wants to work with; abi.h says as which C type each of them arrives.
#pragma once

#include "../chip.h"
#include "../faults.h"
#include "../options.h"
#include "abi.h"

#include <optional>
#include <string>
#include <vector>

namespace fake_cann {

// FAKECANN_LOG=3 prints every call with its arguments.
std::string describe(const Tensor& tensor);
std::string describe(const Scalar& scalar);
std::string describe(Dtype type);
std::string describe(const Text& text);
std::string describe(double value);
template <class T>
std::string describe(const std::optional<T>& value) {
  return value ? describe(*value) : "null";
}
template <class T>
std::string describe(const std::vector<T>& values) {
  std::string text = "{";
  for (const auto& value : values) text += describe(value) + " ";
  return text + "}";
}

// What one call of an operator reads and writes.
struct Call {
  Tensors inputs, outputs;
  bool has_bf16 = false;
  bool has_infinite_scalar = false;

  template <class... Arguments>
  explicit Call(const Arguments&... arguments) {
    (add(arguments), ...);
  }

 private:
  template <class T>
  void add(const T&) {}
  void add(const Tensor& tensor);
  void add(const Tensors& tensors);
  void add(const Out& out);
  void add(const Outs& outs);
  void add(const Scalar& scalar);
  void add(Dtype type);
};

// An input as a unit with less mantissa reads it; whatever is no tensor stays.
template <class T>
const T& coarse(const T& value, const ExecutionFaults&) {
  return value;
}
Tensor coarse(const Tensor& tensor, const ExecutionFaults& faults);
Tensors coarse(const Tensors& tensors, const ExecutionFaults& faults);

void log_call(const char* name, const std::vector<std::string>& arguments);

// Runs `compute` as a thread that torch knows nothing of would, with the faults that are due.
void run_operator(const char* name, const Stream& stream, const Call& call,
                  const std::function<void(const ExecutionFaults&)>& compute);
// The error of an operator that is asked for bf16 on a chip that lacks it.
int no_bf16(const char* name);
// True when the operator has nothing to do at all: FAKECANN_NOOP, and no fault is set for it.
bool is_idle(const char* name);

// What all operators with the parameters P have in common, compiled once for all of them.
template <class... P>
struct Signature {
  using Compute = void (*)(P...);

  static int prepare(const char* name, Compute compute, typename Abi<P>::type... arguments,
                     aclOpExecutor** executor) {
    if (is_older_chip() && Call(Abi<P>::own(arguments)...).has_bf16) return no_bf16(name);
    *executor = new aclOpExecutor{name, nullptr};
    if (is_idle(name)) return 0;
    (*executor)->run = [name, compute, ... owned = Abi<P>::own(arguments)](Stream& stream) {
      run_operator(name, stream, Call(owned...),
                   [&](const ExecutionFaults& faults) { compute(coarse(owned, faults)...); });
    };
    if (options().log_level >= 3) log_call(name, {describe(Abi<P>::own(arguments))...});
    return 0;
  }
};

// The C entry point of the operator Op, whose compute() has the parameters P.
template <class Op, class Compute = decltype(Op::compute)>
struct EntryPoint;
template <class Op, class... P>
struct EntryPoint<Op, void(P...)> {
  static int prepare(typename Abi<P>::type... arguments, uint64_t* workspace_bytes,
                     aclOpExecutor** executor) {
    *workspace_bytes = 0;
    return Signature<P...>::prepare(Op::kName, Op::compute, arguments..., executor);
  }
};

// What a resolver has to return: the type of the declaration without parameters that OP exports.
using AnyFunction = int (*)();
template <class Function>
AnyFunction any_function(Function function) {
  return reinterpret_cast<AnyFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace fake_cann

// The parameters are CANN's; not each of them matters to the CPU's operator.
#pragma GCC diagnostic ignored "-Wunused-parameter"

// An indirect function (ifunc) is how a C name, which dlsym can find, comes to stand for a member
// of a template, which has the C types already deduced: without it each parameter would be written
// twice.
#define OP(name, parameters, ...)                                                        \
  namespace fake_cann {                                                                  \
  namespace {                                                                            \
  struct name##_ {                                                                       \
    static constexpr const char* kName = #name;                                          \
    static void compute parameters { __VA_ARGS__; }                                      \
  };                                                                                     \
  }                                                                                      \
  }                                                                                      \
  extern "C" {                                                                           \
  static fake_cann::AnyFunction name##_resolver() {                                      \
    return fake_cann::any_function(&fake_cann::EntryPoint<fake_cann::name##_>::prepare); \
  }                                                                                      \
  SHARED int name##GetWorkspaceSize() __attribute__((ifunc(#name "_resolver")));         \
  SHARED int name(void*, uint64_t, aclOpExecutor* executor, aclrtStream stream) {        \
    return fake_cann::launch(executor, stream);                                          \
  }                                                                                      \
  }
