#pragma once
#include <memory>
#include <vector>

#include "comm/engine.h"

namespace mindspeed_ms::comm {

// Splits `total` bytes into slots: small enough to overlap filling with draining, large enough to be worth a
// slot.
uint64_t piece_size(uint64_t total, uint64_t chunk);

// Fills a ring from memory; `mirror`, if any, gets a copy too while the bytes are in cache.
std::unique_ptr<Flow> send_flow(Engine& e, const Op& op, Ring& ring, int to, const void* src, uint64_t bytes,
                                void* mirror = nullptr);

// Drains the ring of rank `from` into memory.
std::unique_ptr<Flow> copy_flow(Engine& e, const Op& op, Ring& ring, int from, void* dst, uint64_t bytes);

// Copies memory of this rank in pieces, in between the other flows.
std::unique_ptr<Flow> local_flow(Engine& e, const void* src, void* dst, uint64_t bytes);

// Reduces this rank's `own` with what every other rank sends (rings[r]; own rank's entry null) into `dst`, in
// rank order; publishes the result to `out` too when given. Starts after `after`, when given, is done.
std::unique_ptr<Flow> reduce_flow(Engine& e, const Op& op, std::vector<Ring*> rings, const void* own,
                                  void* dst, uint64_t bytes, Ring* out, const Flow* after);

}  // namespace mindspeed_ms::comm
