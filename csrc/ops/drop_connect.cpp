// DropConnect: a linear layer or a convolution whose weight is dropped. Kept for backward are the input, the weight as
// it is and two numbers, seed and offset, from which the backward drops the weight again.
//
// The operators are compositions: of dropout with its mask, and of ATen's products. What traces them sees those. A
// linear layer that is mostly weight has an operator of its own, which on the CPU drops the weight block by block, each
// into a cache, and multiplies it there; its backward drops weight and gradient by the same words, computed once.
#include "calls/drop_connect.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include "checks/dropout.h"
#include "ops/compositions.h"
#include "ops/grad_node.h"
#include "ops/python.h"
#include "ops/random.h"
#include "ops/tensors.h"

namespace fusedtricks {
namespace {

using Results = std::tuple<Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

constexpr int64_t kBlock = 1 << 16;  // elements of a block, so that two and what they meet stay in a cache
constexpr int64_t kGroups = 8;       // sums of the gradient of the input that are made side by side, at most

struct Convolution {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;

  auto values() const { return std::tie(stride, padding, dilation, groups); }
};

// All samples and positions of a linear layer's tensor as the rows of a matrix.
Tensor as_matrix(const Tensor& t) { return t.reshape_symint({product_of_sizes(t, 0, t.dim() - 1), t.sym_size(-1)}); }

// How input and weight are multiplied.
struct Product {
  std::optional<Convolution> convolution;  // else a linear layer's

  auto values() const { return std::tie(convolution); }

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

// Blocks of whole rows of a matrix, and groups of neighbouring blocks that are summed one after another.
struct Blocks {
  int64_t rows, columns, rows_each, count;

  explicit Blocks(const Tensor& weight) : rows(weight.size(0)), columns(weight.size(1)) {
    rows_each = std::clamp<int64_t>(kBlock / std::max<int64_t>(1, columns), 1, std::max<int64_t>(1, rows));
    count = (rows + rows_each - 1) / rows_each;
  }

  int64_t first(int64_t block) const { return block * rows_each; }
  int64_t rows_of(int64_t block) const { return std::min(rows_each, rows - first(block)); }
};

// Calls f(block, scratch) for the blocks from `begin` to `end`, on a thread of its own that autograd knows nothing of.
template <class F>
void for_blocks(const Blocks& blocks, const Tensor& weight, int64_t begin, int64_t end, const F& f) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const Tensor scratch = at::empty({blocks.rows_each, blocks.columns}, weight.options());
  for (int64_t block = begin; block < end; ++block) f(block, scratch.narrow(0, 0, blocks.rows_of(block)));
}

// The rows of a block of weight, dropped, in scratch; where there is a gradient, its rows in place.
void drop_block(const Blocks& blocks, int64_t block, const Tensor& weight, const Tensor& scratch,
                const Tensor& gradient, const MaskSource& mask) {
  kernels::drop_block(at::kCPU)({.dtype = weight.scalar_type(),
                                 .mask = mask,
                                 .first = blocks.first(block) * blocks.columns,
                                 .count = scratch.numel(),
                                 .weight = weight.const_data_ptr(),
                                 .scratch = scratch.data_ptr(),
                                 .gradient = gradient.defined() ? gradient.data_ptr() : nullptr});
}

// Of matrices on the CPU. The mask is recorded.
Tensor linear_by_blocks(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const MaskSource& mask) {
  const Tensor w = weight.contiguous();
  const Blocks blocks(w);
  const Tensor output = at::empty({input.size(0), blocks.rows}, input.options());
  at::parallel_for(0, blocks.count, 1, [&](int64_t begin, int64_t end) {
    for_blocks(blocks, w, begin, end, [&](int64_t block, const Tensor& scratch) {
      drop_block(blocks, block, w, scratch, {}, mask);
      Tensor columns = output.narrow(1, blocks.first(block), scratch.size(0));
      if (bias)
        at::addmm_out(columns, bias->narrow(0, blocks.first(block), scratch.size(0)), input, scratch.t());
      else
        at::mm_out(columns, input, scratch.t());
    });
  });
  return output;
}

// The gradients of input and weight.
Results linear_backward_by_blocks(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                  const MaskSource& mask) {
  const Tensor w = weight.contiguous();
  const Blocks blocks(w);
  const Tensor grad_weight = at::empty({blocks.rows, blocks.columns}, weight.options());
  // Sums over groups of blocks, which the shape alone decides; all of them are no more than the weight.
  const int64_t most = blocks.rows / std::max<int64_t>(1, input.size(0));
  const int64_t groups = std::clamp<int64_t>(std::min(most, kGroups), 1, std::max<int64_t>(1, blocks.count));
  const Tensor partial = at::empty({groups, input.size(0), blocks.columns}, input.options());
  at::parallel_for(0, groups, 1, [&](int64_t first_group, int64_t last_group) {
    for (int64_t group = first_group; group < last_group; ++group) {
      const int64_t begin = blocks.count * group / groups, end = blocks.count * (group + 1) / groups;
      for_blocks(blocks, w, begin, end, [&](int64_t block, const Tensor& scratch) {
        const Tensor g = grad_output.narrow(1, blocks.first(block), scratch.size(0));
        Tensor dw = grad_weight.narrow(0, blocks.first(block), scratch.size(0)), dx = partial.select(0, group);
        at::mm_out(dw, g.t(), input);
        drop_block(blocks, block, w, scratch, grad_weight, mask);
        if (block == begin)
          at::mm_out(dx, g, scratch);
        else
          at::addmm_out(dx, dx, g, scratch);
      });
    }
  });
  return {groups == 1 ? partial.select(0, 0) : partial.sum(0), grad_weight};
}

// linear(input, dropout(weight), bias) of matrices.
struct DroppedLinearOp {
  static constexpr const char* schema =
      "dropped_linear(Tensor input, Tensor weight, Tensor? bias, float p, int? seed) "
      "-> (Tensor output, Tensor rng_state)";
  static constexpr bool draws = true;
  using Results = std::tuple<Tensor, Tensor>;
  const Tensor &input, &weight;
  const OptionalTensor& bias;
  double p;
  std::optional<int64_t> seed;

  Results run() const {
    check_dropped_linear(input, weight, p);
    if (input.is_meta()) {
      return {at::empty_symint({input.sym_size(0), weight.sym_size(0)}, input.options()), new_rng_state(input)};
    }
    if (!input.is_cpu() || !kernels::drop_block.is_on(at::kCPU)) {
      const auto [dropped, rng_state] = call_dropout(weight, p, seed);
      return {at::linear(input, dropped, bias), rng_state};
    }
    const Tensor rng_state = new_rng_state(weight);
    draw_mask(DropRate{}, seed, rng_state).write_record();
    return {linear_by_blocks(input, weight, bias, recorded_mask(check_dropout(p, "inverted"), rng_state)), rng_state};
  }
};

struct DroppedLinearBackwardOp {
  static constexpr const char* schema =
      "dropped_linear_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor rng_state, float p) "
      "-> (Tensor grad_input, Tensor grad_weight)";
  using Results = std::tuple<Tensor, Tensor>;
  const Tensor &grad_output, &input, &weight, &rng_state;
  double p;

  Results run() const {
    check_dropped_linear(input, weight, p);
    check_rng_state(rng_state, grad_output);
    if (input.is_meta()) {
      return {at::empty_symint(input.sym_sizes(), input.options()),
              at::empty_symint(weight.sym_sizes(), weight.options())};
    }
    if (!input.is_cpu() || !kernels::drop_block.is_on(at::kCPU)) {
      return {at::matmul(grad_output, call_dropout_backward(weight, rng_state, p)),
              call_dropout_backward(at::matmul(grad_output.t(), input), rng_state, p)};
    }
    const Tensor state = rng_state.contiguous();
    return linear_backward_by_blocks(grad_output, input, weight, recorded_mask(check_dropout(p, "inverted"), state));
  }
};

// A product with a dropped weight: what both operators come down to, and autograd's node.
struct DropConnect {
  static constexpr const char* schema = "drop_connect()";
  const Tensor &input, &weight;
  const OptionalTensor& bias;
  struct Attributes {
    Product product;
    double p;
    at::ScalarType dtype;  // that the dropped weight is multiplied in
    at::ScalarType weight_dtype;

    auto values() const { return std::tie(product, p, dtype, weight_dtype); }
  };
  Attributes attributes;
  std::optional<int64_t> seed;

  static constexpr int kKept = 3;
  auto differentiable() const { return std::tie(input, weight, bias); }

  // In the way that is the fastest.
  Results multiply() const {
    const at::AutoDispatchBelowADInplaceOrView below;
    const at::AutoGradMode no_grad(false);
    const auto& [product, p, dtype, weight_dtype] = attributes;
    if (is_mostly_weight(product, input, weight)) {
      auto sizes = input.sizes().vec();
      sizes.back() = weight.size(0);
      const auto [output, rng_state] = fusedtricks::call(DroppedLinearOp{as_matrix(input), weight, bias, p, seed});
      return {output.view(sizes), rng_state};
    }
    const auto [dropped, rng_state] = call_dropout(weight, p, seed);
    return {product.apply(input, cast(dropped, dtype), bias), rng_state};
  }

  Results call() const {
    if (!records(*this)) return multiply();
    const Gradient<DropConnect> gradient(*this);
    const auto [output, rng_state] = multiply();
    const Product& product = attributes.product;
    if (product.reads(weight.requires_grad())) gradient.keep(0, input);
    if (product.reads(input.requires_grad())) gradient.keep(1, weight);
    gradient.keep(2, rng_state);
    gradient->attributes = attributes;
    gradient.of(output);
    return {output, rng_state};
  }

  static Tensors differentiate(const Recorded<DropConnect>& node, const Tensors& grads, const Tensors& kept) {
    const auto& [product, p, dtype, weight_dtype] = node.attributes;
    const Tensor &grad = grads[0], &input = kept[0], &weight = kept[1], &rng_state = kept[2];
    Tensors out(3);
    std::array<bool, 3> wanted{node.wants(0), node.wants(1), node.wants(2)};
    if (wanted[0] && wanted[1] && !at::GradMode::is_enabled() && is_mostly_weight(product, input, weight)) {
      const Tensor rows = as_matrix(input), grad_rows = as_matrix(grad);
      const auto [grad_input, grad_weight] =
          fusedtricks::call(DroppedLinearBackwardOp{grad_rows, rows, weight, rng_state, p});
      out[0] = grad_input.view(input.sizes());
      out[1] = grad_weight;
      wanted[0] = wanted[1] = false;
      std::tie(std::ignore, std::ignore, out[2]) = product.gradients(grad, input, weight, wanted);
      return out;
    }
    const Tensor factor = wanted[0] ? cast(call_dropout_backward(weight, rng_state, p), dtype) : weight;
    std::tie(out[0], out[1], out[2]) = product.gradients(grad, input, factor, wanted);
    if (wanted[1]) out[1] = call_dropout_backward(cast(out[1], weight_dtype), rng_state, p);
    return out;
  }
};

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

// Under autocast, as linear(input, dropout(weight), bias): the weight is dropped as it is, then cast.
template <class Multiply>
Results multiply_cast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Multiply& multiply) {
  const auto device = input.device().type();
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const auto weight_dtype = at::autocast::is_eligible(weight, device) ? dtype : weight.scalar_type();
  const Tensor x = at::autocast::cached_cast(dtype, input, device);
  const OptionalTensor b = at::autocast::cached_cast(dtype, bias, device);
  return multiply(x, b, weight_dtype);
}

// linear(input, dropout(weight), bias), and what the mask follows from.
struct DropConnectLinearOp {
  static constexpr const char* schema =
      "drop_connect_linear(Tensor input, Tensor weight, Tensor? bias, float p, int? seed) "
      "-> (Tensor output, Tensor rng_state)";
  static constexpr bool draws = true, composite = true;
  using Results = std::tuple<Tensor, Tensor>;
  const Tensor &input, &weight;
  const OptionalTensor& bias;
  double p;
  std::optional<int64_t> seed;

  Results run() const { return multiply(input, bias, weight.scalar_type()); }
  Results cast() const {
    return multiply_cast(input, weight, bias, [&](auto&... cast_arguments) { return multiply(cast_arguments...); });
  }

 private:
  Results multiply(const Tensor& x, const OptionalTensor& b, at::ScalarType dtype) const {
    TORCH_CHECK(weight.dim() == 2, "weight has ", weight.dim(), " dimensions; it takes 2, (out_features, in_features)");
    check_parameters("drop_connect_linear", x, weight, b, p, dtype);
    TORCH_CHECK(x.dim() >= 1 && x.sym_size(-1) == weight.sym_size(1), "input has shape ", x.sym_sizes(),
                "; with weight of shape ", weight.sym_sizes(), " it takes ", weight.sym_size(1),
                " features in its last dimension");
    return DropConnect{x, weight, b, {{}, p, dtype, weight.scalar_type()}, seed}.call();
  }
};

// convolution(input, dropout(weight), bias, ...), and the same.
struct DropConnectConvolutionOp {
  static constexpr const char* schema =
      "drop_connect_convolution(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
      "int[] dilation, int groups, float p, int? seed) -> (Tensor output, Tensor rng_state)";
  static constexpr bool draws = true, composite = true;
  using Results = std::tuple<Tensor, Tensor>;
  const Tensor &input, &weight;
  const OptionalTensor& bias;
  at::IntArrayRef stride, padding, dilation;
  int64_t groups;
  double p;
  std::optional<int64_t> seed;

  Results run() const { return multiply(input, bias, weight.scalar_type()); }
  Results cast() const {
    return multiply_cast(input, weight, bias, [&](auto&... cast_arguments) { return multiply(cast_arguments...); });
  }

 private:
  Results multiply(const Tensor& x, const OptionalTensor& b, at::ScalarType dtype) const {
    Convolution geometry{stride.vec(), padding.vec(), dilation.vec(), groups};
    check_convolution(x, weight, geometry);
    check_parameters("drop_connect_convolution", x, weight, b, p, dtype);
    return DropConnect{x, weight, b, {{std::move(geometry)}, p, dtype, weight.scalar_type()}, seed}.call();
  }
};

const Operators<DropConnectLinearOp, DropConnectConvolutionOp, DroppedLinearOp, DroppedLinearBackwardOp> operators;

// drop_connect_linear(input, weight, bias, p, seed)
PyObject* python_drop_connect_linear(PythonArguments& arguments) {
  const Tensor &input = arguments.tensor(), &weight = arguments.tensor();
  const OptionalTensor bias = arguments.optional_tensor();
  const double p = arguments.probability();
  const std::optional<int64_t> seed = arguments.seed();
  if (!arguments.fit()) return nullptr;
  return arguments.released([&] { return std::get<0>(dispatch(DropConnectLinearOp{input, weight, bias, p, seed})); });
}

// drop_connect_convolution(input, weight, bias, stride, padding, dilation, groups, p, seed)
PyObject* python_drop_connect_convolution(PythonArguments& arguments) {
  const Tensor &input = arguments.tensor(), &weight = arguments.tensor();
  const OptionalTensor bias = arguments.optional_tensor();
  const std::vector<int64_t> stride = arguments.integers(), padding = arguments.integers();
  const std::vector<int64_t> dilation = arguments.integers();
  const int64_t groups = arguments.integer();
  const double p = arguments.probability();
  const std::optional<int64_t> seed = arguments.seed();
  if (!arguments.fit()) return nullptr;
  return arguments.released([&] {
    return std::get<0>(
        dispatch(DropConnectConvolutionOp{input, weight, bias, stride, padding, dilation, groups, p, seed}));
  });
}

const PythonFunction functions[] = {
    PythonFunction::of<python_drop_connect_linear>("drop_connect_linear"),
    PythonFunction::of<python_drop_connect_convolution>("drop_connect_convolution"),
};

}  // namespace
}  // namespace fusedtricks
