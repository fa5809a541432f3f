"""Reading problems: each source, templates, and what is wrong with a data set."""

import csv
import datetime
import json
import logging

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dco_trl.runs import DataError, Problem, RunStore, fingerprint, problems_from_rows, read_problems
from dco_trl.runs.rows import read_dataset

ROWS = [
    {"prompt": "1 + 1 =", "answer": "2", "level": 1},
    {"prompt": "2 + 2 =", "answer": "4", "level": 2},
    {"prompt": "3 + 3 =", "answer": "6", "level": 3},
]
PROBLEMS = [Problem(str(i), row["prompt"], row["answer"], {"level": row["level"]}) for i, row in enumerate(ROWS)]
NOT_UTF8 = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\x80"]).buffers())


def write(tmp_path, kind, rows=ROWS):
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_each_kind_of_file_gives_the_same_problems(tmp_path, kind):
    assert read_problems(write(tmp_path, kind)) == PROBLEMS
    assert read_problems(str(write(tmp_path, kind)), num_problems=2) == PROBLEMS[:2]


def nested(depth):
    value = "core"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_and_a_blank_line_are_no_data(tmp_path, kind):
    rows = [{"prompt": "p", "answer": "a"}, {"prompt": "q", "answer": "b"}]
    path = write(tmp_path, kind, rows)
    expected = read_problems(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n")
    assert read_problems(path) == expected


def test_what_is_unusual_and_right(tmp_path):
    # A field longer than the csv module's own limit, line breaks of every kind, and separators inside text.
    long = "x" * 200_000
    limit = csv.field_size_limit()
    (problem, second) = read_problems(
        write(tmp_path, "csv", [{"prompt": long, "answer": "a"}, {"prompt": "p, q\nr\r\n", "answer": '"'}])
    )
    assert problem.prompt == long and (second.prompt, second.answer) == ("p, q\nr\r\n", '"')
    assert csv.field_size_limit() == limit
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a\u2028b", "answer": 1}\r\n\r\n{"prompt": "c", "answer": 2}', newline="")
    assert [problem.prompt for problem in read_problems(path)] == ["a\u2028b", "c"]
    folder = tmp_path / "level=3"
    folder.mkdir()
    assert read_problems(write(folder, "parquet")) == PROBLEMS  # the folder's name is no column
    assert problems_from_rows([{"prompt": "p", "answer": 10**400, "x": nested(99)}])[0].answer == str(10**400)
    assert problems_from_rows([{"prompt": "p", "answer": np.int64(3)}])[0].answer == "3"
    assert problems_from_rows(ROWS, num_problems=np.int64(2)) == PROBLEMS[:2]
    (problem,) = problems_from_rows([{"n": 2.5, "answer": 1}], prompt_template="{{{n:.2f}}} {n!r:>4} {n}")
    assert problem.prompt == "{2.50}  2.5 2.5"


def test_numpy_values_of_other_columns_stay_numbers(tmp_path):
    columns = {"level": np.int64(3), "weights": np.array([1.5, 2]), "when": datetime.date(2026, 1, 2)}
    with RunStore.writing(tmp_path, {"model": "m"}, problems_from_rows([{"prompt": "p", "answer": "a", **columns}])):
        pass
    (problem,) = RunStore(tmp_path).problems
    assert problem.columns == {"level": 3, "weights": [1.5, 2.0], "when": "2026-01-02"}


LITERAL = ["NA", "null", "None", "007", "0.50", "2024-02-29", "2024-02-29T00:00:00", "1e3", "True", "[1]"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv"])
def test_text_of_training_data_stays_text(tmp_path, kind):
    rows = [{"prompt": f"{i}?", "completion": text, "answer": text} for i, text in enumerate(LITERAL)]
    path = write(tmp_path, kind, rows)
    data = read_dataset(path)
    assert data["completion"][:] == LITERAL and data.features["completion"].dtype == "string"
    assert [problem.answer for problem in read_problems(path)] == LITERAL
    path.rename(tmp_path / f"test.{kind}")  # a folder's files are read the same way
    assert [problem.answer for problem in read_problems(tmp_path)] == LITERAL


def test_training_data_of_several_kinds(tmp_path):
    messages = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2", "thinking": "hm"}]
    rows = [{"messages": messages[:1], "n": 1}, {"messages": messages, "level": None, "n": 2.5}]
    data = read_dataset(write(tmp_path, "jsonl", rows))
    assert data["n"][:] == [1, 2.5] and data["level"][:] == [None, None]
    assert data[1]["messages"][1] == messages[1]
    counted = [{"prompt": "p", "num_sampled": "8", "num_correct": "3"}]
    assert read_dataset(write(tmp_path, "csv", counted))[0] == {"prompt": "p", "num_sampled": 8, "num_correct": 3}


@pytest.mark.parametrize(
    ("kind", "rows", "told"),
    [
        ("jsonl", [{"completion": text} for text in ("a", "b", 7, "c")], "row 2, column 'completion': 7 does not go"),
        ("json", [{"x": 1}, {"x": [1]}], "row 1, column 'x': [1] does not go with the rows before it"),
        ("jsonl", [{"x": 1}, {"x": 2**70}], f"row 1, column 'x': {2**70} does not go"),
        ("jsonl", [{"x": "\ud83d"}], "row 0, column 'x': '\\ud83d' does not go"),
        ("jsonl", [{"x": nested(101)}], "row 0, column 'x': nested deeper than 100 levels"),
        ("jsonl", [], "is empty: there is nothing to train on. Check the file or the split"),
        ("csv", [{"num_sampled": "4"}, {"num_sampled": "NA"}], "row 1, column 'num_sampled': 'NA' is not an integer"),
    ],
)
def test_training_data_that_make_no_column(tmp_path, kind, rows, told):
    path = write(tmp_path, kind, rows)
    with pytest.raises(DataError) as error:
        read_dataset(path)
    assert told in str(error.value) and path.name in str(error.value)


def test_what_datasets_can_load(tmp_path):
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    assert read_problems(tmp_path / "one") == PROBLEMS
    datasets.DatasetDict({"test": dataset, "train": dataset.select([1])}).save_to_disk(tmp_path / "splits")
    assert read_problems(tmp_path / "splits") == PROBLEMS
    assert len(read_problems(tmp_path / "splits", split="train")) == 1
    with pytest.raises(DataError, match=r"has no split 'validation'. Choose one of \['test', 'train'\]"):
        read_problems(tmp_path / "splits", split="validation")
    folder = tmp_path / "files"
    folder.mkdir()
    write(folder, "jsonl").rename(folder / "test.jsonl")
    assert read_problems(folder) == PROBLEMS
    assert problems_from_rows(dataset) == PROBLEMS
    with pytest.raises(DataError, match="'no/such-data' is not a file here, and the datasets library could not"):
        read_problems("no/such-data")


def test_templates_chat_and_named_columns():
    rows = [{"problem": "1 + 1", "unit": "{m}", "target": 2, "uid": "a"}]
    (problem,) = problems_from_rows(
        rows, prompt_template="Q: {problem} in {unit}, as \\boxed{{}}\nA:", answer_column="target", id_column="uid"
    )
    assert problem == Problem("a", "Q: 1 + 1 in {m}, as \\boxed{}\nA:", "2", {"problem": "1 + 1", "unit": "{m}"})
    (problem,) = problems_from_rows(rows, prompt_column="problem", answer_column="target", chat=True)
    assert problem.prompt == [{"role": "user", "content": "1 + 1"}]


def test_conversational_prompts_and_completions():
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "1 + 1?"}]
    rows = [{"prompt": messages, "completion": [{"role": "assistant", "content": "2"}]}]
    (problem,) = problems_from_rows(rows, answer_column="completion")
    assert problem.prompt == messages and problem.answer == "2"


@pytest.mark.parametrize(
    ("answer", "text"), [(2, "2"), (2.5, "2.5"), (True, "True"), (["a", 1], '["a", 1]'), ({"x": 1}, '{"x": 1}')]
)
def test_answers_become_text(answer, text):
    assert problems_from_rows([{"prompt": "p", "answer": answer}])[0].answer == text


def test_ids_are_the_column_id_where_it_is_unique(caplog):
    rows = [{**row, "id": f"x{i}"} for i, row in enumerate(ROWS)]
    assert [p.problem_id for p in problems_from_rows(rows)] == ["x0", "x1", "x2"]
    rows[2]["id"] = "x0"
    with caplog.at_level(logging.WARNING):
        assert [p.problem_id for p in problems_from_rows(rows)] == ["0", "1", "2"]
        assert problems_from_rows(rows)[2].columns == {"level": 3, "id": "x0"}  # for graders
    assert "column 'id' is not unique; problems are named by row number instead" in caplog.text
    empty = [rows[0], {**rows[1], "id": None}]
    for table, column, told in (
        (rows, "id", "column 'id' is not unique: x0 occur more than once. Name a column that is, or leave it out"),
        (empty, "id", r"column 'id' is empty in 1 rows \(numbers 1\). Fill them, or leave it out to number the rows"),
        (rows, "uid", "there is no column 'uid'; its columns are .*Name one of them, or leave it out"),
    ):
        with pytest.raises(DataError, match=f"`id_column` does not name the rows of the data set: {told}"):
            problems_from_rows(table, id_column=column)


def test_repeated_problems_are_said_and_contradictions_refused(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(problems_from_rows([ROWS[0], ROWS[1], ROWS[0]])) == 3
        assert len(problems_from_rows([{**ROWS[0], "answer": text} for text in ("18", "18.0")])) == 2
    assert "1 problems repeat an earlier one (ids 2)" in caplog.text
    assert "one prompt has one number in several spellings: '18' and '18.0'" in caplog.text
    for other in ("3", "two"):
        with pytest.raises(
            DataError, match=f"'0' and '1' have the same prompt but different answers, '2' and '{other}"
        ):
            problems_from_rows([ROWS[0], {**ROWS[0], "answer": other}])


def chat(**message):
    return [{"prompt": [message], "answer": "a"}]


def answered(answer):
    return [{"prompt": "p", "answer": answer}]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "d is empty: there is nothing to sample"),
        ([{"problem": "p", "answer": "a"}], "`prompt_column` names 'prompt', which is not a column of d; its columns"),
        ([{"prompt": "p", "completion": "a"}], "`answer_column` names 'answer', which is not a column of d; its col"),
        ([ROWS[0], {"prompt": "p"}], "column 'answer' is absent, None or empty in 1 of 2 rows (row numbers 1)"),
        ([ROWS[0], *answered(None)], "'answer' is absent, None or empty in 1 of 2 rows"),
        (answered(float("nan")), "'answer' is absent, None or empty in 1 of 1 rows"),
        (answered(" ") * 9, "in 9 of 9 rows (row numbers 0, 1, 2, 3, 4, …)"),
        ([{"prompt": " ", "answer": "a"}], "'prompt' is absent, None or empty"),
        ([{"prompt": 3, "answer": "a"}], "row 0, column 'prompt': the prompt must be text or a list of messages"),
        (chat(role="user"), "row 0, column 'prompt': the prompt must be text or a list of messages"),
        (chat(role="user", content=1), "content of a message must be text"),
        (chat(role="user", content=None), "content of a message must be text"),
        (chat(role="user", content="q", tool_calls=["f"]), "tool calls of a message must be a list of objects, got ["),
        (chat(role="user", tool_calls=3), "tool calls of a message must be a list of objects, got 3. Correct them"),
        (chat(role="assistant", content="2"), "the prompt ends with the assistant's message"),
        (["text"], "row 0 is not an object with columns but 'text'"),
        ([{3: "p"}], "d: row 0: the name of a column must be text, got 3"),
        ([ROWS[0], *answered("half \ud83d")], "d: row 1, column 'answer': half of a character (the lone surrogate"),
        ([ROWS[0], {"prompt": "\udc9d", "answer": "a"}], "d: row 1, column 'prompt': half of a character"),
        (answered(["\ud83d"]), "d: row 0, column 'answer': half of a character"),
        ([{"prompt": "p", "answer": "a", "id": "\ud83d"}], "d: row 0, column 'id': half of a character"),
        (chat(role="user", content="\ud83d"), "column 'prompt': half of a character (the lone surrogate '\\ud83d')"),
        (answered(float("inf")), "d: row 0, column 'answer': inf is not an answer that can be"),
        (answered(np.float32("-inf")), "d: row 0, column 'answer': -inf is not an answer"),
        (answered([float("inf")]), "column 'answer': [inf] cannot be written as text: Out of range"),
        (answered([{1, 2}]), "column 'answer': [{1, 2}] cannot be written as text: Object of type set"),
        (answered([{"role": "assistant", "content": 1}]), "column 'answer': the answer's message needs text as its"),
        (answered([{"role": "assistant", "content": None}]), "needs text as its content, or tool calls, got {"),
        (answered([{"role": "assistant", "tool_calls": ["f"]}]), "message needs text as its content, or tool calls"),
        ([{**ROWS[0], "x": nested(101)}], "d: row 0, column 'x': nested deeper than 100 levels. Write it as text"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_said(rows, told):
    with pytest.raises(DataError) as error:
        problems_from_rows(rows, name="d")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        *(
            (template, f"{template!r} cannot format the columns of d: row 0, {ROWS[0]}: {why}")
            for template, why in (
                ("{level!x}", "Unknown conversion"),
                ("{prompt:d}", "Unknown format code"),
                ("{level:99999999999999999999}", "Too many decimal digits"),
                ("{prompt:{depth}}", "'depth'"),
            )
        ),
        ("{prompt.upper}", "names ['prompt.upper'], but the columns of d are ['prompt', 'answer', 'level']. Double"),
        ("Q: {question}", "names ['question'], but the columns of d are"),
        ("Q:", "'Q:' names no column: every prompt would be the same. Name one in braces, of ['prompt', 'answer', "),
        ("Q: {prompt", "'Q: {prompt' is not a format string: expected '}' before end of string. Double braces"),
        ("{prompt}\ud83d", "d: row 0, the prompt from prompt: half of a character"),
    ],
)
def test_what_is_wrong_with_a_template_is_said(template, told):
    with pytest.raises(DataError) as error:
        problems_from_rows(ROWS, name="d", prompt_template=template)
    assert told in str(error.value) and ("`prompt_template` " in str(error.value) or "half" in told)


def test_more_problems_than_there_are():
    with pytest.raises(DataError, match="`num_problems` is 4, and d has 3 rows. Ask for fewer"):
        problems_from_rows(ROWS, name="d", num_problems=4)


@pytest.mark.parametrize("number", [0, -1, 1.0, "1", True])
def test_a_number_of_problems_that_is_none(number):
    with pytest.raises(ValueError, match=f"`num_problems` must be an integer of at least 1, got {number!r}"):
        problems_from_rows(ROWS, num_problems=number)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", '{"prompt": "p"}\n{oops\n', "line 1 column 2 (char 1). Correct the text there"),
        ("a.jsonl", '{"prompt": "p"}\n"p"\n', "row 1 is not an object with columns but 'p'"),
        ("a.jsonl", "[" * 100_000, "line 1: nested too deeply to be read. Write the inner values as text"),
        ("a.jsonl", '{"prompt": "p", "answer": ' + "9" * 5000 + "}", "line 1: not JSON: Exceeds the limit"),
        ("a.jsonl", '{"prompt": "p", "prompt": "q"}', "line 1: 'prompt' is there twice in ['prompt', 'prompt']. Re"),
        ("a.json", '[{"answer": {"a": [{"b": 1, "c": 2, "b": 2}]}}]', "'b' is there twice in ['b', 'c', 'b']"),
        ("a.jsonl", '{"prompt": "p", "answer": Infinity}', "row 0, column 'answer': inf is not an answer"),
        ("a.jsonl", '{"prompt": "p", "answer": 1e999}', "row 0, column 'answer': inf is not an answer"),
        ("a.jsonl", '{"prompt": "\\ud83d", "answer": 1}', "row 0, column 'prompt': half of a character"),
        ("a.json", '{"prompt": "p"}', "expected a list of objects, got dict. Put the rows into [ ]"),
        ("a.json", "[", "not JSON: Expecting value"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.parquet", "something else", "cannot be read as Parquet: Parquet magic bytes not found"),
        ("a.csv", "prompt,answer,prompt\np,a,q\n", "line 1: 'prompt' is there twice in ['prompt', 'answer', 'pr"),
        ("a.csv", "prompt,answer\np,a\nq\n", "line 3: 1 values for the 2 columns ['prompt', 'answer'], so there is"),
        ("a.csv", "prompt,answer\np,a,b\n", "['prompt', 'answer'], so there is no name for the last"),
        ("a.csv", 'prompt,answer\n"p,a\nq,b\n', "line 3: not CSV: unexpected end of data. Close every quotation mark"),
        ("a.csv", 'prompt,answer\n"p"q,a\n', "line 2: not CSV: ',' expected after"),
        ("a.txt", "no", "cannot read a file of type '.txt'; use one of .jsonl, .json, .parquet, .csv"),
        ("a.csv", "prompt,answer\n", "is empty: there is nothing to sample"),
        ("absent.jsonl", None, "there is no such file. Check its name and the folder you are in"),
        ("a.jsonl", "/proc/self/mem", "Input/output error. Check that you may read it"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, content, told):
    if content == "/proc/self/mem":
        (tmp_path / name).symlink_to(content)
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        read_problems(tmp_path / name)
    assert told in str(error.value) and name in str(error.value)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("data", [b'{"prompt": \n\n"\xff"}', '\n\n{"prompt"}'.encode("utf-16")])
def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path, kind, data):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"a.{kind}', line [13]: not UTF-8 \(invalid .*byte\). Save the file as UTF"):
        read_problems(path)


@pytest.mark.parametrize(
    ("columns", "names", "told"),
    [
        ([NOT_UTF8, ["a"]], ["prompt", "answer"], "cannot be read as Parquet: .*Invalid UTF8.* Write the file again"),
        ([["p"], ["a"], ["q"]], ["prompt", "answer", "prompt"], ": 'prompt' is there twice in "),
    ],
)
def test_what_is_wrong_with_a_parquet_file_is_said(tmp_path, columns, names, told):
    pq.write_table(pa.table(columns, names=names), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"a.parquet'.*{told}"):
        read_problems(tmp_path / "a.parquet")


def test_the_fingerprint_is_of_ids_prompts_and_answers():
    same = [Problem(p.problem_id, p.prompt, p.answer, {"other": 1}) for p in PROBLEMS]
    assert fingerprint(same) == fingerprint(PROBLEMS)
    others = [
        PROBLEMS[::-1],
        PROBLEMS[:2],
        PROBLEMS[1:],
        [Problem("0", "1 + 1 =", "3"), *PROBLEMS[1:]],
        [Problem("0", [{"role": "user", "content": "1 + 1 ="}], "2"), *PROBLEMS[1:]],
        [Problem("7", "1 + 1 =", "2"), *PROBLEMS[1:]],
    ]
    assert len({fingerprint(problems) for problems in [PROBLEMS, *others]}) == 7


@pytest.mark.parametrize("column", [r"a\u0000", r"\u0000", r"\ud83d"])
def test_a_file_that_makes_no_data_set_is_named(column, tmp_path):
    (tmp_path / "rows.jsonl").write_text(f'{{"{column}": "x"}}\n')
    with pytest.raises(DataError, match=r"(?s)rows.jsonl' cannot be made a data set: .* Write the file again"):
        read_dataset(tmp_path / "rows.jsonl")


def test_messages_keep_their_keys_and_calls_become_text():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    asked = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "2"},
    ]
    row = {"prompt": asked, "answer": [{"role": "assistant", "content": "2", "reasoning_content": "easy"}]}
    [problem] = problems_from_rows(
        [{**row, "tools": '[{"name": "add"}]', "chat_template_kwargs": {"thinking": False}}]
    )
    assert (problem.prompt, problem.answer, problem.completion) == (asked, "2", row["answer"])
    assert problem.template_kwargs == {"tools": [{"name": "add"}], "thinking": False}
    [plain] = problems_from_rows([{**row, "answer": [{"role": "assistant", "content": "2"}]}])
    assert plain.completion is None and plain.template_kwargs == {} and plain.answer == "2"
    assert fingerprint([plain]) != fingerprint([problem])  # the prompt is rendered otherwise
    [called] = problems_from_rows([{**row, "answer": [{"role": "assistant", "content": None, "tool_calls": [call]}]}])
    assert called.answer == '{"name": "add", "arguments": {"a": 1}}' and called.completion[0]["tool_calls"] == [call]
