// Matrix products by the GEMM of oneDNN that MindSpore ships (libdnnl), with our pool as its threads.
//
// MindSpore's own MatMul ends in the same code, but only in float32, into fresh memory, on threads of its
// own. Called directly it reads transposed operands in place, accumulates into existing memory, and takes
// 16-bit types: by the library's bfloat16 kernel where that is faster than its float32 one on this CPU (AMX,
// AVX512-BF16 at full rate), else in panels that are widened to float32 first. Sums are float32 either way.
#include <dlfcn.h>

#include <chrono>
#include <functional>
#include <mutex>

#define MSK_SOURCE "kernels/gemm.inl"
#include "kernels/bind.h"
#include "kernels/foreach_isa.h"

namespace mindspeed_ms::kernels {
namespace {

using Dim = std::int64_t;

// oneDNN's threadpool_iface (dnnl_threadpool_iface.hpp), which it calls through its virtual table. It splits
// a
// product, its sums too, by the number of threads that it is told: with `parts` always by that one.
class Threads {
 public:
  explicit Threads(int parts) : parts_(parts) {}
  virtual int get_num_threads() const { return parts_ > 0 ? parts_ : pool::threads(); }
  virtual bool get_in_parallel() const { return inside_; }
  virtual void parallel_for(int n, const std::function<void(int, int)>& task) {
    kernels::parallel_for(n, [&](std::int64_t i) {
      const bool before = std::exchange(inside_, true);
      task(static_cast<int>(i), n);
      inside_ = before;
    });
  }
  virtual std::uint64_t get_flags() const { return 0; }  // parallel_for returns when all is done
  virtual void wait() {}
  virtual ~Threads() = default;

 private:
  static inline thread_local bool inside_ = false;
  int parts_;
};

template <class T>
using Gemm = int (*)(char, char, Dim, Dim, Dim, float, const T*, Dim, const T*, Dim, float, float*, Dim,
                     void*);

Gemm<float> g_float32 = nullptr;
Gemm<std::uint16_t> g_bfloat16 = nullptr;
bool g_widen_bfloat16 = false;

Threads& threads(bool deterministic) {
  constexpr int kParts = 8;
  static auto* by_pool = new Threads(0);
  static auto* fixed = new Threads(kParts);
  return deterministic ? *fixed : *by_pool;
}

void check(int status) {
  if (status != 0) throw std::runtime_error("oneDNN's GEMM failed with status " + std::to_string(status));
}

// An operand: `rows` x `cols` in memory, or the transpose of what the product takes (`turned`).
struct Matrix {
  Ptr data;
  DType dtype;
  Dim ld;
  bool turned;

  Ptr at(Dim row, Dim col) const {
    const Dim offset = turned ? col * ld + row : row * ld + col;
    return data + static_cast<Ptr>(offset) * (dtype == DType::float32 ? 4 : 2);
  }
};

// Buffers for widened panels, kept between calls. One caller has them; a second thread brings its own.
struct Scratch {
  std::unique_ptr<float[]> data[3];
  std::size_t sizes[3] = {0, 0, 0};
  float* get(int which, Dim count) {
    const auto wanted = static_cast<std::size_t>(count);
    if (sizes[which] < wanted) {
      data[which].reset();
      data[which].reset(new float[wanted]);
      sizes[which] = wanted;
    }
    return data[which].get();
  }
};

class Product {
 public:
  Product(Matrix a, Matrix b, Matrix c, Dim m, Dim n, Dim k, float alpha, float beta, bool deterministic)
      : a_(a), b_(b), c_(c), m_(m), n_(n), k_(k), alpha_(alpha), beta_(beta), deterministic_(deterministic) {}

  void run() {
    const bool widen = a_.dtype == DType::float16 || (a_.dtype == DType::bfloat16 && widens_bfloat16());
    if (!widen && c_.dtype == DType::float32) return call(a_, b_, c_, m_, n_, k_, beta_);
    static auto* shared = new Scratch;
    static auto* owner = new std::mutex;
    std::unique_lock<std::mutex> lock(*owner, std::try_to_lock);
    Scratch own;
    Scratch& scratch = lock.owns_lock() ? *shared : own;
    // The longer side goes in panels, and so does the depth: scratch stays small whatever the shapes.
    const bool by_rows = m_ >= n_;
    const Dim side = std::max(m_, n_), other = std::min(m_, n_);
    const Dim depth = std::max<Dim>(widen ? std::min(k_, kDepth) : k_, 1);
    const Dim step = std::min(side, std::max<Dim>(kPanel / std::max({depth, other, Dim{1}}) / 64 * 64, 64));
    const Matrix whole = by_rows ? b_ : a_, parts = by_rows ? a_ : b_;
    Matrix fixed = whole;
    for (Dim begin = 0; begin < side; begin += step) {
      const Dim count = std::min(step, side - begin);
      const Dim rows = by_rows ? count : m_, cols = by_rows ? n_ : count;
      const Ptr target = by_rows ? c_.at(begin, 0) : c_.at(0, begin);
      Matrix out{target, c_.dtype, c_.ld, false};
      if (c_.dtype != DType::float32) {
        out = {reinterpret_cast<Ptr>(scratch.get(2, rows * cols)), DType::float32, cols, false};
        if (beta_ != 0.0f) convert(target, out.data, rows, cols, c_.ld, cols, c_.dtype, DType::float32);
      }
      Dim from = 0;
      do {
        const Dim deep = std::min(depth, k_ - from);
        Matrix moving = parts;
        moving.data = by_rows ? parts.at(begin, from) : parts.at(from, begin);
        if (widen) {
          moving =
              widened(moving, by_rows ? count : deep, by_rows ? deep : count, scratch.get(1, deep * count));
          if (begin == 0 || depth < k_) {  // else it still lies there
            fixed = whole;
            fixed.data = by_rows ? whole.at(from, 0) : whole.at(0, from);
            fixed = widened(fixed, by_rows ? deep : m_, by_rows ? n_ : deep, scratch.get(0, deep * other));
          }
        }
        call(by_rows ? moving : fixed, by_rows ? fixed : moving, out, rows, cols, deep, from ? 1.0f : beta_);
        from += depth;
      } while (from < k_);
      if (c_.dtype != DType::float32)
        convert(out.data, target, rows, cols, cols, c_.ld, DType::float32, c_.dtype);
    }
  }

 private:
  static constexpr Dim kPanel = 2 * 1024 * 1024;  // elements: a panel stays in the outer cache
  static constexpr Dim kDepth = 2048;             // a deeper product is a sum of products, in float32
  static constexpr auto convert = MSK_SELECT(convert_matrix);

  // By what was measured; a measurement may differ from run to run, what the CPU has does not.
  bool widens_bfloat16() const { return deterministic_ ? !has_bfloat16() : g_widen_bfloat16; }

  static bool has_bfloat16() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return false;
#endif
  }

  // The rows x cols operand in float32, laid out as it is.
  static Matrix widened(Matrix x, Dim rows, Dim cols, float* to) {
    if (x.turned) std::swap(rows, cols);
    const auto place = reinterpret_cast<Ptr>(to);
    convert(x.data, place, rows, cols, x.ld, cols, x.dtype, DType::float32);
    return {place, DType::float32, cols, x.turned};
  }

  void call(Matrix a, Matrix b, Matrix c, Dim m, Dim n, Dim k, float beta) const {
    const char turn_a = a.turned ? 'T' : 'N', turn_b = b.turned ? 'T' : 'N';
    if (a.dtype == DType::float32)
      check(g_float32(turn_a, turn_b, m, n, k, alpha_, as<const float>(a.data), a.ld, as<const float>(b.data),
                      b.ld, beta, as<float>(c.data), c.ld, &threads(deterministic_)));
    else
      check(g_bfloat16(turn_a, turn_b, m, n, k, alpha_, as<const std::uint16_t>(a.data), a.ld,
                       as<const std::uint16_t>(b.data), b.ld, beta, as<float>(c.data), c.ld,
                       &threads(deterministic_)));
  }

  Matrix a_, b_, c_;
  Dim m_, n_, k_;
  float alpha_, beta_;
  bool deterministic_;
};

double seconds_of(const std::function<void()>& work) {
  work();
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// Finds the two functions in the library at `path`, and which of them is faster for bfloat16.
void gemm_load(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(std::string("cannot load MindSpore's oneDNN: ") + dlerror());
  const auto float32 = reinterpret_cast<Gemm<float>>(dlsym(library, "dnnl_threadpool_interop_sgemm"));
  const auto bfloat16 =
      reinterpret_cast<Gemm<std::uint16_t>>(dlsym(library, "dnnl_threadpool_interop_gemm_bf16bf16f32"));
  if (!float32 || !bfloat16)
    throw std::runtime_error(path +
                             " has no GEMM for a thread pool: MindSpore was built with another oneDNN");
  g_float32 = float32;
  g_bfloat16 = bfloat16;
  constexpr Dim n = 256;
  std::vector<float> x(n * n, 0.5f), y(n * n);
  std::vector<std::uint16_t> half(n * n, 0x3f00);
  // On one thread, as the pool may be busy: the ratio is what counts.
  const double wide = seconds_of(
      [&] { check(float32('N', 'N', n, n, n, 1, x.data(), n, x.data(), n, 0, y.data(), n, nullptr)); });
  const double narrow = seconds_of([&] {
    check(bfloat16('N', 'N', n, n, n, 1, half.data(), n, half.data(), n, 0, y.data(), n, nullptr));
  });
  g_widen_bfloat16 = wide < 0.9 * narrow;
}

// c = alpha * a b + beta * c for `batch` matrices: a m x k, b k x n, c m x n with unit stride in its rows. A
// turned operand lies transposed. Strides between matrices are in elements. `deterministic`: the same bits
// whatever the number of threads.
void gemm(Ptr a, Ptr b, Ptr c, Dim m, Dim n, Dim k, Dim lda, Dim ldb, Dim ldc, bool turn_a, bool turn_b,
          Dim batch, Dim stride_a, Dim stride_b, Dim stride_c, double alpha, double beta, bool deterministic,
          DType dtype, DType out_dtype) {
  if (!g_float32) throw std::runtime_error("gemm: gemm_load was not called");
  const Dim size = dtype == DType::float32 ? 4 : 2, out_size = out_dtype == DType::float32 ? 4 : 2;
  for (Dim i = 0; i < batch; ++i)
    Product({a + static_cast<Ptr>(i * stride_a * size), dtype, lda, turn_a},
            {b + static_cast<Ptr>(i * stride_b * size), dtype, ldb, turn_b},
            {c + static_cast<Ptr>(i * stride_c * out_size), out_dtype, ldc, false}, m, n, k,
            static_cast<float>(alpha), static_cast<float>(beta), deterministic)
        .run();
}

}  // namespace

void bind_gemm(pybind11::module_& m) {
  DEFINE_WITH_NAMES(m, "gemm_load", &gemm_load, path);
  DEFINE_WITH_NAMES(m, "gemm", &gemm, a, b, c, m, n, k, lda, ldb, ldc, turn_a, turn_b, batch, stride_a,
                    stride_b, stride_c, alpha, beta, deterministic, dtype, out_dtype);
  m.def("gemm_widens_bfloat16", [] { return g_widen_bfloat16; });
  m.def(
      "gemm_widen_bfloat16", [](bool on) { g_widen_bfloat16 = on; }, pybind11::arg("on"),
      "Overrides what gemm_load has measured: for tests and benchmarks of both ways.");
}

}  // namespace mindspeed_ms::kernels
