// libascendcl.so: events. An event may be recorded again and again: a waiter waits for the
// recording that was the latest when it began to wait. A recording behind an aborted kernel never
// happens: whoever waits for it is told so, and does not wait forever.
#include "devices.h"
#include "faults.h"
#include "streams.h"

using namespace fake_cann;

namespace {

struct Recordings {
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t requested = 0;
  uint64_t done = 0;
  int64_t time_ns = -1;
  uint64_t failed_from = UINT64_MAX;  // this recording and those behind it failed
  std::string failure;

  uint64_t latest() {
    std::lock_guard<std::mutex> guard(mutex);
    return requested;
  }
  // Blocks until the recording is done; the time at which the stream reached it. Throws
  // KernelAborted when the stream never will.
  int64_t wait(uint64_t recording) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return done >= recording; });
    if (recording >= failed_from) throw KernelAborted(failure);
    return time_ns;
  }
  void finish(uint64_t recording, int64_t at_ns) {
    std::lock_guard<std::mutex> guard(mutex);
    time_ns = at_ns;
    done = std::max(done, recording);
    if (recording > failed_from) failed_from = UINT64_MAX;
    changed.notify_all();
  }
  void fail(uint64_t recording, const std::string& why) {
    std::lock_guard<std::mutex> guard(mutex);
    done = std::max(done, recording);
    failed_from = std::min(failed_from, recording);
    failure = why;
    changed.notify_all();
  }
};

struct Event {
  std::shared_ptr<Recordings> recordings = std::make_shared<Recordings>();
  std::shared_ptr<Graph> capture;  // the graph that its latest recording belongs to
  int device = 0;
};

Event& event_of(aclrtEvent handle) { return *static_cast<Event*>(handle); }

}  // namespace

API aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t) {
  if (aclError error = current_device_error()) return error;
  *event = new Event;
  return ACL_SUCCESS;
}
API aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t flag) {
  return aclrtCreateEventExWithFlag(event, flag);
}
API aclError aclrtDestroyEvent(aclrtEvent event) {
  delete static_cast<Event*>(event);
  return ACL_SUCCESS;
}
API aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream_handle) {
  Stream& stream = stream_of(stream_handle);
  if (aclError error = device_error(stream.device)) return error;
  Event& event = event_of(handle);
  event.capture = stream.capture;
  event.device = stream.device;
  uint64_t recording;
  {
    std::lock_guard<std::mutex> guard(event.recordings->mutex);
    recording = stream.capture ? event.recordings->requested : ++event.recordings->requested;
  }
  auto record = [recordings = event.recordings, recording](Stream& on) {
    recordings->finish(recording, on.clock_ns());
  };
  auto drop = [recordings = event.recordings, recording](const std::string& failure) {
    recordings->fail(recording, failure);
  };
  stream.submit({"recordEvent", record, 0, true, drop});
  return ACL_SUCCESS;
}
API aclError aclrtStreamWaitEvent(aclrtStream stream_handle, aclrtEvent handle) {
  Stream& stream = stream_of(stream_handle);
  if (aclError error = device_error(stream.device)) return error;
  Event& event = event_of(handle);
  if (event.capture) {  // waiting for a capturing stream joins its capture
    if (!stream.capture) stream.capture = event.capture;
    return ACL_SUCCESS;
  }
  auto wait = [recordings = event.recordings, recording = event.recordings->latest()](Stream& on) {
    on.advance_clock_to(recordings->wait(recording));
  };
  stream.submit({"waitEvent", wait, 0, true});
  return ACL_SUCCESS;
}
API_WITHOUT_EFFECT(aclrtResetEvent(aclrtEvent, aclrtStream))
API aclError aclrtSynchronizeEvent(aclrtEvent handle) {
  Event& event = event_of(handle);
  try {
    event.recordings->wait(event.recordings->latest());
  } catch (const KernelAborted& aborted) {
    return fail(ACL_ERROR_RT_AICORE_EXCEPTION, aborted.what());
  }
  return device_error(event.device);
}
API aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus* status) {
  Event& event = event_of(handle);
  if (aclError error = device_error(event.device)) return error;
  std::lock_guard<std::mutex> guard(event.recordings->mutex);
  bool done = event.recordings->done >= event.recordings->requested;
  *status = done ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  return ACL_SUCCESS;
}
API aclError aclrtQueryEventWaitStatus(aclrtEvent, aclrtEventWaitStatus* status) {
  *status = ACL_EVENT_WAIT_STATUS_COMPLETE;
  return ACL_SUCCESS;
}
API aclError aclrtEventElapsedTime(float* milliseconds, aclrtEvent start, aclrtEvent end) {
  int64_t start_ns = event_of(start).recordings->time_ns,
          end_ns = event_of(end).recordings->time_ns;
  if (start_ns < 0 || end_ns < 0)
    return fail(ACL_ERROR_RT_PARAM_INVALID, "elapsed time of an event that was not recorded");
  *milliseconds = static_cast<float>(static_cast<double>(end_ns - start_ns) / 1e6);
  return ACL_SUCCESS;
}
API aclError aclrtEventGetTimestamp(aclrtEvent event, uint64_t* microseconds) {
  *microseconds = static_cast<uint64_t>(event_of(event).recordings->time_ns / 1000);
  return ACL_SUCCESS;
}
