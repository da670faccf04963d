// Optimizer steps and multi-tensor operations over lists of tensors; a flat buffer is a list of one.

// Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019). Parameters and both moments are fp32;
// `copies`, when given, receive the new parameters in copy_dtype (bf16 or fp16 model weights beside fp32
// masters). Gradients are multiplied by grad_scale first. correction1/2 are 1 - beta^step (1 without bias
// correction).
inline void adam(const Pointers& params, const Pointers& grads, const Pointers& exp_avgs,
                 const Pointers& exp_avg_sqs, const Pointers& copies, const Sizes& sizes, DType grad_dtype,
                 DType copy_dtype, double lr, double beta1, double beta2, double eps, double weight_decay,
                 double correction1, double correction2, bool decoupled, bool maximize, double grad_scale) {
  check_list(params, sizes, "adam", "params");
  check_list(grads, sizes, "adam", "grads");
  check_list(exp_avgs, sizes, "adam", "exp_avgs");
  check_list(exp_avg_sqs, sizes, "adam", "exp_avg_sqs");
  if (!copies.empty()) check_list(copies, sizes, "adam", "copies");
  constexpr std::int64_t kAhead = 256;
  const auto spans = split_lists(sizes);
  const auto keep = static_cast<float>(decoupled ? 1.0 - lr * weight_decay : 1.0);
  const auto l2 = static_cast<float>(decoupled ? 0.0 : weight_decay);
  const auto b1 = static_cast<float>(beta1);
  const auto b2 = static_cast<float>(beta2);
  const auto n1 = static_cast<float>(1.0 - beta1);
  const auto n2 = static_cast<float>(1.0 - beta2);
  const auto step = static_cast<float>(lr / correction1);
  const auto root = static_cast<float>(1.0 / std::sqrt(correction2));
  const auto epsilon = static_cast<float>(eps);
  const auto scale = static_cast<float>(maximize ? -grad_scale : grad_scale);
  visit(grad_dtype, [&](auto grad_tag) {
    visit(copies.empty() ? DType::float32 : copy_dtype, [&](auto copy_tag) {
      using G = decltype(grad_tag);
      using C = decltype(copy_tag);
      parallel_for(static_cast<std::int64_t>(spans.size()), [&](std::int64_t s) {
        const Span span = spans[static_cast<std::size_t>(s)];
        float* p = element<float>(params, span.tensor, span.begin);
        float* m = element<float>(exp_avgs, span.tensor, span.begin);
        float* v = element<float>(exp_avg_sqs, span.tensor, span.begin);
        const G* g = element<const G>(grads, span.tensor, span.begin);
        C* copy = element<C>(copies, span.tensor, span.begin);
        each_vector(span.end - span.begin, [&](std::int64_t i, auto n) {
          // Seven streams are more than the CPU's own prefetchers keep ahead of.
          for (const float* stream : {p, m, v}) __builtin_prefetch(stream + i + kAhead);
          __builtin_prefetch(g + i + kAhead);
          const vf param = load(p + i, n);
          const vf grad = fma(splat(l2), param, load(g + i, n) * scale);
          const vf first = fma(splat(b1), load(m + i, n), n1 * grad);
          const vf second = fma(splat(b2), load(v + i, n), n2 * grad * grad);
          const vf update = first / fma(sqrt(second), splat(root), splat(epsilon));
          const vf next = fma(param, splat(keep), -step * update);
          store(m + i, first, n);
          store(v + i, second, n);
          store(p + i, next, n);
          if (copy) store(copy + i, next, n);
        });
      });
    });
  });
}

// SGD with momentum and Nesterov's form (torch.optim.SGD); `buffers` may be empty when momentum is 0. `first`
// is the first step, which sets the buffers to the gradient.
inline void sgd(const Pointers& params, const Pointers& grads, const Pointers& buffers,
                const Pointers& copies, const Sizes& sizes, DType grad_dtype, DType copy_dtype, double lr,
                double momentum, double dampening, double weight_decay, bool nesterov, bool first,
                bool maximize, double grad_scale) {
  check_list(params, sizes, "sgd", "params");
  check_list(grads, sizes, "sgd", "grads");
  if (momentum != 0.0) check_list(buffers, sizes, "sgd", "buffers");
  if (!copies.empty()) check_list(copies, sizes, "sgd", "copies");
  const auto spans = split_lists(sizes);
  const auto rate = static_cast<float>(-lr);
  const auto decay = static_cast<float>(weight_decay);
  const auto mu = static_cast<float>(momentum);
  const auto fresh = static_cast<float>(1.0 - dampening);
  const auto scale = static_cast<float>(maximize ? -grad_scale : grad_scale);
  visit(grad_dtype, [&](auto grad_tag) {
    visit(copies.empty() ? DType::float32 : copy_dtype, [&](auto copy_tag) {
      using G = decltype(grad_tag);
      using C = decltype(copy_tag);
      parallel_for(static_cast<std::int64_t>(spans.size()), [&](std::int64_t s) {
        const Span span = spans[static_cast<std::size_t>(s)];
        float* p = element<float>(params, span.tensor, span.begin);
        float* b = mu != 0.0f ? element<float>(buffers, span.tensor, span.begin) : nullptr;
        const G* g = element<const G>(grads, span.tensor, span.begin);
        C* copy = element<C>(copies, span.tensor, span.begin);
        each_vector(span.end - span.begin, [&](std::int64_t i, auto n) {
          const vf param = load(p + i, n);
          vf grad = fma(splat(decay), param, load(g + i, n) * scale);
          if (b) {
            const vf buffer = first ? grad : fma(splat(mu), load(b + i, n), fresh * grad);
            store(b + i, buffer, n);
            grad = nesterov ? fma(splat(mu), buffer, grad) : buffer;
          }
          const vf next = fma(splat(rate), grad, param);
          store(p + i, next, n);
          if (copy) store(copy + i, next, n);
        });
      });
    });
  });
}

// One pass over the inputs: out = in * scale where `outs` is given (may be `ins`), the sum of squares of in *
// scale per tensor into square_sums (float64), and whether any input is NaN or infinite as the result.
inline bool scale_and_norm(const Pointers& ins, const Pointers& outs, Ptr square_sums, const Sizes& sizes,
                           DType in_dtype, DType out_dtype, double scale) {
  check_list(ins, sizes, "scale_and_norm", "ins");
  if (!outs.empty()) check_list(outs, sizes, "scale_and_norm", "outs");
  const auto spans = split_lists(sizes);
  std::vector<double> sums(spans.size());
  std::vector<unsigned char> bad(spans.size());
  const auto factor = static_cast<float>(scale);
  visit(in_dtype, [&](auto in_tag) {
    visit(outs.empty() ? in_dtype : out_dtype, [&](auto out_tag) {
      using In = decltype(in_tag);
      using Out = decltype(out_tag);
      parallel_for(static_cast<std::int64_t>(spans.size()), [&](std::int64_t s) {
        const Span span = spans[static_cast<std::size_t>(s)];
        const In* in = element<const In>(ins, span.tensor, span.begin);
        Out* out = element<Out>(outs, span.tensor, span.begin);
        vi flaw{};
        const auto one = [&](std::int64_t i, auto n, vf& squares) {
          const vf x = load_ahead(in + i, n);
          const vf y = x * factor;
          flaw |= (x - x) != 0.0f;
          squares = fma(y, y, squares);
          if (out) store(out + i, y, n);
        };
        // Four sums at a time, as one would wait for its previous addition.
        vf part[4] = {};
        const std::int64_t count = span.end - span.begin;
        std::int64_t i = 0;
        for (; i + 4 * kW <= count; i += 4 * kW) {
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k) one(i + k * kW, Full{}, part[k]);
        }
        each_vector(count - i, [&](std::int64_t j, auto n) { one(i + j, n, part[0]); });
        const vf squares = (part[0] + part[1]) + (part[2] + part[3]);
        double total = 0.0;
        int any = 0;
        for (int lane = 0; lane < kW; ++lane) {
          total += static_cast<double>(squares[lane]);
          any |= flaw[lane];
        }
        sums[static_cast<std::size_t>(s)] = total;
        bad[static_cast<std::size_t>(s)] = any != 0;
      });
    });
  });
  if (square_sums) {
    double* result = as<double>(square_sums);
    std::fill(result, result + sizes.size(), 0.0);
    for (std::size_t s = 0; s < spans.size(); ++s) result[spans[s].tensor] += sums[s];
  }
  return std::any_of(bad.begin(), bad.end(), [](unsigned char b) { return b != 0; });
}
