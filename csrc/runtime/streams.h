#pragma once
#include <c10/core/Stream.h>

struct _object;
using PyObject = _object;

namespace mindspeed_ms {

// Streams and events of opaque memory are MindSpore's (bridge/device/device_streams.py); streams go by
// number, 0 is the default one. On host memory there are none: work is done when it is asked for.
struct StreamHooks {
  PyObject* make = nullptr;         // (priority) -> number
  PyObject* enter = nullptr;        // (number) -> None: makes it current
  PyObject* query = nullptr;        // (number) -> bool
  PyObject* synchronize = nullptr;  // (number) -> None
  PyObject* record = nullptr;       // (event or None, number, timing) -> event
  PyObject* wait = nullptr;         // (event, number) -> None: the stream waits
  PyObject* event_query = nullptr;
  PyObject* event_synchronize = nullptr;
  PyObject* elapsed = nullptr;  // (start event, end event) -> milliseconds
};
StreamHooks& stream_hooks();

// Whether another stream than the default one was ever made.
bool side_streams_used() noexcept;

// Milliseconds between two recorded events, as torch.Event.event_id names them.
double elapsed_milliseconds(int64_t start, int64_t end);

}  // namespace mindspeed_ms
