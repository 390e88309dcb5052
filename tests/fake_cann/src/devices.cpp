// libascendcl.so: life cycle, devices, contexts, error texts.
#include "devices.h"

#include "faults.h"
#include "messages.h"
#include "options.h"

#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace fake_cann {
namespace {

struct Context {
  int device;
};

bool initialized = false;
thread_local int thread_device = -1;
thread_local std::string thread_error;

std::mutex mutex;
Context contexts[64];
bool active[64];

bool exists(int device) { return device >= 0 && device < options().devices; }

}  // namespace

int current_device() { return thread_device; }

aclError fail(aclError code, const std::string& message) {
  thread_error = "[fake_cann] " + message;
  log(1, "error %d: %s", code, message.c_str());
  return code;
}

aclError fail_as_cann(aclError code, const std::string& name) {
  std::string message = cann_message(code, name);
  if (message.empty()) return fail(code, "injected failure of " + name);
  thread_error = message;
  log(1, "error %d as CANN says it: %s", code, name.c_str());
  return code;
}

void log(int level, const char* format, ...) {
  if (options().log_level < level) return;
  char line[2048];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  fprintf(stderr, "[fake_cann] %s\n", line);  // one call, so that threads do not mix their lines
}

}  // namespace fake_cann

using namespace fake_cann;

// ---- life cycle
API aclError aclInit(const char*) {
  options();
  if (initialized) return ACL_ERROR_REPEAT_INITIALIZE;
  if (aclError error = refused("aclInit")) return error;
  const char* to_stdout = getenv("ASCEND_SLOG_PRINT_TO_STDOUT");
  if (to_stdout && !strcmp(to_stdout, "1")) {
    printf("[INFO] ACL(%d,python3):2026-01-02-03:04:05.678.901 [acl.cpp:1]%d aclInit\n", getpid(),
           getpid());
    fflush(stdout);
  }
  initialized = true;
  return ACL_SUCCESS;
}
API aclError aclFinalize() {
  initialized = false;
  return ACL_SUCCESS;
}
// torch_npu keeps the pointer while it asks other things, which may fail too.
API const char* aclGetRecentErrMsg() {
  thread_local std::string asked;
  asked = thread_error;
  return asked.c_str();
}
API aclError aclrtGetLastError(aclrtLastErrLevel) { return current_device_error(); }
API aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return current_device_error(); }
API void aclAppLog(aclLogLevel level, const char* function, const char*, uint32_t line,
                   const char* format, ...) {
  if (options().log_level < 2) return;
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  log(2, "torch_npu level %d %s:%u %s", level, function, line, text);
}

// ---- devices and contexts
API aclError aclrtGetDeviceCount(uint32_t* count) {
  *count = static_cast<uint32_t>(options().devices);
  return options().devices ? ACL_SUCCESS : fail(ACL_ERROR_RT_NO_DEVICE, "no device");
}
API aclError aclrtSetDevice(int32_t device) {
  if (!exists(device)) {
    return fail(ACL_ERROR_RT_INVALID_DEVICEID, "there is no device " + std::to_string(device));
  }
  if (aclError error = refused("aclrtSetDevice")) return error;
  std::lock_guard<std::mutex> guard(mutex);
  // A device in use is only selected, which asks nothing of the chip.
  if (!active[device]) {
    if (aclError error = device_error(device)) return error;
  }
  thread_device = device;
  contexts[device].device = device;
  active[device] = true;
  return ACL_SUCCESS;
}
API aclError aclrtGetDevice(int32_t* device) {
  if (thread_device < 0) return fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has set no device");
  *device = thread_device;
  return ACL_SUCCESS;
}
API aclError aclrtResetDevice(int32_t device) {
  std::lock_guard<std::mutex> guard(mutex);
  if (exists(device)) active[device] = false;
  return ACL_SUCCESS;
}
API aclError aclrtGetCurrentContext(aclrtContext* context) {
  if (thread_device < 0) return fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has set no device");
  *context = &contexts[thread_device];
  return ACL_SUCCESS;
}
API aclError aclrtSetCurrentContext(aclrtContext context) {
  if (!context) return fail(ACL_ERROR_RT_CONTEXT_NULL, "no context");
  thread_device = static_cast<Context*>(context)->device;
  return ACL_SUCCESS;
}
API aclError aclrtGetPrimaryCtxState(int32_t device, uint32_t* flags, int32_t* is_active) {
  std::lock_guard<std::mutex> guard(mutex);
  if (flags) *flags = 0;
  if (is_active) *is_active = exists(device) && active[device];
  return ACL_SUCCESS;
}
API aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t) {
  *can = 1;
  return ACL_SUCCESS;
}
API_WITHOUT_EFFECT(aclrtDeviceEnablePeerAccess(int32_t, uint32_t))
API aclError aclrtDeviceGetBareTgid(int32_t* process) {
  *process = getpid();
  return ACL_SUCCESS;
}
API aclError aclrtDeviceGetUuid(int32_t device, aclrtUuid* uuid) {
  memset(uuid, 0, sizeof *uuid);
  uuid->bytes[15] = static_cast<char>(device + 1);
  return ACL_SUCCESS;
}
API aclError aclrtGetLogicDevIdByUserDevId(int32_t user, int32_t* logical) {
  *logical = user;
  return ACL_SUCCESS;
}
