#include "core/key_packer.h"

#include <algorithm>

namespace cattn {

KeyPacker::KeyPacker(const Problem& problem, const KernelSet& kernels)
    : p_(problem),
      k_(kernels),
      tiling_(kernels.forward_tiling),
      key_bytes_(k_.packed_bytes(Operand::key, tiling_, p_.head_dim)),
      value_bytes_(k_.packed_bytes(Operand::value, tiling_, p_.value_dim)) {}

void KeyPacker::pack(Operand operand, const View& view, Index batch, Index kv_head,
                     BlockRange blocks, Index index, const PackedPair& to) const {
  const Sequence sequence = p_.sequence(batch);
  const Index first_key = (blocks.first + index) * tiling_.key_block;
  const Index rows = std::min(tiling_.key_block, sequence.keys - first_key);
  const ConstRows source = p_.rows(view, batch, kv_head, sequence.first_key + first_key);
  if (operand == Operand::key) {
    k_.pack({operand, source, rows, p_.head_dim, to.keys + index * key_bytes_, blocks.count},
            tiling_);
  } else {
    to.value_flags[index] =
        k_.pack({operand, source, rows, p_.value_dim, to.values + index * value_bytes_}, tiling_);
  }
}

}  // namespace cattn
