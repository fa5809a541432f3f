"""Train with rationales from a vLLM server, and note what the server and the model in training say at each window.

Started by `test_cot_server.py` on two processes, with the model, the server, and a folder to write to.
"""

import os
import sys
from pathlib import Path

import httpx2
import torch
from cot import make_cot_trainer
from peft import LoraConfig, get_peft_model
from sharding import let_accelerate_shard_on_a_cpu
from training import token_log_probs
from transformers import AutoModelForCausalLM
from word_llama import ROWS, make_word_tokenizer

from dco_trl.sampling import SampleRequest, SamplingParams
from dco_trl.trainer.rationales import RationaleDrawer
from dco_trl.trainer.window_sampler import WindowSampler

model, base_url, folder = sys.argv[1:]
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
PROMPTS = [make_word_tokenizer()(row["prompt"])["input_ids"] for row in ROWS[:4]]
open_window, draw = WindowSampler.open, RationaleDrawer.draw
windows: list[dict] = []
state: dict[str, torch.Tensor] = {}


def open_and_look(self, batches, step):
    state.clear()
    state.update(trainer.accelerator.get_state_dict(trainer.model))  # accelerate's own; whole on the main process
    return open_window(self, batches, step)


def ask_and_draw(self, problems, counts, next_index, sampler):
    params = SamplingParams(temperature=0, max_tokens=5)
    greedy = [sample.token_ids for [sample] in sampler.sample([SampleRequest(ids, 1) for ids in PROMPTS], params)]
    name = sampler.adapter_name or sampler.model
    asked = {"model": name, "prompt": PROMPTS, "max_tokens": 5, "temperature": 0, "logprobs": 0, "ignore_eos": True}
    asked |= {"return_token_ids": True, "repetition_penalty": 1.0}  # the model's generation config has another
    answer = httpx2.post(f"{base_url}/completions", json=asked, timeout=None).json()
    served = [entry["id"] for entry in httpx2.get(f"{base_url}/models", timeout=None).json()["data"]]
    choices = [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in answer["choices"]]
    windows.append({"name": name, "served": served, "greedy": greedy, "choices": choices})
    if trainer.accelerator.is_main_process:
        windows[-1]["trained"] = [log_probs(prompt, ids) for prompt, (ids, _) in zip(PROMPTS, choices, strict=True)]
    return draw(self, problems, counts, next_index, sampler)


@torch.no_grad()
def log_probs(prompt: list[int], completion: list[int]) -> list[float]:
    """Those of the model in training."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if lora is not None:
        plain = get_peft_model(plain, lora)
    plain.load_state_dict(state)
    return token_log_probs(plain, prompt, completion).tolist()


let_accelerate_shard_on_a_cpu()
WindowSampler.open, RationaleDrawer.draw = open_and_look, ask_and_draw
results = {}
for kind, lora in (("LoRA", LORA), ("full", None)):
    trainer = make_cot_trainer(
        rows=ROWS,
        model=model,
        output_dir=folder,
        sampler="server",
        sampler_kwargs={"base_url": base_url, "model": "tiny"},
        sampling_interval=2,
        max_steps=5,
        per_device_train_batch_size=3,
        learning_rate=6e-2 if lora else 3e-3,
        model_init_kwargs={"dtype": "float32"},
        peft_config=lora,
        processing_class=make_word_tokenizer(),
    )
    trainer.train()
    results[kind] = list(windows)
    windows.clear()
torch.save(results, Path(folder, f"{os.environ['RANK']}.pt"))
