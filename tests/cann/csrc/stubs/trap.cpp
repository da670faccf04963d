// Where the generated stubs end: the name of what is not simulated.
#include <cstdio>
#include <cstdlib>

extern "C" __attribute__((visibility("hidden"))) void cannsim_trap(const char* name) {
  fprintf(stderr, "[cannsim] NOT SIMULATED (fatal): %s\n", name);
  abort();
}

extern "C" __attribute__((visibility("hidden"))) long cannsim_refuse(const char* name) {
  fprintf(stderr, "[cannsim] NOT SIMULATED: %s\n", name);
  return 100039;  // ACL_ERROR_FEATURE_UNSUPPORTED
}
