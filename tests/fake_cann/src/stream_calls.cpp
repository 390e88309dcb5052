// libascendcl.so: the calls on streams, and host callbacks, which are tasks of a stream.
#include "devices.h"
#include "faults.h"
#include "streams.h"

#include <unistd.h>

using namespace fake_cann;

API aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) {
  if (current_device() < 0) return fail(ACL_ERROR_RT_CONTEXT_NULL, "a stream needs a device");
  if (aclError error = current_device_error()) return error;
  *stream = create_stream(current_device());
  return ACL_SUCCESS;
}
API aclError aclrtCreateStream(aclrtStream* stream) {
  return aclrtCreateStreamWithConfig(stream, 0, 0);
}
API aclError aclrtDestroyStream(aclrtStream stream) {
  if (!stream) return ACL_SUCCESS;
  destroy_stream(static_cast<Stream*>(stream));
  return ACL_SUCCESS;
}
API aclError aclrtDestroyStreamForce(aclrtStream stream) { return aclrtDestroyStream(stream); }
API aclError aclrtSynchronizeStream(aclrtStream stream) { return stream_of(stream).wait(); }
API aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t) {
  return stream_of(stream).wait();
}
API aclError aclrtSynchronizeDevice(void) { return wait_for_device(current_device()); }
API aclError aclrtSynchronizeDeviceWithTimeout(int32_t) {
  return wait_for_device(current_device());
}
API aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus* status) {
  if (aclError error = device_error(stream_of(stream).device)) return error;
  *status = stream_of(stream).idle() ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  return ACL_SUCCESS;
}
API aclError aclrtStreamGetId(aclrtStream stream, int32_t* id) {
  *id = stream_of(stream).id;
  return ACL_SUCCESS;
}
API_WITHOUT_EFFECT(aclrtSetStreamFailureMode(aclrtStream, uint64_t))
API_WITHOUT_EFFECT(aclrtSetStreamOverflowSwitch(aclrtStream, uint32_t))
API aclError aclrtGetStreamOverflowSwitch(aclrtStream, uint32_t* flag) {
  *flag = 0;
  return ACL_SUCCESS;
}
API_WITHOUT_EFFECT(aclrtSetStreamAttribute(aclrtStream, aclrtStreamAttr, aclrtStreamAttrValue*))

// ---- host callbacks: tasks like any other
API aclError aclrtLaunchCallback(aclrtCallback callback, void* data, aclrtCallbackBlockType,
                                 aclrtStream stream) {
  submit(stream, "callback", [=](Stream&) { callback(data); });
  return ACL_SUCCESS;
}
API aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc function, void* data) {
  submit(stream, "hostFunc", [=](Stream&) { function(data); });
  return ACL_SUCCESS;
}
API_WITHOUT_EFFECT(aclrtSubscribeReport(uint64_t, aclrtStream))
API_WITHOUT_EFFECT(aclrtUnSubscribeReport(uint64_t, aclrtStream))
// torch_npu's report thread polls this for callbacks; ours have run already, so it only has to
// wait.
API aclError aclrtProcessReport(int32_t timeout_ms) {
  usleep(static_cast<useconds_t>(timeout_ms < 0 ? 100 : timeout_ms) * 1000);
  return ACL_ERROR_RT_THREAD_SUBSCRIBE;
}
