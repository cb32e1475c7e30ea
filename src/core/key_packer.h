// Keys and values of a kv head in blocks, the way that kernels of the forward read them.
#pragma once
#include "core/plan.h"

namespace cattn {

// Where some blocks of one (batch, kv head) pair are packed.
struct PackedPair {
  char* keys;
  char* values;
  uint8_t* value_flags;
};

class KeyPacker {
 public:
  KeyPacker(const Problem& problem, const KernelSet& kernels);

  Index key_block() const { return tiling_.key_block; }
  Index key_bytes() const { return key_bytes_; }  // of a block
  Index value_bytes() const { return value_bytes_; }

  // `view` are keys, values or tangents of them; packed is block number `index` of `blocks`.
  void pack(Operand operand, const View& view, Index batch, Index kv_head, BlockRange blocks,
            Index index, const PackedPair& to) const;

 private:
  const Problem& p_;
  const KernelSet& k_;
  const Tiling tiling_;
  const Index key_bytes_, value_bytes_;
};

}  // namespace cattn
