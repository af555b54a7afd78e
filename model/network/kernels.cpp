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
// Rows of a beam that continue the same hypothesis differ in their last token only. What they have in common, the
// products of their parent's state, is computed once: see `Rows`.
//
// Operations are written down in a `Work` first, and `recurra_run` does them all, one after the other, by one team of
// threads: whoever calls from Python gives up its interpreter's lock once a step.
//
// Inputs are bytes: round(127 x / bound) + 128. The 128 is taken off again by where the sums begin, `init`.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <immintrin.h>
#include <omp.h>
#include <vector>

namespace {

constexpr int kLanes = 16;   // floats in a register
constexpr int kRows = 6;     // rows of a tile: 6 · 4 sums, 4 weights and an input fill the 32 registers
constexpr int kBlock = 64;   // outputs of a panel that is no cell's
constexpr int64_t kLargeFloats = 3 << 20;

// Which rows there are, and whose state each goes on from: row `own[i]` from row `parents[i]` of the state before.
// A null pointer says that it is i.
struct Rows {
    int64_t num = 0;
    const int32_t* own = nullptr;
    const int32_t* parents = nullptr;
    const uint8_t* is_there = nullptr;  // of row n, whether it is among `own`; null where all are
    // The different parents, and where among them each row finds its own; null where hardly any have one in common.
    int64_t num_distinct = 0;
    const int32_t* distinct = nullptr;
    const int32_t* shares = nullptr;

    int64_t row(int64_t i) const { return own ? own[i] : i; }
    int64_t parent(int64_t i) const { return parents ? parents[i] : i; }
};

constexpr int kParts = 3;

// Up to three inputs that stand side by side.
struct Inputs {
    const uint8_t* data[kParts];
    int64_t stride[kParts];     // bytes from row to row
    int32_t is_parents[kParts];  // whether a row's input is its parent's
};

// An affine map as it was packed. All but the inputs' widths follow the order of the panels.
struct Affine {
    const int8_t* panels;   // [outputs / (16 G), inputs / 4, G, 16, 4]
    const int32_t* init;    // -128 times the sum of an output's weights
    const float* scale;
    const float* bias;
    int64_t num_panels;
    int64_t num_outputs;
    int64_t num_parts;       // inputs that stand side by side; of a cell the state is the last
    int64_t groups[kParts];  // of four, in each of them
    int64_t num_groups;      // their sum
};

// Rows of a table that are added: row n is table + rows[n] · stride, without `rows` the n-th.
struct Added {
    const float* table;
    const int64_t* rows;
    int64_t stride;  // floats

    const float* row(int64_t n) const { return table + (rows ? rows[n] : n) * stride; }
};

// The first `num` lanes: none where that is not above 0, and all from 16 on.
inline __mmask16 Lanes(int64_t num) {
    return num >= kLanes ? 0xffff : num <= 0 ? 0 : static_cast<__mmask16>((1u << num) - 1);
}

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

// Floats as bf16, to the nearest, ties to even.
inline void StoreHalves(uint16_t* to, __m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i is_odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
    const __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}

inline __m512 LoadHalves(const uint16_t* from) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline void StoreBytes(uint8_t* to, __m128i bytes) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes); }

// Adds the products of R rows with one input's groups of a panel: gate g to sum g, but the last gate to sum `Last`.
// Returns where the next input's weights begin.
template <int R, int G, int A, int Last>
inline __attribute__((always_inline)) const int8_t* MultiplyPart(
    const int8_t* weights, int64_t num_groups, const uint8_t* const (&x)[R], __m512i (&sums)[R][A]) {
    for (int64_t k = 0; k < num_groups; ++k) {
        __m512i w[G];
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) w[g] = _mm512_loadu_si512(weights + g * 64);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            int32_t four;
            std::memcpy(&four, x[r] + 4 * k, 4);
            const __m512i a = _mm512_set1_epi32(four);
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) {
                __m512i& sum = sums[r][g + 1 < G ? g : Last];
                sum = _mm512_dpbusd_epi32(sum, a, w[g]);
            }
        }
        weights += G * 64;
    }
    return weights;
}

enum Which { kAll, kParents, kOwn };  // inputs

// R rows, from the i-th, times one panel. S is a `Shape`, below. Of `kParents` i counts the different parents.
template <int R, typename S>
inline __attribute__((always_inline)) void Multiply(
    const Affine& affine, int64_t panel, const Inputs& inputs, const Rows& rows, Which which, int64_t i,
    __m512i (&sums)[R][S::kSums]) {
    const int8_t* weights = affine.panels + panel * affine.num_groups * S::kGates * 64;
    for (int part = 0; part < affine.num_parts; ++part) {
        const int64_t num_groups = affine.groups[part];
        const bool is_parents = inputs.is_parents[part];
        if (which != kAll && is_parents != (which == kParents)) {
            weights += num_groups * S::kGates * 64;
            continue;
        }
        const int32_t* at = which == kParents ? rows.distinct : is_parents ? rows.parents : rows.own;
        const uint8_t* x[R];
        for (int r = 0; r < R; ++r) x[r] = inputs.data[part] + (at ? at[i + r] : i + r) * inputs.stride[part];
        if (S::kStateSum != S::kGates - 1 && part + 1 == affine.num_parts) {
            weights = MultiplyPart<R, S::kGates, S::kSums, S::kStateSum>(weights, num_groups, x, sums);
        } else {
            weights = MultiplyPart<R, S::kGates, S::kSums, S::kGates - 1>(weights, num_groups, x, sums);
        }
    }
}

template <int R, int A>
inline void Begin(const int32_t* init, __m512i (&sums)[R][A]) {
    for (int a = 0; a < A; ++a) {
        const __m512i first = _mm512_loadu_si512(init + a * kLanes);
        for (int r = 0; r < R; ++r) sums[r][a] = first;
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

// How many rows are too few for threads to fetch panels one by one.
inline int PanelsAtOnce(int64_t num_rows) { return num_rows < 8 ? 8 : 1; }

// -- products ---------------------------------------------------------------------------------------------------------

struct Block {
    static constexpr int kGates = 4, kSums = 4, kStateSum = 3;
};

enum Finish { kPlain = 0, kTanh = 1, kLogits = 2 };

struct ProductOut {
    float* floats;         // [N, outputs]; or null
    uint16_t* halves;      // the same in bf16; or null
    const int64_t* places;  // row n of either is places[n]; or null
    uint8_t* bytes;        // [N, outputs], of kTanh
    float* peaks;          // [N, panels], of kLogits: the largest of each panel
    float* masses;         // [N, panels], of kLogits: Σ exp(logit - peak)
    bool is_large;         // of kLogits: more than the caches should be filled with
};

template <int F, int R>
inline void ProductTile(
    const Affine& affine, int64_t panel, const Inputs& inputs, const Rows& rows, const Added& added,
    const ProductOut& out, int64_t i) {
    __m512i sums[R][4];
    Begin(affine.init + panel * kBlock, sums);
    Multiply<R, Block>(affine, panel, inputs, rows, kAll, i, sums);
    const int64_t first = panel * kBlock;
    const int num_registers = static_cast<int>((affine.num_outputs - first) / kLanes);
    for (int r = 0; r < R; ++r) {
        __m512 y[4];
        for (int g = 0; g < 4; ++g) y[g] = ToFloat(affine, first + g * kLanes, sums[r][g]);
        const int64_t n = rows.row(i + r);
        const int64_t at = (out.places ? out.places[n] : n) * affine.num_outputs + first;
        if (F == kLogits) {
            if (out.is_large) {
                for (int g = 0; g < 4; ++g) _mm512_stream_ps(out.floats + at + g * kLanes, y[g]);
            } else {
                for (int g = 0; g < 4; ++g) _mm512_storeu_ps(out.floats + at + g * kLanes, y[g]);
            }
            const float peak = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(y[0], y[1]), _mm512_max_ps(y[2], y[3])));
            __m512 mass = _mm512_setzero_ps();
            for (int g = 0; g < 4; ++g) mass = _mm512_add_ps(mass, Exp(_mm512_sub_ps(y[g], _mm512_set1_ps(peak))));
            out.peaks[n * affine.num_panels + panel] = peak;
            out.masses[n * affine.num_panels + panel] = _mm512_reduce_add_ps(mass);
            continue;
        }
        for (int g = 0; g < 4 && g < num_registers; ++g) {
            if (added.table) y[g] = _mm512_add_ps(y[g], _mm512_loadu_ps(added.row(n) + first + g * kLanes));
            if (F == kTanh) {
                StoreBytes(out.bytes + at + g * kLanes, Quantize(Tanh(y[g]), _mm512_set1_ps(127.0f)));
            } else if (out.halves) {
                StoreHalves(out.halves + at + g * kLanes, y[g]);
            } else {
                _mm512_storeu_ps(out.floats + at + g * kLanes, y[g]);
            }
        }
    }
}

template <int F>
void ProductOf(
    const Affine& affine, const Inputs& inputs, const Rows& rows, const Added& added, const ProductOut& out) {
    const int at_once = PanelsAtOnce(rows.num);
#pragma omp for schedule(dynamic, at_once)
    for (int64_t panel = 0; panel < affine.num_panels; ++panel) {
        ForTiles(rows.num, [&]<int R>(int64_t i) { ProductTile<F, R>(affine, panel, inputs, rows, added, out, i); });
    }
}

// The logarithm of a row's sum of exponentials, from the peaks and masses of its panels.
inline float LogNorm(const float* peaks, const float* masses, int64_t num_panels) {
    __m512 largest = _mm512_set1_ps(-__builtin_inff());
    for (int64_t i = 0; i < num_panels; i += kLanes) {
        const __mmask16 mask = Lanes(num_panels - i);
        largest = _mm512_mask_max_ps(largest, mask, largest, _mm512_maskz_loadu_ps(mask, peaks + i));
    }
    const float peak = _mm512_reduce_max_ps(largest);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < num_panels; i += kLanes) {
        const __mmask16 mask = Lanes(num_panels - i);
        const __m512 share = Exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, peaks + i), _mm512_set1_ps(peak)));
        sum = _mm512_mask_add_ps(sum, mask, sum, _mm512_mul_ps(share, _mm512_maskz_loadu_ps(mask, masses + i)));
    }
    return peak + __builtin_logf(_mm512_reduce_add_ps(sum));
}

// -- recurrent cells --------------------------------------------------------------------------------------------------

enum Kind { kRnn = 0, kGru = 1, kLstm = 2 };

// Gates of a cell, the sums that its products go to, and which of them takes the state's share of the last gate: a GRU
// needs its candidate's two shares apart.
template <int K>
struct Shape {
    static constexpr int kGates = K == kLstm ? 4 : K == kGru ? 3 : 1;
    static constexpr int kSums = K == kLstm ? 4 : K == kGru ? 4 : 1;
    static constexpr int kStateSum = kSums - 1;
};

struct CellOut {
    const float* before;     // [·, H], of the rows' parents: c of an LSTM, h of a GRU
    float* after;            // [N, H], may be `before`
    uint8_t* bytes;          // [N, H]: h
    float* floats;           // h, row n at floats + places[n] · float_stride; or null
    const int64_t* places;
    int64_t float_stride;
    uint16_t* halves;        // h in bf16, row n at halves + half_places[n] · half_stride; or null
    const int64_t* half_places;
    int64_t half_stride;
    uint8_t* copies;         // h in bytes once more, row n at copies + copy_places[n] · copy_stride; or null
    const int64_t* copy_places;
    int64_t copy_stride;
};

// R rows from the i-th. `shared` holds what their parents' inputs come to, [distinct parents, sums · 16]; or null.
template <int K, int R>
inline void CellTile(
    const Affine& affine, int64_t hidden_dim, int64_t panel, const Inputs& inputs, const Rows& rows, const Added& added,
    const int32_t* shared, const CellOut& out, int64_t i) {
    using S = Shape<K>;
    constexpr int G = S::kGates, A = S::kSums;
    const int64_t unit = panel * kLanes;
    if (added.table) {  // rows of a large table come from far away
        for (int r = 0; r < R; ++r) {
            for (int g = 0; g < G; ++g) _mm_prefetch(added.row(rows.row(i + r)) + unit + g * hidden_dim, _MM_HINT_T0);
        }
    }
    __m512i sums[R][A];
    if (shared) {
        for (int r = 0; r < R; ++r) {
            const int32_t* begun = shared + rows.shares[i + r] * A * kLanes;
            for (int a = 0; a < A; ++a) sums[r][a] = _mm512_loadu_si512(begun + a * kLanes);
        }
        Multiply<R, S>(affine, panel, inputs, rows, kOwn, i, sums);
    } else {
        Begin(affine.init + panel * A * kLanes, sums);
        Multiply<R, S>(affine, panel, inputs, rows, kAll, i, sums);
    }
    for (int r = 0; r < R; ++r) {
        const int64_t n = rows.row(i + r), at = n * hidden_dim + unit;
        const int64_t before_at = rows.parent(i + r) * hidden_dim + unit;
        __m512 y[A];
        const float* share = added.table ? added.row(n) + unit : nullptr;
        for (int a = 0; a < A; ++a) {
            y[a] = ToFloat(affine, (panel * A + a) * kLanes, sums[r][a]);
            if (share && a < G) y[a] = _mm512_add_ps(y[a], _mm512_loadu_ps(share + a * hidden_dim));
        }
        __m512 h;
        if constexpr (K == kLstm) {
            const __m512 in = Logistic(y[0]), forget = Logistic(y[1]), candidate = Tanh(y[2]), o = Logistic(y[3]);
            const __m512 before = _mm512_loadu_ps(out.before + before_at);
            const __m512 c = _mm512_fmadd_ps(in, candidate, _mm512_mul_ps(forget, before));
            _mm512_storeu_ps(out.after + at, c);
            h = _mm512_mul_ps(o, Tanh(_mm512_mul_ps(c, _mm512_set1_ps(2 * kLog2E))));
        } else if constexpr (K == kGru) {
            const __m512 reset = Logistic(y[0]), update = Logistic(y[1]);
            const __m512 candidate = Tanh(_mm512_fmadd_ps(reset, y[3], y[2]));
            const __m512 before = _mm512_loadu_ps(out.before + before_at);
            h = _mm512_fmadd_ps(update, _mm512_sub_ps(before, candidate), candidate);
            _mm512_storeu_ps(out.after + at, h);
        } else {
            h = Tanh(y[0]);
        }
        const __m128i bytes = Quantize(h, _mm512_set1_ps(127.0f));
        StoreBytes(out.bytes + at, bytes);
        if (out.floats) {
            _mm512_storeu_ps(out.floats + (out.places ? out.places[n] : n) * out.float_stride + unit, h);
        }
        if (out.halves) StoreHalves(out.halves + out.half_places[n] * out.half_stride + unit, h);
        if (out.copies) StoreBytes(out.copies + out.copy_places[n] * out.copy_stride + unit, bytes);
    }
}

template <int K>
void CellPanel(
    const Affine& affine, int64_t hidden_dim, int64_t panel, const Inputs& inputs, const Rows& rows, const Added& added,
    const CellOut& out) {
    using S = Shape<K>;
    static thread_local std::vector<int32_t> kept;
    const int32_t* shared = nullptr;
    if (rows.distinct) {
        kept.resize(rows.num_distinct * S::kSums * kLanes);
        int32_t* to = kept.data();
        ForTiles(rows.num_distinct, [&]<int R>(int64_t i) {
            __m512i sums[R][S::kSums];
            Begin(affine.init + panel * S::kSums * kLanes, sums);
            Multiply<R, S>(affine, panel, inputs, rows, kParents, i, sums);
            for (int r = 0; r < R; ++r) {
                for (int a = 0; a < S::kSums; ++a) {
                    _mm512_storeu_si512(to + ((i + r) * S::kSums + a) * kLanes, sums[r][a]);
                }
            }
        });
        shared = to;
    }
    ForTiles(rows.num, [&]<int R>(int64_t i) {
        CellTile<K, R>(affine, hidden_dim, panel, inputs, rows, added, shared, out, i);
    });
}

template <int K>
void CellOf(
    const Affine& affine, int64_t hidden_dim, const Inputs& inputs, const Rows& rows, const Added& added,
    const CellOut& out) {
    const int at_once = PanelsAtOnce(rows.num);
#pragma omp for schedule(dynamic, at_once)
    for (int64_t panel = 0; panel < affine.num_panels; ++panel) {
        CellPanel<K>(affine, hidden_dim, panel, inputs, rows, added, out);
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
    uint16_t* halves;        // the same in bf16; or null
    uint8_t* bytes;          // [tokens, D · H]
    float* last_h;           // [B, D · H]
    float* last_after;       // [B, D · H]: c of an LSTM; or null
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
    std::vector<uint8_t> bytes(2 * size, 128);
    std::vector<float> states(2 * size);
    std::vector<int64_t> at(3 * num_rows);  // of each row its gates, its token, and the place of its output
    float* h = states.data() + size;
    const float* shares = gates + direction * Shape<K>::kGates * hidden_dim;
    Rows rows;
    rows.num = num_rows;
    for (int64_t t = 0;; ++t) {
        while (rows.num && batch.lens[chunk + num_chunks * (rows.num - 1)] <= t) --rows.num;
        if (!rows.num) break;
        for (int64_t n = 0; n < rows.num; ++n) {
            const int64_t sentence = chunk + num_chunks * n;
            const int64_t position = is_backwards ? batch.lens[sentence] - 1 - t : t;
            const int64_t token = batch.starts[sentence] + position;
            at[n] = gate_rows ? gate_rows[token] : token;
            at[num_rows + n] = token;
            at[2 * num_rows + n] = batch.places[sentence] + position;
        }
        const Inputs inputs{{bytes.data() + (t % 2) * size}, {hidden_dim}, {true}};
        const Added added{shares, at.data(), num_directions * Shape<K>::kGates * hidden_dim};
        CellOut cell{};
        cell.before = cell.after = states.data();
        cell.bytes = bytes.data() + (1 - t % 2) * size;
        cell.floats = out.floats ? out.floats + direction * hidden_dim : h;
        cell.places = out.floats ? at.data() + 2 * num_rows : nullptr;
        cell.float_stride = out.floats ? width : hidden_dim;
        cell.halves = out.halves ? out.halves + direction * hidden_dim : nullptr;
        cell.half_places = at.data() + 2 * num_rows;
        cell.half_stride = width;
        cell.copies = out.bytes + direction * hidden_dim;
        cell.copy_places = at.data() + num_rows;
        cell.copy_stride = width;
        for (int64_t panel = 0; panel < affine.num_panels; ++panel) {
            CellPanel<K>(affine, hidden_dim, panel, inputs, rows, added, cell);
        }
    }
    for (int64_t n = 0; n < num_rows; ++n) {
        const int64_t sentence = chunk + num_chunks * n;
        const int64_t to = batch.ranks[sentence] * width + direction * hidden_dim;
        const int64_t last = is_backwards ? 0 : batch.lens[sentence] - 1;
        const float* from = h + n * hidden_dim;
        if (out.floats) from = out.floats + (batch.places[sentence] + last) * width + direction * hidden_dim;
        std::memcpy(out.last_h + to, from, hidden_dim * sizeof(float));
        const float* after = states.data() + n * hidden_dim;
        if (out.last_after) std::memcpy(out.last_after + to, after, hidden_dim * sizeof(float));
    }
}

// -- attention --------------------------------------------------------------------------------------------------------

inline __m512 Load(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 Load(const uint16_t* from) { return LoadHalves(from); }

// Keys and values are looked up as bf16 by one row, and by several as floats that they were turned into once.
template <typename Key>
inline float Dot(const float* a, const Key* b, int64_t size) {
    __m512 sum = _mm512_setzero_ps(), other = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), Load(b + i), sum);
        other = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + kLanes), Load(b + i + kLanes), other);
    }
    if (i < size) sum = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), Load(b + i), sum);
    return _mm512_reduce_add_ps(_mm512_add_ps(sum, other));
}

// weights [S]: scores of the first `length` positions -> their softmax; zeros after them.
inline void Softmax(float* weights, int64_t length, int64_t width) {
    __m512 largest = _mm512_set1_ps(-__builtin_inff());
    for (int64_t s = 0; s < length; s += kLanes) {
        const __mmask16 mask = Lanes(length - s);
        largest = _mm512_mask_max_ps(largest, mask, largest, _mm512_maskz_loadu_ps(mask, weights + s));
    }
    const __m512 peak = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sum = _mm512_setzero_ps();
    for (int64_t s = 0; s < width; s += kLanes) {
        const __mmask16 inside = Lanes(width - s);
        const __mmask16 mask = Lanes(length - s);
        const __m512 e = _mm512_maskz_mov_ps(mask, Exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, weights + s), peak)));
        sum = _mm512_add_ps(sum, e);
        _mm512_mask_storeu_ps(weights + s, inside, e);
    }
    const __m512 scale = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
    for (int64_t s = 0; s < length; s += kLanes) {
        const __mmask16 mask = Lanes(length - s);
        _mm512_mask_storeu_ps(weights + s, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, weights + s), scale));
    }
}

// R sources, each with K neighbouring rows that look it up, the first of all rows `first`. Each lies where it lies.
struct Sources {
    const uint16_t* const* keys;    // [R], each [·, A] in bf16
    const uint16_t* const* values;  // [R], each [·, M] in bf16
    const int64_t* lens;         // [R]
    int64_t num_entries, first, rows_each;
    int64_t width;               // S, of the weights
    int64_t key_dim, memory_dim;
};

constexpr int64_t kPositions = 64;  // of a source that one thread scores at a time
constexpr int64_t kColumns = 4 * kLanes;

// A long source is shared by all threads: they score some positions each, and then sum up some columns each.
void Attend(
    const Sources& sources, const Rows& rows, const float* queries, uint8_t* contexts, float factor, float* weights) {
    const auto [keys, values, lens, num_entries, first, rows_each, width, key_dim, memory_dim] = sources;
    const auto for_rows = [&](int64_t entry, auto&& each) {
        for (int64_t k = 0; k < rows_each; ++k) {
            const int64_t row = entry * rows_each + k;
            if (!rows.is_there || rows.is_there[first + row]) each(row);
        }
    };
    static thread_local std::vector<float> floats;
    int64_t longest = 0;
    for (int64_t entry = 0; entry < num_entries; ++entry) longest = std::max(longest, lens[entry]);
    const int64_t num_pieces = (longest + kPositions - 1) / kPositions;
#pragma omp for schedule(dynamic, 4)
    for (int64_t task = 0; task < num_entries * num_pieces; ++task) {
        const int64_t entry = task / num_pieces, start = task % num_pieces * kPositions;
        const int64_t end = std::min(lens[entry], start + kPositions);
        for (int64_t s = start; s < end; ++s) {
            const uint16_t* key = keys[entry] + s * key_dim;
            const auto score = [&](const auto* as) {
                for_rows(entry, [&](int64_t row) {
                    weights[row * width + s] = Dot(queries + (first + row) * key_dim, as, key_dim);
                });
            };
            if (rows_each == 1) {
                score(key);
            } else {
                floats.resize(key_dim);
                for (int64_t i = 0; i < key_dim; i += kLanes) _mm512_storeu_ps(floats.data() + i, LoadHalves(key + i));
                score(static_cast<const float*>(floats.data()));
            }
        }
    }
#pragma omp for schedule(dynamic, 16)
    for (int64_t entry = 0; entry < num_entries; ++entry) {
        for_rows(entry, [&](int64_t row) { Softmax(weights + row * width, lens[entry], width); });
    }
    const int64_t num_columns = (memory_dim + kColumns - 1) / kColumns;
    const int at_once = static_cast<int>(longest > kPositions ? 1 : num_columns);
#pragma omp for schedule(dynamic, at_once)
    for (int64_t task = 0; task < num_entries * num_columns; ++task) {
        const int64_t entry = task / num_columns, column = task % num_columns * kColumns;
        const int num = static_cast<int>(memory_dim - column >= kColumns ? 4 : (memory_dim - column) / kLanes);
        const uint16_t* value = values[entry] + column;
        const auto sum_up = [&](const auto* as, int64_t stride) {
            for_rows(entry, [&](int64_t row) {
                __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
                for (int64_t s = 0; s < lens[entry]; ++s) {
                    const __m512 w = _mm512_set1_ps(weights[row * width + s]);
                    for (int j = 0; j < num; ++j) {
                        sums[j] = _mm512_fmadd_ps(w, Load(as + s * stride + j * kLanes), sums[j]);
                    }
                }
                for (int j = 0; j < num; ++j) {
                    uint8_t* to = contexts + (first + row) * memory_dim + column + j * kLanes;
                    StoreBytes(to, Quantize(sums[j], _mm512_set1_ps(factor)));
                }
            });
        };
        if (rows_each == 1) {
            sum_up(value, memory_dim);
        } else {
            floats.resize(lens[entry] * kColumns);
            for (int64_t s = 0; s < lens[entry]; ++s) {
                for (int j = 0; j < num; ++j) {
                    float* to = floats.data() + s * kColumns + j * kLanes;
                    _mm512_storeu_ps(to, LoadHalves(value + s * memory_dim + j * kLanes));
                }
            }
            sum_up(static_cast<const float*>(floats.data()), kColumns);
        }
    }
}

// -- the best of many scores ------------------------------------------------------------------------------------------

// Scores of N rows over V tokens, in blocks of 64; the first few tokens may not come.
struct Scores {
    const float* logits;     // [N, V]
    const float* peaks;      // [N, V / 64], the largest of each block
    const float* log_norms;  // [N] or null
    int64_t num_tokens, num_forbidden;

    int64_t num_blocks() const { return num_tokens / kBlock; }
    // What counts. First the norm, then the total: who has subtracted the norms before gets the same bits.
    static float Value(float logit, float norm, float total) { return logit - norm + total; }
    static __m512 Value(__m512 logits, __m512 norm, __m512 total) {
        return _mm512_add_ps(_mm512_sub_ps(logits, norm), total);
    }
    float norm(int64_t row) const { return log_norms ? log_norms[row] : 0.0f; }
    // 16 logits of a row, -∞ for those that may not come.
    __m512 Sixteen(int64_t row, int64_t token) const {
        const __m512 x = _mm512_loadu_ps(logits + row * num_tokens + token);
        if (token >= num_forbidden) return x;
        const __mmask16 mask = Lanes(num_forbidden - token);
        return _mm512_mask_mov_ps(x, mask, _mm512_set1_ps(-__builtin_inff()));
    }
    float FirstPeak(int64_t row) const {
        __m512 x = Sixteen(row, 0);
        for (int64_t i = kLanes; i < kBlock; i += kLanes) x = _mm512_max_ps(x, Sixteen(row, i));
        return _mm512_reduce_max_ps(x);
    }
};

// The k largest values that it was offered, with their numbers; of equal ones those offered first.
class Top {
public:
    explicit Top(int64_t k) : k_(k) {}

    float least() const { return size_ < k_ ? -__builtin_inff() : values_[k_ - 1]; }

    void Offer(float value, int64_t number) {
        if (!(value > least())) return;
        if (static_cast<int64_t>(values_.size()) < k_) values_.resize(k_), numbers_.resize(k_);
        int64_t at = size_ < k_ ? size_++ : k_ - 1;
        for (; at > 0 && values_[at - 1] < value; --at) values_[at] = values_[at - 1], numbers_[at] = numbers_[at - 1];
        values_[at] = value, numbers_[at] = number;
    }

    void Offer(__m512 values, int64_t first, __mmask16 inside = 0xffff) {
        __mmask16 mask = _mm512_mask_cmp_ps_mask(inside, values, _mm512_set1_ps(least()), _CMP_GT_OQ);
        if (!mask) return;
        alignas(64) float each[kLanes];
        _mm512_store_ps(each, values);
        for (; mask; mask &= mask - 1) Offer(each[__builtin_ctz(mask)], first + __builtin_ctz(mask));
    }

    void Clear() { size_ = 0; }
    int64_t size() const { return size_; }
    float value(int64_t i) const { return values_[i]; }
    int64_t number(int64_t i) const { return numbers_[i]; }
    // Numbers in rising order: values no longer belong to them.
    void SortNumbers() { std::sort(numbers_.begin(), numbers_.begin() + size_); }

private:
    int64_t k_, size_ = 0;
    std::vector<float> values_;
    std::vector<int64_t> numbers_;
};

// The k best continuations of rows `first` to `first + num_rows`, whose totals are given; -∞ stands for a dead row. They
// can only lie in the k blocks whose largest values are best: nobody looks at the others.
void BestOf(
    const Scores& scores, const float* totals, int64_t first, int64_t num_rows, Top& blocks, Top& best) {
    const int64_t num_blocks = scores.num_blocks();
    blocks.Clear();
    best.Clear();
    for (int64_t k = 0; k < num_rows; ++k) {
        if (totals[k] == -__builtin_inff()) continue;
        const int64_t row = first + k;
        const __m512 norm = _mm512_set1_ps(scores.norm(row)), total = _mm512_set1_ps(totals[k]);
        blocks.Offer(Scores::Value(scores.FirstPeak(row), scores.norm(row), totals[k]), k * num_blocks);
        for (int64_t i = 0; i < num_blocks; i += kLanes) {
            __mmask16 mask = Lanes(num_blocks - i);
            if (!i) mask &= 0xfffe;
            const __m512 peaks = _mm512_maskz_loadu_ps(mask, scores.peaks + row * num_blocks + i);
            blocks.Offer(Scores::Value(peaks, norm, total), k * num_blocks + i, mask);
        }
    }
    blocks.SortNumbers();
    for (int64_t b = 0; b < blocks.size(); ++b) {
        const int64_t k = blocks.number(b) / num_blocks, row = first + k;
        const int64_t token = blocks.number(b) % num_blocks * kBlock;
        const __m512 norm = _mm512_set1_ps(scores.norm(row)), total = _mm512_set1_ps(totals[k]);
        for (int64_t i = token; i < token + kBlock; i += kLanes) {
            best.Offer(Scores::Value(scores.Sixteen(row, i), norm, total), k * scores.num_tokens + i);
        }
    }
}

// -- work -------------------------------------------------------------------------------------------------------------

// Operations that wait to be done together; each is called by every thread of a team.
struct Work {
    Rows rows;
    std::vector<std::function<void()>> operations;
    std::vector<int32_t> own, parents, distinct, shares, found;
    std::vector<uint8_t> is_there;
};

// A parent that few have in common is not worth the way through memory.
constexpr double kWorthSharing = 0.9;

void SetRows(Work& work, const int64_t* parents, int64_t num_rows, int64_t num_states) {
    Rows& rows = work.rows;
    rows = Rows{};
    rows.num = num_rows;
    if (!parents) return;
    work.found.assign(num_states, -1);
    work.is_there.assign(num_rows, 0);
    for (int64_t n = 0; n < num_rows; ++n) {
        if (parents[n] < 0) continue;
        const int32_t parent = static_cast<int32_t>(parents[n]);
        if (work.found[parent] < 0) {
            work.found[parent] = static_cast<int32_t>(work.distinct.size());
            work.distinct.push_back(parent);
        }
        work.is_there[n] = 1;
        work.own.push_back(static_cast<int32_t>(n));
        work.parents.push_back(parent);
        work.shares.push_back(work.found[parent]);
    }
    rows.num = static_cast<int64_t>(work.own.size());
    rows.own = work.own.data();
    rows.parents = work.parents.data();
    rows.is_there = work.is_there.data();
    rows.num_distinct = static_cast<int64_t>(work.distinct.size());
    if (rows.num_distinct <= kWorthSharing * rows.num) {
        rows.distinct = work.distinct.data();
        rows.shares = work.shares.data();
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

// Work over rows 0 to num_rows, of which row n goes on from row parents[n] of `num_states` states; there is no row n
// where that is -1. Without parents each goes on from itself.
Work* recurra_new_work(const int64_t* parents, int64_t num_rows, int64_t num_states) {
    Work* work = new Work;
    SetRows(*work, parents, num_rows, num_states);
    return work;
}

void recurra_drop_work(Work* work) { delete work; }

// Does what was written down since the last time.
void recurra_run(Work* work, int threads) {
#pragma omp parallel num_threads(threads)
    for (const auto& operation : work->operations) operation();
    work->operations.clear();
}

// x [N, size] floats, rows `stride` floats apart -> bytes [N, size]. At once.
void recurra_quantize(const float* x, int64_t stride, uint8_t* bytes, int64_t num_rows, int64_t size, float factor) {
    const __m512 factors = _mm512_set1_ps(factor);
    for (int64_t n = 0; n < num_rows; ++n) {
        for (int64_t i = 0; i < size; i += kLanes) {
            StoreBytes(bytes + n * size + i, Quantize(_mm512_loadu_ps(x + n * stride + i), factors));
        }
    }
}

void recurra_product(
    Work* work, const Affine* affine, int finish, const Inputs* inputs, const float* table, const int64_t* ids,
    int64_t stride, float* floats, uint16_t* halves, const int64_t* places, uint8_t* bytes) {
    const Added added{table, ids, stride};
    const ProductOut out{floats, halves, places, bytes, nullptr, nullptr, false};
    work->operations.push_back([=, &rows = work->rows, inputs = *inputs] {
        if (finish == kTanh) {
            ProductOf<kTanh>(*affine, inputs, rows, added, out);
        } else {
            ProductOf<kPlain>(*affine, inputs, rows, added, out);
        }
    });
}

// Logits [N, V], the largest of each 64 [N, V / 64], and the logarithm of each row's sum of exponentials [N].
void recurra_logits(
    Work* work, const Affine* affine, const Inputs* inputs, float* logits, float* peaks, float* masses,
    float* log_norms) {
    const bool is_large = work->rows.num * affine->num_outputs > kLargeFloats;
    const ProductOut out{logits, nullptr, nullptr, nullptr, peaks, masses, is_large};
    work->operations.push_back([=, &rows = work->rows, inputs = *inputs] {
        ProductOf<kLogits>(*affine, inputs, rows, Added{}, out);
        const int64_t num_panels = affine->num_panels;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows.num; ++i) {
            const int64_t n = rows.row(i);
            log_norms[n] = LogNorm(peaks + n * num_panels, masses + n * num_panels, num_panels);
        }
    });
}

// One step of a cell. `before` [·, H] of the parents and `after` [N, H]: c of an LSTM, h of a GRU.
void recurra_cell(
    Work* work, const Affine* affine, int kind, int64_t hidden_dim, const Inputs* inputs, const float* table,
    const int64_t* ids, int64_t stride, const float* before, float* after, uint8_t* bytes, float* floats) {
    const Added added{table, ids, stride};
    CellOut out{};
    out.before = before;
    out.after = after;
    out.bytes = bytes;
    out.floats = floats;
    out.float_stride = hidden_dim;
    const auto cell = kind == kLstm ? CellOf<kLstm> : kind == kGru ? CellOf<kGru> : CellOf<kRnn>;
    work->operations.push_back([=, &rows = work->rows, inputs = *inputs] {
        cell(*affine, hidden_dim, inputs, rows, added, out);
    });
}

// An encoder layer of one or two directions over a batch. gates [·, D · G · H]: the inputs' share.
void recurra_read(
    Work* work, const Affine* const* directions, int kind, int64_t hidden_dim, int64_t num_directions, int is_reversed,
    const float* gates, const int64_t* gate_rows, const int64_t* lens, const int64_t* starts, const int64_t* places,
    const int64_t* ranks, int64_t num_sentences, float* floats, uint16_t* halves, uint8_t* bytes, float* last_h,
    float* last_after) {
    const Batch batch{num_sentences, lens, starts, places, ranks};
    const ReadOut out{floats, halves, bytes, last_h, last_after};
    const auto read = kind == kLstm ? Read<kLstm> : kind == kGru ? Read<kGru> : Read<kRnn>;
    work->operations.push_back([=] {
        const int64_t num_chunks = (omp_get_num_threads() + num_directions - 1) / num_directions;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_directions * num_chunks; ++task) {
            const int64_t direction = task % num_directions, chunk = task / num_directions;
            const bool is_backwards = (direction == 1) != (is_reversed != 0);
            read(
                *directions[direction], hidden_dim, gates, gate_rows, num_directions, direction, is_backwards, batch,
                chunk, num_chunks, out);
        }
    });
}

// Looks up queries [N, A] -> contexts as bytes [N, M], and weights [R · K, S] of these sources' rows.
void recurra_attend(
    Work* work, const float* queries, const uint16_t* const* keys, const uint16_t* const* values, const int64_t* lens,
    int64_t num_entries, int64_t first, int64_t rows_each, int64_t width, int64_t key_dim, int64_t memory_dim,
    uint8_t* contexts, float factor, float* weights) {
    const Sources sources{keys, values, lens, num_entries, first, rows_each, width, key_dim, memory_dim};
    work->operations.push_back([=, &rows = work->rows] { Attend(sources, rows, queries, contexts, factor, weights); });
}

// The k best continuations of R segments of K rows each, totals [R, K] -> values [R, k] best first, their rows [R, k]
// within the segment, and their tokens [R, k]. -∞, row 0 and token 0 where there are no more. Without totals each row is
// a segment, and its total zero. At once.
void recurra_best(
    const float* logits, const float* peaks, const float* log_norms, int64_t num_tokens, int64_t num_forbidden,
    const float* totals, int64_t num_segments, int64_t rows_each, int64_t k, float* values, int64_t* rows,
    int64_t* tokens, int threads) {
    const Scores scores{logits, peaks, log_norms, num_tokens, num_forbidden};
#pragma omp parallel num_threads(num_segments * rows_each < 64 ? 1 : threads)
    {
        Top blocks(k), best(k);
#pragma omp for schedule(static)
        for (int64_t segment = 0; segment < num_segments; ++segment) {
            constexpr float kZero = 0;
            const float* so_far = totals ? totals + segment * rows_each : &kZero;
            BestOf(scores, so_far, segment * rows_each, rows_each, blocks, best);
            for (int64_t i = 0; i < k; ++i) {
                const bool is_found = i < best.size();
                const int64_t number = is_found ? best.number(i) : 0, to = segment * k + i;
                values[to] = is_found ? best.value(i) : -__builtin_inff();
                rows[to] = number / num_tokens;
                tokens[to] = number % num_tokens;
            }
        }
    }
}

}  // extern "C"
