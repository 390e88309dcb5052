// One call of the older operator interface, as libascendcl.so hands it to libopapi.so, which
// computes.
#pragma once

#include "streams.h"

#include <map>
#include <variant>

namespace fake_cann {

struct LegacyTensor {
  aclDataType type;
  std::vector<int64_t> size;
  void* data;
  std::string
      host_data;  // a copy of what lies on the host, where it may be gone before the task runs
};

using LegacyAttribute = std::variant<bool, int64_t, float, std::string, std::vector<int64_t>>;

struct LegacyCall {
  std::string name;
  std::vector<LegacyTensor> inputs, outputs;
  std::map<std::string, LegacyAttribute> attributes;
};

// libopapi.so exports it as kPrepareLegacyOperator: an error, or 0 and `run`, which stays empty
// where the operator is not emulated.
using PrepareLegacyOperator = int(const LegacyCall& call, std::function<void(Stream&)>& run);
constexpr const char* kPrepareLegacyOperator = "fake_cann_prepare_legacy_operator";

}  // namespace fake_cann
