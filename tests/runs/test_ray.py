"""A cluster of two machines loses workers, machines and drivers, and still gives the results of one process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from datasets import Dataset
from known_sampler import environment, make_problems, rows
from tiny_models import make_model, make_tokenizer, save_adapter, save_checkpoint
from trl import SFTConfig, SFTTrainer

from dco_trl import sampling
from dco_trl.cli import main
from dco_trl.errors import UserError
from dco_trl.runs import RunStore, grade_run, load_results, sample_run
from dco_trl.runs.arm import Arm
from dco_trl.runs.schedule_file import write_schedule
from dco_trl.sampling import SampleRequest, SamplingParams, TransformersSampler
from dco_trl.statistics import AttemptOrder
from dco_trl.trainer import PassAtKCallback

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

PROBLEMS, PARAMS = make_problems(6), SamplingParams(max_tokens=6)
# In float64, the rounding of a batch, which differs between blocks, changes no sample.
OPTIONS = {"dtype": "float64", "batch_size": 32}


@pytest.fixture(scope="module")
def cluster():
    """Two raylets with a CPU each; this process is connected to them."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'dco-trl[ray]'")
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, since sockets lie in it
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("PYTHONPATH", environment()["PYTHONPATH"]),
            ("RAY_USAGE_STATS_ENABLED", "0"),
            ("VLLM_CPU_KVCACHE_SPACE", "1"),
        ):
            patch.setenv(name, value)
        # Ray's own helper writes the cluster's address into this folder, even if the cluster's folder is elsewhere.
        os.makedirs(ray._common.utils.get_default_ray_temp_dir(), exist_ok=True)
        made = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": folder},
        )
        made.second = made.add_node(num_cpus=1)
        ray.init(made.address, log_to_driver=False)
        made.kill = ray.kill
        yield made
        ray.shutdown()
        made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_checkpoint(tmp_path_factory.mktemp("model"), initializer_range=0.2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint):
    """The run of one process, graded."""
    run = tmp_path_factory.mktemp("whole") / "run"
    sample_run(run, PROBLEMS, TransformersSampler(checkpoint, progress=False, **OPTIONS), 200, PARAMS, progress=False)
    grade_run(run, "exact", progress=False)
    return run


class Watched:
    """A sampler that does something after each block."""

    def __init__(self, sampler, after):
        self.sampler, self.after, self.identity, self.num_blocks = sampler, after, sampler.identity, 0

    def stream(self, requests, params):
        for answer in self.sampler.stream(requests, params):
            yield answer
            self.num_blocks += 1
            self.after.get(self.num_blocks, lambda: None)()


def test_workers_and_machines_are_lost_at_work(cluster, checkpoint, whole, tmp_path):
    sampler = sampling.RaySampler("transformers", checkpoint, num_workers=2, block_size=32, **OPTIONS)
    [first, _] = sampler._pool.workers

    def lose_a_machine():
        cluster.remove_node(cluster.second)

    def get_another():
        cluster.second = cluster.add_node(num_cpus=1)

    losses = {3: lambda: cluster.kill(first, no_restart=False), 9: lose_a_machine, 15: get_another}
    watched = Watched(sampler, losses)
    try:
        drawn = sample_run(tmp_path / "run", PROBLEMS, watched, 200, PARAMS, chunk_size=100, progress=False)
        assert watched.num_blocks >= 6 * 200 // 32
        assert drawn.num_drawn == 1200 and rows(tmp_path / "run") == rows(whole)
        assert len(RunStore(tmp_path / "run").sample_parts()) >= 10  # written as blocks come
        # A machine that never comes back leaves its blocks to the others.
        lose_a_machine()
        requests = [SampleRequest(PROBLEMS[i].prompt, 80, first_index=7, stream=i) for i in (2, 4)]
        alone = TransformersSampler(checkpoint, progress=False, **OPTIONS)
        assert sampler.sample(requests, PARAMS) == alone.sample(requests, PARAMS)
    finally:
        sampler.close()
        get_another()


def test_a_driver_that_is_killed_goes_on(cluster, checkpoint, whole, tmp_path):
    data = [{"id": p.problem_id, "prompt": p.prompt, "answer": p.answer} for p in PROBLEMS]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    command = [
        *(sys.executable, "-m", "dco_trl", "sample", "--model", checkpoint, "--dataset", "problems.jsonl"),
        *("--num-samples", "200", "--max-tokens", "6", "--output", "run", "--chunk-size", "100", "--batch-size", "32"),
        *("--ray-workers", "1", "--ray-address", cluster.address, "--dtype", "float64"),
        *("--sampler-kwargs", '{"block_size": 32}'),
    ]
    settings = {"env": environment(), "cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **settings) as process:
        while process.poll() is None and len(list((tmp_path / "run").rglob("part-*"))) < 3:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
    there = len(rows(tmp_path / "run"))
    assert 300 <= there < 1200
    done = subprocess.run(command, **settings, text=True)
    assert done.returncode == 0 and f"{there:,} samples are there, {1200 - there:,} are to be drawn" in done.stderr
    keys = ("problem_id", "sample_index", "text", "num_tokens", "finish_reason")
    assert [[row[key] for key in keys] for row in rows(tmp_path / "run")] == [
        [row[key] for key in keys] for row in rows(whole)
    ]


def test_verdicts_of_a_cluster_are_those_of_one_process(cluster, whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for grader in ("exact", "known_sampler:is_even"):
        assert main(["grade", str(run), "--grader", grader, "--ray-workers", "2"]) == 0
    assert "1,200 samples graded by known_sampler:is_even (1,200 of them now)" in capsys.readouterr().out
    grade_run(whole, "known_sampler:is_even", progress=False)
    verdicts = [
        {path.name: path.read_bytes() for path in folder.glob("grades/known_sampler-is_even/part-*")}
        for folder in (run, whole)
    ]
    assert verdicts[0] == verdicts[1] and verdicts[0]
    assert 0 < sum(p.num_correct for p in load_results(run, "known_sampler:is_even").problems) < 1200


def test_solving_along_a_schedule_draws_from_its_adapters(cluster, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(checkpoint, "MODEL")  # a name that workers find from the driver's folder
    for seed, name in enumerate(("one", "two")):
        save_adapter(name, seed)
    arms = [Arm("MODEL", "one"), Arm("MODEL", "two", 1.5), Arm("MODEL")]
    order = AttemptOrder(*map(np.array, ([0, 1, 2], [4, 16, 20])), 3, *[np.array([40])] * 3)
    write_schedule("schedule.yaml", order, arms)
    (tmp_path / "problems.jsonl").write_text("".join(f'{{"prompt": "{i}+1=", "answer": "{i}"}}\n' for i in range(4)))
    command = ["solve", "--model", "MODEL", "--dataset", "problems.jsonl", "--schedule", "schedule.yaml", "--grader"]
    command += ["exact", "--num-attempts", "40", "--max-tokens", "2", "--dtype", "float64", "--output"]
    assert main([*command, "alone"]) == 0 and main([*command, "run", "--ray-workers", "2"]) == 0
    assert rows("run") == rows("alone") and len({row["arm"] for row in rows("run")}) >= 2
    assert (tmp_path / "run/answers.jsonl").read_text() == (tmp_path / "alone/answers.jsonl").read_text()


def test_a_callback_measures_pass_at_k_on_the_cluster(cluster, checkpoint, tmp_path):
    def measured(name, sampler):
        options = {"params": PARAMS, "output_dir": tmp_path / name}
        callback = PassAtKCallback(PROBLEMS, "known_sampler:is_even", sampler, 40, [1, 40], **options)
        data = Dataset.from_list([{"prompt": p.prompt, "completion": p.answer} for p in PROBLEMS])
        settings = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "max_steps": 1}
        args = SFTConfig(output_dir=str(tmp_path / "training"), **settings)
        trainer = SFTTrainer(make_model(), args=args, train_dataset=data, processing_class=make_tokenizer())
        callback.trainer = trainer
        trainer.add_callback(callback)
        trainer.train()
        sampler.close()
        logged = [entry for entry in trainer.state.log_history if "eval_pass@40" in entry]
        return rows(next((tmp_path / name).iterdir())), [(e["eval_pass@1"], e["eval_pass@40"]) for e in logged]

    alone = measured("alone", TransformersSampler(checkpoint, progress=False, **OPTIONS))
    options = {"num_workers": 1, "block_size": 16, **OPTIONS}
    assert measured("cluster", sampling.RaySampler("transformers", checkpoint, **options)) == alone
    assert len(alone[0]) == 240 and len(alone[1]) == 1 and alone[1][0][1] > 0


class Late:
    """Ready only after the patience of the test has ended."""

    def identity(self):
        time.sleep(1.5)
        return "ready"


def test_who_waits_for_workers_is_told_what_they_need(cluster, monkeypatch, caplog):
    from dco_trl.sampling.ray_pool import RayPool

    monkeypatch.setattr("dco_trl.sampling.ray_pool._PATIENCE", 0.5)
    pool = RayPool(Late, 1)
    assert pool.first("identity") == "ready"
    [told] = [record.message for record in caplog.records if "is ready after" in record.message]
    assert "none of 1 workers, with 1 CPUs and 0 GPUs each, is ready after 0 s. The cluster has 2 CPUs" in told
    assert "are free: loading takes long, other work has to end, or machines have to join" in told
    pool.close()


def test_machines_with_other_files_are_found_out(cluster):
    sampler = object.__new__(sampling.RaySampler)
    sampler._identity = {"model": "m", "model_fingerprint": "a", "torch_version": "1"}
    sampler._check_same({"model": "m", "model_fingerprint": "a", "torch_version": "2"})
    told = r"two workers of the cluster sample different things \(model_fingerprint: 'a' and 'b'\). Give all machines"
    with pytest.raises(UserError, match=told):
        sampler._check_same({"model": "m", "model_fingerprint": "b", "torch_version": "1"})


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://[::1]:9", "nowhere.invalid:6379"])
def test_an_address_without_a_cluster_is_named(monkeypatch, tmp_path, capsys, address):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'dco-trl[ray]'")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    told = (
        rf"there is no Ray cluster at ray_address='{re.escape(address)}' \(\[Errno .* Start one \(`ray start --head`\)"
    )
    with pytest.raises(ConnectionError, match=told):
        sampling.RaySampler("vllm", "m", num_workers=1, address=address)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "problems.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    command = ["sample", "--model", "m", "--dataset", "problems.jsonl", "--output", "run"]
    assert main([*command, "--num-samples", "2", "--ray-workers", "1", "--ray-address", address]) == 2
    assert f"dco-trl sample: there is no Ray cluster at ray_address={address!r}" in capsys.readouterr().err


@pytest.mark.vllm
@pytest.mark.long
def test_vllm_in_a_worker(cluster, checkpoint):
    """vLLM uses its own executor although it runs inside Ray."""
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'dco-trl[vllm]'")
    sampler = sampling.RaySampler(
        "vllm", checkpoint, num_workers=1, max_model_len=64, seed_each_request=True, dtype="float32"
    )
    alone = TransformersSampler(checkpoint, progress=False, dtype="float32")
    greedy = SamplingParams(temperature=0, max_tokens=6)
    requests = [SampleRequest(problem.prompt, 2, stream=i) for i, problem in enumerate(PROBLEMS)]
    try:
        assert sampler.identity()["sampler"] == "vllm"
        assert sampler.sample(requests, greedy) == alone.sample(requests, greedy)
        [samples] = sampler.sample([SampleRequest(PROBLEMS[0].prompt, 100)], PARAMS)
        assert len(samples) == 100 and len({sample.text for sample in samples}) > 10
    finally:
        sampler.close()


def test_what_a_worker_raises_is_raised_here(cluster, checkpoint, tmp_path, capsys):
    sampler = sampling.RaySampler("transformers", checkpoint, num_workers=1)
    request = SampleRequest("1" * 300, 1)
    with pytest.raises(ValueError, match="prompt"):
        sampler.sample([request], PARAMS)
    sampler.close()
    (tmp_path / "problems.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    command = ["sample", "--dataset", str(tmp_path / "problems.jsonl"), "--num-samples", "2", "--ray-workers", "1"]
    command += ["--output", str(tmp_path / "run"), "--model"]
    assert main([*command, str(tmp_path / "absent")]) == 2
    assert f"model '{tmp_path / 'absent'}' could not be loaded: " in capsys.readouterr().err
    assert main([*command, checkpoint, "--sampler", "server", "--base-url", "http://127.0.0.1:1/v1"]) == 2
    assert (
        "--ray-workers cannot be combined with the sampler 'server': workers load the model themselves"
        in capsys.readouterr().err
    )
    assert not os.path.exists(tmp_path / "run")
