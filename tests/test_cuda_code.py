"""Device kernels without a device: compiled for every architecture, taken apart and counted; and kept on disk.

Needs numba-cuda with the compiler of its toolkit, and nvdisasm: the extra `test` has them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import device_code
import pytest
from device_code import ARCHITECTURES, EVERYWHERE, Code, loaded, loops_of, name_of, opcodes, without_environments

PACKAGE = Path(__file__).resolve().parents[1] / "nbbce"


def _missing():
    packages = ("numba_cuda", "array_api_compat", "cuda")
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    try:
        device_code.sass.nvdisasm()
    except FileNotFoundError:
        absent.append("nvdisasm")
    return absent


MISSING = _missing()
NAMES = () if MISSING else tuple(device_code.specs())
KEYS = () if MISSING else tuple(device_code.keys())
needs_compiler = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def of(keys):
    """A test for each of some kernels."""
    ids = [f"{name}, sm_{major}{minor}" for name, (major, minor) in keys]
    return pytest.mark.parametrize("key", list(keys), ids=ids)


def those(begin="", *without, everywhere=True):
    """Keys of the kernels whose name begins so and holds none of some words."""
    found = [key for key in KEYS if key[0].startswith(begin) and not any(word in key[0] for word in without)]
    return found if everywhere else [key for key in found if key[1] == (9, 0)]


@pytest.fixture(scope="module")
def codes() -> dict[tuple[str, tuple[int, int]], Code]:
    """Every kernel, compiled by as many processes as there are processors."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        return dict(zip(KEYS, pool.map(device_code.compiled, KEYS), strict=True))


@pytest.fixture
def code(codes, key):
    return codes[key]


# --------------------------------------------------------------------------------------------------- what is in it
@of(KEYS)
@needs_compiler
def test_kernel_calls_no_function_and_has_no_local_memory(code):
    assert not re.search(r"\bcall\b", code.ptx)
    assert not re.search(r"\.local\b|__local_depot|\.func\b", code.ptx)
    assert code.frame == 0
    assert not {"LDL", "STL"} & set(opcodes(code.instructions))


@of(KEYS)
@needs_compiler
def test_every_access_knows_whether_memory_is_shared(code, key):
    # A generic one, LD or ST, finds out where it goes.
    names = set(opcodes(code.instructions))
    assert not {"LD", "ST"} & names
    assert "LDG" in names
    assert bool({"LDS", "STS"} & names) == key[0].startswith(("sum", "count", "rows", "columns"))


@of(those("rows"))
@needs_compiler
def test_warps_that_take_rows_do_not_wait_for_others(code):
    # Those of a thread block may have different numbers of blocks to take.
    assert "BAR" not in opcodes(code.instructions)
    assert "bar.warp.sync" in code.ptx


@of(KEYS)
@needs_compiler
def test_every_operation_is_rounded_to_nearest_once(code, key):
    rounding = re.compile(r"\b(?:add|sub|mul|mad|fma|div|rcp|sqrt|ex2|lg2|sin|cos|tanh)\.[\w.]*f(?:32|64)\b")
    assert rounding.findall("mul.f32 a; add.rn.f64 b; selp.f32 c;") == ["mul.f32", "add.rn.f64"]
    found = set(rounding.findall(code.ptx))
    assert found or key[0].startswith("check")
    # Of 16 bits alone a sum takes the device's own logarithm.
    quick = {"lg2.approx.f32"} if re.search("sum: b?float16", key[0]) else set()
    assert {operation for operation in found if ".rn." not in operation or ".ftz" in operation} == quick


@of(KEYS)
@needs_compiler
def test_kernel_is_compiled_with_its_bound_of_threads(code):
    from nbbce import _compile_cuda, _elements_cuda

    assert re.search(rf"\.maxntid {_elements_cuda.THREADS}\b", code.ptx)
    (blocks,) = map(int, re.findall(r"\.minnctapersm (\d+)", code.ptx))
    assert _compile_cuda.FEWEST_BLOCKS <= blocks <= _compile_cuda.BLOCKS_OF_EACH


# Registers of a thread that kernels may have, by the first words of a name: so that blocks of 128 threads run at once
# on a multiprocessor, of whose 65536 registers a thread has a multiple of eight.
REGISTERS = {
    "each: ": 72,  # seven blocks
    "sum: logits": 168,  # three; sm_90 and sm_120 do with four for float32
    "sum: float64": 144,
    "sum: focal": 144,
    "sum and gradient: logits": 168,
    "sum and gradient": 128,  # four
    "sum": 96,  # five
    "columns: float32": 144,  # sm_100 needs them
    "columns: float64": 128,
    "columns": 96,
    "rows": 96,
    "segments": 72,
    "count": 72,
    "check": 48,  # ten
}


@of(KEYS)
@needs_compiler
def test_registers_let_enough_blocks_run_at_once(code, key):
    bound = next(bound for words, bound in REGISTERS.items() if key[0].startswith(words))
    assert 16 < code.registers <= bound


@of([key for key in those("each: ", "float64", "weight") if "hessian" not in key[0]])
@needs_compiler
def test_results_of_float32_are_computed_without_float64(code, key):
    wide = re.compile(r"^(D[A-Z]+\b|F2F\.\S*F64|[IF]2F\S*\.F64|F2D|I2D)")
    assert wide.match("F2F.F64.F32 R2, R4")
    assert wide.match("DFMA R2, R4, R6, R8")
    # A scale is taken apart before the loops.
    instructions = (
        [line for _, loop in loops_of(key[0], code) for line in loop] if "mean" in key[0] else code.instructions
    )
    assert instructions
    assert [line for line in map(name_of, instructions) if wide.match(line)] == []


@of([key for key in those("each: ", "misaligned", "strided", "uint8")])
@needs_compiler
def test_elements_are_read_and_written_16_bytes_at_a_time(code, key):
    found = loops_of(key[0], code)
    assert found
    for _, loop in found:
        assert set(loaded(loop)) == {16}
        stores = [name_of(line) for line in loop if name_of(line).startswith("STG")]
        assert stores
        assert all(".128" in store for store in stores)


@of(those("sum", "strided", "uint8", "mask"))
@needs_compiler
def test_a_loop_of_sums_reads_four_neighbours_at_a_time(code, key):
    operands = [m for m in device_code.specs()[key[0]].operands[:6] if m is not None]
    neighbours = {"float16": 8, "bfloat16": 8}.get(operands[0].kind, 16)
    assert any(set(loaded(loop)) == {neighbours} for _, loop in loops_of(key[0], code))


@of([key for key in KEYS if re.match("each: (loss|gradient), float32$|sum: (float32|bfloat16)$", key[0])])
@needs_compiler
def test_main_loop_of_losses_calls_nothing(code, key):
    _, loop = max(loops_of(key[0], code), key=lambda found: found[0])
    if "gradient" in key[0]:  # a division, whose rare cases are a subroutine
        return
    # A call of a label of the kernel itself is a jump; of others there is the name.
    assert [line for line in loop if "CALL" in line and "`(.L_x_" not in line] == []


# ------------------------------------------------------------------------------------------------------ how much it is
# Instructions of an element in each loop that computes losses or derivatives, in the order of their length: of products
# (labels 0/1), of four neighbours, of what is left; along axes a thread's elements are no neighbours, and products have
# loops of their own.  Measured by `python tests/device_code.py` with nvJitLink 13.5.
RECORDED = {
    "each: loss, float32": {
        "75": (54.2, 50.9),
        "80": (53.0, 50.4),
        "90": (52.2, 49.2),
        "100": (51.2, 49.2),
        "120": (51.2, 49.5),
    },
    "each: loss, float64": {
        "75": (132.5, 129.5),
        "80": (131.0, 127.8),
        "90": (163.0, 159.5),
        "100": (165.0, 162.2),
        "120": (140.5, 138.5),
    },
    "each: loss, float16": {"90": (45.1,)},
    "each: loss, bfloat16": {"75": (58.8,), "80": (52.2,), "90": (51.1,), "100": (52.5,), "120": (52.6,)},
    "each: loss, float32, labels of uint8": {"90": (48.5, 46.0)},
    "each: loss, float32, weight": {"90": (57.0, 53.0)},
    "each: loss, float32, misaligned": {"90": (59.0, 61.0)},
    "each: loss, float32, strided": {"90": (53.0, 123.5, 222.0)},
    "each: gradient, float32": {
        "75": (52.5, 51.6),
        "80": (52.8, 50.8),
        "90": (51.0, 49.6),
        "100": (52.2, 50.8),
        "120": (52.0, 50.9),
    },
    "each: gradient of a mean, float32": {"90": (51.5, 50.6)},
    "each: gradient, float64": {"90": (83.0, 79.2)},
    "each: loss and gradient, float32": {"90": (97.8, 96.1)},
    "each: loss of logits, float32": {"90": (57.2, 54.2)},
    "each: gradient of logits, float32": {"90": (77.0, 74.6)},
    "each: gradient and hessian of logits, float32": {"90": (110.2, 107.1)},
    "sum: float32": {
        "75": (12.0, 50.2),
        "80": (12.2, 49.8),
        "90": (14.6, 49.5),
        "100": (14.0, 49.4),
        "120": (13.4, 50.0),
    },
    "sum: float64": {
        "75": (18.6, 136.2),
        "80": (19.1, 134.4),
        "90": (20.4, 169.5),
        "100": (20.6, 171.6),
        "120": (17.4, 146.1),
    },
    "sum: float16": {"90": (18.2, 27.8)},
    "sum: bfloat16": {
        "75": (15.4, 30.2),
        "80": (15.8, 29.6),
        "90": (19.2, 29.8),
        "100": (18.9, 29.6),
        "120": (18.1, 29.8),
    },
    "sum: float32, labels of uint8": {"90": (15.5, 52.0)},
    "sum: float32, weight": {"90": (50.8,)},
    "sum: float32, mask": {"90": (16.1, 55.6)},
    "sum: float32, strided": {"90": (95.0, 193.6, 241.4)},
    "sum: float32, shares": {"90": (60.4,)},
    "sum: logits, float32": {
        "75": (39.1, 61.5),
        "80": (38.2, 62.4),
        "90": (38.8, 63.2),
        "100": (39.4, 64.9),
        "120": (37.2, 64.5),
    },
    "sum: logits, float64": {"90": (161.8,)},
    "sum: focal, float32": {"90": (207.5,)},
    "sum and gradient: float32": {"90": (86.0, 68.9, 106.1)},
    "sum and gradient: logits, float32": {"90": (74.3, 63.4, 86.6)},
    "rows: float32": {
        "75": (25.2, 25.8, 68.5),
        "80": (26.0, 29.5, 70.0),
        "90": (28.8, 30.8, 78.0),
        "100": (85.0, 27.2, 22.8),
        "120": (79.0, 27.0, 20.0),
    },
    "rows: logits, float32": {"90": (50.5, 86.0, 46.5)},
    "rows: float64": {"90": (175.5,)},
    "columns: float32": {
        "75": (24.0, 24.0, 66.0, 62.5),
        "80": (24.2, 24.2, 65.5, 61.2),
        "90": (26.5, 26.5, 70.0, 63.0),
        "100": (26.2, 70.5, 67.8),
        "120": (24.0, 66.5, 64.5),
    },
    "columns: logits, float32": {"90": (79.0, 48.2, 48.2, 72.8)},
    "columns: float64": {"90": (174.5, 171.2)},
}
SLACK = 1.05  # what another version of the compiler may take more


@of(those("each") + those("sum") + those("rows", "count") + those("columns"))
@needs_compiler
def test_instructions_of_an_element_are_no_more_than_recorded(code, key):
    name, (major, minor) = key
    found = [len(loop) / elements for elements, loop in loops_of(name, code)]
    recorded = RECORDED[name][f"{major}{minor}"]
    assert len(found) == len(recorded), found
    for count, bound in zip(found, recorded, strict=True):
        assert count <= bound * SLACK, "more than before"
        assert count >= bound * 0.8, "far fewer than before: record them"


@of([key for key in KEYS if key[0] in ("each: loss, float32", "sum: float32") and key[1] == (9, 0)])
@needs_compiler
def test_losses_and_sums_of_float32_take_at_most_50_instructions_an_element(code, key):
    elements, loop = max(loops_of(key[0], code), key=lambda found: found[0] * 1000 + len(found[1]))
    assert elements == 8
    assert len(loop) / elements <= 50


@of([key for key in KEYS if key[0] in ("sum: float16", "sum: bfloat16") and key[1] == (9, 0)])
@needs_compiler
def test_sum_of_16_bits_takes_at_most_31_instructions_an_element(code, key):
    # What 4.8 TB/s of an H200 leave: 4 bytes an element, 132 multiprocessors that issue 4 x 32 a clock.
    assert min(len(loop) / elements for elements, loop in loops_of(key[0], code) if set(loaded(loop)) == {8}) <= 31


# ------------------------------------------------------------------------------------------------------- the formulas
def formulas(name):
    """Every formula and constant of a generated module, by name, as the text between its lines."""
    text = (PACKAGE / name).read_text()
    lines = text.splitlines()
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and any(
            isinstance(mark, ast.Name) and mark.id == "formula" for mark in node.decorator_list
        ):
            found[node.name] = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        elif isinstance(node, ast.Assign) and not isinstance(node.value, (ast.Call, ast.Lambda, ast.Dict, ast.List)):
            names = ast.unparse(node.targets[0])
            if names.isupper() or "_" in names:
                found[names] = ast.unparse(node.value)
    return found


def test_text_of_every_formula_is_that_of_the_cpu():
    cpu, device = formulas("_generated_cpu.py"), formulas("_generated_cuda.py")
    shared = cpu.keys() & device.keys()
    assert len([name for name in shared if "float" in name]) > 40
    assert {name for name in shared if cpu[name] != device[name]} == set()
    functions = {name for name in device.keys() - cpu.keys() if device[name].startswith("def ")}
    # What a device has of its own: of labels without a rounding error, where two terms are 0, and for sums of 16 bits.
    assert functions == {"exact_label_loss", "quick_loss"}
    # What the CPU has of its own: the factors of hard labels and of rows, which a device has where it reads them.
    own = {name for name in cpu.keys() - device.keys() if cpu[name].startswith("def ")}
    rows = {"factor_of_signed", "exp_of_signed"}
    assert {name.split("_float")[0] for name in own} == {"factor", "larger", "soft_bits_of", *rows}


@needs_compiler
def test_numbers_that_decide_the_tree_are_those_of_the_cpu():
    from nbbce import _generated_cpu, _generated_cuda

    cpu, device = ({n: v for n, v in vars(m).items() if n.isupper()} for m in (_generated_cpu, _generated_cuda))
    shared = cpu.keys() & device.keys()
    assert {"BLOCK", "PIECE", "LANES", "HARD", "PRODUCTS_32", "DEPTH_64", "LEAST_HARD_SUM_32", "BLANK_LOGIT"} <= shared
    assert {name for name in shared if cpu[name] != device[name]} == set()


# ------------------------------------------------------------------------------------------------------------ the cache
DIGESTS = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import device_code
from nbbce._compile_cuda import ptx_of
for name in ("each: loss, bfloat16", "sum and gradient: float32", "each: loss, float32, strided"):
    text = device_code.without_environments(ptx_of(device_code.specs()[name], (8, 0)))
    print(hashlib.sha256(text.encode()).hexdigest())
"""


@needs_compiler
def test_ptx_is_the_same_in_two_processes():
    def printed(seed):
        environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", DIGESTS, str(Path(__file__).parent)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    first = printed("1")
    assert len(set(first)) == 3
    assert printed("2") == first


WITHOUT_A_NAME = """
import numba.np.arrayobj  # which looks for the name by NumPy's version
import numpy as np
vars(np).pop("row_stack", None)
import device_code
from nbbce._compile_cuda import ptx_of
print(len(ptx_of(device_code.specs()["each: loss, float32"], (8, 0))) > 1000, hasattr(np, "row_stack"))
"""


@needs_compiler
def test_kernel_compiles_with_numpy_2_5_which_has_a_name_less():
    environment = os.environ | {"PYTHONPATH": f"{PACKAGE.parent}{os.pathsep}{Path(__file__).parent}"}
    command = [sys.executable, "-c", WITHOUT_A_NAME]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["True", "False"], done.stderr


@pytest.fixture
def compilations(monkeypatch, tmp_path):
    """An empty folder of kernels, and a list that grows by the name of each that is compiled."""
    from nbbce import _compile_cuda

    names = []

    def ptx_of(spec, capability):
        names.append(spec.task)
        return f"ptx of {spec.task}"

    def code_of(ptx, capability):
        return f"code of {ptx} for {capability}".encode()

    monkeypatch.setattr(_compile_cuda, "ptx_of", ptx_of)
    monkeypatch.setattr(_compile_cuda, "code_of", code_of)
    monkeypatch.setattr(_compile_cuda, "_folder", lambda: tmp_path)
    return names


def kept(folder):
    return sorted(path.name for path in folder.iterdir())


@needs_compiler
def test_kernel_is_read_from_disk_the_second_time(compilations, tmp_path):
    from nbbce._compile_cuda import machine_code

    spec = device_code.specs()["check: float32"]
    first = machine_code(spec, (9, 0))
    assert first == b"code of ptx of check for (9, 0)"
    (name,) = kept(tmp_path)
    assert re.fullmatch(r"check-[0-9a-f]{24}\.cubin", name)
    assert machine_code(spec, (9, 0)) == first
    assert compilations == ["check"]


@needs_compiler
def test_kernels_of_other_specs_and_devices_are_files_of_their_own(compilations, tmp_path):
    from nbbce._compile_cuda import machine_code

    every = [(spec, arch) for spec in device_code.specs().values() for arch in ARCHITECTURES]
    for spec, arch in every:
        machine_code(spec, arch)
    assert len(compilations) == len(kept(tmp_path)) == len(every)


@pytest.mark.parametrize("damage", ["empty", "cut short", "a bit", "missing"])
@needs_compiler
def test_damaged_file_costs_a_compilation_and_is_mended(damage, compilations, tmp_path):
    from nbbce._compile_cuda import machine_code

    spec = device_code.specs()["check: float32"]
    expected = machine_code(spec, (8, 0))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        damaged = {"empty": b"", "cut short": whole[:-1], "a bit": whole[:-1] + bytes([whole[-1] ^ 1])}
        path.write_bytes(damaged[damage])
    assert machine_code(spec, (8, 0)) == expected
    assert path.read_bytes() == whole
    assert len(compilations) == 2
    assert kept(tmp_path) == [path.name]


@needs_compiler
def test_folder_that_cannot_be_written_costs_a_compilation_in_each_process_alone(compilations, tmp_path, monkeypatch):
    from nbbce import _compile_cuda

    monkeypatch.setattr(_compile_cuda, "_folder", lambda: tmp_path / "gone")
    spec = device_code.specs()["check: float32"]
    assert _compile_cuda.machine_code(spec, (8, 0)) == _compile_cuda.machine_code(spec, (8, 0))
    assert compilations == ["check", "check"]


@needs_compiler
def test_cache_setting_of_0_keeps_no_kernel(monkeypatch, tmp_path):
    from nbbce import _compile, _compile_cuda

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NBBCE_CACHE", "0")
    monkeypatch.setattr(_compile_cuda, "FOLDER", _compile.cache_folder())
    assert _compile_cuda._folder.__wrapped__() is None
    monkeypatch.setenv("NBBCE_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setattr(_compile_cuda, "FOLDER", _compile.cache_folder())
    folder = _compile_cuda._folder.__wrapped__()
    assert folder.parent == tmp_path / "kernels"
    assert re.fullmatch("cuda-[0-9a-f]{16}", folder.name)
    assert folder.is_dir()


@needs_compiler
def test_real_kernel_goes_through_the_disk_unchanged(monkeypatch, tmp_path):
    from nbbce import _compile_cuda

    monkeypatch.setattr(_compile_cuda, "_folder", lambda: tmp_path)
    spec = device_code.specs()["check: float32"]
    made = _compile_cuda.machine_code(spec, (9, 0))
    assert made[:4] == b"\x7fELF"
    monkeypatch.delattr(_compile_cuda, "ptx_of")
    assert _compile_cuda.machine_code(spec, (9, 0)) == made


@needs_compiler
def test_threads_that_compile_at_once_leave_numba_as_it_was():
    from numba.cuda import dispatcher

    from nbbce._compile_cuda import ptx_of

    before = dispatcher.get_current_device
    specs, texts = device_code.specs(), {}

    def compile_(name):
        texts[name] = ptx_of(specs[name], (8, 0))

    names = ["check: float32", "each: loss, float32", "each: gradient, float32", "each: loss, float64"]
    threads = [threading.Thread(target=compile_, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dispatcher.get_current_device is before
    again = ptx_of(specs["check: float32"], (8, 0))
    assert without_environments(texts["check: float32"]) == without_environments(again)
    assert len({hashlib.sha256(text.encode()).digest() for text in texts.values()}) == 4


def test_every_kernel_named_for_all_architectures_is_one():
    if not MISSING:
        assert set(EVERYWHERE) <= set(NAMES)
        assert {arch for _, arch in KEYS} == set(ARCHITECTURES)
