#include "ops/activation_slope.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/erf.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/where.h>

#include <iterator>

namespace fusedtricks {
namespace {

using at::Tensor;
using Slope = Tensor (*)(const Tensor& t, const Activation& act);

// `a` where the condition holds, else `b`; both of t's type.
Tensor choose(const Tensor& condition, const Tensor& a, double b) {
  return at::where(condition, a, at::full_like(a, b));
}
Tensor constant(const Tensor& t, double value) { return at::full_like(t, value); }

Tensor one(const Tensor& t, const Activation&) { return constant(t, 1); }
Tensor relu(const Tensor& y, const Activation&) { return choose(y > 0, constant(y, 1), 0); }
Tensor relu6(const Tensor& y, const Activation&) { return choose((y > 0) & (y < 6), constant(y, 1), 0); }
Tensor leaky_relu(const Tensor& t, const Activation& act) { return choose(t > 0, constant(t, 1), act.parameters[0]); }

Tensor elu(const Tensor& t, const Activation& act) {
  const double alpha = act.parameters[0];
  return choose(t <= 0, act.keeps_result() ? t + alpha : at::exp(at::clamp_max(t, 0)) * alpha, 1);
}

Tensor selu(const Tensor& y, const Activation&) {
  return choose(y <= 0, y + SELU<double>::scaled_alpha, SELU<double>::scale);
}

// Beyond 38 nothing is left of the density, also in double.
Tensor gelu(const Tensor& x, const Activation&) {
  const Tensor b = at::clamp(x, -38, 38);
  return (at::erf(b * 0.70710678118654752440) + 1) * 0.5 + b * at::exp(b * b * -0.5) * 0.39894228040143267794;
}

Tensor gelu_tanh(const Tensor& x, const Activation&) {
  using G = GELUTanh<double>;
  const Tensor b = at::clamp(x, -38, 38), s = at::sigmoid(b * (b * b * G::cubic + G::linear));
  return s + b * s * (1 - s) * (b * b * (3 * G::cubic) + G::linear);
}

Tensor sigmoid(const Tensor& y, const Activation&) { return y * (1 - y); }
Tensor tanh(const Tensor& y, const Activation&) { return 1 - y * y; }

// Beyond 90 and 720, sigmoid and tanh are 0 or 1.
Tensor silu(const Tensor& x, const Activation&) {
  const Tensor b = at::clamp(x, -720, 720), s = at::sigmoid(b);
  return s * (1 + b * (1 - s));
}

Tensor mish(const Tensor& x, const Activation&) {
  const Tensor b = at::clamp(x, -720, 720), gate = at::tanh(at::softplus(b));
  return gate + b * (1 - gate * gate) * at::sigmoid(b);
}

Tensor hardswish(const Tensor& x, const Activation&) { return choose(x > -3, choose(x < 3, x / 3 + 0.5, 1), 0); }

Tensor hardsigmoid(const Tensor& x, const Activation&) { return choose((x > -3) & (x < 3), constant(x, 1.0 / 6.0), 0); }

Tensor softplus(const Tensor& t, const Activation& act) {
  const Softplus<double> f(act.parameters);
  if (f.keeps_result()) return choose(t * f.beta <= f.turn, -at::expm1(t * -f.beta), 1);
  return choose(t * f.beta <= f.threshold, at::sigmoid(t * f.beta), 1);
}

// In the order of the list of activations.
constexpr Slope slopes[] = {one,     relu, relu6, leaky_relu, elu,       selu,        gelu,    gelu_tanh,
                            sigmoid, tanh, silu,  mish,       hardswish, hardsigmoid, softplus};
static_assert(std::size(slopes) == Activations<double>::count, "one for each activation");

}  // namespace

Tensor activation_slope(const Activation& act, const Tensor& kept) { return slopes[act.index](kept, act); }

}  // namespace fusedtricks
