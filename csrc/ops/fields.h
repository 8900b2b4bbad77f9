// The fields of an operator's struct as a tuple. C++17 has no reflection: the number of fields is the number of
// arguments in the operator's schema, and structured bindings give the fields. A struct that does not fit its schema
// does not compile.
#pragma once

#include <string_view>
#include <tuple>

namespace fusedtricks {

// How many arguments the schema "name(type argument, ...) -> ..." has.
constexpr int count_arguments(std::string_view schema) {
  int depth = 0, commas = 0;
  for (const char c : schema) {
    depth += (c == '(' || c == '[') - (c == ')' || c == ']');
    if (depth == 0 && c == ')') return commas + 1;
    commas += depth == 1 && c == ',';
  }
  return 0;
}

// A tuple of the fields' own types: references stay references, values are copied.
template <class Op>
auto fields_of(Op& op) {
  constexpr int count = count_arguments(Op::schema);
  static_assert(2 <= count && count <= 17, "a case below for every number of arguments");
  if constexpr (count == 2) {
    auto& [a, b] = op;
    return std::tuple<decltype(a), decltype(b)>(a, b);
  }
  if constexpr (count == 3) {
    auto& [a, b, c] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c)>(a, b, c);
  }
  if constexpr (count == 4) {
    auto& [a, b, c, d] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d)>(a, b, c, d);
  }
  if constexpr (count == 5) {
    auto& [a, b, c, d, e] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e)>(a, b, c, d, e);
  }
  if constexpr (count == 6) {
    auto& [a, b, c, d, e, f] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e), decltype(f)>(a, b, c, d, e, f);
  }
  if constexpr (count == 7) {
    auto& [a, b, c, d, e, f, g] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e), decltype(f), decltype(g)>(
        a, b, c, d, e, f, g);
  }
  if constexpr (count == 8) {
    auto& [a, b, c, d, e, f, g, h] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e), decltype(f), decltype(g),
                      decltype(h)>(a, b, c, d, e, f, g, h);
  }
  if constexpr (count == 9) {
    auto& [a, b, c, d, e, f, g, h, i] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e), decltype(f), decltype(g),
                      decltype(h), decltype(i)>(a, b, c, d, e, f, g, h, i);
  }
  if constexpr (count == 10) {
    auto& [a, b, c, d, e, f, g, h, i, j] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e), decltype(f), decltype(g),
                      decltype(h), decltype(i), decltype(j)>(a, b, c, d, e, f, g, h, i, j);
  }
  if constexpr (count == 11) {
    auto& [a, b, c, d, e, f, g, h, i, j, k] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e), decltype(f), decltype(g),
                      decltype(h), decltype(i), decltype(j), decltype(k)>(a, b, c, d, e, f, g, h, i, j, k);
  }
  if constexpr (count == 12) {
    auto& [a, b, c, d, e, f, g, h, i, j, k, l] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e), decltype(f), decltype(g),
                      decltype(h), decltype(i), decltype(j), decltype(k), decltype(l)>(a, b, c, d, e, f, g, h, i, j, k,
                                                                                       l);
  }
  if constexpr (count == 13) {
    auto& [a, b, c, d, e, f, g, h, i, j, k, l, m] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e), decltype(f), decltype(g),
                      decltype(h), decltype(i), decltype(j), decltype(k), decltype(l), decltype(m)>(a, b, c, d, e, f, g,
                                                                                                    h, i, j, k, l, m);
  }
  if constexpr (count == 14) {
    auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, n] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e), decltype(f), decltype(g),
                      decltype(h), decltype(i), decltype(j), decltype(k), decltype(l), decltype(m), decltype(n)>(
        a, b, c, d, e, f, g, h, i, j, k, l, m, n);
  }
  if constexpr (count == 15) {
    auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e), decltype(f), decltype(g),
                      decltype(h), decltype(i), decltype(j), decltype(k), decltype(l), decltype(m), decltype(n),
                      decltype(o)>(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o);
  }
  if constexpr (count == 16) {
    auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e), decltype(f), decltype(g),
                      decltype(h), decltype(i), decltype(j), decltype(k), decltype(l), decltype(m), decltype(n),
                      decltype(o), decltype(p)>(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p);
  }
  if constexpr (count == 17) {
    auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q] = op;
    return std::tuple<decltype(a), decltype(b), decltype(c), decltype(d), decltype(e), decltype(f), decltype(g),
                      decltype(h), decltype(i), decltype(j), decltype(k), decltype(l), decltype(m), decltype(n),
                      decltype(o), decltype(p), decltype(q)>(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q);
  }
}

template <class Op>
using FieldsOf = decltype(fields_of(std::declval<Op&>()));

}  // namespace fusedtricks
