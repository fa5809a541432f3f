"""A schedule as a YAML file is read back as it was written; anything else is refused."""

import numpy as np
import pytest
import yaml

from dco_trl.runs.arm import Arm
from dco_trl.runs.files import StoreError
from dco_trl.runs.schedule_file import read_schedule, write_schedule
from dco_trl.statistics import plan_attempts

MODEL = {"model": "MODEL"}
ARMS = [Arm("MODEL"), Arm("MODEL", "runs/never"), Arm("MODEL", "runs/dco", 1.5, "f" * 16)]
LOG_P = [[-0.1, -9.0, -9.0], [-20.0] * 3, [-2.0, -2.0, -3.0]]


def save(folder, **changes):
    file = folder / "schedule.yaml"
    write_schedule(file, plan_attempts(64, log_p=LOG_P), ARMS, [{"k": 1, "schedule": 0.3}])
    content = {**yaml.safe_load(file.read_text()), **changes}
    file.write_text(yaml.safe_dump(content))
    return file


def test_what_is_written_is_read_without_the_arms_that_are_not_sampled(tmp_path):
    planned = plan_attempts(64, log_p=LOG_P)
    assert planned.counts(64)[1] == 0
    read = read_schedule(save(tmp_path))
    assert read.arms == (ARMS[0], ARMS[2])
    ks = np.arange(100)
    np.testing.assert_array_equal(read.schedule.counts(ks), planned.counts(ks)[:, [0, 2]])
    np.testing.assert_allclose(read.schedule.coverage, planned.coverage)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 2}, "its format is 2, and this version of dco-trl reads 1"),
        *(({"arms": arms}, "it has 0 arms, and its blocks are for 2") for arms in ([], "MODEL", None)),
        *(
            ({"arms": [MODEL, arm]}, "the arm .* must be a mapping with model and, as it needs")
            for arm in ({"modell": "MODEL"}, {"adapter": "runs/dco"}, "runs/dco")
        ),
        ({"arms": [MODEL, MODEL]}, "the arm 'MODEL' is there twice: give its blocks one number"),
        (
            {"arms": [{**MODEL, "adapter": "a"}, {**MODEL, "adapter": "a/", "model_fingerprint": "x"}]},
            "the arm 'a' is there twice: give its blocks one number",
        ),
        ({"arms": [MODEL, {"model": 3}]}, "must name its model and its adapter as text"),
        *(
            ({"arms": [MODEL, {"model": "M", "temperature": bad}]}, "must have a temperature above 0")
            for bad in (0, -1, float("nan"), float("inf"), "hot", True, None)
        ),
        ({"num_attempts": 65}, "its num_attempts is 65, and its blocks add up to 64"),
        *(({"blocks": none}, "blocks must be a list of pairs of an arm and its number of") for none in ([], None)),
        *(
            ({"blocks": [[0, n]]}, f"`attempts of a block` must be an integer of at least 1, got {n}")
            for n in (-3, 0, 1.5)
        ),
        ({"blocks": [[-1, 1]]}, "`arm of a block` must be an integer of at least 0, got -1"),
        ({"num_arms": 0}, "`num_arms` must be an integer of at least 1, got 0"),
        ({"k": [4, 0]}, "k must be"),
        ({"coverage": [0.5]}, "k, coverage and optimum must be lists of one length"),
        ({"blocks": [[2, 1]]}, r"blocks name arm 2 of 2 arms \(counted from 0\)"),
    ],
)
def test_what_is_no_schedule_is_refused(tmp_path, changes, told):
    with pytest.raises(StoreError, match=f"schedule.yaml holds no schedule: .*{told}"):
        read_schedule(save(tmp_path, **changes))


@pytest.mark.parametrize("key", ["num_arms", "blocks", "k", "coverage", "optimum", "arms", "format"])
def test_a_missing_key_is_named(tmp_path, key):
    file = save(tmp_path)
    content = yaml.safe_load(file.read_text())
    del content[key]
    file.write_text(yaml.safe_dump(content))
    told = {"arms": "it has 0 arms", "format": "its format is None"}.get(key, f"the schedule has no {key}")
    with pytest.raises(StoreError, match=f"schedule.yaml holds no schedule: {told}"):
        read_schedule(file)


@pytest.mark.parametrize("text", ["- a list", "key: [", "", "\udcff", None])
def test_a_file_of_another_kind_is_refused(tmp_path, text):
    if text is not None:  # else it is not there
        (tmp_path / "schedule.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StoreError, match="(?s)holds no schedule: .*`dco-trl schedule` writes one"):
        read_schedule(tmp_path / "schedule.yaml")
