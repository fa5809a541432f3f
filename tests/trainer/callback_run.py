"""`SFTTrainer` with a callback that measures pass@k; as a script, one of two processes of `test_callbacks.py`."""

import json
import sys
from pathlib import Path

from tiny_models import make_model
from training import make_trainer
from trl import SFTTrainer

from dco_trl.sampling import Sample, SamplingParams
from dco_trl.trainer.callbacks import PassAtKCallback

ROWS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a, b in [(1, 1), (2, 3), (4, 2)]]
PARAMS = SamplingParams(max_tokens=4)


class HalfRight:
    """A sampler of another model: right on even indices."""

    def __init__(self):
        self.calls = 0

    def sample(self, requests, params):
        self.calls += 1
        return [
            [Sample("" if i % 2 else str(eval(r.prompt[:-1])), None, 1, "stop") for i in range(r.num_samples)]
            for r in requests
        ]

    def identity(self):
        return {"model": "half right", "sampler": "half right"}

    def close(self):
        raise AssertionError("it belongs to the user")


def sft(folder, callback=None, **settings):
    rows = [{"prompt": r["prompt"], "completion": r["answer"]} for r in ROWS * 4]
    options = dict(output_dir=str(folder), num_train_epochs=2, max_steps=-1, train_dataset=rows, eval_dataset=rows)
    trainer = make_trainer(SFTTrainer, make_model(attention_dropout=0.1), **{**options, **settings})
    if callback is not None:
        callback.trainer = trainer
        trainer.add_callback(callback)
    return trainer


if __name__ == "__main__":
    output, fail = Path(sys.argv[1]), sys.argv[2] == "True"

    class Failing(HalfRight):
        def sample(self, requests, params):
            raise ConnectionError("the endpoint is gone")

    chosen = Failing() if fail else "transformers"
    one_of_two = sft(output, PassAtKCallback(ROWS, "exact", chosen, num_samples=4, k=2, params=PARAMS))
    one_of_two.train()
    rank = one_of_two.accelerator.process_index
    (output / f"rank{rank}.json").write_text(json.dumps(one_of_two.state.log_history))
