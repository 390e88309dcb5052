// Streams: tasks in order, on the calling thread or on one worker thread per stream.
#pragma once

#include "api.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace fake_cann {

class Stream;

// Thrown by a task whose kernel dies on the chip: the launch was fine, the next wait is not.
struct KernelAborted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Task {
  std::string name;
  std::function<void(Stream&)> run;  // throws when the task fails; empty does nothing
  int64_t duration_ns = 0;           // how long the stream is occupied at least
  bool sets_clock = false;           // `run` moves the stream's clock itself (waits and replays)
  // Called instead of `run` behind a failed task, with that task's failure; may be empty.
  std::function<void(const std::string&)> drop = {};
  int64_t submitted_ns = 0;
};

// What a capture recorded. A replay keeps it alive until it has run.
struct Graph {
  uint32_t id;
  std::vector<Task> nodes;
};

class Stream {
 public:
  Stream(int device, int id);
  ~Stream();

  const int device;
  const int id;
  std::shared_ptr<Graph> capture;  // set while the stream records instead of running

  // Records, runs or queues the task, whichever the stream does at present. Rethrows what a task
  // that runs at once throws, unless it is KernelAborted.
  void submit(Task task);
  // Runs one task now, on this thread, in the stream's own time.
  void execute(const Task& task, int64_t submitted_ns);
  // Blocks until everything queued has run; ACL_SUCCESS, or the error of a task that failed.
  aclError wait();
  bool idle();
  // When the last task ended, in the device's time: queued tasks follow each other without a gap,
  // whenever the worker thread really woke up.
  int64_t clock_ns() const { return clock_ns_; }
  void advance_clock_to(int64_t time_ns);

 private:
  void run_queue();
  bool dropped(const Task& task);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> queue_;
  size_t pending_ = 0;
  bool stopping_ = false;
  std::string failure_;
  std::atomic<int64_t> clock_ns_{0};
  std::thread worker_;
};

// The first line of an exception: torch puts the frames of its stack below.
SHARED std::string reason_of(const std::exception& error);

int64_t now_ns();
int next_id();

Stream* create_stream(int device);
// Waits for its queue first.
void destroy_stream(Stream* stream);
// A null handle is the current device's default stream.
SHARED Stream& stream_of(aclrtStream handle);
SHARED void submit(aclrtStream handle, std::string name, std::function<void(Stream&)> run,
                   int64_t duration_ns = 0);

// Blocks until every stream of the device has run dry; the first error among them.
aclError wait_for_device(int device);
// Every stream that records into `graph`, joined ones too, stops recording.
void end_capture(const std::shared_ptr<Graph>& graph);

}  // namespace fake_cann
