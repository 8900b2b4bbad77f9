// The hooks that keep what is saved for a backward while a thread is recomputing, as functions of the module.
#include <torch/csrc/python_headers.h>
//
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include "ops/python.h"
#include "ops/recompute.h"

namespace fusedtricks {
namespace {

constexpr const char* kName = "fusedtricks.SavedTensor";

void free_saved(PyObject* capsule) { delete static_cast<SavedTensor*>(PyCapsule_GetPointer(capsule, kName)); }

const SavedTensor& saved_in(PyObject* capsule) {
  const void* saved = PyCapsule_GetPointer(capsule, kName);
  if (!saved) throw python_error();
  return *static_cast<const SavedTensor*>(saved);
}

// save_tensor(tensor): what is saved of it for a backward, an opaque object.
PyObject* python_save_tensor(PythonArguments& arguments) {
  auto saved = std::make_unique<SavedTensor>(THPVariable_Unpack(arguments.object()));
  PyObject* capsule = PyCapsule_New(saved.get(), kName, free_saved);
  if (!capsule) throw python_error();
  saved.release();
  return capsule;
}

// load_tensor(saved): the tensor.
PyObject* python_load_tensor(PythonArguments& arguments) {
  const SavedTensor& saved = saved_in(arguments.object());
  Tensor t;
  {
    const WithoutGil released;
    t = saved.get();
  }
  return to_python(std::move(t));
}

// describe_saved(saved): whether it is a recipe, and why it is not.
PyObject* python_describe_saved(PythonArguments& arguments) {
  const SavedTensor& saved = saved_in(arguments.object());
  return Py_BuildValue("(Os)", saved.is_recipe() ? Py_True : Py_False, saved.reason().c_str());
}

// kept_for(saved): the tensors that are kept for it, as a list: itself, or all that it is computed from.
PyObject* python_kept_for(PythonArguments& arguments) {
  Tensors tensors = saved_in(arguments.object()).kept_tensors();
  PyObject* list = PyList_New(Py_ssize_t(tensors.size()));
  if (!list) throw python_error();
  for (size_t i = 0; i < tensors.size(); ++i) {
    PyList_SET_ITEM(list, Py_ssize_t(i), to_python(std::move(tensors[i])));
  }
  return list;
}

// may_recompute(): whether nobody else's hooks keep what this thread saves.
PyObject* python_may_recompute(PythonArguments&) { return PyBool_FromLong(Recomputing::is_possible()); }

// begin_recomputing(max_joints), with these hooks just pushed; end_recomputing() when they have been popped.
PyObject* python_begin_recomputing(PythonArguments& arguments) {
  Recomputing::enter(int(arguments.integer()));
  return nullptr;
}
PyObject* python_end_recomputing(PythonArguments&) {
  Recomputing::exit();
  return nullptr;
}

const PythonFunction functions[] = {PythonFunction::of<python_save_tensor>("save_tensor"),
                                    PythonFunction::of<python_load_tensor>("load_tensor"),
                                    PythonFunction::of<python_describe_saved>("describe_saved"),
                                    PythonFunction::of<python_kept_for>("kept_for"),
                                    PythonFunction::of<python_may_recompute>("may_recompute"),
                                    PythonFunction::of<python_begin_recomputing>("begin_recomputing"),
                                    PythonFunction::of<python_end_recomputing>("end_recomputing")};

}  // namespace
}  // namespace fusedtricks
