#!/usr/bin/env python3
"""static.py - what the compiled kernels of hmoe_cuda.cu show without a GPU.

Compiles the file for every architecture of `make cuda` and prints a line per kernel: what it takes
of a multiprocessor, how many of its blocks run there at a time, and how many instructions multiply
on tensor cores (HMMA) or load for them (LDSM). It fails where a kernel spills registers or keeps
anything in local memory, where it does not fit, and where a product of bf16 has no such
instructions. NVCC=/path/to/nvcc chooses the compiler."""

import concurrent.futures
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "hmoe_cuda.cu")

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
    run = subprocess.run([find_nvcc(), "-std=c++17", "-I" + os.path.dirname(SOURCE)] + options
                         + [source], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         universal_newlines=True)
    if run.returncode:
        raise RuntimeError(run.stdout.strip())
    return run.stdout


def find_nvcc():
    return (os.environ.get("NVCC") or shutil.which("nvcc")
            or shutil.which("/usr/local/cuda/bin/nvcc"))


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
    output = os.path.join(folder, sm + ".cubin")
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
    with open(output, "rb") as file:
        for name, data in sections(file.read()):
            if name.startswith(".text."):
                kernels[name[6:]].update(count_instructions(data))
            if name.startswith(".nv.info."):
                kernels[name[9:]]["threads"] = threads_of(data)
    return {kernel_name(symbol): kernel for symbol, kernel in kernels.items()}


def shared_sizes(text, folder):
    """Bytes of each kernel's SHARED."""
    copy, output = os.path.join(folder, "hmoe_cuda.cu"), os.path.join(folder, "shared.ptx")
    text, found = re.subn(*SHARED, text)
    if not found:
        raise RuntimeError("hmoe_cuda.cu: no #define SHARED(type, s) behind an #else")
    with open(copy, "w") as file:
        file.write(text)
    compile_with(["-arch=sm_80", "-ptx", "-o", output], copy)
    sizes, kernel = {}, ""
    with open(output) as file:
        for line in file:
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


def defects(sm, name, kernel):
    """Of each thing to check, whether it is wrong and how to say that."""
    tensor = sm != "sm_75" and "multiply" in name and "bf" in name
    local = kernel["stack"] or kernel["LDL"] or kernel["STL"]
    yield kernel["spilled"], "spills %d bytes" % kernel["spilled"]
    yield local, "has a stack of %d bytes, LDL %d, STL %d" % (kernel["stack"], kernel["LDL"],
                                                             kernel["STL"])
    yield kernel["blocks"] < 1, "does not fit into a multiprocessor"
    if tensor:
        yield not kernel["HMMA"], "multiplies without tensor cores"
        yield not kernel["LDSM"], "loads fragments without LDSM"


def main():
    passed = failed = products = 0
    with open(SOURCE) as file:
        text = file.read()
    default = int(re.search(r"\bTHREADS = (\d+)", text)[1])   # where nothing else is said
    with tempfile.TemporaryDirectory() as folder, \
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = pool.submit(shared_sizes, text, folder)
        results = list(zip(LIMITS, pool.map(lambda sm: examine(sm, folder), LIMITS)))
    print("       kernel                    threads registers spilled stack  shared  blocks   HMMA"
          "   LDSM")
    for sm, kernels in results:
        for name, kernel in sorted(kernels.items()):
            kernel["threads"] = kernel["threads"] or default
            kernel["shared"] = sizes.result().get(name, 0)
            kernel["blocks"] = blocks_of(sm, kernel)
            print("%s  %-26s %6d %9d %7d %5d %7d %7d %6d %6d" % (
                sm, name, kernel["threads"], kernel["registers"], kernel["spilled"],
                kernel["stack"], kernel["static"] + kernel["shared"], kernel["blocks"],
                kernel["HMMA"], kernel["LDSM"]))
            for wrong, what in defects(sm, name, kernel):
                passed, failed = passed + (not wrong), failed + bool(wrong)
                if wrong:
                    print("FAILED %s %s: %s" % (sm, name, what))
            products += kernel["HMMA"] > 0
    passed, failed = passed + (products > 0), failed + (products == 0)
    if not products:
        print("FAILED no kernel uses tensor cores")
    return passed, failed


if find_nvcc():
    try:
        PASSED, FAILED = main()
    except RuntimeError as error:
        print("FAILED to compile:\n%s" % error)
        PASSED, FAILED = 0, 1
else:
    print("no nvcc here: skipped")
    PASSED, FAILED = 0, 0
print("static: %d passed, %d failed" % (PASSED, FAILED))
sys.exit(FAILED > 0)
