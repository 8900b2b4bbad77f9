// The activations: one struct each, for host scalars, SIMD lanes and the device; and the list of them.
//
// A struct holds the parameters in the compute type V (float or double) and has
//   info                  its name, its parameters and their defaults
//   forward(x)            y = act(x)
//   grad(x, y)            dy/dx. Where only the result was kept it is called as grad(y, y): an activation that keeps
//                         its result may look at the sign of x, which y shares, and at nothing else of it.
//   grad_grad(x, y)       derivative of grad with respect to what was kept, x or y
// At NaN they give what the vector loops of stock PyTorch give (its loops over single elements differ from those).
// and, from its base and where it says otherwise, the facts in KeepsInput.
//
// To add one: a struct and its place in the list at the end of this file, and its formula in fusedtricks/eager.py.
#pragma once

#include <string_view>

#include "core/elementary.h"

namespace fusedtricks {

struct ActivationParameter {
  const char* name = nullptr;
  double value = 0;
};

constexpr int kMaxActivationParameters = 2;

struct ActivationInfo {
  const char* name;
  ActivationParameter parameters[kMaxActivationParameters] = {};

  constexpr int parameter_count() const {
    int n = 0;
    while (n < kMaxActivationParameters && parameters[n].name) ++n;
    return n;
  }
};

// Facts about activations whose backward needs x.
struct KeepsInput {
  // Whether keeps_result() can be true, whatever the parameters. Loops that read the result are compiled only then.
  static constexpr bool may_keep_result = false;
  // Whether the backward needs only y; otherwise it needs x.
  FT_INLINE bool keeps_result() const { return false; }
  // Whether y never decreases where x increases, so that the largest x has the largest y. Then keeps_result() is true.
  FT_INLINE bool monotone() const { return false; }
  // Whether the derivative can be read off scale * y divided by scale, in spite of the two roundings.
  FT_INLINE bool survives_scaling() const { return false; }
  // Whether the derivative is known from y > 0 alone, and 0 where y is not. Then it can be read off a result behind
  // dropout, which was scaled or set to 0, and so can the mask.
  FT_INLINE bool shows_mask() const { return false; }
};

// Facts about activations whose backward needs only y.
struct KeepsResult : KeepsInput {
  static constexpr bool may_keep_result = true;
  FT_INLINE bool keeps_result() const { return true; }
  FT_INLINE bool monotone() const { return true; }
  FT_INLINE bool survives_scaling() const { return true; }
};

template <class V>
struct Identity : KeepsResult {
  static constexpr ActivationInfo info{"identity"};
  FT_INLINE explicit Identity(const double*) {}
  FT_INLINE V forward(V x) const { return x; }
  FT_INLINE V grad(V, V) const { return V(1); }
  FT_INLINE V grad_grad(V, V) const { return V(0); }
};

// max(x, 0). Nair & Hinton, "Rectified linear units improve restricted Boltzmann machines", 2010.
template <class V>
struct ReLU : KeepsResult {
  static constexpr ActivationInfo info{"relu"};
  FT_INLINE explicit ReLU(const double*) {}
  FT_INLINE V forward(V x) const { return x < V(0) ? V(0) : x; }
  FT_INLINE V grad(V x, V) const { return x <= V(0) ? V(0) : V(1); }
  FT_INLINE V grad_grad(V, V) const { return V(0); }
  FT_INLINE bool shows_mask() const { return true; }
};

// min(max(x, 0), 6). Howard et al., "MobileNets", 2017.
template <class V>
struct ReLU6 : KeepsResult {
  static constexpr ActivationInfo info{"relu6"};
  FT_INLINE explicit ReLU6(const double*) {}
  FT_INLINE V forward(V x) const {
    const V positive = x < V(0) ? V(0) : x;
    return positive > V(6) ? V(6) : positive;
  }
  FT_INLINE V grad(V x, V) const {
    const V below_six = x < V(6) ? V(1) : V(0);
    return x > V(0) ? below_six : V(0);
  }
  FT_INLINE V grad_grad(V, V) const { return V(0); }
  // A result of 6 may come back a little smaller.
  FT_INLINE bool survives_scaling() const { return false; }
};

// x, or a x for x <= 0. Maas et al., "Rectifier nonlinearities improve neural network acoustic models", 2013.
template <class V>
struct LeakyReLU : KeepsResult {
  static constexpr ActivationInfo info{"leaky_relu", {{"negative_slope", 0.01}}};
  V negative_slope;
  FT_INLINE explicit LeakyReLU(const double* p) : negative_slope(V(p[0])) {}
  FT_INLINE V forward(V x) const { return x > V(0) ? x : x * negative_slope; }
  FT_INLINE V grad(V x, V) const { return x > V(0) ? V(1) : negative_slope; }
  FT_INLINE V grad_grad(V, V) const { return V(0); }
  FT_INLINE bool keeps_result() const { return negative_slope >= V(0); }
  FT_INLINE bool monotone() const { return negative_slope >= V(0); }
};

// x, or alpha (e^x - 1) for x <= 0. Clevert et al., "Fast and accurate deep network learning by ELUs", 2016.
template <class V>
struct ELU : KeepsResult {
  static constexpr ActivationInfo info{"elu", {{"alpha", 1.0}}};
  V alpha;
  FT_INLINE explicit ELU(const double* p) : alpha(V(p[0])) {}
  FT_INLINE V forward(V x) const {
    const V negative = alpha * expm1(x);
    return x <= V(0) ? negative : x;
  }
  FT_INLINE V grad(V x, V y) const { return x > V(0) ? V(1) : y + alpha; }
  FT_INLINE V grad_grad(V x, V y) const {
    const V slope = alpha >= V(0) ? V(1) : y + alpha;
    return x > V(0) ? V(0) : slope;
  }
  FT_INLINE bool keeps_result() const { return alpha >= V(0); }
  FT_INLINE bool monotone() const { return alpha >= V(0); }
};

// lambda x, or lambda alpha (e^x - 1) for x <= 0. Klambauer et al., "Self-normalizing neural networks", 2017.
template <class V>
struct SELU : KeepsResult {
  static constexpr ActivationInfo info{"selu"};
  static constexpr V scale = V(1.0507009873554804934193349852946);
  static constexpr V scaled_alpha = V(1.0507009873554804934193349852946 * 1.6732632423543772848170429916717);
  FT_INLINE explicit SELU(const double*) {}
  FT_INLINE V forward(V x) const {
    const V negative = scaled_alpha * expm1(x);
    return x <= V(0) ? negative : scale * x;
  }
  FT_INLINE V grad(V x, V y) const { return x > V(0) ? scale : y + scaled_alpha; }
  FT_INLINE V grad_grad(V x, V) const { return x > V(0) ? V(0) : V(1); }
};

// x P(X <= x), X standard normal. Hendrycks & Gimpel, "Gaussian error linear units", 2016.
template <class V>
struct GELU : KeepsInput {
  static constexpr ActivationInfo info{"gelu"};
  FT_INLINE explicit GELU(const double*) {}
  FT_INLINE V forward(V x) const {
    const auto tail = normal_tail(x);
    return (x < V(0) ? V(0) : x) - tail.magnitude * tail.cdf;
  }
  // The derivatives at x and -x add up to 1.
  FT_INLINE V grad(V x, V) const {
    const auto tail = normal_tail(x);
    const V at_negative = tail.cdf - tail.magnitude * tail.pdf;
    return x > V(0) ? V(1) - at_negative : at_negative;
  }
  FT_INLINE V grad_grad(V x, V) const {
    const auto tail = normal_tail(x);
    return tail.pdf * (V(2) - tail.magnitude * tail.magnitude);
  }
};

// x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, which is x sigmoid(u) with u twice tanh's argument.
template <class V>
struct GELUTanh : KeepsInput {
  static constexpr ActivationInfo info{"gelu_tanh"};
  static constexpr V linear = V(1.5957691216057307117597842397375);
  static constexpr V cubic = linear * V(0.044715);
  FT_INLINE explicit GELUTanh(const double*) {}
  FT_INLINE V argument(V x) const { return x * (linear + cubic * x * x); }
  FT_INLINE V argument_grad(V x) const { return linear + V(3) * cubic * x * x; }
  FT_INLINE V forward(V x) const { return x * sigmoid(argument(x)); }
  FT_INLINE V grad(V x, V) const {
    const V s = sigmoid(argument(x));
    return s + x * s * (V(1) - s) * argument_grad(x);
  }
  FT_INLINE V grad_grad(V x, V) const {
    const V s = sigmoid(argument(x)), u1 = argument_grad(x), u2 = V(6) * cubic * x;
    const V s1 = s * (V(1) - s), s2 = s1 * (V(1) - V(2) * s);
    return V(2) * s1 * u1 + x * (s2 * u1 * u1 + s1 * u2);
  }
};

// 1 / (1 + e^-x).
template <class V>
struct Sigmoid : KeepsResult {
  static constexpr ActivationInfo info{"sigmoid"};
  FT_INLINE explicit Sigmoid(const double*) {}
  FT_INLINE V forward(V x) const { return sigmoid(x); }
  FT_INLINE V grad(V, V y) const { return y * (V(1) - y); }
  FT_INLINE V grad_grad(V, V y) const { return V(1) - V(2) * y; }
};

template <class V>
struct Tanh : KeepsResult {
  static constexpr ActivationInfo info{"tanh"};
  FT_INLINE explicit Tanh(const double*) {}
  FT_INLINE V forward(V x) const { return tanh(x); }
  FT_INLINE V grad(V, V y) const { return V(1) - y * y; }
  FT_INLINE V grad_grad(V, V y) const { return V(-2) * y; }
};

// x sigmoid(x). Elfwing et al., "Sigmoid-weighted linear units", 2017 (swish).
template <class V>
struct SiLU : KeepsInput {
  static constexpr ActivationInfo info{"silu"};
  FT_INLINE explicit SiLU(const double*) {}
  FT_INLINE V forward(V x) const { return x * sigmoid(x); }
  FT_INLINE V grad(V x, V) const {
    const V s = sigmoid(x);
    return s * (V(1) + x * (V(1) - s));
  }
  FT_INLINE V grad_grad(V x, V) const {
    const V s = sigmoid(x);
    return s * (V(1) - s) * (V(2) + x * (V(1) - V(2) * s));
  }
};

// x tanh(log(1 + e^x)). Misra, "Mish", 2019. With e = e^x the hyperbolic tangent is n / (n + 2), n = e (e + 2).
template <class V>
struct Mish : KeepsInput {
  static constexpr ActivationInfo info{"mish"};
  FT_INLINE explicit Mish(const double*) {}
  FT_INLINE V gate(V x) const {
    const V n = product(x);
    return n / (n + V(2));
  }
  // From 20 on the gate is 1 to rounding, and no product of x with 1 - gate^2 may bring back what is left of it.
  FT_INLINE V capped(V x) const { return x > V(20) ? V(20) : x; }
  FT_INLINE V product(V x) const {
    const V e = exp_bounded(capped(x));
    return e * (e + V(2));
  }
  // 1 - gate^2, without the cancellation.
  FT_INLINE V complement(V x) const {
    const V n = product(x);
    return V(4) * (n + V(1)) / ((n + V(2)) * (n + V(2)));
  }
  FT_INLINE V forward(V x) const { return x * gate(x); }
  FT_INLINE V grad(V x, V) const { return gate(x) + capped(x) * complement(x) * sigmoid(x); }
  FT_INLINE V grad_grad(V x, V) const {
    const V t = gate(x), s = sigmoid(x);
    const V t1 = complement(x) * s;
    const V t2 = t1 * (V(1) - s - V(2) * t * s);
    return V(2) * t1 + capped(x) * t2;
  }
};

// x relu6(x + 3) / 6. Howard et al., "Searching for MobileNetV3", 2019.
template <class V>
struct Hardswish : KeepsInput {
  static constexpr ActivationInfo info{"hardswish"};
  FT_INLINE explicit Hardswish(const double*) {}
  FT_INLINE V forward(V x) const {
    const V positive = x + V(3) < V(0) ? V(0) : x + V(3);
    return x * (positive > V(6) ? V(6) : positive) / V(6);
  }
  FT_INLINE V grad(V x, V) const {
    const V inner = x >= V(3) ? V(1) : x / V(3) + V(0.5);
    return x <= V(-3) ? V(0) : inner;
  }
  FT_INLINE V grad_grad(V x, V) const {
    const V inner = x >= V(3) ? V(0) : V(1.0 / 3.0);
    return x <= V(-3) ? V(0) : inner;
  }
};

// relu6(x + 3) / 6. Howard et al., "Searching for MobileNetV3", 2019. A result near 1 may be rounded to 1, where the
// derivative is 0, so the backward needs x.
template <class V>
struct Hardsigmoid : KeepsInput {
  static constexpr ActivationInfo info{"hardsigmoid"};
  FT_INLINE explicit Hardsigmoid(const double*) {}
  FT_INLINE V forward(V x) const {
    const V positive = x + V(3) < V(0) ? V(0) : x + V(3);
    return (positive > V(6) ? V(6) : positive) / V(6);
  }
  FT_INLINE V grad(V x, V) const {
    const V below = x < V(3) ? V(1.0 / 6.0) : V(0);
    return x > V(-3) ? below : V(0);
  }
  FT_INLINE V grad_grad(V, V) const { return V(0); }
};

// log(1 + e^(beta x)) / beta, and x itself where beta x > threshold. dy/dx = 1 - e^(-beta y), which cannot be read off
// the result where a low threshold leaves a step: there two x have one y.
template <class V>
struct Softplus : KeepsResult {
  static constexpr ActivationInfo info{"softplus", {{"beta", 1.0}, {"threshold", 20.0}}};
  V beta, threshold, turn;  // turn: beta y where beta x is the threshold
  FT_INLINE explicit Softplus(const double* p)
      : beta(V(p[0])),
        threshold(V(p[1])),
        turn(threshold + log1p_unit(exp_bounded(threshold > V(0) ? -threshold : V(0)))) {}
  FT_INLINE V forward(V x) const {
    const V u = beta * x;
    const V soft = ((u > V(0) ? u : V(0)) + log1p_unit(exp_bounded(u > V(0) ? -u : u))) / beta;
    return u > threshold ? x : soft;
  }
  FT_INLINE bool is_linear(V x, V y) const { return keeps_result() ? beta * y > turn : beta * x > threshold; }
  FT_INLINE V grad(V x, V y) const {
    const V slope = -expm1(-beta * y);
    return is_linear(x, y) ? V(1) : slope;
  }
  FT_INLINE V grad_grad(V x, V y) const {
    const V decay = exp(-beta * y);
    const V slope = keeps_result() ? beta * decay : beta * decay * (V(1) - decay);
    return is_linear(x, y) ? V(0) : slope;
  }
  FT_INLINE bool keeps_result() const { return threshold >= V(20); }
  // Where it becomes x, y steps down by log(1 + e^-threshold) / beta: nothing in float, 2e-9 in double.
  FT_INLINE bool monotone() const { return threshold >= V(20); }
};

template <class... A>
struct ActivationList {
  static constexpr int count = sizeof...(A);
  static constexpr const ActivationInfo* info[] = {&A::info...};
  static constexpr std::string_view names[count] = {A::info.name...};

  // Calls f(activation) with activation number `index`, made from its parameters.
  template <class F>
  FT_INLINE static void visit(int index, const double* parameters, F&& f) {
    int i = 0;
    (void)((i++ == index && (f(A(parameters)), true)) || ...);
  }
};

template <class V>
using Activations = ActivationList<Identity<V>, ReLU<V>, ReLU6<V>, LeakyReLU<V>, ELU<V>, SELU<V>, GELU<V>, GELUTanh<V>,
                                   Sigmoid<V>, Tanh<V>, SiLU<V>, Mish<V>, Hardswish<V>, Hardsigmoid<V>, Softplus<V>>;

// An activation with its parameters, as the operators hand it to the kernels.
struct Activation {
  int index;
  double parameters[kMaxActivationParameters];

  const ActivationInfo& info() const { return *Activations<double>::info[index]; }

  template <class V, class F>
  FT_INLINE void visit(F&& f) const {
    Activations<V>::visit(index, parameters, static_cast<F&&>(f));
  }

  // Answers that depend on the parameters too; see KeepsInput.
  FT_INLINE bool keeps_result() const {
    return ask([](auto act) { return act.keeps_result(); });
  }
  FT_INLINE bool monotone() const {
    return ask([](auto act) { return act.monotone(); });
  }
  FT_INLINE bool result_survives_scaling() const {
    return ask([](auto act) { return act.keeps_result() && act.survives_scaling(); });
  }
  FT_INLINE bool result_shows_mask() const {
    return ask([](auto act) { return act.keeps_result() && act.shows_mask(); });
  }

  bool is_identity() const { return index == 0; }

 private:
  template <class Question>
  FT_INLINE bool ask(Question question) const {
    bool answer = false;
    visit<double>([&](auto act) { answer = question(act); });
    return answer;
  }
};

// Index of the activation of that name, or -1.
inline int find_activation(std::string_view name) {
  int index = 0;
  for (const std::string_view known : Activations<double>::names) {
    if (name.size() == known.size() && name == known) return index;
    ++index;
  }
  return -1;
}

}  // namespace fusedtricks
