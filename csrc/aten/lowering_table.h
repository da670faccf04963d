#pragma once
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include <mutex>
#include <string>

#include "aten/routes.h"

namespace mindspeed_ms {

// MindSpore on CPU crashes when two threads run it at once; backward threads and the main thread take turns.
std::recursive_mutex& mindspore_mutex();

// Called with the GIL held. The GIL is given up while waiting, since MindSpore itself releases and retakes
// it.
class MindSporeLock {
 public:
  MindSporeLock() {
    if (mindspore_mutex().try_lock()) return;
    py::gil_scoped_release nogil;
    mindspore_mutex().lock();
  }
  ~MindSporeLock() { mindspore_mutex().unlock(); }
  MindSporeLock(const MindSporeLock&) = delete;
};

// How an overload relates to the functional operator whose kernel it uses.
enum class Form : uint8_t { Functional, InPlace, Out };

// The kernels of one functional operator and when each may be used.
struct Lowering {
  std::string name;
  Offer offer;
  pybind11::object mindspore, csrc;  // None where there is no such kernel
  // They write their first argument; None where the result of the others is copied there.
  pybind11::object mindspore_in_place, csrc_in_place;
  size_t key_arg = 0;     // the tensor argument whose dtype decides
  bool mixed = false;     // other tensor arguments may have other dtypes
  bool promotes = false;  // tensor arguments from key_arg on are cast to torch's common dtype, which decides
  bool strided = false;   // the kernels read any strides; else they are given contiguous tensors
  // Read 16-bit tensors beside a float32 key as they are: the csrc kernel, and what writes in place of
  // MindSpore's.
  bool csrc_widens = false, mindspore_widens = false;
  bool sums = false;   // over nothing the result is zeros
  bool joins = false;  // of its list, tensors without elements have no say
};

// The npu kernel of an overload. `lowering` outlives the interpreter: the dispatcher destroys its kernels
// after Python has gone.
torch::CppFunction lowered(const Lowering* lowering, Form form);

}  // namespace mindspeed_ms
