#include "options.h"

#include "api.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

extern char** environ;

namespace fake_cann {
namespace {

constexpr int kUnreadableOption = 96;
constexpr int kMaxDevices = 64;

[[noreturn]] void reject(const std::string& variable, const std::string& reason) {
  fprintf(stderr, "[fake_cann] %s: %s\n", variable.c_str(), reason.c_str());
  fflush(nullptr);
  _exit(kUnreadableOption);
}

std::string text(const char* variable, const char* fallback) {
  const char* value = getenv(variable);
  return value && *value ? value : fallback;
}

double parse_number(const std::string& variable, const std::string& written) {
  char* end = nullptr;
  double value = strtod(written.c_str(), &end);
  if (written.empty() || *end || !(value >= 0)) {
    reject(variable, "'" + written + "' is not a number of at least 0");
  }
  return value;
}

double number(const char* variable, const char* fallback) {
  return parse_number(variable, text(variable, fallback));
}

bool flag(const char* variable, bool fallback) {
  return number(variable, fallback ? "1" : "0") != 0;
}

// The position of `value` among the names.
size_t position(const char* variable, const std::string& value,
                const std::vector<std::string>& names) {
  std::string listed;
  for (size_t i = 0; i < names.size(); ++i) {
    if (value == names[i]) return i;
    listed += (i ? ", " : "") + names[i];
  }
  reject(variable, "'" + value + "' is none of " + listed);
}

// The position of the variable's value among the names, the first of which is the default.
size_t choice(const char* variable, const std::vector<std::string>& names) {
  return position(variable, text(variable, names[0].c_str()), names);
}

std::optional<Arithmetic> arithmetic(const char* variable) {
  size_t chosen = choice(variable, {"chip", "fp32", "hf32", "tf32", "bf16", "fp16"});
  return chosen ? std::optional(static_cast<Arithmetic>(chosen - 1)) : std::nullopt;
}

std::vector<std::string> split(const std::string& written, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(written);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

Rule parse_rule(const std::string& variable, const std::string& written, bool of_the_runtime) {
  std::vector<std::string> parts = split(written, ':');
  if (parts.empty() || parts.size() > 3) {
    reject(variable, "'" + written + "' is not operator[:call[:value]]");
  }
  bool runtime_call = of_the_runtime && runtime_calls().count(parts[0]);
  if (parts[0] != "*" && parts[0].rfind("aclnn", 0) != 0 && !runtime_call) {
    reject(variable, "'" + parts[0] + "' is neither * nor the name of an aclnn operator");
  }
  Rule rule;
  rule.operator_name = parts[0];
  if (parts.size() > 1 && parts[1] != "*") {
    rule.call = static_cast<int64_t>(parse_number(variable, parts[1]));
    if (rule.call == 0) reject(variable, "calls are counted from 1");
  }
  if (parts.size() > 2) {
    rule.value = parse_number(variable, parts[2]);
    rule.has_value = true;
  }
  return rule;
}

std::vector<Rule> rules(const char* variable, bool of_the_runtime = false) {
  std::vector<Rule> parsed;
  for (const std::string& entry : split(text(variable, ""), ',')) {
    parsed.push_back(parse_rule(variable, entry, of_the_runtime));
  }
  return parsed;
}

// "250" is every operator, "aclnnGelu:250" is one; the two may stand in one list.
std::vector<Rule> durations(const char* variable) {
  std::vector<Rule> parsed;
  for (const std::string& entry : split(text(variable, ""), ',')) {
    std::vector<std::string> parts = split(entry, ':');
    Rule rule;
    rule.operator_name = parts.size() > 1 ? parts[0] : "*";
    rule.value = parse_number(variable, parts.back());
    if (rule.value > 0) parsed.push_back(rule);
  }
  return parsed;
}

std::vector<std::string> functions(const char* variable) {
  std::vector<std::string> named = split(text(variable, ""), ',');
  for (const std::string& name : named) {
    position(variable, name, {"exp", "erf", "rsqrt", "sin", "cos"});
  }
  return named;
}

void reject_unknown_variables() {
  static const char* const known[] = {
      "DEVICES",  "SOC",    "VERSION",     "HBM_GIB",  "LOG",       "POISON",    "ASYNC",
      "NOOP",     "NAN",    "STRICT",      "FAIL",     "ABORT",     "WRONG",     "LOST",
      "GELU",     "CONV",   "WRONG_TOKEN", "MATMUL",   "ATTENTION", "SUM_ORDER", "MANTISSA",
      "TRUNCATE", "DRIVER", "OOM",         "DELAY_US", "POLYNOMIAL"};
  for (char** entry = environ; *entry; ++entry) {
    if (strncmp(*entry, "FAKECANN_", 9) != 0) continue;
    std::string name(*entry + 9, strcspn(*entry + 9, "="));
    bool found = false;
    for (const char* candidate : known) found = found || name == candidate;
    if (!found) reject("FAKECANN_" + name, "no such variable");
  }
}

// How many of the devices ASCEND_RT_VISIBLE_DEVICES leaves: the list has to ascend and ends at the
// first number that no device has.
int visible_devices(int devices) {
  const char* listed = getenv("ASCEND_RT_VISIBLE_DEVICES");
  if (!listed) return devices;
  int count = 0, before = -1;
  for (const std::string& entry : split(listed, ',')) {
    char* end = nullptr;
    long device = strtol(entry.c_str(), &end, 10);
    if (entry.empty() || *end || device >= devices) break;
    if (device <= before) return 0;
    before = static_cast<int>(device);
    ++count;
  }
  return count;
}

Options read_options() {
  reject_unknown_variables();
  Options read;
  int devices = static_cast<int>(number("FAKECANN_DEVICES", "2"));
  if (devices > kMaxDevices) reject("FAKECANN_DEVICES", "at most 64 devices");
  read.devices = visible_devices(devices);
  read.soc = text("FAKECANN_SOC", "Ascend910_9362");
  read.version = text("FAKECANN_VERSION", "9.1.0");
  read.driver_version = text("FAKECANN_DRIVER", "26.1.0");
  read.out_of_memory_code = static_cast<int>(number("FAKECANN_OOM", "207001"));
  read.device_bytes = static_cast<size_t>(number("FAKECANN_HBM_GIB", "64") * (1ull << 30));
  read.log_level = static_cast<int>(number("FAKECANN_LOG", "0"));
  read.poison = flag("FAKECANN_POISON", true);
  read.no_compute = flag("FAKECANN_NOOP", false);
  read.tanh_gelu = choice("FAKECANN_GELU", {"tanh", "erf"}) == 0;
  read.strict = flag("FAKECANN_STRICT", true);
  read.durations = durations("FAKECANN_DELAY_US");
  // A duration is meant to pass on the device while the host goes on.
  read.asynchronous = flag("FAKECANN_ASYNC", !read.durations.empty());
  read.refusals = rules("FAKECANN_FAIL", true);
  read.aborts = rules("FAKECANN_ABORT");
  read.nans = rules("FAKECANN_NAN");
  read.wrong_results = rules("FAKECANN_WRONG");
  read.wrong_tokens = rules("FAKECANN_WRONG_TOKEN");
  read.losses = rules("FAKECANN_LOST");
  read.rounded = rules("FAKECANN_MANTISSA");
  read.truncated = rules("FAKECANN_TRUNCATE");
  read.matmul = arithmetic("FAKECANN_MATMUL");
  read.convolution = arithmetic("FAKECANN_CONV");
  read.attention = arithmetic("FAKECANN_ATTENTION");
  read.sum_order =
      static_cast<SumOrder>(choice("FAKECANN_SUM_ORDER", {"halves", "reversed", "blocks"}));
  read.polynomials = functions("FAKECANN_POLYNOMIAL");
  return read;
}

// Never freed: torch_npu keeps what it was given of the texts.
const Options*& current() {
  static const Options* read = new Options(read_options());
  return read;
}

}  // namespace

const std::map<std::string, int>& runtime_calls() {
  static const std::map<std::string, int> calls = {
      {"aclInit", ACL_ERROR_INTERNAL_ERROR},
      {"aclrtSetDevice", ACL_ERROR_RT_DRV_INTERNAL_ERROR},
      {"aclrtMalloc", 207018},  // its name differs between releases of the header
      {"aclSetCompileopt", ACL_ERROR_FAILURE},
      {"aclsysGetCANNVersion", ACL_ERROR_INTERNAL_ERROR},
      {"aclmdlRICaptureBegin", ACL_ERROR_RT_NO_STREAM_RESOURCE},
      {"aclmdlRICaptureEnd", ACL_ERROR_RT_NO_STREAM_RESOURCE},
  };
  return calls;
}

const Options& options() { return *current(); }

}  // namespace fake_cann

// For a fork whose environment is another: see warm.py.
API void fakecannReadOptions() {
  fake_cann::current() = new fake_cann::Options(fake_cann::read_options());
}
