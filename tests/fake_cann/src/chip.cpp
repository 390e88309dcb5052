// libascendcl.so: what the chip and CANN say of themselves, and options that torch_npu sets.
#include "chip.h"

#include "faults.h"
#include "options.h"

#include <acl/acl_op_compiler.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

using namespace fake_cann;

namespace {

// The figures of a 910_9362: only what torch_npu prints or sizes a workspace by.
constexpr int64_t kCubeCores = 24;
constexpr int64_t kVectorCores = 48;
constexpr int64_t kL2CacheBytes = 192ll << 20;

std::mutex mutex;
std::map<int, std::string> compile_options;
std::map<int, int64_t> system_options;
std::atomic<bool> saturation_mode{false};

uint32_t cores(aclrtDevResLimitType type) {
  return type == ACL_RT_DEV_RES_CUBE_CORE ? kCubeCores : kVectorCores;
}

// Writes the version of CANN or of the driver; the error of one that cannot be asked.
aclError write_version(bool driver, char* version, size_t size) {
  if (aclError error = refused("aclsysGetCANNVersion")) return error;
  const std::string& driver_version = options().driver_version;
  if (driver && driver_version == "none") return fail(ACL_ERROR_INTERNAL_ERROR, "no version");
  const char* bytes = driver_version == "garbage" ? "\xf8\x80\x01?" : driver_version.c_str();
  snprintf(version, size, "%s", driver ? bytes : options().version.c_str());
  return ACL_SUCCESS;
}

// The caller holds the mutex.
std::string compile_option(aclCompileOpt option) {
  auto found = compile_options.find(option);
  if (found != compile_options.end()) return found->second;
  if (option == ACL_OP_JIT_COMPILE) return is_older_chip() ? "enable" : "disable";
  return "";
}

}  // namespace

bool fake_cann::is_older_chip() {
  static const bool older = [] {
    const std::string& soc = options().soc;
    for (const char* name : {"Ascend910A", "Ascend910ProA", "Ascend910ProB", "Ascend910PremiumA"}) {
      if (soc == name) return true;
    }
    return soc.rfind("Ascend310", 0) == 0;
  }();
  return older;
}

bool fake_cann::saturates() { return is_older_chip() || saturation_mode; }

// CANN has no such name: whoever must never take this for a chip asks the library that is loaded.
API int fake_cann_emulated() { return 1; }

API const char* aclrtGetSocName() { return options().soc.c_str(); }
API aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo info, int64_t* value) {
  *value = info == ACL_DEVICE_INFO_AI_CORE_NUM       ? kCubeCores
           : info == ACL_DEVICE_INFO_VECTOR_CORE_NUM ? kVectorCores
                                                     : kL2CacheBytes;
  return ACL_SUCCESS;
}
API aclError aclrtGetDeviceInfo(uint32_t, aclrtDevAttr attribute, int64_t* value) {
  constexpr int kFirstNonCoreAttribute = 200;
  *value = attribute == ACL_DEV_ATTR_VECTOR_CORE_NUM ? kVectorCores
           : attribute == ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE
               ? static_cast<int64_t>(options().device_bytes)
           : attribute == ACL_DEV_ATTR_L2_CACHE_SIZE ? kL2CacheBytes
           : attribute < kFirstNonCoreAttribute      ? kCubeCores
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
  return write_version(!strcasecmp(package, "driver"), version, ACL_PKG_VERSION_MAX_SIZE);
}
API aclError aclsysGetCANNVersion(aclCANNPackageName package, aclCANNPackageVersion* version) {
  memset(version, 0, sizeof *version);
  return write_version(package == ACL_PKG_NAME_DRIVER, version->version, sizeof version->version);
}
API aclError aclGetCannAttributeList(const aclCannAttr** list, size_t* count) {
  static const aclCannAttr attributes[] = {ACL_CANN_ATTR_JIT_COMPILE, ACL_CANN_ATTR_INF_NAN,
                                           ACL_CANN_ATTR_BF16};
  *list = attributes;
  *count = is_older_chip() ? 1 : sizeof attributes / sizeof *attributes;
  return ACL_SUCCESS;
}
API aclError aclGetCannAttribute(aclCannAttr attribute, int32_t* value) {
  *value = attribute == ACL_CANN_ATTR_JIT_COMPILE || !is_older_chip();
  return ACL_SUCCESS;
}

// ---- options: stored, so that torch_npu reads back what it set
API aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  std::lock_guard<std::mutex> guard(mutex);
  system_options[option] = value;
  return ACL_SUCCESS;
}
API aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  return aclrtSetSysParamOpt(option, value);
}
API aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t* value) {
  std::lock_guard<std::mutex> guard(mutex);
  *value = system_options[option];
  return ACL_SUCCESS;
}
API aclError aclSetCompileopt(aclCompileOpt option, const char* value) {
  if (aclError error = refused("aclSetCompileopt")) return error;
  std::lock_guard<std::mutex> guard(mutex);
  compile_options[option] = value;
  log(2, "compile option %d = %s", option, value);
  return ACL_SUCCESS;
}
API size_t aclGetCompileoptSize(aclCompileOpt option) {
  std::lock_guard<std::mutex> guard(mutex);
  return compile_option(option).size() + 1;
}
API aclError aclGetCompileopt(aclCompileOpt option, char* value, size_t size) {
  std::lock_guard<std::mutex> guard(mutex);
  snprintf(value, size, "%s", compile_option(option).c_str());
  return ACL_SUCCESS;
}
API aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode mode) {
  saturation_mode = mode == ACL_RT_OVERFLOW_MODE_SATURATION;
  return ACL_SUCCESS;
}
API_WITHOUT_EFFECT(aclrtSetOpExecuteTimeOut(uint32_t))
API_WITHOUT_EFFECT(aclrtSetOpWaitTimeout(uint32_t))
API_WITHOUT_EFFECT(aclmdlInitDump())
API_WITHOUT_EFFECT(aclmdlFinalizeDump())
API_WITHOUT_EFFECT(aclmdlSetDump(const char*))
