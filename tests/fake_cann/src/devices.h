// Devices and the thread's current one.
#pragma once

#include "api.h"

namespace fake_cann {

// The device that this thread has set, -1 before it set one.
int current_device();

}  // namespace fake_cann
