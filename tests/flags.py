"""How XLA compiles in the tests: quickly."""

import importlib.metadata

# Without LLVM's optimizations: the suite is a thousand small compilations, and each takes a fifth of the time.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith(
    "0.10."
):  # half of the time again; later XLA refuses a flag it lacks
    QUICK += " --xla_cpu_use_fusion_emitters=false"
