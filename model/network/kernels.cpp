// The inner loops of decoding in eight bits: products of whole numbers with what follows them, in one pass.
//
// For processors with AVX-512 VNNI; kernels.py finds out whether there is one. Everything else runs without this file.
//
// A product's weights stand in *panels* of G times 16 outputs, so that G registers hold what belongs together: for a
// recurrent cell 16 units of each of its G gates, which therefore never leave the processor as gates; else 64 outputs.
// Inside a panel the inputs follow each other in groups of four, which one instruction multiplies and adds up.
//
// Every row is computed by the same instructions in the same order whatever other rows there are, and sums of whole
// numbers are exact in any order: no row's result depends on its company.
//
// Inputs are bytes: round(127 x / bound) + 128. The 128 is taken off again by where the sums begin, `init`.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#include <omp.h>

namespace {

constexpr int kLanes = 16;   // floats in a register
constexpr int kRows = 6;     // rows of a tile: 6 · 4 sums, 4 weights and an input fill the 32 registers
constexpr int kBlock = 64;   // outputs of a panel that is no cell's
constexpr int64_t kLargeFloats = 3 << 20;

// Up to three inputs that stand side by side.
struct Inputs {
    const uint8_t* data[3];
    int64_t stride[3];  // bytes from row to row
};

// An affine map as it was packed. All but the inputs' widths follow the order of the panels.
struct Affine {
    const int8_t* panels;   // [outputs / (16 G), inputs / 4, G, 16, 4]
    const int32_t* init;    // -128 times the sum of an output's weights
    const float* scale;
    const float* bias;
    int64_t num_panels;
    int64_t num_outputs;
    int64_t groups[3];      // of four inputs, in each of the inputs that stand side by side
    int64_t num_groups;     // their sum
};

// Rows of a table that are added: row n is table + rows[n] · stride, without `rows` the n-th.
struct Added {
    const float* table;
    const int64_t* rows;
    int64_t stride;  // floats

    const float* row(int64_t n) const { return table + (rows ? rows[n] : n) * stride; }
};

// 2^x, x finite. 2^n · 2^f with |f| <= 1/2, and a polynomial for 2^f of the degree that is asked for: within 3e-06 of it
// with degree 4, 9e-08 with degree 5.
template <int Degree>
inline __m512 Power(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, n);
    static_assert(Degree == 4 || Degree == 5);
    constexpr float kFour[] = {6.931241932e-01f, 2.402409862e-01f, 5.590642621e-02f, 9.582853220e-03f};
    constexpr float kFive[] = {6.931469776e-01f, 2.402224208e-01f, 5.550733745e-02f, 9.671512813e-03f, 1.326472721e-03f};
    const float* c = Degree == 4 ? kFour : kFive;
    __m512 p = _mm512_set1_ps(c[Degree - 1]);
#pragma GCC unroll 4
    for (int i = Degree - 2; i >= 0; --i) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c[i]));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

constexpr float kLog2E = 1.44269504f;

// e^x, x from -∞ to 0.
inline __m512 Exp(__m512 x) {
    return Power<5>(_mm512_max_ps(_mm512_mul_ps(x, _mm512_set1_ps(kLog2E)), _mm512_set1_ps(-126.0f)));
}

// 1 / (1 + 2^t): σ(x) for t = -log2 e · x. Gates come multiplied like that, weights and tables: see native_cell.py.
inline __m512 Logistic(__m512 t) {
    const __m512 x = _mm512_add_ps(_mm512_set1_ps(1.0f), Power<4>(_mm512_min_ps(t, _mm512_set1_ps(126.0f))));
    const __m512 y = _mm512_rcp14_ps(x);
    return _mm512_mul_ps(y, _mm512_fnmadd_ps(x, y, _mm512_set1_ps(2.0f)));  // one step of Newton's
}

// tanh(x) = 1 - 2 / (1 + e^2x), for t = 2 log2 e · x.
inline __m512 Tanh(__m512 t) {
    return _mm512_fnmadd_ps(_mm512_set1_ps(2.0f), Logistic(t), _mm512_set1_ps(1.0f));
}

// round(factor · x) + 128, cut to a byte.
inline __m128i Quantize(__m512 x, __m512 factor) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_fmadd_ps(x, factor, _mm512_set1_ps(128.0f)));
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, _mm512_setzero_si512()));
}

inline void StoreBytes(uint8_t* to, __m128i bytes) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes); }

// R rows, from `row`, times one panel.
template <int R, int G>
inline __attribute__((always_inline)) void Multiply(
    const Affine& affine, int64_t panel, const Inputs& inputs, int64_t row, __m512i (&sums)[R][G]) {
    const int8_t* weights = affine.panels + panel * affine.num_groups * G * 64;
    for (int g = 0; g < G; ++g) {
        const __m512i init = _mm512_loadu_si512(affine.init + (panel * G + g) * kLanes);
        for (int r = 0; r < R; ++r) sums[r][g] = init;
    }
    for (int i = 0; i < 3; ++i) {
        const int64_t num_groups = affine.groups[i];
        const int64_t stride = inputs.stride[i];
        const uint8_t* x = inputs.data[i] + row * stride;
        for (int64_t k = 0; k < num_groups; ++k) {
            __m512i w[G];
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) w[g] = _mm512_loadu_si512(weights + g * 64);
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                int32_t four;
                std::memcpy(&four, x + r * stride + 4 * k, 4);
                const __m512i a = _mm512_set1_epi32(four);
#pragma GCC unroll 4
                for (int g = 0; g < G; ++g) sums[r][g] = _mm512_dpbusd_epi32(sums[r][g], a, w[g]);
            }
            weights += G * 64;
        }
    }
}

inline __m512 ToFloat(const Affine& affine, int64_t at, __m512i sum) {
    return _mm512_fmadd_ps(
        _mm512_cvtepi32_ps(sum), _mm512_loadu_ps(affine.scale + at), _mm512_loadu_ps(affine.bias + at));
}

// Calls tile.template operator()<R>(row) for tiles that cover all rows.
template <typename Tile>
inline __attribute__((always_inline)) void ForTiles(int64_t num_rows, Tile&& tile) {
    int64_t row = 0;
    for (; row + kRows <= num_rows; row += kRows) tile.template operator()<kRows>(row);
    switch (num_rows - row) {
        case 1: tile.template operator()<1>(row); break;
        case 2: tile.template operator()<2>(row); break;
        case 3: tile.template operator()<3>(row); break;
        case 4: tile.template operator()<4>(row); break;
        case 5: tile.template operator()<5>(row); break;
    }
}

// -- products ---------------------------------------------------------------------------------------------------------

enum Finish { kPlain = 0, kTanh = 1, kLogits = 2 };

struct ProductOut {
    float* floats;         // [N, outputs]
    const int64_t* rows;   // row n of the floats is rows[n]; or null
    uint8_t* bytes;        // [N, outputs], of kTanh
    float factor;          // 127 / bound of the bytes
    float* peaks;          // [N, panels], of kLogits: the largest of each panel
    float* masses;         // [N, panels], of kLogits: Σ exp(logit - peak)
    bool is_large;         // of kLogits: more than the caches should be filled with
};

template <int F, int R>
inline void ProductTile(
    const Affine& affine, int64_t panel, const Inputs& inputs, const Added& added, const ProductOut& out, int64_t row) {
    __m512i sums[R][4];
    Multiply<R, 4>(affine, panel, inputs, row, sums);
    const int64_t first = panel * kBlock;
    const int num_registers = static_cast<int>((affine.num_outputs - first) / kLanes);
    for (int r = 0; r < R; ++r) {
        __m512 y[4];
        for (int g = 0; g < 4; ++g) y[g] = ToFloat(affine, first + g * kLanes, sums[r][g]);
        const int64_t at = (out.rows ? out.rows[row + r] : row + r) * affine.num_outputs + first;
        if (F == kLogits) {
            if (out.is_large) {
                for (int g = 0; g < 4; ++g) _mm512_stream_ps(out.floats + at + g * kLanes, y[g]);
            } else {
                for (int g = 0; g < 4; ++g) _mm512_storeu_ps(out.floats + at + g * kLanes, y[g]);
            }
            const float peak = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(y[0], y[1]), _mm512_max_ps(y[2], y[3])));
            __m512 mass = _mm512_setzero_ps();
            for (int g = 0; g < 4; ++g) mass = _mm512_add_ps(mass, Exp(_mm512_sub_ps(y[g], _mm512_set1_ps(peak))));
            out.peaks[(row + r) * affine.num_panels + panel] = peak;
            out.masses[(row + r) * affine.num_panels + panel] = _mm512_reduce_add_ps(mass);
            continue;
        }
        for (int g = 0; g < 4 && g < num_registers; ++g) {
            if (added.table) y[g] = _mm512_add_ps(y[g], _mm512_loadu_ps(added.row(row + r) + first + g * kLanes));
            if (F == kTanh) {
                y[g] = Tanh(y[g]);
                StoreBytes(out.bytes + at + g * kLanes, Quantize(y[g], _mm512_set1_ps(out.factor)));
            } else {
                _mm512_storeu_ps(out.floats + at + g * kLanes, y[g]);
            }
        }
    }
}

template <int F>
void ProductOf(
    const Affine& affine, const Inputs& inputs, int64_t num_rows, const Added& added, const ProductOut& out,
    int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t panel = 0; panel < affine.num_panels; ++panel) {
        ForTiles(num_rows, [&]<int R>(int64_t row) { ProductTile<F, R>(affine, panel, inputs, added, out, row); });
    }
}

// -- recurrent cells --------------------------------------------------------------------------------------------------

enum Kind { kRnn = 0, kGru = 1, kLstm = 2 };

template <int K>
constexpr int kGates = K == kLstm ? 4 : K == kGru ? 3 : 1;

struct CellOut {
    const float* before;     // [N, H]: c of an LSTM, h of a GRU
    float* after;            // [N, H], may be `before`
    uint8_t* bytes;          // [N, H]: h
    float* floats;           // h, row n at floats + float_rows[n] · float_stride; or null
    const int64_t* float_rows;
    int64_t float_stride;
    uint8_t* copies;         // h in bytes once more, row n at copies + copy_rows[n] · copy_stride; or null
    const int64_t* copy_rows;
    int64_t copy_stride;
    float factor;            // 127 / bound of the bytes
};

template <int K, int R>
inline void CellTile(
    const Affine& affine, int64_t hidden_dim, int64_t panel, const Inputs& inputs, const Added& added,
    const CellOut& out, int64_t row) {
    constexpr int G = kGates<K>;
    const int64_t unit = panel * kLanes;
    if (added.table) {  // rows of a large table come from far away
        for (int r = 0; r < R; ++r) {
            for (int g = 0; g < G; ++g) _mm_prefetch(added.row(row + r) + unit + g * hidden_dim, _MM_HINT_T0);
        }
    }
    __m512i sums[R][G];
    Multiply<R, G>(affine, panel, inputs, row, sums);
    for (int r = 0; r < R; ++r) {
        const int64_t n = row + r, at = n * hidden_dim + unit;
        __m512 y[G], x[G];
        const float* share = added.table ? added.row(n) + unit : nullptr;
        for (int g = 0; g < G; ++g) {
            y[g] = ToFloat(affine, (panel * G + g) * kLanes, sums[r][g]);
            x[g] = share ? _mm512_loadu_ps(share + g * hidden_dim) : _mm512_setzero_ps();
            if (K != kGru || g < 2) y[g] = _mm512_add_ps(y[g], x[g]);
        }
        __m512 h;
        if constexpr (K == kLstm) {
            const __m512 i = Logistic(y[0]), f = Logistic(y[1]), candidate = Tanh(y[2]), o = Logistic(y[3]);
            const __m512 c = _mm512_fmadd_ps(i, candidate, _mm512_mul_ps(f, _mm512_loadu_ps(out.before + at)));
            _mm512_storeu_ps(out.after + at, c);
            h = _mm512_mul_ps(o, Tanh(_mm512_mul_ps(c, _mm512_set1_ps(2 * kLog2E))));
        } else if constexpr (K == kGru) {
            const __m512 reset = Logistic(y[0]), update = Logistic(y[1]);
            const __m512 candidate = Tanh(_mm512_fmadd_ps(reset, y[2], x[2]));
            const __m512 before = _mm512_loadu_ps(out.before + at);
            h = _mm512_fmadd_ps(update, _mm512_sub_ps(before, candidate), candidate);
            _mm512_storeu_ps(out.after + at, h);
        } else {
            h = Tanh(y[0]);
        }
        const __m128i bytes = Quantize(h, _mm512_set1_ps(out.factor));
        StoreBytes(out.bytes + at, bytes);
        if (out.floats) {
            const int64_t to = out.float_rows ? out.float_rows[n] : n;
            _mm512_storeu_ps(out.floats + to * out.float_stride + unit, h);
        }
        if (out.copies) StoreBytes(out.copies + out.copy_rows[n] * out.copy_stride + unit, bytes);
    }
}

template <int K>
void CellRows(
    const Affine& affine, int64_t hidden_dim, int64_t panel, const Inputs& inputs, int64_t num_rows, const Added& added,
    const CellOut& out) {
    ForTiles(num_rows, [&]<int R>(int64_t row) { CellTile<K, R>(affine, hidden_dim, panel, inputs, added, out, row); });
}

template <int K>
void CellOf(
    const Affine& affine, int64_t hidden_dim, const Inputs& inputs, int64_t num_rows, const Added& added,
    const CellOut& out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t panel = 0; panel < affine.num_panels; ++panel) {
        CellRows<K>(affine, hidden_dim, panel, inputs, num_rows, added, out);
    }
}

// Sentences of a batch, the longest first, as one direction of an encoder layer reads them.
struct Batch {
    int64_t num_sentences;
    const int64_t* lens;     // [B], falling
    const int64_t* starts;   // [B], where each sentence's tokens begin among all tokens
    const int64_t* places;   // [B], where its outputs begin
    const int64_t* ranks;    // [B], its row in the last states
};

struct ReadOut {
    float* floats;           // [·, D · H] from `places`; or null
    uint8_t* bytes;          // [tokens, D · H]; or null
    float* last_h;           // [B, D · H]
    float* last_after;       // [B, D · H]: c of an LSTM; or null
    float factor;
};

// One direction reads every `num_chunks`-th sentence, from `chunk`: states stay with the thread, which waits for nobody.
template <int K>
void Read(
    const Affine& affine, int64_t hidden_dim, const float* gates, const int64_t* gate_rows, int64_t num_directions,
    int64_t direction, bool is_backwards, const Batch& batch, int64_t chunk, int64_t num_chunks, const ReadOut& out) {
    const int64_t num_rows = (batch.num_sentences - chunk + num_chunks - 1) / num_chunks;
    if (num_rows <= 0) return;
    const int64_t size = num_rows * hidden_dim, width = num_directions * hidden_dim;
    // h of one step is read while that of the next is written.
    uint8_t* bytes = static_cast<uint8_t*>(std::malloc(2 * size));
    std::memset(bytes, 128, size);
    float* states = static_cast<float*>(std::calloc(2 * size, sizeof(float)));
    int64_t* rows = static_cast<int64_t*>(std::malloc(3 * num_rows * sizeof(int64_t)));
    float* h = states + size;
    const float* shares = gates + direction * kGates<K> * hidden_dim;
    int64_t num_reading = num_rows;
    for (int64_t t = 0;; ++t) {
        while (num_reading && batch.lens[chunk + num_chunks * (num_reading - 1)] <= t) --num_reading;
        if (!num_reading) break;
        for (int64_t n = 0; n < num_reading; ++n) {
            const int64_t sentence = chunk + num_chunks * n;
            const int64_t position = is_backwards ? batch.lens[sentence] - 1 - t : t;
            const int64_t token = batch.starts[sentence] + position;
            rows[n] = gate_rows ? gate_rows[token] : token;
            rows[num_rows + n] = token;
            rows[2 * num_rows + n] = batch.places[sentence] + position;
        }
        const Inputs inputs{{bytes + (t % 2) * size}, {hidden_dim}};
        const Added added{shares, rows, num_directions * kGates<K> * hidden_dim};
        CellOut cell{};
        cell.before = cell.after = states;
        cell.bytes = bytes + (1 - t % 2) * size;
        cell.factor = out.factor;
        cell.floats = out.floats ? out.floats + direction * hidden_dim : h;
        cell.float_rows = out.floats ? rows + 2 * num_rows : nullptr;
        cell.float_stride = out.floats ? width : hidden_dim;
        cell.copies = out.bytes ? out.bytes + direction * hidden_dim : nullptr;
        cell.copy_rows = rows + num_rows;
        cell.copy_stride = width;
        for (int64_t panel = 0; panel < affine.num_panels; ++panel) {
            CellRows<K>(affine, hidden_dim, panel, inputs, num_reading, added, cell);
        }
    }
    for (int64_t n = 0; n < num_rows; ++n) {
        const int64_t sentence = chunk + num_chunks * n;
        const int64_t to = batch.ranks[sentence] * width + direction * hidden_dim;
        const int64_t last = is_backwards ? 0 : batch.lens[sentence] - 1;
        const float* from = h + n * hidden_dim;
        if (out.floats) from = out.floats + (batch.places[sentence] + last) * width + direction * hidden_dim;
        std::memcpy(out.last_h + to, from, hidden_dim * sizeof(float));
        if (out.last_after) std::memcpy(out.last_after + to, states + n * hidden_dim, hidden_dim * sizeof(float));
    }
    std::free(bytes);
    std::free(states);
    std::free(rows);
}

// -- attention --------------------------------------------------------------------------------------------------------

inline float Dot(const float* a, const float* b, int64_t size) {
    __m512 sum = _mm512_setzero_ps(), other = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), sum);
        other = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + kLanes), _mm512_loadu_ps(b + i + kLanes), other);
    }
    if (i < size) sum = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), sum);
    return _mm512_reduce_add_ps(_mm512_add_ps(sum, other));
}

// weights [S]: scores of the first `length` positions -> their softmax; zeros after them.
inline void Softmax(float* weights, int64_t length, int64_t width) {
    __m512 largest = _mm512_set1_ps(-__builtin_inff());
    for (int64_t s = 0; s < length; s += kLanes) {
        const __mmask16 mask = length - s >= kLanes ? 0xffff : (1u << (length - s)) - 1;
        largest = _mm512_mask_max_ps(largest, mask, largest, _mm512_maskz_loadu_ps(mask, weights + s));
    }
    const __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sum = _mm512_setzero_ps();
    for (int64_t s = 0; s < width; s += kLanes) {
        const __mmask16 inside = width - s >= kLanes ? 0xffff : (1u << (width - s)) - 1;
        const __mmask16 mask = length - s >= kLanes ? 0xffff : length <= s ? 0 : (1u << (length - s)) - 1;
        const __m512 e = _mm512_maskz_mov_ps(mask, Exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, weights + s), peak)));
        sum = _mm512_add_ps(sum, e);
        _mm512_mask_storeu_ps(weights + s, inside, e);
    }
    const __m512 scale = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
    for (int64_t s = 0; s < length; s += kLanes) {
        const __mmask16 mask = length - s >= kLanes ? 0xffff : (1u << (length - s)) - 1;
        _mm512_mask_storeu_ps(weights + s, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, weights + s), scale));
    }
}

}  // namespace

extern "C" {

// Whether this processor has what the rest of the file needs.
int recurra_is_supported() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}

// x [N, size] floats, rows `stride` floats apart -> bytes [N, size].
void recurra_quantize(const float* x, int64_t stride, uint8_t* bytes, int64_t num_rows, int64_t size, float factor) {
    const __m512 factors = _mm512_set1_ps(factor);
    for (int64_t n = 0; n < num_rows; ++n) {
        for (int64_t i = 0; i < size; i += kLanes) {
            StoreBytes(bytes + n * size + i, Quantize(_mm512_loadu_ps(x + n * stride + i), factors));
        }
    }
}

void recurra_product(
    const Affine* affine, int finish, const Inputs* inputs, int64_t num_rows, const float* table, const int64_t* rows,
    int64_t stride, float* floats, const int64_t* float_rows, uint8_t* bytes, float factor, int threads) {
    const Added added{table, rows, stride};
    const ProductOut out{floats, float_rows, bytes, factor, nullptr, nullptr, false};
    if (finish == kTanh) {
        ProductOf<kTanh>(*affine, *inputs, num_rows, added, out, threads);
    } else {
        ProductOf<kPlain>(*affine, *inputs, num_rows, added, out, threads);
    }
}

// Logits [N, V], the largest of each 64 [N, V / 64], and the logarithm of each row's sum of exponentials [N].
void recurra_logits(
    const Affine* affine, const Inputs* inputs, int64_t num_rows, float* logits, float* peaks, float* masses,
    float* log_norms, int threads) {
    const bool is_large = num_rows * affine->num_outputs > kLargeFloats;
    const ProductOut out{logits, nullptr, nullptr, 0, peaks, masses, is_large};
    ProductOf<kLogits>(*affine, *inputs, num_rows, Added{}, out, threads);
    const int64_t num_panels = affine->num_panels;
    for (int64_t n = 0; n < num_rows; ++n) {
        const float* peak = peaks + n * num_panels;
        const float* mass = masses + n * num_panels;
        float largest = peak[0];
        for (int64_t i = 1; i < num_panels; ++i) largest = peak[i] > largest ? peak[i] : largest;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < num_panels; i += kLanes) {
            const __mmask16 mask = num_panels - i >= kLanes ? 0xffff : (1u << (num_panels - i)) - 1;
            const __m512 share = Exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, peak + i), _mm512_set1_ps(largest)));
            sum = _mm512_mask_add_ps(sum, mask, sum, _mm512_mul_ps(share, _mm512_maskz_loadu_ps(mask, mass + i)));
        }
        log_norms[n] = largest + __builtin_logf(_mm512_reduce_add_ps(sum));
    }
}

// One step of a cell. `before` and `after` [N, H]: c of an LSTM, h of a GRU.
void recurra_cell(
    const Affine* affine, int kind, int64_t hidden_dim, const Inputs* inputs, int64_t num_rows, const float* table,
    const int64_t* rows, int64_t stride, const float* before, float* after, uint8_t* bytes, float* floats, float factor,
    int threads) {
    const Added added{table, rows, stride};
    CellOut out{};
    out.before = before;
    out.after = after;
    out.bytes = bytes;
    out.floats = floats;
    out.float_stride = hidden_dim;
    out.factor = factor;
    if (kind == kLstm) {
        CellOf<kLstm>(*affine, hidden_dim, *inputs, num_rows, added, out, threads);
    } else if (kind == kGru) {
        CellOf<kGru>(*affine, hidden_dim, *inputs, num_rows, added, out, threads);
    } else {
        CellOf<kRnn>(*affine, hidden_dim, *inputs, num_rows, added, out, threads);
    }
}

// An encoder layer of one or two directions over a batch. gates [·, D · G · H]: the inputs' share.
void recurra_read(
    const Affine* const* directions, int kind, int64_t hidden_dim, int64_t num_directions, int is_reversed,
    const float* gates, const int64_t* gate_rows, const int64_t* lens, const int64_t* starts, const int64_t* places,
    const int64_t* ranks, int64_t num_sentences, float* floats, uint8_t* bytes, float* last_h, float* last_after,
    float factor, int threads) {
    const Batch batch{num_sentences, lens, starts, places, ranks};
    const ReadOut out{floats, bytes, last_h, last_after, factor};
    const auto read = kind == kLstm ? Read<kLstm> : kind == kGru ? Read<kGru> : Read<kRnn>;
    const int64_t num_chunks = (threads + num_directions - 1) / num_directions;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int64_t task = 0; task < num_directions * num_chunks; ++task) {
        const int64_t direction = task % num_directions, chunk = task / num_directions;
        const bool is_backwards = (direction == 1) != (is_reversed != 0);
        read(
            *directions[direction], hidden_dim, gates, gate_rows, num_directions, direction, is_backwards, batch, chunk,
            num_chunks, out);
    }
}

// Looks up queries [R · K, A] in keys [R, S, A] and values [R, S, M], whose mask [R, S] is 1 for the positions that
// there are, which come first -> contexts as bytes [R · K, M], and weights [R · K, S].
void recurra_attend(
    const float* queries, const float* keys, const float* values, const uint8_t* mask, int64_t num_entries,
    int64_t rows_each, int64_t width, int64_t key_dim, int64_t memory_dim, uint8_t* contexts, float factor,
    float* weights, int threads) {
    const __m512 factors = _mm512_set1_ps(factor);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t entry = 0; entry < num_entries; ++entry) {
        const float* key = keys + entry * width * key_dim;
        const float* value = values + entry * width * memory_dim;
        int64_t length = 0;
        while (length < width && mask[entry * width + length]) ++length;
        for (int64_t s = 0; s < length; ++s) {
            for (int64_t k = 0; k < rows_each; ++k) {
                const int64_t n = entry * rows_each + k;
                weights[n * width + s] = Dot(queries + n * key_dim, key + s * key_dim, key_dim);
            }
        }
        for (int64_t k = 0; k < rows_each; ++k) {
            const int64_t n = entry * rows_each + k;
            float* weight = weights + n * width;
            Softmax(weight, length, width);
            for (int64_t i = 0; i < memory_dim; i += 4 * kLanes) {
                const int num = static_cast<int>(memory_dim - i >= 4 * kLanes ? 4 : (memory_dim - i) / kLanes);
                __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
                for (int64_t s = 0; s < length; ++s) {
                    const __m512 w = _mm512_set1_ps(weight[s]);
                    const float* from = value + s * memory_dim + i;
                    for (int j = 0; j < num; ++j) {
                        sums[j] = _mm512_fmadd_ps(w, _mm512_loadu_ps(from + j * kLanes), sums[j]);
                    }
                }
                for (int j = 0; j < num; ++j) {
                    StoreBytes(contexts + n * memory_dim + i + j * kLanes, Quantize(sums[j], factors));
                }
            }
        }
    }
}

}  // extern "C"
