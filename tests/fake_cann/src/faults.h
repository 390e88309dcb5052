// Faults on demand: which call of which operator goes wrong, and how.
#pragma once

#include "options.h"

#include <optional>

namespace fake_cann {

// The error with which this launch of an operator, or this call of the runtime, has to be refused,
// or ACL_SUCCESS. Counts it.
SHARED aclError refused(const std::string& name);

// What one execution of an operator has to do wrong.
struct ExecutionFaults {
  bool abort = false;                  // the kernel dies: its stream answers an error from now on
  bool nan = false;                    // every floating-point output is NaN
  std::optional<double> wrong_factor;  // every floating-point output is this much too large
  std::optional<int64_t> wrong_row;    // this row of the second-to-last dimension is wrong
  std::optional<int> mantissa_bits;    // of the floating-point inputs, rounded to the nearest
  std::optional<int> truncated_bits;   // of the floating-point inputs, cut off
};

// Counts the execution (a graph's replay executes too) and answers its faults; on the call that
// FAKECANN_LOST names, `device` is gone from here on.
SHARED ExecutionFaults next_execution(const std::string& operator_name, int device);

// False when next_execution can never answer anything for this operator.
SHARED bool may_go_wrong(const std::string& operator_name);

// How long the operator occupies its stream, in nanoseconds.
SHARED int64_t duration_ns(const std::string& operator_name);

// The error of a device that vanished, or ACL_SUCCESS. Every runtime call on a device asks first.
SHARED aclError device_error(int device);
aclError current_device_error();

}  // namespace fake_cann
