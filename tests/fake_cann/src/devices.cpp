// libascendcl.so: life cycle, devices, contexts, what the chip says of itself, error texts.
#include "devices.h"

#include "faults.h"
#include "options.h"

#include <acl/acl_op_compiler.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

namespace fake_cann {
namespace {

// The figures of a 910_9362: only what torch_npu prints or sizes a workspace by.
constexpr int64_t kCubeCores = 24;
constexpr int64_t kVectorCores = 48;
constexpr int64_t kL2CacheBytes = 192ll << 20;
constexpr const char* kDriverVersion = "26.1.0";

struct Context {
  int device;
};

bool initialized = false;
thread_local int thread_device = -1;
thread_local std::string thread_error;

std::mutex mutex;
Context contexts[64];
bool active[64];
std::map<int, std::string> compile_options;
std::map<int, int64_t> system_options;

bool exists(int device) { return device >= 0 && device < options().devices; }

uint32_t cores(aclrtDevResLimitType type) {
  return type == ACL_RT_DEV_RES_CUBE_CORE ? kCubeCores : kVectorCores;
}

const char* version_of(bool driver) { return driver ? kDriverVersion : options().version.c_str(); }

}  // namespace

int current_device() { return thread_device; }

aclError fail(aclError code, const std::string& message) {
  thread_error = "[fake_cann] " + message;
  log(1, "error %d: %s", code, message.c_str());
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
  initialized = true;
  return ACL_SUCCESS;
}
API aclError aclFinalize() {
  initialized = false;
  return ACL_SUCCESS;
}
API const char* aclGetRecentErrMsg() { return thread_error.c_str(); }
API aclError aclrtGetLastError(aclrtLastErrLevel) { return current_device_error(); }
API aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return current_device_error(); }
API void aclAppLog(aclLogLevel level, const char* function, const char*, uint32_t line, const char* format, ...) {
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

// ---- what the chip and CANN say of themselves
API const char* aclrtGetSocName() { return options().soc.c_str(); }
API aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo info, int64_t* value) {
  *value = info == ACL_DEVICE_INFO_AI_CORE_NUM       ? kCubeCores
           : info == ACL_DEVICE_INFO_VECTOR_CORE_NUM ? kVectorCores
                                                     : kL2CacheBytes;
  return ACL_SUCCESS;
}
API aclError aclrtGetDeviceInfo(uint32_t, aclrtDevAttr attribute, int64_t* value) {
  constexpr int kFirstNonCoreAttribute = 200;
  *value = attribute == ACL_DEV_ATTR_VECTOR_CORE_NUM         ? kVectorCores
           : attribute == ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE ? static_cast<int64_t>(options().device_bytes)
           : attribute == ACL_DEV_ATTR_L2_CACHE_SIZE         ? kL2CacheBytes
           : attribute < kFirstNonCoreAttribute              ? kCubeCores
                                                             : 0;
  return ACL_SUCCESS;
}
API aclError aclrtGetDeviceResLimit(int32_t, aclrtDevResLimitType type, uint32_t* value) {
  *value = cores(type);
  return ACL_SUCCESS;
}
API aclError aclrtGetStreamResLimit(aclrtStream, aclrtDevResLimitType type, uint32_t* value) {
  *value = cores(type);
  return ACL_SUCCESS;
}
API aclError aclrtGetResInCurrentThread(aclrtDevResLimitType type, uint32_t* value) {
  *value = cores(type);
  return ACL_SUCCESS;
}
API aclError aclrtGetDeviceUtilizationRate(int32_t, aclrtUtilizationInfo* rate) {
  memset(rate, 0, sizeof *rate);
  return ACL_SUCCESS;
}
API aclError aclsysGetVersionStr(char* package, char* version) {
  strcpy(version, version_of(!strcasecmp(package, "driver")));
  return ACL_SUCCESS;
}
API aclError aclsysGetCANNVersion(aclCANNPackageName package, aclCANNPackageVersion* version) {
  memset(version, 0, sizeof *version);
  snprintf(version->version, sizeof version->version, "%s", version_of(package == ACL_PKG_NAME_DRIVER));
  return ACL_SUCCESS;
}
API aclError aclGetCannAttributeList(const aclCannAttr** list, size_t* count) {
  static const aclCannAttr attributes[] = {ACL_CANN_ATTR_INF_NAN, ACL_CANN_ATTR_BF16, ACL_CANN_ATTR_JIT_COMPILE};
  *list = attributes;
  *count = sizeof attributes / sizeof *attributes;
  return ACL_SUCCESS;
}
API aclError aclGetCannAttribute(aclCannAttr, int32_t* value) {
  *value = 1;
  return ACL_SUCCESS;
}

// ---- options: stored, so that torch_npu reads back what it set
API aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  std::lock_guard<std::mutex> guard(mutex);
  system_options[option] = value;
  return ACL_SUCCESS;
}
API aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) { return aclrtSetSysParamOpt(option, value); }
API aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t* value) {
  std::lock_guard<std::mutex> guard(mutex);
  *value = system_options[option];
  return ACL_SUCCESS;
}
API aclError aclSetCompileopt(aclCompileOpt option, const char* value) {
  std::lock_guard<std::mutex> guard(mutex);
  compile_options[option] = value;
  log(2, "compile option %d = %s", option, value);
  return ACL_SUCCESS;
}
API size_t aclGetCompileoptSize(aclCompileOpt option) {
  std::lock_guard<std::mutex> guard(mutex);
  return compile_options[option].size() + 1;
}
API aclError aclGetCompileopt(aclCompileOpt option, char* value, size_t size) {
  std::lock_guard<std::mutex> guard(mutex);
  snprintf(value, size, "%s", compile_options[option].c_str());
  return ACL_SUCCESS;
}
API_WITHOUT_EFFECT(aclrtSetDeviceSatMode(aclrtFloatOverflowMode))
API_WITHOUT_EFFECT(aclrtSetOpExecuteTimeOut(uint32_t))
API_WITHOUT_EFFECT(aclrtSetOpWaitTimeout(uint32_t))
API_WITHOUT_EFFECT(aclmdlInitDump())
API_WITHOUT_EFFECT(aclmdlFinalizeDump())
API_WITHOUT_EFFECT(aclmdlSetDump(const char*))
