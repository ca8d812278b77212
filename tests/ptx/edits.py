"""Edits of a copy of GPGPU-Sim's sources that add what these kernels need.

Each edit searches for short texts in order and raises an error if one is missing. The checkout is
then not the version named below.
"""

from __future__ import annotations

from pathlib import Path

COMMIT = "667834cfe5214523edd7769aeab77f91b7137686"
"""The commit of https://github.com/accel-sim/gpgpu-sim_distribution, branch dev."""

INSTRUCTIONS = "src/cuda-sim/instructions.cc"
MEMORY = "src/cuda-sim/memory.cc"
SIMULATION = "src/gpgpu-sim/gpu-sim.cc"


class Source:
    """A file that is edited."""

    def __init__(self, root: Path, name: str) -> None:
        self._path, self._name = root / name, name
        self._text = self._path.read_text()

    def _find(self, *places: str) -> tuple[int, int]:
        """The position of the last text; each is searched for after the previous one."""
        begin = end = 0
        for place in places:
            begin = self._text.find(place, end)
            if begin < 0:
                raise SystemExit(f"{self._name}: no {place!r}; these edits are for {COMMIT[:10]}")
            end = begin + len(place)
        return begin, end

    def _put(self, begin: int, end: int, text: str) -> None:
        self._text = self._text[:begin] + text + self._text[end:]
        self._path.write_text(self._text)

    def insert_after(self, *places: str, text: str) -> None:
        end = self._find(*places)[1]
        self._put(end, end, text)

    def insert_before(self, *places: str, text: str) -> None:
        begin = self._find(*places)[0]
        self._put(begin, begin, text)

    def replace(self, *places: str, text: str) -> None:
        self._put(*self._find(*places), text)

    def replace_function(self, head: str, text: str) -> None:
        """Replace the function that begins with this line."""
        begin, end = self._find(head)
        self._put(begin, self._text.index("\n}\n", end) + 3, text)


SHUFFLE = """\
// Lanes execute one after the other. The first one of a warp takes all lanes' values, so that what
// it writes is not what the others read. Which lane it is comes from ptx_exec_inst().
ptx_thread_info *shuffling_thread;
unsigned shuffling_lane;
void shfl_impl(const ptx_instruction *pI, core_t *core, warp_inst_t inst) {
  static ptx_reg_t values[MAX_WARP_SIZE];
  static const ptx_instruction *last_instruction;
  static int last_lane, last_first;
  ptx_thread_info *const thread = shuffling_thread;
  const unsigned type = pI->get_type();
  const operand_info &to = pI->dst(), &from = pI->src1();
  const int lane = shuffling_lane, first = (int)thread->get_hw_tid() - lane;
  if (pI != last_instruction || first != last_first || lane <= last_lane) {
    for (int i = 0; i < MAX_WARP_SIZE; ++i) {
      if (!inst.active(i)) continue;
      ptx_thread_info *const other = core->get_thread_info()[first + i];
      values[i] = other->get_operand_value(from, to, type, other, 1);
    }
  }
  last_instruction = pI, last_first = first, last_lane = lane;
  const int by = thread->get_operand_value(pI->src2(), to, type, thread, 1).u32 & 31;
  const int limits = thread->get_operand_value(pI->src3(), to, type, thread, 1).u32;
  const int mask = limits >> 8 & 31, clamp = limits & 31;
  const int least = lane & mask, most = least | (clamp & ~mask);
  int other = lane;
  bool inside = false;
  switch (pI->shfl_op()) {
    case UP_OPTION: other = lane - by, inside = other >= most; break;
    case DOWN_OPTION: other = lane + by, inside = other <= most; break;
    case BFLY_OPTION: other = lane ^ by, inside = other <= most; break;
    case IDX_OPTION: other = least | (by & ~mask), inside = other <= most; break;
    default: abort();
  }
  if (!inside) other = lane;
  if (!inst.active(other)) {
    printf("RESFED: a shuffle reads lane %d, which is not active: %s\\n", other, pI->get_source());
    fflush(stdout);
    abort();
  }
  thread->set_operand_value(to, values[other], type, thread, pI);
}
"""

INSERTION = """\
void bfi_impl(const ptx_instruction *pI, ptx_thread_info *thread) {
  const unsigned type = pI->get_type();
  const operand_info &to = pI->dst();
  const auto value = [&](const operand_info &from) {
    const ptx_reg_t read = thread->get_operand_value(from, to, type, thread, 1);
    return type == B64_TYPE ? read.u64 : read.u32;
  };
  const unsigned long long at = value(pI->src3()) & 255, n = value(pI->src4()) & 255;
  const unsigned long long ones = n < 64 ? (1ull << n) - 1 : ~0ull;
  const unsigned long long mask = at < 64 ? ones << at : 0;
  ptx_reg_t data;
  data.u64 = (value(pI->src2()) & ~mask) | (at < 64 ? value(pI->src1()) << at & mask : 0);
  thread->set_operand_value(to, data, type, thread, pI);
}
"""

CARRY = """\
// Each thread's carry flag: instructions with .cc write it; addc, subc and madc read it. After a
// subtraction it is set if nothing was borrowed: nvcc reads that with addc.
static std::map<const ptx_thread_info *, bool> carries;

// Executes integer add, sub, mul and mad that use the flag or, of 32 and 64 bits, give the upper
// half of a product; returns false for others.
static bool execute_wide(const ptx_instruction *pI, ptx_thread_info *thread, bool reads) {
  typedef unsigned __int128 wide;
  const std::list<int> options = pI->get_options();
  const bool writes = std::find(options.begin(), options.end(), EXTP_OPTION) != options.end();
  const unsigned type = pI->get_type();
  const bool is_signed = type == S32_TYPE || type == S64_TYPE;
  const int n_bits = type == S64_TYPE || type == U64_TYPE ? 64 : 32;
  const bool fits = is_signed || type == U32_TYPE || type == U64_TYPE;
  if (!reads && !writes && !(fits && pI->is_hi())) return false;
  if (!fits) abort();
  const operand_info &to = pI->dst();
  const auto value = [&](const operand_info &from) -> wide {
    const ptx_reg_t read = thread->get_operand_value(from, to, type, thread, 1);
    if (n_bits == 64) return is_signed ? (wide)(__int128)read.s64 : (wide)read.u64;
    return is_signed ? (wide)(__int128)read.s32 : (wide)read.u32;
  };
  const wide mask = ((wide)1 << n_bits) - 1;
  const wide a = value(pI->src1()), b = value(pI->src2()), carry = reads && carries[thread];
  const wide product = a * b >> (pI->is_hi() ? n_bits : 0) & mask;
  wide result;
  switch (pI->get_opcode()) {
    case ADD_OP: case ADDC_OP: result = (a & mask) + (b & mask) + carry; break;
    case SUB_OP: case SUBC_OP: result = (a & mask) + (~b & mask) + (reads ? carry : 1); break;
    case MUL_OP: result = product; break;
    case MAD_OP: case MADC_OP: result = product + (value(pI->src3()) & mask) + carry; break;
    default: abort();
  }
  if (writes) carries[thread] = result >> n_bits & 1;
  ptx_reg_t data;
  data.u64 = (unsigned long long)(result & mask);
  thread->set_operand_value(to, data, type, thread, pI);
  return true;
}

"""

ACCESS = """
// Told of all accesses to global memory, those of copies included.
extern "C" {
void (*resfed_on_access)(unsigned long long address, unsigned long long n_bytes, int writes);
}
static inline void tell(const char *space, unsigned long long address, unsigned long long n_bytes,
                        int writes) {
  if (space[0] == 'g' && resfed_on_access) resfed_on_access(address, n_bytes, writes);
}
"""


def atomic_case(kind: str, result: str) -> str:
    return f"""
        case {kind.upper()}_TYPE:
          {result};
          data_ready = true;
          break;"""


def apply(root: Path) -> None:
    """Edit the copy at ``root``."""
    # The build searches the program's libraries for the CUDA version: set it instead.
    source = Source(root, "libcuda/cuda_runtime_api.cc")
    source.insert_after("int get_app_cuda_version() {", text="\n  return CUDART_VERSION / 1000;")

    # Debug information makes compilation slow; the power model is not needed.
    for name in ("src/Makefile", "src/cuda-sim/Makefile", "src/gpgpu-sim/Makefile"):
        Source(root, name).replace("-g3", text="")
    source = Source(root, SIMULATION)
    source.insert_after("//redefined", text="\n#define MAX(a, b) ((a) > (b) ? (a) : (b))")
    source.replace("m_gpgpusim_wrapper->get_scaling_coeffs()", text="NULL")

    # A shuffle latency above the floating-point unit's exceeds an array.
    Source(root, "src/gpgpu-sim/shader.cc").replace(
        "max_sp_latency = ", "fp_latency[1]", text="std::max(fp_latency[1], int_latency[5])"
    )

    Source(root, "src/cuda-sim/cuda-sim.cc").insert_after(
        "::ptx_exec_inst(", "define OP_W_DEF(", "case OP:", "\\\n",
        text="    shuffling_thread = this; shuffling_lane = lane_id; \\\n",
    )  # fmt: skip
    Source(root, "src/cuda-sim/cuda-sim.cc").insert_after(
        '#include "cuda-sim.h"',
        text="\nclass ptx_thread_info;\nextern ptx_thread_info *shuffling_thread;\n"
        "extern unsigned shuffling_lane;\n",
    )
    source = Source(root, INSTRUCTIONS)
    source.replace_function("void shfl_impl(", SHUFFLE)
    for name, function in (("MIN", "MY_MIN_I"), ("MAX", "MY_MAX_I")):
        for kind in ("u64", "s64"):
            result = f"op_result.{kind} = {function}(data.{kind}, src2_data.{kind})"
            source.insert_after(
                f"case ATOMIC_{name}: {{", "switch (to_type) {", text=atomic_case(kind, result)
            )
    source.insert_after(
        "case ATOMIC_ADD: {", "switch (to_type) {",
        text=atomic_case("f64", "op_result.f64 = data.f64 + src2_data.f64"),
    )  # fmt: skip
    # The first operand of prmt is not sign-extended into the second.
    source.replace(
        "void prmt_impl(", "tmpdata.s64 = ", "src1_data.s32", text="(long long)src1_data.u32"
    )
    # 64-bit integers become floats of their own value.
    for function in ("u2f", "s2f"):
        source.insert_after(f"ptx_reg_t {function}(", "} else {", text="\n    y = x;")
    source.replace_function("void bfi_impl(", INSERTION)
    # Carries and upper halves, of which 128-bit integers consist.
    source.insert_before("void add_impl(", text=CARRY)
    for function in ("add", "sub", "mul", "mad"):
        source.insert_after(
            f"void {function}_impl(", "{", text="\n  if (execute_wide(pI, thread, false)) return;"
        )
    for function in ("addc", "subc", "madc"):
        head = f"void {function}_impl("
        whole = f"{head}const ptx_instruction *pI, ptx_thread_info *thread) {{\n"
        source.replace_function(head, whole + "  execute_wide(pI, thread, true);\n}\n")
    # A funnel shift by 0 is none.
    for shifted, text in (
        ("(b.u32 << n) | (a.u32 >> (32 - n))", "(b.u64 << 32 | a.u32) << n >> 32"),
        ("(b.u32 << (32 - n)) | (a.u32 >> n)", "(b.u64 << 32 | a.u32) >> n"),
    ):
        source.replace("void shf_impl(", shifted, text=text)
    # Of a register with a shift distance the upper half has no meaning.
    for function in ("shr", "shl"):
        source.insert_after(f"void {function}_impl(", "b = ", ";", text="\n  b.u64 = b.u32;")
    # Global addresses have 64 bits, so that addresses 4 GiB apart differ.
    for function, address in (("ld_exec", "src1_data"), ("st_impl", "addr_reg")):
        source.insert_after(
            f"void {function}(", "decode_space(", ";",
            text=f"\n  if (space.get_type() == global_space) addr = {address}.u64;",
        )  # fmt: skip
    # Padding in a structure that is stored four words at a time has no value.
    source.replace(
        "::get_vector_operand_values(", "assert(reg_iter != m_regs.back().end());",
        text="if (reg_iter == m_regs.back().end()) {\n"
        "        ptx_regs[idx].u64 = 0xa5a5a5a5a5a5a5a5ull;\n        continue;\n      }",
    )  # fmt: skip

    source = Source(root, MEMORY)
    source.insert_after('#include "memory.h"', text="\n#include <stdio.h>\n" + ACCESS)
    for name, writes in (("::write(", 1), ("::read(", 0)):
        source.insert_after(name, "{", text=f"\n  tell(m_name.c_str(), addr, length, {writes});")
