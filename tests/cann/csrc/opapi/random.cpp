// Random numbers and dropout.
#include "random.h"

#include <array>
#include <cmath>

#include "op.h"

namespace opapi {

static std::array<uint32_t, 4> philox(uint64_t seed, uint64_t offset, uint64_t block) {
  std::array<uint32_t, 4> c{static_cast<uint32_t>(offset), static_cast<uint32_t>(offset >> 32),
                            static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32)};
  uint32_t k0 = seed, k1 = seed >> 32;
  for (int round = 0; round < 10; ++round) {
    uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(a)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

Tensor random_bits(int64_t n, uint64_t seed, uint64_t offset) {
  auto bits = at::empty({(n + 3) / 4 * 4}, at::kLong);
  auto* p = bits.mutable_data_ptr<int64_t>();
  for (int64_t block = 0; block < (n + 3) / 4; ++block) {
    auto four = philox(seed, offset, block);
    for (int i = 0; i < 4; ++i) p[4 * block + i] = four[i];
  }
  return bits.narrow(0, 0, n);
}

Tensor random_uniform(int64_t n, uint64_t seed, uint64_t offset) {
  return random_bits(n, seed, offset).bitwise_right_shift(8).to(at::kFloat) *
         static_cast<float>(1.0 / (1 << 24));
}

Tensor random_normal(int64_t n, uint64_t seed, uint64_t offset) {
  auto pairs = random_uniform((n + 1) / 2 * 2, seed, offset).reshape({-1, 2});
  auto radius = at::sqrt(-2 * at::log(1 - pairs.select(1, 0)));
  auto angle = pairs.select(1, 1) * (2 * M_PI);
  return at::stack({radius * at::cos(angle), radius * at::sin(angle)}, 1).reshape({-1}).narrow(0, 0, n);
}

static Tensor weights_of_bits() { return at::tensor({1, 2, 4, 8, 16, 32, 64, 128}, at::kInt); }

Tensor packed_mask(int64_t n, double drop, uint64_t seed, uint64_t offset) {
  auto kept = random_uniform((n + 7) / 8 * 8, seed, offset).ge(drop).to(at::kInt).reshape({-1, 8});
  return (kept * weights_of_bits()).sum(1).to(at::kByte);
}

Tensor unpacked_mask(const Tensor& mask, int64_t n) {
  auto bytes = mask.reshape({-1}).narrow(0, 0, (n + 7) / 8).to(at::kInt).unsqueeze(1);
  return bytes.bitwise_and(weights_of_bits()).ne(0).reshape({-1}).narrow(0, 0, n);
}

}  // namespace opapi

using namespace opapi;

ACLNN(aclnnInplaceNormal, Out self, float mean, float std, int64_t seed, int64_t offset) {
  TYPES(kFloats | kF64, self);
  KERNEL({
    auto x = self();
    put(self, (random_normal(x.numel(), seed, offset) * std + mean).reshape(x.sizes()));
  });
}
ACLNN(aclnnInplaceUniform, Out self, double low, double high, uint64_t seed, uint64_t offset) {
  TYPES(kFloats | kF64 | kIntegers, self);
  KERNEL({
    auto x = self();
    put(self, (random_uniform(x.numel(), seed, offset) * (high - low) + low).reshape(x.sizes()));
  });
}
ACLNN(aclnnInplaceRandom, Out self, int64_t low, int64_t high, int64_t seed, int64_t offset) {
  KERNEL({
    auto x = self();
    put(self, (random_bits(x.numel(), seed, offset).remainder(high - low) + low).reshape(x.sizes()));
  });
}
ACLNN(aclnnInplaceBernoulli, Out self, Num probability, int64_t seed, int64_t offset) {
  KERNEL({
    auto x = self();
    put(self, random_uniform(x.numel(), seed, offset).lt(probability().toDouble()).reshape(x.sizes()));
  });
}
ACLNN(aclnnInplaceBernoulliTensor, Out self, In probability, int64_t seed, int64_t offset) {
  KERNEL({
    auto x = self();
    put(self, random_uniform(x.numel(), seed, offset).reshape(x.sizes()).lt(wide(probability)));
  });
}
ACLNN(aclnnRandperm, int64_t n, int64_t seed, int64_t offset, Out out) {
  KERNEL(put(out, at::argsort(random_bits(n, seed, offset), true, 0, false)));
}
ACLNN(aclnnMultinomial, In self, int64_t samples, bool replacement, int64_t seed, int64_t offset, Out out) {
  TYPES(kFloats | kF64, self);
  TYPES(kI64, out);
  // With replacement by inversion of the cumulative sum; without it by the largest p / exponential.
  KERNEL({
    auto p = wide(self);
    bool flat = p.dim() == 1;
    if (flat) p = p.unsqueeze(0);
    Tensor picked;
    if (replacement) {
      auto sums = at::cumsum(p, -1);
      auto u = random_uniform(p.size(0) * samples, seed, offset).reshape({p.size(0), samples});
      picked = at::searchsorted(sums, u * sums.select(-1, -1).unsqueeze(-1), false, true);
    } else {
      auto e = -at::log(1 - random_uniform(p.numel(), seed, offset)).reshape(p.sizes());
      picked = std::get<1>(at::topk(p / e.clamp_min(1e-30), samples, -1));
    }
    put(out, flat ? picked.squeeze(0) : picked);
  });
}
ACLNN(aclnnNormalTensorTensor, In mean, In std, int64_t seed, int64_t offset, Out out) {
  KERNEL({
    auto x = out();
    put(out, random_normal(x.numel(), seed, offset).reshape(x.sizes()) * wide(std) + wide(mean));
  });
}
ACLNN(aclnnNormalTensorFloat, In mean, float std, int64_t seed, int64_t offset, Out out) {
  KERNEL({
    auto x = out();
    put(out, random_normal(x.numel(), seed, offset).reshape(x.sizes()) * std + wide(mean));
  });
}
ACLNN(aclnnNormalFloatTensor, float mean, In std, int64_t seed, int64_t offset, Out out) {
  KERNEL({
    auto x = out();
    put(out, random_normal(x.numel(), seed, offset).reshape(x.sizes()) * wide(std) + mean);
  });
}
ACLNN(aclnnNormalFloatFloat, float mean, float std, int64_t seed, int64_t offset, Out out) {
  KERNEL({
    auto x = out();
    put(out, random_normal(x.numel(), seed, offset).reshape(x.sizes()) * std + mean);
  });
}

// aclnnDropoutGenMaskV2: the mask has (n + 127) / 128 * 16 bytes.
ACLNN(aclnnDropoutGenMaskV2, Ints shape, double drop, int64_t seed, int64_t offset, aclDataType, Out out) {
  TYPES(kU8, out);
  REQUIRE(drop >= 0 && drop <= 1, "prob must be in [0, 1]");
  KERNEL({
    int64_t n = c10::multiply_integers(shape());
    auto mask = out().reshape({-1});
    if (mask.numel() < (n + 127) / 128 * 16) throw std::runtime_error("the mask is too small");
    mask.zero_();
    auto bytes = packed_mask(n, drop, seed, offset);
    mask.narrow(0, 0, bytes.numel()).copy_(bytes);
  });
}
ACLNN(aclnnDropoutDoMask, In self, In mask, double drop, Out out) {
  TYPES(kFloats, self, out);
  TYPES(kU8, mask);
  KERNEL({
    auto x = wide(self);
    if (drop >= 1) return put(out, at::zeros_like(x));
    put(out, x * unpacked_mask(mask(), x.numel()).reshape(x.sizes()) / (1 - drop));
  });
}
