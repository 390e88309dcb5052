// What CANN itself would say of an error, for aclGetRecentErrMsg.
#pragma once

#include <string>

namespace fake_cann {

// Several lines, in which the cause is neither the first nor the last, as users meet them; empty
// for a code that has none. `called` is the operator or the call.
std::string cann_message(int code, const std::string& called);

}  // namespace fake_cann
