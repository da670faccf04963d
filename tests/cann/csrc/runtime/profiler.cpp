// libmsprofiler.so and libprofapi.so: nothing is profiled.
#include <cstdlib>

#include "../sim.h"

SIM_NOTHING(aclprofInit)
SIM_NOTHING(aclprofFinalize)
SIM_NOTHING(aclprofStart)
SIM_NOTHING(aclprofStop)
SIM_NOTHING(aclprofSetConfig)
SIM_NOTHING(aclprofDestroyConfig)
SIM_NOTHING(aclprofDestroyStepInfo)
SIM_NOTHING(aclprofGetStepTimestamp)
SIM_NOTHING(aclprofGetSupportedFeatures)
SIM_NOTHING(aclprofGetSupportedFeaturesV2)
SIM_NOTHING(MsprofRegisterCallback)
SIM_NOTHING(MsprofReportApi)
SIM_NOTHING(MsprofReportCompactInfo)
SIM_NOTHING(MsprofReportAdditionalInfo)
SIM_NOTHING(MsprofReportEvent)
SIM_NOTHING(MsprofRegTypeInfo)
SIM_NOTHING(MsprofRegisterProfileCallback)
API void* aclprofCreateConfig() { return calloc(1, 64); }
API void* aclprofCreateStepInfo() { return calloc(1, 64); }
API uint64_t MsprofGetHashId(const char*, uint64_t) { return 1; }
API uint64_t MsprofSysCycleTime() { return 0; }
