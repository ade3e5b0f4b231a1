// Tensors whose rows do not lie one after the other (transposed, gapped, or a gradient laid out unlike its parameter)
// are gathered into contiguous rows, stepped there, and scattered back.
#pragma once

#include "../plan.h"

namespace onepass {

// Copies `rows` rows of elements [begin, end), starting at `row`, between a strided view and a contiguous buffer.
// Rows run over dim 0 where the tensor is projected; otherwise the tensor is one row in row-major order.
void gather(const Tensor& t, const View& from, int64_t element_bytes, const WorkItem& item, void* to);
void scatter(const Tensor& t, const View& to, int64_t element_bytes, const WorkItem& item, const void* from);

}  // namespace onepass
