// Attention over one tile of keys with a running softmax. Query rows that see the same keys are taken together (up to 4), which changes no
// row's arithmetic: a score is one vector accumulator along the head and a fixed reduction, an output element one accumulator along the keys.

/// scores[r * kKeyTile + j] = q_r . key_j for R rows and N keys.
template <class Type, int R, int N>
inline void dot_block(float* scores, const float* const (&q)[R], const void* const* keys, int dim) {
  const typename Type::T* k[N];
  for (int j = 0; j < N; ++j) k[j] = static_cast<const typename Type::T*>(keys[j]);
  F acc[R][N];
  each<R>([&](auto r) CONCLAVE_INLINE { each<N>([&](auto j) CONCLAVE_INLINE { acc[r][j] = zero(); }); });
  int d = 0;
  for (; d + W <= dim; d += W) {
    F a[R];
    each<R>([&](auto r) CONCLAVE_INLINE { a[r] = load(q[r] + d); });
    each<N>([&](auto j) CONCLAVE_INLINE {
      const F b = Type::get(k[j] + d);
      each<R>([&](auto r) CONCLAVE_INLINE { acc[r][j] = multiply_add(a[r], b, acc[r][j]); });
    });
  }
  if (d < dim)
    for (int j = 0; j < N; ++j) {
      const F b = get_some<Type>(k[j] + d, dim - d);
      each<R>([&](auto r) CONCLAVE_INLINE { acc[r][j] = multiply_add(get_some<Float32>(q[r] + d, dim - d), b, acc[r][j]); });
    }
  each<R>([&](auto r) CONCLAVE_INLINE { each<N>([&](auto j) CONCLAVE_INLINE { scores[r * kKeyTile + j] = sum_lanes(acc[r][j]); }); });
}

/// Scores of one row become exp(score - new maximum), zero from `visible` on; returns the factor for what was summed before.
inline float soften(float* scores, int visible, float scale, float* top, float* sum) {
  for (int j = 0; j < visible; ++j) scores[j] *= scale;
  for (int j = visible; j < kKeyTile; ++j) scores[j] = -__builtin_inff();
  F highest = set1(*top);
  for (int j = 0; j < kKeyTile; j += W) highest = max(highest, load(scores + j));
  const float now = max_lanes(highest);
  F total = zero();
  for (int j = 0; j < kKeyTile; j += W) {
    const F p = exponential(sub(load(scores + j), set1(now)));
    store(scores + j, p);
    total = add(total, p);
  }
  for (int j = visible; j < kKeyTile; ++j) scores[j] = 0.0f;
  float factor[W];
  store(factor, exponential(set1(*top - now)));
  *sum = *sum * factor[0] + sum_lanes(total);
  *top = now;
  return factor[0];
}

/// out_r = factor_r * out_r + sum_j p[r][j] value_j over V vectors from column d.
template <class Type, int R, int V>
inline void mix_block(float* const (&out)[R], const float (&factor)[R], const float* p, const void* const* values, int n, int d) {
  F acc[R][V];
  each<R>([&](auto r) CONCLAVE_INLINE { each<V>([&](auto v) CONCLAVE_INLINE { acc[r][v] = mul(load(out[r] + d + v * W), set1(factor[r])); }); });
  for (int j = 0; j < n; ++j) {
    const auto* value = static_cast<const typename Type::T*>(values[j]) + d;
    F b[V];
    each<V>([&](auto v) CONCLAVE_INLINE { b[v] = Type::get(value + v * W); });
    each<R>([&](auto r) CONCLAVE_INLINE {
      const F weight = set1(p[r * kKeyTile + j]);
      each<V>([&](auto v) CONCLAVE_INLINE { acc[r][v] = multiply_add(weight, b[v], acc[r][v]); });
    });
  }
  each<R>([&](auto r) CONCLAVE_INLINE { each<V>([&](auto v) CONCLAVE_INLINE { store(out[r] + d + v * W, acc[r][v]); }); });
}

template <class Type, int R>
inline void mix_tail(float* const (&out)[R], const float (&factor)[R], const float* p, const void* const* values, int n, int d, int rest) {
  for (int r = 0; r < R; ++r) {
    F acc = mul(load(out[r] + d), set1(factor[r]));
    for (int j = 0; j < n; ++j)
      acc = multiply_add(set1(p[r * kKeyTile + j]), get_some<Type>(static_cast<const typename Type::T*>(values[j]) + d, rest), acc);
    store(out[r] + d, acc);
  }
}

template <class Type, int R>
inline void attend_rows(const AttendArgs& a, int first, int visible) {
  constexpr int kKeys = W == 16 || R <= 2 ? 4 : 2, kValues = W == 16 || R <= 2 ? 4 : 2;
  alignas(64) float scores[R * kKeyTile];
  const float* q[R];
  float* out[R];
  float factor[R];
  for (int r = 0; r < R; ++r) {
    q[r] = a.q + (first + r) * a.q_stride;
    out[r] = a.out + (first + r) * a.out_stride;
  }
  int j = 0;
  for (; j + kKeys <= visible; j += kKeys) dot_block<Type, R, kKeys>(scores + j, q, a.keys + j, a.key_dim);
  for (; j < visible; ++j) dot_block<Type, R, 1>(scores + j, q, a.keys + j, a.key_dim);
  for (int r = 0; r < R; ++r)
    factor[r] = soften(scores + r * kKeyTile, visible, a.scale, a.top + first + r, a.sum + first + r);
  int d = 0;
  for (; d + kValues * W <= a.value_dim; d += kValues * W) mix_block<Type, R, kValues>(out, factor, scores, a.values, visible, d);
  for (; d + W <= a.value_dim; d += W) mix_block<Type, R, 1>(out, factor, scores, a.values, visible, d);
  if (d < a.value_dim) mix_tail<Type, R>(out, factor, scores, a.values, visible, d, a.value_dim - d);
}

template <class Type>
void attend(const AttendArgs& a) {
  for (int first = 0; first < a.rows;) {
    const int visible = a.visible[first];
    int count = 1;
    while (count < 4 && first + count < a.rows && a.visible[first + count] == visible) ++count;
    if (visible > 0) {
      if (count == 4) attend_rows<Type, 4>(a, first, visible);
      else if (count == 3) attend_rows<Type, 3>(a, first, visible);
      else if (count == 2) attend_rows<Type, 2>(a, first, visible);
      else attend_rows<Type, 1>(a, first, visible);
    }
    first += count;
  }
}

void merge(const AttendState& total, const AttendState& part, int width) {
  const float now = *total.top > *part.top ? *total.top : *part.top;
  const F old_factor = exponential(set1(*total.top - now)), new_factor = exponential(set1(*part.top - now));
  for (int d = 0; d < width; d += W)
    store(total.out + d, multiply_add(load(part.out + d), new_factor, mul(load(total.out + d), old_factor)));
  float a[W], b[W];
  store(a, old_factor);
  store(b, new_factor);
  *total.sum = *total.sum * a[0] + *part.sum * b[0];
  *total.top = now;
}
