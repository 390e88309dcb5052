// What every file of the stub shares: how a function is exported, and how a call says that it
// failed.
#pragma once

#include <acl/acl.h>

#include <string>

// Everything else stays hidden, so that no name of ours can meet one of torch's.
#define SHARED __attribute__((visibility("default")))
#define API extern "C" SHARED

// A call that the kit's runs reach but whose effect nothing can observe here.
#define API_WITHOUT_EFFECT(declaration) \
  API aclError declaration { return ACL_SUCCESS; }

namespace fake_cann {

// Stores `message` for aclGetRecentErrMsg, which torch_npu quotes in its exception, and returns
// `code`.
SHARED aclError fail(aclError code, const std::string& message);

// The same with the lines that CANN has for the code, where messages.cpp knows them. `name` is the
// operator's or the call's.
SHARED aclError fail_as_cann(aclError code, const std::string& name);

// One line on stderr when FAKECANN_LOG is at least `level`.
SHARED void log(int level, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace fake_cann
