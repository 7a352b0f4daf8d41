/* tokenweave: the native core's C ABI.
 *
 * Every function returns a status (TW_OK or a negative TW_ERROR_*) or a plain value; none prints, none exits.
 */
#ifndef TOKENWEAVE_H
#define TOKENWEAVE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TW_API __attribute__((visibility("default")))

typedef enum tw_status {
    TW_OK = 0,
    TW_ERROR_INVALID_ARGUMENT = -1,
    TW_ERROR_OUT_OF_MEMORY = -2,
    TW_ERROR_UNSUPPORTED = -3,
    TW_ERROR_TIMEOUT = -4,
    TW_ERROR_ABORTED = -5,
    TW_ERROR_MISMATCH = -6,
} tw_status;

/* Version of this ABI; the Python loader refuses another. Raise it when a call or a structure that is here changes. A
 * new call needs no new version: the loader says which one a library lacks. */
TW_API int tw_abi_version(void);

/* ---- CPU kernels ----------------------------------------------------------------------------------------------
 *
 * Thread safety: a pool serves one caller at a time; separate pools are independent. No call keeps a pointer.
 *
 * Invariants:
 *  1. A row's result is the same bit for bit whatever rows surround it, however many threads work, and however a
 *     prompt is cut into chunks: each output has one accumulator and takes its terms in ascending order.
 *  2. Indices into caches, tables and rows are checked before anything is read or written through them.
 *
 * Row strides (ld*) count elements. Rows are contiguous. dtypes are tw_dtype.
 */
typedef enum tw_dtype { TW_FLOAT32 = 0, TW_BFLOAT16 = 1 } tw_dtype;

/* Each has all of the ones before it, TW_AMX_EMULATED excepted: the kernels of TW_AMX with its tiles in plain C++, to
 * the same bits, which runs on any machine, slowly, to test them. */
typedef enum tw_isa {
    TW_BASELINE = 0,
    TW_AVX2 = 1,
    TW_AVX512 = 2,
    TW_AVX512_BF16 = 3,
    TW_AMX = 4,
    TW_AMX_EMULATED = 5,
} tw_isa;

/* The best instruction set that both this CPU and its operating system support; never TW_AMX_EMULATED. */
TW_API int tw_best_isa(void);

/* Whether this process may use tiles. */
typedef enum tw_amx_state_code {
    TW_AMX_READY = 0,
    TW_AMX_NO_PROCESSOR = 1, /* the processor has no tiles, or not those of bfloat16 and int8 */
    TW_AMX_NO_SYSTEM = 2,    /* the operating system, or the hypervisor, does not keep them */
    TW_AMX_REFUSED = 3,      /* the kernel refused this process the permission that it asked for */
} tw_amx_state_code;
/* Asks the kernel for the permission at the first call; it then holds for all threads and for children. */
TW_API int tw_amx_state(void);

/* A team of `num_threads` workers, the caller being one, running the kernels compiled for `isa`. */
typedef struct tw_pool tw_pool;
TW_API int tw_pool_create(int num_threads, int isa, tw_pool** pool);
TW_API void tw_pool_destroy(tw_pool* pool);

/* Weights. Panels of 32 outputs: bfloat16 [n/32][k/2][32][2], float32 [n/32][k][32], zero padded. */
TW_API int64_t tw_packed_size_bytes(int64_t n, int64_t k, int dtype);
TW_API int tw_pack(tw_pool* pool, const void* weight, int64_t ldw, int weight_dtype, int64_t n, int64_t k,
                   void* packed, int dtype);
/* y (m, n) = x (m, k) weight^T + bias (n) float32 or NULL. out_dtype: dtype or TW_FLOAT32. */
TW_API int tw_linear(tw_pool* pool, const void* x, int64_t ldx, const void* packed, const float* bias,
                     void* y, int64_t ldy, int64_t m, int64_t n, int64_t k, int dtype, int out_dtype);
/* The activation of a gated linear unit. */
typedef enum tw_activation { TW_SILU = 0, TW_GELU_TANH = 1 /* GELU by its tanh */ } tw_activation;
/* out (m, n) = activation(x gate^T + gate_bias) * (x up^T + up_bias): both weights (n, k) as tw_linear takes them. The
 * products are not rounded before the activation. */
TW_API int tw_gated_linear(tw_pool* pool, const void* x, int64_t ldx, const void* gate,
                           const float* gate_bias, const void* up, const float* up_bias, void* out,
                           int64_t ldo, int64_t m, int64_t n, int64_t k, int activation, int dtype);
/* out (m, k): row ids[i] - first_row of a packed weight, or zeros where it has no such row. */
TW_API int tw_gather_rows(tw_pool* pool, const void* packed, const int32_t* ids, int64_t m, int64_t first_row,
                          int64_t n, int64_t k, void* out, int dtype);

/* ---- Stored weights: blocks of GGUF files, multiplied as they are; x is quantised to int8 in blocks of 32. ---- */
typedef enum tw_stored_format {
    TW_Q4_0 = 0,
    TW_Q4_1 = 1,
    TW_Q8_0 = 2,
    TW_Q4_K = 3,
    TW_Q5_K = 4,
    TW_Q6_K = 5
} tw_stored_format;

#define TW_MAX_STORED_PARTS 8

/* Rows of a stack in one format. */
typedef struct tw_stored_part {
    const void* packed;
    int64_t n;
    int32_t format;
} tw_stored_part;

/* Weights of as many columns, their rows one below the other. Column 0 is value `first_column` of a block. */
typedef struct tw_stored_stack {
    int64_t first_column, k;
    int32_t num_parts;
    tw_stored_part parts[TW_MAX_STORED_PARTS];
} tw_stored_stack;

/* Bytes of (n, k) values, packed; negative for sizes or a format that cannot be. */
TW_API int64_t tw_stored_size_bytes(int format, int64_t first_column, int64_t n, int64_t k);
/* Packs n rows of whole blocks, row_bytes apart, of which each has its values first_column to
 * first_column + k. No number is rounded. */
TW_API int tw_pack_stored(tw_pool* pool, const void* blocks, int64_t row_bytes, int format,
                          int64_t first_column, int64_t n, int64_t k, void* packed);
/* As tw_linear. */
TW_API int tw_stored_linear(tw_pool* pool, const void* x, int64_t ldx, const tw_stored_stack* weights,
                            const float* bias, void* y, int64_t ldy, int64_t m, int dtype, int out_dtype);
/* As tw_gated_linear, of two stacks with one part each, alike but for their formats. */
TW_API int tw_stored_gated_linear(tw_pool* pool, const void* x, int64_t ldx, const tw_stored_stack* gate,
                                  const float* gate_bias, const tw_stored_stack* up, const float* up_bias,
                                  void* out, int64_t ldo, int64_t m, int activation, int dtype);
/* As tw_gather_rows: the values that the blocks stand for, rounded once to `dtype`. */
TW_API int tw_stored_gather_rows(tw_pool* pool, const tw_stored_stack* weights, const int32_t* ids, int64_t m,
                                 int64_t first_row, void* out, int dtype);

/* The norms where a sublayer's output joins the residual. */
typedef struct tw_residual_norms {
    const void* weight; /* (h): of the residual's norm, which out gets; NULL: out gets the residual itself */
    const void*
        post_weight; /* (h): of the norm of what is added to the residual; NULL: it is added as it is */
    float eps;
} tw_residual_norms;

/* residual, float32 whatever the dtype, += x, normed first where there is a post_weight; out = the residual,
 * normed where there is a weight. Where residual is NULL, out = rms_norm(x) * weight, and there is no
 * post_weight. */
TW_API int tw_rms_norm(tw_pool* pool, const void* x, int64_t ldx, float* residual, int64_t ldr,
                       const tw_residual_norms* norms, void* out, int64_t ldo, int64_t m, int64_t h,
                       int dtype);
/* out (m, i) = silu(gate) * up of gate_up (m, 2i) = [gate | up]. */
TW_API int tw_silu_and_mul(tw_pool* pool, const void* gate_up, int64_t ldg, void* out, int64_t m, int64_t i,
                           int dtype);
/* The same with GELU by its tanh in silu's place. */
TW_API int tw_gelu_tanh_and_mul(tw_pool* pool, const void* gate_up, int64_t ldg, void* out, int64_t m,
                                int64_t i, int dtype);

/* KV blocks of 16 tokens, (num_blocks, 2, num_kv_heads, 16 * head_dim), inside a head:
 *   bfloat16: K [head_dim/2][16][2], V [8][head_dim][2];  float32: K [head_dim][16], V [16][head_dim].
 * head_dim is a multiple of 16.
 *
 * The new tokens of the sequences of one forward pass, alike for all its layers. Sequence s owns the rows
 * query_start[s] to query_start[s + 1] of q, the last of its seq_lens[s] tokens; its key t is in block
 * block_tables[s][t / 16]. */
typedef struct tw_attention_batch {
    const float* cos_sin; /* (max_position, head_dim) = [cos | sin], for the two halves of a head */
    int64_t max_position;
    const int32_t* positions;    /* (m): rows of cos_sin */
    const int32_t* slots;        /* (m): where K and V go, block * 16 + offset */
    const int32_t* block_tables; /* (num_seqs, max_blocks) */
    int64_t max_blocks;
    const int32_t* query_start; /* (num_seqs + 1) */
    const int32_t* seq_lens;    /* (num_seqs) */
    int64_t num_seqs, m;
} tw_attention_batch;

/* How one layer attends. KV head j serves query heads group_start[j] to group_start[j + 1]. */
typedef struct tw_attention_layer {
    const int32_t* group_start; /* (num_kv_heads + 1) */
    int32_t num_heads, num_kv_heads, head_dim;
    float scale;            /* of a query times a key */
    int32_t sliding_window; /* keys that a token sees, itself included; 0: all before it */
    float softcap;          /* scores become softcap * tanh(scaled / softcap); 0: they stay */
    const void *q_norm,
        *k_norm; /* (head_dim) of the call's dtype, or NULL: heads are normed before they are rotated */
    float norm_eps;
} tw_attention_layer;

/* Rotates q and k of qkv (m, (num_heads + 2 num_kv_heads) * head_dim) = [q | k | v] and writes k and v to the
 * cache; q goes to q (m, num_heads * head_dim). */
TW_API int tw_rope_and_store(tw_pool* pool, const void* qkv, int64_t ldqkv, void* cache, int64_t num_blocks,
                             const tw_attention_batch* batch, const tw_attention_layer* layer, void* q,
                             int dtype);
/* Causal attention of q over the cached keys, to out (m, num_heads * head_dim). A row takes its keys in partitions of
 * 512, counted from key 0; few long sequences are shared out among the workers by these. */
TW_API int tw_paged_attention(tw_pool* pool, const void* q, int64_t ldq, const void* cache,
                              int64_t num_blocks, const tw_attention_batch* batch,
                              const tw_attention_layer* layer, void* out, int dtype);
/* How many tasks the workers share in that call; a partition of the keys is a task of its own where the whole would be
 * more than a worker's fair share. A negative tw_status on an error. */
TW_API int64_t tw_attention_tasks(const tw_pool* pool, const tw_attention_batch* batch,
                                  const tw_attention_layer* layer);

/* ---- Sampling: from logits to one token for each row ----
 *
 * Penalties, temperature, top-k, top-p, min-p and the draw, in this order; `temperature` 0 takes the largest, of
 * equals the first. The rules, to the bit: tokenweave/sampling/reference.py. Every instruction set follows them. */
typedef struct tw_sampling {
    double top_p;          /* 1: off */
    uint64_t seed, index;  /* they decide the random number: output `index` under `seed` */
    const int32_t* tokens; /* (num_tokens,): the prompt, then the output. Read where there is a penalty */
    int64_t num_tokens, num_prompt;
    int64_t top_k; /* 0 or less: off */
    float temperature, min_p;
    float repetition_penalty; /* 1: off */
    float frequency_penalty, presence_penalty;
    int32_t logprobs; /* so many of the likeliest tokens are named; -1: none, and no rank either */
} tw_sampling;

typedef struct tw_sampled {
    double total;  /* with logprobs: sum of exp(logit - largest) */
    int64_t rank;  /* with logprobs: of `token` among the logits; 1 is the likeliest */
    float largest; /* of the logits; a NaN where there is one */
    int32_t token; /* -1 where `largest` is not finite: there is nothing to take one by */
} tw_sampled;

/* likeliest (m, max_logprobs): the ids of each row's `logprobs` likeliest tokens, of equals the first. */
TW_API int tw_sample(tw_pool* pool, const float* logits, int64_t ldl, int64_t m, int64_t vocab_size,
                     const tw_sampling* params, tw_sampled* sampled, int32_t* likeliest,
                     int64_t max_logprobs);

/* ---- Captured passes ----------------------------------------------------------------------------------------
 *
 * The calls of a forward pass, written down once and made again in one call. Whatever a word points to must be
 * alive and as it was; what those bytes hold may have changed.
 */
#define TW_RECORD_WORDS 16
typedef struct tw_record {
    int32_t function; /* tw_replay_function */
    int32_t num_words;
    uint64_t words[TW_RECORD_WORDS]; /* the arguments in order, each an integer or an address */
} tw_record;

/* The number of a function of this interface by its name; TW_ERROR_UNSUPPORTED where none can be replayed. */
TW_API int tw_replay_function(const char* name);
/* Makes the calls in order until one fails, and returns its status; num_done gets how many did not fail. times_s
 * (count + 1), or NULL: seconds of CLOCK_MONOTONIC when each call began, and when the last ended. */
TW_API int tw_replay(const tw_record* records, int64_t count, double* times_s, int64_t* num_done);
/* What records have in place of torch's operations: zero_, copy_ (within one dtype), and mul_ by a number. */
TW_API int tw_set_zero(void* data, int64_t bytes);
TW_API int tw_copy(void* to, const void* from, int64_t bytes);
TW_API int tw_scale(void* data, int64_t count, const float* factor, int dtype);

/* Lanes: threads that each make their own calls of one captured pass, and wait for each other's steps. A lane counts
 * its steps. Thread safety: each lane is one thread's; any thread may wait for any lane, and say that one failed. */
typedef struct tw_lanes tw_lanes;
/* A wait stays awake for spin_ns and then sleeps; timeout_ns bounds it. */
TW_API int tw_lanes_create(int num_lanes, int64_t timeout_ns, int64_t spin_ns, tw_lanes** lanes);
TW_API void tw_lanes_destroy(tw_lanes* lanes);
/* No lane has done a step, none has failed. While no lane runs. */
TW_API int tw_lanes_begin(tw_lanes* lanes);
/* Returns once `lane` has done so many steps: what it wrote in them is visible after. TW_ERROR_ABORTED: a lane has
 * failed; TW_ERROR_TIMEOUT. */
TW_API int tw_lane_wait(tw_lanes* lanes, int lane, int64_t steps);
/* `lane` has done one more step. TW_ERROR_ABORTED: a lane has failed, so it should begin no other. */
TW_API int tw_lane_done(tw_lanes* lanes, int lane);
/* Ends all waits, now and later, until tw_lanes_begin. */
TW_API int tw_lanes_fail(tw_lanes* lanes);

/* Physical limits over all threads of the pool, measured for about `seconds`. */
typedef enum tw_limit {
    TW_LIMIT_FMA_GFLOPS = 0,
    TW_LIMIT_BF16_GFLOPS = 1,
    TW_LIMIT_READ_GBPS = 2,
    /* Bytes read and written, in the mix of tw_shm_all_reduce_rms_norm over two ranks: two streams are read,
     * one of float32 is updated, one is written. The first mix is that of float32, the second that of
     * bfloat16. */
    TW_LIMIT_FUSED_F32_GBPS = 3,
    TW_LIMIT_FUSED_BF16_GBPS = 4
} tw_limit;
TW_API int tw_measure_limit(tw_pool* pool, int limit, double seconds, double* value);

/* ---- Shared-memory collectives ----------------------------------------------------------------------------------
 *
 * Thread safety: a tw_shm_group is one rank's handle, used by one thread at a time; only tw_shm_abort may be called
 * by any thread at any time. The segment is zero-filled memory that every rank maps, for one group, once.
 *
 * Invariants:
 *  1. All ranks make the same calls in the same order; where they do not, all get TW_ERROR_MISMATCH.
 *  2. A sum is taken in rank order, in float32 (integers: wrapping), rounded once: the same bits on every rank.
 *  3. Every wait ends: TW_OK, TW_ERROR_TIMEOUT, TW_ERROR_ABORTED (a rank died, left or aborted) or TW_ERROR_MISMATCH.
 *     After any error but an invalid argument the group is aborted; tw_shm_last_error says why.
 */
typedef enum tw_shm_dtype {
    TW_SHM_FLOAT32 = 1,
    TW_SHM_BFLOAT16 = 2,
    TW_SHM_FLOAT16 = 3,
    TW_SHM_INT32 = 4,
    TW_SHM_INT64 = 5,
    TW_SHM_UINT8 = 6,
} tw_shm_dtype;

typedef struct tw_shm_options {
    int32_t rank;        /* -1: an observer, which may only abort */
    int32_t size;        /* up to 64 */
    uint64_t slot_bytes; /* of one rank's buffer, of which it has two; a multiple of 4096 */
    int64_t timeout_ns;  /* bound of every wait that is not idle */
    int64_t spin_ns;     /* how long a wait stays awake before it sleeps; see tw_shm_set_spin */
} tw_shm_options;

typedef struct tw_shm_group tw_shm_group;

/* Bytes of the segment that a group needs; 0 for a size or slot_bytes that cannot be. */
TW_API size_t tw_shm_segment_bytes(int size, size_t slot_bytes);

/* Joins. segment_fd is the segment's file, through which the others notice this process's death, or -1.
 * Refuses a segment that is too small, has been used with another size or slot_bytes, or has had this rank
 * already. */
TW_API int tw_shm_attach(void* base, size_t segment_bytes, int segment_fd, const tw_shm_options* options,
                         tw_shm_group** group);
/* Leaves: a rank that still waits for this one gets TW_ERROR_ABORTED. */
TW_API void tw_shm_detach(tw_shm_group* group);

/* Returns once every rank has called it; what each wrote to shared memory before is visible after. */
TW_API int tw_shm_barrier(tw_shm_group* group);
/* data[count] becomes the sum over the ranks. */
TW_API int tw_shm_all_reduce(tw_shm_group* group, void* data, size_t count, int dtype);
/* gathered (size * bytes) becomes the ranks' data (bytes each) in rank order. */
TW_API int tw_shm_all_gather(tw_shm_group* group, const void* data, void* gathered, size_t bytes);
/* On the root, gathered (rows, sum of row_bytes) becomes the ranks' data (rows, row_bytes[rank]) side by
 * side; NULL on the others, which may return before the root has it. */
TW_API int tw_shm_gather_columns(tw_shm_group* group, const void* data, void* gathered, size_t rows,
                                 const size_t* row_bytes, int root);
/* The fused operation (TokenWeave, section 3). Rank r's partial sums, (rows, h) of `dtype` (tw_dtype), lie at
 * `symmetric + r * region_bytes + offset`; their sum, taken in float32 in rank order, is added to residual
 * (rows, h) float32, which is this rank's own memory, and out (rows, h) gets what `norms` make of it, as in
 * tw_rms_norm. one_shot 0: each rank does its rows (tw_shm_owned_rows) of a residual and of an `out` that is
 * one memory for all ranks. After it every row of out is there, and nobody reads the partial sums any more.
 *   one_shot 1: each rank does all rows, of memory of its own. After it other ranks may still read this
 * rank's partial sums, until they call the next collective. Ranks that bring different offsets are told, as
 * for different sizes. `pool` shares the rows out among its workers. */
TW_API int tw_shm_all_reduce_rms_norm(tw_shm_group* group, tw_pool* pool, const void* symmetric,
                                      size_t region_bytes, size_t offset, float* residual,
                                      const tw_residual_norms* norms, void* out, int64_t rows, int64_t h,
                                      int dtype, int one_shot);
/* The same in three calls, for whoever has something to wait for between them, such as a modelled link:
 *   begin: returns once the partial sums of all ranks are there; `bytes` of each, from `offset` on.
 *   rows: this rank's rows, or all with one_shot. Waits for nobody.
 *   end: returns once every row of `out` is there. There is none with one_shot. */
TW_API int tw_shm_reduce_norm_begin(tw_shm_group* group, size_t bytes, size_t offset, int dtype);
TW_API int tw_shm_reduce_norm_rows(tw_shm_group* group, tw_pool* pool, const void* symmetric,
                                   size_t region_bytes, size_t offset, float* residual,
                                   const tw_residual_norms* norms, void* out, int64_t rows, int64_t h,
                                   int dtype, int one_shot);
TW_API int tw_shm_reduce_norm_end(tw_shm_group* group, size_t bytes, size_t offset, int dtype);
/* The rows of a residual that a rank keeps: [first, last). */
TW_API void tw_shm_owned_rows(int rank, int size, int64_t rows, int64_t* first, int64_t* last);
/* data becomes the root's. The root may return before the others have it. */
TW_API int tw_shm_broadcast(tw_shm_group* group, void* data, size_t bytes, int root);
/* A message whose length only the root knows: the root sends; the others begin, make room, and take the rest.
 * idle: wait for the other ranks without bound (asleep), yet still end on an abort. */
TW_API int tw_shm_send_bytes(tw_shm_group* group, const void* data, size_t bytes, int idle);
TW_API int tw_shm_receive_begin(tw_shm_group* group, int root, int idle, uint64_t* bytes);
TW_API int tw_shm_receive_rest(tw_shm_group* group, int root, void* data);

/* From the next wait on. Less suits a rank whose core another thread of it could use meanwhile. */
TW_API int tw_shm_set_spin(tw_shm_group* group, int64_t spin_ns);
/* What the next call would return if the group has been aborted, else TW_OK. Waits for nobody. */
TW_API int tw_shm_check(tw_shm_group* group);
/* Makes every rank's current and later calls return TW_ERROR_ABORTED. failed_rank: whose fault, or -1. */
TW_API int tw_shm_abort(tw_shm_group* group, int failed_rank, const char* reason);
/* Why the last call on this handle failed, and returns the rank whose fault it was, or -1. */
TW_API int tw_shm_last_error(const tw_shm_group* group, char* text, size_t text_bytes);

#ifdef __cplusplus
}
#endif

#endif
