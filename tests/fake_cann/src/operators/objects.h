// What torch_npu hands to an operator: the opaque objects of CANN's interface, as this stub fills
// them.
#pragma once

#include "../streams.h"

#include <c10/core/Scalar.h>

#include <cstdint>
#include <vector>

struct aclTensor {
  std::vector<int64_t> size;
  std::vector<int64_t> stride;
  int64_t offset;
  aclDataType type;
  void* data;
};
struct aclScalar {
  c10::Scalar value;
};
struct aclIntArray {
  std::vector<int64_t> values;
};
struct aclFloatArray {
  std::vector<float> values;
};
struct aclBoolArray {
  std::vector<bool> values;
};
struct aclTensorList {
  std::vector<aclTensor*> values;
};
struct aclScalarList {
  std::vector<aclScalar*> values;
};

// One prepared call: GetWorkspaceSize makes it, the launch consumes it.
struct aclOpExecutor {
  const char* name;
  std::function<void(fake_cann::Stream&)> run;
};

namespace fake_cann {

// The second half of every operator: refuses, records, queues or runs what the first half prepared.
int launch(aclOpExecutor* executor, aclrtStream stream);

}  // namespace fake_cann
