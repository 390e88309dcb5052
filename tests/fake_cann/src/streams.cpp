#include "streams.h"

#include "devices.h"
#include "faults.h"

#include <sys/prctl.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <set>

namespace fake_cann {
namespace {

std::mutex registry_mutex;
std::set<Stream*>& registry() {
  static std::set<Stream*>& streams = *new std::set<Stream*>;  // outlives torch_npu's threads
  return streams;
}

Stream& default_stream(int device) {
  static Stream* streams[64];
  std::lock_guard<std::mutex> guard(registry_mutex);
  if (!streams[device]) registry().insert(streams[device] = new Stream(device, next_id()));
  return *streams[device];
}

std::vector<Stream*> streams_of(int device) {
  std::lock_guard<std::mutex> guard(registry_mutex);
  std::vector<Stream*> found;
  for (Stream* stream : registry()) {
    if (stream->device == device) found.push_back(stream);
  }
  return found;
}

// torch_npu's exception at the next wait gives only a code, so the reason goes to stderr too.
std::string failure_of(const Task& task, const std::exception& error) {
  std::string failure = task.name + ": " + reason_of(error);
  fprintf(stderr, "[fake_cann] %s\n", failure.c_str());
  return failure;
}

// A stream sleeps to an absolute deadline, so a late wake-up is not added to the next task's time.
void sleep_until(int64_t deadline_ns) {
  int64_t left = deadline_ns - now_ns();
  if (left > 0) std::this_thread::sleep_for(std::chrono::nanoseconds(left));
}

}  // namespace

std::string reason_of(const std::exception& error) {
  std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

int64_t now_ns() {
  auto since_boot = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since_boot).count();
}

int next_id() {
  static std::atomic<int> id{1};
  return id++;
}

Stream::Stream(int device, int id) : device(device), id(id) {}

Stream::~Stream() {
  {
    std::lock_guard<std::mutex> guard(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (worker_.joinable()) worker_.join();
}

void Stream::submit(Task task) {
  if (capture) {
    log(1, "capture %s", task.name.c_str());
    capture->nodes.push_back(std::move(task));
    return;
  }
  log(1, "run %s", task.name.c_str());
  task.submitted_ns = now_ns();
  if (!options().asynchronous) {
    if (!failure_.empty()) return;  // as on the chip, nothing runs behind a failed task
    try {
      execute(task, task.submitted_ns);
    } catch (const KernelAborted& error) {
      failure_ = failure_of(task, error);
    }
    return;
  }
  std::lock_guard<std::mutex> guard(mutex_);
  if (!worker_.joinable()) worker_ = std::thread([this] { run_queue(); });
  queue_.push_back(std::move(task));
  ++pending_;
  changed_.notify_all();
}

void Stream::execute(const Task& task, int64_t submitted_ns) {
  advance_clock_to(submitted_ns);
  int64_t began_ns = now_ns();
  if (task.run) task.run(*this);
  if (task.sets_clock) return;
  int64_t took_ns = now_ns() - began_ns;
  clock_ns_ += std::max(task.duration_ns, took_ns);
  if (task.duration_ns) sleep_until(clock_ns_);
}

void Stream::advance_clock_to(int64_t time_ns) {
  if (clock_ns_ < time_ns) clock_ns_ = time_ns;
}

void Stream::run_queue() {
  prctl(PR_SET_TIMERSLACK, 1);  // the default lets each sleep end 50 microseconds late
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Task task = std::move(queue_.front());
    queue_.pop_front();
    bool skip = !failure_.empty();
    lock.unlock();
    std::string failure;
    try {
      if (!skip) execute(task, task.submitted_ns);
    } catch (const std::exception& error) {
      failure = failure_of(task, error);
    }
    task = {};
    lock.lock();
    if (!failure.empty()) failure_ = failure;
    if (--pending_ == 0) changed_.notify_all();
  }
}

aclError Stream::wait() {
  if (capture) return fail(ACL_ERROR_RT_STREAM_CAPTURED, "a capturing stream cannot be waited for");
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return pending_ == 0; });
  if (aclError error = device_error(device)) return error;
  return failure_.empty() ? ACL_SUCCESS : fail(ACL_ERROR_RT_AICORE_EXCEPTION, failure_);
}

bool Stream::idle() {
  std::lock_guard<std::mutex> guard(mutex_);
  return pending_ == 0;
}

Stream& stream_of(aclrtStream handle) {
  return handle ? *static_cast<Stream*>(handle) : default_stream(std::max(current_device(), 0));
}

void submit(aclrtStream handle, std::string name, std::function<void(Stream&)> run, int64_t duration_ns) {
  stream_of(handle).submit({std::move(name), std::move(run), duration_ns});
}

aclError wait_for_device(int device) {
  aclError first = device_error(device);
  for (Stream* stream : streams_of(device)) {
    if (stream->capture) continue;
    aclError error = stream->wait();
    if (first == ACL_SUCCESS) first = error;
  }
  return first;
}

void end_capture(const std::shared_ptr<Graph>& graph) {
  std::lock_guard<std::mutex> guard(registry_mutex);
  for (Stream* stream : registry()) {
    if (stream->capture == graph) stream->capture = nullptr;
  }
}

}  // namespace fake_cann

using namespace fake_cann;

API aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) {
  if (current_device() < 0) return fail(ACL_ERROR_RT_CONTEXT_NULL, "a stream needs a device");
  if (aclError error = current_device_error()) return error;
  auto* created = new Stream(current_device(), next_id());
  std::lock_guard<std::mutex> guard(registry_mutex);
  registry().insert(created);
  *stream = created;
  return ACL_SUCCESS;
}
API aclError aclrtCreateStream(aclrtStream* stream) { return aclrtCreateStreamWithConfig(stream, 0, 0); }
API aclError aclrtDestroyStream(aclrtStream stream) {
  if (!stream) return ACL_SUCCESS;
  {
    std::lock_guard<std::mutex> guard(registry_mutex);
    registry().erase(static_cast<Stream*>(stream));
  }
  delete static_cast<Stream*>(stream);
  return ACL_SUCCESS;
}
API aclError aclrtDestroyStreamForce(aclrtStream stream) { return aclrtDestroyStream(stream); }
API aclError aclrtSynchronizeStream(aclrtStream stream) { return stream_of(stream).wait(); }
API aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t) { return stream_of(stream).wait(); }
API aclError aclrtSynchronizeDevice(void) { return wait_for_device(current_device()); }
API aclError aclrtSynchronizeDeviceWithTimeout(int32_t) { return wait_for_device(current_device()); }
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
API aclError aclrtLaunchCallback(aclrtCallback callback, void* data, aclrtCallbackBlockType, aclrtStream stream) {
  submit(stream, "callback", [=](Stream&) { callback(data); });
  return ACL_SUCCESS;
}
API aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc function, void* data) {
  submit(stream, "hostFunc", [=](Stream&) { function(data); });
  return ACL_SUCCESS;
}
API_WITHOUT_EFFECT(aclrtSubscribeReport(uint64_t, aclrtStream))
API_WITHOUT_EFFECT(aclrtUnSubscribeReport(uint64_t, aclrtStream))
// torch_npu's report thread polls this for callbacks; ours have run already, so it only has to wait.
API aclError aclrtProcessReport(int32_t timeout_ms) {
  usleep(static_cast<useconds_t>(timeout_ms < 0 ? 100 : timeout_ms) * 1000);
  return ACL_ERROR_RT_THREAD_SUBSCRIBE;
}
