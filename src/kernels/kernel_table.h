// The kernel table: everything that core/ may ask of an instruction set, and the contract of each
// entry. One table per ISA; one KernelSet per dtype in it. core/ owns loops over heads and blocks,
// threads and memory; a kernel owns what happens inside one block and never allocates, threads,
// throws or logs.
//
// This header is plain data: it is included by every ISA file, so nothing in it may need code.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace cattn {

using Index = int64_t;

// `rows` of contiguous elements, `row_stride` elements apart.
struct ConstRows {
  const void* data;
  Index row_stride;
};
struct Rows {
  void* data;
  Index row_stride;
};

// The keys that query i may attend, before any mask: lo(i) <= j < hi(i) with
//   lo(i) = clamp(i + lo_shift, 0, key_count),  hi(i) = clamp(i + hi_shift, 0, key_count).
// Dense, causal and window (and any intersection of them) are all such a band.
struct Band {
  Index lo_shift;
  Index hi_shift;
  Index key_count;
};

// How numbers lie in memory. Half types are computed in float32.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
enum class Storage : uint8_t { float32, float64, float16, bfloat16 };

// An operand of the score transforms: element (i, j) of one head's (Lq, Lk) plane.
struct ScorePlane {
  const void* data;  // null: not given
  Index row_stride;
  Index col_stride;
  Storage storage;  // of a bias
};

// Which weights dropout keeps: counter-based, so that every element has its own random word
// whatever the blocks and threads (see dropout-inl.h).
struct Dropout {
  bool on;
  uint64_t seed;
  uint32_t threshold;  // an element is kept iff its word is not below
  uint32_t head, batch;
  double kept_scale;  // 1 / (1 - dropout)
};

// How raw products become scores, in this order: s = scale * (q . k), s = c tanh(s / c), + bias,
// - slope |i + shift - j|, masked to -inf; and which weights are dropped after the softmax.
struct ScoreTerms {
  double scale;
  double softcap;  // c; 0: none
  ScorePlane bias;
  double alibi_slope;  // 0: none
  Index alibi_shift;
  ScorePlane mask;  // bytes, nonzero = may attend
  Dropout dropout;
};

// Which matrix is packed, and for which product. The layout belongs to the kernel set; core/ only
// keeps the bytes. Key-side operands come in blocks of tiling.key_block rows, query-side operands
// in blocks of tiling.query_block rows.
enum class Operand {
  key,       // forward and backward: K for Q K^T
  value,     // forward: V for P V
  value_t,   // backward: V for dO V^T
  key_rows,  // backward: K for dS K
  query,     // backward: Q for Q K^T and for dS^T Q
  grad_out,  // backward: dO for dO V^T and for P^T dO
};

struct PackTask {
  Operand operand;
  ConstRows source;  // rows x cols
  Index rows;        // at most one block
  Index cols;        // D or Dv
  void* packed;      // packed_bytes(operand, cols) bytes, 64-byte aligned
  // Of keys that the forward scores, which asks for their norms: the blocks that they come in.
  Index of_blocks = 0;
};

// What a bool mask leaves of a block of scores.
enum class MaskKind : uint8_t { empty, partial, full };

// Flags of a packed block: no NaN, no inf; numbers of moderate size only; products of pairs can
// take them.
enum : uint8_t { kBlockFinite = 1, kBlockModerate = 2, kBlockSplits = 4 };

// One query block of one head against all the keys that it attends.
struct ForwardTask {
  ConstRows q;
  Index rows;         // 1 .. tiling.query_block
  Index first_query;  // i of row 0
  Index head_dim, value_dim;
  Band band;
  const ScoreTerms* terms;
  double sink = -__builtin_inf();  // a logit in the denominator only; -inf: none
  const char* keys;                // block b at keys + b * packed_bytes(key); the same for values
  const char* values;
  const uint8_t* value_flags;  // one per key block
  Index first_block;           // block b of the sequence is at index b - first_block
  Index end_block;             // those from here on are left out
  const MaskKind* mask_kinds;  // one per block b of the sequence; null: no mask
  Rows out;                    // written: rows x value_dim
  void* lse;                   // written if not null, one element per row, lse_stride apart
  Index lse_stride;
  // If not null, what these blocks come to is written here, as by DecodeTask, in place of the
  // results. By kernels of multiply-adds only: others leave it alone and write results.
  char* part = nullptr;
  const void* next_q = nullptr;  // where the queries of the next task begin, if that is known
  void* scratch;                 // forward_scratch_bytes
};

// The probabilities of the same block, before dropout, once its lse is known.
struct WeightsTask {
  const ForwardTask* forward;  // lse is read
  Index keys;
  Rows weights;  // rows x keys, written in full
};

// Few queries of all heads that read the same keys and values, from where these lie: the results,
// or those of some key blocks only.
struct DecodeTask {
  const ForwardTask* heads;   // of the same queries and keys; nothing is packed
  Index head_count;           // all their rows together: kMostDecodeRows at most
  ConstRows k, v;             // from key 0 on
  Index first_block, blocks;  // those that count
  // If not null, what the rows come to is written here in place of results, for a MergeTask:
  // part_bytes from head to head, of each kPartNumbers and value_dim, rounded up to kPartStep,
  // numbers of the arithmetic type for a row.
  char* parts;
  Index part_bytes;
};
constexpr Index kMostDecodeRows = 16;
constexpr Index kPartNumbers = 16, kPartStep = 16;  // reference, sum and a gap, then the output

// The results of a head, from `count` such parts, one behind the other.
struct MergeTask {
  const ForwardTask* forward;
  char* parts;
  Index count;
};

// The same block with tangents: how out moves when q, k and v move by theirs (forward mode).
struct JvpTask {
  const ForwardTask* forward;
  ConstRows q_tangent;
  const char* key_tangents;  // packed like forward->keys and values
  const char* value_tangents;
  const uint8_t* value_tangent_flags;
  Rows out_tangent;  // written: rows x value_dim
};

// Rows that results go to at once: out = factor * result.
struct ResultRows {
  Rows out;
  double factor;
};

// One key block against one query block of one head: `backward` adds to dk, dv and dq. Without dq
// it leaves the score gradients in scratch, from which `backward_dq` adds to it, if it is wanted:
// the same bits, but they have to pass through memory.
struct BackwardTask {
  Index rows, first_query;  // of the query block
  Index cols, first_key;    // of the key block
  Index head_dim, value_dim;
  Band band;
  const ScoreTerms* terms;
  const void *query, *grad_out;          // packed query block
  const void *key, *value_t, *key_rows;  // packed key block
  uint8_t flags;                         // those that all of the above have
  const void* row_scales;                // of row_terms
  const void* delta;                     // one per row: rowsum(dO * O) - dlse, 0 for an empty row
  void *dq, *dk, *dv;                    // accumulators (accumulator_bytes); null: not wanted
  // Used in place of accumulators if not null, by kernels that write rows, where all operands are
  // finite and nothing else adds to them; they are of the arithmetic type.
  ResultRows dq_rows, dk_rows, dv_rows;
  // If not null, the gradients of the scores after softcap (query_block x key_block, row stride
  // key_block) are added here (for the gradient of the bias).
  void* dscore;
  void* scratch;  // backward_scratch_bytes
};

// Sets the rows of the accumulator of one block to zero, and what products add to beside them.
struct ClearTask {
  void* accumulator;
  bool query_side;  // as in FlushTask
  Index rows, cols;
};

// Turns the accumulator of one block into rows: out = factor * accumulator.
struct FlushTask {
  const void* accumulator;  // null: zeros
  bool query_side;          // a dq accumulator (query_block rows), else dk or dv (key_block rows)
  Index rows, cols;
  double factor;
  Rows out;
};

// What the lse of a row makes of its weights: so many numbers (RowScale).
constexpr Index kRowScaleNumbers = 3;

// delta = rowsum(dO * O) - dlse and row scales, for `rows` rows of one head.
struct RowTermsTask {
  ConstRows grad_out, out;
  Index rows, value_dim;
  const void* lse;
  Index lse_stride;
  const void* dlse;  // may be null
  Index dlse_stride;
  void* row_scales;                // written
  void* delta;                     // written
  double sink = -__builtin_inf();  // as in ForwardTask
  // If not null: the gradient of the sink, -sum of e^(sink - lse) delta over the rows.
  double* dsink = nullptr;
};

// Rotary position embedding of `rows` rows: pairs of the first 2 * pairs features are turned by an
// angle, the others copied. Pair t is (t, t + pairs), or (2t, 2t + 1) if interleaved.
struct RopeTask {
  ConstRows x;
  Rows out;  // may be x
  Index rows, head_dim, pairs;
  ConstRows cos, sin;  // rows x pairs, of the kernel set's arithmetic type
  bool interleaved;
  bool inverse;  // turn the other way
};

// Random words of a dropout row: words[n] belongs to key first_key + n. first_key is a multiple of
// kDropoutSpan, and whole spans are written.
constexpr Index kDropoutSpan = 64;
struct DropoutRow {
  uint64_t seed;
  uint32_t batch, head, query;
  Index first_key, count;
  uint32_t* words;
};

struct Tiling {
  Index query_block;
  Index key_block;
};

// What depends on how matrices are multiplied: packed operands, scratch and what accumulators hold.
struct MatrixKernels {
  Tiling forward_tiling, backward_tiling;
  Index (*packed_bytes)(Operand, const Tiling&, Index cols);
  Index (*forward_scratch_bytes)(Index head_dim, Index value_dim);
  Index (*backward_scratch_bytes)(Index head_dim, Index value_dim);
  uint8_t (*pack)(const PackTask&, const Tiling&);
  void (*forward)(const ForwardTask&);
  void (*weights)(const WeightsTask&);
  void (*backward)(const BackwardTask&);
  void (*backward_dq)(const BackwardTask&);
  void (*clear)(const ClearTask&);
  void (*flush)(const FlushTask&);
  void (*flush_wide)(const FlushTask&);  // to rows of the arithmetic type
  bool writes_rows;                      // see BackwardTask
};

struct KernelSet : MatrixKernels {
  Index arithmetic_size;  // bytes of the type that is computed in: float or double
  Index (*accumulator_bytes)(Index block_rows, Index cols);
  Index (*jvp_scratch_bytes)(Index head_dim, Index value_dim);
  // By multiply-adds, in blocks and scratch of theirs: for use where all matrix kernels are such
  // (KernelTable::multiply_adds).
  void (*jvp)(const JvpTask&);
  void (*decode)(const DecodeTask&);
  void (*merge)(const MergeTask&);
  void (*decode_weights)(const WeightsTask&, ConstRows k);  // k as in DecodeTask
  void (*row_terms)(const RowTermsTask&);
  void (*rope)(const RopeTask&);
};

// How large a head's products are: depth is head_dim + value_dim.
struct HeadSize {
  Index depth = 0, queries = 0, keys = 0;
};

// Those that are as large as one of these, in all three; all, if one is left out.
struct HeadSizes {
  HeadSize least[3];
};

struct KernelTable {
  const char* name;
  KernelSet float32;
  // For float32 arrays whose products may be computed from two bfloat16 parts of each operand, or
  // from operands rounded to bfloat16. The same as float32 where that gains nothing.
  KernelSet float32_high;
  KernelSet float32_medium;
  KernelSet float64;
  KernelSet float16;
  KernelSet bfloat16;
  void (*dropout_row)(const DropoutRow&);
  // If some of the above are PairKernels: the table that they stand in, with multiply-adds.
  const KernelTable* multiply_adds;
  HeadSizes float32_sizes{};  // as in PairKernels
};

// Kernels on pairs of half numbers that an instruction set has beside a table's; null: none.
struct PairKernels {
  const MatrixKernels *float32, *float32_high, *float32_medium, *float16, *bfloat16;
  // Other heads are faster in the highest precision of float32 by multiply-adds: splitting a score
  // costs the same however many elements it comes from, and splitting keys and values however many
  // queries they serve.
  HeadSizes float32_sizes{};
};

}  // namespace cattn
