#include "streams.h"

#include "devices.h"
#include "faults.h"

#include <sys/prctl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>
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

int64_t read_clock(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec * 1000000000ll + time.tv_nsec;
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

int64_t now_ns() { return read_clock(CLOCK_MONOTONIC); }

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
    try {
      if (!dropped(task)) execute(task, task.submitted_ns);
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

// As on the chip, nothing runs behind a failed task. Only the thread that runs the tasks writes
// `failure_`, and only it asks here.
bool Stream::dropped(const Task& task) {
  if (failure_.empty()) return false;
  if (task.drop) task.drop(failure_);
  return true;
}

void Stream::execute(const Task& task, int64_t submitted_ns) {
  advance_clock_to(submitted_ns);
  // Where a duration is set, being preempted on a busy machine must not prolong it.
  clockid_t clock = task.duration_ns ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
  int64_t began_ns = read_clock(clock);
  if (task.run) task.run(*this);
  if (task.sets_clock) return;
  int64_t took_ns = read_clock(clock) - began_ns;
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
    lock.unlock();
    std::string failure;
    try {
      if (!dropped(task)) execute(task, task.submitted_ns);
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

Stream* create_stream(int device) {
  auto* created = new Stream(device, next_id());
  std::lock_guard<std::mutex> guard(registry_mutex);
  registry().insert(created);
  return created;
}

void destroy_stream(Stream* stream) {
  {
    std::lock_guard<std::mutex> guard(registry_mutex);
    registry().erase(stream);
  }
  delete stream;
}

Stream& stream_of(aclrtStream handle) {
  return handle ? *static_cast<Stream*>(handle) : default_stream(std::max(current_device(), 0));
}

void submit(aclrtStream handle, std::string name, std::function<void(Stream&)> run,
            int64_t duration_ns) {
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
