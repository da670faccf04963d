#include "aten/reasons.h"

#include <c10/util/Exception.h>

#include <deque>
#include <limits>
#include <mutex>
#include <unordered_map>

namespace mindspeed_ms {
namespace {

struct Table {
  std::mutex mutex;
  std::deque<std::string> sentences;  // grows without moving what is there
  std::unordered_map<std::string, Reason> numbers;

  Reason add(const std::string& text) {
    TORCH_CHECK(sentences.size() < std::numeric_limits<Reason>::max(),
                "more than 65535 reasons for a route: they must not contain values of the call (", text, ")");
    const auto [place, fresh] = numbers.emplace(text, static_cast<Reason>(sentences.size()));
    if (fresh) sentences.push_back(text);
    return place->second;
  }
};

Table& table() {
  static auto* filled = [] {
    auto* made = new Table;
    const char* fixed[kFixedReasons] = {};
    fixed[kFirstChoice] = "";
    fixed[kHostForced] = "route host is forced";
    fixed[kCompositeForced] = "route composite is forced";
    fixed[kNoRow] = "it has no row in mindspeed_ms.ops";
    fixed[kNoTensor] = "the argument that decides is no npu tensor";
    fixed[kEmpty] = "a tensor is empty";
    fixed[kElsewhere] = "a tensor is on another device";
    fixed[kLayout] = "a tensor is not strided";
    fixed[kLazy] = "a tensor is lazily conjugated or negated";
    fixed[kWrapper] = "a tensor is a wrapper without memory of its own";
    fixed[kMixedDtypes] = "the tensors differ in dtype";
    fixed[kScalarPromotes] = "a scalar would promote the result's dtype";
    fixed[kOpaque] = "memory is opaque: csrc has no address";
    fixed[kDeclined] = "declined by the lowering for these arguments";
    fixed[kFailed] = "the kernel failed; torch's own says what is wrong with the arguments";
    fixed[kUncalibrated] = "the calibrated table does not name it for this dtype";
    fixed[kAscendForm] = "the MindSpore form of a fused kernel is for target Ascend";
    for (auto* text : fixed) made->add(text);
    return made;
  }();
  return *filled;
}

}  // namespace

Reason reason_of(const std::string& text) {
  std::lock_guard<std::mutex> lock(table().mutex);
  return table().add(text);
}

const std::string& sentence(Reason reason) {
  std::lock_guard<std::mutex> lock(table().mutex);
  return table().sentences.at(reason);
}

}  // namespace mindspeed_ms
