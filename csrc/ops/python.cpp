#include <torch/csrc/python_headers.h>
//
#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <deque>

#include "calls/kernel.h"
#include "core/dtypes.h"
#include "ops/python.h"

namespace fusedtricks {
namespace {

std::deque<PyMethodDef>& methods() {
  static std::deque<PyMethodDef> all;
  return all;
}

// Whether a transform or torch.jit.trace is active.
bool in_transform() {
  constexpr c10::DispatchKeySet modes({c10::DispatchKey::FuncTorchDynamicLayerFrontMode, c10::DispatchKey::Tracer});
  return c10::impl::tls_local_dispatch_key_set().included_.has_any(modes);
}

// Whether t is dense, and on a device with kernels.
bool is_dense(const at::Tensor& t) {
  return t.layout() == at::kStrided && !t.is_nested() && !t.is_neg() && KernelSlot::is_loaded(t.device().type());
}

bool has_kernels(const at::Tensor& t) { return is_supported(t.scalar_type()) && is_dense(t); }

// has_kernels(tensor, *others): True for plain tensors that kernels take, the others in any dtype, or None.
PyObject* python_has_kernels(PythonArguments& arguments) {
  arguments.tensor();
  while (arguments.has_next()) {
    const std::optional<at::Tensor> other = arguments.optional_tensor();
    if (other && !is_dense(*other)) return nullptr;
  }
  return arguments.fit() ? PyBool_FromLong(1) : nullptr;
}

const PythonFunction functions[] = {PythonFunction::of<python_has_kernels>("has_kernels")};

}  // namespace

WithoutGil::WithoutGil() : thread_(PyEval_SaveThread()) {}
WithoutGil::~WithoutGil() { PyEval_RestoreThread(static_cast<PyThreadState*>(thread_)); }

bool WithoutGilIfHeld::holds_gil() { return PyGILState_Check(); }

PyObject* to_python(at::Tensor&& t) { return THPVariable_Wrap(std::move(t)); }

PyObject* pair_to_python(PyObject* first, at::Tensor&& second) {
  return Py_BuildValue("NN", first, THPVariable_Wrap(std::move(second)));
}

PyObject* call_body(PythonBody body, PyObject* const* values, ptrdiff_t count) {
  HANDLE_TH_ERRORS
  PythonArguments arguments(values, count);
  PyObject* result = body(arguments);
  if (result) return result;
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

PythonFunction::PythonFunction(const char* name, FastCall function) {
  const auto any = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
  methods().push_back({name, any, METH_FASTCALL, nullptr});
}

void PythonFunction::add_to(PyObject* module) {
  for (PyMethodDef& method : methods()) {
    PyObject* function = PyCFunction_New(&method, nullptr);
    if (!function || PyModule_AddObject(module, method.ml_name, function) < 0) throw python_error();
  }
}

PyObject* PythonArguments::same(ptrdiff_t place) const {
  Py_INCREF(values_[place]);
  return values_[place];
}

PyObject* PythonArguments::next() {
  if (next_ < count_) return values_[next_++];
  fits_ = false;
  return Py_None;
}

const at::Tensor* PythonArguments::plain_tensor(PyObject* value) {
  if (!THPVariable_CheckExact(value)) return nullptr;
  const at::Tensor& t = THPVariable_Unpack(value);
  return t._fw_grad(/*level=*/0).defined() ? nullptr : &t;
}

const at::Tensor& PythonArguments::tensor() {
  const at::Tensor& t = tensor_of_any_dtype();
  return fits_ && !has_kernels(t) ? unfit<const at::Tensor&>(t) : t;
}

const at::Tensor& PythonArguments::tensor_of_any_dtype() {
  static const at::Tensor undefined;
  const at::Tensor* t = plain_tensor(next());
  return t ? *t : unfit<const at::Tensor&>(undefined);
}

std::optional<at::Tensor> PythonArguments::optional_tensor() {
  PyObject* value = next();
  if (value == Py_None) return std::nullopt;
  const at::Tensor* t = plain_tensor(value);
  return t ? std::optional<at::Tensor>(*t) : unfit(std::optional<at::Tensor>());
}

double PythonArguments::number() {
  PyObject* value = next();
  if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
  if (!PyLong_CheckExact(value)) return unfit(0.0);
  const double number = PyLong_AsDouble(value);
  if (!PyErr_Occurred()) return number;
  PyErr_Clear();
  return unfit(0.0);
}

std::optional<double> PythonArguments::optional_number() {
  if (next_ < count_ && values_[next_] == Py_None) return ++next_, std::nullopt;
  return number();
}

double PythonArguments::probability() {
  const double p = number();
  return 0 <= p && p <= 1 ? p : unfit(p);
}

bool PythonArguments::flag() {
  PyObject* value = next();
  return value == Py_True || (value != Py_False && unfit(false));
}

int64_t PythonArguments::integer() {
  PyObject* value = next();
  if (!PyLong_CheckExact(value)) return unfit(int64_t(0));
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
  return overflow ? unfit(int64_t(0)) : int64_t(number);
}

std::optional<int64_t> PythonArguments::seed() {
  PyObject* value = next();
  if (value == Py_None) return std::nullopt;
  if (!PyLong_CheckExact(value)) return unfit(std::optional<int64_t>());
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
  if (!overflow) return int64_t(number);
  const unsigned long long large = overflow > 0 ? PyLong_AsUnsignedLongLong(value) : 0;
  if (overflow > 0 && !PyErr_Occurred()) return int64_t(large);
  PyErr_Clear();
  return unfit(std::optional<int64_t>());
}

std::vector<int64_t> PythonArguments::integers() {
  PyObject* value = next();
  const bool is_list = PyList_CheckExact(value);
  if (!is_list && !PyTuple_CheckExact(value)) return unfit(std::vector<int64_t>());
  const Py_ssize_t size = is_list ? PyList_GET_SIZE(value) : PyTuple_GET_SIZE(value);
  std::vector<int64_t> result;
  for (Py_ssize_t i = 0; i < size; ++i) {
    PyObject* item = is_list ? PyList_GET_ITEM(value, i) : PyTuple_GET_ITEM(value, i);
    PythonArguments one(&item, 1);
    result.push_back(one.integer());
    fits_ &= one.fits_;
  }
  return result;
}

std::string_view PythonArguments::text() {
  PyObject* value = next();
  if (!PyUnicode_CheckExact(value)) return unfit(std::string_view());
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(value, &size);
  if (text) return {text, size_t(size)};
  PyErr_Clear();
  return unfit(std::string_view());
}

std::vector<at::Tensor> PythonArguments::tensors() {
  PyObject* value = next();
  const bool is_list = PyList_CheckExact(value);
  if (!is_list && !PyTuple_CheckExact(value)) return unfit(std::vector<at::Tensor>());
  const Py_ssize_t size = is_list ? PyList_GET_SIZE(value) : PyTuple_GET_SIZE(value);
  std::vector<at::Tensor> result;
  for (Py_ssize_t i = 0; i < size; ++i) {
    const at::Tensor* t = plain_tensor(is_list ? PyList_GET_ITEM(value, i) : PyTuple_GET_ITEM(value, i));
    if (!t || !is_supported(t->scalar_type())) return unfit(std::vector<at::Tensor>());
    result.push_back(*t);
  }
  return result;
}

Activation PythonArguments::activation() {
  const int index = find_activation(text());
  PyObject* parameters = next();
  Activation act{std::max(index, 0), {}};
  const auto& info = act.info();
  if (index < 0 || (parameters != Py_None && !PyDict_CheckExact(parameters))) return unfit(act);
  Py_ssize_t given = 0;
  for (int i = 0; i < info.parameter_count(); ++i) {
    act.parameters[i] = info.parameters[i].value;
    PyObject* value = parameters == Py_None ? nullptr : PyDict_GetItemString(parameters, info.parameters[i].name);
    if (!value) continue;
    PythonArguments one(&value, 1);
    act.parameters[i] = one.number();
    fits_ &= one.fits_;
    ++given;
  }
  if (parameters != Py_None && given != PyDict_GET_SIZE(parameters)) fits_ = false;
  return act;
}

Activation PythonArguments::activation_of(std::string_view name) {
  const int index = find_activation(name);
  Activation act{std::max(index, 0), {}};
  const int parameters = act.info().parameter_count();
  if (index < 0 || count_ - next_ != parameters) return unfit(act);
  for (int i = 0; i < parameters; ++i) act.parameters[i] = number();
  return act;
}

bool PythonArguments::fit() const {
  return fits_ && next_ == count_ && !at::impl::torch_function_mode_enabled() && !in_transform();
}

}  // namespace fusedtricks
