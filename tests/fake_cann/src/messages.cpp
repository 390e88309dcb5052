#include "messages.h"

#include <unistd.h>

#include <cstring>

namespace fake_cann {
namespace {

std::string stamped(const std::string& code, const std::string& text) {
  return code + ": [PID: " + std::to_string(getpid()) + "] 2026-01-02-03:04:05.678.901 " + text +
         "\n";
}

const std::string kIndent = "        ",
                  kTraceBack = kIndent + "TraceBack (most recent call last):\n";

}  // namespace

std::string cann_message(int code, const std::string& called) {
  bool is_operator = called.rfind("aclnn", 0) == 0;
  std::string name = is_operator ? called.substr(strlen("aclnn")) : called;
  switch (code) {
    case 207001:
    case 207018:
      return stamped("EL0004", "Failed to allocate memory.") + kIndent +
             "Possible Cause: Available memory is insufficient.\n" + kIndent +
             "Solution: Close applications not in use.\n" + kTraceBack + kIndent +
             "alloc device memory failed, runtime result = " + std::to_string(code) + "\n";
    case 207008:
      return stamped("EE1023", "Alloc Stream resource failed. Reason: too many streams.") +
             kIndent + "Solution: Search for the keyword EE1023.\n" + kTraceBack + kIndent + name +
             " failed, runtime result = 207008\n";
    case 500001:
      return stamped("EC0010",
                     "Failed to import Python module [AttributeError: `np.float_` was removed in "
                     "the NumPy 2.0 release. Use `np.float64` instead.].") +
             kIndent + "Solution: Check that all required components are properly installed.\n" +
             kTraceBack + kIndent + name + " failed, result = 500001\n";
    case 500002:
      return stamped("E40021", "Failed to compile Op [" + name +
                                   "]. (errormsg: ModuleNotFoundError: No module named 'attr')") +
             kIndent + "Solution: See the host log for details.\n" + kTraceBack + kIndent +
             "Compile operator failed.\n";
    case 561103:
      return "EZ9999: Inner Error!\n" +
             stamped("EZ9999", "Cannot find bin of op " + name + ", integral key 0/1/|float/ND/.") +
             kTraceBack + kIndent + "Cannot find binary for op " + name + ".\n" + kIndent +
             "launch failed for " + name + ", errno:561103.\n";
    default: return "";
  }
}

}  // namespace fake_cann
