"""The installed package: what import loads and refuses, the command line, and what is shipped."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fusedtricks
from fusedtricks import __main__, _build_info, _load, self_check

ROOT = Path(__file__).parent.parent
PACKAGE = Path(fusedtricks.__file__).parent
BUILT = [name.removeprefix("cpu_") for name in _build_info.backends if name.startswith("cpu_")]


def python(*arguments, cwd, **environment):
    """Runs this interpreter in a folder where it cannot import the checkout's package by accident."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


def last_line(process):
    return process.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("capability", "built", "chosen"),
    [
        ("DEFAULT", ["default", "avx2", "avx512"], "default"),
        ("AVX2", ["default", "avx2", "avx512"], "avx2"),
        ("AVX512", ["default", "avx2", "avx512"], "avx512"),
        ("AVX512", ["default", "avx2"], "avx2"),
        ("AVX512", ["avx512", "default"], "avx512"),
        ("AVX2", ["default", "avx512"], "default"),
        ("AVX512_VNNI", ["default", "avx2", "avx512"], "avx512"),
        ("SVE256", ["default"], "default"),
        ("NO AVX", ["default", "avx2", "avx512"], "default"),
    ],
)
def test_choose_instruction_set(capability, built, chosen):
    assert _load.choose_instruction_set(capability, ["default", "avx2", "avx512"], built) == chosen


@pytest.mark.parametrize("isa", BUILT)
def test_forced_instruction_set_answers_alone(isa, tmp_path):
    known = _build_info.instruction_sets
    best = _load.choose_instruction_set(_load.cpu_capability(known), known, BUILT)
    if known.index(isa) > known.index(best):
        pytest.skip(f"this machine, or ATEN_CPU_CAPABILITY, goes no further than {best}")
    code = (
        "import fusedtricks, re, torch\n"
        "print(torch.ops.fusedtricks.cpu_capability())\n"
        "print(*sorted(set(re.findall(r'/_cpu_(\\w+)\\.so', open('/proc/self/maps').read()))))"
    )
    process = python("-c", code, cwd=tmp_path, ATEN_CPU_CAPABILITY=isa)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == [isa, isa]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_openmp_runtime_in_the_process(tmp_path):
    """Runs in its own process, because scikit-learn, which other tests import, loads a second runtime."""
    process = python("-c", "import fusedtricks.info as i; print(len(i.openmp_runtimes()))", cwd=tmp_path)
    assert process.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("built", "running", "accepted"),
    [
        (("2.13.0+cpu", None), ("2.13.0", None), True),
        (("2.13.0", None), ("2.13.1", None), True),
        (("2.13.0", None), ("2.14.0", None), False),
        (("2.13.0", None), ("2.1.0", None), False),
        (("2.13.0", None), ("2.13.0", "13.0"), False),
        (("2.13.0+cu130", "13.0"), ("2.13.0+cu126", "12.6"), False),
        (("2.14.0a0+git111", None), ("2.14.0a0+git222", None), False),
        (("2.14.0.dev20261101", None), ("2.14.0.dev20261102", None), False),
    ],
)
def test_which_torch_is_accepted(built, running, accepted, monkeypatch):
    monkeypatch.setattr(torch, "__version__", running[0])
    monkeypatch.setattr(torch.version, "cuda", running[1])
    build_info = SimpleNamespace(torch=built[0], cuda=built[1])
    if accepted:
        _load.check_torch(build_info)
    else:
        with pytest.raises(ImportError, match=r"^fusedtricks was built for torch .* \(`pip install \.`\)"):
            _load.check_torch(build_info)


def test_import_refuses_another_torch(tmp_path):
    code = (
        "import sys, types\n"
        "build_info = types.SimpleNamespace(torch='1.0.0', cuda=None)\n"
        "sys.modules['fusedtricks._build_info'] = build_info\n"
        "import fusedtricks"
    )
    process = python("-c", code, cwd=tmp_path)
    assert process.returncode == 1
    assert last_line(process).startswith("ImportError: fusedtricks was built for torch 1.0.0 (no CUDA) and cannot")


@pytest.mark.parametrize("build_info", [False, True], ids=["nothing built", "built for another Python"])
def test_import_without_libraries_says_what_to_do(build_info, tmp_path):
    leave_out = ["*.so", "__pycache__"] + ([] if build_info else ["_build_info.py"])
    shutil.copytree(PACKAGE, tmp_path / "fusedtricks", ignore=shutil.ignore_patterns(*leave_out))
    process = python("-m", "fusedtricks", "info", cwd=tmp_path)
    assert process.returncode == 1
    assert "ImportError: fusedtricks has no compiled libraries" in last_line(process)
    assert "`pip install -e .`" in last_line(process)


def test_import_brings_in_nothing_but_torch(tmp_path):
    code = (
        "import sys, torch\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        "import fusedtricks\n"
        "after = {name.partition('.')[0] for name in sys.modules}\n"
        "print(*sorted(after - before - sys.stdlib_module_names))"
    )
    process = python("-c", code, cwd=tmp_path)
    added = [name for name in process.stdout.split() if not name.startswith("__editable__")]
    assert added == ["fusedtricks"], process.stderr


def test_info(tmp_path):
    process = python("-m", "fusedtricks", "info", cwd=tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    facts = dict(re.findall(r"^(\S+(?: \S+)*?)  +(.*)$", process.stdout, re.MULTILINE))
    assert facts["fusedtricks"].startswith(fusedtricks.__version__)
    assert facts["torch"].startswith(torch.__version__)
    assert facts["instruction set"].endswith(f"(built: {', '.join(BUILT)})")
    assert facts["threads"].isdigit()
    assert {"OpenMP", "CUDA architectures", "backends built"} <= facts.keys()
    assert all(reason in process.stdout for reason in _build_info.left_out.values())
    for check in self_check.CHECKS:
        assert re.search(rf"^self-check +cpu +{check} +ok", process.stdout, re.MULTILINE)


@pytest.mark.parametrize("error", [1.0, float("nan")])
def test_info_fails_where_a_self_check_does(error, monkeypatch, capsys):
    monkeypatch.setitem(self_check.CHECKS, "dropout", lambda device: error)
    assert __main__.main(["info"]) == 1
    assert re.search("cpu +dropout +FAILED", capsys.readouterr().out)


def test_self_check_reports_an_exception(monkeypatch, capsys):
    monkeypatch.setitem(self_check.CHECKS, "dropout", lambda device: 1 / 0)
    assert __main__.main(["info"]) == 1
    assert "FAILED: ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["info", "--unknown"]])
def test_command_line_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as refusal:
        __main__.main(arguments)
    assert refusal.value.code == 2
    assert "usage: fusedtricks" in capsys.readouterr().err


def test_keep_freed_memory_saves_page_faults(tmp_path):
    code = (
        "import resource, torch, fusedtricks\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.empty(1 << 26, dtype=torch.uint8).zero_()\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "default = [faults() for _ in range(3)][-1]\n"
        "taken = fusedtricks.keep_freed_memory()\n"
        "kept = [faults() for _ in range(20)][-1]\n"
        "print(taken, default, kept)"
    )
    process = python("-c", code, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    taken, default, kept = process.stdout.split()
    if taken == "False":
        pytest.skip("the C library refuses")
    assert int(kept) < int(default) / 10


@pytest.mark.parametrize("threshold", [0, -1, 2**31])
def test_keep_freed_memory_refuses_what_an_int_does_not_hold(threshold):
    with pytest.raises(ValueError, match="threshold_bytes"):
        fusedtricks.keep_freed_memory(threshold)


def test_requires_the_torch_built_for_and_no_other():
    requirements = importlib.metadata.requires("fusedtricks")
    release = ".".join(torch.__version__.split(".")[:2])
    assert [line for line in requirements if re.match(r"torch\b", line)] == [f"torch=={release}.*"]


def test_version_is_the_installed_one():
    assert fusedtricks.__version__ == importlib.metadata.version("fusedtricks")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("sdist")
    code = "import sys; sys.path.insert(0, '.build_backend'); import backend; backend.build_sdist(sys.argv[1])"
    process = python("-c", code, folder, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    return next(folder.glob("*.tar.gz"))


def test_sdist_holds_the_sources_and_nothing_built(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = [
        path for folder in ("csrc", ".build_backend", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.*")
    ]
    expected = {path.relative_to(ROOT).as_posix() for path in sources if path.suffix not in (".pyc", "")}
    assert expected | {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", "_build_info.py"))]


@pytest.fixture
def cuda_build(monkeypatch):
    """The module `.build_backend/cuda.py`; each test sets what it would find on the machine."""
    monkeypatch.delenv("FUSEDTRICKS_CUDA", raising=False)
    monkeypatch.setenv("CUDA_HOME", os.environ.get("CUDA_HOME", ""))  # importing the module may change it
    spec = importlib.util.spec_from_file_location("cuda_build", ROOT / ".build_backend" / "cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("torch_cuda", "toolkit", "named"),
    [
        (None, "12.4", ["not a CUDA build"]),
        ("13.0", None, ["nvcc", "cuda_runtime.h", "CUDA 13", "CUDA_HOME"]),
        ("13.0", "12.4", ["release 12.4", "13.0", "CUDA 13", "CUDA_HOME"]),
        ("12.8", "12.4", []),
    ],
)
def test_why_cuda_is_left_out(cuda_build, monkeypatch, torch_cuda, toolkit, named):
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(cuda_build, "TOOLKIT", toolkit and Path("toolkit"))
    monkeypatch.setattr(cuda_build, "_ask_nvcc", lambda question: f"Cuda compilation tools, release {toolkit}, V1")
    monkeypatch.setattr(cuda_build, "_architectures", lambda: ["9.0+PTX"])
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")  # the build sets it
    obstacle = cuda_build.Cuda(["a.cu"]).obstacle
    assert [word for word in named if word not in obstacle] == []
    assert bool(obstacle) == bool(named)
    if obstacle:
        monkeypatch.setenv("FUSEDTRICKS_CUDA", "1")
        with pytest.raises(SystemExit, match=re.escape(obstacle)):
            cuda_build.Cuda(["a.cu"])


@pytest.mark.slow
def test_install_from_sdist_beside_this_torch(sdist, tmp_path):
    """An isolated build in a fresh environment finds the installed torch, and the result runs."""
    assert python("-m", "venv", tmp_path / "venv", cwd=tmp_path).returncode == 0
    interpreter = tmp_path / "venv" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_PRELOAD")}
    environment["FUSEDTRICKS_INSTRUCTION_SETS"] = "default"

    def run(*arguments):
        command = [interpreter, *arguments]
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    site = Path(run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "torch_of_the_tests.pth").write_text(str(Path(torch.__file__).parent.parent))
    run("-m", "pip", "install", "--no-deps", str(sdist))
    found = run("-c", "import fusedtricks, torch; print(fusedtricks.__file__, torch.__file__)").split()
    assert Path(found[0]).is_relative_to(site)
    assert found[1] == torch.__file__
    assert "FAILED" not in run("-m", "fusedtricks", "info")


def test_no_package_index_is_named():
    files = [ROOT / name for name in ("pyproject.toml", "setup.py", "MANIFEST.in", ".pre-commit-config.yaml")]
    files += [path for folder in (".build_backend", ".ci") for path in (ROOT / folder).glob("*") if path.is_file()]
    named = [path.name for path in files if re.search(r"index-url|find-links|https?://", path.read_text())]
    assert not named
