// libascendcl.so: functions whose declarations differ between the headers of torch-npu 2.9
// and 2.13, so this file includes neither. The calls are compatible in the registers they use.
#include <cstddef>
#include <cstdint>

#define EXPORTED extern "C" __attribute__((visibility("default")))

int write_graph_as_json(void* graph, const char* path);

// 2.9 passes no flags.
EXPORTED int aclmdlRIDebugJsonPrint(void* graph, const char* path, uint32_t) {
  return write_graph_as_json(graph, path);
}

// The device's number is unsigned in 2.9. No component uses memory of its own here.
EXPORTED int aclrtGetMemUsageInfo(int32_t, void*, size_t, size_t* count) {
  *count = 0;
  return 0;
}
