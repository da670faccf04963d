// Streams, events, callbacks. A stream runs its work in order: at once on the caller's thread, or, in
// asynchronous mode and for collectives, on a thread of its own.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "../sim.h"

namespace sim {

struct Task {
  std::function<void()> work;
  const char* what;
  // What is to happen instead where the stream has failed, and why it has.
  std::function<void(const std::string&)> dropped = nullptr;
};

class Stream {
 public:
  explicit Stream(int id) : id(id) {}
  ~Stream() {
    if (!thread_.joinable()) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      wake_.notify_all();
    }
    thread_.join();
  }

  void push(Task task, bool threaded) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!settings().async && !threaded && !thread_.joinable()) {
      lock.unlock();
      std::lock_guard<std::recursive_mutex> in_order(inline_mutex_);
      run(task);
      return;
    }
    if (!thread_.joinable()) thread_ = std::thread([this] { loop(); });
    queue_.push_back(std::move(task));
    wake_.notify_one();
  }

  int wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    idle_.wait(lock, [&] { return queue_.empty() && !busy_; });
    return error_.exchange(kOk);
  }

  bool done() {
    std::lock_guard<std::mutex> lock(mutex_);
    return queue_.empty() && !busy_;
  }

  const int id;

 private:
  void loop() {
    std::minstd_rand random(id + 1);
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      Task task = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
      lock.unlock();
      if (settings().async && settings().delay_us > 0 && random() % 8 == 0)
        std::this_thread::sleep_for(std::chrono::microseconds(random() % settings().delay_us));
      run(task);
      task.work = nullptr;
      lock.lock();
      busy_ = false;
      if (queue_.empty()) idle_.notify_all();
    }
  }

  // After an error the chip drops what is left in the stream until somebody asks for the error.
  void run(Task& task) {
    if (error_) {
      if (task.dropped) task.dropped(why_);
      return;
    }
    try {
      task.work();
    } catch (const std::exception& e) {
      why_ = "kernel " + std::string(kernel_name(task.what)) + " failed: " + e.what();
      error_ = fail(kAicoreException, why_);
    }
  }

  std::mutex mutex_;
  std::recursive_mutex inline_mutex_;
  std::condition_variable wake_, idle_;
  std::deque<Task> queue_;
  std::thread thread_;
  std::atomic<int> error_{kOk};
  std::string why_;  // of the last error; the stream's own work reads and writes it
  bool stop_ = false, busy_ = false;
};

namespace {

std::mutex streams_mutex;
std::set<Stream*>& streams() {
  static auto* s = new std::set<Stream*>;
  return *s;
}

Stream* create() {
  static int next = 0;
  std::lock_guard<std::mutex> lock(streams_mutex);
  auto* s = new Stream(next++);
  streams().insert(s);
  return s;
}

Stream* stream_of(void* handle) {
  static Stream* by_default = create();
  return handle ? static_cast<Stream*>(handle) : by_default;
}

// Counts its records: a wait belongs to the last record before it. A record that its stream dropped after an
// error hands that on: MindSpore has a stream stop on failure, and then those of its context stop as well
// (hicann/runtime, docs/api_docs/aclrtSetStreamFailureMode.md: Atlas A2, A3).
struct Event {
  std::mutex mutex;
  std::condition_variable recorded;
  uint64_t asked = 0, reached = 0;
  double time_us = 0;
  std::string error;  // empty: the work before the record is done

  std::string wait(uint64_t record) {
    std::unique_lock<std::mutex> lock(mutex);
    recorded.wait(lock, [&] { return reached >= record; });
    return error;
  }
  void reach(uint64_t record, const std::string& why, double now) {
    std::lock_guard<std::mutex> lock(mutex);
    reached = record;
    error = why;
    time_us = now;
    recorded.notify_all();
  }
  uint64_t last() {
    std::lock_guard<std::mutex> lock(mutex);
    return asked;
  }
};

double now_us() {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

void enqueue(void* stream, std::function<void()> work, const char* what, bool threaded) {
  stream_of(stream)->push({std::move(work), what}, threaded);
}

}  // namespace sim

using namespace sim;

API int aclrtCreateStream(void** s) {
  *s = create();
  SIM_TRACE("stream %p", *s);
  return kOk;
}
API int aclrtCreateStreamWithConfig(void** s, uint32_t, uint32_t) { return aclrtCreateStream(s); }
API int aclrtDestroyStream(void* handle) {
  auto* s = static_cast<Stream*>(handle);
  {
    std::lock_guard<std::mutex> lock(streams_mutex);
    streams().erase(s);
  }
  s->wait();
  delete s;
  return kOk;
}
API int aclrtDestroyStreamForce(void* s) { return aclrtDestroyStream(s); }
API int aclrtSynchronizeStream(void* s) {
  count(Count::kStreamSyncs);
  return stream_of(s)->wait();
}
API int aclrtSynchronizeStreamWithTimeout(void* s, int32_t) { return aclrtSynchronizeStream(s); }
API int aclrtSynchronizeDevice() {
  count(Count::kDeviceSyncs);
  std::vector<Stream*> all;
  {
    std::lock_guard<std::mutex> lock(streams_mutex);
    all.assign(streams().begin(), streams().end());
  }
  int result = kOk;
  for (auto* s : all)
    if (int error = s->wait()) result = error;
  return result;
}
API int aclrtSynchronizeDeviceWithTimeout(int32_t) { return aclrtSynchronizeDevice(); }
API int aclrtStreamQuery(void* s, int* status) {
  *status = stream_of(s)->done() ? 0 : 1;
  return kOk;
}
API int aclrtStreamGetId(void* s, int32_t* id) {
  *id = stream_of(s)->id;
  return kOk;
}

API int aclrtCreateEvent(void** e) {
  *e = new Event;
  return kOk;
}
API int aclrtCreateEventWithFlag(void** e, uint32_t) { return aclrtCreateEvent(e); }
API int aclrtCreateEventExWithFlag(void** e, uint32_t) { return aclrtCreateEvent(e); }
API int aclrtDestroyEvent(void*) { return kOk; }  // kept: work in a queue may still point at it
API int aclrtRecordEvent(void* handle, void* stream) {
  auto* e = static_cast<Event*>(handle);
  uint64_t record;
  {
    std::lock_guard<std::mutex> lock(e->mutex);
    record = ++e->asked;
  }
  auto reach = [=](const std::string& error) { e->reach(record, error, now_us()); };
  stream_of(stream)->push({[=] { reach(""); }, "event record", reach}, false);
  return kOk;
}
API int aclrtStreamWaitEvent(void* stream, void* handle) {
  auto* e = static_cast<Event*>(handle);
  uint64_t record = e->last();
  enqueue(
      stream,
      [=] {
        if (auto error = e->wait(record); !error.empty())
          throw std::runtime_error("in the stream that it waits for, " + error);
      },
      "event wait");
  return kOk;
}
API int aclrtStreamWaitEventWithTimeout(void* s, void* e, int32_t) { return aclrtStreamWaitEvent(s, e); }
API int aclrtResetEvent(void*, void*) { return kOk; }
API int aclrtSynchronizeEvent(void* handle) {
  count(Count::kEventSyncs);
  auto* e = static_cast<Event*>(handle);
  return e->wait(e->last()).empty() ? kOk : kAicoreException;
}
API int aclrtQueryEventStatus(void* handle, int* status) {
  auto* e = static_cast<Event*>(handle);
  std::lock_guard<std::mutex> lock(e->mutex);
  *status = e->reached >= e->asked ? 1 : 0;
  return e->error.empty() ? kOk : kAicoreException;
}
API int aclrtQueryEventWaitStatus(void* e, int* status) { return aclrtQueryEventStatus(e, status); }
API int aclrtEventElapsedTime(float* ms, void* from, void* to) {
  *ms = static_cast<float>((static_cast<Event*>(to)->time_us - static_cast<Event*>(from)->time_us) / 1000);
  return kOk;
}
API int aclrtEventGetTimestamp(void* e, uint64_t* time) {
  *time = static_cast<uint64_t>(static_cast<Event*>(e)->time_us);
  return kOk;
}

API int aclrtSubscribeReport(uint64_t, void*) { return kOk; }
API int aclrtUnSubscribeReport(uint64_t, void*) { return kOk; }
API int aclrtProcessReport(int32_t ms) {  // callbacks run in their stream: there is never a report to process
  std::this_thread::sleep_for(std::chrono::milliseconds(ms > 0 && ms < 1000 ? ms : 100));
  return kReportTimeout;
}
API int aclrtLaunchCallback(void (*f)(void*), void* data, int, void* stream) {
  enqueue(
      stream, [=] { f(data); }, "callback");
  return kOk;
}
API int aclrtLaunchHostFunc(void* stream, void (*f)(void*), void* data) {
  enqueue(
      stream, [=] { f(data); }, "host function");
  return kOk;
}
