// DropConnect: a linear layer or a convolution whose weight is dropped. Kept for backward are the input, the weight as
// it is and two numbers, seed and offset, from which the backward drops the weight again.
//
// The operators are compositions: of dropout with its mask, and of ATen's products. What traces them sees those.
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>

#include "ops/old_autograd.h"

namespace fusedtricks::autograd {
namespace {

using Results = std::tuple<Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

struct Convolution {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
};

// All samples and positions of a linear layer's tensor as the rows of a matrix.
Tensor as_matrix(const Tensor& t) { return t.dim() == 1 ? t.unsqueeze(0) : t.flatten(0, -2); }

// How input and weight are multiplied.
struct Product {
  std::optional<Convolution> convolution;  // else a linear layer's

  Tensor apply(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) const {
    if (!convolution) return at::linear(input, weight, bias);
    const auto& [stride, padding, dilation, groups] = *convolution;
    const std::vector<int64_t> no_output_padding(stride.size(), 0);
    return at::convolution(input, weight, bias, stride, padding, dilation, /*transposed=*/false, no_output_padding,
                           groups);
  }

  // Of input, weight and bias, in differentiable operations; those that are not wanted are undefined.
  Gradients gradients(const Tensor& grad, const Tensor& input, const Tensor& weight, std::array<bool, 3> wanted) const {
    if (!convolution) {
      return {wanted[0] ? at::matmul(grad, weight) : Tensor(),
              wanted[1] ? at::matmul(as_matrix(grad).t(), as_matrix(input)) : Tensor(),
              wanted[2] ? as_matrix(grad).sum(0) : Tensor()};
    }
    const auto& [stride, padding, dilation, groups] = *convolution;
    const std::vector<int64_t> no_output_padding(stride.size(), 0);
    return at::convolution_backward_symint(grad, input, weight, std::vector<c10::SymInt>{weight.sym_size(0)},
                                           c10::fromIntArrayRefSlow(stride), c10::fromIntArrayRefSlow(padding),
                                           c10::fromIntArrayRefSlow(dilation), /*transposed=*/false,
                                           c10::fromIntArrayRefSlow(no_output_padding), groups, wanted);
  }

  // Whether a backward reads one of the factors; a convolution's takes both for their shapes.
  bool reads(bool other_requires_grad) const { return convolution || other_requires_grad; }
};

// Below autograd an operator may not answer its own argument, as a cast that casts nothing does.
Tensor cast(const Tensor& t, at::ScalarType dtype) { return t.scalar_type() == dtype ? t : t.to(dtype); }

struct DropConnectAttributes {
  Product product;
  double p;
  at::ScalarType dtype;  // that the dropped weight is multiplied in
  at::ScalarType weight_dtype;
};

// The same mask and scale on the weight once more, or on its gradient.
Tensor drop_again(const Tensor& t, const Tensor& rng_state, double p) {
  return ops::dropout_backward(t, rng_state, p, "inverted");
}

// Whether a linear layer has so many more weights than inputs that dropping them takes a good part of the time, and
// enough of them for all threads: the operator of its own is then the faster one on a CPU.
bool is_mostly_weight(const Product& product, const Tensor& input, const Tensor& weight) {
  constexpr int64_t least = 1 << 16, most_threads = 8;
  if (product.convolution || input.scalar_type() != weight.scalar_type() ||
      at::isReducedFloatingType(weight.scalar_type()))
    return false;
  if (input.unsafeGetTensorImpl()->has_symbolic_sizes_strides() || input.layout() != at::kStrided) return false;
  const int64_t inputs = input.numel(), weights = weight.numel(), threads = at::get_num_threads();
  return threads <= most_threads && weights >= least * threads && weights >= inputs * threads;
}

// The operator of that for any device.
Results dropped_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, double p,
                       std::optional<int64_t> seed) {
  const auto [dropped, rng_state] = ops::dropout(weight, p, "inverted", seed);
  return {at::linear(input, dropped, bias), rng_state};
}

Results dropped_linear_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                const Tensor& rng_state, double p) {
  return {at::matmul(grad_output, drop_again(weight, rng_state, p)),
          drop_again(at::matmul(grad_output.t(), input), rng_state, p)};
}

// linear or convolution of the dropped weight, in the way that is the fastest.
Results forward_product(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const DropConnectAttributes& attributes, std::optional<int64_t> seed) {
  const auto& [product, p, dtype, weight_dtype] = attributes;
  if (is_mostly_weight(product, input, weight)) {
    auto sizes = input.sizes().vec();
    sizes.back() = weight.size(0);
    const auto [output, rng_state] = ops::dropped_linear(as_matrix(input), weight, bias, p, seed);
    return {output.view(sizes), rng_state};
  }
  const auto [dropped, rng_state] = ops::dropout(weight, p, "inverted", seed);
  return {product.apply(input, cast(dropped, dtype), bias), rng_state};
}

struct DropConnect : Function<DropConnect> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight,
                               const OptionalTensor& bias, const DropConnectAttributes& attributes,
                               std::optional<int64_t> seed) {
    at::AutoDispatchBelowADInplaceOrView below;
    const auto [output, rng_state] = forward_product(input, weight, bias, attributes, seed);
    const Product& product = attributes.product;
    ctx->save_for_backward({product.reads(weight.requires_grad()) ? input : Tensor(),
                            product.reads(input.requires_grad()) ? weight : Tensor(), rng_state});
    ctx->mark_non_differentiable({rng_state});
    ctx->set_materialize_grads(false);
    keep(ctx, attributes);
    ctx->saved_data["bias"] = bias.has_value();
    return {output, rng_state};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list out(5);
    const Tensor& grad = grads[0];
    if (!grad.defined()) return out;
    const auto [product, p, dtype, weight_dtype] = kept<DropConnectAttributes>(ctx);
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &rng_state = saved[2];
    const bool has_bias = ctx->saved_data["bias"].toBool();
    std::array<bool, 3> wanted{ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                               has_bias && ctx->needs_input_grad(2)};
    if (wanted[0] && wanted[1] && !at::GradMode::is_enabled() && is_mostly_weight(product, input, weight)) {
      const auto [grad_input, grad_weight] =
          ops::dropped_linear_backward(as_matrix(grad), as_matrix(input), weight, rng_state, p);
      out[0] = grad_input.view(input.sizes());
      out[1] = grad_weight;
      wanted[0] = wanted[1] = false;
      std::tie(std::ignore, std::ignore, out[2]) = product.gradients(grad, input, weight, wanted);
      return out;
    }
    const Tensor factor = wanted[0] ? cast(drop_again(weight, rng_state, p), dtype) : weight;
    std::tie(out[0], out[1], out[2]) = product.gradients(grad, input, factor, wanted);
    if (wanted[1]) out[1] = drop_again(cast(out[1], weight_dtype), rng_state, p);
    return out;
  }
};

Results drop_connect(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                     const DropConnectAttributes& attributes, std::optional<int64_t> seed) {
  if (!records(input, weight, bias)) {
    at::AutoDispatchBelowADInplaceOrView below;
    return forward_product(input, weight, bias, attributes, seed);
  }
  const auto results = DropConnect::apply(input, weight, bias, attributes, seed);
  return {results[0], results[1]};
}

// What linear layer and convolution check alike, before a mask is drawn.
void check_parameters(const char* op, const Tensor& input, const Tensor& weight, const OptionalTensor& bias, double p,
                      at::ScalarType weight_dtype) {
  check_floating(input, op, "input");
  check_floating(weight, op, "weight");
  check_probability(p);
  check_device(weight, input, "weight");
  TORCH_CHECK(weight_dtype == input.scalar_type(), "weight has dtype ", weight_dtype, "; it takes that of input, ",
              input.scalar_type());
  if (!bias) return;
  check_device(*bias, input, "bias");
  TORCH_CHECK(bias->dim() == 1 && bias->sym_size(0) == weight.sym_size(0), "bias has shape ", bias->sym_sizes(),
              "; it takes one element for each of the ", weight.sym_size(0), " outputs of weight");
  TORCH_CHECK(bias->scalar_type() == input.scalar_type(), "bias has dtype ", bias->scalar_type(),
              "; it takes that of input, ", input.scalar_type());
}

Results linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, double p,
               std::optional<int64_t> seed, at::ScalarType dtype) {
  TORCH_CHECK(weight.dim() == 2, "weight has ", weight.dim(), " dimensions; it takes 2, (out_features, in_features)");
  check_parameters("drop_connect_linear", input, weight, bias, p, dtype);
  TORCH_CHECK(input.dim() >= 1 && input.sym_size(-1) == weight.sym_size(1), "input has shape ", input.sym_sizes(),
              "; with weight of shape ", weight.sym_sizes(), " it takes ", weight.sym_size(1),
              " features in its last dimension");
  return drop_connect(input, weight, bias, {{}, p, dtype, weight.scalar_type()}, seed);
}

void check_convolution(const Tensor& input, const Tensor& weight, const Convolution& c) {
  TORCH_CHECK(weight.dim() >= 3 && weight.dim() <= 5, "weight has ", weight.dim(),
              " dimensions; it takes 3 to 5, (out_channels, in_channels / groups, *kernel_size)");
  TORCH_CHECK(input.dim() == weight.dim(), "input has ", input.dim(), " dimensions; with weight of shape ",
              weight.sym_sizes(), " it takes ", weight.dim(), ", (N, C, *)");
  TORCH_CHECK(c.groups > 0 && weight.sym_size(0) % c.groups == 0, "groups is ", c.groups,
              "; it takes a positive divisor of the ", weight.sym_size(0), " output channels");
  TORCH_CHECK(input.sym_size(1) == weight.sym_size(1) * c.groups, "input has ", input.sym_size(1),
              " channels; with weight of shape ", weight.sym_sizes(), " and ", c.groups, " groups it takes ",
              weight.sym_size(1) * c.groups);
  const size_t dimensions = weight.dim() - 2;
  const auto check = [&](const char* name, const std::vector<int64_t>& values, int64_t least) {
    TORCH_CHECK(
        values.size() == dimensions && std::all_of(values.begin(), values.end(), [&](int64_t v) { return v >= least; }),
        name, " is ", at::IntArrayRef(values), "; it takes ", dimensions, " integers of at least ", least);
  };
  check("stride", c.stride, 1);
  check("padding", c.padding, 0);
  check("dilation", c.dilation, 1);
  for (size_t d = 0; d < dimensions; ++d) {
    const auto size = input.sym_size(d + 2) + 2 * c.padding[d], kernel = weight.sym_size(d + 2);
    TORCH_CHECK(kernel > 0 && size >= c.dilation[d] * (kernel - 1) + 1, "input has shape ", input.sym_sizes(),
                "; with its padding it is smaller than the kernel of weight, of shape ", weight.sym_sizes());
  }
}

Results convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, Convolution geometry,
                    double p, std::optional<int64_t> seed, at::ScalarType dtype) {
  check_convolution(input, weight, geometry);
  check_parameters("drop_connect_convolution", input, weight, bias, p, dtype);
  return drop_connect(input, weight, bias, {{std::move(geometry)}, p, dtype, weight.scalar_type()}, seed);
}

Results drop_connect_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, double p,
                            std::optional<int64_t> seed) {
  return linear(input, weight, bias, p, seed, weight.scalar_type());
}

Results drop_connect_convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                 at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                 int64_t groups, double p, std::optional<int64_t> seed) {
  return convolution(input, weight, bias, {stride.vec(), padding.vec(), dilation.vec(), groups}, p, seed,
                     weight.scalar_type());
}

// Under autocast, as linear(input, dropout(weight), bias): the weight is dropped as it is, then cast.
template <class Call>
Results autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Call& call) {
  const auto device = input.device().type();
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const auto weight_dtype = at::autocast::is_eligible(weight, device) ? dtype : weight.scalar_type();
  const auto no_autocast = without_autocast();
  return call(at::autocast::cached_cast(dtype, input, device), at::autocast::cached_cast(dtype, bias, device),
              weight_dtype);
}

Results linear_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, double p,
                        std::optional<int64_t> seed) {
  return autocast(input, weight, bias, [&](const Tensor& x, const OptionalTensor& b, at::ScalarType dtype) {
    return linear(x, weight, b, p, seed, dtype);
  });
}

Results convolution_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                             at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                             double p, std::optional<int64_t> seed) {
  return autocast(input, weight, bias, [&](const Tensor& x, const OptionalTensor& b, at::ScalarType dtype) {
    return convolution(x, weight, b, {stride.vec(), padding.vec(), dilation.vec(), groups}, p, seed, dtype);
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, CompositeImplicitAutograd, m) {
  m.impl("drop_connect_linear", drop_connect_linear);
  m.impl("drop_connect_convolution", drop_connect_convolution);
}

TORCH_LIBRARY_IMPL(fusedtricks, CompositeExplicitAutograd, m) {
  m.impl("dropped_linear", dropped_linear);
  m.impl("dropped_linear_backward", dropped_linear_backward);
}

TORCH_LIBRARY_IMPL(fusedtricks, AutocastCPU, m) {
  m.impl("drop_connect_linear", linear_autocast);
  m.impl("drop_connect_convolution", convolution_autocast);
}

TORCH_LIBRARY_IMPL(fusedtricks, AutocastCUDA, m) {
  m.impl("drop_connect_linear", linear_autocast);
  m.impl("drop_connect_convolution", convolution_autocast);
}

}  // namespace fusedtricks::autograd
