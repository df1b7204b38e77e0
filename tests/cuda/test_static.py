"""What the compiled kernels of hmoe_cuda.cu show without a GPU, for every architecture of `make
cuda`: no kernel spills registers or keeps anything in local memory, each fits, and a product of
bf16 has the instructions that multiply on tensor cores (HMMA) and load for them (LDSM).

With -s there is a line per kernel: what it takes of a multiprocessor, how many of its blocks run
there at a time, and how many such instructions it has. NVCC=/path/to/nvcc chooses the compiler."""

import os
import re
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import ROOT

SOURCE = ROOT / "hmoe_cuda.cu"
NVCC = (os.environ.get("NVCC") or shutil.which("nvcc")
        or shutil.which("/usr/local/cuda/bin/nvcc"))
pytestmark = pytest.mark.skipif(not NVCC, reason="no nvcc here")

# Of a multiprocessor: most threads, most blocks, shared memory, and what of it a block costs beyond
# its own (CUDA Programming Guide, Compute Capabilities). Of 65536 registers each quarter has its
# own, and a warp gets 256 at a time.
LIMITS = {
    "sm_75": (1024, 16, 65536, 0),
    "sm_80": (2048, 32, 167936, 1024),
    "sm_86": (1536, 16, 102400, 1024),
    "sm_89": (1536, 24, 102400, 1024),
    "sm_90": (2048, 32, 233472, 1024),
}

# The low 12 bits of an instruction of 16 bytes.
OPCODES = {0x23C: "HMMA", 0x83B: "LDSM", 0x983: "LDL", 0x387: "STL"}

# What ptxas -v says of a kernel; where it says a thing twice, the larger number counts.
SAYS = {
    "registers": r"Used (\d+) registers",
    "static": r"(\d+) bytes smem",
    "stack": r"(\d+) bytes (?:stack frame|cumulative stack)",
    "spilled": r"(\d+) bytes spill (?:stores|loads)",
}

# Shared memory is given at the launch, which the compiled code does not show: this in place of the
# macro behind #else makes it the kernel's own, and the compiler says how large it is.
SHARED = (r"(#else\b.*\n)#define SHARED\(type, s\)(?:.*\\\n)*.*\n",
          r"\1#define SHARED(type, s) __shared__ type s\n")


def compile_with(options, source):
    run = subprocess.run([NVCC, "-std=c++17", "-I", ROOT, *options, source],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.returncode == 0, run.stdout
    return run.stdout


def kernel_name(symbol):
    """Without namespace, arguments and result; still mangled where there is no c++filt."""
    symbol = re.sub(r"_GLOBAL__N__\w+?_cu_[0-9a-f]{8}", lambda m: "x" * len(m[0]), symbol)
    if not shutil.which("c++filt"):
        return re.sub(r"^_ZN\d+x+", "", symbol)
    name = subprocess.run(["c++filt", symbol], stdout=subprocess.PIPE,
                          universal_newlines=True).stdout.strip()
    name = re.sub(r"^void |x{9,}::|\(anonymous namespace\)::", "", name)
    return name.replace("__nv_bfloat16", "bf16").split("(")[0]


def sections(cubin):
    """Name and bytes of each section of an ELF file of 64 bits."""
    table = struct.unpack_from("<Q", cubin, 40)[0]
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    heads = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    for name, _, _, _, offset, length in heads:
        start = heads[names][4] + name
        yield cubin[start:cubin.index(b"\0", start)].decode(), cubin[offset:offset + length]


def count_instructions(code):
    counts = dict.fromkeys(OPCODES.values(), 0)
    for at in range(0, len(code) - 15, 16):
        name = OPCODES.get(struct.unpack_from("<H", code, at)[0] & 0xFFF)
        if name:
            counts[name] += 1
    return counts


def threads_of(info):
    """The threads of __launch_bounds__, in a kernel's .nv.info; 0 where there is none."""
    at = 0
    while at + 16 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        if form == 4 and attribute == 5:
            x, y, z = struct.unpack_from("<III", info, at + 4)
            return x * y * z
        at += 4 + (size if form == 4 else 0)
    return 0


def examine(sm, folder):
    """What is known of each kernel: a dictionary of dictionaries."""
    output = folder / (sm + ".cubin")
    kernels, kernel = {}, {}
    said = compile_with(["-O3", "-arch=" + sm, "-cubin", "-Werror", "all-warnings", "-Xptxas", "-v",
                         "-o", output], SOURCE)
    for line in said.splitlines():
        entry = re.search(r"Compiling entry function '(\S+)'", line)
        if entry:
            kernel = kernels.setdefault(entry[1], dict.fromkeys(SAYS, 0))
        for what, pattern in SAYS.items():
            for number in re.findall(pattern, line):
                kernel[what] = max(kernel.get(what, 0), int(number))
    for name, data in sections(output.read_bytes()):
        if name.startswith(".text."):
            kernels[name[6:]].update(count_instructions(data))
        if name.startswith(".nv.info."):
            kernels[name[9:]]["threads"] = threads_of(data)
    return {kernel_name(symbol): kernel for symbol, kernel in kernels.items()}


def shared_sizes(folder):
    """Bytes of each kernel's SHARED."""
    copy, output = folder / "hmoe_cuda.cu", folder / "shared.ptx"
    text, found = re.subn(*SHARED, SOURCE.read_text())
    assert found, "hmoe_cuda.cu has no #define SHARED(type, s) behind an #else"
    copy.write_text(text)
    compile_with(["-arch=sm_80", "-ptx", "-o", output], copy)
    sizes, kernel = {}, ""
    for line in output.read_text().splitlines():
        entry = re.search(r"\.entry (\w+)", line)
        array = re.search(r"\.shared .*\[(\d+)\];", line)
        if entry:
            kernel = kernel_name(entry[1])
        if array:
            sizes[kernel] = sizes.get(kernel, 0) + int(array[1])
    return sizes


def blocks_of(sm, kernel):
    """How many blocks a multiprocessor runs at a time."""
    most_threads, most_blocks, most_shared, per_block = LIMITS[sm]
    warps = (kernel["threads"] + 31) // 32
    per_warp = (kernel["registers"] * 32 + 255) // 256 * 256
    shared = (kernel["static"] + kernel["shared"] + 127) // 128 * 128 + per_block
    return min(most_threads // 32 // warps, most_blocks, 65536 // 4 // per_warp * 4 // warps,
               most_shared // max(shared, 1))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The kernels of each architecture."""
    folder = tmp_path_factory.mktemp("static")
    default = int(re.search(r"\bTHREADS = (\d+)", SOURCE.read_text())[1])   # unless it says
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shared = pool.submit(shared_sizes, folder)
        found = dict(zip(LIMITS, pool.map(lambda sm: examine(sm, folder), LIMITS)))
    print("\n       kernel                    threads registers spilled stack  shared  blocks"
          "   HMMA   LDSM")
    for sm, kernels in found.items():
        for name, kernel in sorted(kernels.items()):
            kernel["threads"] = kernel["threads"] or default
            kernel["shared"] = shared.result().get(name, 0)
            kernel["blocks"] = blocks_of(sm, kernel)
            print("%s  %-26s %6d %9d %7d %5d %7d %7d %6d %6d" % (
                sm, name, kernel["threads"], kernel["registers"], kernel["spilled"],
                kernel["stack"], kernel["static"] + kernel["shared"], kernel["blocks"],
                kernel["HMMA"], kernel["LDSM"]))
    return found


each_architecture = pytest.mark.parametrize("sm", LIMITS)


@each_architecture
def test_no_kernel_spills_or_uses_local_memory(compiled, sm):
    assert compiled[sm]
    for name, kernel in compiled[sm].items():
        local = {what: kernel[what] for what in ("spilled", "stack", "LDL", "STL")}
        assert not any(local.values()), (name, local)


@each_architecture
def test_every_kernel_fits_into_a_multiprocessor(compiled, sm):
    assert not [name for name, kernel in compiled[sm].items() if kernel["blocks"] < 1]


@pytest.mark.parametrize("sm", list(LIMITS)[1:])           # sm_75 has no bf16
def test_products_of_bf16_use_tensor_cores_and_their_loads(compiled, sm):
    products = {name: (kernel["HMMA"], kernel["LDSM"]) for name, kernel in compiled[sm].items()
                if "multiply" in name and "bf" in name}
    assert products and all(map(all, products.values())), products
