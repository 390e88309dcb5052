// libascendcl.so: names that libtorch_npu.so needs in order to load and that no run of the kit
// calls: sharing memory between processes, custom kernels, the profiler's and HCCL's entry points.
#include "api.h"

#include <acl/acl_prof.h>

API_WITHOUT_EFFECT(aclrtMemExportToShareableHandle(aclrtDrvMemHandle, aclrtMemHandleType, uint64_t,
                                                   uint64_t*))
API_WITHOUT_EFFECT(aclrtMemImportFromShareableHandle(uint64_t, int32_t, aclrtDrvMemHandle*))
API_WITHOUT_EFFECT(aclrtMemSetPidToShareableHandle(uint64_t, int32_t*, size_t))
API_WITHOUT_EFFECT(aclrtBinaryGetFunction(const aclrtBinHandle, const char*, aclrtFuncHandle*))
API_WITHOUT_EFFECT(aclrtBinaryLoadFromData(const void*, size_t, const aclrtBinaryLoadOptions*,
                                           aclrtBinHandle*))
API_WITHOUT_EFFECT(aclrtGetFunctionAddr(aclrtFuncHandle, void**, void**))

// Declared in headers that the wheel does not ship.
#define NEVER_CALLED(name) \
  API long name() { return 0; }
NEVER_CALLED(MsprofGetHashId)
NEVER_CALLED(MsprofRegisterCallback)
NEVER_CALLED(MsprofReportAdditionalInfo)
NEVER_CALLED(MsprofReportApi)
NEVER_CALLED(MsprofReportCompactInfo)
NEVER_CALLED(MsprofSysCycleTime)
NEVER_CALLED(HcclSetConfig)
NEVER_CALLED(HcclGetConfig)
NEVER_CALLED(rtDevBinaryRegister)
NEVER_CALLED(rtFunctionRegister)
NEVER_CALLED(rtGetC2cCtrlAddr)
NEVER_CALLED(rtKernelLaunch)
