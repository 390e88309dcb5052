// What differs between the chips that FAKECANN_SOC can name.
#pragma once

#include "api.h"

namespace fake_cann {

// Ascend910A, ProA, ProB and PremiumA, 310P and 310B: no bf16, fp32 products are computed in fp16,
// overflow saturates, operators are compiled for their shapes unless that is switched off.
SHARED bool is_older_chip();

// True when an overflow gives the type's largest number and an invalid operation 0: on older chips
// always, on others after aclrtSetDeviceSatMode, which torch_npu calls for
// INF_NAN_MODE_FORCE_DISABLE.
SHARED bool saturates();

}  // namespace fake_cann
