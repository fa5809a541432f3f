"""What the process that `forks` forks from has imported, and set."""

import datasets
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

import dco_trl.cli.estimate
import dco_trl.grading
import dco_trl.runs
import dco_trl.sampling.transformers_sampler
import dco_trl.trainer.callbacks
import dco_trl.trainer.cot_trainer  # noqa: F401

datasets.disable_progress_bars()
torch.set_num_threads(1)
