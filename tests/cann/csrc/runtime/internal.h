// What the parts of the simulated runtime (libascendcl.so) tell one another.
#pragma once
#include <string>

namespace sim {
void arena_init();                                  // maps the device's address space, once
void watch_faults();                                // names the host's accesses to it
std::string describe_address(const void* address);  // the allocation that an address lies in
}  // namespace sim
