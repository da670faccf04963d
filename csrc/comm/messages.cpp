#include <algorithm>
#include <cstring>

#include "comm/engine.h"
#include "comm/flows.h"

namespace mindspeed_ms::comm {

bool Engine::step_send(int to) {
  bool moved = false;
  Ring& ring = outgoing_[to];
  while (!sends_[to].empty() && ring.can_publish()) {
    Op& op = *sends_[to].front();
    const uint64_t total = op.request.sends[0].count * dtype_size(op.request.dtype);
    const uint64_t n = std::min(piece_size(total, chunk()), total - op.moved);
    if (!op.started_ns) op.started_ns = now_ns();
    Slot* slot = ring.next();
    slot->seq = op.seq;
    slot->bytes = n;
    slot->total = total;
    slot->tag = op.request.tag;
    slot->dtype = op.request.dtype;
    if (n) std::memcpy(slot->data, static_cast<const char*>(op.request.sends[0].data) + op.moved, n);
    ring.publish();
    this->ring(to);
    op.moved += n;
    moved = true;
    if (op.moved == total) {
      finish(op);
      sends_[to].pop_front();
    }
  }
  return moved;
}

std::shared_ptr<Op> Engine::match(int from, int64_t tag) {
  for (auto& op : recvs_)
    if (!op->bound && op->request.tag == tag && (op->request.root == from || op->request.root < 0)) return op;
  return nullptr;
}

void Engine::check_message(const Op& op, uint64_t total, DType dtype, int from) {
  const Request& q = op.request;
  if (total == q.recvs[0].count * dtype_size(q.dtype) && dtype == q.dtype) return;
  throw Broken{Failure::mismatch, "rank " + std::to_string(global(from)) + " sent " + std::to_string(total) +
                                      " bytes of " + name_of(dtype) + " to " + who() + ", which expects " +
                                      std::to_string(q.recvs[0].count * dtype_size(q.dtype)) + " bytes of " +
                                      name_of(q.dtype) + " in " + describe(op)};
}

bool Engine::step_receive(int from) {
  bool moved = false;
  Ring& ring = incoming_rings_[from];
  Incoming& in = incoming_[from];
  while (ring.available(0)) {
    const Slot* slot = ring.head(0);
    if (!in.active) {
      auto into = match(from, slot->tag);
      const bool awaited = std::any_of(recvs_.begin(), recvs_.end(), [&](const auto& op) {
        return !op->bound && (op->request.root == from || op->request.root < 0);
      });
      if (!into && !awaited) return moved;  // nobody wants anything from this rank: leave it in the ring
      in = Incoming{true, slot->total, 0, slot->tag, slot->dtype, into, {}};
      if (into) {
        check_message(*into, slot->total, slot->dtype, from);
        into->bound = true;
        into->source = from;
        if (!into->started_ns) into->started_ns = now_ns();
      } else {
        in.stash.resize(slot->total);  // a message with another tag is in the way of one that is awaited
      }
    }
    char* dst = in.into ? static_cast<char*>(in.into->request.recvs[0].data) : in.stash.data();
    if (slot->bytes) std::memcpy(dst + in.received, slot->data, slot->bytes);
    in.received += slot->bytes;
    ring.pop(0);
    this->ring(from);
    moved = true;
    if (in.received == in.total) {
      if (in.into) {
        finish(*in.into);
        recvs_.erase(std::find(recvs_.begin(), recvs_.end(), in.into));
      } else {
        stashed_[from][in.tag].push_back({in.dtype, std::move(in.stash)});
      }
      in = Incoming{};
    }
  }
  return moved;
}

// A message that had to be put aside earlier may be what `op` asks for.
bool Engine::take_stashed(const std::shared_ptr<Op>& op) {
  for (int r = 0; r < world_; ++r) {
    if (op->request.root >= 0 && op->request.root != r) continue;
    auto it = stashed_[r].find(op->request.tag);
    if (it == stashed_[r].end()) continue;
    Stashed message = std::move(it->second.front());
    it->second.pop_front();
    if (it->second.empty()) stashed_[r].erase(it);
    try {
      check_message(*op, message.bytes.size(), message.dtype, r);
    } catch (const Broken& b) {
      recvs_.push_back(op);
      fail(b.code, b.text);
      return true;
    }
    std::memcpy(op->request.recvs[0].data, message.bytes.data(), message.bytes.size());
    op->source = r;
    finish(*op);
    return true;
  }
  return false;
}

}  // namespace mindspeed_ms::comm
