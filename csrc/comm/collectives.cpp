#include <algorithm>
#include <cstring>

#include "comm/engine.h"
#include "comm/flows.h"

namespace mindspeed_ms::comm {
namespace {

constexpr uint64_t kOnePassBytes = 16 * 1024;  // all_reduce in one hop instead of two

}  // namespace

int64_t Engine::expected_count(const Op& op, int peer) const {
  const Request& q = op.request;
  switch (q.kind) {
    case Kind::all_gather:
      return q.recvs[peer].count;
    case Kind::reduce_scatter:
      return q.sends[peer].count;
    case Kind::gather:
      return rank_ == q.root ? q.recvs[peer].count : -1;
    case Kind::scatter:
      return rank_ == q.root ? q.sends[peer].count : -1;
    case Kind::all_to_all:
      return -1;
    default:
      return q.sends.empty() ? 0 : q.sends[0].count;
  }
}

// Enters the collective: says so to the peers and lays out its flows. False while a peer is too far behind.
bool Engine::start(Op& op) {
  for (int r = 0; r < world_; ++r)
    if (op.seq >= segment_.rank(r)->finished.load(std::memory_order_acquire) + kDescriptors) return false;
  const Request& q = op.request;
  RankBlock* me = segment_.rank(rank_);
  Descriptor& d = me->desc[op.seq % kDescriptors];
  d.kind = q.kind;
  d.dtype = q.dtype;
  d.op = q.op;
  d.root = q.root;
  const auto& mine = q.kind == Kind::reduce_scatter || q.kind == Kind::scatter ? q.recvs : q.sends;
  d.count = q.kind == Kind::all_to_all ? -1 : mine.empty() ? 0 : mine[0].count;
  d.seq.store(op.seq, std::memory_order_relaxed);
  for (int r = 0; r < world_; ++r) expected_[(op.seq % kDescriptors) * world_ + r] = expected_count(op, r);
  me->entered.store(op.seq + 1, std::memory_order_release);
  op.started = true;
  op.started_ns = now_ns();
  check_descriptors();
  build_flows(op);
  return true;
}

std::vector<Ring*> Engine::rings_to_me(bool broadcast) {
  std::vector<Ring*> rings(world_, nullptr);
  for (int r = 0; r < world_; ++r)
    if (r != rank_) rings[r] = broadcast ? &broadcast_ring(r) : &pair_ring(r, rank_);
  return rings;
}

void Engine::add_all_reduce(Op& op, const void* src, void* dst, int64_t count) {
  const uint64_t width = dtype_size(op.request.dtype), bytes = count * width;
  if (bytes <= std::min(kOnePassBytes, chunk())) {
    op.flows.push_back(send_flow(*this, op, broadcast_ring(rank_), -1, src, bytes));
    const Flow* sent = op.flows.back().get();
    op.flows.push_back(reduce_flow(*this, op, rings_to_me(true), src, dst, bytes, nullptr, sent));
    return;
  }
  // Reduce-scatter through the pair rings, all-gather through the broadcast rings, piece by piece. A rank's
  // piece of another's block is overwritten only by that other's result, which exists only once the piece has
  // been sent.
  const uint64_t per = ((count + world_ - 1) / world_ + 63) / 64 * 64 * width;
  auto block = [&](int r) {
    const uint64_t begin = std::min<uint64_t>(r * per, bytes);
    return std::pair{begin, std::min<uint64_t>(begin + per, bytes) - begin};
  };
  const char* in = static_cast<const char*>(src);
  char* out = static_cast<char*>(dst);
  for (int i = 1; i < world_; ++i) {
    const int to = (rank_ + i) % world_;
    const auto [at, n] = block(to);
    op.flows.push_back(send_flow(*this, op, pair_ring(rank_, to), to, in + at, n));
  }
  const auto [at, n] = block(rank_);
  op.flows.push_back(
      reduce_flow(*this, op, rings_to_me(false), in + at, out + at, n, &broadcast_ring(rank_), nullptr));
  for (int i = 1; i < world_; ++i) {
    const int from = (rank_ + i) % world_;
    const auto [at, n] = block(from);
    op.flows.push_back(copy_flow(*this, op, broadcast_ring(from), from, out + at, n));
  }
}

void Engine::build_flows(Op& op) {
  const Request& q = op.request;
  const uint64_t width = dtype_size(q.dtype);
  auto bytes = [&](const Buffer& b) { return static_cast<uint64_t>(b.count) * width; };
  auto send = [&](int to, const Buffer& b) {
    op.flows.push_back(send_flow(*this, op, pair_ring(rank_, to), to, b.data, bytes(b)));
  };
  auto receive = [&](int from, const Buffer& b) {
    op.flows.push_back(copy_flow(*this, op, pair_ring(from, rank_), from, b.data, bytes(b)));
  };
  auto copy_own = [&](const Buffer& from, const Buffer& to) {
    op.flows.push_back(local_flow(*this, from.data, to.data, bytes(from)));
  };
  switch (q.kind) {
    case Kind::all_reduce:
      add_all_reduce(op, q.sends[0].data, q.recvs[0].data, q.sends[0].count);
      break;
    case Kind::barrier:
      add_all_reduce(op, &op.scratch, &op.scratch, 1);
      break;
    case Kind::reduce:
      if (rank_ == q.root)
        op.flows.push_back(reduce_flow(*this, op, rings_to_me(false), q.sends[0].data, q.recvs[0].data,
                                       bytes(q.sends[0]), nullptr, nullptr));
      else
        send(q.root, q.sends[0]);
      break;
    case Kind::broadcast:
      if (rank_ == q.root)
        op.flows.push_back(
            send_flow(*this, op, broadcast_ring(rank_), -1, q.sends[0].data, bytes(q.sends[0])));
      else
        op.flows.push_back(
            copy_flow(*this, op, broadcast_ring(q.root), q.root, q.sends[0].data, bytes(q.sends[0])));
      break;
    case Kind::all_gather: {
      const Buffer& own = q.recvs[rank_];
      void* mirror = own.data == q.sends[0].data ? nullptr : own.data;
      op.flows.push_back(
          send_flow(*this, op, broadcast_ring(rank_), -1, q.sends[0].data, bytes(q.sends[0]), mirror));
      for (int i = 1; i < world_; ++i) {
        const int from = (rank_ + i) % world_;
        op.flows.push_back(
            copy_flow(*this, op, broadcast_ring(from), from, q.recvs[from].data, bytes(q.recvs[from])));
      }
      break;
    }
    case Kind::reduce_scatter:
      for (int i = 1; i < world_; ++i) send((rank_ + i) % world_, q.sends[(rank_ + i) % world_]);
      op.flows.push_back(reduce_flow(*this, op, rings_to_me(false), q.sends[rank_].data, q.recvs[0].data,
                                     bytes(q.recvs[0]), nullptr, nullptr));
      break;
    case Kind::all_to_all:
      for (int i = 1; i < world_; ++i) {
        send((rank_ + i) % world_, q.sends[(rank_ + i) % world_]);
        receive((rank_ + i) % world_, q.recvs[(rank_ + i) % world_]);
      }
      copy_own(q.sends[rank_], q.recvs[rank_]);
      break;
    case Kind::gather:
      if (rank_ != q.root) {
        send(q.root, q.sends[0]);
        break;
      }
      for (int r = 0; r < world_; ++r)
        if (r != rank_) receive(r, q.recvs[r]);
      copy_own(q.sends[0], q.recvs[rank_]);
      break;
    case Kind::scatter:
      if (rank_ != q.root) {
        receive(q.root, q.recvs[0]);
        break;
      }
      for (int r = 0; r < world_; ++r)
        if (r != rank_) send(r, q.sends[r]);
      copy_own(q.sends[rank_], q.recvs[0]);
      break;
    default:
      break;
  }
}

}  // namespace mindspeed_ms::comm
