#include <pybind11/stl.h>

#include "binding.h"
#include "comm/engine.h"
#include "native.h"

namespace py = pybind11;

namespace mindspeed_ms {
namespace {

using namespace comm;
using BufferList = std::vector<std::pair<uintptr_t, int64_t>>;

// The engine and one of its operations. Waits in slices without the GIL, so that signals reach Python in
// between.
struct Handle {
  std::shared_ptr<Engine> engine;
  std::shared_ptr<Op> op;

  // True when done, false when `timeout_s` (negative: for ever) has passed first.
  bool wait(double timeout_s) const {
    const auto end = Clock::now() + std::chrono::duration<double>(timeout_s);
    while (!op->done.load(std::memory_order_acquire)) {
      int slice_ms = 100;
      if (timeout_s >= 0) {
        const auto rest = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
        if (rest <= 0) return false;
        slice_ms = static_cast<int>(std::min<int64_t>(rest, slice_ms));
      }
      bool done;
      {
        py::gil_scoped_release release;
        done = engine->wait(op, slice_ms);
      }
      if (!done && PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
    return true;
  }
};

std::vector<Buffer> buffers(const BufferList& list) {
  std::vector<Buffer> out;
  out.reserve(list.size());
  for (const auto& [address, count] : list) out.push_back({reinterpret_cast<void*>(address), count});
  return out;
}

py::dict record(const Engine& engine, const Op& op) {
  auto seconds = [](int64_t ns) { return static_cast<double>(ns) * 1e-9; };
  py::dict d;
  const bool done = op.done.load(std::memory_order_acquire);
  d["seq"] = op.seq;
  d["collective"] = name_of(op.request.kind);
  d["description"] = engine.describe(op);
  d["state"] = !done                         ? (op.started_ns ? "started" : "queued")
               : op.failure == Failure::none ? "completed"
                                             : "failed";
  d["created_s"] = seconds(op.created.time_since_epoch().count());
  d["started_s"] = seconds(op.started_ns);
  d["finished_s"] = seconds(op.finished_ns);
  return d;
}

}  // namespace

void bind_comm(py::module_& m) {
  m.attr("KINDS") = codes<Kind>();
  m.attr("DTYPES") = codes<DType>();
  m.attr("REDUCTIONS") = codes<RedOp>();
  m.attr("FAILURES") = codes<Failure>();
  m.def("process_start_time", &ProcessWatch::start_time_of, py::arg("pid"),
        "Start time of a process in clock ticks since boot; 0 when there is none.");
  m.def(
      "process_alive", [](int pid, uint64_t start_time) { return ProcessWatch(pid, start_time).alive(); },
      py::arg("pid"), py::arg("start_time"),
      "Whether the process with this start time runs: neither gone, nor a zombie, nor another of its "
      "number.");
  m.def("reduce_supported", &reduce_supported, py::arg("dtype"), py::arg("op"));
  m.def(
      "reduce",
      [](DType dtype, RedOp op, const std::vector<uintptr_t>& sources, uintptr_t out, int64_t count,
         double factor) {
        std::vector<const void*> src;
        for (uintptr_t s : sources) src.push_back(reinterpret_cast<const void*>(s));
        py::gil_scoped_release release;
        reduce_many(dtype, op, src.data(), static_cast<int>(src.size()), reinterpret_cast<void*>(out), count,
                    static_cast<int>(src.size()), factor);
      },
      py::arg("dtype"), py::arg("op"), py::arg("sources"), py::arg("out"), py::arg("count"),
      py::arg("factor") = 1.0,
      "out[i] = reduction over sources (addresses) of `count` elements; 16-bit floats accumulate in "
      "float32.");

  py::class_<Segment>(m, "Segment")
      .def_static(
          "create",
          [](int world, uint64_t chunk, uint64_t slots, const std::string& nonce) {
            return Segment::create({world, chunk, slots}, nonce);
          },
          py::arg("world"), py::arg("chunk"), py::arg("slots"), py::arg("nonce"))
      .def_static("open", &Segment::open, py::arg("path"), py::arg("nonce"))
      .def_property_readonly("path", &Segment::path)
      .def_property_readonly("descriptor", &Segment::descriptor)
      .def_property_readonly("nbytes", &Segment::bytes);

  py::class_<Handle>(m, "Operation")
      .def("wait", &Handle::wait, py::arg("timeout_s") = -1.0)
      .def_property_readonly("done",
                             [](const Handle& h) { return h.op->done.load(std::memory_order_acquire); })
      .def_property_readonly("failure", [](const Handle& h) { return h.op->failure; })
      .def_property_readonly("error", [](const Handle& h) { return h.op->error; })
      .def_property_readonly("seq", [](const Handle& h) { return h.op->seq; })
      .def_property_readonly("source", [](const Handle& h) { return h.op->source; })
      .def("__repr__", [](const Handle& h) { return h.engine->describe(*h.op); });

  py::class_<Engine, std::shared_ptr<Engine>>(m, "Engine")
      .def(py::init([](Segment& segment, int rank, const std::vector<std::tuple<int, int, uint64_t>>& peers,
                       const std::string& group) {
             std::vector<Engine::Peer> list;
             for (const auto& [global_rank, pid, start] : peers) list.push_back({global_rank, pid, start});
             return std::make_shared<Engine>(std::move(segment), rank, std::move(list), group);
           }),
           py::arg("segment"), py::arg("rank"), py::arg("peers"), py::arg("group"),
           "Takes over `segment`. peers: (global rank, pid, start time) of every rank of the group on this "
           "host.")
      .def(
          "submit",
          [](const std::shared_ptr<Engine>& e, Kind kind, DType dtype, RedOp op, double factor, int root,
             int64_t tag, const BufferList& sends, const BufferList& recvs, double timeout_s,
             bool foreground) {
            Request r{kind, dtype, op, factor, root, tag, buffers(sends), buffers(recvs), timeout_s};
            Handle h{e, nullptr};
            {
              py::gil_scoped_release release;
              h.op = e->submit(std::move(r), foreground);
            }
            if (foreground) h.wait(-1);
            return h;
          },
          py::arg("kind"), py::arg("dtype"), py::arg("op"), py::arg("factor"), py::arg("root"),
          py::arg("tag"), py::arg("sends"), py::arg("recvs"), py::arg("timeout_s"), py::arg("foreground"),
          "sends, recvs: (address, elements) pairs, one per peer where the collective has one. `foreground`: "
          "wait.")
      .def(
          "close", [](Engine& e, const std::string& reason) { e.close(reason); }, py::arg("reason"),
          py::call_guard<py::gil_scoped_release>())
      .def("release_descriptor", &Engine::release_descriptor)
      .def_property_readonly("all_attached", &Engine::all_attached)
      .def_property_readonly("path", &Engine::path)
      .def_property_readonly("sequence", &Engine::sequence)
      .def("history", [](const Engine& e) {
        py::list out;
        for (const auto& op : e.history()) out.append(record(e, *op));
        return out;
      });
}

}  // namespace mindspeed_ms
