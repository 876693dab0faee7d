"""The benchmark suite covers every public function, the gate sees a slowdown, and the pages show the figures."""

import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest

import nbbce
from nbbce import _bench_cuda, _devices

ROOT = Path(__file__).parents[1]
SUITE = ROOT / "asv_benchmarks"
sys.path.append(str(SUITE))

from benchmarks import accuracy, calls, common, floor, machine_code, rivals  # noqa: E402


@pytest.fixture
def called(monkeypatch, restored_threads):
    """The names of the public functions that were called, and the dtypes of what they were given."""
    seen = []
    for name in nbbce.__all__:
        function = getattr(nbbce, name)

        def record(x, y, *arguments, name=name, function=function, **options):
            seen.append((name, options.get("reduction"), x.dtype.name, y.dtype.name))
            return function(x, y, *arguments, **options)

        monkeypatch.setattr(nbbce, name, record)
    # Large enough to be told apart from nothing, and quick.
    monkeypatch.setattr(common, "SIZES", dict.fromkeys(common.SIZES, 1000))
    monkeypatch.setattr(floor, "SIZES", common.SIZES)
    monkeypatch.setattr(floor, "SECONDS", 0)
    return seen


def test_every_public_function_has_its_benchmarks():
    assert sorted(common.FUNCTIONS) == sorted(nbbce.__all__)
    for benchmark in (calls.Calls, calls.CudaCalls, floor.Floor, floor.CudaFloor, accuracy.Accuracy):
        assert common.FUNCTIONS in benchmark.params, benchmark


@pytest.mark.parametrize("reduction", common.REDUCTIONS)
@pytest.mark.parametrize("function", common.FUNCTIONS)
def test_a_timing_calls_the_function_that_it_is_named_after(function, reduction, called):
    benchmark, cell = calls.Calls(), ("cpu", function, reduction, "float64", "bool", "cache", "one")
    benchmark.setup(*cell)
    called.clear()
    benchmark.time_call(*cell)
    assert called == [(function, reduction, "float64", "bool")]


@pytest.mark.parametrize("function", common.FUNCTIONS)
def test_a_fraction_of_the_floor_is_of_the_function_that_it_is_named_after(function, called):
    benchmark, cell = floor.Floor(), ("cpu", function, "mean", "float32", "soft")
    benchmark.setup(*cell)
    assert benchmark.track_fraction(*cell) > 0
    assert set(called) == {(function, "mean", "float32", "float32")}


class Device:
    """A device on which a copy of a byte takes a second, and nbbce as long as `call_seconds` says."""

    waited, call_seconds = 0, 4.0

    def wait(self):
        self.waited += 1

    def copy(self, nbytes):
        self.copied = nbytes

    def medians(self, works, turns):
        for work in works:
            work()
        return [float(self.copied), self.call_seconds]


@pytest.fixture
def device(monkeypatch):
    """A device whose arrays are those of NumPy."""
    device = Device()
    for module in (calls, floor, rivals):
        monkeypatch.setattr(module, "first_device", lambda largest=0: device)
    library = _bench_cuda.Library("numpy", lambda array: array, np.empty_like)
    monkeypatch.setattr(_bench_cuda, "library", lambda: library)
    return device


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("function", common.FUNCTIONS)
def test_a_call_on_a_device_is_timed_until_it_is_done(function, reduction, called, device):
    benchmark, cell = calls.CudaCalls(), ("cuda", function, reduction, "float16", "soft", "small", "all")
    benchmark.setup(*cell)
    called.clear()
    waited = device.waited
    benchmark.time_call(*cell)
    assert called == [(function, reduction, "float16", "float16")]
    assert device.waited == waited + 1


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("function", common.FUNCTIONS)
def test_a_floor_on_a_device_is_a_copy_of_the_bytes_of_inputs_and_results(function, reduction, called, device):
    benchmark, cell = floor.CudaFloor(), ("cuda", function, reduction, "float64", "0/1")
    benchmark.setup(*cell)
    results = 2 if "hess" in function else 1 if "grad" in function else 0
    results += reduction == "none" and not function.endswith(("entropy_grad", "logits_grad", "hess"))
    assert benchmark.track_fraction(*cell) == (2 + results) * 8 * 1000 / 4.0
    assert called == [(function, reduction, "float64", "float64")]


@pytest.mark.parametrize(
    ("benchmark", "cell"),
    [
        (calls.CudaCalls, ("cuda", "binary_cross_entropy", "mean", "float32", "0/1", "small", "all")),
        (floor.CudaFloor, ("cuda", "binary_cross_entropy", "mean", "float32", "0/1")),
        (rivals.CudaRivals, ("CuPy", rivals.VALUE, "0/1", "small")),
    ],
)
def test_without_a_device_its_benchmarks_are_skipped(benchmark, cell, monkeypatch):
    monkeypatch.setattr(_devices, "found", lambda: _devices.Found(None, None, (), "none found: no driver"))
    with pytest.raises(NotImplementedError, match="none found: no driver"):
        benchmark().setup(*cell)


@pytest.mark.parametrize("function", common.FUNCTIONS)
def test_an_error_in_ulp_is_that_of_the_function_that_it_is_named_after(function, called):
    benchmark, cell = accuracy.Accuracy(), ("cpu", function, "float32")
    benchmark.setup(*cell)
    assert benchmark.track_ulps(*cell) <= 3
    assert called == [(function, "none", "float32", "float32")]


def test_an_error_in_ulp_sees_a_wrong_result(monkeypatch):
    right = nbbce.binary_cross_entropy
    monkeypatch.setattr(nbbce, "binary_cross_entropy", lambda *a, **k: right(*a, **k) * np.float32(1 + 1e-5))
    benchmark, cell = accuracy.Accuracy(), ("cpu", "binary_cross_entropy", "float32")
    benchmark.setup(*cell)
    assert benchmark.track_ulps(*cell) > 50


def test_a_commit_without_a_function_skips_its_benchmarks(monkeypatch):
    monkeypatch.delattr(nbbce, "sigmoid_focal_loss")
    with pytest.raises(NotImplementedError, match="this nbbce has no sigmoid_focal_loss"):
        calls.Calls().setup("cpu", "sigmoid_focal_loss", "mean", "float32", "0/1", "small", "one")


@pytest.mark.parametrize("loop", machine_code.LOOPS)
def test_bytes_of_a_loop_are_counted(loop):
    benchmark = machine_code.SumLoops()
    benchmark.setup("cpu", loop)
    assert 1000 < benchmark.track_bytes("cpu", loop) < 50_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counted by ptrace, as Linux has it")
def test_instructions_of_a_loop_are_counted():
    @numba.cfunc("float64(int64, int64, int64, float64, int64, int64, int64)")
    def multiply(x, y, w, scale, out, count, scratch):
        total = 1.0
        for _ in range(count):
            total *= 1.0 + total  # one of each an element, which depend on each other: no vector can hold them
        return total

    function = ctypes.CFUNCTYPE(ctypes.c_double, *machine_code.PARAMETERS)(multiply.address)
    short, long = (machine_code.steps(function, (0, 0, 0, 3.0, 0, count, 0)) for count in (1000, 5000))
    # Addition, multiplication, and at most a counter, a comparison and a jump.
    assert 1.8 <= (long - short) / 4000 <= 5.2


needs_disassembler = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None or importlib.util.find_spec("nvidia") is None,
    reason="needs numba-cuda and nvidia-cuda-nvdisasm",
)


@needs_disassembler
def test_kernels_of_devices_are_known_by_their_names():
    for kernel in machine_code.KERNELS:
        machine_code.DeviceKernels().setup("cuda", kernel)


@needs_disassembler
def test_instructions_of_a_kernel_of_a_device_are_counted():
    benchmark, cell = machine_code.DeviceKernels(), ("cuda", "none, float32")
    benchmark.setup(*cell)
    # A logarithm of 8 terms and its surroundings take more than 20, and hard labels or soft fewer than 100.
    assert 20 < benchmark.track_sass(*cell) < 100


@needs_disassembler
def test_without_a_disassembler_its_instructions_are_skipped(monkeypatch):
    benchmark, cell = machine_code.DeviceKernels(), ("cuda", "none, float32")
    benchmark.setup(*cell)

    def missing():
        raise FileNotFoundError("nvdisasm: install nvidia-cuda-nvdisasm")

    monkeypatch.setattr(benchmark.sass, "nvdisasm", missing)
    with pytest.raises(NotImplementedError, match="install nvidia-cuda-nvdisasm"):
        machine_code.DeviceKernels().setup(*cell)


@pytest.mark.parametrize("work", rivals.FUNCTIONS)
def test_nbbce_and_numpy_do_the_same_work(work, restored_threads):
    x, y = common.arrays(rivals.FUNCTIONS[work], "float64", "soft", 1000)
    ours, theirs = (rivals.LIBRARIES[library](work, x, y)() for library in ("nbbce", "NumPy"))
    for a, b in [(ours, theirs)] if work == rivals.VALUE else zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("work", rivals.FUNCTIONS)
def test_cupy_does_the_same_work_as_numpy_on_arrays_of_its_own(work, monkeypatch):
    class Own(np.ndarray):
        """Stands for an array of CuPy."""

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(asarray=lambda array: array.view(Own)))
    x, y = common.arrays(rivals.FUNCTIONS[work], "float64", "soft", 1000)
    ours, theirs = (by(work, x, y)() for by in (rivals.by_cupy, rivals.by_numpy))
    for a, b in [(ours, theirs)] if work == rivals.VALUE else zip(ours, theirs, strict=True):
        assert work == rivals.VALUE or np.ndim(a) == 0 or isinstance(a, Own)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("work", rivals.FUNCTIONS)
def test_a_rival_on_a_device_is_timed_until_it_is_done(work, called, device):
    benchmark, cell = rivals.CudaRivals(), ("nbbce", work, "0/1", "small")
    benchmark.setup(*cell)
    called.clear()
    waited = device.waited
    benchmark.time_call(*cell)
    assert [name for name, *_ in called] == [rivals.FUNCTIONS[work]]
    assert device.waited == waited + 1


def test_a_library_that_is_not_installed_is_skipped_on_a_device(device, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(NotImplementedError, match="cupy"):
        rivals.CudaRivals().setup("CuPy", rivals.VALUE, "0/1", "small")


# --- The gate and the pages, which are about commits ----------------------------------------------------------------

needs_history = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs git and this project's history"
)


def git(folder, *arguments):
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


FOUR_TIMES = """

_once = binary_cross_entropy


def binary_cross_entropy(*arguments, **options):
    return [_once(*arguments, **options) for _ in range(4)][0]
"""


@pytest.fixture(scope="module")
def slower_clone(tmp_path_factory):
    """A clone of this repository whose last commit runs each call of `binary_cross_entropy` four times.

    Twice would not do: the time of one call differs by half from process to process, as its memory lies in the cache.
    """
    folder = tmp_path_factory.mktemp("clone") / "nbbce"
    git(ROOT, "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder))
    shutil.rmtree(folder / "asv_benchmarks")
    shutil.copytree(SUITE, folder / "asv_benchmarks", ignore=shutil.ignore_patterns(".asv", "results", "__pycache__"))
    file = folder / "nbbce" / "functional.py"
    file.write_text(file.read_text(encoding="utf-8") + FOUR_TIMES, encoding="utf-8")
    git(folder, "commit", "--quiet", "--message", "Run it four times", "nbbce/functional.py")
    return folder


def compared(clone, base, head):
    """The gate's exit status and what it prints, of one call whose loop takes most of the time."""
    cell = "^binary_cross_entropy mean float32 soft cache one$"
    command = [sys.executable, "asv_benchmarks/compare.py", base, head, "--factor", "1.5", "--cells", cell]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    return done.returncode, done.stdout


@needs_history
def test_the_gate_sees_a_call_that_takes_four_times_as_long(slower_clone):
    status, printed = compared(slower_clone, "HEAD~1", "HEAD")
    assert status == 1, printed
    assert "1 of 1 calls take more than 1.5 times as long as in HEAD~1" in printed


@needs_history
def test_the_gate_lets_an_unchanged_commit_pass(slower_clone):
    status, printed = compared(slower_clone, "HEAD", "HEAD")
    assert status == 0, printed
    assert "0 of 1 calls take more than 1.5 times as long as in HEAD" in printed


# asv's pages take these from elsewhere; here they come from packages, so that the browser asks this machine alone.
SCRIPTS = {
    "jquery-3.3.1.min.js": "jquery/dist/jquery.min.js",
    "jquery.flot.min.js": "flot/jquery.flot.js",
    "jquery.flot.time.min.js": "flot/jquery.flot.time.js",
    "jquery.flot.selection.min.js": "flot/jquery.flot.selection.js",
    "jquery.flot.categories.min.js": "flot/jquery.flot.categories.js",
    "jquery.flot.orderBars.js": "flot-orderbars/js/jquery.flot.orderBars.js",
    "stupidtable.min.js": "stupid-table-plugin/stupidtable.min.js",
    "md5.min.js": "blueimp-md5/js/md5.min.js",
    "bootstrap.min.js": "bootstrap/dist/js/bootstrap.min.js",
    "bootstrap.min.css": "bootstrap/dist/css/bootstrap.min.css",
}
PACKAGES = "jquery@3.3.1 flot@0.8 flot-orderbars@1.0.0 stupid-table-plugin@1 blueimp-md5@2.19.0 bootstrap@3.1.1"


def with_own_scripts(folder):
    """Let the pages in `folder` take their scripts from there."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which gets the scripts of the pages")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", ".", *PACKAGES.split()]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"npm cannot get the scripts of the pages: {done.stderr.strip()[-200:]}")
    index = folder / "index.html"
    own = re.sub(
        r'(<script src|<link [^>]*href)="https://[^"]*/([^"/]+)"[^>]*>',
        lambda match: f'{match[1]}="node_modules/{SCRIPTS[match[2]]}">',
        index.read_text(encoding="utf-8"),
    )
    index.write_text(own, encoding="utf-8")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The address of the pages of the figures in `asv_benchmarks/results`, served from this machine."""
    folder = tmp_path_factory.mktemp("pages")
    if importlib.util.find_spec("asv") is None:
        pytest.skip("asv is not installed")
    publish = [sys.executable, "-m", "asv", "publish", "--no-pull", "--html-dir", str(folder)]
    done = subprocess.run(publish, cwd=SUITE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    with_own_scripts(folder)
    serve = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        # Serving HTTP on 127.0.0.1 port 43211 (http://127.0.0.1:43211/) ...
        yield server.stdout.readline().split("(")[1].split(")")[0]
        server.terminate()


def shown(address, folder):
    """The page as a browser shows it, and what its scripts complain of."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("Chromium is not installed")
    options = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    options += f" disable-component-update disable-sync user-data-dir={folder} enable-logging=stderr"
    options += " window-size=1400,1000 virtual-time-budget=20000 dump-dom"
    command = [browser, *(f"--{option}" for option in options.split()), address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, [line for line in said if "Uncaught" in line or "rror" in line or "Failed" in line]


@needs_history
def test_the_published_pages_list_the_benchmarks(pages, tmp_path):
    page, errors = shown(pages, tmp_path)
    assert errors == []
    for benchmark in ("Calls.time_call", "Floor.track_fraction", "SumLoops.track_bytes", "Import.timeraw_import"):
        assert f">{benchmark}<" in page


@needs_history
@pytest.mark.parametrize("benchmark", ["floor.Floor.track_fraction", "machine_code.SumLoops.track_bytes"])
def test_the_published_pages_draw_a_graph(benchmark, pages, tmp_path):
    page, errors = shown(f"{pages}#{benchmark}", tmp_path)
    assert errors == []
    assert 'class="flot-base"' in page
    assert page.count("flot-tick-label") >= 5
    assert re.search(r'id="error-message">\s*</div>', page)


def test_the_kept_figures_are_of_five_commits_or_more():
    assert len(list((SUITE / "results" / "benchmark machine").glob("*-*.json"))) >= 5
