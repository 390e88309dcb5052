// libascend_hal.so, which comes with the driver and not with CANN: a container into which it is not
// mounted lacks it, and nothing loads.
#include <cstdlib>

// torch_npu counts the devices by it, before ASCEND_RT_VISIBLE_DEVICES takes some away.
extern "C" __attribute__((visibility("default"))) int drvGetDevNum(int* count) {
  const char* devices = getenv("FAKECANN_DEVICES");
  *count = devices && *devices ? atoi(devices) : 2;
  return 0;
}
