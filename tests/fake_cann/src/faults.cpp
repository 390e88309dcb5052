#include "faults.h"

#include "devices.h"

#include <atomic>
#include <map>
#include <mutex>

namespace fake_cann {
namespace {

constexpr double kWrongFactor = 1.02;
constexpr int kMantissaBits = 9;  // fewer than TF32's 10, more than bf16's 7: no chip has it

// Counts for each rule by itself, so that "*:40" counts all operators and "aclnnGelu:7" only its
// own.
class RuleCounters {
 public:
  const Rule* matching(const std::vector<Rule>& rules, const std::string& name) {
    const Rule* hit = nullptr;
    for (const Rule& rule : rules) {
      if (!rule.names(name)) continue;
      int64_t call;
      {
        std::lock_guard<std::mutex> guard(mutex_);
        call = ++calls_[&rule];
      }
      if (rule.call == 0 || rule.call == call) hit = &rule;
    }
    return hit;
  }

 private:
  std::mutex mutex_;
  std::map<const Rule*, int64_t> calls_;
};

RuleCounters& counters() {
  static RuleCounters& instance = *new RuleCounters;  // outlives torch_npu's threads
  return instance;
}

std::atomic<uint64_t> lost_devices{0};  // one bit per device

bool any_names(const std::vector<Rule>& rules, const std::string& name) {
  for (const Rule& rule : rules) {
    if (rule.names(name)) return true;
  }
  return false;
}

}  // namespace

aclError refused(const std::string& name) {
  constexpr int kLaunchFailed = 561103;
  const Rule* rule = counters().matching(options().refusals, name);
  if (!rule) return ACL_SUCCESS;
  auto usual = runtime_calls().find(name);
  int code = usual == runtime_calls().end() ? kLaunchFailed : usual->second;
  if (rule->has_value) code = static_cast<int>(rule->value);
  bool as_cann = rule->has_value || usual != runtime_calls().end();
  return as_cann ? fail_as_cann(code, name) : fail(code, "injected failure of " + name);
}

ExecutionFaults next_execution(const std::string& operator_name, int device) {
  const Options& set = options();
  ExecutionFaults faults;
  faults.abort = counters().matching(set.aborts, operator_name) != nullptr;
  faults.nan = counters().matching(set.nans, operator_name) != nullptr;
  if (const Rule* rule = counters().matching(set.wrong_results, operator_name)) {
    faults.wrong_factor = rule->has_value ? rule->value : kWrongFactor;
  }
  if (const Rule* rule = counters().matching(set.wrong_tokens, operator_name)) {
    faults.wrong_row = static_cast<int64_t>(rule->value);
  }
  if (const Rule* rule = counters().matching(set.rounded, operator_name)) {
    faults.mantissa_bits = rule->has_value ? static_cast<int>(rule->value) : kMantissaBits;
  }
  if (const Rule* rule = counters().matching(set.truncated, operator_name)) {
    faults.truncated_bits = rule->has_value ? static_cast<int>(rule->value) : kMantissaBits;
  }
  if (counters().matching(set.losses, operator_name)) lost_devices |= 1ull << device;
  return faults;
}

bool may_go_wrong(const std::string& operator_name) {
  const Options& set = options();
  for (const auto* rules : {&set.aborts, &set.nans, &set.wrong_results, &set.wrong_tokens,
                            &set.losses, &set.rounded, &set.truncated}) {
    if (any_names(*rules, operator_name)) return true;
  }
  return false;
}

int64_t duration_ns(const std::string& operator_name) {
  double microseconds = 0;
  for (const Rule& rule : options().durations) {
    if (!rule.names(operator_name)) continue;
    microseconds = rule.value;
    if (rule.operator_name != "*") break;  // an operator's own duration beats the general one
  }
  return static_cast<int64_t>(microseconds * 1000);
}

aclError device_error(int device) {
  if (device < 0 || !(lost_devices >> device & 1)) return ACL_SUCCESS;
  return fail(ACL_ERROR_RT_LOST_HEARTBEAT,
              "device " + std::to_string(device) + " lost its heartbeat");
}

aclError current_device_error() { return device_error(current_device()); }

}  // namespace fake_cann
