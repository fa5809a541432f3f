"""Two processes under the launch configurations of `examples/accelerate_configs`, on a CPU."""

import os
from pathlib import Path

import forks
import transformers
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "examples/accelerate_configs"


def launch_environment(name: str) -> dict[str, str]:
    """What `accelerate launch --config_file` hands to the processes."""
    arguments = ["--config_file", str(CONFIGS / f"{name}.yaml"), "--num_processes", "2", "--mixed_precision", "no"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*arguments, "script.py"]))
    if not args.use_deepspeed:
        return prepare_multi_gpu_env(args)
    args.deepspeed_fields_from_accelerate_config = ""
    return prepare_deepspeed_cmd_env(args)[1]


def run(strategy: str | None, script: Path, *arguments: object) -> None:
    """One process without a strategy, two with one."""
    environment = {"ACCELERATE_USE_CPU": "true"} if strategy in (None, "ddp") else launch_environment(strategy)
    code, output = forks.run(script, *arguments, processes=1 if strategy is None else 2, **environment)
    assert code == 0, output[-6000:]


def let_accelerate_shard_on_a_cpu() -> None:
    """Make accelerate shard over processes of a CPU, as it does only over those of GPUs."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_CPU)
        transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        init = AcceleratorState.__init__

        def initialise(self, *args, fsdp_plugin=None, **kwargs):
            init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
            if fsdp_plugin is not None:
                if self._mixed_precision != "no":
                    fsdp_plugin.set_mixed_precision(self._mixed_precision)
                self.fsdp_plugin = fsdp_plugin
                self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

        AcceleratorState.__init__ = initialise
