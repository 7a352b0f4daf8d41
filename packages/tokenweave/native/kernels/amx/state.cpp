// Whether this process may use tiles: the processor's word (CPUID), the operating system's (XCR0), and the permission
// that Linux gives on request, since a process that uses tiles needs 8 KiB more wherever its state is saved.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "tokenweave.h"

namespace {

// Leaf 7, EDX. Every processor with tiles of bfloat16 has those of int8 too; a hypervisor may hide them.
constexpr uint32_t CPUID_AMX_BF16 = 1u << 22, CPUID_AMX_TILE = 1u << 24, CPUID_AMX_INT8 = 1u << 25;
constexpr uint32_t CPUID_AMX = CPUID_AMX_BF16 | CPUID_AMX_TILE | CPUID_AMX_INT8;
constexpr uint32_t CPUID_OSXSAVE = 1u << 27;  // leaf 1, ECX
constexpr int XFEATURE_XTILECFG = 17, XFEATURE_XTILEDATA = 18;
constexpr long ARCH_REQUEST_XCOMP_PERMISSION = 0x1023;

bool processor_has_tiles() {
    uint32_t eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & CPUID_AMX) == CPUID_AMX;
}

bool system_keeps_tiles() {
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & CPUID_OSXSAVE)) return false;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr uint32_t TILES = 1u << XFEATURE_XTILECFG | 1u << XFEATURE_XTILEDATA;
    return (low & TILES) == TILES;
}

int ask() {
    if (!processor_has_tiles()) return TW_AMX_NO_PROCESSOR;
    if (!system_keeps_tiles()) return TW_AMX_NO_SYSTEM;
    const long refused = syscall(SYS_arch_prctl, ARCH_REQUEST_XCOMP_PERMISSION, XFEATURE_XTILEDATA);
    return refused ? TW_AMX_REFUSED : TW_AMX_READY;
}

}  // namespace

int tw_amx_state(void) {
    static const int state = ask();
    return state;
}
