// Which kernel table a call uses.
#pragma once
#include <string>

#include "cattn.h"
#include "core/types.h"

namespace cattn {

// The table in use: CATTN_ISA's, or the best that runs here. An unknown CATTN_ISA is an error.
const KernelTable& kernel_table();
// Its kernels for arrays of this dtype and heads of this size, whose products may be computed like
// this.
const KernelSet& kernel_set(const KernelTable& table, int32_t dtype, cattn_precision precision,
                            const HeadSize& size);

void set_isa(const std::string& name);
// The i-th table that runs here, slowest first, or null.
const KernelTable* available_table(int32_t i);

}  // namespace cattn
