"""A Ray cluster of this machine alone, and `sterna tune` on it. Arguments: two folders."""

import subprocess
import sys

import ray

folder, scratch = sys.argv[1:]
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
address = ray.get_runtime_context().gcs_address
command = [sys.executable, "-m", "sterna", "tune", folder, "--ray", address, "--minutes", "0.05"]
code = subprocess.call([*command, "--database", f"{scratch}/plans.sqlite"])
ray.shutdown()
sys.exit(code)
