"""The recipes for many machines: parsed by the tools they are for where those are here, and by what is always here."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_doc_code import check_arguments

FOLDER = Path(__file__).parent.parent / "examples" / "scaling"
FILES = sorted(path for path in FOLDER.iterdir() if path.is_file())


def commands_in(text: str) -> list[list[str]]:
    """The `dco-trl` commands of a script, those in its comments too."""
    lines = text.replace("\\\n", " ").replace("…", "").splitlines()
    found = [re.search(r"dco-trl [a-z]+ .*", line) for line in lines]
    commands = [re.split(r"\s{2,}#", match[0])[0].strip() for match in found if match]
    return [shlex.split(command if command.count('"') % 2 == 0 else command.rstrip('"')) for command in commands]


def test_there_are_recipes_and_they_use_the_command():
    scripts = ["router.sh", "serve_data_parallel.sh", "serve_data_parallel_nodes.sh"]
    assert [path.name for path in FILES] == ["kuberay_job.yaml", *scripts, "skypilot.yaml", "slurm_ray.sh"]
    assert sum(len(commands_in(path.read_text())) for path in FILES) >= 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_flags_of_the_recipes_exist_and_scripts_are_bash(path):
    for words in commands_in(path.read_text()):
        check_arguments(words)
    if path.suffix == ".sh":
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_job_is_one_that_slurm_takes():
    if shutil.which("sbatch") is None or subprocess.run(["scontrol", "ping"], capture_output=True).returncode:
        pytest.skip("no Slurm controller")
    command = ["sbatch", "--test-only", str(FOLDER / "slurm_ray.sh"), "MODEL", "DATASET", "RUN"]
    subprocess.run(command, check=True)


def test_the_cloud_task_is_yaml_and_its_script_is_bash():
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    assert set(task) == {"name", "num_nodes", "resources", "envs", "workdir", "file_mounts", "setup", "run"}
    for step in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[step], text=True, check=True)


def test_the_job_of_kubernetes_is_a_ray_job_of_the_version_that_is_tested():
    job = yaml.safe_load((FOLDER / "kuberay_job.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    check_arguments(shlex.split(spec["entrypoint"]))
    [workers] = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert f"--ray-workers {workers['maxReplicas']}" in spec["entrypoint"]
    assert f"ray=={spec['rayClusterSpec']['rayVersion']}" in (FOLDER.parents[1] / "constraints-cpu.txt").read_text()


def options_of(text: str) -> set[str]:
    return set(re.findall(r"--[a-z-]+", text))


def help_of(*command: str) -> set[str]:
    return options_of(subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_ray_takes_the_options_of_the_recipes():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'dco-trl[ray]'")
    known = help_of(str(Path(sys.executable).with_name("ray")), "symmetric-run")
    for recipe in ("slurm_ray.sh", "skypilot.yaml"):
        [options] = re.findall(r"ray symmetric-run (.*?) -- ", (FOLDER / recipe).read_text())
        assert options_of(options) <= known


def test_the_router_takes_the_options_of_its_recipe():
    if shutil.which("vllm-router") is None:
        pytest.skip("no vllm-router: pip install vllm-router")
    assert options_of((FOLDER / "router.sh").read_text().split("exec ")[1]) <= help_of("vllm-router")


@pytest.mark.slow
def test_vllm_takes_the_arguments_of_its_recipes(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    # `vllm` here prints the arguments that it was given.
    (tmp_path / "vllm").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "vllm").chmod(0o755)
    calls = [
        ["serve_data_parallel.sh", "MODEL"],
        ["serve_data_parallel.sh", "MODEL", "4", "ADAPTER"],
        ["serve_data_parallel_nodes.sh", "MODEL", "2", "0", "10.0.0.1"],
        ["serve_data_parallel_nodes.sh", "MODEL", "2", "1", "10.0.0.1"],
    ]
    given = []
    for script, *arguments in calls:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        command = ["bash", str(FOLDER / script), *arguments]
        serve, *words = subprocess.check_output(command, text=True, env=environment).splitlines()
        assert serve == "serve"
        given.append(words)
    code = (
        "import json, sys\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args\n"
        "parser = make_arg_parser(FlexibleArgumentParser())\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    args = parser.parse_args(words)\n"
        "    validate_parsed_serve_args(args)\n"
        "    print(args.data_parallel_size, args.data_parallel_size_local, args.data_parallel_start_rank,"
        " args.headless, [module.name for module in args.lora_modules or []])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(given)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-4:] == [
        "8 None None False []",
        "4 None None False ['tuned']",
        "16 8 None False []",
        "16 8 8 True []",
    ]
