// libascendcl.so: captured graphs. A graph is the list of tasks that its streams were given; a
// replay runs them in that order.
#include "faults.h"
#include "options.h"
#include "streams.h"

#include <cstdio>
#include <map>

using namespace fake_cann;

namespace {

std::mutex mutex;
std::map<aclmdlRI, std::shared_ptr<Graph>> graphs;
thread_local aclmdlRICaptureMode capture_mode = ACL_MODEL_RI_CAPTURE_MODE_GLOBAL;

std::shared_ptr<Graph> graph_of(aclmdlRI handle) {
  std::lock_guard<std::mutex> guard(mutex);
  auto found = graphs.find(handle);
  return found == graphs.end() ? nullptr : found->second;
}

// With FAKECANN_NOOP a replay costs the host one call, so no operator runs in it, copies neither.
bool is_idle(const Task& node) {
  if (node.duration_ns) return false;
  if (!node.run) return true;
  bool is_operator = node.name.rfind("aclnn", 0) == 0;
  return options().no_compute && is_operator && !may_go_wrong(node.name);
}

aclError no_such_graph() { return fail(ACL_ERROR_RT_INVALID_HANDLE, "no such graph"); }

}  // namespace

API aclError aclmdlRICaptureBegin(aclrtStream handle, aclmdlRICaptureMode) {
  Stream& stream = stream_of(handle);
  if (aclError error = device_error(stream.device)) return error;
  if (stream.capture) return fail(ACL_ERROR_RT_STREAM_CAPTURED, "the stream is capturing already");
  if (aclError error = refused("aclmdlRICaptureBegin")) return error;
  stream.capture = std::make_shared<Graph>();
  stream.capture->id = static_cast<uint32_t>(next_id());
  std::lock_guard<std::mutex> guard(mutex);
  graphs[stream.capture.get()] = stream.capture;
  return ACL_SUCCESS;
}
API aclError aclmdlRICaptureEnd(aclrtStream handle, aclmdlRI* graph) {
  std::shared_ptr<Graph> captured = stream_of(handle).capture;
  if (!captured) return fail(ACL_ERROR_RT_STREAM_NOT_CAPTURED, "the stream is not capturing");
  end_capture(captured);
  if (aclError error = refused("aclmdlRICaptureEnd")) return error;
  log(1, "captured %zu tasks", captured->nodes.size());
  *graph = captured.get();
  return ACL_SUCCESS;
}
API aclError aclmdlRICaptureGetInfo(aclrtStream handle, aclmdlRICaptureStatus* status,
                                    aclmdlRI* graph) {
  Stream& stream = stream_of(handle);
  *status = stream.capture ? ACL_MODEL_RI_CAPTURE_STATUS_ACTIVE : ACL_MODEL_RI_CAPTURE_STATUS_NONE;
  if (graph) *graph = stream.capture.get();
  return ACL_SUCCESS;
}
API aclError aclmdlRIExecuteAsync(aclmdlRI handle, aclrtStream stream_handle) {
  std::shared_ptr<Graph> graph = graph_of(handle);
  if (!graph) return no_such_graph();
  Stream& stream = stream_of(stream_handle);
  if (aclError error = device_error(stream.device)) return error;
  auto replay = [graph](Stream& on) {
    int64_t began_ns = on.clock_ns();
    for (const Task& node : graph->nodes) {
      if (!is_idle(node)) on.execute(node, began_ns);
    }
  };
  try {
    stream.submit({"graphReplay", replay, 0, true});
  } catch (const std::exception& error) {
    return fail(ACL_ERROR_RT_MODEL_EXECUTE, reason_of(error));
  }
  return device_error(stream.device);
}
API aclError aclmdlRIDestroy(aclmdlRI handle) {
  std::lock_guard<std::mutex> guard(mutex);
  return graphs.erase(handle) ? ACL_SUCCESS : no_such_graph();
}
API aclError aclmdlRIGetId(aclmdlRI handle, uint32_t* id) {
  std::shared_ptr<Graph> graph = graph_of(handle);
  if (!graph) return no_such_graph();
  *id = graph->id;
  return ACL_SUCCESS;
}
API aclError aclmdlRICaptureThreadExchangeMode(aclmdlRICaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return ACL_SUCCESS;
}
API aclError aclmdlRIDebugPrint(aclmdlRI handle) {
  std::shared_ptr<Graph> graph = graph_of(handle);
  if (!graph) return no_such_graph();
  for (const Task& node : graph->nodes) printf("%s\n", node.name.c_str());
  return ACL_SUCCESS;
}
// aclmdlRIDebugJsonPrint, which changed_signatures.cpp exports.
int write_graph_as_json(void* handle, const char* path) {
  std::shared_ptr<Graph> graph = graph_of(handle);
  if (!graph) return no_such_graph();
  FILE* file = fopen(path, "w");
  if (!file) return fail(ACL_ERROR_RT_PARAM_INVALID, std::string("cannot write ") + path);
  const char* separator = "";
  fputs("[", file);
  for (const Task& node : graph->nodes) {
    fprintf(file, "%s{\"name\":\"%s\"}", separator, node.name.c_str());
    separator = ",";
  }
  fputs("]\n", file);
  fclose(file);
  return ACL_SUCCESS;
}
API_WITHOUT_EFFECT(aclmdlRICaptureTaskGrpBegin(aclrtStream))
API aclError aclmdlRICaptureTaskGrpEnd(aclrtStream, aclrtTaskGrp* group) {
  *group = reinterpret_cast<void*>(1);
  return ACL_SUCCESS;
}
