/* cattn: exact attention on CPUs. The C interface, which the Python binding itself uses.
 *
 * Fill a `cattn_attention` (cattn_attention_init first), point its arrays at your memory and call
 * cattn_attention_forward or cattn_attention_backward. Nothing is kept between calls, nothing is
 * printed, nothing aborts: a call returns a status, and cattn_error_message() says what was wrong.
 * Any number of threads may call at once.
 *
 * Shapes (leading axes broadcast as in numpy.matmul; query head h reads kv head h / (Hq / Hkv)):
 *   q (..., Hq, Lq, D)   k (..., Hkv, Lk, D)   v (..., Hkv, Lk, Dv)   out (..., Hq, Lq, Dv)
 *   lse (..., Hq, Lq)    weights, mask, bias (..., Hq, Lq, Lk)
 * A two-dimensional q, k or v is one head.
 */
#ifndef CATTN_H
#define CATTN_H

#include <stdint.h>

#if defined(_WIN32)
#define CATTN_API
#else
#define CATTN_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define CATTN_MAX_NDIM 16

typedef enum cattn_status {
  CATTN_OK = 0,
  CATTN_ERROR_VALUE = 1,   /* a shape, size or option that does not fit */
  CATTN_ERROR_TYPE = 2,    /* a dtype that does not fit */
  CATTN_ERROR_MEMORY = 3,  /* the workspace could not be had */
  CATTN_ERROR_INTERNAL = 4 /* a defect of this library */
} cattn_status;

typedef enum cattn_dtype {
  CATTN_FLOAT32 = 1,
  CATTN_FLOAT64 = 2,
  CATTN_BOOL = 3, /* one byte, zero or not */
  CATTN_INT64 = 4,
  CATTN_FLOAT16 = 5, /* results of half types are summed in float32 and rounded once */
  CATTN_BFLOAT16 = 6
} cattn_dtype;

/* A strided array. data == NULL means "not given". Strides count elements, may be zero or
 * negative; the last axis of q, k, v, dout and of the outputs is contiguous. */
typedef struct cattn_array {
  void* data;
  int32_t dtype; /* cattn_dtype */
  int32_t ndim;
  int64_t shape[CATTN_MAX_NDIM];
  int64_t strides[CATTN_MAX_NDIM];
} cattn_array;

/* Where the work runs. By default an OpenMP team of the library's; a server that has its own pool
 * passes one of these instead: run() calls work(argument, t) once for every t in [0, threads), on
 * whatever threads it likes, and returns when all have returned. */
typedef struct cattn_executor {
  void* context;
  void (*run)(void* context, int32_t threads, void (*work)(void* argument, int32_t thread),
              void* argument);
} cattn_executor;

enum { CATTN_MOST_THREADS = 4096 };

enum {
  CATTN_CAUSAL = 1u << 0,     /* key j is seen by query i when j <= i + causal_offset */
  CATTN_HAS_SCALE = 1u << 1,  /* use `scale`, not the default 1/sqrt(D) */
  CATTN_BLHD = 1u << 2,       /* q, k, v, out, their gradients and tangents are (..., L, H, D) */
  CATTN_HAS_SOFTCAP = 1u << 3 /* use `softcap` */
};

/* How the matrix products of float32 arrays may be computed: scores, weights . v, and those of the
 * backward and of forward mode. Sums are of float32 always. It is a permission: an instruction set
 * that gains nothing by it computes as for the highest. Other dtypes ignore it. */
typedef enum cattn_precision {
  CATTN_PRECISION_HIGHEST = 0, /* accurate to float32 */
  CATTN_PRECISION_HIGH = 1,    /* an operand is two bfloat16 parts h + m, a product hh + hm + mh */
  CATTN_PRECISION_MEDIUM = 2   /* operands are rounded to bfloat16 */
} cattn_precision;

/* Order: s = scale (q . k), softcap tanh(s / softcap) softcap, + bias, - slope |i + offset - j|,
 * mask, softmax with the sink in its denominator, dropout, . v
 *
 * Packed sequences: with cu_seqlens_q and cu_seqlens_k, q is (total_q, Hq, D), k and v
 * (total_k, Hkv, ...), out and the gradients likewise, lse (Hq, total_q), and row n of either array
 * to row n + 1 is sequence n. Positions, offsets and dropout count within a sequence; mask, bias
 * and weights are indexed by absolute rows. */
typedef struct cattn_attention {
  uint32_t struct_size; /* sizeof(cattn_attention), set by cattn_attention_init */
  uint32_t flags;
  double scale;
  double softcap;
  double dropout; /* probability, 0: none */
  uint64_t seed;  /* of the dropout */
  /* Keys from i + offset - window_left to i + offset + window_right are seen; -1 is unbounded. */
  int64_t window_left, window_right;
  int32_t num_threads;            /* 0: the default of cattn_set_num_threads */
  int32_t precision;              /* cattn_precision */
  const cattn_executor* executor; /* NULL: the library's own threads */

  cattn_array q, k, v;
  cattn_array mask;          /* bool, nonzero = may attend */
  cattn_array bias;          /* float32 or q's dtype, added to the scores */
  cattn_array causal_offset; /* int64, broadcast over the leading axes (one per sequence); absent:
                                keys - queries. Of causal, window and alibi_slopes alike. */
  cattn_array alibi_slopes;  /* (Hq) or (leading axes or sequences, Hq), float32 or q's dtype */
  cattn_array sinks;         /* (Hq), float32 or q's dtype: a logit in the denominator only */
  cattn_array kv_lengths;    /* int64, over the leading axes: keys from there on do not exist */
  cattn_array cu_seqlens_q, cu_seqlens_k; /* int64: packed sequences, see above */

  cattn_array out;     /* forward: written; backward: read */
  cattn_array lse;     /* natural-log row log-sum-exp; forward: written if given; backward: read.
                          float64 for float64, else float32 */
  cattn_array weights; /* forward: written if given; before dropout */

  cattn_array dout;       /* backward: read */
  cattn_array dlse;       /* backward: read if given */
  cattn_array dq, dk, dv; /* backward: each written if given, full broadcast shape; of q's dtype,
                             or float32 for half types (to be summed further) */
  cattn_array dbias;      /* backward: written if given, bias's own shape and dtype */
  cattn_array dsinks;     /* backward: written if given, sinks' shape and dtype */

  cattn_array q_tangent, k_tangent, v_tangent; /* forward mode: read, like q, k and v */
  cattn_array out_tangent;                     /* forward mode: written, like out */
} cattn_attention;

/* Sets struct_size and every option to "not given". */
CATTN_API void cattn_attention_init(cattn_attention* problem);

/* Checks the inputs and options, and sets dtype, ndim and shape of what the outputs will be; any of
 * the three may be NULL. */
CATTN_API cattn_status cattn_attention_shapes(const cattn_attention* problem, cattn_array* out,
                                              cattn_array* lse, cattn_array* weights);

/* out, lse, weights = attention(q, k, v, options). lse and weights are written if given. */
CATTN_API cattn_status cattn_attention_forward(const cattn_attention* problem);

/* dq, dk, dv, dbias, dsinks from dout, dlse and what the forward call returned. Writes only what is
 * given. */
CATTN_API cattn_status cattn_attention_backward(const cattn_attention* problem);

/* out and out_tangent: how out moves when q, k and v move by their tangents. */
CATTN_API cattn_status cattn_attention_jvp(const cattn_attention* problem);

/* Which weights dropout keeps: mask (bool, written) is (..., Hq, Lq, Lk), contiguous. */
CATTN_API cattn_status cattn_dropout_mask(double dropout, uint64_t seed, const cattn_array* mask);

/* Rotary position embedding. */
typedef struct cattn_rope {
  uint32_t struct_size; /* sizeof(cattn_rope), set by cattn_rope_init */
  uint32_t flags;       /* CATTN_BLHD */
  int32_t interleaved;  /* pairs are (2t, 2t + 1), else (t, t + pairs) */
  int32_t inverse;      /* turn the other way: the backward */
  int32_t num_threads;
  const cattn_executor* executor;
  cattn_array x;   /* (..., H, L, D) or (L, D) */
  cattn_array cos; /* (..., L, pairs) without heads, leading axes broadcast: float64 for float64, */
  cattn_array sin; /* else float32; the first 2 * pairs features are turned */
  cattn_array out; /* like x; may be x */
} cattn_rope;

CATTN_API void cattn_rope_init(cattn_rope* problem);
CATTN_API cattn_status cattn_rope_apply(const cattn_rope* problem);

/* What was wrong with this thread's last call that did not return CATTN_OK. */
CATTN_API const char* cattn_error_message(void);

/* Threads a call may use when its num_threads is 0; n == 0 goes back to the default, which is
 * OMP_NUM_THREADS or else the cores that this process may use, by its affinity and the quota of its
 * control groups. */
CATTN_API cattn_status cattn_set_num_threads(int32_t n);
CATTN_API int32_t cattn_get_num_threads(void);

/* Instruction sets: "generic", "avx2", "avx512", "avx512bf16", "amx", "amx_fp16", "neon". The best
 * one that runs here is chosen at the first call; the environment variable CATTN_ISA names another.
 */
CATTN_API const char* cattn_isa(void);
CATTN_API cattn_status cattn_set_isa(const char* name);
/* The i-th instruction set that runs on this machine, or NULL past the last. */
CATTN_API const char* cattn_available_isa(int32_t i);

CATTN_API const char* cattn_version(void);

#ifdef __cplusplus
}
#endif
#endif
