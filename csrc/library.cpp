// The operators: every schema, and the answer of devices that have no kernels.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

TORCH_LIBRARY(fusedtricks, m) {
  // act(batch_norm(input) [+ residual]), and the statistics it used, in float64. Updates the running ones in training.
  m.def(
      "batch_norm_act(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, Tensor? weight, Tensor? bias, Tensor? residual, str act, float[] act_args, "
      "bool training, float? momentum, float eps) -> (Tensor output, Tensor save_mean, Tensor save_rstd)");
  // Its gradients. With a residual, the activation's derivative is read off output, or z is recomputed from residual.
  m.def(
      "batch_norm_act_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, "
      "Tensor? output, Tensor save_mean, Tensor save_rstd, str act, float[] act_args, bool training, float eps, "
      "bool[4] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");
  // max_pool2d(act(batch_norm(input))), the place of each maximum in its window, and the statistics as above.
  m.def(
      "batch_norm_act_max_pool2d(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, Tensor? weight, Tensor? bias, str act, float[] act_args, int[2] kernel_size, "
      "int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, bool training, float? momentum, float eps) -> "
      "(Tensor output, Tensor argmax, Tensor save_mean, Tensor save_rstd)");
  // Its gradients.
  m.def(
      "batch_norm_act_max_pool2d_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, "
      "Tensor argmax, Tensor save_mean, Tensor save_rstd, str act, float[] act_args, int[2] kernel_size, "
      "int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, bool training, float eps, bool[3] output_mask) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  // dropout(batch_norm_act(…)), and the two int64 that its mask follows from, as those of dropout.
  m.def(
      "batch_norm_act_dropout(Tensor input, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
      "Tensor(c!)? num_batches_tracked, Tensor? weight, Tensor? bias, Tensor? residual, str act, float[] act_args, "
      "bool training, float? momentum, float eps, float p, int? seed) -> (Tensor output, Tensor save_mean, "
      "Tensor save_rstd, Tensor rng_state)",
      {at::Tag::nondeterministic_seeded});
  // Its gradients. With a residual, the derivative of relu is read off output, and z of others recomputed from
  // residual.
  m.def(
      "batch_norm_act_dropout_backward(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, "
      "Tensor? residual, Tensor? output, Tensor save_mean, Tensor save_rstd, Tensor rng_state, str act, "
      "float[] act_args, bool training, float eps, float p, bool[4] output_mask) -> (Tensor grad_input, "
      "Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)");
  // act(input).
  m.def("activation(Tensor input, str act, float[] act_args) -> Tensor");
  // The same, written over input.
  m.def("activation_(Tensor(a!) input, str act, float[] act_args) -> ()");
  // grad_output * act', from what the forward kept: its result where the derivative can be read off it, else its input.
  m.def("activation_backward(Tensor grad_output, Tensor saved, str act, float[] act_args) -> Tensor");
  // grad * d act' / d saved, for the gradient of activation_backward.
  m.def("activation_backward_slope(Tensor grad, Tensor saved, str act, float[] act_args) -> Tensor");
  // Where kept input [/ (1 - p)], else 0; or alpha dropout. And the two int64 that the mask follows from: seed and
  // offset.
  m.def("dropout(Tensor input, float p, str scaling, int? seed) -> (Tensor output, Tensor rng_state)",
        {at::Tag::nondeterministic_seeded});
  // The same, written over input.
  m.def("dropout_(Tensor(a!) input, float p, str scaling, int? seed) -> Tensor", {at::Tag::nondeterministic_seeded});
  // grad_output * the same mask.
  m.def("dropout_backward(Tensor grad_output, Tensor rng_state, float p, str scaling) -> Tensor");
  // dropout(act(input + bias)) [+ residual]. The two int64 of the mask, or none where p is 0.
  m.def(
      "act_dropout(Tensor input, Tensor? bias, Tensor? residual, str act, float[] act_args, float p, int? seed) "
      "-> (Tensor output, Tensor rng_state)",
      {at::Tag::nondeterministic_seeded});
  // Its gradients, from input or else from output, without residual. Without rng_state nothing was dropped, or what was
  // shows in output.
  m.def(
      "act_dropout_backward(Tensor grad_output, Tensor? input, Tensor? output, Tensor? bias, Tensor? rng_state, "
      "str act, float[] act_args, float p, bool[2] output_mask) -> (Tensor grad_input, Tensor grad_bias)");
  // The same as dropout with one mask value for each index of the first mask_dims dimensions, [+ residual].
  m.def(
      "feature_dropout(Tensor input, Tensor? residual, int mask_dims, float p, str scaling, int? seed) "
      "-> (Tensor output, Tensor rng_state)",
      {at::Tag::nondeterministic_seeded});
  // The same, written over input.
  m.def("feature_dropout_(Tensor(a!) input, int mask_dims, float p, str scaling, int? seed) -> Tensor",
        {at::Tag::nondeterministic_seeded});
  // grad_output * the same mask.
  m.def(
      "feature_dropout_backward(Tensor grad_output, Tensor rng_state, int mask_dims, float p, str scaling) -> Tensor");
  // act(fractional_max_pool(input)) over the 2 or 3 dimensions of kernel_size, where in its window each maximum is (one
  // byte, two or four), and what the windows follow from where no samples say: seed and offset.
  m.def(
      "fractional_max_pool(Tensor input, int[] kernel_size, SymInt[] output_size, Tensor? samples, int? seed, str act, "
      "float[] act_args) -> (Tensor output, Tensor argmax, Tensor rng_state)",
      {at::Tag::nondeterministic_seeded});
  // The gradient of input, whose pooled dimensions are input_size. output is not needed for the identity.
  m.def(
      "fractional_max_pool_backward(Tensor grad_output, Tensor? output, Tensor argmax, Tensor? samples, "
      "Tensor rng_state, SymInt[] input_size, int[] kernel_size, bool channels_last, str act, float[] act_args) -> "
      "Tensor");
  // The position in its plane of each maximum, as stock's indices.
  m.def(
      "fractional_max_pool_indices(Tensor argmax, Tensor? samples, Tensor rng_state, SymInt[] input_size, "
      "int[] kernel_size) -> Tensor");
  // linear(input, dropout(weight), bias), and what the mask follows from.
  m.def(
      "drop_connect_linear(Tensor input, Tensor weight, Tensor? bias, float p, int? seed) "
      "-> (Tensor output, Tensor rng_state)",
      {at::Tag::nondeterministic_seeded});
  // The same for matrices, with a kernel of its own where dropping the weight takes a good part of the time.
  m.def(
      "dropped_linear(Tensor input, Tensor weight, Tensor? bias, float p, int? seed) "
      "-> (Tensor output, Tensor rng_state)",
      {at::Tag::nondeterministic_seeded});
  m.def(
      "dropped_linear_backward(Tensor grad_output, Tensor input, Tensor weight, Tensor rng_state, float p) "
      "-> (Tensor grad_input, Tensor grad_weight)");
  // convolution(input, dropout(weight), bias, …), and the same.
  m.def(
      "drop_connect_convolution(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
      "int[] dilation, int groups, float p, int? seed) -> (Tensor output, Tensor rng_state)",
      {at::Tag::nondeterministic_seeded});
  // input, with scale * rows[j] added to its sample index[j].
  m.def("add_samples(Tensor input, Tensor rows, Tensor index, float scale) -> Tensor");
  // scale * input[index].
  m.def("select_samples(Tensor input, Tensor index, float scale) -> Tensor");
  // As many samples of zeros, with scale * rows[j] in place of sample index[j].
  m.def("place_samples(Tensor rows, Tensor index, SymInt samples, float scale) -> Tensor");
  // input[index], and input itself; backward adds the gradient of the one to that of the other in one pass.
  m.def("branch_samples(Tensor(a) input, Tensor index) -> (Tensor rows, Tensor(a) skip)");
  // The instruction set that the CPU kernels were compiled for: default, avx2 or avx512.
  m.def("cpu_capability() -> str");
}

namespace fusedtricks {
namespace {

using at::Tensor;

// Every backend without a kernel of its own.
void unsupported_device(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  for (const auto& value : *stack) {
    if (!value.isTensor() || !value.toTensor().defined()) continue;
    const Tensor& t = value.toTensor();
    TORCH_CHECK_NOT_IMPLEMENTED(false, op.schema().name(), ": ", op.schema().arguments()[0].name(), " on device ",
                                t.device(), " with layout ", t.layout(),
                                " is not supported; it takes a dense tensor on a device whose backend "
                                "`python -m fusedtricks info` lists as built");
  }
}

constexpr const char* kWithKernels[] = {
    "batch_norm_act",
    "batch_norm_act_backward",
    "batch_norm_act_dropout",
    "batch_norm_act_dropout_backward",
    "batch_norm_act_max_pool2d",
    "batch_norm_act_max_pool2d_backward",
    "activation",
    "activation_",
    "activation_backward",
    "activation_backward_slope",
    "dropout",
    "dropout_",
    "dropout_backward",
    "act_dropout",
    "act_dropout_backward",
    "feature_dropout",
    "feature_dropout_",
    "feature_dropout_backward",
    "fractional_max_pool",
    "fractional_max_pool_backward",
    "fractional_max_pool_indices",
    "add_samples",
    "select_samples",
    "place_samples",
};

}  // namespace

TORCH_LIBRARY_IMPL(fusedtricks, CompositeExplicitAutograd, m) {
  for (const char* op : kWithKernels) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&unsupported_device>());
  }
}

}  // namespace fusedtricks
