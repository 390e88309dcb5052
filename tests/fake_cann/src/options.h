// The environment variables, read once. README.md holds the table that documents them.
#pragma once

#include "api.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace fake_cann {

// One entry of a variable such as FAKECANN_NAN: `operator[:call[:value]]`.
struct Rule {
  std::string operator_name;
  int64_t call = 0;  // counted from 1; 0 is every call
  double value = 0;  // its meaning depends on the variable
  bool has_value = false;

  // "*" is any operator, but no call of the runtime.
  bool names(const std::string& name) const {
    bool is_operator = name.rfind("acl", 0) != 0 || name.rfind("aclnn", 0) == 0;
    return operator_name == "*" ? is_operator : operator_name == name;
  }
};

// How the cube unit reads fp32 inputs, in the order of options.cpp's names.
enum class Arithmetic { kFp32, kHf32, kTf32, kBf16, kFp16 };

// The order in which a product's terms are added up.
enum class SumOrder { kHalves, kReversed, kBlocks };

// The calls of the runtime that FAKECANN_FAIL can name, beside operators, and their usual errors.
const std::map<std::string, int>& runtime_calls();

struct Options {
  int devices;
  std::string soc;
  std::string version;
  std::string driver_version;  // "none" and "garbage" cannot be read
  size_t device_bytes;
  int out_of_memory_code;
  int log_level;
  bool poison;        // fresh device memory is 0xA5, so that reading it before writing shows
  bool asynchronous;  // one worker thread per stream
  bool no_compute;    // operators do nothing, so that only the host's own cost is left
  bool tanh_gelu;     // aclnnGelu computes the tanh formula that CANN documents for it
  bool strict;        // an operator that is not emulated ends the process
  // What replaces the chip's own arithmetic, whatever cubeMathType says.
  std::optional<Arithmetic> matmul, convolution, attention;
  SumOrder sum_order;
  std::vector<std::string> polynomials;  // functions that are computed by a short polynomial

  std::vector<Rule> durations;  // value: microseconds
  std::vector<Rule> refusals;   // value: error code
  std::vector<Rule> aborts;
  std::vector<Rule> nans;
  std::vector<Rule> wrong_results;  // value: factor
  std::vector<Rule> wrong_tokens;   // value: row
  std::vector<Rule> rounded;        // value: bits of mantissa that an operator's inputs keep
  std::vector<Rule> truncated;      // the same, cut off
  std::vector<Rule> losses;
};

// Ends the process with code 96 and one line when a variable cannot be read: a misspelt fault that
// injects nothing would make a test pass for the wrong reason.
SHARED const Options& options();

}  // namespace fake_cann
