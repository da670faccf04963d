#pragma once
#include <cstdint>
#include <string>

namespace mindspeed_ms {

// Why a call fell where it did: a number for a sentence, so that counting it costs nothing.
using Reason = uint16_t;

// Reasons that need no table. Others are made by reason_of().
enum : Reason {
  kFirstChoice,
  kHostForced,
  kCompositeForced,
  kNoRow,
  kNoTensor,
  kEmpty,
  kElsewhere,
  kLayout,
  kLazy,
  kWrapper,
  kMixedDtypes,
  kScalarPromotes,
  kOpaque,
  kDeclined,
  kFailed,
  kUncalibrated,
  kAscendForm,
  kFixedReasons
};

// The number of a sentence, the same for equal ones.
Reason reason_of(const std::string& sentence);
// Empty for kFirstChoice.
const std::string& sentence(Reason reason);

}  // namespace mindspeed_ms
