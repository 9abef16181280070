/* bind(2) for Ray's own processes: "all interfaces" means the node's own address. See onlyhere.py.

   cc -O1 -shared -fPIC -nostdlib -fno-stack-protector -fno-builtin -fno-asynchronous-unwind-tables \
      -Wl,--hash-style=sysv -Wl,-z,noseparate-code -Wl,-z,norelro -Wl,--build-id=none -s onlyhere.c
      (x86_64: -fcf-protection=none -Wl,-z,max-page-size=4096; aarch64: -Wl,-z,max-page-size=65536)

   Freestanding but for errno; `here` is overwritten behind its colon for each node. */
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32;
extern int *__errno_location(void);
__attribute__((visibility("hidden"))) volatile const u8 here[20] = "mlcloud-here:\x7f\x00\x00\x01";
static long raw_bind(long fd, const void *addr, long len) {
#if defined(__x86_64__)
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(49L), "D"(fd), "S"(addr), "d"(len) : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = 200; register long x0 __asm__("x0") = fd;
  register long x1 __asm__("x1") = (long)addr; register long x2 __asm__("x2") = len;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
  return x0;
#endif
}
int bind(int fd, const void *address, u32 length) {
  const u8 *given = address;
  u8 changed[28];
  u16 family = given && length >= 16 ? *(const u16 *)given : 0;
  u32 at = family == 2 ? 4 : family == 10 && length >= 28 ? 8 : 0, size = family == 2 ? 4 : 16;
  if (at) {
    u8 any = 0;
    for (u32 i = 0; i < size; i++) any |= given[at + i];
    if (!any) {
      u32 total = family == 2 ? 16 : 28;
      for (u32 i = 0; i < total; i++) { changed[i] = given[i]; __asm__ volatile("" ::: "memory"); }
      if (family == 10) changed[at + 10] = changed[at + 11] = 0xff;
      for (u32 i = 0; i < 4; i++) changed[at + size - 4 + i] = here[13 + i];
      address = changed;
    }
  }
  long result = raw_bind(fd, address, length);
  if (result < 0) { *__errno_location() = (int)-result; return -1; }
  return 0;
}
